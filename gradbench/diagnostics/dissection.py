"""A rule that the package knows nothing of, taken apart at one state: from the adjoint series to what it returned.

  rung                  what the credit is                                            cause of the step to it
  adjoint, k terms      as many terms as the simplest hypothesis that holds has       truncation
  J for J^T ...         the map that it has                                           asymmetry, readout
  damped, weighted      the weights that it has                                       damping, weights
  times c               the common factor that it has                                 sign, scale
  the rule              the rule at a nudge, or dC/ds, too small to bend it           another Jacobian, not taken apart
  dC/ds as it is        where it is linear in a smaller dC/ds alone                   nonlinearity, clip
  beta, drift           a finite nudge                                                nonlinearity, transient
  readout               the gradient that it returned                                 projection or readout
  as drawn              as many draws as the cell has                                 variance
  as rounded            in the precision that its code goes down to                   precision

Where no hypothesis holds, the rule is asked what it makes of other dC/ds. What is linear in it and no polynomial of J_G
goes by another Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.hypotheses import OF_KIND, SPACES, TIERS, Hypothesis, Search, Spaces, View
from gradbench.diagnostics.neumann import adjoint_credit
from gradbench.diagnostics.widened import Widened
from gradbench.dynamics.field import Field
from gradbench.errors import RuleFaultError
from gradbench.estimators.base import Role, Snapshot, along, reading_at
from gradbench.estimators.phases.nudged import HEARD, SMALL
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.estimators.implicit import Solution
    from gradbench.systems.base import Params

LIMITED = 1e-5  # what the limit of beta -> 0 may be off by, of the credit
DRIFTS = 10  # times the limit: what the drift of a state over a small beta may be
REGULAR = 0.05  # of the limit: what a small beta may still add to it
MANY = 4  # times the draws of a rule, to tell what they leave
UNDECLARED = 64  # draws of a rule that does not say how many it wants
BATCHES = 4  # in which they are taken, so that their means tell the standard error
CHANCE = 1.5  # times the standard error: what a hypothesis may leave by chance
STANDARD_ERRORS = 3  # by which a mean of draws may be off
CLEAR = 0.3  # of a mean: the largest standard error with which it says anything
LINEAR = 1e-7  # share by which f(g + h) may differ from f(g) + f(h) where f is linear
SIGNAL = 1e-3  # share of dC/ds that stands for a small one
SMOOTH = 1e-2  # share by which f(x g) / x may still change with x there
EXACT = 1e-9  # the same of a rule that is linear there and has a corner beyond, as a clip has
# from f(x), f(2x), f(4x) to c, d / x and e x of f(x) = c + d / x + e x; and to c, d x and e x^2 of a polynomial
TOWARDS_ZERO = np.linalg.inv(np.array([[1, 1 / k, k] for k in (1, 2, 4)]))
POLYNOMIAL = np.linalg.inv(np.array([[1, k, k**2] for k in (1, 2, 4)]))
NARROW = 1e-4  # what the hypotheses may leave of a rule that runs in float32 alone


@dataclass(frozen=True, eq=False)
class Part:
    """A gradient between the adjoint and the estimate, and the credit that it comes from."""

    name: str
    cause: Cause  # of the difference from the part before
    gradient: Params
    credit: Float[Tensor, "b n"] | None = None


class Dissection(NamedTuple):
    """The rungs of a rule in float64, from an adjoint series to the estimate."""

    terms: int | None  # of the series; None: it has no end
    parts: tuple[Part, ...]
    last: Cause  # of the difference from the last part to a further run of the rule


def opaque(rule: AbstractEstimator, T2: int | None) -> bool:
    """Whether a rule says too little of its second phase for its error to be taken apart by what it says."""
    told = rule.sole_cause(T2) is not None or (rule.terms(T2) is not None and not rule.phase.hints)
    return rule.role is Role.RULE and not rule.truncates and not told


class Returned(NamedTuple):
    """What a rule returned at one state, in float64."""

    credit: Float[Tensor, "b n"] | None
    gradient: Params

    def finite(self) -> bool:
        """Whether all numbers are."""
        return all(bool(g.isfinite().all()) for g in self.gradient.values())


def combined(returned: Sequence[Returned], weights: Sequence[float]) -> Returned:
    """A linear combination."""
    credits = [r.credit for r in returned]
    credit = None
    if all(c is not None for c in credits):
        credit = sum(w * c for w, c in zip(weights, credits, strict=True) if c is not None)
    gradient = {n: sum(w * r.gradient[n] for w, r in zip(weights, returned, strict=True)) for n in returned[0].gradient}
    return Returned(credit, gradient)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Sloped(Field):
    """A field whose cost has a constant slope: what a rule makes of another dC/ds."""

    slope: Tensor = field(kw_only=True)

    def cost_slope(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds, as it was given."""
        return self.slope.expand_as(s)


