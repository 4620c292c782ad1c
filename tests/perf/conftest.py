"""Ratios of a benchmark session: printed, stored, and held against those of the same processor."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from ledger import BASELINE, DEVICE, FOLDER, TOLERANCE, Ledger

from gradbench.commands.environment import _git
from gradbench.engine.device import describe


@contextmanager
def every_core() -> Iterator[None]:
    """As a user has: the other tests leave torch one."""
    found = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(found)


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    with every_core():
        yield


@pytest.fixture(scope="session")
def ledger() -> Iterator[Ledger]:
    """Filled by the benchmarks; printed, stored and compared when they are over."""
    ledger = Ledger()
    yield ledger
    if not (ledger.ratios or ledger.sweeps):
        return
    with every_core():
        processor = describe(DEVICE)
    slug = re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    content = {
        "processor": processor,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if DEVICE == "cuda" else None,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "ceilings": ledger.ceilings,
        "notes": ledger.notes,
        "ratios": ledger.ratios,
        "sweeps": {knob: asdict(sweep) for knob, sweep in ledger.sweeps.items()},
        "entries": [asdict(e) for e in ledger.entries],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{slug}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{processor}, torch {torch.__version__}\n{ledger.table()}\nstored: {FOLDER / slug}.json")
    known = json.loads(BASELINE.read_text()).get(processor, {})
    slower = {k: (v, known[k]) for k, v in ledger.ratios.items() if v < TOLERANCE * known.get(k, 0)}
    if not known:
        print(f"no ratios of this processor are known: add them to {BASELINE.name}")
    assert not slower, f"ratios fell below {TOLERANCE:.0%} of their baseline (now, baseline): {slower}"
