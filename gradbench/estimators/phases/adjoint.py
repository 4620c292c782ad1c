"""The adjoint of a fixed point, by its Neumann series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field
    from gradbench.dynamics.trajectory import Trajectory

Projection = Literal["kept", "dropped"]
_PROJECTED: Mapping[Projection, Callable[[Field, Tensor, Tensor], Tensor]] = {  # (field, u, a) -> Pi'(u)^T a
    "kept": lambda field, u, a: field.project_vjp(u, a),
    "dropped": lambda field, u, a: a,
}


@final
@dataclass(frozen=True)
class AdjointPhase(AbstractPhase):
    """a <- J_G^T a = p + eps J^T p,  p = Pi'^T a,  from a = dC/ds, all at s*

    The credit eps sum p over the terms so far serves every depth. Dropped: Pi' = 1.
    """

    projection: Projection = "kept"

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, eps, a = free.field, free.field.step_size, free.cost_slope
        with torch.no_grad():
            u = field.ahead(free.ends)
        linear = field.frozen(field.at, free.ends)
        projected = _PROJECTED[self.projection]

        def back(a: Tensor) -> tuple[Tensor, ...]:
            p = projected(field, u, a)
            return p, torch.addcmul(p, eps, linear().vjp(p))

        step, total = field.repeated(back, a), torch.zeros_like(a)
        for term in range(1, max(depths) + 1):
            p, a = step(a)
            launched(products=len(a))
            total = total + p
            if term in depths:
                yield Snapshot(term, credit=eps * total)

    def terms(self, depth: int | None) -> int | None:
        return depth

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(vjp=depth)
