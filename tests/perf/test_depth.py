"""One depth of cet_real, where problems share nothing, beside the script that an expert wrote by hand for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import pytest
import torch
from expert import Expert
from ledger import DEVICE, Ledger
from pytest_benchmark.fixture import BenchmarkFixture
from where import depth

from gradbench.dynamics.stack import Stack
from gradbench.engine import packs
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.planning.plans import Plan

TURNS = 5
ENGINES = ["batched", "fused"] if DEVICE == "cuda" else ["eager"]
NUMBERS = [32, 64] if DEVICE == "cuda" else [1]  # the script needs 0.3 GB a problem


def by_script(planned: Plan) -> None:
    stack = Stack.of([build(problem, DEVICE) for problem in planned.problems])
    knobs = stack.knobs.sigma, stack.knobs.damp, stack.knobs.eps
    Expert(stack.theta, stack.x, knobs, 7).cosines(100, 15, 0.02).cpu()


def by_gradbench(planned: Plan, engine: str) -> None:
    packs.measure_pack(planned.problems, DEVICE, planned.thresholds, engine)


def turns(functions: list[Callable[[], None]]) -> list[float]:
    """The median seconds of each, in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(TURNS + 1):
        for taken, function in zip(times, functions, strict=True):
            start = perf_counter()
            function()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken.append(perf_counter() - start)
    return [statistics.median(taken) for taken in times]


@pytest.mark.benchmark(group="depth")
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_depth(number: int, engine: str, ledger: Ledger, benchmark: BenchmarkFixture) -> None:
    planned = depth(number)
    with isolated():
        script, measured = turns([lambda: by_script(planned), lambda: by_gradbench(planned, engine)])
    ledger.ratios[f"depth {number}, {engine}"] = script / measured
    ledger.notes[f"one depth, {number} problems, {engine}"] = (
        f"{1e3 * measured / number:.2f} ms a problem with certificates and causes, {1e3 * script / number:.2f} ms by "
        f"the script, {measured / script:.2f} x"
    )
    benchmark.extra_info.update(script=script, measured=measured)
    benchmark.pedantic(lambda: None, rounds=1)
