"""Predictive coding: fixed predictions against backpropagation, and the strict form, which is EP with another name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from live import gap, live_field
from test_estimators import estimate, exact, slope
from test_residual_mlp import network
from torch import nn

from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.base import reading_at
from gradbench.estimators.predictive_coding import PredictiveCoding
from gradbench.planning import registry
from gradbench.systems.base import AbstractForwardSystem, Params


def passed(eps: float) -> Trajectory:
    """The forward pass of the live network (L = 3), with steps of this size in the second phase."""
    field = live_field("residual_mlp")
    knobs = field.knobs._replace(eps=torch.full_like(field.knobs.eps, eps))
    return relax(replace(field, knobs=knobs), (0,))


def test_fixed_predictions_are_backpropagation_after_L_steps_of_size_1() -> None:
    """Not one step before: layer l is right from step L - l + 1 on, and has nothing until then."""
    free, layers = passed(1.0), ["h1", "h2", "h3"]
    slopes = dict(zip(layers, free.field.layer_slopes[..., 8:].split(8, -1), strict=True))
    for T2 in (1, 2, 3, 4, 9):
        found = reading_at(PredictiveCoding(), free, T2, None).credit
        assert found is not None
        for layer, a in zip(layers, found[0, 0].split(8, -1), strict=True):
            if len(layers) - layers.index(layer) <= T2:
                torch.testing.assert_close(a, slopes[layer], rtol=1e-12, atol=1e-14)
            else:
                assert not a.any()
    assert gap(estimate(PredictiveCoding(), free, 3, 0), exact("residual_mlp")) < 1e-12
    assert gap(estimate(PredictiveCoding(), free, 2, 0), exact("residual_mlp")) > 0.1


def test_errors_relax_by_the_jacobians_of_the_forward_pass() -> None:
    """By torch.nn: e_l <- e_l - eps (e_l - J_{l+1}^T e_{l+1} + beta dC/dh_l), and gradients of these errors."""
    free, eps, beta, T2 = passed(0.3), 0.3, 0.01, 5
    net, x, label = network(free.field), free.field.x["x"], free.field.x["label"]
    layers = [h.detach().requires_grad_() for h in net.layers(x)]
    predictions = [h + block(h) for h, block in zip(layers, net.blocks, strict=False)]  # of h_1 ... h_3
    loss = nn.functional.cross_entropy(net.out_head(net.out_ln(layers[-1])), label, reduction="sum")
    (g,) = torch.autograd.grad(loss, layers[-1], retain_graph=True)
    errors = [torch.zeros_like(g) for _ in predictions]
    for _ in range(T2):
        above = [torch.autograd.grad(p, h, e, retain_graph=True)[0]
                 for p, h, e in zip(predictions[1:], layers[1:], errors[1:], strict=False)]  # fmt: skip
        pushes = [*above, -beta * g]
        errors = [e - eps * (e - push) for e, push in zip(errors, pushes, strict=True)]
    loss.backward(inputs=list(net.parameters()))
    layers[0] = net.embed(x)
    predictions[0] = layers[0] + net.blocks[0](layers[0])
    sum((-e / beta * p).sum() for e, p in zip(errors, predictions, strict=True)).backward(inputs=list(net.parameters()))
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert gap(estimate(PredictiveCoding(), free, T2, 0), expected) < 1e-12


def strict(field: Field, T2: int, beta: float) -> Params:
    """Layers descend 1/2 |e|^2 + beta C from the forward pass; weights take d(1/2 |e|^2)/dtheta / beta at the end."""
    net, x, label = network(field), field.x["x"], field.x["label"]

    def energy(h: list[torch.Tensor]) -> torch.Tensor:
        layers = [net.embed(x), *h]
        return sum(0.5 * (layers[i + 1] - layers[i] - b(layers[i])).square().sum() for i, b in enumerate(net.blocks))

    def cost(h: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(net.out_head(net.out_ln(h)), label, reduction="sum")

    first = [h.detach() for h in net.layers(x)[1:]]
    h = [v.clone() for v in first]
    for _ in range(T2):
        h = [v.requires_grad_() for v in h]
        slopes = torch.autograd.grad(energy(h) + beta * cost(h[-1]), h)
        h = [(v - float(field.knobs.eps) * g).detach() for v, g in zip(h, slopes, strict=True)]
    energy(h).div(beta).backward()
    cost(first[-1]).backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def test_strict_predictive_coding_is_ep_on_prediction_errors_with_a_positive_nudge_and_the_energy_contrast() -> None:
    rule = registry.estimator("ep", {"nudge": "positive", "readout": "energy_contrast"})
    for T2, beta in ((4, 1.0), (20, 0.1)):
        assert gap(estimate(rule, passed(0.1), T2, beta), strict(passed(0.1).field, T2, beta)) < 1e-11


def test_strict_predictive_coding_tends_to_backpropagation_as_the_output_error_does_to_zero() -> None:
    """Linearly, as a one-sided nudge; fixed predictions have no such error at all."""
    rule, free = registry.estimator("ep", {"nudge": "positive", "readout": "energy_contrast"}), passed(0.5)
    errors = {beta: gap(estimate(rule, free, 150, beta), exact("residual_mlp")) for beta in (0.1, 0.03, 0.01)}
    assert slope(errors) == pytest.approx(1, abs=0.1), errors
    assert gap(estimate(PredictiveCoding(), free, 150, 0), exact("residual_mlp")) < 1e-12


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_layers_that_are_read_after_their_first_move_are_backpropagation_at_any_nudge(beta: float) -> None:
    """Whatever eps is; not one step before, and not with all layers read after the same step."""
    rule, widths = registry.estimator("z_il"), [8, 8, 8]
    for free in (passed(1.0), passed(0.3)):
        for T2 in (3, 4, 9):
            assert gap(estimate(rule, free, T2, beta), exact("residual_mlp")) < 1e-12
    found = reading_at(rule, free, 2, beta).credit
    assert found is not None
    lowest, *others = found[0, 0].split(widths, -1)
    assert not lowest.any()
    for a, slopes in zip(others, free.field.layer_slopes[..., 16:].split(widths[1:], -1), strict=True):
        torch.testing.assert_close(a, slopes, rtol=1e-12, atol=1e-14)
    assert gap(estimate(rule, free, 2, beta), exact("residual_mlp")) > 0.1
    at_once = registry.estimator("ep", {"nudge": "positive", "readout": "energy_contrast"})
    assert gap(estimate(at_once, passed(1.0), 3, beta), exact("residual_mlp")) > 0.01


def test_only_forward_systems_have_prediction_errors() -> None:
    for name, system in registry.known_systems().items():
        forward = issubclass(system, AbstractForwardSystem)
        told = None if forward else f"{name} is no forward pass: it has no prediction errors"
        assert PredictiveCoding().skip(system) == registry.estimator("z_il").skip(system) == told


@pytest.mark.parametrize("mutant", ["transposed", "direct", "whole"])
def test_a_mutant_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """J in place of J^T; no Jacobian; a gradient that forgets the pixels below h_1."""
    from gradbench.dynamics.linear import Linear

    free, right = passed(1.0), Field.prediction_grads
    if mutant == "transposed":
        monkeypatch.setattr(Linear, "vjp", Linear.jvp)
    elif mutant == "direct":
        monkeypatch.setattr(Linear, "vjp", lambda self, a: a)
    else:

        def forgetful(self: Field, s: torch.Tensor, a: torch.Tensor) -> Params:
            return {n: g if "embed" not in n else 0 * g for n, g in right(self, s, a).items()}

        monkeypatch.setattr(Field, "prediction_grads", forgetful)
    assert gap(estimate(PredictiveCoding(), free, 3, 0), exact("residual_mlp")) > 1e-2
