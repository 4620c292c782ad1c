"""Equilibrium propagation: the response of the fixed point to a nudge along the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Exact, Reading, Snapshot, along
from gradbench.estimators.nudged import SIGNS, Nudge, NudgedPhase, Reduction, displacement
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory

Readout = Literal["vector_field", "energy_contrast"]


def _credits(
    nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]
) -> tuple[Tensor, Tensor | None]:
    """The displacement of the state, and that of its prediction errors where the system has some."""
    assert snapshot.nudged is not None
    field, error = free.field, None
    if field.predicts:
        error = displacement(nudge, field.errors(free.ends), field.errors(snapshot.nudged), betas)
    return displacement(nudge, free.ends, snapshot.nudged, betas), error


def vector_field(nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
    """Estimate <a, dF/dtheta(s*)> + dC/dtheta(s*)."""
    return along(free, snapshot, *_credits(nudge, free, snapshot, betas))


def energy_contrast(nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
    """Estimate (dE/dtheta|_upper - dE/dtheta|_lower) / (b_upper - b_lower) + dC/dtheta(s*).

    centred (+beta, -beta),  positive (+beta, 0),  negative (0, -beta)
    """
    assert snapshot.nudged is not None
    nudged = free.field.energy_grads(snapshot.nudged)
    at_rest = {} if nudge == "centred" else free.field.energy_grads(free.ends)
    gradient = {}
    for n, direct in free.cost_grads.items():
        moved = list(nudged[n].unbind(2))
        rest = [at_rest[n][:, None]] if at_rest else []
        upper, lower = rest + moved if nudge == "negative" else moved + rest
        width = 2 * betas if nudge == "centred" else betas
        gradient[n] = _per_cell(upper - lower, width) + direct[:, None]
    credit, error = _credits(nudge, free, snapshot, betas)
    return Reading(snapshot.depth, gradient, credit, snapshot.evidence, error)


def _per_cell(gradient: Float[Tensor, "i j *c ..."], width: Float[Tensor, "j *c"]) -> Tensor:
    return gradient / width.reshape(*width.shape, *[1] * (gradient.ndim - 1 - width.ndim))


_READOUTS: Mapping[Readout, Callable[[Nudge, Trajectory, Snapshot, Tensor], Reading]] = {
    "vector_field": vector_field,
    "energy_contrast": energy_contrast,
}


@final
@dataclass(frozen=True)
class Ep(AbstractEstimator):
    """Equilibrium propagation.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds)), b = +beta and -beta from s*, T2 steps
    estimate vector_field     <a, dF/dtheta(s*)>, a = (s_- - s_+) / 2 beta
             energy_contrast  (dE/dtheta|s_+ - dE/dtheta|s_-) / 2 beta
    Valid where J(s*) is symmetric, and Pi' too: the displacement of a projected state contains Pi' already,
    and the plain readout is right. On a non-conservative force this is naive EP, whose bias no beta removes. Error
    O(beta^2) centred, O(beta) one-sided. The readouts differ at the same order. `reduction = "mean"` steps by
    eps / b in the nudged phase, as an average over the batch does that is descended in place of the sum: the
    fixed points are the same, and T2 steps go a b-th of the way.
    """

    name: ClassVar[str] = "ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = (
        "Scellier & Bengio 2017; Scellier et al. 2018 (vector field); Laborieux et al. 2021 (centred)"
    )

    nudge: Nudge = "centred"
    readout: Readout = "vector_field"
    reduction: Reduction = "sum"

    @property
    def claim(self) -> Claim:
        order = 2 if self.nudge == "centred" else 1
        return Claim(Exact.SYMMETRIC, order, "the energy contrast" if self.readout == "energy_contrast" else "")

    def variants(self) -> Mapping[Cause, tuple[str, AbstractEstimator]]:
        if self.readout == "vector_field":
            return {}
        return {Cause.READOUT: ("readout = vector_field", replace(self, readout="vector_field"))}

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(SIGNS[self.nudge], reduction=self.reduction)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return _READOUTS[self.readout](self.nudge, free, snapshot, betas)
