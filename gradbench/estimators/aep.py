"""Asymmetric equilibrium propagation: EP whose nudged phase moves with the transposed Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.nudged import ORDER, SIGNS, Clip, Nudge, NudgedPhase
from gradbench.estimators.readouts import vector_field
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Aep(AbstractEstimator):
    """Equilibrium propagation for non-conservative systems.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds - 2 A (s - s*))), A = (J - J^T)/2 frozen at s*
    estimate <a, dF/dtheta(s*)>, a = (s_- - s_+) / 2 beta
    Valid for any J and symmetric Pi'; needs both phases converged and stable.
    Error O(beta^2) centred, O(beta) one-sided.
    `clip` caps the correction at the norm of the force; it costs fidelity wherever it acts, because at
    the corrected fixed point the two are equal.
    """

    name: ClassVar[str] = "aep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "Scurria, Vanden Abeele, Mognetti & Massar 2026, arXiv:2602.03670"

    nudge: Nudge = "centred"
    clip: Clip = "none"

    @property
    def claim(self) -> Claim:
        if self.clip != "none":
            return Claim()
        return Claim(Exact.FIXED_POINT, order=ORDER[self.nudge])

    def variants(self) -> Mapping[Cause, tuple[str, AbstractEstimator]]:
        return {} if self.clip == "none" else {Cause.CLIP: ("clip = none", replace(self, clip="none"))}

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(SIGNS[self.nudge], asymmetric=True, clip=self.clip)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return vector_field(self.nudge, free, snapshot, betas)
