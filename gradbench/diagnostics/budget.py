"""The causes of many cells at once: a ladder of rungs that a run has anyway, or for a share of its cost.

  rung                 what the gradient is                                              cause of the step to it
  bptt                 backpropagation through the T1 steps, or the implicit reference
  tbptt, T2 steps      the last T2 steps of the same sweep                               truncation
  adjoint, T2 terms    the Jacobians of these steps are taken at s*                      transient
  linearised           the Jacobian that the rule goes by                                asymmetry
  as run               the estimate, in the dtype of the cell                            nudge

Where cells are compared with the implicit reference, no rung of the sweep stands between it and the adjoint; an
estimate that goes back through the steps is reached by way of the adjoint with as many terms.

The other beta of a grid take a part off the last step: nonlinearity grows with beta, round-off as beta shrinks. Where
the remainder is the largest step, it is taken apart in float64 by the rungs of `ladder`: the rule itself, nonlinearity,
drift, clip, readout and precision. Causes are looked for at stable fixed points only. Elsewhere the status of a cell is
its cause.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from gradbench.diagnostics.dissection import State, opaque
from gradbench.diagnostics.metrics import Comparisons
from gradbench.diagnostics.neumann import adjoints
from gradbench.dynamics.trajectory import chosen
from gradbench.errors import RuleFaultError
from gradbench.estimators.base import Role, Snapshot, along
from gradbench.estimators.implicit import solution
from gradbench.estimators.reference import IMPLICIT, REFERENCE
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int
    from torch import Tensor

    from gradbench.diagnostics.metrics import Comparison
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractEstimator, AbstractPhase
    from gradbench.planning.cells import Cell
    from gradbench.systems.base import Params

ALONG, SPREAD = 0.999, 0.02  # |cosine| and relative spread of norm ratios of a multiple of the reference
ROUND_OFF = 1e3  # units of round-off that a difference of two series must exceed
# statuses that are the cause of an error
_BLAMED = {Status.UNSETTLED: Cause.TRANSIENT, Status.UNSTABLE: Cause.NO_FIXED_POINT}
_EXPLAINED = (Status.SETTLED, Status.NUDGE_DIVERGED)
Place = tuple[int, int, int]  # T1, beta, stacked problem
Steps = dict[Cause, "Params"]


@dataclass(frozen=True, eq=False)
class Budget:
    """Where the error of one cell comes from."""

    cause: Cause
    of: str  # the parameter whose error has this cause; empty: the whole gradient
    causes: tuple[Cause, ...]  # of the steps
    # |step| / |reference| in the order of `causes`, of the whole gradient ("") and of every live parameter; where a
    # status is the cause, of what has it alone
    rows: Mapping[str, Sequence[float]]

    @property
    def sizes(self) -> dict[str, dict[Cause, float]]:
        """The rows by parameter and cause."""
        return {name: dict(zip(self.causes, row, strict=True)) for name, row in self.rows.items()}


@dataclass(frozen=True, eq=False)
class Asked:
    """A reading, with the comparisons of those cells whose error wants a cause."""

    rule: AbstractEstimator
    reference: str  # the name of what the cells are compared with
    depth: int | None
    free: Trajectory
    betas: Float[Tensor, "j *c"]
    estimate: Params  # (i, j, *c, ...)
    credit: Float[Tensor, "i j *c b n"] | None
    wanted: Mapping[Cell, tuple[Place, Comparison]]
    by_chance: frozenset[Cell] = frozenset()  # of those that are wanted: the error is within what the draws leave

    @property
    def series(self) -> set[int]:
        """The numbers of terms of the adjoint that lead to the reading."""
        if self.reference == IMPLICIT and self.rule.role is Role.REFERENCE:
            return {T1 for T1 in self.free.T1s if T1}
        return {terms for terms in (self.depth, self.rule.terms(self.depth)) if terms is not None}

    def only(self, rows: Sequence[int], columns: Sequence[int] | None = None) -> Asked:
        """The reading at the T1 of some rows, and where columns are named, at the beta of these only."""
        columns = range(len(self.betas) or 1) if columns is None else columns
        row_of, column_of = ({old: new for new, old in enumerate(places)} for places in (rows, columns))
        wanted = {
            cell: ((row_of[i], column_of[j], c), comparison)
            for cell, ((i, j, c), comparison) in self.wanted.items()
            if i in row_of and j in column_of
        }
        estimate = {n: _columns(chosen(g, rows), columns) for n, g in self.estimate.items()}
        credit = None if self.credit is None else _columns(chosen(self.credit, rows), columns)
        betas = chosen(self.betas, columns) if len(self.betas) else self.betas
        free = self.free.at(tuple(self.free.T1s[i] for i in rows))
        return replace(self, free=free, betas=betas, estimate=estimate, credit=credit, wanted=wanted)


@dataclass(eq=False)
class Budgets:
    """Budgets of the cells of a trajectory, and the series of gradients that these share.

    `references` are the gradients `(i, *c, ...)` that cells are compared with, by name; `truncated` those of the last
    steps of the reverse sweep, by depth. Errors above `faithful` want a cause.
    """

    free: Trajectory
    references: Mapping[str, Params]
    truncated: Mapping[int, Params]
    faithful: float
    depths: tuple[int, ...]  # of all readings
    _series: dict[object, dict[int, Params]] = field(default_factory=dict)  # gradients by depth
    # gradients of the last steps of the reverse sweep, by their number, T1 and stacked problem
    _sweeps: dict[tuple[int, int, int], Params] = field(default_factory=dict)
    _states: dict[tuple[int, int, bool], State] = field(default_factory=dict)

    def of(self, asked: Sequence[Asked]) -> dict[Cell, Budget]:
        """The budget of every cell that wants a cause. Readings of one phase have the same T1 and beta."""
        budgets: dict[Cell, Budget] = {}
        nudged: dict[AbstractPhase, list[Asked]] = {}
        for a in asked:
            if opaque(a.rule, a.depth):
                budgets |= self._dissected(a)
                continue
            of_reading = self._budgets(a, self._steps(a))
            budgets |= of_reading
            bent = {cell: a.wanted[cell] for cell, budget in of_reading.items() if budget.cause is Cause.NUDGE}
            if bent:
                nudged.setdefault(a.rule.phase, []).append(replace(a, wanted=bent))
        for phase, same in nudged.items():
            places = [place for a in same for place, _ in a.wanted.values()]
            rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
            budgets |= self._taken_apart(phase, [a.only(rows, columns) for a in same])
        return budgets

    def _steps(self, a: Asked) -> Steps:
        """The steps from the reference to a reading, by cause."""
        rows = self.free.rows(a.free.T1s)
        reference = _rows(self.references[a.reference], rows)
        if a.reference == IMPLICIT and (a.rule.truncates or a.rule.role is Role.REFERENCE):
            adjoint = self._of_sweep(a, rows)
            return {Cause.TRUNCATION: _minus(adjoint, reference), Cause.TRANSIENT: _minus(a.estimate, adjoint)}
        if a.rule.truncates:
            return {Cause.TRUNCATION: _minus(a.estimate, reference)}
        if a.rule.role is not Role.RULE:
            return {Cause.READOUT: _minus(a.estimate, reference)}
        phase, terms = a.rule.phase, a.rule.terms(a.depth)
        if (sole := a.rule.sole_cause(a.depth)) is not None:
            return {sole: _minus(a.estimate, reference)}
        assert terms is not None
        adjoint = self._series_gradient(phase, rows, terms)
        # no truncation of the sweep to compare with, or none that is on the way
        of_sweep = terms == a.depth and phase.step_size_key is None
        if not of_sweep or self.free.field.predicts or a.reference == IMPLICIT:
            steps: Steps = {Cause.TRUNCATION: _minus(adjoint, reference)}
        else:
            truncated = _rows(self.truncated[terms], rows)
            steps = {Cause.TRUNCATION: _minus(truncated, reference), Cause.TRANSIENT: _minus(adjoint, truncated)}
        if not phase.linearises:
            step, cause = _minus(a.estimate, adjoint), phase.departure
            return steps | {cause: _plus(steps[cause], step) if cause in steps else step}
        linear = self._series_gradient(phase, rows, terms, linearised=True)
        asymmetry = _minus(linear, adjoint)
        change, size = (_squares(g, list(reference), self._lead).sum(-1).sqrt() for g in (asymmetry, adjoint))
        # where both series have grown by many orders, their difference is round-off
        heard = change > ROUND_OFF * torch.finfo(a.free.ends.dtype).eps * size
        steps[Cause.ASYMMETRY] = _where(heard, asymmetry)
        return steps | self._scanned(a, phase, linear, reference)

    def _of_sweep(self, a: Asked, rows: Sequence[int]) -> Params:
        """The adjoint with as many terms as a reading goes back by steps of the free phase."""
        depths = [a.depth if a.depth is not None else T1 for T1 in a.free.T1s]
        series = [self._series_gradient(a.rule.phase, rows, depth) for depth in depths]
        return {n: torch.stack([g[n][i] for i, g in enumerate(series)]) for n in a.estimate}

    def _dissected(self, a: Asked) -> dict[Cell, Budget]:
        """The budgets of a rule that the package knows nothing of, cell by cell."""
        budgets = {}
        for cell, ((i, j, c), comparison) in a.wanted.items():
            if cell in a.by_chance:
                sizes = {"": comparison.whole} | {n: p for n, p in comparison.params.items() if not p.no_reference}
                of = comparison.wanting(self.faithful) or ""
                chance = {n: (similarity.rel_error,) for n, similarity in sizes.items()}
                budgets[cell] = Budget(Cause.VARIANCE, of, (Cause.VARIANCE,), chance)
                continue
            (row,) = self.free.rows([a.free.T1s[i]])
            estimate = {n: g[i, j, c] if self._stacked else g[i, j] for n, g in a.estimate.items()}
            beta = float((a.betas[j, c] if self._stacked else a.betas[j]).double()) if len(a.betas) else None
            steps = self._dissected_steps(a, beta, (row, c), estimate)
            squares = [[float(step[n].double().square().sum()) for step in steps.values()] for n in estimate]
            (budgets[cell],) = self._told([comparison], list(estimate), np.array([squares]), tuple(steps))
        return budgets

    def _dissected_steps(self, a: Asked, beta: float | None, place: tuple[int, int], estimate: Params) -> Steps:
        """The steps of one cell, by cause; all of its error is not taken apart where the rule fails on the way."""
        row, c = place
        reference = self._at(self.references[a.reference], row, c)
        try:
            state = self._state(row, c, states=not a.rule.phase.hints)
            terms, parts, end = state.dissection(a.rule, a.depth, beta)
        except RuleFaultError:
            return {Cause.UNKNOWN: _minus(estimate, reference)}
        last = parts[0].gradient
        steps: Steps = {Cause.TRUNCATION: _minus(last, reference)}
        if not (self.free.field.predicts or a.reference == IMPLICIT):
            whole = terms is None or terms >= self.free.T1s[row]
            truncated = reference if whole else self._truncated(terms or 0, row, c)
            steps = {Cause.TRUNCATION: _minus(truncated, reference), Cause.TRANSIENT: _minus(last, truncated)}
        for part in parts[1:]:
            step, last = _minus(part.gradient, last), part.gradient
            steps[part.cause] = _plus(steps[part.cause], step) if part.cause in steps else step
        rounded = _minus(estimate, last)
        steps[end] = _plus(steps[end], rounded) if end in steps else rounded
        return steps

    def _truncated(self, terms: int, row: int, c: int) -> Params:
        """The gradient of the last steps of the reverse sweep of one cell."""
        if terms in self.truncated:
            return self._at(self.truncated[terms], row, c)
        if (terms, row, c) not in self._sweeps:
            free = self.free.alone(row, c, states=True)
            free = REFERENCE.phase.trained(free, terms) if free.every == 1 else free
            snapshot = next(REFERENCE.phase.run(free, (terms,), free.ends.new_empty(0)))
            assert snapshot.gradient is not None
            self._sweeps[terms, row, c] = {n: g[0].double() for n, g in snapshot.gradient.items()}
        return self._sweeps[terms, row, c]

    def _state(self, row: int, c: int, *, states: bool) -> State:
        """One free state in float64; with the states before it, where a rule may want them."""
        if (row, c, states) not in self._states:
            narrow = self.free.alone(row, c, states=states)
            wide = narrow.wide
            same = narrow.ends.dtype == torch.float64
            self._states[row, c, states] = State(wide, solution(wide), None if same else lambda: narrow)
        return self._states[row, c, states]

    def _at(self, gradient: Params, row: int, c: int) -> Params:
        """That of one T1 and cell, in float64."""
        return {n: (g[row, c] if self._stacked else g[row]).double() for n, g in gradient.items()}

    @property
    def _stacked(self) -> bool:
        return self._lead == 3

    def _pulled(self, credit: Float[Tensor, "i *c b n"]) -> Params:
        return along(self.free, Snapshot(None), credit[:, None]).gradient

    def _scanned(self, a: Asked, phase: AbstractPhase, linear: Params, reference: Params) -> Steps:
        """The steps of a finite nudge, told apart by the other beta of the reading where there are some.

        Counted from the best beta, an error that grows with beta is nonlinearity, with a slope of 1 or 2, and an error
        that grows as beta shrinks is precision, with a slope of -1. Of a clipped rule the first may be the
        clip: then neither is claimed. Of a one-sided rule the second may be drift: then it is not claimed.
        """
        whole = {Cause.NUDGE: _minus(a.estimate, linear)}
        if len(a.betas) < 2 or not phase.beta_tells:
            return whole
        names = list(reference)
        scale = _squares(reference, names, self._lead).clamp_min(torch.finfo(torch.float64).tiny)
        errors = (_squares(whole[Cause.NUDGE], names, self._lead) / scale).sum(-1)
        best = errors.nan_to_num(nan=math.inf).argmin(1, keepdim=True)
        j = torch.arange(len(a.betas), device=best.device).reshape(1, -1, *[1] * (best.ndim - 2))
        above, below = j > best, (j < best) & (Cause.PRECISION in phase.beta_tells)
        from_best = _where(above | below, _minus(a.estimate, _taken(a.estimate, best)))
        return {
            Cause.NUDGE: _minus(whole[Cause.NUDGE], from_best),
            Cause.NONLINEARITY: _where(above, from_best),
            Cause.PRECISION: _where(below, from_best),
        }

    @property
    def _lead(self) -> int:
        """Axes of a gradient before those of its parameter: T1, beta, and the cells of a stack."""
        return self.free.ends.ndim - 1

    def _series_gradient(
        self, phase: AbstractPhase, rows: Sequence[int], depth: int, *, linearised: bool = False
    ) -> Params:
        """The gradient of `depth` terms of the adjoint, with the step size of the phase; or of the linearised phase."""
        key = phase.linear_key(self.free.field.system) if linearised else None
        apart = key is not None
        key = key if apart else phase.step_size_key
        if key not in self._series:
            if apart:
                credits = phase.linearised(self.free, self.depths, drifting=False)
            else:
                terms = enumerate(adjoints(self.free, max(self.depths), phase.step_size(self.free)))
                credits = ((depth, a) for depth, a in terms if depth in self.depths)
            self._series[key] = {d: self._pulled(a) for d, a in credits}
        return {n: chosen(g, rows) for n, g in self._series[key][depth].items()}

    def _taken_apart(self, phase: AbstractPhase, asked: Sequence[Asked]) -> dict[Cell, Budget]:
        """The budgets of readings of one phase at the same T1 and beta, with the step of the nudge taken apart."""
        free, betas = asked[0].free, asked[0].betas.double()
        if free.ends.dtype != torch.float64:
            free = replace(free, field=free.field.wide, ends=free.ends.double(), _views={})
        depths = tuple(sorted({a.depth for a in asked if a.depth is not None}))
        rows = self.free.rows(free.T1s)
        last = {depth: self._series_gradient(phase, rows, depth, linearised=True) for depth in depths}
        parts: dict[int, Steps] = {depth: {} for depth in depths}
        snapshots = {}
        # a settled state drifts too little in the second phase to bend an error that wants a cause
        for c in phase.changes(free, depths, betas, Cause.TRANSIENT, drifting=False):
            depth, gradient = c.snapshot.depth, along(free, c.snapshot, c.credit).gradient
            assert depth is not None
            step = _minus(gradient, last[depth])
            parts[depth][c.cause] = _plus(parts[depth][c.cause], step) if c.cause in parts[depth] else step
            last[depth], snapshots[depth] = gradient, c.snapshot
        budgets: dict[Cell, Budget] = {}
        for a in asked:
            assert a.depth is not None
            steps, of_nudge = self._steps(a), dict(parts[a.depth])
            del steps[Cause.NUDGE]  # its parts replace it, and also what the other beta told
            readout = a.rule.read(free, snapshots[a.depth], betas).gradient
            of_nudge[phase.departure] = _minus(readout, last[a.depth])
            of_nudge[Cause.PRECISION] = _minus(a.estimate, readout)
            if Cause.TRANSIENT in of_nudge and Cause.TRANSIENT in steps:
                of_nudge[Cause.TRANSIENT] = _plus(of_nudge[Cause.TRANSIENT], steps[Cause.TRANSIENT])
            budgets |= self._budgets(a, steps | of_nudge)
        return budgets

    def _budgets(self, a: Asked, steps: Steps) -> dict[Cell, Budget]:
        names, stacked, causes = list(a.estimate), self._stacked, tuple(steps)
        parts = torch.broadcast_tensors(*(_squares(step, names, self._lead) for step in steps.values()))
        squares = torch.stack(parts, -1).expand(-1, len(a.betas) or 1, *[-1] * (parts[0].ndim - 1))
        values = (squares if stacked else squares[:, :, None]).cpu().numpy()
        values = values[tuple(zip(*(place for place, _ in a.wanted.values()), strict=True))]  # (cell, parameter, cause)
        compared = [comparison for _, comparison in a.wanted.values()]
        return dict(zip(a.wanted, self._told(compared, names, values, causes), strict=True))

    def _told(
        self,
        compared: Sequence[Comparison],
        names: Sequence[str],
        squares: Float64[np.ndarray, "k P causes"],
        causes: tuple[Cause, ...],
    ) -> list[Budget]:
        """The budgets of k cells, from the squares of their steps by parameter."""
        among = Comparisons.of(compared)
        in_order = [names.index(name) for name in among.names]  # rows come as those of the comparison do
        with np.errstate(all="ignore"):  # parameters without a reference are left out below
            whole = squares.cumsum(1)[:, -1:]  # one after the other: numpy adds up in another order
            squares = np.concatenate([whole, squares[:, in_order]], 1)
            sizes = np.sqrt(squares) / among.reference_norms[..., None]
        sizes = np.where(np.isfinite(squares), sizes, math.inf).tolist()
        budgets = []
        for comparison, rows, counted in zip(compared, sizes, among.live.tolist(), strict=True):
            named = dict(itertools.compress(zip(("", *among.names), rows, strict=True), (True, *counted)))
            of = comparison.wanting(self.faithful) or ""
            cause = _largest(dict(zip(causes, named[of], strict=True)))
            if cause in (Cause.READOUT, Cause.RULE, Cause.UNKNOWN):
                cause = _multiple(comparison) or cause
            budgets.append(Budget(cause, of, causes, named))
        return budgets


def _largest(sizes: Mapping[Cause, float]) -> Cause:
    """The cause of the largest step. A nudge that leaves every bound overflows in the dtype of the cell and not in
    float64: what precision adds to a step that is wrong by more than the reference is not the cause.
    """
    others = {cause: size for cause, size in sizes.items() if cause is not Cause.PRECISION}
    if math.isinf(sizes.get(Cause.PRECISION, 0.0)) and max(others.values(), default=0.0) > 1:
        return max(others, key=others.__getitem__)
    return max(sizes, key=sizes.__getitem__)


def _multiple(comparison: Comparison) -> Cause | None:
    """SIGN or SCALE where the estimate is such a multiple of the reference in every parameter, else None."""
    cosines = list(comparison.counted.values())
    ratios = [comparison.params[n].norm_ratio for n in comparison.counted]
    if (
        not cosines
        or any(map(math.isnan, cosines))
        or min(map(abs, cosines)) < ALONG
        or max(ratios) > (1 + SPREAD) * min(ratios)
    ):
        return None
    if max(cosines) < 0:
        return Cause.SIGN
    return Cause.SCALE if min(cosines) > 0 else None


def asks(status: Status, of: str | None) -> bool:
    """Whether a cause is looked for: `of` is what wants one, at a state of this status."""
    return status in _EXPLAINED and of is not None


def blamed(status: Status, comparison: Comparison, of: str | None) -> Budget | None:
    """The budget of a cell whose status is the cause of its error; `of` is what wants a cause. None elsewhere."""
    if status is Status.UNSTABLE and comparison.whole.overflowed:
        return Budget(Cause.NO_FIXED_POINT, "", (Cause.NO_FIXED_POINT,), {"": (math.inf,)})
    if of is None or status not in _BLAMED:
        return None
    return Budget(_BLAMED[status], of, (_BLAMED[status],), {of: (comparison.rel_error(of),)})


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
    """The gradients at beta `j` of every T1 and stacked problem."""
    return {
        n: v.gather(1, j.reshape(*j.shape, *[1] * (v.ndim - j.ndim)).expand(-1, -1, *v.shape[2:])) for n, v in g.items()
    }


def _squares(step: Params, names: Sequence[str], lead: int) -> Float[Tensor, "*lead P"]:
    return torch.stack([step[n].double().flatten(lead).square().sum(-1) for n in names], -1)
