"""What a gradient rule is: a second phase of growing depth, a readout of it, and what the rule claims.

Rules that need the same second phase return equal phases, and the engine runs it once for all of
them. beta and T2 are never options of a rule, so that one pass can serve every value of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem, Params


class Exact(StrEnum):
    """The free states at which a rule is exact, once T2 is long enough and beta small enough."""

    ALWAYS = "always"
    FIXED_POINT = "fixed point"
    SYMMETRIC = "symmetric"

    @property
    def prose(self) -> str:
        """The condition, as the tables of the docs have it."""
        return _CONDITIONS[self]


_CONDITIONS = {
    Exact.ALWAYS: "always",
    Exact.FIXED_POINT: "s* is a fixed point",
    Exact.SYMMETRIC: "s* is a fixed point and J(s*) = J(s*)^T",
}


@dataclass(frozen=True)
class Claim:
    """What a rule says of itself. The contract tests try every claim on every system."""

    exact: Exact | None = None  # None: the rule claims to be exact nowhere
    order: int | None = None  # of the error in beta, where the rule is exact; None: no beta, or no such claim
    energy_for: str = ""  # the part of the rule that needs an energy of the system; empty: none does

    def prose(self, uses: frozenset[str]) -> str:
        """Where the rule is exact, in words; `uses` are the coordinates of the rule."""
        if self.exact is None:
            return "never"
        limits = {"T2": "T2 -> inf", "beta": "beta -> 0"}
        return ", ".join([self.exact.prose, *(limit for name, limit in limits.items() if name in uses)])


@dataclass(frozen=True)
class Count:
    """Evaluations on one batch of examples."""

    force: int = 0
    jvp: int = 0
    vjp: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.force + other.force, self.jvp + other.jvp, self.vjp + other.vjp)

    def __mul__(self, times: int) -> Count:
        return Count(self.force * times, self.jvp * times, self.vjp * times)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A second phase at one depth. Axes: i over T1, j over beta, and c, of the cells, where these are stacked."""

    depth: int | None  # T2; None where the depth is T1 itself
    evidence: dict[str, Float[Tensor, "i j *c"]] = field(default_factory=dict)
    gradient: Params | None = None  # reverse phase: (i, *c, ...)
    credit: Float[Tensor, "i *c b n"] | None = None  # adjoint and reverse phase: by T1
    nudged: Float[Tensor, "i j k *c b n"] | None = None  # nudged phase: by T1, beta, sign
    rest: Float[Tensor, "i *c b n"] | None = None  # the same phase without a nudge


@dataclass(frozen=True, eq=False)
class Reading:
    """An estimate at one depth, by T1 and by beta (one column where the rule has no beta)."""

    depth: int | None
    gradient: Params  # (i, j, *c, ...)
    credit: Float[Tensor, "i j *c b n"] | None  # the state adjoint that the rule stands in for
    evidence: dict[str, Float[Tensor, "i j *c"]]
    error: Float[Tensor, "i j *c b n"] | None = None  # the credit that prediction errors hold, where there are some


def along(
    free: Trajectory,
    snapshot: Snapshot,
    credit: Float[Tensor, "i j *c b n"],
    error: Float[Tensor, "i j *c b n"] | None = None,
) -> Reading:
    """Estimate <a, dF/dtheta(s*)> + dC/dtheta(s*) for the credit a of every T1 and beta."""
    pulled = free.field.pull(free.ends[:, None], credit)
    gradient = {n: g + free.cost_grads[n][:, None] for n, g in pulled.items()}
    return Reading(snapshot.depth, gradient, credit, snapshot.evidence, error)


class AbstractPhase(ABC):
    """A second phase. Final ones are frozen dataclasses: equal ones run once."""

    @abstractmethod
    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        """Run once to the largest depth, from s* of every T1, and stop at each depth.

        Every problem of a stack has its own betas, but as many as the others.
        """

    @abstractmethod
    def count(self, T1: int, depth: int | None) -> Count:
        """Evaluations that one cell of this phase needs by itself, after its free phase."""

    def evidence_count(self, depth: int | None) -> Count:
        """Evaluations of evidence, once for all cells of one T1."""
        return Count()

    @property
    def unobserved(self) -> AbstractPhase:
        """The same without what only evidence needs."""
        return self


class AbstractEstimator(ABC):
    """A gradient rule. Final ones are frozen dataclasses of their options."""

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]]  # of {"T2", "beta"}
    source: ClassVar[str]

    @property
    def claim(self) -> Claim:
        """What the rule claims with these options; by default nothing."""
        return Claim()

    @property
    @abstractmethod
    def phase(self) -> AbstractPhase:
        """The second phase that this rule reads."""

    @abstractmethod
    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        """The estimate at one depth."""

    def skip(self, system: type[AbstractSystem]) -> str | None:
        """Why the rule does not apply to a system, or None."""
        part = self.claim.energy_for
        return f"{part} needs an energy, which {system.name} has not" if part and not system.conservative else None

    def skip_cell(self, T1: int, T2: int) -> str | None:
        """Why there is nothing to read at this T1 and T2, or None."""
        return None
