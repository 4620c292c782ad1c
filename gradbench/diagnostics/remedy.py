"""A remedy for the error of a cell: one change of one knob, tried before it is proposed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.arnoldi import leading
from gradbench.diagnostics.deep import certify_deep
from gradbench.diagnostics.dissection import opaque
from gradbench.diagnostics.ladder import Relaxed, climb, estimate
from gradbench.diagnostics.metrics import compare
from gradbench.diagnostics.neumann import adjoints
from gradbench.estimators.base import Exact, Role
from gradbench.estimators.reference import IMPLICIT, REFERENCE
from gradbench.planning import registry
from gradbench.vocabulary.cause import NEGLIGIBLE, Cause
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.diagnostics.ladder import Ladder
    from gradbench.dynamics.field import Field
    from gradbench.dynamics.linear import Linear
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import Params
    from gradbench.vocabulary.status import Thresholds

TRUNCATED = 1e-3  # share of the credit that a proposed T2 may leave out
LONGER = (2, 4, 8, 16)  # times T1, or T2 of tbptt
MORE_DAMP = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # added to c
SHORTER = (2, 4, 8, 16)  # divisors of eps
NUDGES = tuple(10 ** (k / 2) for k in range(-10, 11))  # times beta
DEEPEST = 20000  # terms of an adjoint series


@dataclass(frozen=True, eq=False)
class Case:
    """One cell with its ladder."""

    relaxed: Relaxed
    rule: AbstractEstimator
    T2: int | None
    beta: float | None
    seed: int
    thresholds: Thresholds
    ladder: Ladder

    def again(self, field: Field, T1: int) -> Ladder | None:
        """The ladder with another field or T1; None where the free state there is not settled and stable."""
        relaxed = Relaxed(field, T1, self.relaxed.compared_with)
        certificate = certify_deep(relaxed.wide, self.thresholds, self.seed)
        if certificate.free.judgement.status is not Status.SETTLED or not certificate.stable:
            return None
        return climb(relaxed, self.rule, self.T2, self.beta, stable=True, settled=True)


def remedy_for(case: Case) -> str | None:
    """A change against the culprit of the ladder, with the error that was measured after the change.

    None where there is no error, where no change of one knob is known to help, or where none of those tried helped.
    """
    remedies: dict[Cause, Callable[[Case], str | None]] = {
        Cause.TRANSIENT: _longer,
        Cause.NO_FIXED_POINT: _calmer,
        Cause.TRUNCATION: _deeper,
        Cause.ASYMMETRY: _transposed,
        Cause.NONLINEARITY: _nudged,
        Cause.CLIP: _varied,
        Cause.READOUT: _varied,
        Cause.PRECISION: _nudged,
        Cause.WEIGHTS: _more_steps,
        Cause.VARIANCE: _more_draws,
    }
    cause, _ = case.ladder.culprit
    told = remedies[cause](case) if cause in remedies else None
    return told or (_undone(case) if opaque(case.rule, case.T2) else None)


def _longer(case: Case) -> str | None:
    now = case.ladder.sizes[Cause.TRANSIENT]
    for factor in LONGER if case.relaxed.T1 else ():
        longer = case.again(case.relaxed.field, T1 := case.relaxed.T1 * factor)
        if longer and (left := longer.sizes[Cause.TRANSIENT]) <= NEGLIGIBLE:
            return f"T1 = {T1} settles the state and brings the transient part from {now:.2g} to {left:.1e}"
    return _calmer(case)


def _calmer(case: Case) -> str | None:
    """More damping where the flow itself is unstable or may be; a shorter step where only the step is too long."""
    field, wide, s = case.relaxed.field, case.relaxed.field.wide, case.relaxed.wide.ends
    v = normal(Streams(case.seed)["krylov"], tuple(s.shape[1:])).to(s)

    def largest(linear: Linear, order: Callable[[Tensor], Tensor]) -> float:
        (spectrum,), _ = leading(lambda v: linear.jvp(v[None])[0], v, (order,))
        return float(order(spectrum.values).max())

    rightmost = largest(wide.at(s), torch.real)
    if rightmost < 0:
        for factor in SHORTER:
            shorter = replace(field, knobs=field.knobs._replace(eps=field.knobs.eps / factor))
            if (rho := largest(shorter.wide.step_at(s), torch.abs)) < 1:
                T1 = case.relaxed.T1 * factor
                what = f"eps = {float(shorter.knobs.eps):.3g}" + (f" with T1 = {T1}" if T1 else "")
                if calmer := case.again(shorter, T1):
                    left = calmer.whole.whole.rel_error
                    return f"{what} settles and stabilises; the error there is {left:.2g}"
                return f"{what} is not at rest yet, but stable where this state is, rho = {rho:.4f}: its flow is stable"
    if "damp" in field.system.uses:
        for more in MORE_DAMP:
            damped = replace(field, knobs=field.knobs._replace(damp=field.knobs.damp + more))
            if calmer := case.again(damped, case.relaxed.T1):
                left = calmer.whole.whole.rel_error
                return f"damp = {float(damped.knobs.damp):.3g} settles and stabilises; the error there is {left:.2g}"
    return None


def _deeper(case: Case) -> str | None:
    free = case.relaxed.wide
    if case.rule.truncates:
        assert case.T2 is not None
        for T2 in [case.T2 * factor for factor in LONGER if case.T2 * factor < free.T1s[0]]:
            left = _error(estimate(case.rule, free, T2, None), case.ladder.reference)
            if left <= NEGLIGIBLE:
                return f"T2 = {T2} brings the error to {left:.1e}"
        if case.relaxed.compared_with == IMPLICIT:
            return None
        return f"T2 = T1 = {free.T1s[0]} is exact"
    phase = case.rule.phase
    taken_apart = not opaque(case.rule, case.T2) and case.rule.sole_cause(case.T2) is None
    declared = taken_apart and phase.departure is not Cause.TRUNCATION
    if not declared and case.T2 is not None:
        return _more_steps(case)
    try:
        limit = case.ladder["implicit"].credit
    except KeyError:  # the solve failed
        return None
    assert limit is not None
    what = "T2" if "T2" in case.rule.uses else "a rule with terms"
    for terms, a in enumerate(adjoints(free, DEEPEST, case.rule.phase.step_size(free))):
        if float((a - limit).norm()) <= TRUNCATED * float(limit.norm()):
            return f"{what} >= {terms} brings truncation under {TRUNCATED:g} of the credit"
    return None


def _transposed(case: Case) -> str | None:
    """Of the registered rules that read the same coordinates and are exact at any fixed point, the cheapest good one.

    Good is what errs by at most twice the least error, or by a negligible one.
    """
    options = {f.name: getattr(case.rule, f.name) for f in fields(case.rule) if f.name != registry.DIGEST}  # type: ignore[arg-type]
    errors: dict[str, float] = {}
    work: dict[str, int] = {}
    for name, cls in registry.known_estimators().items():
        shared = {f.name: options[f.name] for f in fields(cls) if f.name in options}  # type: ignore[arg-type]
        if cls.uses == case.rule.uses and cls is not type(case.rule) and cls.role is Role.RULE:
            other = cls(**shared)
            applies = other.phase != REFERENCE.phase or case.relaxed.field.has_way_back
            applies = applies and other.skip(type(case.relaxed.field.system)) is None
            if applies and other.claim.exact is Exact.FIXED_POINT:
                errors[name] = _error(estimate(other, case.relaxed.as_run, case.T2, case.beta), case.ladder.reference)
                work[name] = other.phase.count(case.relaxed.T1, case.T2).work
    now, best = case.ladder.whole.whole.rel_error, min(errors.values(), default=math.inf)
    if not best < now:
        return None
    good = [name for name, error in errors.items() if error <= max(2 * best, NEGLIGIBLE) and error < now]
    name = min(good, key=lambda name: (work[name], name))
    return f"{name} in place of {case.rule.name} brings the error from {now:.2g} to {errors[name]:.2g}"


def _nudged(case: Case) -> str | None:
    """The range around the best beta in which the errors by nonlinearity and by round-off stay negligible."""
    if case.beta is None:
        return None
    free, target = case.relaxed.as_run, _before(case, Cause.NONLINEARITY)
    if target is None:
        return None
    size = _norm(case.ladder.reference)
    errors = {}
    for factor in NUDGES:
        nudged = estimate(case.rule, free, case.T2, case.beta * factor)
        errors[case.beta * factor] = _norm({n: nudged[n].double() - target[n] for n in target}) / size
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


def _before(case: Case, cause: Cause) -> Params | None:
    """The last rung before the first step of a cause; of a nudge the one that it should come to. None: no such step."""
    rungs = case.ladder.rungs
    if cause is Cause.NONLINEARITY and any(rung.name == "along the drift" for rung in rungs):
        return case.ladder["along the drift"].gradient
    return next((a.gradient for a, b in itertools.pairwise(rungs) if b.cause is cause), None)


UNDONE = {  # what is tried against a cause of a rule that the package knows nothing of
    Cause.ASYMMETRY: "J_G^T in place of J_G",
    Cause.DAMPING: "the series without damping",
    Cause.WEIGHTS: "a weight of 1 of every term",
    Cause.JACOBIAN: "J_G^T at s* in place of the Jacobian of the rule",
    Cause.NONLINEARITY: "a nudge too small to bend the response",
    Cause.READOUT: "the gradient of the credit, with the projection of the system,",
    Cause.SIGN: "the other sign",
    Cause.SCALE: "a factor of 1",
    Cause.PRECISION: "float64 throughout",
}


def _undone(case: Case) -> str | None:
    """The rule without the culprit, as the ladder has it, where that is better."""
    cause, _ = case.ladder.culprit
    without = _before(case, cause) if cause in UNDONE else None
    if without is None:
        return None
    error, now = _error(without, case.ladder.reference), case.ladder.whole.whole.rel_error
    return f"{UNDONE[cause]} brings the error from {now:.2g} to {error:.2g}" if error < now else None


def _more_draws(case: Case) -> str | None:
    """The mean over more draws."""
    now = case.ladder.whole.whole.rel_error
    for draws in [max(1, case.rule.draws) * factor for factor in LONGER]:
        phase = case.rule.phase.drawn(range(draws))
        left = _error(estimate(case.rule, case.relaxed.wide, case.T2, case.beta, phase), case.ladder.reference)
        if left <= now / 2:
            return f"{draws} draws bring the error from {now:.2g} to {left:.2g}"
    return None


def _more_steps(case: Case) -> str | None:
    """A longer second phase of a rule whose credit is no series that the package knows."""
    for T2 in [case.T2 * factor for factor in LONGER] if case.T2 is not None else ():
        left = _error(estimate(case.rule, case.relaxed.wide, T2, case.beta), case.ladder.reference)
        if left <= NEGLIGIBLE:
            return f"T2 = {T2} brings the error from {case.ladder.whole.whole.rel_error:.2g} to {left:.1e}"
    return None


def _varied(case: Case) -> str | None:
    """The variant that the rule itself names against the culprit, where its error is smaller."""
    cause, _ = case.ladder.culprit
    if cause not in case.rule.variants():
        return _more_steps(case) if opaque(case.rule, case.T2) else None
    change, other = case.rule.variants()[cause]
    error = _error(estimate(other, case.relaxed.as_run, case.T2, case.beta), case.ladder.reference)
    now = case.ladder.whole.whole.rel_error
    return f"{change} brings the error from {now:.2g} to {error:.2g}" if error < now else None


def _error(gradient: Params, reference: Params) -> float:
    return compare(gradient, reference, 0.0).whole.rel_error


def _norm(gradient: Params) -> float:
    return math.hypot(*(float(g.double().norm()) for g in gradient.values()))
