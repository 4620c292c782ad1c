"""Dyadic EP against the adjoint, and its two forms against the saddle that they descend."""

from __future__ import annotations

import pytest
import torch
from linear import line
from live import SYSTEMS, jacobian, live_field, random_like, whole_gap
from test_estimators import estimate, settled, slope
from test_ladder import TILTED

from gradbench.dynamics.field import Closed, Field
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.dyadic_ep import DyadicEp
from gradbench.estimators.phases.dyadic import Cost, DyadicPhase
from gradbench.planning import registry


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_midpoint_form_is_the_adjoint_with_T2_terms_and_beta_cancels(name: str) -> None:
    """On every system at rest, those that project included: the difference is taken back by Pi'^T."""
    free = settled(name)
    for T2, beta in ((1, 0.3), (2, 1e-3), (25, 40.0)):
        expected = estimate(registry.estimator("adjoint"), free, T2, 0)
        assert whole_gap(estimate(DyadicEp(), free, T2, beta), expected) < 1e-10


def moved(free: Trajectory, cost: Cost, T2: int, beta: float) -> torch.Tensor:
    """d after T2 steps."""
    (snapshot,) = DyadicPhase(cost).run(free, (T2,), free.ends.new_tensor([beta]))
    assert snapshot.nudged is not None
    return snapshot.nudged[0, 0, 0]


def saddle(field: Field, s: torch.Tensor, cost: Cost, T2: int, beta: float) -> torch.Tensor:
    """d after T2 steps m <- m + eps dH/dd, d <- d + eps dH/dm of H = <d, F(m)> - beta C, by autograd of H alone."""
    m, d = s.clone(), torch.zeros_like(s)
    for _ in range(T2):
        m, d = m.detach().requires_grad_(), d.detach().requires_grad_()
        nudge = field.cost(m) if cost == "midpoint" else 0.5 * (field.cost(m + d / 2) + field.cost(m - d / 2))
        H = (d * field.force(m)).sum() - beta * nudge.sum()
        by_m, by_d = torch.autograd.grad(H, (m, d))
        m, d = m + field.knobs.eps * by_d, d + field.knobs.eps * by_m
    return d.detach()


@pytest.mark.parametrize("cost", ["midpoint", "replicas"])
@pytest.mark.parametrize("name", ["toy_noncons", "hopfield_asymmetric"])
def test_both_forms_climb_and_descend_their_saddle(name: str, cost: Cost) -> None:
    """From a state that still moves, so that the midpoint does too."""
    field = live_field(name)
    free = relax(field, (7,))
    expected = saddle(field, free.ends[0], cost, 9, 0.7)
    torch.testing.assert_close(moved(free, cost, 9, 0.7), expected, rtol=1e-12, atol=1e-14)
    other = saddle(field, free.ends[0], "replicas" if cost == "midpoint" else "midpoint", 9, 0.7)
    assert float((expected - other).norm() / other.norm()) > 1e-6  # the two forms are not one


@pytest.mark.parametrize("name", ["toy_noncons", "hopfield_asymmetric"])
def test_a_nudge_of_each_replica_errs_as_beta_squared(name: str) -> None:
    free = settled(name)
    limit = estimate(registry.estimator("adjoint"), free, 300, 0)
    errors = {
        beta: whole_gap(estimate(DyadicEp(cost="replicas"), free, 300, beta), limit) for beta in (0.1, 0.03, 0.01)
    }
    assert slope(errors) == pytest.approx(2, abs=0.1), errors
    assert whole_gap(estimate(DyadicEp(), free, 300, 0.1), limit) < 1e-12


def test_a_tilted_projection_is_transposed() -> None:
    """Pi' is no symmetric matrix: the difference of two projected replicas would be wrong by Pi' in place of Pi'^T."""
    field = line(P=TILTED)
    free = relax(field, (300,))
    T2, beta, eps = 7, 0.3, float(field.knobs.eps)
    J = jacobian(lambda s: field.force(s[None])[0], free.ends[0, 0])
    d = torch.zeros_like(free.ends[0])
    for _ in range(T2):
        d = (d + eps * (d @ J - beta * free.cost_slope[0])) @ TILTED
    torch.testing.assert_close(moved(free, "midpoint", T2, beta), d, rtol=1e-12, atol=1e-14)
    wrong = (d + eps * (d @ J - beta * free.cost_slope[0])) @ TILTED.mT
    assert float((wrong - d).norm() / d.norm()) > 1e-2


@pytest.mark.parametrize("product", ["vjp", "project_vjp", "cost_slope"])
def test_a_mutant_of_a_product_is_caught(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for J^T, for Pi'^T and for dC/ds changes the estimate far beyond the bound of the identity."""
    free = settled("cet_projected")
    expected = estimate(registry.estimator("adjoint"), free, 5, 0)
    if product == "vjp":
        monkeypatch.setattr(Closed, "vjp", Closed.jvp)
    elif product == "project_vjp":
        monkeypatch.setattr(Field, "project_vjp", lambda self, u, a: a)
    else:
        monkeypatch.setattr(Field, "cost_slope", lambda self, s: random_like(s))
    assert whole_gap(estimate(DyadicEp(), free, 5, 0.1), expected) > 1e-4
