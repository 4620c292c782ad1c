"""The eager path: one problem at a time in plain torch. The oracle of faster paths, and the place to debug.

One free trajectory, one certificate a T1, one reverse sweep for the references, one run of every second
phase; each cell is then a reading of what is already there.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from gradbench.diagnostics.certificate import certify
from gradbench.engine.outcome import Outcome, judge
from gradbench.estimators.base import Snapshot
from gradbench.metrics import Comparison, compare
from gradbench.plan import estimator
from gradbench.status import Status, Thresholds
from gradbench.trajectory import Trajectory, relax

if TYPE_CHECKING:
    from gradbench.field import Field
    from gradbench.plan import Cell, Pass, Problem
    from gradbench.systems.base import Params


class Estimate(NamedTuple):
    """What a cell reads off its second phase."""

    gradient: Params
    evidence: dict[str, float]


def solve(problem: Problem, field: Field, thresholds: Thresholds) -> list[Outcome]:
    """Measure all cells of a problem."""
    device, start = next(iter(field.theta.values())).device, time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    free = relax(field, problem.T1s)
    certificates = dict(zip(free.T1s, certify(free, thresholds, problem.point.seed), strict=True))
    live = tuple(T1 for T1, c in certificates.items() if c.status(thresholds) is not Status.DIVERGED)
    references: dict[int, Params] = {}
    estimates: dict[Cell, Estimate] = {}
    if live:
        sweep = list(problem.reverse.phase.run(free.at(live), problem.reverse.depths, ()))
        references = {T1: g for s in sweep if s.depth is None for T1, g in zip(live, s.gradient or (), strict=True)}
        estimates |= _read(problem.reverse, free.at(live), sweep)
    for p in problem.passes:
        if T1s := tuple(T1 for T1 in p.T1s if T1 in live):
            estimates |= _read(p, free.at(T1s), p.phase.run(free.at(T1s), p.depths, p.betas))
    compared = _compare(estimates, references, thresholds.live[problem.point.dtype])
    seconds, peak = (time.perf_counter() - start) / len(problem.cells), _peak_memory(device)
    outcomes = []
    for cell in problem.cells:
        certificate = certificates[cell.T1 or 0]
        gradient, evidence = estimates.get(cell, (None, {}))
        status, reason = judge(certificate, compared.get(cell), evidence, thresholds)
        measured = (certificate, compared.get(cell), evidence, gradient, references.get(cell.T1 or 0))
        outcomes.append(Outcome(cell, problem.key, status, reason, *measured, seconds, peak))
    return outcomes


def _read(p: Pass, free: Trajectory, snapshots: Iterator[Snapshot] | list[Snapshot]) -> dict[Cell, Estimate]:
    """Every cell of a pass whose T1 is there, read off the snapshots as they come."""
    rules = {(c.estimator, c.estimator_options) for c in p.cells}
    found: dict[Cell, Estimate] = {}
    for snapshot in snapshots:
        for rule in rules:
            reading = estimator(*rule).read(free, snapshot, p.betas)
            evidence = {name: value.tolist() for name, value in reading.evidence.items()}
            for cell in p.cells:
                if (
                    (cell.estimator, cell.estimator_options) == rule
                    and reading.depth == cell.T2
                    and cell.T1 in free.T1s
                ):
                    i, j = free.T1s.index(cell.T1), p.betas.index(cell.beta) if cell.beta else 0
                    found[cell] = Estimate(reading.gradient[i][j], {n: v[i][j] for n, v in evidence.items()})
    return found


def _compare(estimates: dict[Cell, Estimate], references: dict[int, Params], live: float) -> dict[Cell, Comparison]:
    compared: dict[Cell, Comparison] = {}
    for T1, reference in references.items():
        cells = [c for c in estimates if c.T1 == T1]
        if cells:
            compared |= zip(cells, compare([estimates[c].gradient for c in cells], reference, live), strict=True)
    return compared


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device since the problem began, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
