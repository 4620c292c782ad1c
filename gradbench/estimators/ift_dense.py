"""Implicit differentiation by LU of the matrix of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, credited
from gradbench.estimators.ift import Ift
from gradbench.estimators.phases.linear_solve import DensePhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class IftDense(AbstractEstimator):
    """Implicit differentiation of the fixed point of the deployed map, by LU.

    estimate eps <Pi'^T a, dF/dtheta(s*)>, (1 - J_G^T) a = dC/ds
    Valid at a stable fixed point, for any J and Pi'; there is no series to cut and no depth. It makes the Jacobian of
    every sample by n products, so that it is for states of up to some hundred numbers. `solve_residual` as of `ift`.
    """

    name: ClassVar[str] = "ift_dense"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Almeida 1987; Pineda 1987; Bai, Kolter & Koltun 2019"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return DensePhase(self.name, instead=Ift.name)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot)
