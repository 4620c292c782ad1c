"""Equilibrium propagation whose estimates at beta and beta / 2 are extrapolated to beta = 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.nudged import HALVED, ORDER, Nudge, NudgedPhase
from gradbench.estimators.readouts import vector_field

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class RichardsonEp(AbstractEstimator):
    """Equilibrium propagation, extrapolated to beta = 0 from the nudges beta and beta / 2.

    estimate <a, dF/dtheta(s*)>, a = (4 a(beta/2) - a(beta)) / 3 centred, 2 a(beta/2) - a(beta) one-sided,
             a(beta) that of `ep`; with `correction = "asymmetric"` that of `aep`
    Valid where J(s*) and Pi' are symmetric; with the correction for any J and symmetric Pi'. Error O(beta^4) centred,
    O(beta^2) one-sided, at twice the nudged phases. Round-off and drift grow by the weights: up to three times.
    """

    name: ClassVar[str] = "richardson_ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "Richardson 1911 on Laborieux et al. 2021 (centred EP)"

    nudge: Nudge = "centred"
    correction: Literal["none", "asymmetric"] = "none"

    @property
    def claim(self) -> Claim:
        exact = Exact.SYMMETRIC if self.correction == "none" else Exact.FIXED_POINT
        return Claim(exact, order=2 * ORDER[self.nudge])

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(HALVED[self.nudge], asymmetric=self.correction == "asymmetric")

    def skip(self, system: type[AbstractSystem]) -> str | None:
        if self.correction == "asymmetric" and system.conservative:
            return f"{system.name} has an energy, so that A = 0: correction = none is the same"
        return super().skip(system)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return vector_field(self.nudge, free, snapshot, betas)
