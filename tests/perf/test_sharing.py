"""What sharing is worth: a problem's whole grid against the same cells one at a time. `make perf`."""

from __future__ import annotations

import pytest
import torch
from ledger import DEVICE
from pytest_benchmark.fixture import BenchmarkFixture

from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.engine.solving import solve as measure
from gradbench.planning.plans import Plan, plan
from gradbench.planning.problems import Problem
from gradbench.planning.suites import parse


def grid(batch: int) -> Plan:
    """One cet_real problem at the usual sizes: 128 cells, one free trajectory."""
    content = {
        "system": "cet_real",
        "estimator": ["ep", "aep"],
        "T1": [25, 50, 100, 200],
        "T2": [5, 10, 15, 30],
        "beta": [0.01, 0.02, 0.05, 0.1],
        "batch": batch,
    }
    return plan(parse({"name": "perf", "about": "", "grid": [content]}, "perf"))


def solve(planned: Plan, problems: tuple[Problem, ...]) -> dict[str, float]:
    with isolated():
        outcomes = [o for p in problems for o in measure([p], build(p, DEVICE), planned.thresholds)]
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return {o.cell.key: o.row()["cosine"] for o in outcomes}


@pytest.mark.benchmark(group="sharing")
def test_sharing_is_worth_at_least_10(benchmark: BenchmarkFixture) -> None:
    """Measured back to back, as a ratio; extra_info holds it. Both give the same cosines."""
    from time import perf_counter

    planned = grid(batch=16)
    (problem,) = planned.problems
    alone = tuple(Problem((cell,)) for cell in problem.cells)
    shared_cosines = benchmark.pedantic(solve, (planned, (problem,)), rounds=3, warmup_rounds=1)
    start = perf_counter()
    alone_cosines = solve(planned, alone)
    alone_seconds = perf_counter() - start
    ratio = alone_seconds / benchmark.stats.stats.median
    benchmark.extra_info.update(cells=len(alone), alone_seconds=alone_seconds, ratio=ratio, device=DEVICE)
    print(f"\nsharing on {DEVICE}: {len(alone)} cells, {ratio:.1f} x faster than one at a time")
    assert shared_cosines == pytest.approx(alone_cosines, abs=1e-4)
    assert ratio >= 10
