"""Every rule on the linear system, whose value is known: matrix powers and linear solves in place of steps."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
import torch
from live import live_field
from test_claims import RULES
from torch import Tensor

from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.dynamics.solvers import WINDOW
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.base import AbstractEstimator, Exact, Role, reading_at
from gradbench.planning import registry

NAME, T1, T2, BETA = "linear", 12, 5, 0.3
SMALL = 0.03  # a nudge that leaves the nudged system stable
Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Known:
    """The matrices of the system after T1 free steps; rows of `s`, `g` and `u` are examples."""

    field: Field
    T1: int

    def __getattr__(self, name: str) -> Tensor:
        return {**self.field.theta, **self.field.x}[name]

    @cached_property
    def y(self) -> Tensor:
        return torch.eye(len(self.P), dtype=self.P.dtype)[self.label]

    @property
    def eps(self) -> float:
        return float(self.field.knobs.eps)

    @cached_property
    def M(self) -> Tensor:
        """J_G."""
        return torch.eye(len(self.W), dtype=self.W.dtype) + self.eps * self.W

    @cached_property
    def u(self) -> Tensor:
        return self.h + self.x @ self.B.mT

    @cached_property
    def rest(self) -> Tensor:
        return -torch.linalg.solve(self.W, self.u.mT).mT

    def at(self, t: int, start: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        """The state t steps of a matrix after a start, by default those of the free phase from 0."""
        s = torch.zeros_like(self.rest) if start is None else start
        return self.rest + (s - self.rest) @ torch.linalg.matrix_power(self.M if step is None else step, t).mT

    @cached_property
    def s(self) -> Tensor:
        return self.at(self.T1)

    def slope(self, s: Tensor) -> Tensor:
        return (s @ self.P.mT - self.y) @ self.P

    def pull(self, a: Tensor, s: Tensor) -> Gradient:
        return {"W": a.mT @ s, "h": a.sum(0), "B": a.mT @ self.x, "P": torch.zeros_like(self.P)}

    def whole(self, pulls: list[Gradient], end: Tensor) -> Gradient:
        """Pulls and dC/dtheta at an end state."""
        summed = {name: sum(pull[name] for pull in pulls) for name in self.field.theta}
        return {**summed, "P": (end @ self.P.mT - self.y).mT @ end}  # type: ignore[dict-item]

    def of(self, a: Tensor) -> Gradient:
        """The gradient of a credit at s_T1."""
        return self.whole([self.pull(a, self.s)], self.s)

    def reverse(self, first: int) -> Gradient:
        """Back through the free steps from `first` on."""
        powers = [torch.linalg.matrix_power(self.M, self.T1 - 1 - t) for t in range(first, self.T1)]
        steps = zip(range(first, self.T1), powers, strict=True)
        return self.whole([self.pull(self.eps * self.slope(self.s) @ power, self.at(t)) for t, power in steps], self.s)

    def series(self, lam: float, k: int) -> Tensor:
        """eps lam sum_{j<k} ((1 - lam) + lam M^T)^j g, as a quotient."""
        eye = torch.eye(len(self.W), dtype=self.W.dtype)
        D = (1 - lam) * eye + lam * self.M.mT
        right = (eye - torch.linalg.matrix_power(D, k)) @ self.slope(self.s).mT
        return self.eps * lam * torch.linalg.solve(eye - D, right).mT

    def nudged(self, b: complex, *, skew: bool, eps: float, k: int) -> Tensor:
        """The state after k steps along F - b dC/ds - 2 A (s - s_T1)."""
        K = self.W - b * (self.P.mT @ self.P) - (self.W - self.W.mT if skew else 0)
        push = (self.s @ self.W.mT + self.u - b * self.slope(self.s)).mT
        eye = torch.eye(len(K), dtype=K.dtype)
        power = torch.linalg.matrix_power(eye + eps * K, k)
        return self.s + torch.linalg.solve(K, (power - eye) @ push).mT

    def displaced(self, nudges: list[float], *, skew: bool, beta: float, k: int, eps: float | None = None) -> Tensor:
        """Minus the slope at 0 of the polynomial through the nudged states, and s_T1 if all nudges have one sign."""
        nodes = [n * beta for n in nudges] + ([] if sum(nudges) == 0 else [0.0])
        states = [self.nudged(b, skew=skew, eps=eps or self.eps, k=k) if b else self.s for b in nodes]
        weights = torch.from_numpy(np.linalg.inv(np.vander(np.array(nodes), increasing=True))[1])
        return -torch.einsum("k,k...->...", weights, torch.stack(states))

    def clipped(self, b: float, by: str) -> Tensor:
        """The nudged state whose correction is no longer than the force, step by step."""
        s = self.s
        for _ in range(T2):
            force, turned = s @ self.W.mT + self.u, (s - self.s) @ (self.W - self.W.mT).mT
            dims = (-2, -1) if by == "batch" else (-1,)
            sizes = [v.norm(dim=dims, keepdim=True) for v in (force, turned)]
            gain = ((sizes[0] + 1e-8) / sizes[1]).clamp(max=1.0)
            s = s + self.eps * (force - b * self.slope(s) - gain * turned)
        return s

    def krylov(self, k: int) -> Tensor:
        """a of the first k Krylov vectors with the least |g - (1 - M^T) a|, by example."""
        A = torch.eye(len(self.W), dtype=self.W.dtype) - self.M.mT
        rows = []
        for g in self.slope(self.s):
            V = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(A, j) @ g for j in range(k)], -1))[0]
            rows.append(V @ torch.linalg.lstsq(A @ V, g[:, None]).solution[:, 0] if k else torch.zeros_like(g))
        return torch.stack(rows)

    def bicgstab(self, k: int) -> Tensor:
        """The textbook recursion, by example."""
        A = (torch.eye(len(self.W), dtype=self.W.dtype) - self.M.mT).numpy()
        rows = []
        for g in self.slope(self.s).numpy():
            x, r, p = 0 * g, g, g
            for _ in range(k):
                v = A @ p
                alpha = (r @ g) / (v @ g)
                half = r - alpha * v
                omega = (A @ half @ half) / (A @ half @ (A @ half))
                x, after = x + alpha * p + omega * half, half - omega * (A @ half)
                p, r = after + (after @ g) / (r @ g) * alpha / omega * (p - omega * v), after
            rows.append(torch.from_numpy(x))
        return torch.stack(rows)


SIDES = {"centred": [1.0, -1.0], "positive": [1.0], "negative": [-1.0]}


def ep(k: Known, rule: Any) -> Gradient:
    eps = k.eps / len(k.x) if rule.reduction == "mean" else k.eps
    return k.of(k.displaced(SIDES[rule.nudge], skew=False, beta=BETA, k=T2, eps=eps))


def aep(k: Known, rule: Any) -> Gradient:
    if getattr(rule, "clip", "none") != "none":
        return k.of((k.clipped(-BETA, rule.clip) - k.clipped(BETA, rule.clip)) / (2 * BETA))
    return k.of(k.displaced(SIDES[rule.nudge], skew=True, beta=BETA, k=T2))


def richardson(k: Known, rule: Any) -> Gradient:
    nudges = [n * share for share in (1.0, 0.5) for n in SIDES[rule.nudge]]
    return k.of(k.displaced(nudges, skew=rule.correction == "asymmetric", beta=BETA, k=T2))


def holomorphic(k: Known, rule: Any) -> Gradient:
    """Every point of the circle by itself; the first Fourier coefficient of the states."""
    turns = [cmath.exp(2j * math.pi * j / rule.points) for j in range(rule.points)]
    states = [turn.conjugate() * k.nudged(turn * BETA, skew=False, eps=k.eps, k=T2) for turn in turns]
    return k.of(-torch.stack(states).mean(0).real / BETA)


def dyadic(k: Known, rule: Any) -> Gradient:
    """A power of the matrix of one step of (m, d, 1), example by example."""
    n, Q, share = len(k.W), k.P.mT @ k.P, 0.25 if rule.cost == "replicas" else 0.0
    rows = []
    for s, u, y in zip(k.s, k.u, k.y, strict=True):
        step = torch.zeros(2 * n + 1, 2 * n + 1, dtype=k.W.dtype)
        step[:n, :n], step[:n, n:-1], step[:n, -1] = k.M, -k.eps * BETA * share * Q, k.eps * u
        step[n:-1, :n], step[n:-1, n:-1], step[n:-1, -1] = -k.eps * BETA * Q, k.M.mT, k.eps * BETA * k.P.mT @ y
        step[-1, -1] = 1
        dyad = torch.cat((s, 0 * s, torch.ones(1, dtype=s.dtype)))
        rows.append(-(torch.linalg.matrix_power(step, T2) @ dyad)[n:-1] / BETA)
    return k.of(torch.stack(rows))


def phantom(k: Known, rule: Any) -> Gradient:
    if rule.form == "series":
        return k.of(k.series(rule.lam, T2))
    D = (1 - rule.lam) * torch.eye(len(k.W), dtype=k.W.dtype) + rule.lam * k.M
    end, pulls = k.at(T2, k.s, D), []
    for t in range(T2):
        a = k.slope(end) @ torch.linalg.matrix_power(D, T2 - 1 - t)
        pulls.append(k.pull(rule.lam * k.eps * a, k.at(t, k.s, D)))
    return k.whole(pulls, end)


def ift(k: Known, rule: Any) -> Gradient:
    assert T2 <= WINDOW  # up to there Anderson acceleration is a step from the iterate of GMRES: Walker & Ni 2011
    solves: dict[str, Callable[[], Tensor]] = {
        "gmres": lambda: k.krylov(T2),
        "bicgstab": lambda: k.bicgstab(T2),
        "anderson": lambda: k.slope(k.s) + k.krylov(T2 - 1) @ k.M,
    }
    return k.of(k.eps * solves[rule.linear_solver]())


def implicit(k: Known) -> Tensor:
    return -torch.linalg.solve(k.W.mT, k.slope(k.s).mT).mT


CLOSED: dict[str, Callable[[Known, Any], Gradient]] = {
    "bptt": lambda k, rule: k.reverse(0),
    "tbptt": lambda k, rule: k.reverse(k.T1 - T2),
    "adjoint": lambda k, rule: k.of(k.series(1, T2)),
    "jfb": lambda k, rule: k.of(k.eps * k.slope(k.s)),
    "rbp": lambda k, rule: k.of(k.series(rule.eta / k.eps, T2)),
    "phantom": phantom,
    "ift": ift,
    "ift_dense": lambda k, rule: k.of(implicit(k)),
    "ep": ep,
    "aep": aep,
    "aep_refreshed": aep,  # J is constant
    "richardson_ep": richardson,
    "holomorphic_ep": holomorphic,
    "dyadic_ep": dyadic,
}
DETERMINISTIC = [
    label
    for label, rule in RULES.items()
    if rule.role is not Role.CONTROL and not rule.draws and rule.skip(registry.known_systems()[NAME]) is None
]

CLAIMING = [
    label
    for label, rule in RULES.items()
    if rule.claim.exact is not None and rule.skip(registry.known_systems()[NAME]) is None
]


@cache
def field(**options: float) -> Field:
    return live_field(NAME, batch=3, **options)


def estimate(rule: AbstractEstimator, free: Trajectory, depth: int = T2, beta: float = BETA) -> Gradient:
    wanted = depth if "T2" in rule.uses else None, beta if "beta" in rule.uses else None
    return {n: g[0, 0] for n, g in reading_at(rule, free, *wanted).gradient.items()}


def gap(got: Gradient, expected: Gradient) -> float:
    """The largest over the parameters of |got - expected| / |expected|."""
    return max(float((got[n] - g).norm() / g.norm()) for n, g in expected.items())


@pytest.mark.parametrize("label", DETERMINISTIC)
def test_the_value_of_every_rule_that_draws_nothing_is_its_closed_form(label: str) -> None:
    rule = RULES[label]
    assert rule.name in CLOSED, "a rule wants a closed form on the linear system: add one to CLOSED"
    known, free = Known(field(), T1), relax(field(), (T1,))
    expected = CLOSED[rule.name](known, rule)
    assert gap(estimate(rule, free), expected) < 1e-10
    if rule.name != "bptt":  # which is not what all of them are
        assert gap(estimate(rule, free), known.reverse(0)) > 1e-4


@pytest.mark.parametrize("label", DETERMINISTIC)
def test_a_closed_form_tells_one_more_step_and_another_nudge(label: str) -> None:
    rule = RULES[label]
    known, free = CLOSED[rule.name](Known(field(), T1), rule), relax(field(), (T1,))
    if "T2" in rule.uses:
        assert gap(estimate(rule, free, depth=T2 + 1), known) > 1e-6
    if "beta" in rule.uses and rule.claim.order is not None:  # from some rules beta cancels
        assert gap(estimate(rule, free, beta=1.01 * BETA), known) > 1e-8


@pytest.mark.parametrize("label", [label for label in CLAIMING if label not in ("bptt", "tbptt")])
def test_a_rule_that_claims_to_be_exact_is_so_to_its_last_digits(label: str) -> None:
    """Centred rules and those without a nudge to 1e-8, those of one side to 1e-6."""
    rule, chosen = RULES[label], field()
    if rule.claim.exact is Exact.SYMMETRIC:
        chosen = replace(chosen, theta={**chosen.theta, "W": 0.5 * (chosen.theta["W"] + chosen.theta["W"].mT)})
    free = relax(chosen, (600,))
    shorter = float(chosen.knobs.eps / rule.phase.step_size(free))
    centred = "beta" not in rule.uses or rule.claim.order not in (None, 1)
    got = estimate(rule, free, depth=math.ceil(300 * shorter), beta=1e-5 if centred else 1e-7)
    known = Known(chosen, 600)
    assert gap(got, known.of(implicit(known))) < (1e-8 if centred else 1e-6)


def test_at_rest_and_after_enough_steps_a_finite_nudge_is_a_solve() -> None:
    free, k = relax(field(), (600,)), Known(field(), 600)
    for name, skew in (("ep", False), ("aep", True), ("aep_refreshed", True)):
        K = k.W - (k.W - k.W.mT if skew else 0)
        H = k.P.mT @ k.P
        moved = [torch.linalg.solve(K - b * H, b * k.slope(k.rest).mT).mT for b in (SMALL, -SMALL)]
        expected = k.of((moved[1] - moved[0]) / (2 * SMALL))
        assert gap(estimate(registry.estimator(name), free, depth=400, beta=SMALL), expected) < 1e-10, name


def test_the_mean_over_drawn_signs_is_a_mixture_of_the_two_sides_with_their_spread() -> None:
    rule, seeded = registry.estimator("random_sign_ep"), replace(field(), seeds=(7,))
    streams = [Streams(7).part(f"draw {d}") if d else Streams(7) for d in range(rule.draws)]
    signs = [int(torch.randint(2, (), generator=s["rule random_sign_ep"])) for s in streams]
    assert 0 < sum(signs) < rule.draws
    sides = [registry.estimator("ep", {"nudge": nudge}) for nudge in ("negative", "positive")]
    free = relax(seeded, (T1,))
    each = [estimate(sides[sign], free) for sign in signs]
    mean = {n: torch.stack([g[n] for g in each]).mean(0) for n in each[0]}
    assert gap(estimate(rule, free), mean) < 1e-12
    squares = sum(float((g[n] - mean[n]).square().sum()) for g in each for n in mean)
    evidence = reading_at(rule, free, T2, BETA).evidence
    assert float(evidence["draw_spread"]) == pytest.approx(math.sqrt(squares / (rule.draws - 1)), rel=1e-10)
    assert float(evidence["draws"]) == rule.draws
    others = reading_at(rule, free, T2, BETA, rule.phase.drawn(range(rule.draws, 2 * rule.draws)))
    assert gap({n: g[0, 0] for n, g in others.gradient.items()}, mean) > 1e-4


def test_the_spectrum_is_the_one_that_was_asked_for() -> None:
    for n, asymmetry, nonnormality in ((7, 0.0, 0.0), (6, 0.5, 0.0), (8, 0.7, 0.4)):
        options = {"n": n, "slowest": 0.3, "fastest": 2.4, "asymmetry": asymmetry, "nonnormality": nonnormality}
        W = registry.system(NAME, options).init_params(Streams(3)["params"])["W"]
        values = torch.linalg.eigvals(W)
        rates = 0.3 * 8 ** torch.linspace(0, 1, (n + 1) // 2, dtype=torch.float64).repeat_interleave(2)[:n]
        torch.testing.assert_close(-values.real.sort(descending=True).values, rates, rtol=1e-9, atol=1e-9)
        if n % 2 == 0:
            torch.testing.assert_close(values.imag.abs(), -asymmetry * values.real, rtol=1e-8, atol=1e-9)
        normal = float((W @ W.mT - W.mT @ W).norm())
        assert normal < 1e-12 if not nonnormality else normal > 1e-2
        if not asymmetry and not nonnormality:
            torch.testing.assert_close(W, W.mT, rtol=0, atol=1e-14)
        elif not nonnormality:
            g = torch.ones(n, dtype=W.dtype)
            back, forth = (torch.linalg.solve(J, g) for J in (W, W.mT))
            angle = torch.nn.functional.cosine_similarity(back, forth, 0).arccos()
            assert float(angle) == pytest.approx(2 * math.atan(asymmetry), rel=1e-10)
