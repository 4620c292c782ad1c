"""Units that drive each other by one matrix and are driven by an image: what `tanh_deq` and `ctrnn` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.data.streams import normal
from gradbench.systems.base import Data, Params
from gradbench.systems.pictures import AbstractClassifier

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@dataclass(frozen=True)
class AbstractUnits(AbstractClassifier):
    """n units s with the weights W among them and the input U x + b. The state begins at 0."""

    width: int = 256  # n

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"s": (self.width,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        n, pixels = self.width, self.ch * self.img**2
        return {"W": (n, n), "U": (n, pixels), "b": (n,), "V": (self.classes, n), "c": (self.classes,)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        return super().sizes(params, given) | ({"width": params["W"].shape[0]} if "W" in params else {})

    def init_params(self, rng: Generator) -> Params:
        """N(0, 1 / length of a row) for matrices, 0 for b and c."""
        std = {name: 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.0 for name, shape in self.shapes.items()}
        return {name: normal(rng, shape, std[name]) for name, shape in self.shapes.items()}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x"].new_zeros((x["x"].shape[0], self.width))

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": x["x"].flatten(-3) @ theta["U"].mT + theta["b"]}

    def pull_of_net(self, theta: Params, x: Data, inner: Float[Tensor, "*r b n"], r: Float[Tensor, "*r b n"]) -> Params:
        """d<inner, W r + U x + b>/dtheta."""
        grads = {"W": inner.mT @ r, "U": inner.mT @ x["x"].flatten(-3), "b": inner.sum(-2)}
        return grads | self.head_pull(theta, inner)
