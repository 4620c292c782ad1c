"""Phantom gradients: a few damped steps from the free state, differentiated, or their series at a fixed point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.adjoint import AdjointPhase
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Count, Exact, Reading, Snapshot, credited
from gradbench.estimators.damped import DampedPhase
from gradbench.estimators.reverse import of_sums, swept
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


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


@final
@dataclass(frozen=True)
class Phantom(AbstractEstimator):
    """Phantom gradient: T2 damped steps of the deployed map G from s_T1, differentiated.

    unrolled z <- (1 - lam) z + lam G(z), back through these steps from the cost at z_T2; s_T1 is detached
    series   eps <Pi'^T y, dF/dtheta(s_T1)>, y = lam sum_{j<T2} ((1 - lam) + lam J_G^T)^j dC/ds, all at s_T1
    The two are equal at a fixed point. There what they leave out falls as |1 - lam (1 - mu)|^T2 for eigenvalues mu of
    J_G, and with lam = 1 the series is the adjoint with T2 terms.
    """

    name: ClassVar[str] = "phantom"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Geng, Zhang, Bai, Wang & Lin 2021"

    lam: float = field(default=0.5, metadata={"above": 0, "most": 1})  # share of a step of G
    form: Literal["series", "unrolled"] = "series"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        if self.form == "unrolled":
            return UnrolledPhase(self.lam)
        return AdjointPhase() if self.lam == 1 else DampedPhase(self.lam, "step")

    def skip(self, system: type[AbstractSystem]) -> str | None:
        if self.form == "unrolled" and "T1" not in system.uses:
            return f"the free state of {system.name} is a forward pass, which no step moves: form = series is the same"
        return super().skip(system)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return swept(snapshot) if self.form == "unrolled" else credited(free, snapshot)
