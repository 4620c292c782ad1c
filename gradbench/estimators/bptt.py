"""Backpropagation through time: reverse mode through the relaxation, which is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Role, Snapshot
from gradbench.estimators.phases.reverse import ReversePhase
from gradbench.estimators.readouts import swept

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Bptt(AbstractEstimator):
    """Backpropagation through time: reverse mode through the T1 steps of the deployed relaxation.

    Exact for the cost after T1 steps, whether or not these reach a fixed point. It is the reference. Where the free
    state is a forward pass, it is backpropagation through that pass.
    """

    name: ClassVar[str] = "bptt"
    role: ClassVar[Role] = Role.REFERENCE
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Rumelhart, Hinton & Williams 1986; Werbos 1990"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.ALWAYS)

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return swept(snapshot)