@dataclass(eq=False)
class State:
    """One free state of one cell in float64, and what all rules at it share.

    `narrow` gives the same state in the dtype of the cell.
    """

    free: Trajectory
    answer: Solution  # of the adjoint series without an end
    narrow: Callable[[], Trajectory] | None = None
    _dissections: dict[object, Dissection] = field(default_factory=dict)

    @cached_property
    def limit(self) -> Float[Tensor, "b n"]:
        """The credit of the series without an end; of T1 terms where the solve has failed."""
        known = bool(self.answer.solved.all()) or not self.free.T1s[0]
        return self.answer.credit[0] if known else self.series(self.free.T1s[0])

    @cached_property
    def spaces(self) -> Spaces:
        """What the hypotheses are about."""
        return Spaces(self.free, self.limit)

    def gradient(self, credit: Float[Tensor, "b n"]) -> Params:
        """That of a credit."""
        return {n: g[0, 0] for n, g in along(self.free, Snapshot(None), credit[None, None]).gradient.items()}

    def series(self, terms: int | None) -> Float[Tensor, "b n"]:
        """The credit of the adjoint with so many terms."""
        return self.limit if terms is None else adjoint_credit(self.free, terms)[0]

    def dissection(self, rule: AbstractEstimator, T2: int | None, beta: float | None) -> Dissection:
        """The rungs of a rule here."""
        key = (rule, T2, beta)
        if key not in self._dissections:
            self._dissections[key] = _Taking(self, rule, T2, beta).apart()
        return self._dissections[key]


class _Runs:
    """A rule, run at a state in float64: with other slopes of the cost, beta, depths and draws."""

    def __init__(self, state: State, rule: AbstractEstimator, T2: int | None) -> None:
        self.state, self.rule, self.T2 = state, rule, T2
        self.free = state.free
        self.wide = True  # whether the code of the rule is kept from rounding
        self.floor = 0.0  # share of what it returns that is round-off
        self.batches: tuple[range, ...] = ()  # of draws, of whose means the mean is taken; none: those of the rule

    def settle(self, beta: float | None) -> Returned:
        """A first run, in as high a precision as the rule works in. Raises RuleFaultError where it works in none."""
        try:
            return self(beta)
        except RuleFaultError:
            self.wide = False
        try:
            return self(beta)
        except RuleFaultError:
            if self.state.narrow is None:
                raise
        self.free, self.floor = self.state.narrow(), NARROW
        return self(beta)

    def __call__(self, beta: float | None, slope: Tensor | None = None, T2: int | None = None) -> Returned:
        """What the rule returns."""
        if not self.batches:
            return self.once(beta, slope, T2)
        means = [self.once(beta, slope, T2, draws) for draws in self.batches]
        return combined(means, [1 / len(means)] * len(means))

    def once(
        self,
        beta: float | None,
        slope: Tensor | None = None,
        T2: int | None = None,
        draws: range = range(0),
        *,
        wide: bool | None = None,
    ) -> Returned:
        """The same for some draws; `wide` says otherwise than the rest of the runs."""
        free, T2 = self.free, self.T2 if T2 is None else T2
        if slope is not None:
            old = free.field
            sloped = Sloped(old.system, old.theta, old.x, old.knobs, seeds=old.seeds, slope=slope.to(free.ends))
            free = replace(free, field=sloped, _views={})
        phase = self.rule.phase.drawn(draws) if len(draws) else None

        def read() -> Returned:
            reading = reading_at(self.rule, free, T2, beta, phase)
            credit = None if reading.credit is None else reading.credit[0, 0].double()
            return Returned(credit, {n: g[0, 0].double() for n, g in reading.gradient.items()})

        if not (self.wide if wide is None else wide):
            return read()
        try:
            with Widened():
                return read()
        except RuntimeError as error:  # the code of the package that reads it meets what no rule is told of
            raise RuleFaultError(f"{self.rule.name}: {error}") from error


