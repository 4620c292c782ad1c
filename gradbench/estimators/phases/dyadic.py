"""A dyad of states: beside the state relaxes the difference of two states, by the transposed Jacobian."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.estimators.phases.adjoint import AdjointPhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory

Cost = Literal["midpoint", "replicas"]


@final
@dataclass(frozen=True)
class DyadicPhase(AbstractPhase):
    """m <- Pi(u), d <- Pi'(u)^T (d + eps (J^T d - beta g)), u = m + eps (F(m) - beta h), J at m, from m = s*, d = 0

    midpoint g = dC/ds(m), h = 0
    replicas g = (dC/ds(m + d/2) + dC/ds(m - d/2)) / 2, h = (dC/ds(m + d/2) - dC/ds(m - d/2)) / 4
    """

    cost: Cost = "midpoint"

    linearises = True

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, eps, beta, replicas = free.field, free.field.step_size, betas[..., None, None], self.cost == "replicas"

        def ahead(m: Tensor, d: Tensor, largest: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                force = field.force(m)
                if replicas:
                    above, below = field.cost_slope(torch.stack((m + 0.5 * d, m - 0.5 * d)))
                    slope, force = 0.5 * (above + below), force - 0.25 * beta * (above - below)
                else:
                    slope = field.cost_slope(m)
                u = torch.addcmul(m, eps, force)
            moved = torch.addcmul(d, eps, field.at(m).vjp(d) - beta * slope)
            m, d = field.project(u), field.project_vjp(u, moved)
            return m, d, torch.maximum(largest, m.flatten(-2).norm(dim=-1) + 0.5 * d.flatten(-2).norm(dim=-1))

        m = free.ends[:, None].repeat_interleave(len(betas), 1)
        dyad: tuple[Tensor, ...] = m, torch.zeros_like(m), m.new_zeros(m.shape[:-2])
        step = field.repeated(ahead, *dyad)
        for depth in range(1, max(depths) + 1):
            dyad = step(*dyad)
            launched(force=len(m) * len(betas), products=len(m) * len(betas))
            if depth in depths:
                _, d, largest = (v.clone() for v in dyad)
                yield Snapshot(depth, {"nudge_norm": largest}, nudged=d[:, :, None])

    def terms(self, depth: int | None) -> int | None:
        return depth

    def linearised(
        self, free: Trajectory, depths: Collection[int], *, drifting: bool
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        """The adjoint; along the drift the midpoint form, which is linear in beta."""
        one, at = free.ends.new_ones((1, *free.ends.shape[1:-2])), tuple(depths)
        for snapshot in (DyadicPhase() if drifting else AdjointPhase()).run(free, at, one):
            assert snapshot.depth is not None
            if snapshot.credit is not None:
                yield snapshot.depth, snapshot.credit
            else:
                yield snapshot.depth, self.credit(free, snapshot, one)[:, 0]

    def credit(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Float[Tensor, "i j *c b n"]:
        assert snapshot.nudged is not None
        return -snapshot.nudged[:, :, 0] / betas[..., None, None]

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(force=depth, vjp=depth)
