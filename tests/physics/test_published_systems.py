"""Systems of papers against plain torch: other code, the same numbers; and what their papers say of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from live import jacobian, live_field, random_like
from torch import Tensor, nn
from torch.nn import functional

from gradbench.conformance.system_checks import OpenField
from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.trajectory import relax
from gradbench.errors import UserError
from gradbench.planning import registry
from gradbench.vocabulary.coordinates import Knobs

pytestmark = pytest.mark.fast


def drawn(name: str, sigma: float = 1.0, damp: float = 0.0, **options: Any) -> tuple[Field, Tensor]:
    """A field of a system with other options than those of its live point, and a state with a row axis."""
    system = registry.system(name, options)
    theta = {
        n: p + 0.1 * random_like(p, seed=i) for i, (n, p) in enumerate(system.init_params(Streams(0)["p"]).items())
    }
    knobs = Knobs(*(torch.tensor(v, dtype=torch.float64) for v in (sigma, damp, 0.5)))
    field = Field(system, theta, system.sample(Streams(0), 2), knobs)
    return field, random_like(field.init_state().expand(3, -1, -1), seed=9)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["tanh_deq", "ctrnn", "transformer_deq", "energy_transformer"])
def test_the_cost_of_a_head_is_that_of_torch(name: str) -> None:
    for loss in ("cross_entropy", "squared_error"):
        field, s = drawn(name, loss=loss)
        features = field.system.features(field.theta, s[0])  # type: ignore[attr-defined]
        logits = functional.linear(features, field.theta["V"], field.theta["c"])
        expected = functional.cross_entropy(logits, field.x["label"], reduction="none")
        if loss == "squared_error":
            expected = 0.5 * (logits - functional.one_hot(field.x["label"], 10)).square().sum(-1)
        same(field.cost(s[0]), expected)


def test_a_whole_step_of_a_tanh_layer_is_the_layer_and_it_contracts_by_gain() -> None:
    field = live_field("tanh_deq", eps=1.0)
    s, W, U, b = field.init_state() + 0.3, *(field.theta[n] for n in "WUb")
    same(field.step(s), torch.tanh(functional.linear(s, W) + functional.linear(field.x["x"].flatten(1), U, b)))
    for gain in (0.3, 2.0):
        W = registry.system("tanh_deq", {"gain": gain, "width": 20}).init_params(Streams(0)["p"])["W"]
        assert float(torch.linalg.svdvals(W)[0]) == pytest.approx(gain, rel=1e-12)


def test_time_constants_move_no_fixed_point_and_rates_rest_where_pineda_s_do() -> None:
    ends = []
    for slowest in (1.0, 4.0):
        field, s = drawn("ctrnn", sigma=0.5, width=9, slowest=slowest)
        for _ in range(800):
            s = field.step(s)
        ends.append(s)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-11)
    r, theta = s.tanh(), field.theta
    entering = functional.linear(field.x["x"].flatten(1), theta["U"], theta["b"])
    held = torch.tanh(0.5 * functional.linear(r, theta["W"]) + entering)
    torch.testing.assert_close(held, r, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_block_of_the_transformer_is_that_of_torch(norm: str) -> None:
    """Of post-norm at z + u; of pre-norm with the input in place of the state where the residual begins."""
    field, s = drawn("transformer_deq", D=8, heads=2, hidden=6, norm=norm)
    theta, z = field.theta, s[0].unflatten(-1, (16, 8))
    layer = nn.TransformerEncoderLayer(8, 2, 6, 0.0, nn.GELU(), batch_first=True).double()
    with torch.no_grad():
        for linear, name in ((layer.linear1, "1"), (layer.linear2, "2")):
            linear.weight.copy_(theta[f"W{name}"])
            linear.bias.copy_(theta[f"b{name}"])
        for part, name in ((layer.norm1, "ln1"), (layer.norm2, "ln2")):
            part.weight.copy_(theta[f"{name}.weight"])
            part.bias.copy_(theta[f"{name}.bias"])
        layer.self_attn.in_proj_weight.copy_(torch.cat([theta["WQ"], theta["WK"], theta["WV"]]))
        layer.self_attn.in_proj_bias.zero_()
        layer.self_attn.out_proj.weight.copy_(theta["WO"])
        layer.self_attn.out_proj.bias.zero_()
        u = functional.conv2d(field.x["x"], theta["Wenc"], stride=7).flatten(2).mT + theta["bpos"]
        if norm == "post":
            expected = layer(z + u)
        else:
            read = layer.norm1(z)
            h = u + layer.self_attn(read, read, read, need_weights=False)[0]
            expected = h + layer.linear2(functional.gelu(layer.linear1(layer.norm2(h))))
    same(field.force(s[0]), (expected - z).flatten(1))


def energy_of_paper(theta: dict[str, Tensor], g: Tensor) -> Tensor:
    """E of one image by the sums of the paper: heads, tokens that attend, tokens that are attended to, memories."""
    tokens, heads, width = len(g), *theta["WQ"].shape[:2]
    b, E = 1 / math.sqrt(width), g.new_zeros(())
    for h in range(heads):
        for C in range(tokens):
            terms = [torch.exp(b * (theta["WK"][h] @ g[B]) @ (theta["WQ"][h] @ g[C])) for B in range(tokens) if B != C]
            E = E - torch.stack(terms).sum().log() / b
    for B in range(tokens):
        E = E - 0.5 * sum(torch.relu(memory @ g[B]) ** 2 for memory in theta["Wmem"].mT)
    return E


def test_the_energy_transformer_descends_the_energy_of_its_paper_over_the_normed_tokens() -> None:
    field, s = drawn("energy_transformer", damp=0.7, patch=14, D=6, heads=2, dh=3, mem=5)
    theta = field.theta
    u = functional.conv2d(field.x["x"], theta["Wenc"], stride=14).flatten(2).mT + theta["bpos"]
    for example in range(2):
        x = s[0, example].unflatten(-1, (4, 6))
        g = theta["gamma"] * functional.layer_norm(x, (6,)) + theta["delta"]
        slope = torch.func.grad(lambda g: energy_of_paper(theta, g))(g)
        same(field.force(s[0])[example], (u[example] - slope - 0.7 * x).flatten())


def test_the_energy_transformer_has_real_eigenvalues_no_energy_over_x_and_a_function_that_falls() -> None:
    field = live_field("energy_transformer", batch=1)
    theta, (s,) = field.theta, relax(field, (30,)).ends
    J = jacobian(lambda v: field.force(v[None])[0], s[0])
    assert float((J - J.mT).norm() / J.norm()) > 1e-2
    assert float(torch.linalg.eigvals(J).imag.abs().max()) < 1e-8
    c, u = field.knobs.damp, field.context["input"][0]

    def falling(s: Tensor) -> Tensor:
        x = s.unflatten(-1, u.shape)
        g = theta["gamma"] * functional.layer_norm(x, x.shape[-1:]) + theta["delta"]
        std = (x.var(-1, correction=0) + 1e-5).sqrt()
        leak = (x * g).sum() - (x.shape[-1] * theta["gamma"] * std).sum() - (theta["delta"] * x).sum()
        return c * leak - (u * g).sum() + energy_of_paper(theta, g)

    states = relax(live_field("energy_transformer", batch=1, eps=0.02), (200,)).states[:, 0]
    values = torch.stack([falling(s) for s in states[::10]])
    assert bool((values.diff() < 0).all())


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_a_convolutional_network_goes_down_its_energy_as_torch_writes_it(pooling: str) -> None:
    field, s = drawn("conv_hopfield", channels=2, pooling=pooling)
    pool = functional.avg_pool2d if pooling == "average" else functional.max_pool2d
    theta, s = field.theta, s[0]

    def energy(s: Tensor) -> Tensor:
        r = torch.sigmoid(4 * (s - 0.5))
        first, second, out = r[:, :288].view(2, 2, 12, 12), r[:, 288:352].view(2, 4, 4, 4), r[:, 352:]
        up = [pool(functional.conv2d(v, theta[f"w{i}"], theta[f"b{i}"]), 2) for i, v in ((1, field.x["x"]), (2, first))]
        heard = functional.linear(second.flatten(1), theta["w_out"], theta["b_out"])
        pairs = ((first, up[0]), (second, up[1]), (out, heard))
        return 0.5 * s.square().sum() - sum((a * b).sum() for a, b in pairs)

    same(field.force(s), -torch.func.grad(energy)(s))
    with_feedback = registry.system("conv_hopfield_feedback", {"channels": 2, "pooling": pooling})
    symmetric = theta | {"f2": theta["w2"], "f_out": theta["w_out"]}
    same(replace(field, system=with_feedback, theta=symmetric).force(s), field.force(s))


def test_feedback_weights_are_as_far_from_the_forward_ones_as_asked() -> None:
    for sine in (0.1, 0.6, 1.0):
        theta = registry.system("conv_hopfield_feedback", {"feedback_asymmetry": sine}).init_params(Streams(0)["p"])
        f, w = theta["f_out"].flatten(), theta["w_out"].flatten()
        cosine = float(f @ w / f.norm() / w.norm())
        assert cosine == pytest.approx(math.sqrt(1 - sine**2), abs=3 / math.sqrt(len(f)))
        assert float(f.norm() / w.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("tanh_deq", {"gain": 0}, "gain = 0 is not above 0"),
        ("tanh_deq", {"classes": 3}, "classes = 3, and dataset 'fashion_mnist_sample' has 10 classes"),
        ("ctrnn", {"slowest": 0.5}, "slowest = 0.5 is below 1"),
        ("transformer_deq", {"heads": 5}, "D = 32 is not a multiple of heads = 5"),
        ("transformer_deq", {"patch": 5}, "img = 28 is not a multiple of patch = 5"),
        ("conv_hopfield", {"pool": 5}, "layer 1: kernel = 5 leaves 24 of 28 pixels of a side, which is no multiple"),
        ("conv_hopfield", {"depth": 4}, "layer 3: kernel = 5 leaves 0 of 4 pixels"),
        ("conv_hopfield_feedback", {"feedback_asymmetry": 0.0}, "symmetric weights are conv_hopfield"),
        ("conv_hopfield_feedback", {"feedback_asymmetry": 1.5}, "is not above 0 and at most 1"),
    ],
)
def test_options_that_make_no_system_are_named(system: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.system(system, options).check(4)


def test_an_image_of_ones_own_comes_with_its_label() -> None:
    with pytest.raises(UserError, match="data of ctrnn: x comes with the label of every example"):
        registry.system("ctrnn").check(2, ["x"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv_hopfield", {"channels": 1, "pooling": "average"}),  # the live point has one convolution
        ("conv_hopfield", {"channels": 1, "pooling": "max"}),
        ("conv_hopfield_feedback", {"channels": 1, "pooling": "average"}),
        ("conv_hopfield_feedback", {"channels": 1, "pooling": "max"}),
        ("transformer_deq", {"D": 8, "heads": 2, "hidden": 6, "norm": "pre"}),
    ],
)
def test_options_that_no_live_point_has_have_the_derivatives_of_autograd(name: str, options: dict[str, Any]) -> None:
    field, s = drawn(name, **options)
    a, open_field = random_like(s, seed=3), OpenField(field.system, field.theta, field.x, field.knobs)
    for closed, recorded in ((field.at(s), Linear(field.force, s)), (field.swirl_at(s), Linear(field.swirl, s))):
        same(closed.jvp(a), recorded.jvp(a))
        same(closed.vjp(a), recorded.vjp(a))
    expected = open_field.pull(s, a)
    for param, pulled in field.pull(s, a).items():
        torch.testing.assert_close(pulled, expected[param], rtol=1e-11, atol=1e-12, msg=param)