class _Taking:
    """One rule at one state, T2 and beta, on the way to its rungs."""

    def __init__(self, state: State, rule: AbstractEstimator, T2: int | None, beta: float | None) -> None:
        self.state, self.rule, self.T2, self.beta = state, rule, T2, beta
        self.run = _Runs(state, rule, T2)
        self.spread = 0.0  # standard error of what the hypotheses are held to, over its size
        self.views: tuple[View, ...] = ()

    def apart(self) -> Dissection:
        """The rungs."""
        drawn = self.run.settle(self.beta)
        plain = self._plain(drawn)
        draws = self.rule.draws > 1 or plain is None
        last = Cause.VARIANCE if plain is None else Cause.PRECISION  # nobody hands to it what it draws
        ends = [("as drawn", Cause.VARIANCE, drawn)] if self.rule.draws or draws else []
        if plain is not None and not _equal(plain, drawn):
            ends.append(("as rounded", Cause.PRECISION, plain))
        if not drawn.finite():
            k = self._declared()
            return Dissection(k, (self._adjoint(k), *self._last(drawn, Cause.UNKNOWN, ends)), last)
        mean = self._mean(drawn, MANY * self.rule.draws or UNDECLARED) if draws else drawn
        self.views = self._views(mean, draws=draws)
        limit, of_beta = self._limit(mean)
        answer = self._answer(limit, of_beta=bool(of_beta))
        if answer.hypothesis is None and not draws and self.rule.draws:
            # it takes numbers that are drawn, and says of no number of draws that its estimate is their mean
            averaged = self._averaged(drawn, limit)
            if averaged is not None:
                answer, mean, of_beta = averaged
        parts = self._parts(answer, mean, of_beta, ends)
        return Dissection(answer.terms, tuple(parts), last)

    # what the rule returns

    def _plain(self, drawn: Returned) -> Returned | None:
        """The rule with its rounding; None where two calls differ, so that it draws what nobody hands to it."""
        try:
            plain = self.run.once(self.beta, wide=False)
            if _equal(plain, drawn):
                return plain
            return plain if _equal(plain, self.run.once(self.beta, wide=False)) else None
        except RuleFaultError:
            return drawn

    def _mean(self, drawn: Returned, count: int) -> Returned:
        """The mean over many draws, whose standard error is noted; `drawn` is one of the row, which may count."""
        declared = self.rule.draws
        if declared:
            self.run.batches = tuple(range(i * count // BATCHES, (i + 1) * count // BATCHES) for i in range(BATCHES))
        else:  # nothing is handed to it: every call draws
            self.run.batches = tuple(range(i, i + 1) for i in range(count))
        known = {range(declared): drawn}
        means = [known.get(batch) or self.run.once(self.beta, draws=batch) for batch in self.run.batches]
        mean = combined(means, [1 / len(means)] * len(means))
        lens = self.state.spaces.lens(self._views(mean, draws=True)[0])
        values = torch.stack([lens.value(r.credit, r.gradient) for r in means])
        size = float((values.mean(0) - lens.direct).norm())
        error = float(values.std(0).norm()) / math.sqrt(len(values))
        self.spread = error / size if size > 0 else math.inf
        return mean

    def _views(self, r: Returned, *, draws: bool) -> tuple[View, ...]:
        """In what the hypotheses are tried: in its credit where it has one; where it draws, in no parts."""
        if draws:
            return ("gradient",) if r.credit is None else ("credit",)
        return ("parameters",) if r.credit is None else ("blocks", "samples")

    def _limit(self, mean: Returned) -> tuple[Returned, list[tuple[str, Cause, Returned]]]:
        """What the rule tends to as beta -> 0, and the rungs from there to beta: the nudge, then the drift.

        f(x) = limit + drift / x + slope x, at x, 2x and 4x: the response of a state that had not settled moves by its
        drift over beta. A rule that is proportional to beta, or has no limit, is taken at its beta.
        """
        if self.beta is None:
            return mean, []
        x = self._small(mean)
        if not 0 < 4 * x < self.beta:
            return mean, []
        runs = [self.run(x * k) for k in (1, 2, 4)]
        if not all(r.finite() for r in runs):
            return mean, []
        limit, drift, slope = (combined(runs, row.tolist()) for row in TOWARDS_ZERO)
        lens = self.state.spaces.lens(self.views[0])
        zero = self._without(mean)
        sizes = [float((lens.value(r.credit, r.gradient) - o * lens.direct).norm()) for r, o in
                 ((limit, 1), (drift, 0), (slope, 0))]  # fmt: skip
        share = x / self.beta
        if sizes[2] > sizes[0] / REGULAR and sizes[1] <= REGULAR * sizes[2]:  # f = slope x: no division by beta
            proportional = combined(runs, POLYNOMIAL[1].tolist())
            limit = combined((zero, proportional), (1, 1 / share))
            return limit, [("beta", Cause.NONLINEARITY, mean)]
        if not (sizes[2] <= REGULAR * sizes[0] and sizes[1] <= DRIFTS * sizes[0]):
            return mean, []
        if float((lens.value(drift.credit, drift.gradient)).norm()) * share <= TIERS[0] * sizes[0]:
            return limit, [("beta", Cause.NONLINEARITY, mean)]
        return limit, [
            ("beta", Cause.NONLINEARITY, combined((mean, drift), (1, -share))),
            ("with the drift", Cause.TRANSIENT, mean),
        ]

    def _without(self, like: Returned) -> Returned:
        """No credit."""
        direct = {n: g[0] for n, g in self.state.free.cost_grads.items()}
        return Returned(None if like.credit is None else 0 * like.credit, direct)

    def _small(self, mean: Returned) -> float:
        """A beta that moves the state by SMALL of |s*|, and is heard over round-off."""
        free = self.state.free
        s, g = float(free.ends.norm()), float((free.field.step_size * free.cost_slope).norm())
        size = float((self.state.limit if mean.credit is None else mean.credit).norm())
        least = SMALL * s / max(size, float(self.state.limit.norm()), 1e-300)
        eps = torch.finfo(self.run.free.ends.dtype).eps
        return max(least, HEARD * eps * s / max(g, 1e-300))

    # what holds for it

    def _declared(self) -> int | None:
        """How many terms the rule says that it has."""
        return self.rule.terms(self.T2)

    def _lengths(self) -> list[int | None]:
        declared = self._declared()
        T1 = self.state.free.T1s[0]
        return [*([declared] if declared is not None else []), *([self.T2] if self.T2 is not None else []), None, T1]

    def _answer(self, limit: Returned, *, of_beta: bool) -> _Answer:
        """The simplest hypothesis about what a rule tends to, or why there is none."""
        floor = max(self.run.floor, CHANCE * self.spread)
        if self.spread > CLEAR:
            return _Answer(None, self._declared(), limit, Cause.UNKNOWN)
        tiers = [max(tier, floor, LIMITED if of_beta else 0.0) for tier in TIERS]
        searches = {view: self._search(view, limit) for view in self.views}
        first = searches[self.views[0]]
        if holds := self._held(searches, tiers[0]):
            return _Answer(holds[1], holds[1].terms, limit, self._remainder(holds[1]), holds[0])
        if not floor and (probed := self._probed(limit)):
            return probed
        for tier in tiers[1:]:
            if h := first.simplest(tier):
                return _Answer(h, h.terms, limit, self._remainder(h), first)
        return _Answer(None, self._declared(), limit, Cause.UNKNOWN)

    def _search(self, view: View, r: Returned) -> Search:
        lens = self.state.spaces.lens(view)
        known = self.T2 is not None or self._declared() is not None
        return Search(lens, lens.value(r.credit, r.gradient), self._lengths(), known=known)

    def _held(self, searches: Mapping[View, Search], tier: float) -> tuple[Search, Hypothesis] | None:
        """A hypothesis within the tier, of the whole or of most parts of it."""
        for i, search in enumerate(searches.values()):
            if not i and (h := search.simplest(tier)):
                return search, h
            if h := search.in_part(tier):
                return search, h
        return None

    def _remainder(self, h: Hypothesis) -> Cause:
        """What is to blame for what a hypothesis leaves: chance, where there are draws."""
        if self.spread:
            return Cause.VARIANCE
        return Cause.READOUT if h.parts else Cause.UNKNOWN

    def _probed(self, limit: Returned) -> _Answer | None:
        """What other slopes of the cost tell: an offset, a Jacobian, a signal that is too large."""
        beta, g = self._probing(), self.state.free.cost_slope[0]
        h = normal(Streams(0)["probe of a rule"], tuple(g.shape)).to(g)
        h = h * (g.norm() / h.norm())
        try:
            there, back, both, other = (self.run(beta, slope) for slope in (g, -g, g + h, h))
        except RuleFaultError:
            return self._of_terms(limit, linear=False)
        if not all(r.finite() for r in (there, back, both, other)):
            return self._of_terms(limit, linear=False)
        lens = self.state.spaces.lens(self.views[0])

        def size(*returned: Returned, weights: Sequence[float]) -> float:
            r = combined(returned, weights)
            return float(lens.value(r.credit, r.gradient).norm())

        zero = combined((there, back), (0.5, 0.5))
        scale = size(there, zero, weights=(1, -1))
        if scale <= TIERS[0] * size(there, weights=(1,)):  # it does not go by dC/ds
            return self._of_terms(limit, linear=False)
        scale += size(other, zero, weights=(1, -1))
        linear = size(both, other, there, zero, weights=(1, -1, -1, 1)) <= LINEAR * scale
        none = self._without(zero)
        if linear and size(zero, none, weights=(1, -1)) > TIERS[0] * scale:
            if of_terms := self._of_terms(limit, linear=False):
                return of_terms
            cleared = combined((limit, zero, none), (1, -1, 1))
            if holds := self._held({v: self._search(v, cleared) for v in self.views}, TIERS[0]):
                cause = Cause.READOUT if limit.credit is None else Cause.UNKNOWN
                cause = Cause.VARIANCE if self.rule.draws else cause
                then = (("offset", cause, limit),)
                return _Answer(holds[1], holds[1].terms, cleared, self._remainder(holds[1]), holds[0], then)
        if linear:
            return self._of_terms(limit, linear=True) or _Answer(None, self._declared(), limit, Cause.JACOBIAN)
        return self._little(limit, beta, scale) or self._of_terms(limit, linear=False)

    def _little(self, limit: Returned, beta: float | None, scale: float) -> _Answer | None:
        """What the rule makes of a small dC/ds, where it is linear in it: then what bends it is that dC/ds is large."""
        g, x, lens = self.state.free.cost_slope[0], SIGNAL, self.state.spaces.lens(self.views[0])
        try:
            pairs = [[self.run(beta, sign * k * x * g) for sign in (1, -1)] for k in (1, 2)]
        except RuleFaultError:
            return None
        slopes = [combined(pair, (0.5 / (k * x), -0.5 / (k * x))) for k, pair in zip((1, 2), pairs, strict=True)]
        # |x|, as of noise in proportion to dC/ds, has a slope that this would take for none
        even = combined((*pairs[1], *pairs[0]), (1 / x, 1 / x, -1 / x, -1 / x))
        if not float(lens.value(even.credit, even.gradient).norm()) <= SMOOTH * scale:
            return None
        moved = combined(slopes, (1, -1))
        changed = float(lens.value(moved.credit, moved.gradient).norm())
        signal = combined((*slopes, self._without(limit)), (4 / 3, -1 / 3, 1))
        gone = combined((limit, signal), (1, -1))
        bent = float(lens.value(gone.credit, gone.gradient).norm())
        if not (math.isfinite(changed) and changed <= SMOOTH * scale and bent > LINEAR * scale):
            return None  # rough, or not additive at any size of dC/ds
        searches = {v: self._search(v, signal) for v in self.views}
        holds = self._held(searches, LIMITED)
        if holds is None:  # a state that drifts has Jacobians of its own on the way
            first = searches[self.views[0]]
            h = next((h for tier in TIERS[1:] if (h := first.simplest(tier))), None)
            holds = None if h is None else (first, h)
        if holds is None:
            return None
        bends = Cause.CLIP if changed <= EXACT * scale else Cause.NONLINEARITY
        then = (("dC/ds as it is", bends, limit),)
        return _Answer(holds[1], holds[1].terms, signal, self._remainder(holds[1]), holds[0], then)

    def _probing(self) -> float | None:
        """The beta at which other slopes are tried: a small one, where the rule has a limit."""
        if self.beta is None:
            return None
        x = self._small(self._without(Returned(self.state.limit, {})))
        return x if 0 < 4 * x < self.beta else self.beta

    def _of_terms(self, limit: Returned, *, linear: bool) -> _Answer | None:
        """What the first two terms of a rule with T2 tell.

        Where the first is right, only the Jacobian of the others can be wrong, if the rule is linear; where the second
        follows from a first one that is wrong, the cost is another one.
        """
        if self.T2 is None or self.T2 < 2 or limit.credit is None:
            return None
        beta = self._probing()
        try:
            first, second = (self.run(beta, T2=k) for k in (1, 2))
        except RuleFaultError:
            return None
        space = self.state.spaces[""]
        if first.credit is None or second.credit is None or not (first.finite() and second.finite()):
            return None
        factor = float((space.start * first.credit).sum() / space.start.square().sum())
        near = 1e3 * SMALL if beta is not None else TIERS[1]
        if float((first.credit - factor * space.start).norm()) <= near * float(first.credit.norm()):
            return _Answer(None, self.T2, limit, Cause.JACOBIAN) if linear else None
        left = second.credit - first.credit - space.product(first.credit)
        if float(left.norm()) <= near * float(second.credit.norm()):
            return _Answer(None, self.T2, limit, Cause.RULE)  # the series of J_G^T, of another cost
        return None

    def _averaged(
        self, drawn: Returned, limit: Returned
    ) -> tuple[_Answer, Returned, list[tuple[str, Cause, Returned]]] | None:
        """The same of the mean over many draws, where a hypothesis holds for it."""
        mean = self._mean(drawn, UNDECLARED)
        if self.spread <= CLEAR:
            self.views = self._views(mean, draws=True)
            limit, of_beta = self._limit(mean)
            search = self._search(self.views[0], limit)
            for tier in TIERS:
                h = search.simplest(max(tier, CHANCE * self.spread))
                if h is not None:
                    return _Answer(h, h.terms, limit, Cause.VARIANCE, search), mean, of_beta
        self.run.batches, self.spread = (), 0.0
        return None

    # the rungs

    def _adjoint(self, terms: int | None) -> Part:
        credit = self.state.series(terms)
        name = "adjoint, no end" if terms is None else f"adjoint, {terms} term{'' if terms == 1 else 's'}"
        return Part(name, Cause.TRUNCATION, self.state.gradient(credit), credit)

    def _parts(
        self,
        answer: _Answer,
        mean: Returned,
        of_beta: Sequence[tuple[str, Cause, Returned]],
        ends: Sequence[tuple[str, Cause, Returned]],
    ) -> Iterator[Part]:
        yield self._adjoint(answer.terms)
        h, search, spaces = answer.hypothesis, answer.search, self.state.spaces
        if h is not None and search is not None:
            if h.space:
                credit = spaces[h.space].credit("series", 1.0, h.terms)
                yield Part(h.space, SPACES[h.space], self.state.gradient(credit), credit)
            credit = search.credit(h)
            if h.kind != "series":
                yield Part(_named(h), OF_KIND[h.kind], self.state.gradient(credit), credit)
            if h.factor != 1:
                gradient = self.state.gradient(credit if h.whole else h.factor * credit)
                gradient = {n: h.factor * g for n, g in gradient.items()} if h.whole else gradient
                cause = Cause.SIGN if h.factor < 0 else Cause.SCALE
                yield Part(f"times {h.factor:.6g}", cause, gradient, None if h.whole else h.factor * credit)
        shown = [("the rule", answer.cause, answer.value), *answer.then, *of_beta]
        credits = all(r.credit is not None for _, _, r in shown)
        if credits:
            for name, cause, r in shown:
                assert r.credit is not None
                yield Part(name, cause, self.state.gradient(r.credit), r.credit)
        else:
            for name, cause, r in shown:
                yield Part(name, cause, r.gradient)
        yield from self._last(mean, Cause.READOUT, ends)

    def _last(self, mean: Returned, cause: Cause, ends: Sequence[tuple[str, Cause, Returned]]) -> Iterator[Part]:
        yield Part("readout", cause, mean.gradient)
        for name, changed, r in ends:
            yield Part(name, changed, r.gradient)


@dataclass(frozen=True, eq=False)
class _Answer:
    """What is said of a rule: a hypothesis or none, and what the rest of it is called."""

    hypothesis: Hypothesis | None
    terms: int | None
    value: Returned  # what the hypothesis is about
    cause: Cause  # of what it leaves
    search: Search | None = None
    then: tuple[tuple[str, Cause, Returned], ...] = ()  # rungs from there to the limit of a small nudge


def _named(h: Hypothesis) -> str:
    if h.kind in ("damped", "decayed"):
        return f"{h.kind} by {h.value:.6g}"
    return f"lambda = {h.value:.6g}" if h.kind == "relaxed" else f"weights, {h.terms} terms"


def _equal(a: Returned, b: Returned) -> bool:
    """Whether two runs gave the same numbers."""
    return all(torch.equal(a.gradient[n], b.gradient[n]) for n in a.gradient)
