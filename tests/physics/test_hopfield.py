"""Layered Hopfield networks against sums written out, and the two kinds of weights against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from live import gap, live_field, random_like
from test_estimators import estimate, reference, settled

import gradbench as gb
from gradbench.conformance.system_checks import FURTHER, Subject
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.engine.draws import build
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

pytestmark = pytest.mark.fast


def made(name: str, **options: Any) -> Field:
    """A field of a small network with other options, at a large coupling and a step of 1/2."""
    grid = {"system": {"name": name, "d": 7, **options}, "estimator": "bptt", "s": 1.3, "damp": 1.0, "batch": 2}
    (problem,) = plan(parse({"name": "t", "about": "", "grid": [grid | {"dtype": "float64"}]}, "t")).problems
    return build(problem, "cpu")


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("L", [1, 3])
def test_energy_force_and_cost_are_the_sums_over_neurons(activation: str, L: int) -> None:
    field = made("hopfield", activation=activation, L=L)
    theta, s = field.theta, random_like(field.init_state(), seed=1).requires_grad_()
    rho = torch.tanh if activation == "tanh" else torch.sigmoid
    layers = s.split([7] * L + [10], -1)
    r = [field.x["x"], *map(rho, layers)]
    E = 0.5 * 2.0 * s.square().sum(-1)
    for k in range(1, L + 2):
        E = E - 1.3 * torch.einsum("bi,ij,bj->b", r[k], theta[f"W{k}"], r[k - 1]) - r[k] @ theta[f"b{k}"]
    torch.testing.assert_close(field.energy(s), E, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(field.force(s), -torch.autograd.grad(E.sum(), s)[0], rtol=1e-12, atol=1e-13)
    known = torch.nn.functional.one_hot(field.x["label"], 10)
    torch.testing.assert_close(field.cost(s), 0.5 * (layers[-1] - known).square().sum(-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("options", [{"activation": "sigmoid"}, {"L": 1}, {"L": 3, "activation": "sigmoid"}])
@pytest.mark.parametrize("name", ["hopfield", "hopfield_asymmetric"])
def test_closed_forms_hold_with_every_option(name: str, options: dict[str, Any]) -> None:
    subject = Subject.of(made(name, **options))
    number, bound, advice = FURTHER["closed forms equal autograd"](subject)
    assert bound is not None
    assert number <= min(bound, 1e-11), advice


def test_without_asymmetry_both_are_one_network_whose_gradients_add_up() -> None:
    tied, loose = made("hopfield"), made("hopfield_asymmetric", asymmetry=0.0)
    assert all(torch.equal(tied.theta[n], loose.theta[n]) for n in tied.theta)
    assert all(torch.equal(loose.theta[f"V{k}"], loose.theta[f"W{k}"]) for k in (2, 3))
    a, b = (relax(field, (60,)) for field in (tied, loose))
    torch.testing.assert_close(a.ends, b.ends, rtol=1e-14, atol=1e-15)
    of_tied, of_loose = reference(a), reference(b)
    added = {n: of_loose[n] + of_loose.get(n.replace("W", "V"), 0) * (n[0] == "W" and n != "W1") for n in of_tied}
    assert gap(added, of_tied) < 1e-12


def test_the_asymmetry_is_a_knob_that_spreads_the_feedback_weights() -> None:
    one, two = (made("hopfield_asymmetric", asymmetry=a).theta for a in (0.5, 1.0))
    for k in (2, 3):
        torch.testing.assert_close(2 * (one[f"V{k}"] - one[f"W{k}"]), two[f"V{k}"] - two[f"W{k}"], rtol=1e-12, atol=0)
    rows = [
        gb.measure("hopfield_asymmetric", "ep", asymmetry=a, damp=1.0, batch=2, system_options={"d": 7}).row
        for a in (0.0, 0.5, 2.0)
    ]
    assert [row["status"] for row in rows] == ["settled"] * 3
    assert rows[0]["antisymmetry"] < 1e-6 < rows[1]["antisymmetry"] < rows[2]["antisymmetry"]
    assert rows[0]["rel_error"] < 0.01 < rows[1]["rel_error"]


def test_the_defaults_settle_on_images_and_every_parameter_has_a_gradient() -> None:
    for name in ("hopfield", "hopfield_asymmetric"):
        m = gb.measure(name, "aep", batch=4)
        assert m.status == "settled"
        assert m.row["params_undefined"] == m.row["params_zero"] == 0
        assert m.row["cosine_min"] > 0.99


def test_causes_of_errors_are_named() -> None:
    """Truncation, asymmetry and a nudge that is too large, of rules that say how they are linearised."""
    for name, rule, options, T2, beta, cause in (
        ("hopfield", "dyadic_ep", {}, 1, 0.1, "truncation"),
        ("hopfield", "dyadic_ep", {"cost": "replicas"}, 40, 6.0, "nonlinearity in beta"),
        ("hopfield", "holomorphic_ep", {}, 40, 6.0, "nonlinearity in beta"),
        ("hopfield_asymmetric", "holomorphic_ep", {}, 40, 0.1, "asymmetry"),
        ("hopfield_asymmetric", "fa", {}, 40, None, "another Jacobian"),
        ("residual_mlp", "dfa", {}, 1, None, "another Jacobian"),
        ("residual_mlp", "predictive_coding", {}, 1, None, "truncation"),
    ):
        small: dict[str, Any] = {"d": 7} | ({"d_in": 784, "L": 2} if name == "residual_mlp" else {})
        at = {"damp": 1.0} if name != "residual_mlp" else {}
        at |= {"beta": beta} if beta is not None else {}
        m = gb.measure(
            name, rule, system_options=small, estimator_options=options, T2=T2, batch=2, dtype="float64", **at
        )
        assert m.row["cause"] == cause, (name, rule, options)


@pytest.mark.parametrize("weights", ["W2", "V2", "W3", "V3"])
def test_a_mutant_of_a_weight_is_caught(weights: str) -> None:
    """The adjoint is exact with all weights, and not where a product reads another one."""
    free = settled("hopfield_asymmetric")
    expected, field = reference(free), live_field("hopfield_asymmetric")
    assert gap(estimate(registry.estimator("adjoint"), free, 300, 0), expected) < 1e-12
    field.theta[weights] *= 1.001
    moved = relax(field, (1,))
    wrong = type(free)(field, free.T1s, free.ends, free.norms, free.energies, free.states, free.every, moved.advance)
    assert gap(estimate(registry.estimator("adjoint"), wrong, 300, 0), expected) > 1e-5
