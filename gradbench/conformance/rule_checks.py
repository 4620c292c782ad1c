"""What every rule promises: what it claims of itself, and that rows, cells and examples do not see each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from gradbench.conformance.comparing import apart, gap, told_ratio, worst
from gradbench.conformance.findings import Check, Finding, NotTriedError, Number, all_tried, tried
from gradbench.conformance.linear_systems import SkewedLinear, SymmetricLinear, answer
from gradbench.conformance.system_checks import drawn, unrest
from gradbench.diagnostics.ladder import estimate as estimate_of
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.errors import UserError
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.base import Exact, Role
from gradbench.estimators.bptt import Bptt
from gradbench.systems.toy_cons import ToyCons
from gradbench.systems.toy_noncons import ToyNoncons
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from gradbench.dynamics.field import Field
    from gradbench.estimators.base import AbstractEstimator, Reading
    from gradbench.systems.base import AbstractSystem, Params

SETTLED, TRANSIENT = 200, 12  # free steps: to a fixed point, and far from one
DEEP = 200  # steps of a second phase to its end
SMALL = 1e-6  # nudge of rules that are exact as beta -> 0: a one-sided rule is then off by about as much
BETAS = (0.1, 0.03, 0.01)  # nudges over which the order is read
OUTSIDE = 1e-12  # relative: of a rule that claims to be exact at any state
INSIDE = 1e-4  # relative: of a rule that claims to be exact at a fixed point
ORDER = 0.15  # how far the order in beta may be off
SAME = 1e-9  # relative: rows, cells and examples at once and one at a time
MODEST = 1e-3  # relative: a rule that is closer where it claims nothing could claim more
STILL = 1e-8  # relative change of a step from which on a system of the caller is at rest
LONGER = 4  # times its T1, to get there
OTHER_STATE = "A rule that is written for a state of several tensors is tried on a system that has one: on=SYSTEM"
MIXED = 1e-3  # relative: up to which an estimate is a mixture of known gradients


@dataclass(frozen=True, eq=False)
class Place:
    """A system on which a rule is tried, and its free phase."""

    name: str
    field: Field
    steps: int = SETTLED  # free steps to a fixed point
    deep: int = DEEP  # steps of a second phase to its end

    def depth(self, rule: AbstractEstimator) -> int:
        """The same of a rule: more where its steps are shorter than those of the free phase."""
        shorter = float((self.field.step_size / rule.phase.step_size(self.settled)).max())
        return math.ceil(self.deep * max(1.0, shorter))

    @cached_property
    def settled(self) -> Trajectory:
        """The free phase to a fixed point."""
        return self._relaxed(self.steps)

    @cached_property
    def transient(self) -> Trajectory:
        """A free phase that is still on its way."""
        return self._relaxed(TRANSIENT)

    def _relaxed(self, T1: int) -> Trajectory:
        return relax(self.field, (0,) if self.field.predicts else (T1,))

    @cached_property
    def known(self) -> Params:
        """The gradient at the fixed point: by linear solves where the system is linear, else by backpropagation."""
        if isinstance(self.field.system, SymmetricLinear | SkewedLinear):
            return answer(self.field)
        return self.reference(self.settled)

    def reference(self, free: Trajectory) -> Params:
        """Backpropagation through the steps of a free phase."""
        return estimate_of(Bptt(), free, None, None)

    @property
    def conservative(self) -> bool:
        """Whether the Jacobian is symmetric."""
        return self.field.system.conservative


def place_of(system: AbstractSystem, batch: int, seed: int) -> Place:
    """A system of the caller, at rest: backpropagation gives the answer. Raises UserError where it never rests."""
    place = Place(system.name, drawn(system, batch, seed), max(SETTLED, LONGER * int(system.defaults.get("T1") or 0)))
    residual = unrest(place.field, place.settled.ends[0])
    if not residual <= STILL:
        told = f"after {place.steps} steps {system.name!r} still moves by {residual:.1e} a step"
        raise UserError(f"conform: on: {told}: no claim at a fixed point can be tried there")
    return place


def places(batch: int, seed: int) -> list[Place]:
    """Linear systems with a known answer, and the two toys at a live point."""
    small: dict[str, Any] = {"N": 3, "D": 8, "out": 5, "drive_std": 1.0, "bias_std": 0.3}
    systems = [
        SymmetricLinear(),
        SkewedLinear(),
        SkewedLinear(halved=True),
        ToyCons(**small),
        ToyNoncons(heads=2, **small),
    ]
    made = []
    for system in systems:
        field = drawn(system, batch, seed)
        if isinstance(system, ToyCons | ToyNoncons):
            field = replace(field, knobs=field.knobs._replace(damp=field.knobs.damp + 3.0))
        name = f"{system.name}, projected" if system.projects else system.name
        made.append(Place(name, field))
    return made


def estimate(rule: AbstractEstimator, free: Trajectory, T2: int, beta: float = SMALL) -> Params:
    """The estimate of a rule at one T1."""
    return {name: g[0, 0] for name, g in reading(rule, free, [beta], T2).gradient.items()}


def reading(rule: AbstractEstimator, free: Trajectory, betas: Sequence[float], T2: int) -> Reading:
    """What a rule makes of a trajectory at one depth. Raises ValueError where its phase does not stop there."""
    cells = free.ends.shape[1:-2]
    nudges = free.ends.new_tensor(betas if "beta" in rule.uses else [])
    nudges = nudges.reshape(-1, *[1] * len(cells)).expand(-1, *cells)
    wanted = T2 if "T2" in rule.uses else None
    for snapshot in rule.phase.run(free, () if wanted is None else (wanted,), nudges):
        if snapshot.depth == wanted:
            return rule.read(free, snapshot, nudges)
    raise ValueError(f"the phase gives no snapshot of depth {wanted}: it has to stop at every depth that is asked for")


def error(rule: AbstractEstimator, place: Place, *, settled: bool = True) -> float:
    """The relative error at the fixed point, or far from it."""
    free = place.settled if settled else place.transient
    return gap(estimate(rule, free, place.depth(rule)), place.known if settled else place.reference(free))


def rule_findings(rule: AbstractEstimator, tried_on: Sequence[Place]) -> Iterator[Finding]:
    """The findings of all checks of a rule."""
    declared = tried("what the rule declares can be read", partial(_declared, rule, tried_on))
    if declared.failed:
        yield declared
        return
    control = rule.role is Role.CONTROL
    fitting = [place for place in tried_on if not rule.skip(type(place.field.system))]
    if not fitting:
        reason = str(rule.skip(type(tried_on[0].field.system)))
        yield Finding("the rule applies to a system that it can be tried on", "none", math.nan, math.nan, reason)
        return
    first = next((p for p in fitting if isinstance(p.field.system, SkewedLinear)), fitting[0])
    needed: dict[str, Callable[[], Number]] = {
        "an estimate has the shapes of the parameters": partial(_shapes, rule, first),
        "the rule writes to nothing": partial(_unchanged, rule, first),
        "the same answer twice": partial(_repeatable, rule, first, fitting[-1]),
    }
    for finding in all_tried(needed.items(), needed=True):
        yield finding
    if finding.failed:
        yield Finding("all other checks", "none", math.nan, math.nan, f"mend this first: {finding.name}. {OTHER_STATE}")
        return
    further: dict[str, Callable[[], Number]] = {
        "several T1 and beta at once are each by itself": partial(_rows, rule, first),
        "several cells at once are each cell by itself": partial(_cells, rule, first),
        "examples add up": partial(_control if control else _examples, rule, first),
        "the credit is the adjoint of as many terms as it says": partial(_terms, rule, fitting),
    }
    yield from all_tried(further.items())
    for place in fitting:
        yield from all_tried(claim_checks(rule, place))
    yield from all_tried([("the order in beta is the claimed one", partial(order, rule, fitting))])


def claim_checks(rule: AbstractEstimator, place: Place) -> Iterator[tuple[str, Check]]:
    """Where a rule is exact, as it claims; where it claims nothing, the cosine."""
    claim = rule.claim
    if claim.exact is Exact.ALWAYS:
        yield f"exact on its way, on {place.name}", partial(_exact, rule, place, settled=False)
    if claim.exact in (Exact.ALWAYS, Exact.FIXED_POINT) or (claim.exact is Exact.SYMMETRIC and place.conservative):
        yield f"exact at rest, on {place.name}", partial(_exact, rule, place, settled=True)
    elif claim.exact is Exact.SYMMETRIC:
        yield f"claims all that it can, on {place.name}", partial(_modest, rule, place)
    else:
        yield f"cosine to the gradient, on {place.name}", partial(_cosine, rule, place)
        # random feedback points anywhere until training has turned the weights towards it
        if rule.role is not Role.CONTROL and rule.phase.departure is not Cause.JACOBIAN:
            yield f"points downhill, on {place.name}", partial(_downhill, rule, place)


def _exact(rule: AbstractEstimator, place: Place, *, settled: bool) -> Number:
    number = error(rule, place, settled=settled)
    bound = INSIDE if settled else OUTSIDE
    if number <= bound:
        return Number(number, bound)
    free = place.settled if settled else place.transient
    known = place.known if settled else place.reference(free)
    told = diagnosis(estimate(rule, free, place.depth(rule)), known, place, free)
    where = "at a fixed point" if settled else "at a state that is still on its way"
    return Number(number, bound, f"off by {number:.1e} {where}, where the rule claims to be exact. {told}".strip())


def _modest(rule: AbstractEstimator, place: Place) -> Number:
    number = error(rule, place)
    said = "the error where the Jacobian is not symmetric"
    if number > MODEST:
        return Number(number, None, said)
    return Number(number, None, f"{said}: it could claim more, Exact.FIXED_POINT")


def _cosine(rule: AbstractEstimator, place: Place) -> Number:
    got = estimate(rule, place.settled, place.depth(rule))
    e, r = (torch.cat([g[n].flatten() for n in place.known]) for g in (got, place.known))
    return Number(float(e @ r / (e.norm() * r.norm())), None, "the rule claims to be exact nowhere")


def _downhill(rule: AbstractEstimator, place: Place) -> Number:
    got = estimate(rule, place.settled, place.depth(rule))
    credited = (_credited(g, place.settled) for g in (got, place.known))
    e, r = (torch.cat([g[n].flatten() for n in place.known]) for g in credited)
    cosine = float(e @ r / (e.norm() * r.norm())) if float(e.norm()) else 0.0
    told = diagnosis(got, place.known, place, place.settled)
    return Number(
        -cosine, 0.0, f"the part that comes from the credit points uphill, cosine {cosine:.2f}. {told}".strip()
    )


def _credited(gradient: Params, free: Trajectory) -> Params:
    """A gradient without dC/dtheta: what the credit gives."""
    return {n: g - free.cost_grads[n][0] for n, g in gradient.items()}


def diagnosis(got: Params, known: Params, place: Place, free: Trajectory) -> str:
    """A wrong estimate in words: a factor of the credit and one of dC/dtheta, or the credit of J in place of J^T."""
    names = list(known)
    if any(got[n].shape != known[n].shape for n in names):
        return ""
    direct = torch.cat([free.cost_grads[n][0].flatten() for n in names])
    whole, e = (torch.cat([g[n].flatten() for n in names]) for g in (known, got))
    eps, b, e = float(place.field.knobs.eps), free.ends.shape[-2], e
    candidates = {"": whole - direct}
    if isinstance(place.field.system, SkewedLinear):
        wrong = answer(place.field, transposed=False)
        candidates["the Jacobian is transposed: J stands where J^T belongs"] = (
            torch.cat([wrong[n].flatten() for n in names]) - direct
        )
    for words, credit in candidates.items():
        columns = torch.stack([v for v in (credit, direct) if float(v.norm())], -1)
        weights = torch.linalg.lstsq(columns, e[:, None]).solution[:, 0]
        if not float((columns @ weights - e).norm()) <= MIXED * float(e.norm().clamp(min=float(whole.norm()))):
            continue
        told = [words] if words else []
        factor, direct_factor = float(weights[0]), float(weights[1]) if len(weights) > 1 else 1.0
        if not math.isclose(factor, 1, rel_tol=MIXED):
            told.append(f"the credit {told_ratio(_rounded(factor, eps, b), eps, b)}")
        if not math.isclose(direct_factor, 1, rel_tol=MIXED, abs_tol=MIXED):
            times = {0: "is missing: add it once", 2: "is counted twice"}.get(round(direct_factor), "")
            exact = math.isclose(direct_factor, round(direct_factor), rel_tol=MIXED, abs_tol=MIXED)
            told.append(f"dC/dtheta {times if exact and times else f'is counted {direct_factor:.3g} times'}")
        return "; ".join(told)
    return ""


def _rounded(factor: float, eps: float, b: int) -> float:
    """A factor, moved onto the known one that it is within MIXED of."""
    known = (-1.0, eps, 1 / eps, 1 / b, float(b), -eps, -1 / eps)
    return next((v for v in known if math.isclose(factor, v, rel_tol=MIXED)), factor)


def order(rule: AbstractEstimator, tried_on: Sequence[Place]) -> Number:
    """How far the order of the error in beta is from the claim, on the toy at which the rule is exact.

    There a finite nudge is all that is wrong.
    """
    claim = rule.claim
    if claim.order is None:
        raise NotTriedError("the rule claims no order in beta")
    symmetric = claim.exact is Exact.SYMMETRIC
    kind = ToyCons if symmetric else ToyNoncons
    place = next((p for p in tried_on if isinstance(p.field.system, kind)), None)
    if place is None:
        raise NotTriedError(f"it is read on {kind.name}")
    # where the order is high, nudges at which the error is as far above round-off as that of order 2
    betas = [beta ** min(1.0, 2.5 / claim.order) for beta in BETAS]
    errors = [gap(estimate(rule, place.settled, place.depth(rule), beta), place.known) for beta in betas]
    if not all(errors):
        raise NotTriedError("the estimate has no error at any beta")
    slope = math.log(errors[0] / errors[-1]) / math.log(betas[0] / betas[-1])
    told = ", ".join(f"{e:.1e} at beta = {beta:.3g}" for beta, e in zip(betas, errors, strict=True))
    return Number(
        abs(slope - claim.order), ORDER, f"the error falls as beta^{slope:.2f}, the claim is {claim.order}: {told}"
    )


def _declared(rule: AbstractEstimator, tried_on: Sequence[Place]) -> Number:
    """Claim, role, coordinates and what is skipped; a name in `uses` is T2 or beta."""
    rule.claim.prose(rule.uses)
    rule.phase.count(TRANSIENT, TRANSIENT if "T2" in rule.uses else None)
    for place in tried_on:
        rule.skip(type(place.field.system))
    wrong = sorted({*rule.uses} - {"T2", "beta"}) + [str(rule.role)] * (not isinstance(rule.role, Role))
    return Number(len(wrong), 0, f"uses is of T2 and beta, and role is a Role: got {', '.join(wrong)}")


def _shapes(rule: AbstractEstimator, place: Place) -> Number:
    free, betas = place.transient, (0.1, 0.05)
    read = reading(rule, free, betas, TRANSIENT // 2)
    j = len(betas) if "beta" in rule.uses else 1
    wrong = [f"no gradient of {n}" for n in place.field.theta if n not in read.gradient]
    for name, g in read.gradient.items():
        expected = (1, j, *place.field.system.shapes.get(name, ()))
        if tuple(g.shape) != expected:
            wrong.append(f"the gradient of {name} has shape {tuple(g.shape)}, expected {expected}")
        elif not bool(g.isfinite().all()):
            wrong.append(f"the gradient of {name} is not finite")
    if read.credit is not None and tuple(read.credit.shape) != (1, j, *free.ends.shape[1:]):
        wrong.append(f"the credit has shape {tuple(read.credit.shape)}, expected {(1, j, *free.ends.shape[1:])}")
    return Number(len(wrong), 0, "; ".join(wrong))


def _unchanged(rule: AbstractEstimator, place: Place) -> Number:
    free = relax(place.field, (TRANSIENT,))
    seen = {"the end states": free.ends, "the states of the free phase": free.states, "dC/ds": free.cost_slope}
    seen |= {f"the parameter {n!r}": p for n, p in free.field.theta.items()}
    seen |= {f"the data {n!r}": v for n, v in free.field.x.items()}
    seen |= {f"dC/d{n}": g for n, g in free.cost_grads.items()}
    before = {n: v.clone() for n, v in seen.items()}
    reading(rule, free, (0.1,), TRANSIENT // 2)
    wrong = [n for n, v in seen.items() if not torch.equal(v, before[n])]
    for name, v in seen.items():
        v.copy_(before[name])
    return Number(len(wrong), 0, f"the rule writes to {', '.join(wrong)}: write to a copy, as x.clone()")


def _repeatable(rule: AbstractEstimator, place: Place, other: Place) -> Number:
    first = estimate(rule, place.transient, TRANSIENT // 2, 0.1)
    estimate(rule, other.transient, TRANSIENT // 2, 0.1)
    again = estimate(rule, place.transient, TRANSIENT // 2, 0.1)
    wrong = [n for n, g in first.items() if not torch.equal(g, again[n])]
    if not wrong:
        return Number(0, 0)
    torch.manual_seed(0)
    first = estimate(rule, place.transient, TRANSIENT // 2, 0.1)
    torch.manual_seed(0)
    again = estimate(rule, place.transient, TRANSIENT // 2, 0.1)
    random = all(torch.equal(g, again[n]) for n, g in first.items())
    why = "it draws from the global generator" if random else "something is kept between calls"
    return Number(len(wrong), 0, f"two estimates of {', '.join(wrong)} from the same free phase differ: {why}")


def _rows(rule: AbstractEstimator, place: Place) -> Number:
    T1s, betas = (TRANSIENT, 2 * TRANSIENT), (0.05, 0.1)
    together = reading(rule, relax(place.field, T1s), betas, TRANSIENT // 2).gradient
    numbers: dict[str, float] = {}
    for i, T1 in enumerate(T1s):
        for j, beta in enumerate(betas if "beta" in rule.uses else betas[:1]):
            single = estimate(rule, relax(place.field, (T1,)), TRANSIENT // 2, beta)
            numbers |= {f"{n} at row {i}, column {j}": apart(together[n][i, j], g) for n, g in single.items()}
    name, number = worst(numbers.items())
    return Number(
        number, SAME, f"the gradient of {name}, of several T1 and beta at once, is not that of each by itself"
    )


def _cells(rule: AbstractEstimator, place: Place) -> Number:
    one = place.field
    other = replace(
        one, theta={n: 0.9 * p for n, p in one.theta.items()}, knobs=one.knobs._replace(eps=0.5 * one.knobs.eps)
    )
    together = reading(rule, relax(Stack.of([one, other]), (TRANSIENT,)), (0.1,), TRANSIENT // 2).gradient
    numbers: dict[str, float] = {}
    for c, field in enumerate((one, other)):
        single = estimate(rule, relax(field, (TRANSIENT,)), TRANSIENT // 2, 0.1)
        numbers |= {f"{n} of cell {c}": apart(together[n][0, 0, c], g) for n, g in single.items()}
    name, number = worst(numbers.items())
    return Number(
        number,
        SAME,
        f"the gradient of {name}, of several cells at once as the batched engine takes them, is not that of each",
    )


def _control(rule: AbstractEstimator, place: Place) -> Number:
    raise NotTriedError("a control is made from the reference of the whole batch")


def _examples(rule: AbstractEstimator, place: Place) -> Number:
    """The estimate of a batch is the sum of those of its examples, at the end of the second phase."""
    free, b = place.settled, place.settled.ends.shape[-2]
    whole, field, T2 = estimate(rule, free, place.depth(rule), 0.1), place.field, place.depth(rule)
    summed = {n: torch.zeros_like(g) for n, g in whole.items()}
    for i in range(b):
        x = {n: v[i : i + 1] if n in field.system.per_example else v for n, v in field.x.items()}
        for n, g in estimate(rule, relax(replace(field, x=x), free.T1s), T2, 0.1).items():
            summed[n] += g
    number = gap(whole, summed)
    told = ""
    if number > SAME and b > 1:
        e, r = (torch.cat([_credited(g, free)[n].flatten() for n in summed]) for g in (whole, summed))
        ratio = float(e @ r / (r @ r)) if float(r.norm()) else math.nan
        if float((e - ratio * r).norm()) <= MIXED * float(r.norm()):
            told = f": the credit {told_ratio(_rounded(ratio, float(field.knobs.eps), b), float(field.knobs.eps), b)}"
    return Number(
        number,
        SAME,
        f"the estimate of a batch is not the sum of those of its examples{told or ': examples are coupled'}",
    )


def _terms(rule: AbstractEstimator, tried_on: Sequence[Place]) -> Number:
    """Where the linearised phase of the rule is the adjoint, its estimate is that of the adjoint with as many terms."""
    T2, numbers, told = 3, {}, {}
    terms = rule.terms(T2 if "T2" in rule.uses else None) if rule.phase.departure is Cause.READOUT else None
    for place in tried_on:
        linear, free = place.field.system, place.settled
        if terms is None or isinstance(linear, ToyCons | ToyNoncons):
            continue
        if isinstance(linear, SymmetricLinear | SkewedLinear):
            if linear.projects:
                continue
        elif rule.phase.linearises:  # on a system that is not linear a nudged phase is no adjoint
            continue
        if rule.phase.step_size_key is not None:
            continue
        if isinstance(linear, SkewedLinear) and rule.phase.linear_key(linear) is not None:
            continue
        expected = estimate_of(Adjoint(), free, terms, None)
        got = estimate(rule, free, T2)
        numbers[place.name], told[place.name] = gap(got, expected), diagnosis(got, expected, place, free)
    if not numbers:
        why = "the rule does not say how many terms of the adjoint series its credit stands for"
        raise NotTriedError(why if terms is None else "of a rule that nudges it is read on linear systems")
    name, number = worst(numbers.items())
    return Number(
        number,
        INSIDE,
        f"it says {terms} terms, and is not the adjoint of {terms} terms on {name}. {told[name]}".strip(),
    )
