"""From a field to outcomes: one definition for a single problem and for a stack of problems.

One free trajectory, one certificate a T1, one reverse sweep for the references, one run of every second
phase; each cell is then a reading of what is already there. Given the field of one problem this is the
eager path, plain torch: the oracle, and the place to debug. Given a `Stack` it is the batched path.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from gradbench.diagnostics.certificate import certify
from gradbench.diagnostics.credit import Credits
from gradbench.engine.outcome import Outcome, judge
from gradbench.field import Stack
from gradbench.metrics import Comparison, comparison, tally
from gradbench.plan import estimator
from gradbench.status import Status, Thresholds
from gradbench.trajectory import Trajectory, relax

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.estimators.base import Snapshot
    from gradbench.field import Field
    from gradbench.plan import Cell, Pass, Problem
    from gradbench.systems.base import Params


@dataclass
class Readings:
    """What the cells read, kept on the device until the last phase is over.

    An entry is one estimate of all stacked problems: its tallies against the reference `(P, 6, c)`, its
    evidence `(c,)` by name, and the cells that it belongs to.
    """

    stacked: bool
    cells: list[list[Cell | None]] = field(default_factory=list)  # None: a problem that does not want this point
    tallies: list[Tensor] = field(default_factory=list)
    evidence: list[dict[str, Tensor]] = field(default_factory=list)
    estimates: dict[Cell, Params] = field(default_factory=dict)  # of a single problem

    def add(self, cells: list[Cell | None], estimate: Params, reference: Params, evidence: dict[str, Tensor]) -> None:
        """Take one estimate of every problem."""
        self.cells.append(cells)
        self.tallies.append(tally(estimate, reference, self.stacked))
        self.evidence.append({name: value.reshape(-1) for name, value in evidence.items()})
        if not self.stacked and cells[0] is not None:
            self.estimates[cells[0]] = estimate

    def resolve(self, names: Sequence[str], live: float) -> dict[Cell, tuple[Comparison, dict[str, float]]]:
        """Every cell's comparison and evidence: the one moment at which the device is waited for."""
        resolved: dict[Cell, tuple[Comparison, dict[str, float]]] = {}
        tallies = torch.stack(self.tallies).cpu().tolist() if self.tallies else []
        for cells, sums, evidence in zip(self.cells, tallies, self.evidence, strict=True):
            values = {name: value.tolist() for name, value in evidence.items()}
            for c, cell in enumerate(cells):
                if cell is None:
                    continue
                by_param = {name: [term[c] for term in sums[p]] for p, name in enumerate(names)}
                resolved[cell] = comparison(by_param, live), {name: v[c] for name, v in values.items()}
        return resolved


def solve(problems: Sequence[Problem], field: Field, thresholds: Thresholds) -> list[Outcome]:
    """Measure all cells of problems of one shape: `field` is that of the only one, or the stack of all."""
    first, start = problems[0], time.perf_counter()
    device = next(iter(field.theta.values())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    free = relax(field, first.T1s)
    certificates = certify(free, thresholds, [p.point.seed for p in problems])
    gone = [all(c.status(thresholds) is Status.DIVERGED for c in row) for row in certificates]
    live = tuple(T1 for T1, diverged in zip(free.T1s, gone, strict=True) if not diverged)
    readings, references, credits = Readings(isinstance(field, Stack)), {}, None
    if live:
        unused = free.states.new_empty(0)
        sweep = list(first.reverse.phase.run(free.at(live), first.reverse.depths, unused))
        whole = next(s for s in sweep if s.depth is None)
        assert whole.credit is not None
        credits = Credits(free.at(live), whole.credit, [p.point.seed for p in problems])
        references = dict(zip(live, whole.gradient or (), strict=True))
        _read([p.reverse for p in problems], free.at(live), sweep, unused, references, credits, readings)
    for passes in zip(*(p.passes for p in problems), strict=True):
        T1s = tuple(T1 for T1 in passes[0].T1s if T1 in live)
        if T1s and credits:
            betas = free.states.new_tensor([p.betas for p in passes]).mT
            betas = betas if readings.stacked else betas[:, 0]
            snapshots = passes[0].phase.run(free.at(T1s), passes[0].depths, betas)
            _read(passes, free.at(T1s), snapshots, betas, references, credits, readings)
    resolved = readings.resolve(list(field.theta), thresholds.live[first.point.dtype])
    number = sum(len(p.cells) for p in problems)
    seconds, peak = (time.perf_counter() - start) / number, _peak_memory(device)
    outcomes = []
    for c, problem in enumerate(problems):
        for cell in problem.cells:
            certificate = certificates[free.T1s.index(cell.steps)][c]
            diverged = certificate.status(thresholds) is Status.DIVERGED
            compared, evidence = (None, {}) if diverged else resolved[cell]
            status, reason = judge(certificate, compared, evidence, thresholds)
            gradients = (readings.estimates.get(cell), None if readings.stacked else references.get(cell.steps))
            measured = (certificate, compared, evidence, *gradients, seconds, peak)
            outcomes.append(Outcome(cell, problem.key, status, reason, *measured))
    return outcomes


def _read(
    passes: Sequence[Pass],
    free: Trajectory,
    snapshots: Iterable[Snapshot],
    betas: Tensor,
    references: dict[int, Params],
    credits: Credits,
    readings: Readings,
) -> None:
    """Every cell of a pass whose T1 is there, read off the snapshots as they come.

    The passes of stacked problems have the same T1, depths and number of betas, but may want other cells of
    that grid; a point that nobody wants is not read.
    """
    wanted: dict[tuple[str, str, int | None, int, int], list[Cell | None]] = {}
    for c, p in enumerate(passes):
        for cell in p.cells:
            if cell.steps in free.T1s:
                j = p.betas.index(cell.beta) if cell.beta is not None else 0
                place = (cell.estimator, cell.estimator_options, cell.T2, free.T1s.index(cell.steps), j)
                wanted.setdefault(place, [None] * len(passes))[c] = cell
    for snapshot in snapshots:
        for name, options in {(n, o) for n, o, depth, _, _ in wanted if depth == snapshot.depth}:
            reading = estimator(name, options).read(free, snapshot, betas)
            measured = reading.evidence | credits.read(free.T1s, reading)
            for (n, o, depth, i, j), cells in wanted.items():
                if (n, o, depth) == (name, options, reading.depth):
                    evidence = {key: value[i, j] for key, value in measured.items()}
                    readings.add(cells, reading.gradient[i][j], references[free.T1s[i]], evidence)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device since the work began, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
