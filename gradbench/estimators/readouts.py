"""Readouts that several rules share: what a rule makes of its second phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from gradbench.estimators.base import Reading, Snapshot, along
from gradbench.estimators.phases.nudged import Nudge, displacement
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem

Readout = Literal["vector_field", "energy_contrast"]
SIDES: tuple[Nudge, ...] = ("positive", "negative")


def swept(snapshot: Snapshot) -> Reading:
    """The estimate of the gradient that a sweep has pulled on its way."""
    assert snapshot.gradient is not None
    assert snapshot.credit is not None
    gradient = {n: g[:, None] for n, g in snapshot.gradient.items()}
    return Reading(snapshot.depth, gradient, snapshot.credit[:, None], snapshot.evidence)


def predicted(free: Trajectory, snapshot: Snapshot, credit: Float[Tensor, "i j *c b n"]) -> Reading:
    """Estimate <a, dp/dtheta> + dC/dtheta, p the predictions of the layers at the forward pass."""
    moved = free.field.prediction_grads(free.ends[:, None], credit)
    gradient = {n: g + free.cost_grads[n][:, None] for n, g in moved.items()}
    return Reading(snapshot.depth, gradient, credit, snapshot.evidence)


def predicts_nothing(system: type[AbstractSystem]) -> str | None:
    """Why a rule of predictive coding does not apply to a system; None where it does."""
    forward = issubclass(system, AbstractForwardSystem)
    return None if forward else f"{system.name} is no forward pass: it has no prediction errors"


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


def _credits(
    nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]
) -> tuple[Tensor, Tensor | None]:
    """The displacement of the state, and that of its prediction errors where the system has some."""
    assert snapshot.nudged is not None
    field, error = free.field, None
    if field.predicts:
        error = displacement(nudge, field.errors(free.ends), field.errors(snapshot.nudged), betas)
    return displacement(nudge, free.ends, snapshot.nudged, betas), error


def _per_cell(gradient: Float[Tensor, "i j *c ..."], width: Float[Tensor, "j *c"]) -> Tensor:
    return gradient / width.reshape(*width.shape, *[1] * (gradient.ndim - 1 - width.ndim))


READOUTS: Mapping[Readout, Callable[[Nudge, Trajectory, Snapshot, Tensor], Reading]] = {
    "vector_field": vector_field,
    "energy_contrast": energy_contrast,
}


def by_sign(free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> list[Reading]:
    """The one-sided estimates of a phase with both signs: that with +beta, and that with -beta."""
    assert snapshot.nudged is not None
    sides = (displacement(n, free.ends, snapshot.nudged[:, :, k : k + 1], betas) for k, n in enumerate(SIDES))
    return [along(free, snapshot, credit) for credit in sides]
