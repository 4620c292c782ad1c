"""What a second worker gives: `python tests/perf/spreading.py [SECONDS] [TURNS] [DEVICE]`.

A suite that keeps one worker busy for about SECONDS (120) is measured by a cluster of one worker and by a cluster of
two, in turns (3 of each), all in one process on one host. Start-up is not counted: every worker has measured before,
and the clock runs from the first pack to the last record. The aim is a ratio of 1.8 between the medians. A worker has a
core (DEVICE cpu, the default) or a GPU (cuda) that nobody else uses.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

import gradbench as gb
from gradbench.commands.clusters import VISIBLE
from gradbench.commands.progress import CellProgress

AIM = 1.8
WORKERS = (1, 2)
SMALL = {"system": "cet_real", "estimator": ["bptt", "aep"], "T1": 200, "T2": 60, "beta": 0.02, "batch": 8}


def seconds(seeds: int, workers: int, device: str, folder: Path) -> float:
    """The time from the first pack to the last record of so many seeds on so many workers."""
    if device == "cuda":
        os.environ[VISIBLE] = ",".join(map(str, range(workers)))  # a local cluster has a worker for every GPU it sees
    else:
        torch.set_num_threads(workers)  # or for every core
    seed = list(range(seeds))
    spans: list[float] = []

    def watch(progress: CellProgress) -> None:
        spans.append(progress.elapsed)

    gb.run(
        "atlas" if device == "cuda" else gb.suite({**SMALL, "seed": seed}, name="spreading"),
        overrides={"seed": seed} if device == "cuda" else None,
        out=folder,
        device=device,
        cluster="local",
        fresh=True,
        watch=watch,
    )
    return spans[-1]


def main(wanted: float, turns: int, device: str) -> None:
    """Print the times, their medians and the ratio."""
    few = 1 if device == "cuda" else 4
    warming = [4, 4] if device == "cuda" else [2]  # until every worker process has met shapes of all systems
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seeds in warming:
            seconds(seeds, 2, device, folder)
        each = seconds(few, 1, device, folder) / few
        seeds = 2 * max(1, round(wanted / each / 2))
        print(f"{seeds} seeds of about {each:.2f} s", flush=True)
        times: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _ in range(turns):
            for workers in WORKERS:
                times[workers].append(seconds(seeds, workers, device, folder))
                print(f"{workers} worker{'s' if workers > 1 else ''}: {times[workers][-1]:.1f} s", flush=True)
    one, two = (median(times[workers]) for workers in WORKERS)
    print(f"medians {one:.1f} s and {two:.1f} s: {one / two:.2f} times as fast (aim {AIM})")


if __name__ == "__main__":
    named = sys.argv[1:]
    main(float(named[0]) if named else 120.0, int(named[1]) if named[1:] else 3, named[2] if named[2:] else "cpu")
