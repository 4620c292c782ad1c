"""Equilibrium propagation with one nudged phase whose sign is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.data.streams import Streams
from gradbench.estimators.base import (
    AbstractEstimator,
    AbstractPhase,
    Change,
    Claim,
    Count,
    Exact,
    Reading,
    Snapshot,
    along,
)
from gradbench.estimators.nudged import SIGNS, Nudge, NudgedPhase, displacement
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem

DRAWS = 15  # odd, so that the two signs never cancel
CENTRED = NudgedPhase(SIGNS["centred"])
SIDES: tuple[Nudge, ...] = ("positive", "negative")


@dataclass(frozen=True, eq=False)
class Signed(Snapshot):
    """A phase with both signs, and how often each was drawn."""

    draws: int = 0
    share: Float[Tensor, "*c"] | None = None  # of the draws that are positive


@final
@dataclass(frozen=True)
class SignedPhase(AbstractPhase):
    """Both signs of a nudged phase, run once, and the signs that the draws of a cell take."""

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

        rngs = [Streams(seed).draw(draw)[f"rule {RandomSignEp.name}"] for draw in self.draws]
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


@final
@dataclass(frozen=True)
class RandomSignEp(AbstractEstimator):
    """One-sided equilibrium propagation; the sign of the nudge is drawn for every batch.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds)), b = +beta or -beta with probability 1/2 each, from s*, T2 steps
    estimate <a, dF/dtheta(s*)>, a = (s* - s_b) / b, as the mean of so many draws from the seed of the cell
    Valid where J(s*) and Pi' are symmetric. Each draw is off by O(beta); their expectation is centred EP, off by
    O(beta^2), and the variance is O(beta^2). There are two signs, so that both phases are run once for all draws.
    """

    name: ClassVar[str] = "random_sign_ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = "Scellier & Bengio 2017 (a random sign); Laborieux et al. 2021"
    draws: ClassVar[int] = DRAWS

    @property
    def claim(self) -> Claim:
        return Claim(Exact.SYMMETRIC)  # the order is 1, but a mean over many draws shows it for a very small beta alone

    @property
    def phase(self) -> AbstractPhase:
        return SignedPhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        assert isinstance(snapshot, Signed)
        assert snapshot.nudged is not None
        assert snapshot.share is not None
        sides = (displacement(n, free.ends, snapshot.nudged[:, :, k : k + 1], betas) for k, n in enumerate(SIDES))
        up, down = (along(free, snapshot, credit) for credit in sides)
        assert up.credit is not None
        assert down.credit is not None
        share, draws = snapshot.share, snapshot.draws
        gradient, squares = {}, 0 * share
        for n, g in up.gradient.items():
            moved, lead = g - down.gradient[n], 2 + share.ndim
            gradient[n] = down.gradient[n] + share.reshape(*share.shape, *[1] * (g.ndim - lead)) * moved
            squares = squares + moved.flatten(lead).square().sum(-1) if g.ndim > lead else squares + moved.square()
        spread = (squares * share * (1 - share) * draws / max(1, draws - 1)).sqrt()
        evidence = snapshot.evidence | {"draws": 0 * spread + draws, "draw_spread": spread}
        credit = down.credit + share[..., None, None] * (up.credit - down.credit)
        return Reading(snapshot.depth, gradient, credit, evidence)
