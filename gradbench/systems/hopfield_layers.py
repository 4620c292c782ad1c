"""What layered Hopfield networks share: the force of their layers, the cost and the derivatives.

Letters: s_0 = x the pixels, s_1 ... s_L hidden layers, s_{L+1} the output; r = rho(s), and r_0 = x. W_k (above, below)
takes layer k - 1 to layer k, and V_k of the same shape takes layer k back to layer k - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.systems.base import BACK, DIRECT, ClosedForms, Data, Params, Saved
from gradbench.systems.hopfield_options import AbstractHopfieldOptions
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# of rho its first and its second derivative, from its value
_SLOPES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (lambda r: 1 - r.square(), lambda r: -2 * r * (1 - r.square())),
    "sigmoid": (lambda r: r * (1 - r), lambda r: r * (1 - r) * (1 - 2 * r)),
}


@dataclass(frozen=True)
class AbstractHopfield(ClosedForms, AbstractHopfieldOptions):
    """F_k = -(1 + c) s_k + rho'(s_k) (sigma (W_k r_{k-1} + V_{k+1}^T r_{k+1}) + b_k), C = 1/2 |s_{L+1} - one-hot|^2."""

    def context(self, theta: Params, x: Data) -> Params:
        import torch

        first = x["x"] @ theta["W1"].mT
        others = first.new_zeros((*first.shape[:-1], sum(self.widths[1:])))
        biases = [theta[f"b{k + 1}"] for k in range(self.L + 1)]
        return {"input": torch.cat((first, others), -1), "bias": torch.cat(biases, -1)}

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        r = self._rho(s)
        return _SLOPES[self.activation][0](r) * self._pressed(theta, context, r, knobs) - (1 + knobs.damp) * s

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * self._missed(x, s).square().sum(-1)

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        import torch

        return torch.cat((torch.zeros_like(s[..., : -self.classes]), self._missed(x, s)), -1)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        r, (slope, bend) = self._rho(s), _SLOPES[self.activation]
        bent = bend(r) * self._pressed(theta, context, r, knobs) - (1 + knobs.damp)
        return {"r": r, "slope": slope(r), "bent": bent}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return saved["bent"] * v + saved["slope"] * knobs.sigma * self._ahead(theta, saved["slope"] * v)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return saved["bent"] * a + saved["slope"] * knobs.sigma * self._back(theta, saved["slope"] * a)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        u, r = (v.split(self.widths, -1) for v in (saved["slope"] * a, saved["r"]))
        grads = {f"b{k + 1}": part.sum(-2) for k, part in enumerate(u)} | {"W1": knobs.sigma * (u[0].mT @ x["x"])}
        for k in range(1, self.L + 1):
            up, down = knobs.sigma * (u[k].mT @ r[k - 1]), knobs.sigma * (r[k].mT @ u[k - 1])
            tied = self.feedback == "W"
            grads |= {f"W{k + 1}": up + down} if tied else {f"W{k + 1}": up, f"{self.feedback}{k + 1}": down}
        return {name: grads[name] for name in theta if name in grads}

    def _rho(self, s: Tensor) -> Tensor:
        return s.tanh() if self.activation == "tanh" else s.sigmoid()

    def _pressed(self, theta: Params, context: Params, r: Tensor, knobs: Knobs) -> Tensor:
        """What a layer hears from the layers next to it, with its bias."""
        return knobs.sigma * (context["input"] + self._ahead(theta, r)) + context["bias"]

    def _ahead(self, theta: Params, v: Tensor) -> Tensor:
        """W_k v_{k-1} + V_{k+1}^T v_{k+1} of every layer of the state."""
        W, V = ([theta[name + w[1:]] for w in self.carriers] for name in ("W", self.feedback))
        return self._coupled(W, list(enumerate(V, start=1)), v)

    def _back(self, theta: Params, u: Tensor) -> Tensor:
        """V_k u_{k-1} + W_{k+1}^T u_{k+1} of every layer, or with what theta has in place of the transpose of W."""
        down = [(k + 1, theta.get(BACK + name, theta[name])) for k, name in enumerate(self.carriers)]
        direct = [theta.get(DIRECT + layer) for layer in self.hidden]
        down = [pair if B is None else (self.L, B) for pair, B in zip(down, direct, strict=True)]
        return self._coupled([theta[self.feedback + name[1:]] for name in self.carriers], down, u)

    def _coupled(self, up: Sequence[Tensor], down: Sequence[tuple[int, Tensor]], v: Tensor) -> Tensor:
        """Up v of the layer below, of all layers but the first, and Down^T v of another layer for all but the last."""
        import torch

        parts = v.split(self.widths, -1)
        below = [0.0, *(part @ W.mT for part, W in zip(parts, up, strict=False))]
        above = [*(parts[k] @ W for k, W in down), 0.0]
        return torch.cat([b + a for b, a in zip(below, above, strict=True)], -1)

    def _missed(self, x: Data, s: Tensor) -> Float[Tensor, "*r b classes"]:
        """The output minus the label."""
        return s[..., -self.classes :] - self.onehot(x, s)
