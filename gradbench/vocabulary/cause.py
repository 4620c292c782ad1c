"""Why an estimate is not backpropagation: the typed answers."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

NEGLIGIBLE = 1e-2  # of the reference: an error below it has no cause. A cosine of 0.99995


class Cause(StrEnum):
    """What a step of the ladder changes, in the order of the rungs."""

    TRANSIENT = "transient"
    NO_FIXED_POINT = "no fixed point"
    TRUNCATION = "truncation"
    ASYMMETRY = "asymmetry"
    DAMPING = "damping of the series"
    WEIGHTS = "weights of the series"
    JACOBIAN = "another Jacobian"
    RULE = "the rule itself"
    NUDGE = "nudge"
    NONLINEARITY = "nonlinearity in beta"
    CLIP = "clip"
    READOUT = "projection or readout"
    SIGN = "sign"
    SCALE = "scale"
    UNKNOWN = "not taken apart"
    VARIANCE = "variance"
    PRECISION = "precision"
    NONE = "none"

    def __repr__(self) -> str:
        return repr(str(self))

    @property
    def prose(self) -> str:
        """One sentence."""
        return _PROSE[self]


_PROSE = {
    Cause.TRANSIENT: "the free phase is still on its way at T1, and the reference differentiates the way",
    Cause.NO_FIXED_POINT: "perturbations of s* grow, so that the adjoint series has no limit to approach",
    Cause.TRUNCATION: "the second phase is too short for the credit to arrive",
    Cause.ASYMMETRY: "the rule goes by a Jacobian that is not the transposed one",
    Cause.DAMPING: "every term of the adjoint series carries one more factor: the rule damps J_G^T",
    Cause.WEIGHTS: "the terms of the adjoint series have other weights, as in a phantom gradient",
    Cause.JACOBIAN: "the rule is linear in dC/ds by a Jacobian that is not that of s*: fixed feedback, or an old one",
    Cause.RULE: "as beta -> 0 the rule does not do what its linearisation does: another cost, an old Jacobian",
    Cause.NUDGE: "what a finite nudge adds in the dtype of the cell, taken apart only where it is the largest",
    Cause.NONLINEARITY: "the nudge is too large for the response to be linear",
    Cause.CLIP: "the clip of the correction acts, and changes where the nudged phase goes",
    Cause.READOUT: "the projection or the readout is not that of the adjoint",
    Cause.SIGN: "every parameter points the opposite way: the rule's own sign is wrong",
    Cause.SCALE: "every parameter points the right way with the same wrong length: the rule's own scale is wrong",
    Cause.UNKNOWN: "the rule does something that no rung of the ladder stands for",
    Cause.VARIANCE: "the rule draws, and its mean over so many draws is still off by chance",
    Cause.PRECISION: "the difference of the nudged states drowns in the round-off of the cell's dtype",
    Cause.NONE: f"no error to explain: it is below {NEGLIGIBLE:g} of the reference",
}


@cache
def column(cause: Cause) -> str:
    """Its name in the table `budget`."""
    return str(cause).replace(" ", "_")


# those that are steps of a ladder, and so have a size
CAUSES = tuple(cause for cause in Cause if cause is not Cause.NONE)
