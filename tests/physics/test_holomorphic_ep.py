"""Holomorphic EP against centred EP, dense linear algebra and the whole circle; complex states against real ones."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from live import SYSTEMS, jacobian, live_field, random_like, whole_gap
from test_estimators import estimate, settled, slope

from gradbench.dynamics.trajectory import Trajectory
from gradbench.errors import UserError
from gradbench.estimators.base import reading_at
from gradbench.estimators.holomorphic_ep import HolomorphicEp
from gradbench.estimators.phases import holomorphic
from gradbench.planning import registry
from gradbench.systems import attention

COMPLEX = [n for n in SYSTEMS if registry.known_systems()[n].real_only is None]
# nudges at which the error is that of the leading order, and far from round-off
BETAS = {2: (0.1, 0.03, 0.01), 3: (0.2, 0.1, 0.05), 4: (0.2, 0.1, 0.05), 6: (0.3, 0.2, 0.15)}


def credit(rule: HolomorphicEp, free: Trajectory, T2: int, beta: float) -> torch.Tensor:
    found = reading_at(rule, free, T2, beta).credit
    assert found is not None
    return found[0, 0, 0]


def test_every_system_takes_complex_states_or_says_why_not() -> None:
    for name, system in registry.known_systems().items():
        expected = None if name in COMPLEX else f"{name} takes no complex states: {system.real_only}"
        assert HolomorphicEp().skip(system) == expected
    assert {"toy_cons", "toy_noncons", "hopfield", "hopfield_asymmetric"} <= set(COMPLEX)
    assert not [name for name in COMPLEX if name.startswith("cet")]  # the relu of the memories


@pytest.mark.fast
@pytest.mark.parametrize("name", COMPLEX)
def test_force_and_slope_of_the_cost_are_holomorphic(name: str) -> None:
    """f(s + i h v) = f(s) + i h f' v by a step of 1e-20, which cancels nothing; off the axis in both directions."""
    field = live_field(name)
    s, v = (random_like(field.init_state(), seed=i) for i in (1, 2))
    upright = torch.complex(s, 1e-20 * v)
    for f, linear in (("force", field.at(s).jvp(v)), ("cost_slope", torch.func.jvp(field.cost_slope, (s,), (v,))[1])):
        there = getattr(field.complex, f)(upright)
        torch.testing.assert_close(there.real, getattr(field, f)(s), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(there.imag / 1e-20, linear, rtol=1e-12, atol=1e-13)
    z, w = torch.complex(s, 0.3 * v), torch.complex(v, s)
    h, F = 1e-5, field.complex.force
    for turn in (1, 1j):  # the difference quotient does not depend on the direction: Cauchy and Riemann
        quotient = (F(z + turn * h * w) - F(z - turn * h * w)) / (2 * turn * h)
        torch.testing.assert_close(quotient, field.complex.at(z).jvp(w), rtol=1e-7, atol=1e-7)


@pytest.mark.fast
def test_the_softmax_of_complex_scores_is_that_of_real_ones_on_the_axis() -> None:
    q, k = (random_like(torch.zeros(2, 3, 4, dtype=torch.float64), seed=i) for i in (0, 1))
    upright = attention.weights(torch.complex(q, 0 * q), torch.complex(k, 0 * k), 40.0)  # far from overflow, too
    torch.testing.assert_close(upright.real, attention.weights(q, k, 40.0), rtol=1e-12, atol=1e-14)
    assert float(upright.imag.abs().max()) == 0
    z = torch.complex(q, k)
    assert float((attention.weights(z, z, 1.0).sum(-1) - 1).abs().max()) < 1e-13


@pytest.mark.parametrize("name", COMPLEX)
def test_two_points_are_centred_ep(name: str) -> None:
    free = settled(name)
    for T2, beta in ((3, 1.0), (20, 0.1)):
        expected = estimate(registry.estimator("ep"), free, T2, beta)
        assert whole_gap(estimate(HolomorphicEp(points=2), free, T2, beta), expected) < 1e-10


@pytest.mark.parametrize("points", [3, 4, 5])
def test_half_of_the_circle_is_enough(points: int) -> None:
    """All N states by plain steps, and their first Fourier coefficient: its imaginary part is round-off."""
    free, T2, beta = settled("hopfield_asymmetric"), 12, 0.8
    field, total = free.field.complex, torch.zeros_like(free.ends[0]).to(torch.complex128)
    for k in range(points):
        turn = cmath.exp(2j * math.pi * k / points)
        s = free.ends[0].to(torch.complex128)
        for _ in range(T2):
            s = s + field.knobs.eps * (field.force(s) - beta * turn * field.cost_slope(s))
        total += turn.conjugate() * s
    whole = -total / (points * beta)
    assert float(whole.imag.norm() / whole.real.norm()) < 1e-14
    (half,) = (reading_at(HolomorphicEp(points=points), free, T2, beta).credit,)
    assert half is not None
    torch.testing.assert_close(half[0, 0], whole.real, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["toy_cons", "toy_noncons", "hopfield", "hopfield_asymmetric"])
def test_the_error_falls_as_beta_to_the_N_and_the_limit_goes_by_J_in_place_of_its_transpose(name: str) -> None:
    free = settled(name)
    s, g = free.ends[0, 0], free.cost_slope[0, 0]
    J = jacobian(lambda s: free.field.force(s[None].expand(2, -1))[0], s)
    limit = -torch.linalg.solve(J, g)
    right = -torch.linalg.solve(J.mT, g)
    biased = float((limit - right).norm() / right.norm())
    assert biased < 1e-12 if free.field.system.conservative else biased > 1e-2
    for points, betas in BETAS.items():
        rule = HolomorphicEp(points=points)
        errors = {b: float((credit(rule, free, 250, b) - limit).norm() / limit.norm()) for b in betas}
        assert slope(errors) == pytest.approx(points, abs=0.1), (points, errors)
        assert rule.claim.order == points


def test_beyond_the_radius_of_convergence_more_points_do_not_help() -> None:
    """At small nudges six points beat two by a factor of 300; at a large one the series of s(beta) has no sum."""
    free = settled("toy_cons")
    limit = credit(HolomorphicEp(points=6), free, 250, 0.02)
    errors = {
        (points, beta): float((credit(HolomorphicEp(points=points), free, 250, beta) - limit).norm() / limit.norm())
        for points in (2, 6)
        for beta in (0.2, 8.0)
    }
    assert errors[6, 0.2] < 1e-2 * errors[2, 0.2]
    assert not errors[6, 8.0] < 1e-2


def test_a_circle_has_two_points_or_more() -> None:
    with pytest.raises(UserError, match="holomorphic_ep: points = 1 is below 2"):
        HolomorphicEp(points=1)


@pytest.mark.parametrize("mutant", ["no conjugate", "one side", "points of a real nudge"])
def test_a_mutant_of_the_coefficient_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has another limit or another order than beta^4."""
    free, right = settled("toy_cons"), holomorphic._turns
    limit = credit(HolomorphicEp(points=6), free, 250, 0.02)

    def turns(points: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turned, weights = right(points, like)
        if mutant == "no conjugate":
            return turned, weights.conj()
        if mutant == "one side":
            return turned, turned.conj() / points
        return turned.real.to(turned), weights

    monkeypatch.setattr(holomorphic, "_turns", turns)
    errors = {
        b: float((credit(HolomorphicEp(points=4), free, 250, b) - limit).norm() / limit.norm()) for b in (0.2, 0.1)
    }
    assert slope(errors) != pytest.approx(4, abs=0.5)
