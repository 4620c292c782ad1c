"""Layers of a Hopfield network between clamped pixels and an output: options, shapes and the weights at the start.

W_k (above, below) takes layer k - 1 to layer k, and V_k of the same shape takes layer k back to layer k - 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gradbench.data import datasets
from gradbench.data.streams import uniform
from gradbench.systems.base import Data, LayeredWeights, Params
from gradbench.systems.labelled_images import AbstractPixels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@dataclass(frozen=True)
class AbstractHopfieldOptions(LayeredWeights, AbstractPixels):
    """The state: L hidden layers of width d, and an output with a unit for every class."""

    real_only: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 200, "T2": 80, "beta": 0.1, "eps": 0.5, "batch": 32
    }  # fmt: skip

    d: int = 100  # width of a hidden layer
    L: int = 2  # hidden layers
    activation: Literal["tanh", "sigmoid"] = "tanh"

    @property
    @abstractmethod
    def feedback(self) -> str:
        """The name of V."""

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {name: (width,) for name, width in (*self.hidden.items(), ("out", self.classes))}

    @property
    def hidden(self) -> dict[str, int]:
        return {f"h{k + 1}": self.d for k in range(self.L)}

    @property
    def carriers(self) -> tuple[str, ...]:
        return tuple(f"W{k}" for k in range(2, self.L + 2))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        below = [self.d_in, *self.widths]
        weights: dict[str, tuple[int, ...]] = {f"W{k + 1}": (n, below[k]) for k, n in enumerate(self.widths)}
        return weights | {f"b{k + 1}": (n,) for k, n in enumerate(self.widths)}

    @property
    def widths(self) -> list[int]:
        """Of the layers of the state."""
        return [*self.hidden.values(), self.classes]

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        options: dict[str, Any] = {"d_in": given["x"].shape[-1], "dataset": datasets.GIVEN} if "x" in given else {}
        if count := sum(name.startswith("W") for name in params):
            options |= {"d": params["W1"].shape[0], "d_in": params["W1"].shape[1], "L": count - 1}
            options["classes"] = params[f"W{count}"].shape[0]
        return options

    def init_params(self, rng: Generator) -> Params:
        """As torch.nn.Linear begins."""
        below = [self.d_in, *self.widths]
        return {n: uniform(rng, shape, below[int(n[1:]) - 1] ** -0.5) for n, shape in self.shapes.items()}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x"].new_zeros((len(x["x"]), sum(self.widths)))
