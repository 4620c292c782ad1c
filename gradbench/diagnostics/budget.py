"""The causes of many cells at once: a ladder of rungs that a run has anyway, or for a share of what it costs.

  bptt                 through the T1 steps
  tbptt, T2 steps      the last steps of the same sweep                                      truncation
  adjoint, T2 terms    the Jacobians of these steps taken at s*                              transient
  linearised           the rule's own Jacobian                                               asymmetry
  as run               the estimate, in the dtype of the cell                                nudge

What of the nudge the other beta of a grid do not tell (nonlinearity grows with beta, round-off as it shrinks) is taken
apart where it is the largest, in float64 by the rungs of `ladder`: the rule itself, nonlinearity, drift, clip, readout
and precision. All of this is asked at stable fixed points only. Elsewhere the status of a cell is its cause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from gradbench.cause import Cause
from gradbench.diagnostics.ladder import adjoints, nudged_credits, response
from gradbench.estimators.base import Snapshot, along
from gradbench.estimators.ep import NudgedPhase
from gradbench.estimators.reverse import Tbptt
from gradbench.status import Status
from gradbench.systems.base import AbstractForwardSystem
from gradbench.trajectory import chosen

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from gradbench.estimators.base import AbstractEstimator, AbstractPhase
    from gradbench.metrics import Comparison
    from gradbench.plan import Cell
    from gradbench.systems.base import Params
    from gradbench.trajectory import Trajectory

ALONG, SPREAD = 0.999, 0.02  # |cosine| and relative spread of norm ratios of what is a multiple of the reference
ROUND_OFF = 1e3  # units of it that a difference of two series must exceed
# what a status that outranks the cosine says of its error
BLAMED = {Status.UNSETTLED: Cause.TRANSIENT, Status.UNSTABLE: Cause.NO_FIXED_POINT}
EXPLAINED = (Status.SETTLED, Status.NUDGE_DIVERGED)
Place = tuple[int, int, int]  # T1, beta, stacked problem
Steps = dict[Cause, "Params"]


@dataclass(frozen=True, eq=False)
class Budget:
    """Where the error of one cell comes from."""

    cause: Cause
    of: str  # the parameter whose error it is; empty: the whole gradient's
    # |step| / |reference| by cause: of the whole ("") and every live parameter, or of `of` where the status is to blame
    sizes: dict[str, dict[Cause, float]]


@dataclass(frozen=True, eq=False)
class Asked:
    """A reading, and what was found at those of its cells that want a cause."""

    rule: AbstractEstimator
    depth: int | None
    free: Trajectory
    betas: Float[Tensor, "j *c"]
    estimate: Params  # (i, j, *c, ...)
    wanted: Mapping[Cell, tuple[Place, Comparison]]

    def only(self, rows: Sequence[int], columns: Sequence[int] | None = None) -> Asked:
        """The same at some T1, and at some beta where these are named."""
        columns = range(len(self.betas) or 1) if columns is None else columns
        wanted = {
            cell: ((rows.index(i), columns.index(j), c), found)
            for cell, ((i, j, c), found) in self.wanted.items()
            if i in rows and j in columns
        }
        estimate = {n: _columns(chosen(g, rows), columns) for n, g in self.estimate.items()}
        betas = chosen(self.betas, columns) if len(self.betas) else self.betas
        free = self.free.at(tuple(self.free.T1s[i] for i in rows))
        return replace(self, free=free, betas=betas, estimate=estimate, wanted=wanted)


@dataclass(eq=False)
class Budgets:
    """What the causes of all cells of a trajectory share.

    `reference` and `truncated` are the gradients `(i, *c, ...)` of its reverse sweep, whole and by depth. Errors above
    `faithful` want a cause.
    """

    free: Trajectory
    reference: Params
    truncated: Mapping[int, Params]
    faithful: float
    depths: tuple[int, ...]  # of all readings
    _series: dict[object, dict[int, Params]] = field(default_factory=dict)

    def of(self, asked: Sequence[Asked]) -> dict[Cell, Budget]:
        """The budget of every cell that wants one. Readings of one phase have the same T1 and beta."""
        found: dict[Cell, Budget] = {}
        nudged: dict[AbstractPhase, list[Asked]] = {}
        for a in asked:
            budgets = self._budgets(a, self._steps(a))
            found |= budgets
            bent = {cell: a.wanted[cell] for cell, budget in budgets.items() if budget.cause is Cause.NUDGE}
            if bent:
                nudged.setdefault(a.rule.phase, []).append(replace(a, wanted=bent))
        for phase, same in nudged.items():
            assert isinstance(phase, NudgedPhase)
            places = [place for a in same for place, _ in a.wanted.values()]
            rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
            found |= self._taken_apart(phase, [a.only(rows, columns) for a in same])
        return found

    def _steps(self, a: Asked) -> Steps:
        """Steps of a reading, by cause."""
        rows = [self.free.T1s.index(T1) for T1 in a.free.T1s]
        reference = _rows(self.reference, rows)
        if isinstance(a.rule, Tbptt):
            return {Cause.TRUNCATION: _minus(a.estimate, reference)}
        if a.depth is None:
            return {Cause.READOUT: _minus(a.estimate, reference)}
        phase, adjoint = a.rule.phase, self._at(rows, a.rule.phase, a.depth)
        if isinstance(self.free.field.system, AbstractForwardSystem):  # no way leads to s*, whose last steps these were
            steps: Steps = {Cause.TRUNCATION: _minus(adjoint, reference)}
        else:
            truncated = _rows(self.truncated[a.depth], rows)
            steps = {Cause.TRUNCATION: _minus(truncated, reference), Cause.TRANSIENT: _minus(adjoint, truncated)}
        if not isinstance(phase, NudgedPhase):
            return steps | {Cause.READOUT: _minus(a.estimate, adjoint)}
        linear = self._at(rows, phase, a.depth, linearised=True)
        asymmetry = _minus(linear, adjoint)
        left, size = (_squares(g, list(reference), self._lead).sum(-1).sqrt() for g in (asymmetry, adjoint))
        # where both series have grown by many orders, what is left of their difference is round-off
        heard = left > ROUND_OFF * torch.finfo(a.free.ends.dtype).eps * size
        steps[Cause.ASYMMETRY] = _where(heard, asymmetry)
        return steps | self._scanned(a, phase, linear, reference)

    def _scanned(self, a: Asked, phase: NudgedPhase, linear: Params, reference: Params) -> Steps:
        """What the nudge does, told from the other beta of the reading where there are some.

        From the best of them on, what grows with beta is nonlinearity, and what grows as beta shrinks is precision:
        a slope of 1 or 2 against one of -1. Of a clipped rule the first may be the clip, of a one-sided one the
        second may be drift, and neither is claimed.
        """
        whole = {Cause.NUDGE: _minus(a.estimate, linear)}
        if len(a.betas) < 2 or phase.clip != "none":
            return whole
        names = list(reference)
        scale = _squares(reference, names, self._lead).clamp_min(torch.finfo(torch.float64).tiny)
        errors = (_squares(whole[Cause.NUDGE], names, self._lead) / scale).sum(-1)
        best = errors.nan_to_num(nan=math.inf).argmin(1, keepdim=True)
        j = torch.arange(len(a.betas), device=best.device).reshape(1, -1, *[1] * (best.ndim - 2))
        above, below = j > best, (j < best) & (len(phase.signs) == 2)
        rest = _where(above | below, _minus(a.estimate, _taken(a.estimate, best)))
        return {
            Cause.NUDGE: _minus(whole[Cause.NUDGE], rest),
            Cause.NONLINEARITY: _where(above, rest),
            Cause.PRECISION: _where(below, rest),
        }

    @property
    def _lead(self) -> int:
        """Axes of a gradient before those of its parameter: T1, beta, and the cells of a stack."""
        return self.free.ends.ndim - 1

    def _at(self, rows: Sequence[int], phase: AbstractPhase, depth: int, *, linearised: bool = False) -> Params:
        """The adjoint's gradient with as many terms, at the step size of the phase; or that of the linearised phase."""
        nudged = phase if isinstance(phase, NudgedPhase) else None
        # the correction makes J of J^T, which is then the adjoint's series unless a projection stands between them
        own = linearised and nudged and (not nudged.asymmetric or self.free.field.system.projects)
        key: object = (
            replace(nudged, signs=(), clip="none") if nudged and own else nudged.reduction if nudged else "sum"
        )
        if key not in self._series:
            if nudged and own:
                credits = response(self.free, nudged, self.depths, drifting=False)
            else:
                eps = nudged.step_size(self.free) if nudged else None
                terms = enumerate(adjoints(self.free, max(self.depths), eps))
                credits = ((depth, a) for depth, a in terms if depth in self.depths)
            self._series[key] = {d: along(self.free, Snapshot(d), a[:, None]).gradient for d, a in credits}
        return {n: chosen(g, rows) for n, g in self._series[key][depth].items()}

    def _taken_apart(self, phase: NudgedPhase, asked: Sequence[Asked]) -> dict[Cell, Budget]:
        """The budgets of readings of one phase at the same rows and columns, with the nudge in parts."""
        free, betas = asked[0].free, asked[0].betas.double()
        if free.ends.dtype != torch.float64:
            free = replace(free, field=free.field.wide, ends=free.ends.double(), _views={})
        depths = tuple(sorted({a.depth for a in asked if a.depth is not None}))
        rows = [self.free.T1s.index(T1) for T1 in free.T1s]
        last = {depth: self._at(rows, phase, depth, linearised=True) for depth in depths}
        parts: dict[int, Steps] = {depth: {} for depth in depths}
        snapshots = {}
        # a state at rest drifts by less in the second phase than what would bend an error that wants a cause
        for c in nudged_credits(free, phase, depths, betas, Cause.TRANSIENT, drifting=False):
            depth, gradient = c.snapshot.depth, along(free, c.snapshot, c.credit).gradient
            assert depth is not None
            step = _minus(gradient, last[depth])
            parts[depth][c.cause] = _plus(parts[depth][c.cause], step) if c.cause in parts[depth] else step
            last[depth], snapshots[depth] = gradient, c.snapshot
        found: dict[Cell, Budget] = {}
        for a in asked:
            assert a.depth is not None
            steps, own = self._steps(a), dict(parts[a.depth])
            del steps[Cause.NUDGE]  # and with it what the other beta told
            readout = a.rule.read(free, snapshots[a.depth], betas).gradient
            own[Cause.READOUT] = _minus(readout, last[a.depth])
            own[Cause.PRECISION] = _minus(a.estimate, readout)
            if Cause.TRANSIENT in own and Cause.TRANSIENT in steps:
                own[Cause.TRANSIENT] = _plus(own[Cause.TRANSIENT], steps[Cause.TRANSIENT])
            found |= self._budgets(a, steps | own)
        return found

    def _budgets(self, a: Asked, steps: Steps) -> dict[Cell, Budget]:
        names, stacked = list(a.estimate), self._lead == 3
        parts = torch.broadcast_tensors(*(_squares(step, names, self._lead) for step in steps.values()))
        squares = torch.stack(parts, -1).expand(-1, len(a.betas) or 1, *[-1] * (parts[0].ndim - 1))
        values = (squares if stacked else squares[:, :, None]).tolist()
        return {
            cell: self._budget(found, dict(zip(names, values[i][j][c], strict=True)), tuple(steps))
            for cell, ((i, j, c), found) in a.wanted.items()
        }

    def _budget(self, found: Comparison, squares: Mapping[str, Sequence[float]], causes: Sequence[Cause]) -> Budget:
        norms = {n: p.reference_norm for n, p in found.params.items() if not p.reason.startswith("the reference")}
        rows = {"": [sum(column) for column in zip(*squares.values(), strict=True)]} | {n: squares[n] for n in norms}
        norms = {"": found.whole.reference_norm} | norms
        sizes = {
            n: dict(zip(causes, (math.sqrt(v) / norms[n] if math.isfinite(v) else math.inf for v in row), strict=True))
            for n, row in rows.items()
        }
        of = wanting(found, self.faithful) or ""
        cause = max(sizes[of], key=sizes[of].__getitem__)
        if cause in (Cause.READOUT, Cause.RULE):
            cause = _multiple(found) or cause
        return Budget(cause, of, sizes)


