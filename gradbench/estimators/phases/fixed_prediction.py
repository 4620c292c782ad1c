"""Errors that relax along the layers of a forward pass, whose predictions stay what they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class FixedPredictionPhase(AbstractPhase):
    """a <- a + eps (dC/ds - D^T a) from a = 0, D = de/ds at the forward pass: -beta a are the prediction errors."""

    departure = Cause.TRUNCATION

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        from gradbench.dynamics.linear import Linear

        field, eps, g = free.field, free.field.step_size, free.cost_slope
        linear = field.frozen(lambda s: Linear(field.errors, s), free.ends)

        def ahead(a: Tensor) -> tuple[Tensor, ...]:
            return (torch.addcmul(a, eps, g - linear().vjp(a)),)

        a = torch.zeros_like(g)
        step = field.repeated(ahead, a)
        for depth in range(1, max(depths) + 1):
            (a,) = step(a)
            launched(products=len(a))
            if depth in depths:
                yield Snapshot(depth, credit=a.clone())

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(vjp=depth)
