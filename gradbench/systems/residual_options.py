"""Residual blocks between clamped pixels and a linear head: options, shapes and the parameters at the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradbench.data import datasets
from gradbench.data.streams import normal, uniform
from gradbench.systems.base import AbstractForwardSystem, Data, LayeredWeights, Params
from gradbench.systems.labelled_images import AbstractPixels

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class AbstractResidualOptions(AbstractPixels, LayeredWeights, AbstractForwardSystem):
    """The state: the layers behind L pre-norm residual blocks, of width d."""

    d_in: int = 3072  # pixels of an image with all its colours
    d: int = 256  # width of a layer
    L: int = 4  # residual blocks
    activation: Literal["gelu", "relu", "tanh"] = "gelu"

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {f"h{i + 1}": (self.d,) for i in range(self.L)}

    @property
    def clamped(self) -> dict[str, tuple[int, ...]]:
        return {"h0": (self.d,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        linear = {"fc1.weight": (self.d, self.d), "fc1.bias": (self.d,), "fc2.weight": (self.d, self.d)}
        block = {"ln.weight": (self.d,), "ln.bias": (self.d,), **linear, "fc2.bias": (self.d,)}
        return {
            "embed.weight": (self.d, self.d_in),
            "embed.bias": (self.d,),
            **{f"blocks.{i}.{name}": shape for i in range(self.L) for name, shape in block.items()},
            "out_ln.weight": (self.d,),
            "out_ln.bias": (self.d,),
            "out_head.weight": (self.classes, self.d),
            "out_head.bias": (self.classes,),
        }

    @property
    def carriers(self) -> tuple[str, ...]:
        return (*(f"blocks.{i}.{fc}.weight" for i in range(self.L) for fc in ("fc1", "fc2")), "out_head.weight")

    @property
    def hidden(self) -> dict[str, int]:
        return dict.fromkeys(self.layers, self.d)

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options: dict[str, int | str] = {}
        if "x" in given:
            options |= {"d_in": given["x"].shape[-1], "dataset": datasets.GIVEN}
        if "embed.weight" in params:
            options |= {"d": params["embed.weight"].shape[0], "d_in": params["embed.weight"].shape[1]}
        if "out_head.weight" in params:
            options |= {"classes": params["out_head.weight"].shape[0]}
        if blocks := {name.split(".")[1] for name in params if name.startswith("blocks.")}:
            options |= {"L": len(blocks)}
        return options

    def init_params(self, rng: Generator) -> Params:
        """As torch.nn.Linear and LayerNorm begin. Only fc2.weight is small: blocks begin close to the identity."""
        shapes, theta = self.shapes, {}
        for name, shape in shapes.items():
            module, _, kind = name.rpartition(".")
            if module.endswith("ln"):
                theta[name] = normal(rng, shape, 0.0) + (kind == "weight")
            elif name.endswith("fc2.weight"):
                theta[name] = normal(rng, shape, 0.01)
            else:
                theta[name] = uniform(rng, shape, 1 / math.sqrt(shapes[f"{module}.weight"][1]))
        return theta
