"""What the two toys share: tokens in a well around a bias, which a force couples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gradbench.data.streams import normal
from gradbench.systems.base import SPREAD, AbstractSystem, Data, Params
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams


@dataclass(frozen=True)
class AbstractToy(AbstractSystem):
    """Start, data and cost of both toys.

    C = 1/2 |flat(s) R - target|^2 / b with a fixed random readout R.
    """

    swirl_block: ClassVar[str | None] = "z"
    mean_cost: ClassVar[bool] = True
    real_only: ClassVar[str | None] = None
    per_example: ClassVar[frozenset[str]] = frozenset({"x0", "target", "drive"})
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 120, "T2": 30, "beta": 0.02, "eps": 0.2, "batch": 8
    }  # fmt: skip

    N: int = 8  # tokens
    D: int = 32  # width of a token
    out: int = 16  # width of the readout
    bias_std: float = field(default=0.0, metadata=SPREAD)  # of b; without both the state collapses or leaves a saddle
    drive_std: float = field(default=0.0, metadata=SPREAD)  # of the input to tokens; > 0 gives WQ and WK a gradient

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"z": (self.N, self.D)}

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        tokens = (batch, self.N, self.D)
        return {"x0": tokens, "R": (self.N * self.D, self.out), "target": (batch, self.out), "drive": tokens}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int]:
        options: dict[str, int] = {}
        if "x0" in given:
            options |= {"N": given["x0"].shape[-2], "D": given["x0"].shape[-1]}
        elif "b" in params:
            options |= {"D": params["b"].shape[-1]}
        if "R" in given:
            options |= {"out": given["R"].shape[-1]}
        return options

    def init_params(self, rng: Generator) -> Params:
        scale = 1 / math.sqrt(self.D)
        return {n: normal(rng, shape, self.bias_std if n == "b" else scale) for n, shape in self.shapes.items()}

    def sample(self, streams: Streams, batch: int) -> Data:
        rng, n = streams["data"], self.N * self.D
        data = {
            "x0": normal(rng, (batch, self.N, self.D), 0.1),
            "R": normal(rng, (n, self.out), 1 / math.sqrt(n)),
            "target": normal(rng, (batch, self.out)),
        }
        if self.drive_std > 0:
            data["drive"] = normal(rng, (batch, self.N, self.D), self.drive_std)
        return data

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x0"].flatten(-2)

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": theta["b"] + x["drive"] if "drive" in x else theta["b"]}

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (s @ x["R"] - x["target"]).square().sum(-1) / s.shape[-2]

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return (s @ x["R"] - x["target"]) @ x["R"].mT / s.shape[-2]

    def _well(self, context: Params, z: Tensor, knobs: Knobs) -> Tensor:
        """Energy of the well around the input, with damping: 1/2 (1 + c) |z|^2 - <input, z>."""
        return (0.5 * (1 + knobs.damp) * z.square() - context["input"] * z).sum((-2, -1))
