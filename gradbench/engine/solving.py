"""From a field to outcomes: one definition for a single problem and for a stack of problems.

One free trajectory, one certificate a T1, one reverse sweep for the references, one run of every second
phase; each cell then reads its numbers from these. Given the field of one problem this is the
eager path, plain torch: the oracle, and the place to debug. Given a `Stack` it is the batched path.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.profiler import record_function

from gradbench.diagnostics.budget import Asked, Budget, Budgets, asks, blamed
from gradbench.diagnostics.certificate import certify
from gradbench.diagnostics.deep import deepen
from gradbench.diagnostics.dissection import STANDARD_ERRORS
from gradbench.diagnostics.judgement import Judgement, against_implicit, of_cell
from gradbench.dynamics.meter import Meter
from gradbench.dynamics.stack import Fused, Stack, Tried
from gradbench.dynamics.trajectory import chosen, relax
from gradbench.engine.draws import try_force
from gradbench.engine.outcome import Outcome, standard_error
from gradbench.engine.readings import Place, Readings
from gradbench.engine.references import Apart, References, gather_references
from gradbench.errors import RuleFaultError
from gradbench.estimators.reference import IMPLICIT
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.diagnostics.certificate import Certificate
    from gradbench.diagnostics.metrics import Comparison
    from gradbench.dynamics.field import Field
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractPhase, Snapshot
    from gradbench.planning.cells import Cell
    from gradbench.planning.problems import Problem
    from gradbench.systems.base import Params
    from gradbench.vocabulary.status import Thresholds


class Measured(NamedTuple):
    """What is known of a cell before the cause of its error is."""

    certificate: Certificate
    apart: Apart
    comparison: Comparison | None  # None: the free phase diverged
    evidence: dict[str, float]
    judgement: Judgement


def solve(
    problems: Sequence[Problem],
    field: Field,
    thresholds: Thresholds,
    hold: int | None = None,
    *,
    deep: bool = False,
    meter: Meter | None = None,
) -> list[Outcome]:
    """Measure all cells of problems of one shape: `field` is that of a single problem, or the stack of all problems.

    Of a free trajectory longer than `hold` states only some are stored at a time. `deep`: with deep certificates.
    `meter` counts the evaluations that are planned: neither those of certificates nor those that tell causes.
    """
    start, like = time.perf_counter(), next(iter(field.theta.values()))
    if like.is_cuda:
        torch.cuda.reset_peak_memory_stats(like.device)
    # copied to the device before work begins there: a later copy would wait for the work
    passes = list(zip(*(p.passes for p in problems), strict=True))
    nudges = [like.new_tensor([p.betas for p in same]).mT for same in passes]
    confirm = try_force(field)
    meter = meter or Meter()
    with meter.stage(problems[0].free_cost.work), meter.counting(), record_function("gradbench: free phase"):
        free = relax(field, problems[0].T1s, hold)
    certificates = _certificates(problems, free, thresholds, deep=deep)
    confirm()  # the device was waited for already
    reached = tuple(T1 for T1, row in zip(free.T1s, certificates, strict=True) if not _all_diverged(row))
    readings, known = Readings(isinstance(field, Stack)), None
    faults: dict[Cell, str] = {}
    if reached:
        with meter.stage(problems[0].reverse.cost.work):
            known = gather_references(problems, free.at(reached), meter, both=deep)
            swept, no_betas = [p.reverse for p in problems], free.ends.new_empty(0)
            readings.read(swept, known.free, known.snapshots, no_betas, known.known)
        for same, betas in zip(passes, nudges, strict=True):
            here = tuple(T1 for T1 in same[0].T1s if T1 in reached)
            if here:
                betas = betas if readings.stacked else betas[:, 0]
                there = {name: reference.at(known.free.rows(here)) for name, reference in known.known.items()}
                try:
                    snapshots = _watched(same[0].phase, same[0].phase.run(free.at(here), same[0].depths, betas), meter)
                    with meter.stage(same[0].cost.work):
                        readings.read(same, free.at(here), snapshots, betas, there)
                except RuleFaultError as error:
                    if len(problems) > 1:  # which of them it is shows where each is alone
                        raise
                    faults |= {cell: str(error) for cell in same[0].cells}
    with record_function("gradbench: waiting for the device"):
        resolved = readings.resolved(list(field.theta), thresholds.live[problems[0].point.dtype])
    if more := _how(field):
        resolved = {cell: (comparison, evidence | more) for cell, (comparison, evidence) in resolved.items()}
    apart = known.told() if known else {}
    measured = _measured(problems, certificates, resolved, faults, apart, thresholds)
    budgets: dict[Cell, Budget] = {}
    if known:
        with record_function("gradbench: causes"):
            budgets = _causes(readings, measured, known, thresholds)
    seconds = (time.perf_counter() - start) / len(measured)
    return _outcomes(problems, readings, measured, known, budgets, seconds, _peak_memory(like.device))


def _how(field: Field) -> dict[str, float]:
    """What evidence says of how the loops ran: the share that was recorded, or whether steps were kernels (1 or 0)."""
    if isinstance(field, Tried) and field.recorded is not None:
        return {"recorded": field.recorded}
    return {"fused": float(field.kernels is not None)} if isinstance(field, Fused) else {}


def _certificates(
    problems: Sequence[Problem], free: Trajectory, thresholds: Thresholds, *, deep: bool
) -> list[list[Certificate]]:
    """A certificate for every T1 and problem."""
    seeds = [p.point.seed for p in problems]
    with record_function("gradbench: certificate"):
        certificates = certify(free, thresholds, seeds)
    if deep:
        with record_function("gradbench: deep certificate"):
            certificates = deepen(certificates, free, thresholds, seeds)
    return certificates


def _all_diverged(row: Sequence[Certificate]) -> bool:
    return all(certificate.judgement.diverged for certificate in row)


def _watched(phase: AbstractPhase, snapshots: Iterator[Snapshot], meter: Meter) -> Iterator[Snapshot]:
    """The snapshots, counted by the meter, and under the name of their phase in a profile."""
    name = f"gradbench: {type(phase).__name__}"
    while True:
        with meter.counting(), record_function(name):
            snapshot = next(snapshots, None)
        if snapshot is None:
            return
        yield snapshot


def _measured(
    problems: Sequence[Problem],
    certificates: Sequence[Sequence[Certificate]],
    resolved: Mapping[Cell, tuple[Comparison, dict[str, float]]],
    faults: Mapping[Cell, str],
    apart: Mapping[int, Sequence[Apart]],
    thresholds: Thresholds,
) -> dict[Cell, Measured]:
    """What is known of every cell, with the status that follows; `faults` are those of rules."""
    measured = {}
    for c, problem in enumerate(problems):
        for cell, row in problem.rows.items():
            certificate = certificates[row][c]
            if certificate.judgement.diverged:
                measured[cell] = Measured(certificate, Apart(), None, {}, certificate.judgement)
                continue
            gap = apart[cell.steps][c] if cell.steps in apart else Apart()
            if cell in faults:
                measured[cell] = Measured(certificate, gap, None, {}, Judgement(Status.ERROR, faults[cell]))
                continue
            comparison, evidence = resolved[cell]
            largest = evidence.get("nudge_norm", 0.0)
            judged = of_cell(certificate.judgement, certificate.scale, comparison, largest, thresholds)
            if cell.reference == IMPLICIT:
                judged = against_implicit(judged, gap.implicit_open)
            measured[cell] = Measured(certificate, gap, comparison, evidence, judged)
    return measured


def _causes(
    readings: Readings, measured: Mapping[Cell, Measured], known: References, thresholds: Thresholds
) -> dict[Cell, Budget]:
    """Budgets of the cells whose error is above the threshold."""
    budgets: dict[Cell, Budget] = {}
    asked = []
    for taken in readings.taken:
        wanted: dict[Cell, tuple[Place, Comparison]] = {}
        by_chance = set()
        for cell, place in taken.cells:
            comparison, judged = measured[cell].comparison, measured[cell].judgement
            if comparison is None:
                continue
            of = comparison.wanting(thresholds.faithful)
            if budget := blamed(judged.status, comparison, of):
                budgets[cell] = budget
            elif asks(judged.status, of):
                wanted[cell] = place, comparison
                if "draws" in (evidence := measured[cell].evidence):
                    error = standard_error(evidence, comparison)
                    by_chance |= {cell} if comparison.whole.rel_error <= STANDARD_ERRORS * error else set()
        if wanted:
            reading = taken.reading
            at = (taken.free, taken.betas, reading.gradient, reading.credit)
            asked.append(Asked(taken.rule, taken.reference, reading.depth, *at, wanted, frozenset(by_chance)))
    if not asked:
        return budgets
    T1s = tuple(sorted({a.free.T1s[i] for a in asked for (i, _, _), _ in a.wanted.values()}))
    asked = [a.only([i for i, T1 in enumerate(a.free.T1s) if T1 in T1s]) for a in asked]
    rows = known.free.rows(T1s)
    shared = Budgets(
        known.free.at(T1s),
        {name: reference.at(rows).gradient for name, reference in known.known.items()},
        {
            s.depth: {n: chosen(g, rows) for n, g in s.gradient.items()}
            for s in known.snapshots
            if s.depth is not None and s.gradient
        },
        thresholds.faithful,
        tuple(sorted({terms for a in asked for terms in a.series})),
    )
    return budgets | shared.of(asked)


def _outcomes(
    problems: Sequence[Problem],
    readings: Readings,
    measured: Mapping[Cell, Measured],
    known: References | None,
    budgets: Mapping[Cell, Budget],
    seconds: float,
    peak: int,
) -> list[Outcome]:
    """An outcome for every cell, with its share of the time. Outcomes of a stack have no gradients."""
    estimates = {} if readings.stacked else readings.estimates()
    gradients: dict[tuple[str, int], Params] = {}
    if known and not readings.stacked:
        for name, reference in known.known.items():
            for i, T1 in enumerate(known.free.T1s):
                gradients[name, T1] = {n: g[i] for n, g in reference.gradient.items()}
    return [
        Outcome(
            cell,
            problem.key,
            m.judgement,
            m.certificate,
            m.apart,
            m.comparison,
            m.evidence,
            budgets.get(cell),
            estimates.get(cell),
            gradients.get((cell.reference, cell.steps)),
            seconds,
            peak,
        )
        for problem in problems
        for cell, m in ((cell, measured[cell]) for cell in problem.cells)
    ]


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device since the work began, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
