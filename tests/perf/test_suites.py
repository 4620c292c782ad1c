"""Whole suites against the same cells measured one at a time, a step at a time: a random sample of them is timed."""

from __future__ import annotations

import random
from pathlib import Path
from time import perf_counter

import pytest
import torch
from ledger import DEVICE, Ledger
from pytest_benchmark.fixture import BenchmarkFixture
from script import measure

from gradbench.commands.running import prepare, run
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.estimators.base import Role
from gradbench.planning.cells import Cell
from gradbench.planning.problems import Problem, rule_of

# (suite, sampled cells, least ratio)
SUITES = [("atlas", 24, 1000)] if DEVICE == "cuda" else [("aep", 20, 20)]


@pytest.mark.benchmark(group="suites")
@pytest.mark.parametrize(("suite", "sample", "least"), SUITES)
def test_suite(
    suite: str, sample: int, least: float, tmp_path: Path, ledger: Ledger, benchmark: BenchmarkFixture
) -> None:
    planned = prepare(suite)[1]
    # a control is nothing to write a script for
    rules = [c for c in planned.cells if rule_of(c.estimator, c.estimator_options).role is not Role.CONTROL]
    rng = random.Random(0)
    chosen = rng.sample(rules, sample)
    seconds: list[float] = []

    def whole() -> float:
        start = perf_counter()
        run(suite, out=tmp_path, device=DEVICE, fresh=True)
        return perf_counter() - start

    def step_by_step(cells: list[Cell]) -> None:
        with isolated():
            for cell in cells:
                field = build(Problem((cell,)), DEVICE)
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                start = perf_counter()
                measure(cell, field, planned.thresholds.live[cell.dtype])
                seconds.append(perf_counter() - start)

    step_by_step(chosen[:1])
    seconds.clear()  # that warmed up
    step_by_step(chosen[::2])  # half before and half after: how fast a shared machine is changes by the minute
    cold = whole()
    warm = whole() if DEVICE == "cuda" else cold  # a CPU builds nothing that a second run could keep
    step_by_step(chosen[1::2])
    script = sum(seconds) / len(seconds)
    cells = len(rules)
    ratio = script / (warm / cells)
    spread = (sum((t - script) ** 2 for t in seconds) / len(seconds)) ** 0.5 / len(seconds) ** 0.5
    ledger.ratios[f"suite {suite}"] = ratio
    ledger.notes[suite] = (
        f"{cells:,} cells, cold {cold:.1f} s, warm {warm:.1f} s; script {script:.3f} +- {spread:.3f} s a cell "
        f"({len(seconds)} sampled): {ratio:,.0f} x"
    )
    benchmark.extra_info.update(cold=cold, warm=warm, script=script, ratio=ratio)
    benchmark.pedantic(lambda: None, rounds=1)
    assert ratio >= least, ledger.notes[suite]
