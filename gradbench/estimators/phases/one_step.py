"""The one further step of a fixed point, differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class StepPhase(AbstractPhase):
    """One step of the free phase from s*, differentiated in theta alone: the credit eps Pi'^T dC/ds."""

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field = free.field
        with torch.no_grad():
            u = field.ahead(free.ends)
        launched(force=len(u))
        yield Snapshot(None, credit=field.step_size * field.project_vjp(u, free.cost_slope))

    def terms(self, depth: int | None) -> int | None:
        return 1

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(force=1)
