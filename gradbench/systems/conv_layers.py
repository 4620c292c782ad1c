"""Convolutional layers and a dense one that drive each other both ways: what convolutional Hopfield networks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.systems.base import ClosedForms, Data, Params, Saved
from gradbench.systems.conv_options import AbstractConvOptions
from gradbench.systems.convolutions import (
    convolved,
    convolved_back,
    flat,
    of_kernel,
    pooled,
    pooled_back,
    shares_of_largest,
    windows,
)
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class AbstractConvLayers(ClosedForms, AbstractConvOptions):
    """F = rho'(s) (K r + i) - s,   r = rho(s) = 1 / (1 + exp(2 - 4 s)),   i what the image and the biases add

    (K r)_l = P(w_l * r_{l-1}) + (P(f_{l+1} * .))^T r_{l+1}: up by the weights w, and down by the transposes of f.
    P is the pooling and * the convolution; the last connection is dense. K^T has w and f exchanged. s begins at 0.
    C = 1/2 |s_last - onehot(label)|^2, or the cross-entropy of s_last, without parameters.
    P is an average, whose transpose does not depend on the state. The transpose of a maximum follows the largest pixel:
    the force jumps where another one becomes the largest, and a state may end there and never settle.
    """

    def context(self, theta: Params, x: Data) -> Params:
        """i, and what tells the gradient of w_1: pooled windows of the image, or the shares of a maximum."""
        import torch

        more = {}
        if self.pooling == "average":  # it commutes with the kernel, and pooled windows are few
            more["windows"] = pooled(windows(x["x"], self.kernel), self.pool, None)
            seen = torch.einsum("bCijhw,KCij->bKhw", more["windows"], theta["w1"])
        else:
            whole = convolved(x["x"], theta["w1"])
            more["shares"] = shares_of_largest(whole, self.pool)
            seen = pooled(whole, self.pool, more["shares"])
        first = seen + theta["b1"][:, None, None]
        further = [
            theta[f"b{i}"][:, None, None].expand(len(seen), *self.layout[f"s{i}"]) for i in range(2, self.depth + 1)
        ]
        return {"input": flat([first, *further, theta["b_out"].expand(len(seen), -1)])} | more

    def logits(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b Y"]:
        return self.split(s)["out"]

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        import torch

        hidden = s.new_zeros((*s.shape[:-1], s.shape[-1] - self.classes))
        return torch.cat((hidden, self.logit_slope(theta, x, s)), -1)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        saved = self._heard(theta, context, s)
        bend = 4 * saved["slope"] * (1 - 2 * saved["r"])  # rho''
        return saved | {"bend": bend, "diagonal": bend * saved["heard"] - 1}

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        saved = self._heard(theta, context, s)
        return saved["slope"] * saved["heard"] - s

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        saved = self._heard(theta, context, s)
        heard = self.heard(theta, saved, saved["r"], up=self.connections) + context["input"]
        return (0.5 * s.square() - saved["r"] * heard).sum(-1)

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        heard = self.heard(theta, saved, saved["slope"] * v, up=self.connections, down=self.returning)
        return saved["slope"] * heard + saved["diagonal"] * v

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        heard = self.heard(theta, saved, saved["slope"] * a, up=self.returning, down=self.connections)
        return saved["slope"] * heard + saved["diagonal"] * a

    def _heard(self, theta: Params, context: Params, s: Float[Tensor, "*r b n"]) -> Saved:
        """r, rho' and K r + i, with the shares of a pooling by the maximum by the name of its weights."""
        r = (4 * s - 2).sigmoid()
        saved = {"r": r, "slope": 4 * r * (1 - r)}
        if self.pooling == "max":
            for below, w in zip(self.split(r).values(), self.connections[:-1], strict=False):
                saved[w] = shares_of_largest(convolved(below, theta[w]), self.pool)
        heard = self.heard(theta, saved, r, up=self.connections, down=self.returning)
        return saved | {"heard": heard + context["input"]}

    def heard(
        self,
        theta: Params,
        saved: Saved,
        r: Float[Tensor, "*r b n"],
        up: Sequence[str] = (),
        down: Sequence[str] = (),
    ) -> Float[Tensor, "*r b n"]:
        """What layers hear of rates r from below by the weights `up`, and from above by the transposes of `down`."""
        layers = list(self.split(r).values())
        heard: list[list[Tensor]] = [[] for _ in layers]
        for i, w in enumerate(up[:-1]):
            heard[i + 1].append(pooled(convolved(layers[i], theta[w]), self.pool, saved.get(self.connections[i])))
        for i, w in enumerate(down[:-1]):
            spread = pooled_back(layers[i + 1], self.pool, saved.get(self.connections[i]))
            heard[i].append(convolved_back(spread, theta[w]))
        for w in up[-1:]:
            heard[-1].append(layers[-2].flatten(-3) @ theta[w].mT)
        for w in down[-1:]:
            heard[-2].append((layers[-1] @ theta[w]).unflatten(-1, layers[-2].shape[-3:]))
        pairs = zip(layers, heard, strict=True)
        return flat([sum(parts[1:], parts[0]) if parts else v.new_zeros(v.shape) for v, parts in pairs])

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        import torch

        e, r = (list(self.split(v).values()) for v in (saved["slope"] * a, saved["r"]))
        grads = {f"b{i}": v.sum((-4, -2, -1)) for i, v in enumerate(e[:-1], 1)} | {"b_out": e[-1].sum(-2)}
        if self.pooling == "average":
            grads["w1"] = torch.einsum("...bKhw,...bCijhw->...KCij", e[0], context["windows"])
        else:
            grads["w1"] = of_kernel(pooled_back(e[0], self.pool, context["shares"]), x["x"])
        for i, (w, f) in enumerate(zip(self.connections, self.returning, strict=True)):
            if i + 1 < self.depth:
                up, down = (
                    of_kernel(pooled_back(above, self.pool, saved.get(w)), below)
                    for above, below in ((e[i + 1], r[i]), (r[i + 1], e[i]))
                )
            else:
                up, down = e[-1].mT @ r[-2].flatten(-3), r[-1].mT @ e[-2].flatten(-3)
            grads |= {w: up + down} if w == f else {w: up, f: down}
        return grads
