"""From a field to outcomes: one definition for a single problem and for a stack of problems.

One free trajectory, one certificate a T1, one reverse sweep for the references, one run of every second
phase; each cell is then a reading of what is already there. Given the field of one problem this is the
eager path, plain torch: the oracle, and the place to debug. Given a `Stack` it is the batched path.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch.profiler import record_function

from gradbench.diagnostics.budget import BLAMED, EXPLAINED, Asked, Budget, Budgets, wanting
from gradbench.diagnostics.certificate import certify
from gradbench.diagnostics.credit import Credits
from gradbench.diagnostics.deep import deepen
from gradbench.engine.outcome import Outcome, judge
from gradbench.field import Stack
from gradbench.metrics import Comparison, Reference, comparisons
from gradbench.plan import estimator
from gradbench.status import Status, Thresholds
from gradbench.trajectory import Trajectory, chosen, relax

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.diagnostics.certificate import Certificate
    from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Reading, Snapshot
    from gradbench.field import Field
    from gradbench.plan import Cell, Pass, Problem
    from gradbench.systems.base import Params


@dataclass
class Readings:
    """What the cells read, kept on the device until the last phase is over.

    An entry is one reading of a rule at one depth, by T1, beta and stacked problem: its tallies against the
    reference `(i, j, c, P, 6)`, its evidence `(i, j, c)` by name, and the cells with their places.
    """

    stacked: bool
    cells: list[list[tuple[Cell, tuple[int, int, int]]]] = field(default_factory=list)
    tallies: list[Tensor] = field(default_factory=list)
    evidence: list[dict[str, Tensor]] = field(default_factory=list)
    taken: list[tuple[AbstractEstimator, Trajectory, Tensor, Reading]] = field(default_factory=list)

    def add(
        self,
        cells: list[tuple[Cell, tuple[int, int, int]]],
        rule: AbstractEstimator,
        free: Trajectory,
        betas: Tensor,
        reading: Reading,
        reference: Reference,
    ) -> None:
        """Take one reading."""
        self.cells.append(cells)
        self.tallies.append(reference.tally(reading.gradient))
        self.evidence.append(reading.evidence)
        self.taken.append((rule, free, betas, reading))

    def estimates(self) -> dict[Cell, Params]:
        """Gradients of the cells of a single problem."""
        return {
            cell: {name: g[i, j] for name, g in reading.gradient.items()}
            for cells, (_, _, _, reading) in zip(self.cells, self.taken, strict=True)
            for cell, (i, j, _) in cells
        }

    def resolve(self, names: Sequence[str], live: float) -> dict[Cell, tuple[Comparison, dict[str, float]]]:
        """Every cell's comparison and evidence: the one moment at which the device is waited for."""
        resolved: dict[Cell, tuple[Comparison, dict[str, float]]] = {}
        for cells, sums, evidence in zip(self.cells, self.tallies, self.evidence, strict=True):
            places = tuple(zip(*(place if self.stacked else place[:2] for _, place in cells), strict=True))
            compared = comparisons(sums.cpu().numpy()[places], names, live)
            values = zip(*(v.cpu().numpy()[places].tolist() for v in evidence.values()), strict=True)
            by_cell = values if evidence else [()] * len(cells)
            for (cell, _), found, row in zip(cells, compared, by_cell, strict=True):
                resolved[cell] = found, dict(zip(evidence, row, strict=True))
        return resolved


