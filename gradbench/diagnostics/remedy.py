"""What would help: one change of one knob, tried before it is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gradbench.cause import NEGLIGIBLE, Cause
from gradbench.diagnostics.arnoldi import leading
from gradbench.diagnostics.deep import certify_deep
from gradbench.diagnostics.ladder import adjoints, estimate, free_phase, ladder
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.aep import Aep
from gradbench.estimators.ep import Ep, NudgedPhase
from gradbench.estimators.reverse import Tbptt
from gradbench.metrics import compare
from gradbench.status import Status
from gradbench.streams import Streams, normal

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.diagnostics.ladder import Ladder
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.field import Field, Linear
    from gradbench.status import Thresholds
    from gradbench.systems.base import Params

TRUNCATED = 1e-3  # of the credit: what a T2 that is proposed may leave out
LONGER = (2, 4, 8, 16)  # times T1
MORE_DAMP = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # added to c
SHORTER = (2, 4, 8, 16)  # eps over these
NUDGES = tuple(10 ** (k / 2) for k in range(-10, 11))  # times beta
DEEPEST = 20000  # terms of an adjoint series


@dataclass(frozen=True, eq=False)
class Case:
    """One cell with its ladder."""

    field: Field  # in the cell's dtype
    rule: AbstractEstimator
    T1: int
    T2: int | None
    beta: float | None
    seed: int
    thresholds: Thresholds
    ladder: Ladder

    def again(self, field: Field, T1: int) -> Ladder | None:
        """The ladder at another place; None where the state there is not a settled and stable one."""
        found = certify_deep(free_phase(field.wide, T1), self.thresholds, self.seed)
        if found.free.status(self.thresholds) is not Status.SETTLED or not found.stable:
            return None
        return ladder(field, self.rule, T1, self.T2, self.beta, stable=True, settled=True)


def remedy(case: Case) -> str | None:
    """A change against the culprit of the ladder, with the number that it was found to leave.

    None where there is no error, where no change of one knob is known to help, or none that was tried did.
    """
    known: dict[Cause, Callable[[Case], str | None]] = {
        Cause.TRANSIENT: _longer,
        Cause.NO_FIXED_POINT: _calmer,
        Cause.TRUNCATION: _deeper,
        Cause.ASYMMETRY: _transposed,
        Cause.NONLINEARITY: _nudged,
        Cause.CLIP: _without_clip,
        Cause.READOUT: _plain,
        Cause.PRECISION: _nudged,
    }
    cause, _ = case.ladder.culprit
    return known[cause](case) if cause in known else None


def _longer(case: Case) -> str | None:
    now = case.ladder.sizes[Cause.TRANSIENT]
    for factor in LONGER:
        found = case.again(case.field, T1 := case.T1 * factor)
        if found and (left := found.sizes[Cause.TRANSIENT]) <= NEGLIGIBLE:
            return f"T1 = {T1} settles the state and brings the transient part from {now:.2g} to {left:.1e}"
    return _calmer(case)


def _calmer(case: Case) -> str | None:
    """More damping where the flow itself is unstable or may be; a shorter step where only the step is too long."""
    field, wide = case.field, case.field.wide
    s = free_phase(wide, case.T1).ends
    v = normal(Streams(case.seed)["krylov"], tuple(s.shape[1:])).to(s)

    def largest(linear: Linear, order: Callable[[Tensor], Tensor]) -> float:
        (found,), _ = leading(lambda v: linear.jvp(v[None])[0], v, (order,))
        return float(order(found.values).max())

    rightmost = largest(wide.at(s), torch.real)
    if rightmost < 0:
        for factor in SHORTER:
            shorter = replace(wide, knobs=wide.knobs._replace(eps=wide.knobs.eps / factor))
            if (rho := largest(shorter.step_at(s), torch.abs)) < 1:
                return f"eps = {float(shorter.knobs.eps):.3g} makes this state stable, rho = {rho:.4f}: its flow is"
    if "damp" in field.system.uses:
        for more in MORE_DAMP:
            damped = replace(field, knobs=field.knobs._replace(damp=field.knobs.damp + more))
            if found := case.again(damped, case.T1):
                left = found.whole.whole.rel_error
                return f"damp = {float(damped.knobs.damp):.3g} settles and stabilises; the error there is {left:.2g}"
    return None


def _deeper(case: Case) -> str | None:
    free = free_phase(case.field.wide, case.T1)
    if isinstance(case.rule, Tbptt):
        assert case.T2 is not None
        for T2 in [case.T2 * factor for factor in LONGER if case.T2 * factor < case.T1]:
            left = _error(estimate(case.rule, free, T2, None), case.ladder.reference)
            if left <= NEGLIGIBLE:
                return f"T2 = {T2} brings the error to {left:.1e}"
        return f"T2 = T1 = {case.T1} is exact"
    try:
        limit = case.ladder["implicit"].credit
    except KeyError:  # its solve failed
        return None
    assert limit is not None
    eps = case.rule.phase.step_size(free) if isinstance(case.rule.phase, NudgedPhase) else None
    for terms, a in enumerate(adjoints(free, DEEPEST, eps)):
        if float((a - limit).norm()) <= TRUNCATED * float(limit.norm()):
            return f"T2 >= {terms} brings truncation under {TRUNCATED:g} of the credit"
    return None


def _transposed(case: Case) -> str | None:
    if not isinstance(case.rule, Ep):
        return None
    other = Aep(nudge=case.rule.nudge)
    error = _error(estimate(other, free_phase(case.field, case.T1), case.T2, case.beta), case.ladder.reference)
    now = case.ladder.whole.whole.rel_error
    return f"aep in place of ep brings the error from {now:.2g} to {error:.2g}" if error < now else None


def _nudged(case: Case) -> str | None:
    """The range of beta about the best one in which what beta and round-off add stays negligible."""
    assert case.beta is not None
    free, target = free_phase(case.field, case.T1), case.ladder["along the drift"].gradient
    size = _norm(case.ladder.reference)
    errors = {}
    for factor in NUDGES:
        found = estimate(case.rule, free, case.T2, case.beta * factor)
        errors[case.beta * factor] = _norm({n: found[n].double() - target[n] for n in target}) / size
    betas = list(errors)
    best = min(betas, key=lambda beta: errors[beta] if math.isfinite(errors[beta]) else math.inf)
    if not errors[best] <= NEGLIGIBLE:
        return (
            "dtype = float64: no beta keeps round-off below 1 %" if case.ladder.culprit[0] is Cause.PRECISION else None
        )
    low = high = betas.index(best)
    while low > 0 and errors[betas[low - 1]] <= NEGLIGIBLE:
        low -= 1
    while high + 1 < len(betas) and errors[betas[high + 1]] <= NEGLIGIBLE:
        high += 1
    return (
        f"beta between {betas[low]:.1e} and {betas[high]:.1e} keeps nonlinearity and round-off under {NEGLIGIBLE:g} "
        f"of the gradient; best of those tried {best:.1e}, with {errors[best]:.1e}"
    )


def _without_clip(case: Case) -> str | None:
    return _reaching(case, "clip = none", "beta")


def _plain(case: Case) -> str | None:
    if isinstance(case.rule, Adjoint):
        return _reaching(case, "projection = kept", "adjoint, T2 terms")
    return _reaching(case, "readout = vector_field", "beta") if isinstance(case.rule, Ep) else None


def _reaching(case: Case, change: str, rung: str) -> str | None:
    error, now = _error(case.ladder[rung].gradient, case.ladder.reference), case.ladder.whole.whole.rel_error
    return f"{change} brings the error from {now:.2g} to {error:.2g}" if error < now else None


def _error(found: Params, reference: Params) -> float:
    return compare(found, reference, 0.0).whole.rel_error


def _norm(gradient: Params) -> float:
    return math.hypot(*(float(g.double().norm()) for g in gradient.values()))
