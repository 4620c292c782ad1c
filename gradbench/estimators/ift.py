"""Implicit differentiation by a linear solver, as deep equilibrium models are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, credited
from gradbench.estimators.phases.linear_solve import LinearSolver, SolvePhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Ift(AbstractEstimator):
    """Implicit differentiation of the fixed point of the deployed map, by an iterative linear solver.

    estimate eps <Pi'^T a, dF/dtheta(s*)>, (1 - J_G^T) a = dC/ds, every sample solved by itself from a = 0
    T2       iterations: dimensions of the Krylov space of GMRES, which is not restarted; of BiCGSTAB with two products
             with J_G^T each; of Anderson acceleration over the last 6
    Valid at a stable fixed point, for any J and Pi'. `solve_residual` is |dC/ds - (1 - J_G^T) a| / |dC/ds| of the worst
    sample: where it is not small the solver has not arrived. Unlike the reference `implicit`, it works in the dtype of
    the cell and stops after T2.
    """

    name: ClassVar[str] = "ift"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Bai, Kolter & Koltun 2019; Saad & Schultz 1986; van der Vorst 1992; Walker & Ni 2011"

    linear_solver: LinearSolver = "gmres"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return SolvePhase(self.linear_solver)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot)
