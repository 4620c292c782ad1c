"""Truncated backpropagation through time: reverse mode through the last steps of the relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.reverse import ReversePhase
from gradbench.estimators.readouts import swept

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem


@final
@dataclass(frozen=True)
class Tbptt(AbstractEstimator):
    """Truncated backpropagation through time: reverse mode through the last T2 of the T1 steps.

    estimate eps sum_{T1 - T2 <= t < T1} <p_t, dF/dtheta(s_t)>, p_t as in backpropagation through time
    Exact for T2 = T1. At a fixed point it is the adjoint with T2 terms, and what is left out falls as rho^T2.
    T1 steps without and T2 more with a graph, as CET is trained, are tbptt of T1 + T2 steps.
    """

    name: ClassVar[str] = "tbptt"
    truncates: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Williams & Peng 1990; Hoier, Kerjan & Scellier 2026 (last T2 steps of a relaxation)"

    @property
    def claim(self) -> Claim:
        return Claim(Exact.FIXED_POINT)

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def skip(self, system: type[AbstractSystem]) -> str | None:
        if "T1" not in system.uses:
            return f"the free state of {system.name} is a forward pass: there are no steps to go back by"
        return super().skip(system)

    def skip_cell(self, T1: int, T2: int) -> str | None:
        return "T2 > T1: there are fewer steps than tbptt is to go back" if T2 > T1 else None

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return swept(snapshot)
