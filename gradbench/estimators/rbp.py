"""Recurrent backpropagation: the adjoint of a fixed point by a relaxation with a step of its size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, credited
from gradbench.estimators.phases.damped import DampedPhase
from gradbench.systems.base import POSITIVE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Rbp(AbstractEstimator):
    """Recurrent backpropagation: the adjoint's relaxation of Almeida and Pineda, with a step size that is not eps.

    second phase  da/dt = J^T a + dC/ds from 0, in T2 steps of eta:  a <- a + eta (J^T a + dC/ds)
    estimate      <a, dF/dtheta(s*)>
    With a projection the free phase is ds/dt = (G(s) - s) / eps, and its adjoint dy/dt = ((J_G^T - 1) y + dC/ds) / eps,
    in steps of eta; a = eps Pi'^T y. Either is the series of `phantom` with lam = eta / eps, which may exceed 1 here;
    with eta = eps it is the adjoint with T2 terms. Valid at a fixed point, for any J and Pi', if |1 + eta nu| < 1 for
    every eigenvalue nu of (J_G - 1) / eps, which is J if nothing projects. What is left out falls as its maximum^T2.
    """

    name: ClassVar[str] = "rbp"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Almeida 1987; Pineda 1987; Liao et al. 2018"

    eta: float = field(default=0.1, metadata=POSITIVE)  # step size, in the unit of time of F

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return DampedPhase(self.eta, "time")

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot)
