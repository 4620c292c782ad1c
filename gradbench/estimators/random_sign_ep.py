"""Equilibrium propagation with one nudged phase whose sign is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot
from gradbench.estimators.phases.signed import DRAWS, Signed, SignedPhase
from gradbench.estimators.readouts import by_sign

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


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
        return SignedPhase(self.name)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        assert isinstance(snapshot, Signed)
        assert snapshot.share is not None
        up, down = by_sign(free, snapshot, betas)
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
