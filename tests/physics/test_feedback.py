"""Feedback alignments against torch.nn with other backward passes, against dense matrices, and at initialisation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from live import SYSTEMS, gap, jacobian, live_field
from test_estimators import estimate, exact, settled
from test_residual_mlp import network
from torch import nn

from gradbench.dynamics.field import Field
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import relax
from gradbench.engine.draws import build
from gradbench.estimators.base import reading_at
from gradbench.estimators.feedback import AbstractFeedback
from gradbench.estimators.phases import feedback
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import BACK, DIRECT, LayeredWeights, Params

GRID = {"system": {"name": "hopfield", "d": 64}, "estimator": "bptt", "batch": 1, "dtype": "float64"}
RULES = [n for n, cls in registry.known_estimators().items() if issubclass(cls, AbstractFeedback)]
LAYERED = [n for n in SYSTEMS if issubclass(registry.known_systems()[n], LayeredWeights)]


def rule(name: str) -> AbstractFeedback:
    made = registry.estimator(name)
    assert isinstance(made, AbstractFeedback)
    return made


class Through(torch.autograd.Function):
    """x W^T + b, whose gradient with x goes by another matrix B."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, B)
        return x @ W.mT + b

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:  # type: ignore[override]
        x, B = ctx.saved_tensors
        return g @ B, g.mT @ x, g.sum(0), None


def passed_back(field: Field, matrices: Params) -> Params:
    """The gradients of the same network out of torch's own parts, with these matrices on the way back."""
    net, x, label = network(field), field.x["x"], field.x["label"]
    for name, module in net.named_modules():
        B = matrices.get(f"{BACK}{name}.weight")
        if B is not None:
            module.forward = lambda v, m=module, B=B: Through.apply(v, m.weight, m.bias, B)  # type: ignore[assignment]
    direct = {name.removeprefix(DIRECT): B for name, B in matrices.items() if name.startswith(DIRECT)}
    layers = [net.embed(x)]
    for block in net.blocks:
        below = layers[-1].detach() if direct else layers[-1]
        layers.append(below + block(below))
    logits = net.out_head(net.out_ln(layers[-1]))
    e = logits.softmax(-1).detach() - nn.functional.one_hot(label, 10)
    loss = nn.functional.cross_entropy(logits, label, reduction="sum")
    loss = loss + sum((e @ B * layers[int(name[1:])]).sum() for name, B in direct.items())
    loss.backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", RULES)
