"""A residual network whose layers relax: an energy of prediction errors that its forward pass makes zero."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from gradbench import data
from gradbench.errors import UserError
from gradbench.streams import normal, uniform
from gradbench.systems.base import AbstractForwardSystem, Data, Knobs, Params

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.streams import Streams

LN_EPS = 1e-5  # that of torch.nn.LayerNorm


@final
@dataclass(frozen=True)
class ResidualMlp(AbstractForwardSystem):
    """Residual MLP as an energy of prediction errors: its free state is the forward pass, its reference backprop.

    E = 1/2 sum_l |h_{l+1} - h_l - F_l(h_l)|^2,   F_l(h) = fc2_l(act(fc1_l(LN_l(h)))),   h_0 = embed(x) clamped
    C = cross-entropy of out_head(out_ln(h_L)), with parameters of its own. State h_1 ... h_L.
    """

    name: ClassVar[str] = "residual_mlp"
    source: ClassVar[str] = "Scellier & Bengio 2017 on a pre-norm residual MLP; Whittington & Bogacz 2017 (the energy)"
    per_example: ClassVar[frozenset[str]] = frozenset({"x", "label"})
    defaults: ClassVar[Mapping[str, Any]] = {"T2": 20, "beta": 0.5, "eps": 0.1, "batch": 128}

    d_in: int = 3072  # pixels of an image with all its colours
    d: int = 256  # width of a layer
    classes: int = 10
    L: int = 4  # residual blocks
    activation: Literal["gelu", "relu", "tanh"] = "gelu"
    dataset: str = "fashion_mnist_sample"

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        if "x" in given:
            if "label" not in given:
                raise UserError(f"data of {self.name}: x comes with the label of every example")
            return
        data.check(self.dataset, *self._shown, batch)
        if self.classes < data.CLASSES:
            raise UserError(
                f"{self.name}: classes = {self.classes}, and dataset {self.dataset!r} has {data.CLASSES} classes"
            )

    @property
    def _shown(self) -> tuple[int, int]:
        """Colours and pixels of a side of an image with d_in values."""
        side = 28 if self.d_in == 28**2 else 32
        if self.d_in % side**2:
            raise UserError(f"{self.name}: d_in = {self.d_in} is neither 28 x 28 nor colours x 32 x 32")
        return self.d_in // side**2, side

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {f"h{i + 1}": (self.d,) for i in range(self.L)}

    @property
    def clamped(self) -> dict[str, tuple[int, ...]]:
        return {"h0": (self.d,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        linear = {"fc1.weight": (self.d, self.d), "fc1.bias": (self.d,), "fc2.weight": (self.d, self.d)}
        block = {"ln.weight": (self.d,), "ln.bias": (self.d,), **linear, "fc2.bias": (self.d,)}
        return {
            "embed.weight": (self.d, self.d_in),
            "embed.bias": (self.d,),
            **{f"blocks.{i}.{name}": shape for i in range(self.L) for name, shape in block.items()},
            "out_ln.weight": (self.d,),
            "out_ln.bias": (self.d,),
            "out_head.weight": (self.classes, self.d),
            "out_head.bias": (self.classes,),
        }

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, self.d_in), "label": (batch,)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "x" in given:
            found |= {"d_in": given["x"].shape[-1], "dataset": data.GIVEN}
        if "embed.weight" in params:
            found |= {"d": params["embed.weight"].shape[0], "d_in": params["embed.weight"].shape[1]}
        if "out_head.weight" in params:
            found |= {"classes": params["out_head.weight"].shape[0]}
        if blocks := {name.split(".")[1] for name in params if name.startswith("blocks.")}:
            found |= {"L": len(blocks)}
        return found

    def init_params(self, rng: Generator) -> Params:
        """As torch.nn.Linear and LayerNorm begin, but for fc2.weight: the blocks begin close to nothing."""
        shapes, theta = self.shapes, {}
        for name, shape in shapes.items():
            module, _, kind = name.rpartition(".")
            if module.endswith("ln"):
                theta[name] = normal(rng, shape, 0.0) + (kind == "weight")
            elif name.endswith("fc2.weight"):
                theta[name] = normal(rng, shape, 0.01)
            else:
                theta[name] = uniform(rng, shape, 1 / math.sqrt(shapes[f"{module}.weight"][1]))
        return theta

    def sample(self, streams: Streams, batch: int) -> Data:
        if self.dataset == data.GIVEN:
            return {}
        images, label = data.labelled(self.dataset, *self._shown, batch, streams["data"])
        return {"x": images.flatten(1), "label": label}

    def context(self, theta: Params, x: Data) -> Params:
        return {"h0": _linear(theta, "embed", x["x"])}

    def forward(self, theta: Params, x: Data, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        import torch

        moves = offset.split(self.d, -1)
        layers = [self.context(theta, x)["h0"] + moves[0]]
        for i, move in enumerate(moves[1:]):
            block = {n.removeprefix(f"blocks.{i}."): p for n, p in theta.items() if n.startswith(f"blocks.{i}.")}
            h = layers[-1]
            inner = self._act(_linear(block, "fc1", _norm(h) * block["ln.weight"] + block["ln.bias"]))
            layers.append(h + _linear(block, "fc2", inner) + move)
        return torch.cat(layers, -1)

    def errors(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self._errors(theta, context, s)[0].flatten(-2)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """-e_l + (1 + F_l')^T e_{l+1}: drawn to the prediction from below, and to where it predicts what is above."""
        import torch

        error, slopes = self._errors(theta, context, s)
        xhat, deviation, gain, inner, W1, W2 = slopes
        back = torch.einsum("...lk,lkd->...ld", inner * torch.einsum("...ld,ldk->...lk", error, W2), W1) * gain
        centred = back - back.mean(-1, keepdim=True) - xhat * (back * xhat).mean(-1, keepdim=True)
        above = (error + centred / deviation)[..., 1:, :]
        return (torch.cat((above, torch.zeros_like(error[..., :1, :])), -2) - error).flatten(-2)

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        h = _norm(s[..., -self.d :]) * theta["out_ln.weight"] + theta["out_ln.bias"]
        logits = _linear(theta, "out_head", h)
        label = x["label"].expand(logits.shape[:-1])[..., None]
        return logits.logsumexp(-1) - logits.gather(-1, label)[..., 0]

    def _errors(self, theta: Params, context: Params, s: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """h_{l+1} - h_l - F_l(h_l) of all blocks at once, `(*r, b, L, d)`, and what its transpose is made of."""
        import torch

        def of(name: str) -> Tensor:
            return torch.stack([theta[f"blocks.{i}.{name}"] for i in range(self.L)])

        h = s.unflatten(-1, (self.L, self.d))
        below = torch.cat((context["h0"].expand(h[..., 0, :].shape)[..., None, :], h[..., :-1, :]), -2)
        gain, W1, W2 = of("ln.weight"), of("fc1.weight"), of("fc2.weight")
        deviation = (below.var(-1, correction=0, keepdim=True) + LN_EPS).sqrt()
        xhat = (below - below.mean(-1, keepdim=True)) / deviation
        u = torch.einsum("...ld,lkd->...lk", xhat * gain + of("ln.bias"), W1) + of("fc1.bias")
        branch = torch.einsum("...lk,ldk->...ld", self._act(u), W2) + of("fc2.bias")
        return h - below - branch, (xhat, deviation, gain, self._act_slope(u), W1, W2)

    def _act(self, u: Tensor) -> Tensor:
        import torch

        return {"gelu": torch.nn.functional.gelu, "relu": torch.relu, "tanh": torch.tanh}[self.activation](u)

    def _act_slope(self, u: Tensor) -> Tensor:
        if self.activation == "relu":
            return (u > 0).to(u)
        if self.activation == "tanh":
            return 1 - u.tanh().square()
        return 0.5 * (1 + (u / math.sqrt(2)).erf()) + u * (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi)


def _linear(theta: Params, name: str, v: Tensor) -> Tensor:
    return v @ theta[f"{name}.weight"].mT + theta[f"{name}.bias"]


def _norm(h: Tensor) -> Tensor:
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + LN_EPS).sqrt()
