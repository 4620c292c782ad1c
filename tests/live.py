"""Small problems of every registered system, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradbench.dynamics.field import Field
from gradbench.engine.draws import build
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

# options that make a system small and its state live: settled, stable, every parameter with a gradient
LIVE = {
    "toy_cons": {"N": 3, "D": 8, "out": 5, "drive_std": 1.0, "bias_std": 0.3, "damp": 3.0},
    "toy_noncons": {"N": 3, "D": 8, "heads": 2, "out": 5, "drive_std": 1.0, "bias_std": 0.3, "damp": 3.0},
    "cet_energy": {"D": 16, "heads": 2, "dh": 4, "mem": 12, "patch": 14, "bpos_std": 0.3, "damp": 1.0},
    "cet_real": {"D": 16, "heads": 2, "dh": 4, "mem": 12, "patch": 14, "bpos_std": 0.3, "damp": 1.0},
    "cet": {"img": 28, "ch": 1, "patch": 14, "D": 16, "heads": 2, "dh": 4, "mem": 12, "bpos_std": 0.3, "damp": 1.0},
    "linear": {"n": 6, "nonnormality": 0.3},
    "residual_mlp": {"d_in": 784, "d": 8, "L": 3},
    "hopfield": {"d": 7, "damp": 1.0},
    "hopfield_asymmetric": {"d": 7, "damp": 1.0},
    "tanh_deq": {"width": 12, "gain": 2.0},
    "ctrnn": {"width": 12, "damp": 0.5},
    "transformer_deq": {"patch": 14, "D": 6, "heads": 2, "hidden": 6},
    "energy_transformer": {"patch": 14, "D": 6, "heads": 2, "dh": 3, "mem": 5, "damp": 1.0},
    "conv_hopfield": {"channels": 3, "depth": 1, "pool": 12},
    "conv_hopfield_feedback": {"channels": 3, "depth": 1, "pool": 12},
    "cet_projected": {"D": 16, "heads": 2, "dh": 4, "mem": 12, "patch": 14, "bpos_std": 1.0, "damp": 1.0},
}


def live_field(name: str, seed: int = 0, batch: int = 2, dtype: str = "float64", **knobs: float) -> Field:
    """A field of a registered system at a point where it is live."""
    options = dict(LIVE.get(name, {}))
    damp = knobs.pop("damp", options.pop("damp", 1.0))
    grid = {"system": {"name": name, **options}, "estimator": "bptt", "damp": damp, "seed": seed, **knobs}
    content = {"name": "test", "about": "", "grid": [grid | {"batch": batch, "dtype": dtype}]}
    (problem,) = plan(parse(content, "test")).problems
    return build(problem, "cpu")


def random_like(s: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """N(0, 1) of the shape and dtype of s, the same in every run."""
    return torch.randn(s.shape, generator=torch.Generator().manual_seed(seed), dtype=s.dtype)


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative difference over parameters."""
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in b)


def whole_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative difference of the whole gradients."""
    flat_a, flat_b = (torch.cat([g[n].flatten() for n in b]) for g in (a, b))
    return float((flat_a - flat_b).norm() / flat_b.norm())


def jacobian(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """The dense matrix of derivatives by autograd, its rows in one backward pass."""
    found = torch.autograd.functional.jacobian(function, at, vectorize=True)
    assert isinstance(found, torch.Tensor)
    return found


SYSTEMS = list(registry.known_systems())
ESTIMATORS = list(registry.known_estimators())
