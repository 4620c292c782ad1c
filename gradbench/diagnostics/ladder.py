"""Why an estimate is not backpropagation: gradients in between, each of which changes one thing.

  rung                 what the gradient is                                           cause of the step to it
  bptt                 backpropagation through the T1 steps
  adjoint, T1 terms    every Jacobian of the path is taken at s*                      transient, or no fixed point
  implicit             the series without an end: (1 - J_G^T) a = dC/ds is solved     transient, or no fixed point
  adjoint, T2 terms    as many terms as the second phase has steps; of a rule that    truncation
                       declares no number, the one whose credit is nearest
  linearised           the Jacobian that the rule goes by: J where J^T is right       asymmetry
  along the drift      the linearised phase at the states through which s* drifts     transient
  beta -> 0            the phase of the rule, with a nudge too small to bend it      the rule itself
  beta                 a finite nudge; of a one-sided rule, without the drift        nonlinearity in beta
  with the drift       of a one-sided rule: drift and response, both over beta       transient
  clip                 the correction of the phase is clipped                         clip
  readout              the readout and the projection of the rule                     projection or readout
  as run               in the dtype of the cell                                       precision

The first rung is the reference of the cell. Where that is `implicit`, the ladder begins at this rung, and an estimate
that goes back through the steps is reached by way of the adjoint with as many terms. All but the last are float64. A
rung that a rule does not have is left out, and the rungs around it become neighbours: the steps always add up to the
difference between the estimate as run and the reference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gradbench.diagnostics.dissection import State, opaque
from gradbench.diagnostics.metrics import Comparison, compare
from gradbench.diagnostics.neumann import adjoint_credit
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.base import Role, Snapshot, along, reading_at
from gradbench.estimators.implicit import Solution, gradient_of, solution
from gradbench.estimators.reference import IMPLICIT, REFERENCE
from gradbench.vocabulary.cause import NEGLIGIBLE, Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.diagnostics.dissection import Dissection
    from gradbench.dynamics.field import Field
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractEstimator, AbstractPhase
    from gradbench.systems.base import Params

STATES = 2**27  # entries of a trajectory up to which all states are stored; of a longer one only some are
LIVE = 1e-12  # a parameter whose reference is below this share of the whole has no error


@dataclass(frozen=True, eq=False)
class Rung:
    """A gradient, with the cause of its difference from the rung before."""

    name: str
    cause: Cause  # NONE: the first rung
    gradient: Params
    credit: Float[Tensor, "1 b n"] | None = None  # None: the gradient does not come from a credit at s*


@dataclass(frozen=True, eq=False)
class Step:
    """From one rung to the next."""

    name: str  # of the rung that it leads to
    cause: Cause
    size: float  # |difference| / |bptt|; inf where the rung is not finite
    sizes: dict[str, float]  # the same by parameter; NaN where the reference is zero
    compared: Comparison  # the rung, with the rung before as the reference


@dataclass(frozen=True, eq=False)
class Ladder:
    """Rungs from the reference to the estimate as run."""

    rungs: tuple[Rung, ...]
    flags: tuple[str, ...] = ()  # what could not be had, in words
    complete: bool = True  # else there are rungs to come, and the last one is not yet the estimate

    def __getitem__(self, name: str) -> Rung:
        """A rung by its name. Raises KeyError where the rule does not have it."""
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise KeyError(name)

    @property
    def reference(self) -> Params:
        """The reference in float64."""
        return self.rungs[0].gradient

    @cached_property
    def whole(self) -> Comparison:
        """The estimate as run, compared with the reference."""
        return compare(self.rungs[-1].gradient, self.reference, LIVE)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Neighbours compared."""
        steps = []
        for a, b in itertools.pairwise(self.rungs):
            moved = {n: b.gradient[n].double() - a.gradient[n].double() for n in self.reference}
            sizes = {n: self._size(moved, n) for n in moved}
            compared = compare(b.gradient, a.gradient, LIVE)
            steps.append(Step(b.name, b.cause, self._size(moved), sizes, compared))
        return tuple(steps)

    @property
    def sizes(self) -> dict[Cause, float]:
        """By cause: |sum of its steps| / |bptt|. A step and the step back, of one cause, cancel."""
        return self._by_cause(None)

    @property
    def cause(self) -> Cause:
        """The cause of the largest size, or NONE where the whole error is negligible.

        Where rungs are not finite, the cause is that of the first of these.
        """
        return self._cause(None)

    @property
    def causes(self) -> dict[str, Cause]:
        """The cause of every parameter that the reference moves: a good whole may hide a bad parameter."""
        return {n: self._cause(n) for n in self.reference if self._alive(n)}

    @property
    def culprit(self) -> tuple[Cause, str | None]:
        """The cause of the whole; where that is NONE, of the parameter with the smallest cosine, and its name."""
        if self.cause is not Cause.NONE or not self.whole.worst:
            return self.cause, None
        cause = self.causes.get(self.whole.worst, Cause.NONE)
        return cause, None if cause is Cause.NONE else self.whole.worst

    def _alive(self, name: str) -> bool:
        return self.whole.params[name].reference_norm > LIVE * self.whole.whole.reference_norm

    def _size(self, moved: Params, name: str | None = None) -> float:
        if name is not None and not self._alive(name):
            return math.nan
        names = list(moved) if name is None else [name]
        change, size = (math.hypot(*(float(g[n].double().norm()) for n in names)) for g in (moved, self.reference))
        ratio = change / size if size > 0 else math.nan
        return ratio if math.isfinite(change) else math.inf

    def _by_cause(self, name: str | None) -> dict[Cause, float]:
        moved: dict[Cause, Params] = {}
        for a, b in itertools.pairwise(self.rungs):
            step = {n: b.gradient[n].double() - a.gradient[n].double() for n in self.reference}
            before = moved.setdefault(b.cause, {n: torch.zeros_like(g) for n, g in step.items()})
            moved[b.cause] = {n: before[n] + g for n, g in step.items()}
        return {cause: self._size(total, name) for cause, total in moved.items()}

    def _cause(self, name: str | None) -> Cause:
        for step in self.steps:
            if math.isinf(step.size if name is None else step.sizes[name]):
                return step.cause
        whole = self.whole.whole if name is None else self.whole.params[name]
        if not whole.rel_error > NEGLIGIBLE:
            return Cause.NONE
        sizes = self._by_cause(name)
        return max(sizes, key=sizes.__getitem__)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The free phase of one cell, taken once in float64 and once in the dtype that the cell is run in.

    With it what the ladders of all rules at this state begin with, taken once for all of them.
    """

    field: Field  # in the dtype of the cell
    T1: int
    compared_with: str = REFERENCE.name  # the reference of the cell

    @cached_property
    def wide(self) -> Trajectory:
        """In float64."""
        return free_phase(self.field.wide, self.T1)

    @cached_property
    def as_run(self) -> Trajectory:
        """In the dtype of the cell."""
        return self.wide if self.as_wide else free_phase(self.field, self.T1)

    @cached_property
    def reference(self) -> Params:
        """What the cell is compared with, in float64; not finite where the solve of `implicit` has failed."""
        if self.compared_with == IMPLICIT:
            return {name: g[0] for name, g in gradient_of(self.wide, self.solution).items()}
        return estimate(REFERENCE, self.wide, None, None)

    @cached_property
    def series(self) -> Float[Tensor, "1 b n"]:
        """Credit of the adjoint with T1 terms."""
        return adjoint_credit(self.wide, self.T1)

    @cached_property
    def solution(self) -> Solution:
        """The credit of the implicit reference, which is the limit of the series where that has one."""
        return solution(self.wide)

    @cached_property
    def state(self) -> State:
        """What rules are taken apart by that the package knows nothing of."""
        return State(self.wide, self.solution, None if self.as_wide else lambda: self.as_run)

    @property
    def as_wide(self) -> bool:
        """Whether the cell is run in float64."""
        return self.field.step_size.dtype == torch.float64


def climb(
    relaxed: Relaxed,
    rule: AbstractEstimator,
    T2: int | None,
    beta: float | None,
    *,
    stable: bool,
    settled: bool,
    watch: Callable[[Ladder], None] | None = None,
) -> Ladder:
    """The ladder of one cell. `watch` is called after every rung, with the ladder so far.

    `stable`: whether rho(J_G) < 1 at s*. Where it is not, the series has no limit, and a change by its length is no
    truncation: its cause is NO_FIXED_POINT where the state has `settled`, and TRANSIENT where it still moves.
    The equalities that the rungs take apart: Almeida 1987 (implicit), Scellier & Bengio 2017 (nudged).
    """
    ladder = Ladder((), complete=False)
    for climbed in _climbed(relaxed, rule, T2, beta, stable=stable, settled=settled):
        if isinstance(climbed, str):
            ladder = replace(ladder, flags=(*ladder.flags, climbed))
            continue
        ladder = replace(ladder, rungs=(*ladder.rungs, climbed))
        if watch is not None:
            watch(ladder)
    return replace(ladder, complete=True)


def _climbed(
    relaxed: Relaxed, rule: AbstractEstimator, T2: int | None, beta: float | None, *, stable: bool, settled: bool
) -> Iterator[Rung | str]:
    """The rungs of a ladder, each as soon as it is there, and its flags."""
    free = relaxed.wide
    no_limit = Cause.NO_FIXED_POINT if settled and not stable else Cause.TRANSIENT
    length = Cause.TRUNCATION if stable else no_limit
    implicit = relaxed.compared_with == IMPLICIT
    yield Rung(relaxed.compared_with, Cause.NONE, relaxed.reference, relaxed.solution.credit if implicit else None)
    if implicit and not relaxed.solution.solved.all():
        yield f"{_unsolved(relaxed)}: there is nothing to compare with"
    if implicit and (rule.truncates or rule.role is Role.REFERENCE):
        terms = T2 if rule.truncates and T2 is not None else relaxed.T1
        yield _rung(free, f"adjoint, {terms} terms", length, adjoint_credit(free, terms))
        yield Rung(rule.name, no_limit, estimate(rule, free, T2, beta))
    elif rule.truncates:
        yield Rung(f"{rule.name}, T2 steps", Cause.TRUNCATION, estimate(rule, free, T2, beta))
    elif rule.role is not Role.REFERENCE:
        sole = rule.sole_cause(T2)
        if not implicit and sole is None:
            yield from _limit_rungs(relaxed, no_limit)
        if sole is not None:
            yield Rung(rule.name, sole, estimate(rule, free, T2, beta))
        elif opaque(rule, T2):
            yield from _dissected_rungs(relaxed.state.dissection(rule, T2, beta), length, no_limit)
        else:
            if rule.role is Role.RULE:
                yield from _phase_rungs(free, rule, T2, beta, length, no_limit)
            departure = length if rule.phase.departure is Cause.TRUNCATION else rule.phase.departure
            yield Rung("readout", departure, estimate(rule, free, T2, beta))
    if relaxed.as_run is not free:
        last = relaxed.state.dissection(rule, T2, beta).last if opaque(rule, T2) else Cause.PRECISION
        yield Rung("as run", last, estimate(rule, relaxed.as_run, T2, beta))


def _limit_rungs(relaxed: Relaxed, no_limit: Cause) -> Iterator[Rung | str]:
    """From backpropagation to the limit of the series, with the flag of a solve that failed."""
    free = relaxed.wide
    if relaxed.T1:
        yield _rung(free, "adjoint, T1 terms", no_limit, relaxed.series)
    if relaxed.solution.solved.all():
        yield _rung(free, IMPLICIT, no_limit, relaxed.solution.credit)
    else:
        yield f"{_unsolved(relaxed)}, and its rung is left out"


def _unsolved(relaxed: Relaxed) -> str:
    return f"the implicit solve left {float(relaxed.solution.open):.1e} of its right side"


def _phase_rungs(
    free: Trajectory, rule: AbstractEstimator, T2: int | None, beta: float | None, length: Cause, no_limit: Cause
) -> Iterator[Rung]:
    """From the limit of the series to the phase as it is; `length` is the cause of what the number of terms changes."""
    phase, terms = rule.phase, rule.terms(T2)
    assert terms is not None
    yield _rung(free, "adjoint, T2 terms", length, adjoint_credit(free, terms, phase.step_size(free)))
    if phase.linearises and beta is not None and T2 is not None:
        ((_, a),) = phase.linearised(free, (T2,), drifting=False)
        yield _rung(free, "linearised", Cause.ASYMMETRY, a)
        for c in phase.changes(free, (T2,), free.ends.new_tensor([beta]), no_limit):
            yield _rung(free, c.name, c.cause, c.credit[:, 0])


def _dissected_rungs(dissection: Dissection, length: Cause, no_limit: Cause) -> Iterator[Rung | str]:
    """The rungs of a rule that the package knows nothing of; a series without an end has its rung already."""
    changed = {Cause.TRUNCATION: length, Cause.TRANSIENT: no_limit}
    for part in dissection.parts[dissection.terms is None :]:
        credit = None if part.credit is None else part.credit[None]
        yield Rung(part.name, changed.get(part.cause, part.cause), part.gradient, credit)


def free_phase(field: Field, T1: int) -> Trajectory:
    """The trajectory of one T1, in the memory of `STATES` entries."""
    return relax(field, (T1,), max(2, STATES // field.init_state().numel()))


def estimate(
    rule: AbstractEstimator,
    free: Trajectory,
    T2: int | None,
    beta: float | None,
    phase: AbstractPhase | None = None,
) -> Params:
    """The gradient that a rule makes of a trajectory of one T1; in place of its phase it may have another such one."""
    return _only(reading_at(rule, free, T2, beta, phase).gradient)


def _rung(free: Trajectory, name: str, cause: Cause, credit: Float[Tensor, "1 b n"]) -> Rung:
    return Rung(name, cause, _only(along(free, Snapshot(None), credit[:, None]).gradient), credit)


def _only(gradient: Params) -> Params:
    return {n: g[0, 0] for n, g in gradient.items()}
