"""The residual MLP against torch.nn, and its cells: a free state without a free phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live import gap, live_field, random_like
from torch import nn

import gradbench as gb
from gradbench.data import datasets
from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.engine.draws import build
from gradbench.errors import UserError
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import AbstractEnergySystem, descent

SMALL: dict[str, Any] = {"d_in": 784, "d": 16, "L": 3}


class Block(nn.Module):
    def __init__(self, d: int, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.ln, self.fc1, self.fc2, self.act = nn.LayerNorm(d), nn.Linear(d, d), nn.Linear(d, d), act

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(self.ln(h))))


class Network(nn.Module):
    def __init__(self, d_in: int, d: int, L: int, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(d_in, d), nn.ModuleList(Block(d, act) for _ in range(L))
        self.out_ln, self.out_head = nn.LayerNorm(d), nn.Linear(d, 10)

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        hs = [self.embed(x)]
        for block in self.blocks:
            hs.append(hs[-1] + block(hs[-1]))
        return hs


def network(field: Field, act: Callable[[torch.Tensor], torch.Tensor] = nn.functional.gelu) -> Network:
    """The same network out of torch's own parts."""
    d, d_in = field.theta["embed.weight"].shape
    made = Network(d_in, d, len(field.system.layout), act).double()
    made.load_state_dict(field.theta)
    return made


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_the_free_state_is_the_forward_pass_and_the_reference_is_backpropagation(activation: str) -> None:
    options = {**SMALL, "activation": activation}
    m = gb.measure("residual_mlp", "bptt", system_options=options, batch=4, dtype="float64")
    grid = {"system": {"name": "residual_mlp", **options}, "estimator": "bptt", "batch": 4, "dtype": "float64"}
    (problem,) = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    field = build(problem, "cpu")
    net = network(field, {"gelu": nn.functional.gelu, "relu": torch.relu, "tanh": torch.tanh}[activation])
    layers = net.layers(field.x["x"])
    torch.testing.assert_close(field.init_state(), torch.cat(layers[1:], -1), rtol=1e-12, atol=1e-12)
    loss = nn.functional.cross_entropy(net.out_head(net.out_ln(layers[-1])), field.x["label"], reduction="sum")
    loss.backward()
    assert m.reference is not None
    assert gap(m.reference, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}) < 1e-10
    assert float(field.cost(field.init_state()).sum()) == pytest.approx(float(loss.detach()), rel=1e-12)
    s = field.init_state() + random_like(field.init_state())
    h = [layers[0], *s.split(16, -1)]
    energy = sum(0.5 * (h[i + 1] - h[i] - b(h[i])).square().sum(-1) for i, b in enumerate(net.blocks))
    torch.testing.assert_close(field.energy(s), energy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_the_closed_force_is_minus_the_energy_gradient(activation: str) -> None:
    field = live_field("residual_mlp")
    system = registry.system("residual_mlp", {"d_in": 784, "d": 8, "L": 3, "activation": activation})
    assert isinstance(system, AbstractEnergySystem)
    s = field.init_state() + random_like(field.init_state())
    given = (field.theta, field.x, field.context, s, field.knobs)
    torch.testing.assert_close(system.force(*given), descent(system.energy, *given), rtol=1e-12, atol=1e-12)


def test_parameters_begin_as_those_of_torch() -> None:
    theta = registry.system("residual_mlp").init_params(Streams(0)["params"])
    for name, p in theta.items():
        if name.split(".")[-2].endswith("ln"):
            assert torch.equal(p, torch.full_like(p, name.endswith("weight")))
        elif name.endswith("fc2.weight"):
            assert float(p.std()) == pytest.approx(0.01, rel=0.02)
        else:
            bound = 3072**-0.5 if name.startswith("embed") else 256**-0.5
            assert 0.97 * bound < float(p.abs().max()) <= bound


def test_images_come_with_their_labels_in_three_colours_or_plain() -> None:
    for d_in, ch, img in ((3072, 3, 32), (1024, 1, 32), (784, 1, 28)):
        system = registry.system("residual_mlp", {"d_in": d_in})
        system.check(8)
        x = system.sample(Streams(3), 8)
        assert {n: tuple(v.shape) for n, v in x.items()} == system.data_shapes(8)
        shown = datasets.images("fashion_mnist_sample", ch, img, 8, Streams(3)["data"])
        assert torch.equal(x["x"], shown.flatten(1))
        pixels, labels = datasets.load("fashion_mnist_sample")
        plain = torch.from_numpy(pixels[:, 0]).double() / 127.5 - 1
        frame = (img - 28) // 2
        for image, label in zip(shown[:, 0, frame : frame + 28, frame : frame + 28], x["label"], strict=True):
            assert labels[int((plain - image).abs().amax((1, 2)).argmin())] == label


@pytest.mark.parametrize(
    ("options", "message"), [({"d_in": 1000}, "d_in = 1000 is neither"), ({"classes": 3}, "has 10 classes")]
)
def test_what_cannot_be_shown_is_an_error_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gb.measure("residual_mlp", "bptt", system_options=options)


def test_given_images_need_their_labels() -> None:
    with pytest.raises(UserError, match="x comes with the label"):
        gb.measure("residual_mlp", "bptt", data={"x": torch.zeros(2, 7)})
    given = {"x": torch.zeros(2, 7), "label": torch.tensor([0, 4])}
    assert gb.measure("residual_mlp", "bptt", data=given, system_options={"d": 8}).row["batch"] == 2


def test_coordinates_without_meaning_fold_and_rules_without_steps_are_skipped() -> None:
    grid = {"system": {"name": "residual_mlp", **SMALL}, "estimator": ["bptt", "ep", "tbptt"], "T1": [5, 10]}
    grid |= {"s": [0.5, 1.0], "damp": [0.0, 1.0], "T2": [3, 9], "beta": 0.5}
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    assert sorted((c.estimator, c.T1, c.sigma, c.damp, c.T2 or 0) for c in planned.cells) == [
        ("bptt", None, None, None, 0), ("ep", None, None, None, 3), ("ep", None, None, None, 9),
    ]  # fmt: skip
    assert {cell.estimator for cell, _ in planned.skipped} == {"tbptt"}
    assert planned.skipped[0][1] == "the free state of residual_mlp is a forward pass: there are no steps to go back by"
    (problem,) = planned.problems
    assert problem.T1s == (0,)
    assert (problem.cost.force, problem.cost.vjp) == (1 + 9 * 3, 1)  # both signs and the row at rest


def test_the_certificate_of_no_steps_says_what_it_saw() -> None:
    m = gb.measure("residual_mlp", "bptt", system_options=SMALL, batch=4, dtype="float64")
    assert m.status == "settled"
    assert m.residual < 1e-15
    assert m.row["T1"] is None
    assert m.row["energy_monotone"] is None
    assert 0.9 < m.row["rho"] < 1
    assert m.antisymmetry < 1e-12


@pytest.mark.parametrize("readout", ["vector_field", "energy_contrast"])
def test_every_block_gradient_reaches_cosine_1_as_beta_falls_and_depth_grows(readout: str) -> None:
    for nudge, beta, depth, least in (("centred", 1e-3, 1000, 0.99999), ("positive", 1e-4, 1000, 0.99999)):
        options = {"readout": readout, "nudge": nudge}
        m = gb.measure(
            "residual_mlp", "ep", system_options=SMALL, batch=4, T2=depth, beta=beta, dtype="float64",
            estimator_options=options,
        )  # fmt: skip
        assert m.status == "settled"
        assert m.row["cosine_min"] > least, (nudge, m.row["worst"])
        assert m.rel_error < 1e-3


def test_the_mean_goes_a_bth_of_the_way_and_changes_nothing_else() -> None:
    """A mean with b eps is the sum with eps; with the same eps, as many steps fall short."""
    common: dict[str, Any] = {"system_options": SMALL, "batch": 4, "beta": 0.01, "dtype": "float64"}
    whole, mean = ({"reduction": r} for r in ("sum", "mean"))
    same = [
        gb.measure("residual_mlp", "ep", T2=40, eps=eps, estimator_options=options, **common).estimate
        for eps, options in ((0.1, whole), (0.4, mean))
    ]
    assert same[0] is not None
    assert same[1] is not None
    assert gap(same[1], same[0]) < 1e-9
    short, full = (
        gb.measure("residual_mlp", "ep", T2=20, estimator_options=options, **common).estimate
        for options in (mean, whole)
    )
    assert short is not None
    assert full is not None
    for name in full:
        ratio = float(short[name].norm() / full[name].norm())
        assert ratio < 0.6 if name.startswith("blocks") else ratio == 1.0 if name.startswith("out") else ratio < 1
