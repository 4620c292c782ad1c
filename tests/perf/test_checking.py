"""What it costs to judge a run, and to compare it with a baseline: seconds and peak memory. `make perf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import gradbench
from gradbench.commands.running import prepare
from gradbench.planning import suites
from gradbench.tables.baselines import set_baseline
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.store import Run

# 54 cells of a problem, ten parameters a cell
GRID = {
    "system": {"name": "cet_real", "D": 8, "dh": 4, "heads": 2, "mem": 8},
    "estimator": ["ep", "aep"],
    "damp": 1.0,
    "T1": [50, 100, 200],
    "T2": [5, 15, 30],
    "beta": [0.01, 0.05, 0.1],
    "batch": 2,
}
CHECK = {"name": "cosines are numbers", "where": {"T1": 200, "status": "any"}, "metric": "cosine_min", "min": -1}
# seconds and bytes that a check may take after imports, on one core, by the number of cells
LIMITS = {16_200: (3.0, 2**30), 102_600: (10.0, 2**30)}
MEASURED = """
import json, os, re, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from gradbench.planning import registry
from gradbench.tables.baselines import Demand
from gradbench.tables.store import Run
from gradbench.tables.verdict import judge
import pandas, pyarrow.parquet
registry.known_systems(), registry.known_estimators()
demand = Demand(Path(sys.argv[2])) if len(sys.argv) > 2 else None
start = time.perf_counter()
verdict = judge(Run(Path(sys.argv[1])), demand=demand)
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "line": verdict.line}))
"""


def synthetic(out: Path, cells: int) -> Run:
    """A finished run of so many cells: one measured problem, again and again under the keys of other seeds."""
    measured = gradbench.run(_suite(1), out=out / "measured", device="cpu")
    (key,) = measured.done()
    rows = measured.record(key).to_pylist()
    planned = prepare(_suite(cells // len(rows)))[1]
    run = Run(out / "runs" / planned.suite / "synthetic")
    run.start(planned.to_json(), measured.env)
    run.claim({k: v for k, v in measured.claims.items() if k != "bound_to"})
    for problem in planned.problems:
        there = {"problem": problem.key, "seed": problem.point.seed}
        run.keep(problem.key, [row | there | {"cell": c.key} for row, c in zip(rows, problem.cells, strict=True)])
    run.compact(skipped_rows(run.plan))
    return run


def _suite(seeds: int) -> suites.Suite:
    return gradbench.suite({**GRID, "seed": list(range(seeds))}, check=[CHECK], name="synthetic")


def _measured(*arguments: Path) -> dict[str, Any]:
    """A check in a process of its own, whose peak of memory is then its own, too."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    told: dict[str, Any] = json.loads(answer)
    assert told["line"].startswith("VERDICT pass (0)"), told
    return told


def _best(*arguments: Path) -> dict[str, Any]:
    return min((_measured(*arguments) for _ in range(3)), key=lambda told: float(told["seconds"]))


@pytest.mark.timeout(1200)  # a run of 102,600 cells is made first
@pytest.mark.benchmark(group="checking")
@pytest.mark.parametrize("cells", LIMITS)
def test_a_check_takes_seconds_and_less_than_a_gigabyte(
    benchmark: BenchmarkFixture, tmp_path: Path, cells: int
) -> None:
    """The best of three in a process each, without and with a baseline; the limits are those of a check without one."""
    run = synthetic(tmp_path, cells)
    assert len(run.cells) == cells
    baseline = set_baseline([run], tmp_path, ["dirty"])
    alone = benchmark.pedantic(_best, (run.folder,))
    told = {"check": alone, "with a baseline": _best(run.folder, baseline)}
    for what, best in told.items():
        benchmark.extra_info[what] = best
        print(f"\n{cells:,} cells, {what}: {best['seconds']:.2f} s, {best['peak'] / 2**20:.0f} MB")
    seconds, peak = LIMITS[cells]
    assert alone["seconds"] <= seconds
    assert alone["peak"] <= peak
