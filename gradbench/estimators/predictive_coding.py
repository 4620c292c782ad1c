"""Predictive coding with fixed predictions: errors that relax along the layers of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.fixed_prediction import FixedPredictionPhase
from gradbench.estimators.readouts import predicted, predicts_nothing

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class PredictiveCoding(AbstractEstimator):
    """Predictive coding with fixed predictions: errors relax, predictions and Jacobians stay those of the forward pass.

    second phase  e_l <- e_l - eps (e_l - J_{l+1}^T e_{l+1} + beta dC/dh_l) from e = 0, J_l of the prediction of h_l
    estimate      <a, dp/dtheta> + dC/dtheta, a = -e / beta, p_l(h_{l-1}) the prediction of h_l
    Linear in the nudge, which cancels. Backpropagation after L steps with eps = 1, L the layers h_1 ... h_L of the
    state; with a smaller eps as T2 -> inf.
    Only of forward systems. Strict predictive coding, whose predictions move, is `ep` there, with nudge = positive and
    readout = energy_contrast: it descends 1/2 |e|^2 + beta C, and tends to backpropagation as beta -> 0.
    """

    name: ClassVar[str] = "predictive_coding"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Millidge, Tschantz & Buckley 2020; Rosenbaum 2022; Whittington & Bogacz 2017 (strict)"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return FixedPredictionPhase()

    def skip(self, system: type[AbstractSystem]) -> str | None:
        return predicts_nothing(system)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        assert snapshot.credit is not None
        return predicted(free, snapshot, snapshot.credit[:, None])
