"""Convolutional layers below a dense one: options, shapes and the weights at the start."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from gradbench.data.streams import normal
from gradbench.errors import UserError
from gradbench.systems.base import POSITIVE, Data, Params
from gradbench.systems.pictures import AbstractClassifier

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@dataclass(frozen=True)
class AbstractConvOptions(AbstractClassifier):
    """The state: layers s1, s2, ..., each a pooled convolution of the one below, and out, with a unit for a class."""

    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    defaults: ClassVar[Mapping[str, float]] = {"T1": 100, "T2": 50, "beta": 0.1, "eps": 0.5, "batch": 16}

    channels: int = 4  # of the first layer; every further one has twice as many
    depth: int = 2  # convolutional layers
    kernel: int = 5  # pixels of a kernel's side
    pool: int = 2  # pixels of a pooled side
    pooling: Literal["average", "max"] = "average"
    gain: float = field(default=0.5, metadata=POSITIVE)  # of the weights at the start
    loss: Literal["cross_entropy", "squared_error"] = "squared_error"

    def __post_init__(self) -> None:
        super().__post_init__()
        side = self.img
        for layer in range(1, self.depth + 1):
            left = max(side - self.kernel + 1, 0)
            if not left or left % self.pool:
                raise UserError(
                    f"{self.name}: layer {layer}: kernel = {self.kernel} leaves {left} of {side} pixels of a side, "
                    f"which is no multiple of pool = {self.pool}"
                )
            side = left // self.pool

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        layers: dict[str, tuple[int, ...]] = {}
        side = self.img
        for i in range(1, self.depth + 1):
            side = (side - self.kernel + 1) // self.pool
            layers[f"s{i}"] = (self.channels * 2 ** (i - 1), side, side)
        return layers | {"out": (self.classes,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels = [self.ch, *(shape[0] for shape in self.layout.values())][: self.depth + 1]
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(1, self.depth + 1):
            shapes |= {f"w{i}": (channels[i], channels[i - 1], self.kernel, self.kernel), f"b{i}": (channels[i],)}
        below = math.prod(self.layout[f"s{self.depth}"])
        return shapes | {"w_out": (self.classes, below), "b_out": (self.classes,)}

    @property
    def connections(self) -> list[str]:
        """The weights between layers: all but those of the image."""
        return [*(f"w{i}" for i in range(2, self.depth + 1)), "w_out"]

    @property
    @abstractmethod
    def returning(self) -> list[str]:
        """The names of f, in the order of `connections`."""

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options = super().sizes(params, given)
        if "w1" in params:
            depth = sum(name[1:].isdigit() for name in params if name.startswith("w"))
            options |= {"channels": params["w1"].shape[0], "kernel": params["w1"].shape[-1], "depth": depth}
        return options | ({"classes": params["b_out"].shape[0]} if "b_out" in params else {})

    def init_params(self, rng: Generator) -> Params:
        """N(0, gain^2 / inputs of a unit) for weights, 0 for biases."""
        shapes = self.shapes.items()
        std = {n: self.gain / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.0 for n, shape in shapes}
        return {name: normal(rng, shape, std[name]) for name, shape in shapes}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x"].new_zeros((x["x"].shape[0], sum(map(math.prod, self.layout.values()))))
