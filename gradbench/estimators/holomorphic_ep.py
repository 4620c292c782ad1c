"""Holomorphic equilibrium propagation: nudges on a circle in the complex plane, read by a Fourier coefficient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, along
from gradbench.estimators.phases.holomorphic import HolomorphicPhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class HolomorphicEp(AbstractEstimator):
    """Holomorphic equilibrium propagation: N nudges on a circle of radius beta in the complex plane.

    nudged   s <- s + eps (F(s) - beta_k dC/ds), beta_k = beta exp(2 pi i k / N) from s*, T2 steps
    estimate <a, dF/dtheta(s*)>, a = -1/(N beta) sum_k exp(-2 pi i k / N) s_k
    Valid where J(s*) is symmetric, and F and dC/ds are holomorphic on the states that are reached: no relu, abs or
    clip. Error O(beta^N) inside the radius of convergence of s(beta); no N and no beta remove the bias of an asymmetric
    J. N = 2 is centred EP. One force at a complex state counts as one, and takes the time of two to four.
    """

    name: ClassVar[str] = "holomorphic_ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "Laborieux & Zenke 2022, arXiv:2209.00530; 2024, arXiv:2309.02214 (vector fields)"

    points: int = field(default=4, metadata={"least": 2})  # N

    @property
    def claim(self) -> Claim:
        return Claim(Exact.SYMMETRIC, order=self.points)

    @property
    def phase(self) -> AbstractPhase:
        return HolomorphicPhase(self.points)

    def skip(self, system: type[AbstractSystem]) -> str | None:
        return f"{system.name} takes no complex states: {system.real_only}" if system.real_only else None

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return along(free, snapshot, self.phase.credit(free, snapshot, betas))
