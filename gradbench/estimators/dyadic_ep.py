"""Dyadic equilibrium propagation: beside the state relaxes the difference of two states, by the transposed Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, along
from gradbench.estimators.phases.dyadic import Cost, DyadicPhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class DyadicEp(AbstractEstimator):
    """Dyadic equilibrium propagation: a dyad of states, of which the midpoint m relaxes freely.

    nudged   m <- Pi(m + eps F(m)),  d <- Pi'^T (d + eps (J(m)^T d - beta dC/ds(m))),  from m = s*, d = 0
    estimate <a, dF/dtheta(s*)>, a = -d / beta
    Valid for any J and Pi' at a stable fixed point. d is linear in beta, which cancels: this is the adjoint with T2
    terms. `cost = "replicas"` nudges each state m + d/2 and m - d/2 along C at itself, as a saddle of
    <d, F(m)> - beta (C(m + d/2) + C(m - d/2)) / 2: error O(beta^2), since m moves.
    """

    name: ClassVar[str] = "dyadic_ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = (
        "Scurria, Vanden Abeele, Mognetti & Massar 2026, arXiv:2602.03670, as EquilibriumPropagation.jl writes it"
    )

    cost: Cost = "midpoint"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT, order=2 if self.cost == "replicas" else None)

    @property
    def phase(self) -> AbstractPhase:
        return DyadicPhase(self.cost)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return along(free, snapshot, self.phase.credit(free, snapshot, betas))
