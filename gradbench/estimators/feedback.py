"""What rules of feedback alignment have in common: credit goes through fixed random matrices."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Reading, Snapshot, credited
from gradbench.estimators.phases.feedback import FeedbackPhase, Kind
from gradbench.estimators.readouts import swept
from gradbench.systems.base import LayeredWeights

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


class AbstractFeedback(AbstractEstimator):
    """A rule of feedback alignment. It claims to be exact nowhere."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The matrices that it goes by."""

    @property
    def phase(self) -> AbstractPhase:
        return FeedbackPhase(self.kind)

    def skip(self, system: type[AbstractSystem]) -> str | None:
        layered = issubclass(system, LayeredWeights)
        return None if layered else f"{system.name} declares no layers between which weights carry credit"

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return credited(free, snapshot) if snapshot.gradient is None else swept(snapshot)
