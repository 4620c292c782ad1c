"""A few damped steps from the free state, and the way back through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.estimators.phases.reverse import of_sums
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class UnrolledPhase(AbstractPhase):
    """z <- (1 - lam) z + lam G(z) from s_T1, and back through these steps from dC/ds at their end, for every depth.

    a_t = (1 - lam) a_{t+1} + lam J_G(z_t)^T a_{t+1}, p_t = Pi'(u_t)^T a_{t+1}; s_T1 is detached from theta. The
    gradient lam eps sum_t <p_t, dF/dtheta(z_t)> is pulled on the way.
    """

    lam: float

    departure = Cause.WEIGHTS

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, names, z = free.field, list(free.cost_grads), free.ends
        with torch.no_grad():
            ahead = field.repeated(lambda z: (torch.lerp(z, field.step(z), self.lam),), z)
            states = [z]
            for _ in range(max(depths)):
                states.append(ahead(states[-1])[0].clone())
                launched(force=len(z))

        def back(z: Tensor, a: Tensor, p_sum: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                u = field.ahead(z) if field.system.projects else z
            p = self.lam * field.project_vjp(u, a)
            Jp, pulled = field.backward(z, p)
            moved = (total + pulled[name] for name, total in zip(names, totals, strict=True))
            return torch.addcmul((1 - self.lam) * a + p, field.step_size, Jp), p_sum + p, *moved

        step = field.repeated(back, z, z, z, *free.cost_grads.values())
        for depth in sorted(depths):
            end = replace(free, ends=states[depth], _views={})
            a, *sums = end.cost_slope, torch.zeros_like(z), *map(torch.zeros_like, end.cost_grads.values())
            for z in reversed(states[:depth]):
                a, *sums = step(z, a, *sums)
                launched(products=len(a))
            yield of_sums(end, depth, sums)

    def terms(self, depth: int | None) -> int | None:
        return depth

    def step_size(self, free: Trajectory) -> Tensor:
        return self.lam * free.field.step_size

    @property
    def step_size_key(self) -> object:
        return self.lam

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(force=depth, vjp=depth)

    def run_count(self, T1: int, depths: tuple[int, ...]) -> Count:
        return Count(force=max(depths), vjp=sum(depths))
