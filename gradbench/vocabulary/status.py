"""What became of a cell: a typed status with its meaning, and the thresholds that decide it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """Outcome of a cell. Declared in order of precedence: the first that applies is the status."""

    ERROR = "error"
    OOM = "oom"
    SKIPPED = "skipped"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    UNSETTLED = "unsettled"
    UNSTABLE = "unstable"
    NUDGE_DIVERGED = "nudge_diverged"
    UNDEFINED = "undefined"
    SETTLED = "settled"

    def __repr__(self) -> str:
        return repr(str(self))

    @property
    def prose(self) -> str:
        """One sentence that a reader can act on."""
        return _PROSE[self]

    @property
    def rank(self) -> int:
        """Place in the order of precedence, from 0."""
        return _RANKS[self]

    @property
    def incomplete(self) -> bool:
        """Whether the cell was asked for and not measured."""
        return self in (Status.ERROR, Status.OOM)

    @property
    def measured(self) -> bool:
        """Whether anything was measured at the cell."""
        return not self.incomplete and self is not Status.SKIPPED


_RANKS = {status: i for i, status in enumerate(Status)}
_PROSE = {
    Status.ERROR: "the cell raised an exception: its reason holds the message",
    Status.OOM: "the cell did not fit into the memory of the device",
    Status.SKIPPED: "the estimator does not apply to this system at these coordinates",
    Status.DIVERGED: "the free phase left every bound before T1: there is no state to measure at",
    Status.COLLAPSED: "the free phase decays to s = 0: whatever gradient is left measures the decay",
    Status.UNSETTLED: "the free phase had not reached a fixed point at T1: the reference itself is transient",
    Status.UNSTABLE: "the free state is a fixed point, but perturbations of it grow (rho > 1)",
    Status.NUDGE_DIVERGED: "the nudged phase left every bound before T2",
    Status.UNDEFINED: "the reference gradient is zero or not finite: nothing to compare with",
    Status.SETTLED: "the free state is a stable fixed point: the cosine is evidence",
}


@dataclass(frozen=True)
class Thresholds:
    """Numbers that decide a status; a suite may set any of them, and the plan records all."""

    residual: float = 1e-4  # of a sample, |G(s) - s| / |s|: above, the sample is not settled
    settled_share: float = 1.0  # of samples that must be settled
    divergence: float = 1e3  # |s_t| / |s_0|: above at any step, diverged
    # a cell is collapsed where more than half of its samples are; fewer of them count as samples that are not settled
    collapse: float = 1e-2  # of a sample, |s*| / |s_0|: below, with a residual above the next number, collapsed
    collapse_residual: float = 1e-10  # or 16 units of round-off of the dtype, whichever is larger
    vanish: float = 1e-20  # of a sample, |s*| / |s_0|: below, s* is 0 up to underflow, where float32 stops moving
    growth: float = 1e-3  # rho - 1: above, unstable
    growth_steps: int = 60  # products J_G v; the growth is averaged over the last half
    probes: int = 8  # random vectors of the antisymmetry estimate
    energy_rise: float = 1e-3  # of |E|: a larger rise in one step is not monotone
    faithful: float = 0.1  # |estimate - reference| / |reference|, whole or of a parameter: above, a cause is looked for
    # a parameter whose reference norm is below this share of the global norm has no cosine
    live: dict[str, float] = field(default_factory=lambda: {"float32": 1e-8, "float64": 1e-12})
