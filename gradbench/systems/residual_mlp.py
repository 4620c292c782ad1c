"""A residual network whose layers relax. Its energy is that of prediction errors, zero on the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.activations import ACTIVATIONS
from gradbench.systems.base import BACK, DIRECT, Data, Params
from gradbench.systems.residual_options import AbstractResidualOptions
from gradbench.systems.tokens import layer_norm, layer_norm_jvp, layer_norm_saved
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@final
@dataclass(frozen=True)
class ResidualMlp(AbstractResidualOptions):
    """Residual MLP as an energy of prediction errors: its free state is the forward pass, its reference backprop.

    E = 1/2 sum_l |h_{l+1} - h_l - F_l(h_l)|^2,   F_l(h) = fc2_l(act(fc1_l(LN_l(h)))),   h_0 = embed(x) clamped
    C = cross-entropy of out_head(out_ln(h_L)), so the cost has parameters. State h_1 ... h_L.
    """

    name: ClassVar[str] = "residual_mlp"
    source: ClassVar[str] = "Scellier & Bengio 2017 on a pre-norm residual MLP; Whittington & Bogacz 2017 (the energy)"
    real_only: ClassVar[str | None] = "its activations and layer norms are those of real numbers"
    defaults: ClassVar[Mapping[str, float]] = {"T2": 20, "beta": 0.5, "eps": 0.1, "batch": 128}

    def context(self, theta: Params, x: Data) -> Params:
        return {"h0": _linear(theta, "embed", x["x"])}

    def forward(self, theta: Params, x: Data, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        import torch

        act, _ = self._activation
        moves = offset.split(self.d, -1)
        layers = [self.context(theta, x)["h0"] + moves[0]]
        for i, move in enumerate(moves[1:]):
            block, h = f"blocks.{i}.", _passed_up(theta, f"h{i}", layers[-1])
            normed = layer_norm(h) * theta[block + "ln.weight"] + theta[block + "ln.bias"]
            inner = act(_linear(theta, block + "fc1", normed))
            layers.append(h + _linear(theta, block + "fc2", inner) + move)
        return torch.cat(layers, -1)

    def errors(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self._errors(theta, context, s)[0].flatten(-2)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """-e_l + (1 + F_l')^T e_{l+1}.

        A layer moves to its prediction from the layer below, and to where it predicts the layer above.
        """
        import torch

        error, slopes = self._errors(theta, context, s)
        xhat, deviation, gain, inner, W1, W2 = slopes
        back = torch.einsum("...lk,lkd->...ld", inner * torch.einsum("...ld,ldk->...lk", error, W2), W1) * gain
        above = (error + layer_norm_jvp(xhat, deviation, back))[..., 1:, :]
        return (torch.cat((above, torch.zeros_like(error[..., :1, :])), -2) - error).flatten(-2)

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        h = layer_norm(s[..., -self.d :]) * theta["out_ln.weight"] + theta["out_ln.bias"]
        logits = _linear(theta, "out_head", h)
        for layer, B in self._direct(theta, x, s):
            logits = logits + (layer - layer.detach()) @ B.mT  # adds zero: only credit goes this way
        label = x["label"].expand(logits.shape[:-1])[..., None]
        return logits.logsumexp(-1) - logits.gather(-1, label)[..., 0]

    def _direct(self, theta: Params, x: Data, s: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Layers that get their credit from the logits directly, each with the matrix that it comes through."""
        for name, B in theta.items():
            if name.startswith(DIRECT):
                layers = self.context(theta, x) | self.split(s)
                yield layers[name.removeprefix(DIRECT)], B

    def _errors(self, theta: Params, context: Params, s: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """h_{l+1} - h_l - F_l(h_l) of all blocks at once, `(*r, b, L, d)`, and the factors of (1 + F_l')^T."""
        import torch

        def stacked(name: str) -> Tensor:
            return torch.stack([theta[f"blocks.{i}.{name}"] for i in range(self.L)])

        act, act_slope = self._activation
        h = s.unflatten(-1, (self.L, self.d))
        below = torch.cat((context["h0"].expand(h[..., 0, :].shape)[..., None, :], h[..., :-1, :]), -2)
        gain, W1, W2 = stacked("ln.weight"), stacked("fc1.weight"), stacked("fc2.weight")
        xhat, deviation = layer_norm_saved(below)
        u = torch.einsum("...ld,lkd->...lk", xhat * gain + stacked("ln.bias"), W1) + stacked("fc1.bias")
        branch = torch.einsum("...lk,ldk->...ld", act(u), W2) + stacked("fc2.bias")
        return h - below - branch, (xhat, deviation, gain, act_slope(u), W1, W2)

    @cached_property
    def _activation(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """act and its derivative."""
        return ACTIVATIONS[self.activation]


def _linear(theta: Params, name: str, v: Tensor) -> Tensor:
    W, bias, back = theta[f"{name}.weight"], theta[f"{name}.bias"], theta.get(f"{BACK}{name}.weight")
    if back is None:
        return v @ W.mT + bias
    held = v.detach()
    return held @ W.mT + (v - held) @ back.mT + bias  # W gets its own gradient, and v that of a map by `back`


def _passed_up(theta: Params, name: str, h: Tensor) -> Tensor:
    """A layer as the layer above reads it: no credit comes back from there where it comes directly."""
    return h.detach() if DIRECT + name in theta else h
