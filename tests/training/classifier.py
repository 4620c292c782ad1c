"""A system with labels that is as small as one can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradbench.systems.base import AbstractEnergySystem, Data, Params
from gradbench.vocabulary.coordinates import Knobs


@dataclass(frozen=True)
class Labelled(AbstractEnergySystem):
    """s settles at x W, and the cost is the cross-entropy of s V: a linear classifier."""

    name: ClassVar[str] = "labelled"
    source: ClassVar[str] = "tests"
    defaults: ClassVar[Mapping[str, Any]] = {
        "s": 1.0, "damp": 0.0, "T1": 20, "T2": 10, "beta": 0.1, "eps": 0.5, "batch": 8
    }  # fmt: skip
    per_example: ClassVar[frozenset[str]] = frozenset({"x", "label"})
    dataset: str = "fashion_mnist_sample"

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"h": (16,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (3072, 16), "V": (16, 10)}

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, 3072), "label": (batch,)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        return {}

    def init_params(self, rng: torch.Generator) -> Params:
        return {n: torch.randn(shape, generator=rng, dtype=torch.float64) / 50 for n, shape in self.shapes.items()}

    def sample(self, streams: Any, batch: int) -> Data:
        return {
            "x": torch.randn((batch, 3072), generator=streams["data"], dtype=torch.float64),
            "label": torch.randint(10, (batch,), generator=streams["label"]),
        }

    def init_state(self, theta: Params, x: Data) -> Tensor:
        return x["x"].new_ones(len(x["x"]), 16)

    def energy(self, theta: Params, x: Data, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return 0.5 * (s - x["x"] @ theta["W"]).square().sum(-1)

    def cost(self, theta: Params, x: Data, s: Tensor) -> Tensor:
        logits = s @ theta["V"]
        at = x["label"].expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.logsumexp(-1) - logits.gather(-1, at)[..., 0]
