"""The adjoint of a fixed point: implicit differentiation, by its Neumann series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, credited
from gradbench.estimators.phases.adjoint import AdjointPhase, Projection
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Adjoint(AbstractEstimator):
    """Adjoint of the fixed point of the projected step map, by its Neumann series.

    terms    a = sum_{j<T2} (J_G^T)^j dC/ds, J_G^T = (I + eps J^T) Pi'^T, J at s* and Pi' at s* + eps F(s*)
    estimate eps <Pi'^T a, dF/dtheta(s*)>
    Valid at a stable fixed point, for any J and Pi'; what is left out falls as rho^T2. `projection = "dropped"`
    takes Pi' = 1 throughout: an ablation, wrong wherever the system projects.
    """

    name: ClassVar[str] = "adjoint"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Almeida 1987; Pineda 1987; Bai, Kolter & Koltun 2019 (implicit differentiation)"

    projection: Projection = "kept"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT if self.projection == "kept" else None)

    def variants(self) -> Mapping[Cause, tuple[str, AbstractEstimator]]:
        return {} if self.projection == "kept" else {Cause.READOUT: ("projection = kept", Adjoint())}

    @property
    def phase(self) -> AbstractPhase:
        return AdjointPhase(self.projection)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot)
