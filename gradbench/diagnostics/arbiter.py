"""The arbiter: is the reference the slope of the cost that the relaxation ends at? By differences, without autograd."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gradbench.streams import Streams, normal
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gradbench.field import Field
    from gradbench.systems.base import Params

STEPS = tuple(10.0 ** (-k / 2) for k in range(4, 13))  # of |theta|: 1e-2 ... 1e-6
PLATEAU = 1e-4  # two neighbouring steps whose slopes agree to this share of them stand on a plateau


@dataclass(frozen=True)
class Slope:
    """The cost along one direction d of theta, |d| = |theta| in each parameter."""

    claimed: float  # <reference, d>
    measured: float  # (C(theta + h d) - C(theta - h d)) / 2 h on the plateau
    step: float  # h
    spread: float  # of the two slopes of the plateau, relative: what the measured one is worth

    @property
    def plateau(self) -> bool:
        """Whether there is one: without it the measured slope says nothing about the reference."""
        return self.spread <= PLATEAU

    @property
    def error(self) -> float:
        """|claimed - measured| / |measured|."""
        return abs(self.claimed - self.measured) / abs(self.measured) if self.measured else math.inf


def arbitrate(field: Field, T1: int, reference: Params, seeds: Sequence[int]) -> list[Slope]:
    """Central differences of the cost after T1 steps along a random direction a seed, over a sweep of steps.

    In float64. The plateau is where the slopes of two neighbouring steps differ least: longer ones see curvature,
    O(h^2), and shorter ones round-off, O(1 / h). A direction is N(0, 1) in each parameter, scaled to its norm.
    """
    wide, found = field.wide, []
    for seed in seeds:
        direction = {}
        for name, p in wide.theta.items():
            d = normal(Streams(seed)[f"direction {name}"], tuple(p.shape)).to(p)
            direction[name] = d * (p.norm() if float(p.norm()) > 0 else 1.0) / d.norm()
        slopes = [(_cost(wide, T1, direction, h) - _cost(wide, T1, direction, -h)) / (2 * h) for h in STEPS]
        spreads = [
            abs(a - b) / max(abs(a), abs(b), 1e-300) if math.isfinite(a - b) else math.inf
            for a, b in itertools.pairwise(slopes)
        ]
        k = min(range(len(spreads)), key=spreads.__getitem__)
        claimed = sum(float((reference[n].double() * d).sum()) for n, d in direction.items())
        found.append(Slope(claimed, slopes[k + 1], STEPS[k + 1], spreads[k]))
    return found


def _cost(field: Field, T1: int, direction: Params, h: float) -> float:
    moved = replace(field, theta={n: p + h * direction[n] for n, p in field.theta.items()})
    # s_0 takes no part in the gradient unless it is a forward pass, and so the free state itself
    start = moved if isinstance(field.system, AbstractForwardSystem) else field
    s: Tensor = start.init_state()
    with torch.no_grad():
        for _ in range(T1):
            s = moved.step(s)
        return float(moved.cost(s).sum())
