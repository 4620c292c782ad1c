"""The adjoint equation of a fixed point, relaxed in steps of another size than those of the free phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class DampedPhase(AbstractPhase):
    """y <- y + lam (dC/ds - (1 - J_G^T) y) from 0, all at s*; the credit is eps Pi'^T y

    After k steps y = lam sum_{j<k} ((1 - lam) + lam J_G^T)^j dC/ds. `size` is lam itself, a share of a step of the free
    phase; or in units of the time of F, in which a step of the free phase is eps: lam = size / eps. Where nothing
    projects, this is the adjoint with steps of lam eps.
    """

    size: float
    unit: Literal["step", "time"]

    departure = Cause.WEIGHTS

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, g = free.field, free.cost_slope
        lam = self.size if self.unit == "step" else self.size / field.step_size
        with torch.no_grad():
            u = field.ahead(free.ends)
        linear = field.frozen(field.step_at, free.ends)
        step = field.repeated(lambda y: (y + lam * (g - y + linear().vjp(y)),), g)
        y = lam * g
        for depth in range(1, max(depths) + 1):
            if depth > 1:
                (y,) = step(y)
                launched(products=len(y))
            if depth in depths:
                yield Snapshot(depth, credit=field.step_size * field.project_vjp(u, y))

    def terms(self, depth: int | None) -> int | None:
        return depth

    def step_size(self, free: Trajectory) -> Tensor:
        return self.size * free.field.step_size if self.unit == "step" else 0 * free.field.step_size + self.size

    @property
    def step_size_key(self) -> object:
        return self.size, self.unit

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(vjp=depth - 1)
