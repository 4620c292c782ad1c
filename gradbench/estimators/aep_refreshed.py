"""Asymmetric equilibrium propagation whose correction follows the nudged state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.nudged import ORDER, SIGNS, Nudge, NudgedPhase
from gradbench.estimators.readouts import vector_field

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class AepRefreshed(AbstractEstimator):
    """`aep` whose antisymmetric part is taken anew along the nudged phase.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds - 2 A (s - s*))), A = (J - J^T)/2 at s*, and after `every` steps each time
             at the nudged state that is reached
    estimate <a, dF/dtheta(s*)>, a = (s_- - s_+) / 2 beta
    Valid for any J and symmetric Pi'. What moves A is of the order of beta, so that the error has the order of that of
    `aep`, O(beta^2) centred and O(beta) one-sided, with another factor; with a J that is constant the two are equal.
    """

    name: ClassVar[str] = "aep_refreshed"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "a variant of `aep` (Scurria et al. 2026, arXiv:2602.03670)"

    every: int = 10  # steps
    nudge: Nudge = "centred"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT, order=ORDER[self.nudge])

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(SIGNS[self.nudge], asymmetric=True, every=self.every)

    def skip(self, system: type[AbstractSystem]) -> str | None:
        return f"{system.name} has an energy, so that A = 0: the rule is ep" if system.conservative else None

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return vector_field(self.nudge, free, snapshot, betas)
