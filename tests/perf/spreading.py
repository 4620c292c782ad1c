"""What a second worker gives: `python tests/perf/spreading.py [SECONDS] [TURNS]`.

A suite that keeps one worker of one core busy for about SECONDS (120) is measured by a cluster of one worker and by a
cluster of two, in turns (3 of each), all in one process on one host. Start-up is not counted: every worker has
measured a problem before, and the clock runs from the first pack to the last record. The aim is a ratio of 1.8 between
the medians. It needs two cores that nobody else uses.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

import gradbench as gb
from gradbench.commands.progress import CellProgress

AIM = 1.8
WORKERS = (1, 2)
GRID = {"system": "cet_real", "estimator": ["bptt", "aep"], "T1": 200, "T2": 60, "beta": 0.02, "batch": 8}


def seconds(problems: int, workers: int, folder: Path) -> float:
    """The time from the first pack to the last record of so many problems on so many workers."""
    torch.set_num_threads(workers)  # how many workers a local cluster has
    spans: list[float] = []

    def watch(progress: CellProgress) -> None:
        spans.append(progress.elapsed)

    gb.run(
        gb.suite({**GRID, "seed": list(range(problems))}, name="spreading"),
        out=folder,
        device="cpu",
        cluster="local",
        fresh=True,
        watch=watch,
    )
    return spans[-1]


def main(wanted: float, turns: int) -> None:
    """Print the times, their medians and the ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds(2, 2, folder)  # both worker processes have measured
        few = 4
        each = seconds(few, 1, folder) / few
        problems = 2 * max(2, round(wanted / each / 2))
        print(f"{problems} problems of about {each:.2f} s")
        times: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _ in range(turns):
            for workers in WORKERS:
                times[workers].append(seconds(problems, workers, folder))
                print(f"{workers} worker{'s' if workers > 1 else ''}: {times[workers][-1]:.1f} s", flush=True)
    one, two = (median(times[workers]) for workers in WORKERS)
    print(f"medians {one:.1f} s and {two:.1f} s: {one / two:.2f} times as fast (aim {AIM})")


if __name__ == "__main__":
    named = sys.argv[1:]
    main(float(named[0]) if named else 120.0, int(named[1]) if named[1:] else 3)