def _multiple(found: Comparison) -> Cause | None:
    """Where the estimate is a multiple of the reference in every parameter, which kind of multiple it is."""
    cosines = list(found.defined.values())
    ratios = [found.params[n].norm_ratio for n in found.defined]
    if not cosines or min(map(abs, cosines)) < ALONG or max(ratios) > (1 + SPREAD) * min(ratios):
        return None
    if max(cosines) < 0:
        return Cause.SIGN
    return Cause.SCALE if min(cosines) > 0 else None


def wanting(found: Comparison, faithful: float) -> str | None:
    """What wants a cause: "" for the whole gradient, else the worst parameter or that of the largest error.

    None where no error is above `faithful`, or there is nothing to compare with.
    """
    if found.whole.reason.startswith("the reference"):
        return None
    if not found.whole.rel_error <= faithful:
        return ""
    errors = {n: p.rel_error for n, p in found.params.items() if not p.reason.startswith("the reference")}
    if errors.get(found.worst, 0.0) > faithful:
        return found.worst
    largest = max(errors, key=errors.__getitem__, default=None)
    return largest if largest is not None and not errors[largest] <= faithful else None


def _rows(gradient: Params, rows: Sequence[int]) -> Params:
    return {n: chosen(g, rows)[:, None] for n, g in gradient.items()}


def _columns(g: Tensor, columns: Sequence[int]) -> Tensor:
    return chosen(g.transpose(0, 1), columns).transpose(0, 1)


def _minus(a: Params, b: Params) -> Params:
    return {n: g - b[n] for n, g in a.items()}


def _plus(a: Params, b: Params) -> Params:
    return {n: g + b[n] for n, g in a.items()}


def _where(mask: Bool[Tensor, "i j *c"], step: Params) -> Params:
    return {n: torch.where(mask.reshape(*mask.shape, *[1] * (g.ndim - mask.ndim)), g, 0.0) for n, g in step.items()}


def _taken(g: Params, j: Int[Tensor, "i 1 *c"]) -> Params:
    """The gradients at one beta of every T1 and stacked problem."""
    return {
        n: v.gather(1, j.reshape(*j.shape, *[1] * (v.ndim - j.ndim)).expand(-1, -1, *v.shape[2:])) for n, v in g.items()
    }


def _squares(step: Params, names: Sequence[str], lead: int) -> Float[Tensor, "*lead P"]:
    return torch.stack([step[n].double().flatten(lead).square().sum(-1) for n in names], -1)
