"""The status of a cell: decided here, once, from numbers and thresholds.

The free state, the second phase and the comparison are judged apart. The status of the cell is the one of these three
that comes first in the order of precedence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gradbench.estimators.implicit import SOLVED
from gradbench.vocabulary.reason import REFERENCE
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.diagnostics.metrics import Comparison

Numbers = TypeVar("Numbers", float, "Tensor")


@dataclass(frozen=True)
class Judgement:
    """A status with the number that decided it."""

    status: Status
    reason: str = ""

    @property
    def diverged(self) -> bool:
        """Whether there is no free state to measure at."""
        return self.status is Status.DIVERGED


ROUND_OFF = 16  # units of it that the residual of a sample at rest stays below
SETTLED = Judgement(Status.SETTLED)


def first(*judgements: Judgement) -> Judgement:
    """The judgement whose status comes first in the order of precedence; of equal ones the last."""
    chosen = judgements[-1]
    for judgement in reversed(judgements[:-1]):
        if judgement.status.rank < chosen.status.rank:
            chosen = judgement
    return chosen


def bounded(escape: Numbers, at: Thresholds) -> Numbers:
    """Whether |s_t| / |s_0| stayed below the threshold of divergence; a NaN did not."""
    return escape <= at.divergence


def enough_settled(settled_share: float, at: Thresholds) -> bool:
    """Whether as many samples as are asked for have settled."""
    return settled_share >= at.settled_share


def collapsed(shrink: Tensor, residual: Tensor, unit: float, at: Thresholds) -> Tensor:
    """Which samples decay to 0: |s*| / |s_0| is zero up to underflow, or small and still moving.

    A sample that has come to rest far inside its start moves by round-off alone: `unit` is that of its dtype.
    """
    moving = residual > max(at.collapse_residual, ROUND_OFF * unit)
    return (shrink <= at.vanish) | ((shrink < at.collapse) & moving)


def most(share: Numbers) -> Numbers:
    """Whether more than half of the samples do what makes a cell collapsed."""
    return share > 0.5


def of_free_state(
    *,
    escape: float,
    shrink: float,
    residual: float,
    collapsed_share: float,
    settled_share: float,
    rho: float,
    at: Thresholds,
) -> Judgement:
    """Judge the end of a free phase by the numbers of its certificate; `rho` is that of a deep one where it decides."""
    if not bounded(escape, at):
        return Judgement(Status.DIVERGED, f"|s| / |s_0| reached {escape:.1e}")
    if most(collapsed_share):
        # where s* is 0 the residual is 0 / 0, and there is nothing left to shrink
        ends = "s* = 0" if math.isnan(residual) else f"still shrinking (residual {residual:.1e})"
        return Judgement(Status.COLLAPSED, f"|s*| / |s_0| = {shrink:.1e} and {ends}")
    if not enough_settled(settled_share, at):
        return Judgement(Status.UNSETTLED, f"{settled_share:.0%} of the samples settled, residual {residual:.1e}")
    if not rho <= 1 + at.growth:
        return Judgement(Status.UNSTABLE, f"perturbations of s* grow by {rho:.4f} a step")
    return SETTLED


def of_cell(free: Judgement, scale: float, comparison: Comparison, largest: float, at: Thresholds) -> Judgement:
    """Judge a cell whose free phase has not diverged.

    `free` is the judgement of its free state and `scale` the size of its start; `largest` is what |s| reached in the
    second phase, 0 where there is none.
    """
    return first(free, of_second_phase(largest, scale, at), of_comparison(comparison))


def against_implicit(judged: Judgement, left: float | None) -> Judgement:
    """The judgement of a cell that is compared with the implicit reference, whose solve has `left` a share open."""
    if judged.status is Status.UNSTABLE:
        told = "; the implicit reference is a solution there, and no limit of the adjoint series"
        return Judgement(judged.status, judged.reason + told)
    if judged.status is Status.UNDEFINED and left is not None and not left <= SOLVED:
        told = f"{REFERENCE} is not solved: what is left of dC/ds is {left:.1e} of it"
        return Judgement(judged.status, told)
    return judged


def of_second_phase(largest: float, scale: float, at: Thresholds) -> Judgement:
    """Judge a second phase by the largest |s| that it reached; `scale` is |s_0| of the free phase."""
    if not largest <= at.divergence * scale:
        return Judgement(Status.NUDGE_DIVERGED, f"|s| reached {largest:.1e} in the nudged phase")
    return SETTLED


def of_comparison(comparison: Comparison) -> Judgement:
    """Judge whether the reference can be compared with. A settled cell keeps the reason why its cosine is undefined."""
    whole = comparison.whole
    if not whole.reason:
        return SETTLED
    return Judgement(Status.UNDEFINED if whole.no_reference else Status.SETTLED, whole.reason)
