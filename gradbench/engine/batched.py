"""The batched path: problems of one shape run as one, in packs that fit the memory of the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gradbench.engine.problem import build
from gradbench.engine.solve import solve
from gradbench.field import Stack

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.plan import Problem
    from gradbench.status import Thresholds

CPU_BUDGET = 2**30  # bytes: beyond this the caches of a CPU gain nothing
SHARE = 0.8  # of the free memory of a GPU
# states that a recorded force with its transposed product holds, by state: measured 30 on cet_real, 20 on the toys
RECORDED = 32


def measure(problems: Sequence[Problem], device: str, thresholds: Thresholds, engine: str = "batched") -> list[Outcome]:
    """Measure problems of one shape. Raises torch.OutOfMemoryError where they do not fit.

    Eager is one problem in plain torch; a stack may hold one problem, too, and is captured on CUDA.
    """
    fields = [build(problem, device) for problem in problems]
    alone = engine == "eager" or (len(fields) == 1 and not device.startswith("cuda"))
    return solve(problems, fields[0] if alone else Stack.of(fields), thresholds)


def packs(
    problems: Sequence[Problem], device: str, engine: str = "auto", budget: int | None = None
) -> Iterator[list[Problem]]:
    """Cut problems into packs of one shape that fit into `budget` bytes, by default a share of what is free.

    The eager engine takes every problem alone, and so does auto on a CPU: there a problem already fills the
    cores, and a record a problem is what an interrupted run goes on from.
    """
    if engine == "eager" or (engine == "auto" and not device.startswith("cuda")):
        yield from ([problem] for problem in problems)
        return
    families: dict[object, list[Problem]] = {}
    for problem in problems:
        families.setdefault(problem.shape, []).append(problem)
    for family in families.values():
        size = max(1, (budget or _budget(device)) // footprint(family[0]))
        number = -(-len(family) // size)  # packs of equal size waste nothing
        for i in range(number):
            yield family[i::number]


def footprint(problem: Problem) -> int:
    """Bytes that one problem needs at its peak, as a model: its trajectory, then its widest phase."""
    point = problem.point
    layout = problem.system.layout.values()
    state = point.batch * sum(torch.Size(shape).numel() for shape in layout)
    T1s = len(problem.T1s)
    rows = [T1s, *(len(p.T1s) * max(1, len(p.betas)) * 2 for p in problem.passes)]
    elements = state * (max(problem.T1s) + 1 + (T1s + max(rows)) * RECORDED)
    return elements * (8 if point.dtype == "float64" else 4)


def _budget(device: str) -> int:
    if device.startswith("cuda"):
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return CPU_BUDGET
