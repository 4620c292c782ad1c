"""Code of users that must work, and code that is refused, with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from written import normal, seeded

import gradbench as gb

DATA = {"x": normal(5, 6), "y": normal(5, 6)}


class Cubed(torch.autograd.Function):
    """A custom function without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.square() * grad


class Stored(nn.Module):
    """A module that any function of a test may call."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner, self.layers = nn.Linear(6, 6), nn.Sequential(*layers)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.layers(z)))


def parts(net: nn.Module | dict[str, Tensor], step: Callable[..., Any], **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "cost": lambda net, x, z: (z - x["y"]).square().sum(-1),
        "state": lambda net, x: torch.zeros_like(x["x"]),
        "params": net,
        "data": DATA,
        "name": "tried",
    } | more


def plainly(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    return net(z) + 0.1 * x["x"]


def gru(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    return 0.5 * net(x["x"], z)


def in_place(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    v = net(z).clone()
    v += 0.1 * x["x"]
    v[:, :2] *= 0.5
    return v.relu_()


def branching(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    buffer = torch.zeros_like(z)
    buffer[z > 0] = z[z > 0]
    return net(buffer) + 0.1 * x["x"] if z.abs().sum().item() >= 0 else z


def attention(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    q, k, v = net(z + x["x"]).unflatten(-1, (3, 2)).unsqueeze(1).expand(-1, 3, 3, 2).split(1, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).reshape(z.shape)


WORKS: dict[str, Callable[[], dict[str, Any]]] = {
    "layer norm": lambda: parts(seeded(Stored, nn.LayerNorm(6)), plainly),
    "batch norm in eval mode": lambda: parts(seeded(Stored, nn.BatchNorm1d(6)), plainly),
    "dropout in eval mode": lambda: parts(seeded(Stored, nn.Dropout(0.5)), plainly),
    "weight norm": lambda: parts(seeded(lambda: _weight_norm()), plainly),
    "spectral norm": lambda: parts(seeded(lambda: _spectral_norm()), plainly),
    "gru": lambda: parts(seeded(nn.GRUCell, 6, 6), gru),
    "in place": lambda: parts(seeded(Stored), in_place),
    "branches": lambda: parts(seeded(Stored), branching),
    "attention": lambda: parts(seeded(Stored), attention),
    "custom function": lambda: parts(seeded(Stored), lambda net, x, z: Cubed.apply(net(z)) + 0.1 * x["x"]),
    "compiled module": lambda: parts(torch.compile(seeded(Stored, nn.LayerNorm(6))), plainly),
    "compiled function": lambda: parts(seeded(Stored), torch.compile(plainly)),
    "dict of arrays": lambda: parts(
        {"W": (0.2 * normal(6, 6)).numpy()}, lambda net, x, z: (z @ net["W"]).tanh() + x["x"]
    ),
}


def _weight_norm() -> nn.Module:
    net = Stored()
    nn.utils.parametrizations.weight_norm(net.inner)
    return net


def _spectral_norm() -> nn.Module:
    net = Stored()
    nn.utils.parametrizations.spectral_norm(net.inner)
    return net


@pytest.mark.parametrize("made", WORKS.values(), ids=WORKS)
def test_code_of_users_is_measured(made: Callable[[], dict[str, Any]]) -> None:
    m = gb.measure(gb.system(**made()), "aep", T1=60, T2=40, beta=1e-4, dtype="float64")
    adjoint = gb.measure(gb.system(**made()), "adjoint", T1=60, T2=60, dtype="float64")
    assert m.status == "settled", m
    assert adjoint.rel_error < 1e-6, adjoint
    assert m.row["cosine_min"] > 0.999, m


def kept(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net(z) + 0.1 * net.calls


def writes(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
    z.mul_(0.9)
    return net(z)


OUTER = seeded(Stored)


def forced(**more: Any) -> Any:
    """A system of a force, a step and a projection."""
    made = parts(seeded(Stored), plainly)
    force = made.pop("step")
    return made | {"force": lambda net, x, z: force(net, x, z) - z, "eps": 0.5} | more


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "batch norm": (
        lambda: parts(Stored(nn.BatchNorm1d(6)).train(), plainly),
        r"step: writes to the buffer .*running_mean.*call \.eval\(\)",
    ),
    "dropout": (
        lambda: parts(Stored(nn.Dropout(0.5)).train(), plainly),
        r"step: two calls .* draws random numbers; .*eval\(\)",
    ),
    "noise": (lambda: parts(seeded(Stored), lambda net, x, z: net(z) + torch.randn_like(z)), "draws random numbers"),
    "kept": (lambda: parts(seeded(Stored), kept), "step: two calls .* something is kept between calls"),
    "coupled": (
        lambda: parts(seeded(Stored), lambda net, x, z: net(z) - z.mean(0)),
        "step: the result of an example changes by",
    ),
    "writes": (lambda: parts(seeded(Stored), writes), r"step: writes to the state z; write to a copy, as z\.clone\(\)"),
    "outer": (
        lambda: parts(OUTER, lambda net, x, z: OUTER(z) + x["x"]),
        "step: uses a parameter of the module outside",
    ),
    "no params": (
        lambda: parts({"W": normal(2, 2)}, lambda net, x, z: 0.5 * z + x["x"]),
        "neither step nor cost has a derivative by params; take the parameters from the first argument",
    ),
    "a cut graph": (
        lambda: parts(seeded(Stored), lambda net, x, z: net(z.detach()) + 0.1 * x["x"]),
        r"step: its derivative over the state is -0\.\d+ along a direction in which it changes by .* cuts the graph",
    ),
    "no_grad": (
        lambda: parts(seeded(Stored), lambda net, x, z: torch.no_grad()(net)(z) + 0.1 * net.inner.bias),
        "step: its derivative over the state",
    ),
    "batch": (
        lambda: parts(seeded(Stored), plainly, state=lambda net, x: torch.zeros(5, 6)),
        r"state: gives 5 examples where the data have 1; take their number from the data, as len\(x\['x'\]\)",
    ),
    "detached": (
        lambda: parts({"W": normal(6, 6)}, lambda net, x, z: (0.1 * z @ net["W"] + x["x"]).detach()),
        r"neither step nor cost has a derivative by params; they change with params, but no_grad, detach, .* cuts",
    ),
    "random start": (
        lambda: parts(seeded(Stored), plainly, state=lambda net, x: torch.randn_like(x["x"])),
        "state: two calls with equal arguments differ: it draws random numbers",
    ),
    "outer data": (
        lambda: parts(seeded(Stored), lambda net, x, z: net(z) + normal(5, 6)),
        "step raised RuntimeError: The size of tensor .*; take data from x and sizes from z: functions are called with",
    ),
    "outer number": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: torch.zeros(5, dtype=z.dtype)),
        r"cost: got shape \(5,\), expected \(10,\): .* take their number from z",
    ),
    "infinite cost": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: z.square().sum(-1) * math.inf),
        "cost: got inf, expected finite numbers",
    ),
    "true or false": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: z.sum(-1) > 0),
        "cost: got bool, expected float64, the dtype of z",
    ),
    "places": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: z.argmax(-1)),
        "cost: got int64, expected float64, the dtype of z",
    ),
    "half": (
        lambda: parts(seeded(Stored), lambda net, x, z: (net(z) + x["x"]).half()),
        "step: got float16, expected float(32|64), the dtype of z",
    ),
    "projected batch": (
        lambda: forced(project=lambda z: z / z.norm()),
        "project: the result of an example changes by .* with the other examples of its batch",
    ),
    "projection without a slope": (
        lambda: forced(project=lambda z: z.detach()),
        "project: its derivative over the state is 0 along a direction in which it changes",
    ),
    "a class": (
        lambda: parts(Stored, plainly),
        r"params: got the class Stored, expected a module: Stored\(\.\.\.\)",
    ),
    "divided": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(-1) / len(z)),
        "cost: is divided by the number of examples, 5",
    ),
    "last axis": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(-1, keepdim=True)),
        r"cost: got shape \(5, 1\), expected \(5,\): drop the last axis",
    ),
    "unread knob": (
        lambda: parts(seeded(Stored), plainly, knobs={"gain": 1.0}),
        r"knobs\['gain'\]: no function reads k.gain",
    ),
    "knob typo": (
        lambda: parts(seeded(Stored), lambda net, x, z, k: k.gian * net(z), knobs={"gain": 1.0}),
        "step raised AttributeError: there is no knob 'gian'. Did you mean 'gain'",
    ),
    "checkpoint": (
        lambda: parts(seeded(Stored), lambda net, x, z: checkpoint(net, z, use_reentrant=False)),
        "activation checkpointing",
    ),
    "raises": (lambda: parts(seeded(Stored), lambda net, x, z: net(z)[:, 99]), "tried: step raised IndexError: "),
    "shape": (
        lambda: parts(seeded(Stored), lambda net, x, z: net(z)[:, :2]),
        r"step: got shape \(5, 2\), expected \(5, 6\) as in",
    ),
    "kind": (
        lambda: parts(seeded(Stored), lambda net, x, z: (net(z),)),
        "step: got a tuple of 1 tensors, expected a tensor as in `state`",
    ),
    "dict": (
        lambda: parts(seeded(Stored), lambda net, x, z: {"z": net(z)}),
        "step: got a dict of z, expected a tensor as in `state`",
    ),
    "nan": (lambda: parts(seeded(Stored), lambda net, x, z: net(z) / 0 * 0), "step: got NaN, expected finite numbers"),
    "sum": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum()),
        r"cost: got one scalar, expected a number for every example, \(5,\).*cost_of='sum'",
    ),
    "mean": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(-1).mean()),
        "cost: got one scalar.*cost_of='mean'",
    ),
    "neither": (
        lambda: parts(seeded(Stored), plainly, cost=lambda net, x, z: (z @ z.mT).logsumexp(-1).sum(), cost_of="sum"),
        "neither the sum nor the mean",
    ),
    "not the sum": (
        lambda: parts(
            seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(-1).mean(), cost_of="sum"
        ),
        "cost_of = 'sum', but it is the mean over its examples",
    ),
    "step and force": (
        lambda: parts(seeded(Stored), plainly, force=plainly),
        "system: got force and step, expected one of",
    ),
    "nothing": (lambda: parts(seeded(Stored), None), "system: got none of them, expected one of"),
    "eps": (lambda: parts(seeded(Stored), None, force=plainly), "eps: missing: with force or energy"),
    "taken": (lambda: parts(seeded(Stored), plainly, name="cet"), "the name 'cet' is taken"),
    "of a rule": (lambda: parts(seeded(Stored), plainly, name="ep"), "the name 'ep' is that of an estimator"),
    "arguments": (lambda: parts(seeded(Stored), lambda net, z: z), r"step: takes 2 arguments, expected \(net, x, z\)"),
    "no examples": (
        lambda: parts(seeded(Stored), plainly, shared=["x", "y"]),
        "data: no entry has an axis of examples",
    ),
    "examples": (
        lambda: parts(seeded(Stored), plainly, data=DATA | {"m": normal(3)}),
        "data: entries disagree .* 3 of m",
    ),
    "coordinate": (
        lambda: parts(seeded(Stored), plainly, defaults={"T3": 3}),
        r"defaults\['T3'\]: is not a coordinate",
    ),
    "frozen": (
        lambda: parts(seeded(Stored).requires_grad_(False), plainly),
        "params: got no parameter that needs a gradient",
    ),
    "knob": (lambda: parts(seeded(Stored), plainly, knobs={"beta": 1.0}), r"knobs\['beta'\]: the name is taken"),
}


@pytest.mark.parametrize(("made", "told"), REFUSED.values(), ids=REFUSED)
def test_code_that_cannot_be_measured_is_refused_with_the_reason(made: Callable[[], Any], told: str) -> None:
    with pytest.raises(gb.UserError, match=re.compile(told, re.DOTALL)):
        gb.system(**made())


def test_the_module_of_the_caller_is_never_changed() -> None:
    net = Stored(nn.LayerNorm(6)).train()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    tensors = dict(net.named_parameters())
    mine = gb.system(**parts(net, plainly))
    first = gb.measure(mine, "adjoint", T1=40, T2=40)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert all(p is tensors[n] and p.grad is None for n, p in net.named_parameters())
    assert net.training
    with torch.no_grad():
        net.inner.weight.zero_()  # what was handed over is a copy
    assert gb.measure(mine, "adjoint", T1=40, T2=40).cosine == first.cosine


def test_a_scalar_cost_is_taken_one_example_at_a_time() -> None:
    each = gb.system(**parts(seeded(Stored), plainly))
    summed = parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(), cost_of="sum")
    mean = parts(seeded(Stored), plainly, cost=lambda net, x, z: (z - x["y"]).square().sum(-1).mean(), cost_of="mean")
    at = {"T1": 40, "T2": 20, "beta": 0.01, "dtype": "float64"}
    expected = gb.measure(each, "aep", **at).reference
    for made, over in ((summed, 1), (mean, 5)):
        got = gb.measure(gb.system(**made), "aep", **at).reference
        for name, g in expected.items():
            assert torch.allclose(got[name] * over, g, rtol=1e-12, atol=1e-14)


def test_a_complex_state_relaxes_as_two_real_coordinates() -> None:
    """dz/dt = W z - |z|^2 z with complex z, against the same system in real and imaginary parts."""
    W = torch.complex(0.3 * normal(4, 4), 0.2 * normal(4, 3)[:, :1] * normal(4, 4))
    both = {"re": W.real.clone(), "im": W.imag.clone()}

    def force(net: Any, x: Any, z: Tensor) -> Tensor:
        return z @ torch.complex(net["re"], net["im"]) - z - z.abs().square() * z + x["x"]

    def written_out(net: Any, x: Any, z: Tensor) -> Tensor:
        re, im = z.unbind(-1)
        size = 1 + re.square() + im.square()
        moved = re @ net["re"] - im @ net["im"] - size * re + x["x"], re @ net["im"] + im @ net["re"] - size * im
        return torch.stack(moved, -1)

    data = {"x": normal(3, 4), "y": normal(3, 4)}
    common = {"params": both, "data": data, "eps": 0.1}
    complex_ = gb.system(
        force=force,
        cost=lambda net, x, z: (z - x["y"]).abs().square().sum(-1),
        state=lambda net, x: torch.zeros(len(x["x"]), 4, dtype=torch.complex64),
        name="complex",
        **common,
    )
    real = gb.system(
        force=written_out,
        cost=lambda net, x, z: (z[..., 0] - x["y"]).square().sum(-1) + z[..., 1].square().sum(-1),
        state=lambda net, x: torch.zeros(len(x["x"]), 4, 2),
        name="real",
        **common,
    )
    at = {"T1": 300, "T2": 100, "beta": 0.01, "dtype": "float64"}
    for rule in ("ep", "aep", "adjoint"):
        a, b = gb.measure(complex_, rule, **at), gb.measure(real, rule, **at)
        assert a.status == b.status == "settled"
        for name in both:
            assert torch.allclose(a.estimate[name], b.estimate[name], rtol=1e-9, atol=1e-12)
            assert torch.allclose(a.reference[name], b.reference[name], rtol=1e-9, atol=1e-12)


def test_tied_entries_of_a_dict_are_one_parameter_and_frozen_ones_are_constants() -> None:
    weight, fixed = normal(6, 6) / 6, nn.Parameter(normal(6), requires_grad=False)

    def step(net: dict[str, Tensor], x: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.tanh(z @ net["W"] + z @ net["U"].T + x["x"] + net["b"])

    tied = gb.system(**parts({"W": weight, "U": weight, "b": fixed}, step))
    loose = gb.system(**parts({"W": weight, "U": weight.clone(), "b": fixed}, step) | {"name": "loose"})
    assert tied.shapes == {"W": (6, 6)}
    assert loose.shapes == {"W": (6, 6), "U": (6, 6)}
    assert tied.digest != loose.digest
    at = {"T1": 30, "T2": 20, "dtype": "float64"}
    one, two = gb.measure(tied, "adjoint", **at), gb.measure(loose, "adjoint", **at)
    assert one.reference is not None
    assert two.reference is not None
    torch.testing.assert_close(one.reference["W"], two.reference["W"] + two.reference["U"], rtol=1e-12, atol=1e-14)
