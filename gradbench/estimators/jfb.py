"""Jacobian-free backpropagation: the one further step of a fixed point is differentiated, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Reading, Snapshot, credited
from gradbench.estimators.phases.one_step import StepPhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Jfb(AbstractEstimator):
    """Jacobian-free backpropagation: the adjoint of a fixed point with 1 in place of (1 - J_G^T)^-1.

    estimate eps <Pi'^T dC/ds, dF/dtheta(s*)>, which is the adjoint with one term
    Exact nowhere. It points downhill where G contracts by a factor gamma and M = dG/dtheta, with a column for every
    coordinate of the state, has full rank and kappa(M^T M) <= 1 / gamma. With a small eps a step of the relaxation
    changes little, gamma is close to 1, and the length of the estimate is of the order of eps.
    """

    name: ClassVar[str] = "jfb"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Fung, Heaton, Li, McKenzie, Osher & Yin 2022"

    @property
    def phase(self) -> AbstractPhase:
        return StepPhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot)
