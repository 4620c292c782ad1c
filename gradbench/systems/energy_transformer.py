"""The energy transformer block: tokens whose layer norm descends an energy of attention and memories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.data.streams import normal
from gradbench.systems.attention import energy_slope, energy_slope_jvp, heads, merge, outer
from gradbench.systems.base import Data, Params, Saved
from gradbench.systems.leaky import AbstractLeaky
from gradbench.systems.pictures import AbstractClassifier, AbstractPatches
from gradbench.systems.tokens import layer_norm, layer_norm_jvp, layer_norm_saved, patches
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class EnergyTransformer(AbstractClassifier, AbstractPatches, AbstractLeaky):
    """Energy transformer block: tokens x go down the slope of an energy of g = layer norm of x, which is no -dE/dx.

    g = gamma y + delta,   y = layer_norm(x),   u = enc(image) + bpos
    L(g) = (sigma / b) sum_{h,m} logsumexp_{n != m}(b q_m . k_n) + 1/2 sum relu(g Wmem)^2,   b = 1 / sqrt(dh)
    F = u + dL/dg - c x,   x begins at u.   C = cross-entropy of V mean_N(g) + c
    J = H M - c with the Hessian H of L over g and M = dg/dx. Both are symmetric and their product is not, so F has no
    energy over x; dL/dg is the swirl. The eigenvalues of J are real, and
    c (<x, g> - D gamma std(x) - <delta, x>) - <u, g> - L falls along the flow. In Hoover et al. 2023 c is 0, so that
    tokens grow longer without end, and the image enters by the start alone; c = 1 is that of Krotov & Hopfield 2021.
    """

    name: ClassVar[str] = "energy_transformer"
    source: ClassVar[str] = "Hoover et al. 2023, arXiv:2302.07253; Krotov & Hopfield 2021 (the leak)"
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 1.0, "T1": 120, "T2": 60, "beta": 0.1, "eps": 0.5, "batch": 16
    }  # fmt: skip

    D: int = 32  # width of a token
    heads: int = 4  # H
    dh: int = 8  # h, width of a head
    mem: int = 64  # M, memories

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.side**2, self.D)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        D, kind = self.D, (self.heads, self.dh, self.D)
        tokens = {"Wenc": (D, self.ch, self.patch, self.patch), "bpos": (self.side**2, D), "gamma": (1,), "delta": (D,)}
        return tokens | {"WQ": kind, "WK": kind, "Wmem": (D, self.mem), "V": (self.classes, D), "c": (self.classes,)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options = super().sizes(params, given)
        if "WQ" in params:
            options |= {"heads": params["WQ"].shape[0], "dh": params["WQ"].shape[1]}
        return options | ({"mem": params["Wmem"].shape[-1]} if "Wmem" in params else {})

    def init_params(self, rng: Generator) -> Params:
        token = 1 / math.sqrt(self.D)
        # 1 in place of 1/2, and a step still moved the state by 1e-3 after 400 steps, measured
        half = dict.fromkeys(("WQ", "WK", "Wmem"), 0.5 * token)
        std = {"Wenc": 1 / math.sqrt(self.pixels), "bpos": 1.0, "V": token} | half
        theta = {name: normal(rng, shape, std.get(name, 0.0)) for name, shape in self.shapes.items()}
        return theta | {"gamma": theta["gamma"] + 1}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return self.context(theta, x)["input"].flatten(-2).detach()

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": self.encoded(theta, x["x"]) + theta["bpos"]}

    def well(self, context: Params, knobs: Knobs) -> tuple[Tensor | float, Tensor | float]:
        return knobs.damp, context["input"].flatten(-2)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        saved = self.activate(theta, x, context, s, knobs)
        slopes = self._written(theta, energy_slope(saved), knobs)
        return (slopes + saved["memory"] @ theta["Wmem"].mT).flatten(-2)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        import torch

        y, deviation = layer_norm_saved(self.split(s)["x"])
        g = theta["gamma"] * y + theta["delta"]
        q, k = self._read(theta, g)
        itself = torch.eye(self.side**2, dtype=torch.bool, device=s.device)
        P = (q @ k.mT / math.sqrt(self.dh)).masked_fill(itself, -math.inf).softmax(-1)
        return {"y": y, "deviation": deviation, "g": g, "q": q, "k": k, "P": P, "memory": (g @ theta["Wmem"]).relu()}

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self._hessian(theta, saved, self._metric(theta, saved, self.split(v)["x"]), knobs).flatten(-2)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self._metric(theta, saved, self._hessian(theta, saved, self.split(a)["x"], knobs)).flatten(-2)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        head, a = self.head_pull(theta, a), self.split(a)["x"]
        of_norm = self._hessian(theta, saved, a, knobs)
        grads = {"bpos": a.sum(-3), "delta": of_norm.sum((-3, -2))}
        grads["gamma"] = (of_norm * saved["y"]).sum((-3, -2, -1))[..., None]
        grads["Wenc"] = outer(a, patches(x["x"], self.patch)).unflatten(-1, theta["Wenc"].shape[1:])
        grads["Wmem"] = outer(a, saved["memory"]) + outer(saved["g"], saved["memory"].sign() * (a @ theta["Wmem"]))
        q, k = self._read(theta, a)
        moved = energy_slope_jvp(saved, q, k, 1 / math.sqrt(self.dh))
        for name, slope, credit in zip(("WQ", "WK"), energy_slope(saved), moved, strict=True):
            g = outer(merge(slope), a) + outer(merge(credit), saved["g"])
            grads[name] = knobs.sigma * g.unflatten(-2, (self.heads, self.dh))
        return grads | head

    def features(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b D"]:
        return (theta["gamma"] * layer_norm(self.split(s)["x"]) + theta["delta"]).mean(-2)

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        y, deviation = layer_norm_saved(self.split(s)["x"])
        of_token = (self.logit_slope(theta, x, s) @ theta["V"] / self.side**2)[..., None, :].expand(y.shape)
        return (theta["gamma"] * layer_norm_jvp(y, deviation, of_token)).flatten(-2)

    def _read(self, theta: Params, g: Float[Tensor, "*r b N D"]) -> list[Float[Tensor, "*r b H N h"]]:
        return [heads(g @ theta[w].flatten(0, 1).mT, self.heads) for w in ("WQ", "WK")]

    def _written(self, theta: Params, parts: tuple[Tensor, Tensor], knobs: Knobs) -> Float[Tensor, "*r b N D"]:
        q, k = (merge(part) @ theta[w].flatten(0, 1) for w, part in zip(("WQ", "WK"), parts, strict=True))
        return knobs.sigma * (q + k)

    def _metric(self, theta: Params, saved: Saved, v: Float[Tensor, "*r b N D"]) -> Float[Tensor, "*r b N D"]:
        """M v."""
        return theta["gamma"] * layer_norm_jvp(saved["y"], saved["deviation"], v)

    def _hessian(
        self, theta: Params, saved: Saved, v: Float[Tensor, "*r b N D"], knobs: Knobs
    ) -> Float[Tensor, "*r b N D"]:
        """H v."""
        q, k = self._read(theta, v)
        moved = energy_slope_jvp(saved, q, k, 1 / math.sqrt(self.dh))
        return self._written(theta, moved, knobs) + (saved["memory"].sign() * (v @ theta["Wmem"])) @ theta["Wmem"].mT
