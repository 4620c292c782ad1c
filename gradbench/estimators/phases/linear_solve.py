"""The linear equation of the adjoint of a fixed point, by an iterative solver or by LU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from gradbench.dynamics.meter import launched
from gradbench.errors import RuleFaultError
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory

    Product = Callable[[Tensor], Tensor]
    Solve = Callable[[Product, Tensor, tuple[int, ...]], Iterator[Tensor]]

LinearSolver = Literal["gmres", "bicgstab", "anderson"]


def _gmres(product: Product, g: Tensor, depths: tuple[int, ...]) -> Iterator[Tensor]:
    from gradbench.dynamics.krylov import least_of_each

    return least_of_each(product, g, depths)


def _bicgstab(product: Product, g: Tensor, depths: tuple[int, ...]) -> Iterator[Tensor]:
    from gradbench.dynamics.krylov import bicgstab

    return (a for k, a in zip(range(1, max(depths) + 1), bicgstab(product, g), strict=False) if k in depths)


def _anderson(product: Product, g: Tensor, depths: tuple[int, ...]) -> Iterator[Tensor]:
    import torch

    from gradbench.dynamics.solvers import WINDOW, accelerated, mixed

    advance = accelerated(lambda a: (a + g - product(a),), most=WINDOW, weights=mixed)
    a = torch.zeros_like(g)
    for k in range(1, max(depths) + 1):
        a = advance(a)
        if k in depths:
            yield a


_SOLVES: Mapping[LinearSolver, Solve] = {"gmres": _gmres, "bicgstab": _bicgstab, "anderson": _anderson}
_PRODUCTS: Mapping[LinearSolver, int] = {"gmres": 1, "bicgstab": 2, "anderson": 1}  # of an iteration


def _snapshot(free: Trajectory, depth: int | None, product: Product, a: Tensor) -> Snapshot:
    """The credit of a solution, with the share of dC/ds that it leaves at the worst sample."""
    import torch

    field, g = free.field, free.cost_slope
    with torch.no_grad():
        u = field.ahead(free.ends)
    size = g.norm(dim=-1).clamp_min(torch.finfo(g.dtype).tiny)
    left = ((g - product(a)).norm(dim=-1) / size).nan_to_num(nan=math.inf).amax(-1)
    return Snapshot(depth, {"solve_residual": left[:, None]}, credit=field.step_size * field.project_vjp(u, a))


def _product(free: Trajectory) -> Product:
    """a -> (1 - J_G^T) a at s*, ready for many calls."""
    field = free.field
    frozen = field.frozen(field.step_at, free.ends)
    back = field.repeated(lambda a: (frozen().vjp(a),), free.ends)

    def product(a: Tensor) -> Tensor:
        launched(products=len(a))
        return a - back(a)[0]

    return product


@final
@dataclass(frozen=True)
class SolvePhase(AbstractPhase):
    """(1 - J_G^T) a = dC/ds at s*, by so many iterations of a solver as the depth says; the credit is eps Pi'^T a."""

    linear_solver: LinearSolver

    departure = Cause.TRUNCATION
    recordable = False

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        product, ascending = _product(free), tuple(sorted(depths))
        solve = _SOLVES[self.linear_solver](product, free.cost_slope, ascending)
        for depth, a in zip(ascending, solve, strict=True):
            yield _snapshot(free, depth, product, a)

    def terms(self, depth: int | None) -> int | None:
        return depth

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(vjp=depth * _PRODUCTS[self.linear_solver])

    def run_count(self, T1: int, depths: tuple[int, ...]) -> Count:
        return self.count(T1, max(depths)) + self.evidence_count(None) * (len(depths) - 1)

    def evidence_count(self, depth: int | None) -> Count:
        """The residual of a depth."""
        return Count(vjp=1)


@final
@dataclass(frozen=True)
class DensePhase(AbstractPhase):
    """(1 - J_G^T) a = dC/ds at s* by LU of the matrix of every sample, from n products; the credit is eps Pi'^T a."""

    rule: str  # whose phase it is, and a rule without matrices: its message names both
    instead: str

    recordable = False

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        from gradbench.dynamics.linear import DENSE, by_lu, dense

        s, n = free.ends, free.ends.shape[-1]
        if s.numel() * n > DENSE:
            told = f"the matrices of all samples have {s.numel() * n:.1e} entries, more than {DENSE:.1e}"
            raise RuleFaultError(f"{self.rule}: {told}; take {self.instead}, which has no matrices")
        matrix = torch.eye(n).to(s) - dense(free.field.step_at(s), s).mT
        launched(products=n * len(s))
        snapshot = _snapshot(free, None, _product(free), by_lu(matrix, free.cost_slope))
        counted = {"n_force": 0, "n_jvp": 0, "n_vjp": n}
        residual = snapshot.evidence["solve_residual"]
        snapshot.evidence.update({name: torch.full_like(residual, number) for name, number in counted.items()})
        yield snapshot

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(partial=True)

    def evidence_count(self, depth: int | None) -> Count:
        """The residual."""
        return Count(vjp=1)
