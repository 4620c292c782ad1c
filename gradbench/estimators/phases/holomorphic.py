"""Nudges on a circle in the complex plane, read by a Fourier coefficient."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.estimators.phases.nudged import NudgedPhase
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Complex, Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class HolomorphicPhase(AbstractPhase):
    """s_k <- s_k + eps (F(s_k) - beta_k dC/ds) from s*, beta_k = beta exp(2 pi i k / N), for k = 0 ... N/2

    F is real on the real axis, so that the state of the conjugate of beta_k is the conjugate of s_k.
    """

    points: int

    linearises = True
    beta_tells = frozenset({Cause.NONLINEARITY, Cause.PRECISION})  # drift cancels over the circle

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, (turns, _) = free.field.complex, _turns(self.points, betas)
        turned = turns.reshape(-1, *[1] * (betas.ndim - 1)) * betas[:, None]
        nudge, eps = turned.flatten(0, 1)[..., None, None], field.step_size

        def ahead(s: Tensor, largest: Tensor, moved: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                push = torch.addcmul(field.force(s), nudge, field.cost_slope(s), value=-1)
                after = field.project(torch.addcmul(s, eps, push))
                size, step_size = (v.flatten(-2).norm(dim=-1) for v in (after, after - s))
            return after, torch.maximum(largest, size), step_size

        start = free.ends[:, None].to(nudge)
        s = start.repeat_interleave(len(nudge), 1)
        state = s, *free.ends.new_zeros(2, *s.shape[:-2])
        step = field.repeated(ahead, *state)
        for depth in range(1, max(depths) + 1):
            state = step(*state)
            launched(force=len(s) * len(nudge))
            if depth in depths:
                after, largest, moved = (v.unflatten(1, (-1, len(turns))) for v in state)
                gone = (after - start[:, None]).flatten(-2).norm(dim=-1)
                evidence = {"nudge_norm": largest.amax(2), "nudge_residual": (moved / gone).amax(2)}
                yield Snapshot(depth, evidence, nudged=after.clone())

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(force=(self.points // 2 + 1) * depth)

    def terms(self, depth: int | None) -> int | None:
        return depth

    def linear_key(self, system: AbstractSystem) -> object:
        return NudgedPhase(())

    def linearised(
        self, free: Trajectory, depths: Collection[int], *, drifting: bool
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        return NudgedPhase(()).linearised(free, depths, drifting=drifting)  # that of any EP

    def credit(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Float[Tensor, "i j *c b n"]:
        assert snapshot.nudged is not None
        moved = snapshot.nudged - free.ends[:, None, None]
        weights = _turns(self.points, betas)[1].reshape(-1, *[1] * (moved.ndim - 3))
        return -(weights * moved).sum(2).real / betas[..., None, None]


def _turns(points: int, like: Tensor) -> tuple[Complex[Tensor, "k"], Complex[Tensor, "k"]]:
    """beta_k / beta of the points that are run, and their weights in the first Fourier coefficient.

    A point off the real axis stands for its conjugate, too.
    """
    import torch

    k = torch.arange(points // 2 + 1, device=like.device).to(like)
    turns = torch.polar(torch.ones_like(k), 2 * math.pi / points * k)
    both = (k > 0) & (2 * k < points)
    return turns, turns.conj() * (1 + both.to(like)) / points
