"""The arbiter: is the reference the slope of the cost? By differences, without autograd.

The cost is that at the end of the T1 steps; for the implicit reference that at the fixed point nearby.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from gradbench.data.streams import Streams, normal
from gradbench.dynamics.solvers import newton
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.reference import IMPLICIT, REFERENCE
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field
    from gradbench.systems.base import Params

STEPS = tuple(10.0 ** (-k / 2) for k in range(4, 13))  # of |theta|: 1e-2 ... 1e-6
NEWTON = 20  # steps of Newton's method, at most
FIXED = 1e-14  # |G(s) - s| / |s| of a sample at a fixed point
PLATEAU = 1e-4  # relative difference up to which the slopes of two neighbouring steps are a plateau


@dataclass(frozen=True)
class Slope:
    """The cost along one direction d of theta, |d| = |theta| in each parameter."""

    claimed: float  # <reference, d>
    measured: float  # (C(theta + h d) - C(theta - h d)) / 2 h on the plateau
    step: float  # h
    spread: float  # relative difference of the two slopes of the plateau: how exact the measured slope is
    all: tuple[float, ...]  # the slopes at all steps

    @property
    def plateau(self) -> bool:
        """Whether there is a plateau: without it the measured slope says nothing about the reference."""
        return self.spread <= PLATEAU

    @property
    def error(self) -> float:
        """|claimed - measured| / |measured|."""
        return abs(self.claimed - self.measured) / abs(self.measured) if self.measured else math.inf


def arbitrate(
    field: Field,
    T1: int,
    reference: Params,
    seeds: Sequence[int],
    steps: Sequence[float] = STEPS,
    compared_with: str = REFERENCE.name,
) -> list[Slope]:
    """Central differences of the cost along a random direction a seed, over a sweep of steps h.

    Of the cost after T1 steps; of that at the fixed point, which Newton's method finds from s_T1, where the reference
    is `implicit`. In float64. The plateau is where the slopes of two neighbouring h differ least: a larger h sees
    curvature, O(h^2), and a smaller h round-off, O(1 / h). A direction is N(0, 1) in each parameter, scaled to the
    parameter's norm.
    """
    wide, slopes = field.wide, []
    cost = partial(_cost, wide, T1)
    if compared_with == IMPLICIT:
        cost = partial(_fixed_point_cost, wide, relax(wide, (T1,), hold=2).ends[0])
    for seed in seeds:
        direction = {}
        for name, p in wide.theta.items():
            d = normal(Streams(seed)[f"direction {name}"], tuple(p.shape)).to(p)
            direction[name] = d * (p.norm() if float(p.norm()) > 0 else 1.0) / d.norm()
        quotients = [(cost(direction, h) - cost(direction, -h)) / (2 * h) for h in steps]
        spreads = [
            abs(a - b) / max(abs(a), abs(b), 1e-300) if math.isfinite(a - b) else math.inf
            for a, b in itertools.pairwise(quotients)
        ]
        k = min(range(len(spreads)), key=spreads.__getitem__)
        claimed = sum(float((reference[n].double() * d).sum()) for n, d in direction.items())
        slopes.append(Slope(claimed, quotients[k + 1], steps[k + 1], spreads[k], tuple(quotients)))
    return slopes


def _cost(field: Field, T1: int, direction: Params, h: float) -> float:
    """The cost after T1 steps with the parameters moved by h."""
    moved = _along(field, direction, h)
    # s_0 is a constant to the gradient, unless s_0 comes from a forward pass and is the free state itself
    start = moved if isinstance(field.system, AbstractForwardSystem) else field
    return _sum(moved, _moved_on(moved, start.init_state(), T1))


def _fixed_point_cost(field: Field, s: Float[Tensor, "b n"], direction: Params, h: float) -> float:
    """The cost at the fixed point that Newton's method finds from s with the parameters moved by h."""
    moved = _along(field, direction, h)
    with torch.no_grad():
        advance = newton(moved, lambda s: (moved.step(s),))
        for _ in range(NEWTON):
            if bool(((moved.step(s) - s).norm(dim=-1) <= FIXED * s.norm(dim=-1)).all()):
                break
            s = advance(s)
    return _sum(moved, s)


def _along(field: Field, direction: Params, h: float) -> Field:
    return replace(field, theta={n: p + h * direction[n] for n, p in field.theta.items()})


def _moved_on(field: Field, s: Float[Tensor, "b n"], T1: int) -> Float[Tensor, "b n"]:
    with torch.no_grad():
        for _ in range(T1):
            s = field.step(s)
    return s


def _sum(field: Field, s: Float[Tensor, "b n"]) -> float:
    with torch.no_grad():
        return float(field.cost(s).sum())
