"""Systems from functions on a GPU: the numbers of a CPU, alone and in a stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from written import WRITTEN

import gradbench as gb


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_a_gpu_measures_what_a_cpu_does(function: Callable[[], dict[str, Any]]) -> None:
    mine = gb.system(**function(), name=f"my {function.__name__}")
    for rule in ("adjoint", "aep"):
        at = {"T1": 80, "T2": 20, "beta": 0.01, "dtype": "float64"}
        there, here = gb.measure(mine, rule, device="cuda", **at), gb.measure(mine, rule, **at)
        assert there.status == here.status
        for name, g in here.estimate.items():
            assert torch.allclose(there.estimate[name].cpu(), g, rtol=1e-9, atol=1e-10)
            assert torch.allclose(there.reference[name].cpu(), here.reference[name], rtol=1e-9, atol=1e-10)


def test_a_run_on_a_gpu_has_the_cells_of_a_cpu(tmp_path: Path) -> None:
    systems = [gb.system(**f(), name=f"my {f.__name__}") for f in WRITTEN]
    grid = {
        "system": systems,
        "estimator": ["ep", "aep", "adjoint"],
        "T1": 80,
        "T2": [5, 20],
        "beta": 0.01,
        "seed": [0, 1],
    }
    suite = gb.suite(grid | {"dtype": "float64"})
    there, here = (gb.run(suite, out=tmp_path / d, device=d).cells for d in ("cuda", "cpu"))
    assert list(there["status"]) == list(here["status"])
    assert (there["cosine_min"] - here["cosine_min"]).abs().max() < 1e-8


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_a_training_on_a_gpu_is_that_of_a_cpu(function: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    mine = gb.system(**function(), name=f"my {function.__name__}")
    asked = {
        "system": mine,
        "estimator": "aep",
        "T1": 40,
        "T2": 10,
        "beta": 0.01,
        "batch": 2,
        "steps": 4,
        "seeds": [0, 1],
        "dtype": "float64",
        "log_every": 1,
        "optimiser": {"lr": 1e-3},
    }
    there, here = (gb.train(asked, out=tmp_path / d, device=d).log for d in ("cuda", "cpu"))
    assert there["train"].tolist() == pytest.approx(here["train"].tolist(), rel=1e-7, nan_ok=True)
    assert there["grad_norm"].tolist() == pytest.approx(here["grad_norm"].tolist(), rel=1e-6, nan_ok=True)
