"""Trainings that take milliseconds: a tiny cet_real, and a classifier with labels that only these tests know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from classifier import Labelled

from gradbench.planning import registry
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


@pytest.fixture
def labelled() -> Iterator[None]:
    """Make the classifier a registered system."""
    with registry.scope():
        registry.register(Labelled)
        yield
