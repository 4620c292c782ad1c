"""A recurrent network in continuous time that settles to a fixed point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.errors import UserError
from gradbench.systems.base import Data, Params, Saved
from gradbench.systems.leaky import AbstractLeaky
from gradbench.systems.units import AbstractUnits
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@final
@dataclass(frozen=True)
class Ctrnn(AbstractUnits, AbstractLeaky):
    """Continuous-time recurrent network with free weights, read at its fixed point.

    F = (-s + sigma W tanh(s) + U x + b - c s) / tau,   E = (1/2 (1 + c) |s|^2 - <U x + b, s>) / tau,   s begins at 0
    C = 1/2 |V tanh(s) + c - onehot(label)|^2. The coupling sigma W tanh(s) / tau is the swirl.
    W has entries N(0, 1/n), so its spectral radius is about 1 and that of the coupling about sigma. The time constants
    tau go from 1 to `slowest` in equal ratios. They move no fixed point, but they scale the rows of the Jacobian.
    The rates r = tanh(s) have the fixed points r = tanh(sigma W r + U x + b) of the other usual form, in which
    Pineda 1987 writes the network: tau dr/dt = -r + tanh(sigma W r + U x + b).
    """

    name: ClassVar[str] = "ctrnn"
    source: ClassVar[str] = "Almeida 1987; Pineda 1987"
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 0.9, "damp": 0.0, "T1": 200, "T2": 100, "beta": 0.1, "eps": 0.3, "batch": 16
    }  # fmt: skip

    slowest: float = 2.0  # the largest time constant, in units of the smallest
    loss: Literal["cross_entropy", "squared_error"] = "squared_error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.slowest < math.inf:
            raise UserError(f"{self.name}: slowest = {self.slowest} is below 1, the smallest time constant")

    def context(self, theta: Params, x: Data) -> Params:
        import torch

        b = theta["b"]
        tau = torch.logspace(0, math.log10(self.slowest), self.width, dtype=b.dtype, device=b.device)
        return super().context(theta, x) | {"rate": 1 / tau}

    def features(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return s.tanh()

    def well(self, context: Params, knobs: Knobs) -> tuple[Tensor | float, Tensor | float]:
        return (1 + knobs.damp) * context["rate"], context["rate"] * context["input"]

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return context["rate"] * knobs.sigma * (s.tanh() @ theta["W"].mT)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        return {"r": s.tanh()}

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return context["rate"] * knobs.sigma * (((1 - saved["r"].square()) * v) @ theta["W"].mT)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return (1 - saved["r"].square()) * (knobs.sigma * (context["rate"] * a) @ theta["W"])

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        grads = self.pull_of_net(theta, x, context["rate"] * a, saved["r"])
        return grads | {"W": knobs.sigma * grads["W"]}

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return (1 - s.tanh().square()) * (self.logit_slope(theta, x, s) @ theta["V"])
