"""A nudged phase whose sign is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from gradbench.data.streams import Streams
from gradbench.estimators.base import AbstractPhase, Change, Count, Snapshot
from gradbench.estimators.phases.nudged import SIGNS, NudgedPhase
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem

DRAWS = 15  # odd, so that the two signs never cancel
CENTRED = NudgedPhase(SIGNS["centred"])


@dataclass(frozen=True, eq=False)
class Signed(Snapshot):
    """A phase with both signs, and how often each was drawn."""

    draws: int = 0
    share: Float[Tensor, "*c"] | None = None  # of the draws that are positive


@final
@dataclass(frozen=True)
class SignedPhase(AbstractPhase):
    """Both signs of a nudged phase, run once, and the signs that the draws of a cell take."""

    rule: str  # whose phase it is: the signs are drawn from its stream
    draws: range = range(DRAWS)
    both: NudgedPhase = CENTRED

    linearises = True
    departure = Cause.VARIANCE
    recordable = False

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        return (self._signed(free, snapshot) for snapshot in self.both.run(free, depths, betas))

    def _signed(self, free: Trajectory, snapshot: Snapshot) -> Signed:
        shares = [self._share(seed) for seed in free.field.cell_seeds]
        share = free.ends.new_tensor(shares).reshape(free.ends.shape[1:-2])
        return Signed(**vars(snapshot), draws=len(self.draws), share=share)

    def _share(self, seed: int) -> float:
        import torch

        rngs = [Streams(seed).draw(draw)[f"rule {self.rule}"] for draw in self.draws]
        return sum(int(torch.randint(2, (), generator=rng)) for rng in rngs) / len(rngs)

    def drawn(self, draws: range) -> AbstractPhase:
        return replace(self, draws=draws)

    @property
    def unobserved(self) -> AbstractPhase:
        return replace(self, both=replace(self.both, observed=False))

    def terms(self, depth: int | None) -> int | None:
        return depth

    def linear_key(self, system: AbstractSystem) -> object:
        return self.both.linear_key(system)

    def linearised(
        self, free: Trajectory, depths: Collection[int], *, drifting: bool
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        return self.both.linearised(free, depths, drifting=drifting)

    def changes(
        self,
        free: Trajectory,
        depths: tuple[int, ...],
        betas: Float[Tensor, "j *c"],
        no_limit: Cause,
        *,
        drifting: bool = True,
    ) -> Iterator[Change]:
        for change in self.both.changes(free, depths, betas, no_limit, drifting=drifting):
            yield replace(change, snapshot=self._signed(free, change.snapshot))

    def count(self, T1: int, depth: int | None) -> Count:
        return self.both.count(T1, depth)

    def evidence_count(self, depth: int | None) -> Count:
        return self.both.evidence_count(depth)
