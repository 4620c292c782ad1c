"""A leak and an input with a swirl: the form of recurrent units, of deep equilibrium layers and of damped tokens."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractDrivenSystem, ClosedForms, Data, Params, Saved
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractLeaky(ClosedForms, AbstractDrivenSystem):
    """F = i - l s + swirl,   E = 1/2 <l, s^2> - <i, s> with a leak l and an input i that do not depend on s."""

    @abstractmethod
    def well(self, context: Params, knobs: Knobs) -> tuple[Tensor | float, Tensor | float]:
        """l and i. Both broadcast against a state."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        leak, drive = self.well(context, knobs)
        return (0.5 * leak * s.square() - drive * s).sum(-1)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        leak, drive = self.well(context, knobs)
        return self.swirl(theta, x, context, s, knobs) + drive - leak * s

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl_jvp(theta, context, saved, v, knobs) - self.well(context, knobs)[0] * v

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl_vjp(theta, context, saved, a, knobs) - self.well(context, knobs)[0] * a
