"""What storing a record costs above the disk: `python tests/perf/committing.py [FOLDER]`.

A record of 18 cells is stored by `Run.keep`, and in turn its bytes are written to a file of the same folder, which is
synced with its folder, so that both see the same disk. It prints medians in milliseconds, and how long the processor
was busy with a record, which a busy machine stretches.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from gradbench.tables.store import Run

COMMITS = 300
PARAMS = 12


def row(number: int) -> dict[str, object]:
    """A row as large as that of a measured cell."""
    nested = [{"param": f"W{i}", "cosine": 0.1 * i, "norm_ratio": 1.0, "reason": ""} for i in range(PARAMS)]
    numbers = dict.fromkeys(("cosine", "cosine_mean", "norm_ratio", "rel_error", "residual", "rho"), 0.123456789)
    words = {"system": "cet_real", "system_options": '{"D": 32, "heads": 4, "N": 16}', "status": "settled"}
    return {"cell": f"{number:016x}", "problem": "p", "T1": number, **numbers, **words, "params": nested, "extra": []}


def seconds(work: Callable[[], object]) -> float:
    """The time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain(path: Path, content: bytes) -> None:
    """Write and sync a file and its folder: two syncs."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def main(place: Path | None) -> None:
    """Print the two medians and their difference."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        run = Run(Path(folder) / "run")
        run.folder.mkdir()
        run.start({"cells": [], "skipped": [], "problems": [], "key": "k"}, {"identity": "i"})
        rows = [row(i) for i in range(18)]
        run.keep("first", rows)
        content = run.path_of("first").read_bytes()
        times: tuple[list[float], list[float], list[float]] = ([], [], [])
        for i in range(COMMITS):
            busy = time.process_time()
            times[0].append(seconds(partial(run.keep, f"p{i}", rows)))
            times[2].append(time.process_time() - busy)
            times[1].append(seconds(partial(plain, run.path_of(f"plain{i}"), content)))
    ours, disk, processor = (1000 * median(t) for t in times)
    told = f"keep {ours:.2f} ms, the disk {disk:.2f} ms, above it {ours - disk:.2f} ms"
    print(f"{len(content):,} bytes: {told}; processor {processor:.2f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
