"""Equilibrium propagation: the response of the fixed point to a nudge along the cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.nudged import ORDER, SIGNS, Nudge, NudgedPhase, Reduction
from gradbench.estimators.readouts import READOUTS, Readout
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Ep(AbstractEstimator):
    """Equilibrium propagation.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds)), b = +beta and -beta from s*, T2 steps
    estimate vector_field     <a, dF/dtheta(s*)>, a = (s_- - s_+) / 2 beta
             energy_contrast  (dE/dtheta|s_+ - dE/dtheta|s_-) / 2 beta
    Valid where J(s*) is symmetric, and Pi' too: the displacement of a projected state contains Pi' already,
    and the plain readout is right. On a non-conservative force this is naive EP, whose bias no beta removes. Error
    O(beta^2) centred, O(beta) one-sided. The readouts differ at the same order. `reduction = "mean"` steps by
    eps / b in the nudged phase, as an average over the batch does that is descended in place of the sum: the
    fixed points are the same, and T2 steps go a b-th of the way.
    """

    name: ClassVar[str] = "ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = (
        "Scellier & Bengio 2017; Scellier et al. 2018 (vector field); Laborieux et al. 2021 (centred)"
    )

    nudge: Nudge = "centred"
    readout: Readout = "vector_field"
    reduction: Reduction = "sum"

    @property
    def claim(self) -> Claim:
        part = "the energy contrast" if self.readout == "energy_contrast" else ""
        return Claim(Exact.SYMMETRIC, ORDER[self.nudge], part)

    def variants(self) -> Mapping[Cause, tuple[str, AbstractEstimator]]:
        plain = replace(self, readout="vector_field")
        return {} if self == plain else {Cause.READOUT: ("readout = vector_field", plain)}

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(SIGNS[self.nudge], reduction=self.reduction)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return READOUTS[self.readout](self.nudge, free, snapshot, betas)
