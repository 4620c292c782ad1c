"""Convolutional Hopfield networks with pooling and feedback weights of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.errors import UserError
from gradbench.systems.base import AbstractDrivenSystem, Data, Params, Saved
from gradbench.systems.conv_layers import AbstractConvLayers
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class ConvHopfieldFeedback(AbstractConvLayers, AbstractDrivenSystem):
    """Convolutional Hopfield network with pooling whose feedback weights are parameters of their own.

    F = rho'(s) (K r + i) - s,   (K r)_l = P(w_l * r_{l-1}) + (P(f_{l+1} * .))^T r_{l+1}: that of `conv_hopfield`, with
    the weights f in place of w on the way down. The swirl is rho'(s_l) (P((f_{l+1} - w_{l+1}) * .))^T r_{l+1}.
    f = sqrt(1 - a^2) w + a w' at the start, w' drawn as w is: a = 1 is unrelated feedback.
    """

    name: ClassVar[str] = "conv_hopfield_feedback"
    source: ClassVar[str] = "Scellier et al. 2018, Laborieux et al. 2021 (vector field)"

    feedback_asymmetry: float = 0.5  # a, the sine of the angle between f and w at the start

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.feedback_asymmetry <= 1:
            told = f"{self.name}: feedback_asymmetry = {self.feedback_asymmetry} is not above 0 and at most 1"
            raise UserError(told + ("; symmetric weights are conv_hopfield" if self.feedback_asymmetry == 0 else ""))

    @property
    def returning(self) -> list[str]:
        return [f"f{w[1:]}" for w in self.connections]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        forward = super().shapes
        return forward | {f: forward[w] for w, f in zip(self.connections, self.returning, strict=True)}

    def init_params(self, rng: Generator) -> Params:
        theta, a = super().init_params(rng), self.feedback_asymmetry
        for w, f in zip(self.connections, self.returning, strict=True):
            theta[f] = math.sqrt(1 - a**2) * theta[w] + a * theta[f]
        return theta

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        saved = self.activate(theta, x, context, s, knobs)
        return saved["slope"] * self.heard(self._apart(theta), saved, saved["r"], down=self.connections)

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        apart = self._apart(theta)
        moved = self.heard(apart, saved, saved["slope"] * v, down=self.connections)
        return saved["slope"] * moved + saved["bend"] * self.heard(apart, saved, saved["r"], down=self.connections) * v

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        apart = self._apart(theta)
        moved = self.heard(apart, saved, saved["slope"] * a, up=self.connections)
        return saved["slope"] * moved + saved["bend"] * self.heard(apart, saved, saved["r"], down=self.connections) * a

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        apart, moved = self._apart(theta), saved["slope"] * v
        down, up = (self.heard(apart, saved, moved, **{way: self.connections}) for way in ("down", "up"))
        return 0.5 * saved["slope"] * (down - up)  # rho'' is on the diagonal

    def _apart(self, theta: Params) -> Params:
        """f - w, by the names of w."""
        return {w: theta[f] - theta[w] for w, f in zip(self.connections, self.returning, strict=True)}
