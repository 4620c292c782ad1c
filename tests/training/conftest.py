"""Trainings that take milliseconds: a tiny cet_real, and a classifier with labels that only these tests know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from gradbench import registry
from gradbench.systems.base import AbstractEnergySystem, Data, Knobs, Params
from gradbench.training import config

TINY: dict[str, Any] = {
    "name": "tiny",
    "about": "",
    "system": {"name": "cet_real", "D": 8, "heads": 2, "dh": 4, "mem": 6, "patch": 14, "bpos_std": 0.3},
    "estimator": "aep",
    "damp": 1.0,
    "T1": 12,
    "T2": 4,
    "batch": 4,
    "steps": 6,
    "seeds": [0, 1],
    "dtype": "float64",
    "log_every": 2,
    "eval_every": 3,
    "eval_batches": 2,
    "fidelity_every": 4,
    "norm_cap": {"WV": 1.001},
    "optimiser": {"lr": 1e-2, "lr_min": 1e-4, "weight_decay": 0.1, "clip": 5.0},
}


@pytest.fixture
def tiny() -> Callable[..., config.Config]:
    """A checked configuration: the tiny one with some keys replaced; None takes one out."""

    def make(**changes: Any) -> config.Config:
        return config.parse({k: v for k, v in (TINY | changes).items() if v is not None}, "tiny.toml")

    return make


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


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the classifier a registered system."""
    known = {**registry.systems(), "labelled": Labelled}
    monkeypatch.setattr(registry, "systems", lambda: known)
