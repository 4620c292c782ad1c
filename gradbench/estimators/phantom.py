"""Phantom gradients: a few damped steps from the free state, differentiated, or their series at a fixed point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, credited
from gradbench.estimators.phases.adjoint import AdjointPhase
from gradbench.estimators.phases.damped import DampedPhase
from gradbench.estimators.phases.unrolled import UnrolledPhase
from gradbench.estimators.readouts import swept

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class Phantom(AbstractEstimator):
    """Phantom gradient: T2 damped steps of the deployed map G from s_T1, differentiated.

    unrolled z <- (1 - lam) z + lam G(z), back through these steps from the cost at z_T2; s_T1 is detached
    series   eps <Pi'^T y, dF/dtheta(s_T1)>, y = lam sum_{j<T2} ((1 - lam) + lam J_G^T)^j dC/ds, all at s_T1
    The two are equal at a fixed point. There what they leave out falls as |1 - lam (1 - mu)|^T2 for eigenvalues mu of
    J_G, and with lam = 1 the series is the adjoint with T2 terms.
    """

    name: ClassVar[str] = "phantom"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Geng, Zhang, Bai, Wang & Lin 2021"

    lam: float = field(default=0.5, metadata={"above": 0, "most": 1})  # share of a step of G
    form: Literal["series", "unrolled"] = "series"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        if self.form == "unrolled":
            return UnrolledPhase(self.lam)
        return AdjointPhase() if self.lam == 1 else DampedPhase(self.lam, "step")

    def skip(self, system: type[AbstractSystem]) -> str | None:
        if self.form == "unrolled" and "T1" not in system.uses:
            return f"the free state of {system.name} is a forward pass, which no step moves: form = series is the same"
        return super().skip(system)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return swept(snapshot) if self.form == "unrolled" else credited(free, snapshot)
