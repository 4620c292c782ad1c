"""Cost follows the distinct physics: more depths of one phase are nearly free, more nudges cost their evaluations.

And how it grows with every size, one at a time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from time import perf_counter

import pytest
import torch
from ledger import DEVICE, Ledger, Sweep
from pytest_benchmark.fixture import BenchmarkFixture

from gradbench.engine import packs
from gradbench.engine.outcome import Outcome
from gradbench.engine.precision import isolated
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse

CELLS, BATCH = (32, 64) if DEVICE == "cuda" else (2, 16)
SWEEPS = {
    "T1": (25, 50, 100, 200, 400),
    "N": (4, 16, 49, 196),
    "D": (32, 64, 128, 256),
    "b": (16, 32, 64, 128, 256),
    "problems": (1, 4, 16, 64, 256),
}


def family(T2: Sequence[int], beta: Sequence[float]) -> Plan:
    """The usual sizes of cet_real, T1 = 100 and 200."""
    s = [0.1 + 0.9 * i / CELLS for i in range(CELLS)]
    grid = {"system": "cet_real", "estimator": ["bptt", "ep", "aep"], "s": s, "damp": 1.0, "T1": [100, 200]}
    grid |= {"T2": list(T2), "beta": list(beta), "batch": BATCH}
    return plan(parse({"name": "perf", "about": "", "grid": [grid]}, "perf"))


def sized(T1: int = 100, N: int = 16, D: int = 64, b: int = BATCH, problems: int = CELLS) -> Plan:
    """Problems of three cells each, all at the usual sizes but one; eps so small that none diverges on its way."""
    s = [0.1 + 0.9 * i / problems for i in range(problems)]
    system = {"name": "cet_real", "patch": 28 // math.isqrt(N), "D": D}
    grid = {"system": system, "estimator": ["bptt", "ep", "aep"], "s": s, "damp": 1.0, "eps": 0.02}
    grid |= {"T1": T1, "batch": b}
    return plan(parse({"name": "perf", "about": "", "grid": [grid]}, "perf"))


def measured(planned: Plan) -> list[Outcome]:
    cut = packs.cut_into_packs(planned.problems, DEVICE, engine := packs.resolved("auto", DEVICE, planned.problems))
    return [o for pack in cut for o in packs.measure_pack(pack, DEVICE, planned.thresholds, engine)]


def paired(plans: Sequence[Plan], rounds: int) -> list[float]:
    """Median seconds of each, taken in turn so that what disturbs one disturbs the other."""
    times: list[list[float]] = [[] for _ in plans]
    with isolated():
        for i in range(rounds + 1):
            for own, planned in zip(times, plans, strict=True):
                start = perf_counter()
                measured(planned)
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


@pytest.mark.benchmark(group="scaling")
@pytest.mark.parametrize("knob", SWEEPS)
def test_sweep(knob: str, ledger: Ledger, benchmark: BenchmarkFixture) -> None:
    """No bar: time of bptt, ep and aep against one size, the others as usual."""
    sweep = ledger.sweeps[knob] = Sweep()
    for value in SWEEPS[knob] if DEVICE == "cuda" else SWEEPS[knob][:3]:
        planned = sized(**{knob: value})
        if DEVICE == "cuda":
            torch.cuda.empty_cache()  # what one size leaves behind is not taken from the next one's budget
        with isolated():
            assert all(o.status != "diverged" for o in measured(planned))  # such a cell is measured no further
        (seconds,) = paired([planned], rounds=3)
        sweep.add(value, seconds, len(planned.cells))
    benchmark.extra_info["ms_per_cell"] = dict(zip(sweep.values, sweep.ms_per_cell, strict=True))
    benchmark.pedantic(lambda: None, rounds=1)
