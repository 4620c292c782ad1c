"""Predictive coding with the schedule that makes it backpropagation: zero-divergence inference learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.layer_by_layer import LayerByLayerPhase
from gradbench.estimators.readouts import predicted, predicts_nothing

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class ZIl(AbstractEstimator):
    """Strict predictive coding from the forward pass, with steps of 1, each layer read after its first move.

    second phase  h_l <- h_l - (e_l - J_{l+1}(h_l)^T e_{l+1} + [l = L] beta dC/dh_L), all layers at once
    estimate      <a, dp/dtheta> + dC/dtheta, a_l = -e_l / beta after step L - l + 1, p_l(h_{l-1}) predicts h_l
    Then h_{l-1} has not moved, and a_l is the slope that backpropagation carries, at any beta. Predictions move, as in
    `ep` on such a system, which reads all layers after the same step. eps plays no part; it takes T2 >= L steps, L the
    layers h_1 ... h_L of the state. Only of forward systems.
    """

    name: ClassVar[str] = "z_il"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "Song, Lukasiewicz, Xu & Bogacz 2020, NeurIPS"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return LayerByLayerPhase()

    def skip(self, system: type[AbstractSystem]) -> str | None:
        return predicts_nothing(system)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return predicted(free, snapshot, self.phase.credit(free, snapshot, betas))