def test_a_forward_pass_is_gone_back_through_by_the_matrices(name: str) -> None:
    field = live_field("residual_mlp", batch=4)
    expected = passed_back(field, feedback.drawn(field, rule(name).kind))
    assert gap(estimate(rule(name), relax(field, (0,)), 3, 0), expected) < 1e-12
    assert gap(expected, exact("residual_mlp")) > 0.1


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("system", ["hopfield", "hopfield_asymmetric"])
def test_the_adjoint_of_a_relaxation_has_the_matrices_in_place_of_transposed_weights(system: str, name: str) -> None:
    """eps sum_{j<T2} (1 + eps J_B^T)^j dC/ds, J_B the dense Jacobian with other blocks below its diagonal."""
    free = settled(system)
    field, s, sigma = free.field, free.ends[0, 0], float(free.field.knobs.sigma)
    J_T = jacobian(lambda s: field.force(s[None].expand(2, -1))[0], s).mT.clone()
    slope, B = 1 - s.tanh().square(), feedback.drawn(field, rule(name).kind)
    place = dict(zip(field.system.layout, torch.arange(24).split([7, 7, 10]), strict=True))

    def block(above: str, below: str, W: torch.Tensor) -> None:
        J_T[place[below][:, None], place[above]] = sigma * slope[place[below], None] * W.mT * slope[place[above]]

    before = J_T.clone()
    block("h2", "h1", field.theta["W2"])
    torch.testing.assert_close(J_T, before, rtol=1e-12, atol=1e-14)
    block("out", "h2", B[f"{BACK}W3"])
    if f"{DIRECT}h1" in B:
        block("h2", "h1", torch.zeros_like(field.theta["W2"]))
        block("out", "h1", B[f"{DIRECT}h1"])
    else:
        block("h2", "h1", B[f"{BACK}W2"])
    eps, term = float(field.knobs.eps), free.cost_slope[0, 0]
    expected = torch.zeros_like(term)
    for _ in range(9):
        expected, term = expected + eps * term, term + eps * J_T @ term
    found = reading_at(rule(name), free, 9, None).credit
    assert found is not None
    torch.testing.assert_close(found[0, 0, 0], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("system", LAYERED)
def test_with_the_weights_themselves_it_is_the_rule_that_is_exact(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with a weight that is off by a thousandth it is not: every matrix is read."""
    free, drawn = settled(system), feedback.drawn
    expected = exact(system) if free.field.predicts else estimate(registry.estimator("adjoint"), free, 40, 0)

    def tied(field: Field, kind: feedback.Kind, factor: float = 1.0, only: str = "") -> Params:
        names = [name.removeprefix(BACK) for name in drawn(field, kind)]
        return {BACK + n: field.theta[n] * (factor if only in n else 1.0) for n in names}

    monkeypatch.setattr(feedback, "drawn", tied)
    assert gap(estimate(rule("fa"), free, 40, 0), expected) < 1e-12
    for name in free.field.system.carriers:  # type: ignore[attr-defined]
        monkeypatch.setattr(feedback, "drawn", lambda field, kind, name=name: tied(field, kind, 1.001, name))
        assert gap(estimate(rule("fa"), free, 40, 0), expected) > 1e-6, name


@pytest.mark.parametrize("system", LAYERED)
@pytest.mark.parametrize("name", RULES)
def test_no_value_changes_by_the_matrices(system: str, name: str) -> None:
    field = live_field(system)
    s = field.init_state() + 0.3
    fed = Field(field.system, field.theta | feedback.drawn(field, rule(name).kind), field.x, field.knobs)
    assert torch.equal(fed.force(s), field.force(s))
    torch.testing.assert_close(fed.cost(s), field.cost(s), rtol=0, atol=0)
    torch.testing.assert_close(fed.init_state(), field.init_state(), rtol=1e-14, atol=0)


@pytest.mark.fast
def test_matrices_come_from_the_seed_have_the_size_of_the_weights_and_their_signs_where_asked() -> None:
    fields = [live_field("residual_mlp", seed=seed) for seed in (0, 1, 0)]
    one, other, again = (feedback.drawn(field, "layered") for field in fields)
    assert all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in one)
    stacked = feedback.drawn(Stack.of(fields[:2]), "layered")
    assert all(torch.equal(stacked[n], torch.stack((one[n], other[n]))) for n in one)
    assert set(one) == {BACK + name for name in fields[0].system.carriers}  # type: ignore[attr-defined]
    (problem,) = plan(parse({"name": "t", "about": "", "grid": [GRID | {"seed": 0}]}, "t")).problems
    wide = build(problem, "cpu")
    W = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    signed = feedback.drawn(replace(wide, theta=wide.theta | {"W2": W}), "signed")[f"{BACK}W2"]
    assert torch.equal(signed.sign(), W.sign())
    assert float(signed.square().mean() / W.square().mean()) == pytest.approx(1, abs=0.05)
    assert float((signed * W).sum() / (signed.norm() * W.norm())) == pytest.approx(2 / math.pi, abs=0.02)
    direct = feedback.drawn(wide, "direct")
    assert {n: tuple(B.shape) for n, B in direct.items()} == {f"{DIRECT}h1": (10, 64), f"{BACK}W3": (10, 64)}


def test_systems_without_layers_say_so() -> None:
    for name, system in registry.known_systems().items():
        told = f"{name} declares no layers between which weights carry credit"
        assert [rule(n).skip(system) for n in RULES] == [None if name in LAYERED else told] * len(RULES)


@pytest.mark.parametrize("name", ["fa", "dfa"])
@pytest.mark.parametrize("system", ["residual_mlp", "hopfield"])
def test_hidden_credit_is_as_a_random_one_at_initialisation(system: str, name: str) -> None:
    """Over draws the cosine of the last hidden layer is 0 +- 1 / sqrt(n), n its width."""
    n, draws = 64, 40
    options = {"name": system, "d_in": 784, "d": n, "L": 2}
    grid = {"system": options, "estimator": "bptt", "batch": 1, "dtype": "float64", "seed": list(range(draws))}
    grid |= {"damp": 1.0, "T1": 100} if system == "hopfield" else {}
    problems = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    field = Stack.of([build(problem, "cpu") for problem in problems])
    free = relax(field, (100,) if system == "hopfield" else (0,))
    found, reference = (reading_at(registry.estimator(r), free, 60, None).credit for r in (name, "adjoint"))
    assert found is not None
    assert reference is not None
    right = field.layer_slopes[..., n:] if field.predicts else reference[0, 0]
    layer = slice(n, 2 * n)  # h2
    a, b = found[0, 0, :, 0, layer], right[:, 0, layer]
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert len(cosine) == draws
    assert abs(float(cosine.mean())) < 4 / math.sqrt(n * draws)
    assert 0.6 < float(cosine.square().mean().sqrt()) * math.sqrt(n) < 1.5
