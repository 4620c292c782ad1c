"""The conservative toy: tokens in a well around a bias, coupled by a force that has an energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.attention import outer
from gradbench.systems.base import AbstractEnergySystem, ClosedForms, Data, Params, Saved
from gradbench.systems.fused_toys import AbstractFusedTanh
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@final
@dataclass(frozen=True)
class ToyCons(AbstractFusedTanh, ClosedForms, AbstractEnergySystem):
    """Conservative toy: the control on which naive and asymmetric EP must agree.

    F = -z + b + sigma tanh(z S) S^T - c z,   E = 1/2 (1 + c) |z|^2 - <b, z> - sigma sum log cosh(z S)
    """

    name: ClassVar[str] = "toy_cons"
    source: ClassVar[str] = "Hopfield-type energy with tied weights"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"S": (self.D, self.D), "b": (self.D,)}

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        z = self.split(s)["z"]
        h = z @ theta["S"]
        log_cosh = h.logaddexp(-h) - math.log(2)
        return self._well(context, z, knobs) - knobs.sigma * log_cosh.sum((-2, -1))

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z = self.split(s)["z"]
        coupling = (z @ theta["S"]).tanh() @ theta["S"].mT
        return (context["input"] - (1 + knobs.damp) * z + knobs.sigma * coupling).flatten(-2)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z = self.split(s)["z"].contiguous()
        return {"z": z, "t": (z @ theta["S"]).tanh()}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        dz = self.split(v)["z"]
        moved = (1 - saved["t"].square()) * (dz @ theta["S"])
        return (knobs.sigma * (moved @ theta["S"].mT) - (1 + knobs.damp) * dz).flatten(-2)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.jvp(theta, context, saved, a, knobs)  # a Hessian

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        z, t, a = saved["z"], saved["t"], self.split(a)["z"]
        S = outer(z, (1 - t.square()) * (a @ theta["S"])) + outer(a, t)
        return {"S": knobs.sigma * S, "b": a.sum((-3, -2))}
