"""A tanh layer as a deep equilibrium model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.base import POSITIVE, Data, Params, Saved
from gradbench.systems.leaky import AbstractLeaky
from gradbench.systems.units import AbstractUnits
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class TanhDeq(AbstractUnits, AbstractLeaky):
    """Deep equilibrium model: one tanh layer, applied to its own output until it no longer changes.

    F = tanh(W s + U x + b) - s,   E = 1/2 |s|^2,   the layer is the swirl
    C = cross-entropy of V s + c. s begins at 0.
    A step is the damped layer s <- (1 - eps) s + eps tanh(W s + U x + b); eps = 1 is the layer itself. At the start
    |W|_2 = gain. Below 1 the layer is a contraction, whatever the image; above 1 nothing promises a fixed point.
    """

    name: ClassVar[str] = "tanh_deq"
    source: ClassVar[str] = "Bai, Kolter & Koltun 2019, arXiv:1909.01377, with a tanh layer"
    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    defaults: ClassVar[Mapping[str, float]] = {"T1": 60, "T2": 30, "beta": 0.1, "eps": 0.5, "batch": 16}

    gain: float = field(default=0.9, metadata=POSITIVE)  # |W|_2 at the start

    def init_params(self, rng: Generator) -> Params:
        import torch

        theta = super().init_params(rng)
        return theta | {"W": theta["W"] * (self.gain / torch.linalg.matrix_norm(theta["W"], 2))}

    def well(self, context: Params, knobs: Knobs) -> tuple[Tensor | float, Tensor | float]:
        return 1.0, 0.0

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return (s @ theta["W"].mT + context["input"]).tanh()

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        layer = self.swirl(theta, x, context, s, knobs)
        return {"s": s, "slope": 1 - layer.square()}

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return saved["slope"] * (v @ theta["W"].mT)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return (saved["slope"] * a) @ theta["W"]

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        return self.pull_of_net(theta, x, saved["slope"] * a, saved["s"])

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self.logit_slope(theta, x, s) @ theta["V"]