def solve(
    problems: Sequence[Problem],
    field: Field,
    thresholds: Thresholds,
    hold: int | None = None,
    *,
    deep: bool = False,
) -> list[Outcome]:
    """Measure all cells of problems of one shape: `field` is that of the only one, or the stack of all.

    Of a free trajectory longer than `hold` states only some are kept at a time. `deep`: with deep certificates.
    """
    first, start = problems[0], time.perf_counter()
    grid = list(zip(*(p.passes for p in problems), strict=True))
    device = next(iter(field.theta.values())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # copied to the device before anything runs there that would have to be waited for
    nudges = [next(iter(field.theta.values())).new_tensor([p.betas for p in passes]).mT for passes in grid]
    with record_function("gradbench: free phase"):
        free = relax(field, first.T1s, hold)
    with record_function("gradbench: certificate"):
        seeds = [p.point.seed for p in problems]
        certificates = certify(free, thresholds, seeds)
    if deep:
        with record_function("gradbench: deep certificate"):
            certificates = deepen(certificates, free, thresholds, seeds)
    gone = [all(c.status(thresholds) is Status.DIVERGED for c in row) for row in certificates]
    live = tuple(T1 for T1, diverged in zip(free.T1s, gone, strict=True) if not diverged)
    readings, reference, credits = Readings(isinstance(field, Stack)), {}, None
    if live:
        unused = free.ends.new_empty(0)
        with record_function("gradbench: reverse sweep"):
            depths = sorted({d for p in (first.reverse, *first.passes) for d in p.depths})
            sweep = list(first.reverse.phase.run(free.at(live), tuple(depths), unused))
        whole = next(s for s in sweep if s.depth is None)
        assert whole.gradient is not None
        assert whole.credit is not None
        reference, credits = whole.gradient, Credits(free.at(live), whole.credit, seeds)
        _read([p.reverse for p in problems], free.at(live), sweep, unused, reference, credits, readings)
    for passes, betas in zip(grid, nudges, strict=True):
        T1s = tuple(T1 for T1 in passes[0].T1s if T1 in live)
        if T1s and credits:
            betas = betas if readings.stacked else betas[:, 0]
            snapshots = _named(passes[0].phase, passes[0].phase.run(free.at(T1s), passes[0].depths, betas))
            at = {name: chosen(g, [live.index(T1) for T1 in T1s]) for name, g in reference.items()}
            _read(passes, free.at(T1s), snapshots, betas, at, credits, readings)
    with record_function("gradbench: waiting for the device"):
        resolved = readings.resolve(list(field.theta), thresholds.live[first.point.dtype])
    judged: dict[Cell, tuple[Certificate, Comparison | None, dict[str, float], Status, str]] = {}
    for c, problem in enumerate(problems):
        for cell in problem.cells:
            certificate = certificates[free.T1s.index(cell.steps)][c]
            diverged = certificate.status(thresholds) is Status.DIVERGED
            compared, evidence = (None, {}) if diverged else resolved[cell]
            judged[cell] = certificate, compared, evidence, *judge(certificate, compared, evidence, thresholds)
    budgets: dict[Cell, Budget] = {}
    if credits:
        with record_function("gradbench: causes"):
            budgets = _causes(readings, judged, credits.free, reference, sweep, thresholds)
    number = sum(len(p.cells) for p in problems)
    seconds, peak = (time.perf_counter() - start) / number, _peak_memory(device)
    estimates = {} if readings.stacked else readings.estimates()
    outcomes = []
    for problem in problems:
        for cell in problem.cells:
            certificate, compared, evidence, status, reason = judged[cell]
            own = None
            if not readings.stacked and cell.steps in live:
                own = {name: g[live.index(cell.steps)] for name, g in reference.items()}
            measured = (certificate, compared, evidence, budgets.get(cell), estimates.get(cell), own, seconds, peak)
            outcomes.append(Outcome(cell, problem.key, status, reason, *measured))
    return outcomes


def _causes(
    readings: Readings,
    judged: Mapping[Cell, tuple[Certificate, Comparison | None, dict[str, float], Status, str]],
    free: Trajectory,
    reference: Params,
    sweep: Sequence[Snapshot],
    thresholds: Thresholds,
) -> dict[Cell, Budget]:
    """Budgets of the cells whose error is above the threshold."""
    found: dict[Cell, Budget] = {}
    asked = []
    for own, (rule, at, betas, reading) in zip(readings.cells, readings.taken, strict=True):
        wanted = {}
        for cell, place in own:
            _, compared, _, status, _ = judged[cell]
            of = wanting(compared, thresholds.faithful) if compared else None
            if compared and of is not None:
                if status in BLAMED:
                    error = (compared.params[of] if of else compared.whole).rel_error
                    found[cell] = Budget(BLAMED[status], of, {of: {BLAMED[status]: error}})
                elif status in EXPLAINED:
                    wanted[cell] = place, compared
        if wanted:
            asked.append(Asked(rule, reading.depth, at, betas, reading.gradient, wanted))
    if not asked:
        return found
    T1s = tuple(sorted({a.free.T1s[i] for a in asked for (i, _, _), _ in a.wanted.values()}))
    asked = [a.only([i for i, T1 in enumerate(a.free.T1s) if T1 in T1s]) for a in asked]
    rows = [free.T1s.index(T1) for T1 in T1s]
    shared = Budgets(
        free.at(T1s),
        {n: chosen(g, rows) for n, g in reference.items()},
        {
            s.depth: {n: chosen(g, rows) for n, g in s.gradient.items()}
            for s in sweep
            if s.depth is not None and s.gradient
        },
        thresholds.faithful,
        tuple(sorted({a.depth for a in asked if a.depth is not None})),
    )
    return found | shared.of(asked)


def _read(
    passes: Sequence[Pass],
    free: Trajectory,
    snapshots: Iterable[Snapshot],
    betas: Tensor,
    reference: Params,
    credits: Credits,
    readings: Readings,
) -> None:
    """Every cell of a pass whose T1 is there, read off the snapshots as they come.

    The passes of stacked problems have the same T1, depths and number of betas, but may want other cells of
    that grid.
    """
    of_all = Reference({name: g[:, None] for name, g in reference.items()}, 3 if readings.stacked else 2)
    wanted: dict[tuple[str, str, int | None], list[tuple[Cell, tuple[int, int, int]]]] = {}
    for c, p in enumerate(passes):
        for cell in p.cells:
            if cell.steps in free.T1s:
                j = p.betas.index(cell.beta) if cell.beta is not None else 0
                asked = (cell.estimator, cell.estimator_options, cell.T2)
                wanted.setdefault(asked, []).append((cell, (free.T1s.index(cell.steps), j, c)))
    for snapshot in snapshots:
        for (name, options, depth), cells in wanted.items():
            if depth == snapshot.depth:
                with record_function("gradbench: readouts"):
                    rule = estimator(name, options)
                    reading = rule.read(free, snapshot, betas)
                    measured = reading.evidence | credits.read(free.T1s, reading)
                    readings.add(cells, rule, free, betas, replace(reading, evidence=measured), of_all)


def _named(phase: AbstractPhase, snapshots: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """The same snapshots; a profile tells the phases apart."""
    name = f"gradbench: {type(phase).__name__}"
    while True:
        with record_function(name):
            snapshot = next(snapshots, None)
        if snapshot is None:
            return
        yield snapshot


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device since the work began, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
