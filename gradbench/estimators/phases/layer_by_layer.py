"""A nudged forward pass whose layers are read one after the other."""

from __future__ import annotations

import math
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
class LayerByLayerPhase(AbstractPhase):
    """h <- h + F(h) - beta dC/dh from the forward pass, all layers at once; h_l is read after step L - l + 1 alone.

    A layer stands still until the layer above has moved, so it is read after its first move. Later steps are taken,
    and not read: the cost of T2 steps is that of T2 steps on every system.
    """

    departure = Cause.TRUNCATION

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, nudge = free.field, betas[..., None, None]

        def ahead(h: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (torch.addcmul(h + field.force(h), nudge, field.cost_slope(h), value=-1),)

        h = free.ends[:, None].repeat_interleave(len(betas), 1)
        widths, step, read = [math.prod(shape) for shape in field.system.layout.values()], field.repeated(ahead, h), h
        for depth in range(1, max(depths) + 1):
            (h,) = step(h)
            launched(force=len(h) * len(betas))
            if depth <= len(widths):
                below, above = sum(widths[:-depth]), sum(widths[: len(widths) - depth + 1])
                read = torch.cat((read[..., :below], h[..., below:above], read[..., above:]), -1)
            if depth in depths:
                yield Snapshot(depth, nudged=read[:, :, None])

    def credit(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Float[Tensor, "i j *c b n"]:
        assert snapshot.nudged is not None
        return (free.ends[:, None] - snapshot.nudged[:, :, 0]) / betas[..., None, None]

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(force=depth)
