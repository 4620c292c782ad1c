"""Cost follows the distinct physics: more depths of one phase are nearly free, more nudges cost their evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from time import perf_counter

import pytest
import torch
from ledger import DEVICE, Ledger
from pytest_benchmark.fixture import BenchmarkFixture

from gradbench.engine import batched
from gradbench.engine.precision import ieee_float32
from gradbench.plan import Plan, plan
from gradbench.suite import parse

CELLS, BATCH = (32, 64) if DEVICE == "cuda" else (2, 16)


def family(T2: Sequence[int], beta: Sequence[float]) -> Plan:
    """The usual sizes of cet_real, T1 = 100 and 200."""
    s = [0.1 + 0.9 * i / CELLS for i in range(CELLS)]
    grid = {"system": "cet_real", "estimator": ["bptt", "ep", "aep"], "s": s, "damp": 1.0, "T1": [100, 200]}
    grid |= {"T2": list(T2), "beta": list(beta), "batch": BATCH}
    return plan(parse({"name": "perf", "about": "", "grid": [grid]}, "perf"))


def paired(plans: Sequence[Plan], rounds: int) -> list[float]:
    """Median seconds of each, taken in turn so that what disturbs one disturbs the other."""
    times: list[list[float]] = [[] for _ in plans]
    with ieee_float32():
        for i in range(rounds + 1):
            for own, planned in zip(times, plans, strict=True):
                start = perf_counter()
                for pack in batched.packs(planned.problems, DEVICE):
                    batched.measure(pack, DEVICE, planned.thresholds, "auto")
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                if i:
                    own.append(perf_counter() - start)
    return [statistics.median(own) for own in times]


def evaluations(planned: Plan) -> int:
    """Force, jvp and vjp evaluations of all problems."""
    costs = [p.cost for p in planned.problems]
    return sum(c.force + c.jvp + c.vjp for c in costs)


@pytest.mark.benchmark(group="scaling")
def test_twice_the_depths_up_to_the_same_one_add_less_than_15_percent(
    ledger: Ledger, benchmark: BenchmarkFixture
) -> None:
    few, many = family((15, 30), (0.02, 0.1)), family((8, 15, 22, 30), (0.02, 0.1))
    assert len(many.cells) > 1.5 * len(few.cells)
    alone, doubled = paired((few, many), rounds=5)
    ledger.notes["twice the T2"] = f"{len(few.cells):,} to {len(many.cells):,} cells, time x {doubled / alone:.3f}"
    benchmark.extra_info["ratio"] = doubled / alone
    benchmark.pedantic(lambda: None, rounds=1)
    assert doubled / alone < 1.15


@pytest.mark.benchmark(group="scaling")
def test_twice_the_nudges_add_their_evaluations_and_at_most_10_percent(
    ledger: Ledger, benchmark: BenchmarkFixture
) -> None:
    few, many = family((15, 30), (0.02, 0.1)), family((15, 30), (0.01, 0.02, 0.05, 0.1))
    share = evaluations(many) / evaluations(few)
    alone, doubled = paired((few, many), rounds=5)
    ledger.notes["twice the beta"] = f"evaluations x {share:.3f}, time x {doubled / alone:.3f}"
    benchmark.extra_info["ratio"] = doubled / alone
    benchmark.pedantic(lambda: None, rounds=1)
    assert doubled / alone <= share + 0.1
