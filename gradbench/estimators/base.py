"""What a gradient rule is: a second phase of growing depth, a readout of it, and what the rule claims.

Rules that need the same second phase return equal phases, and the engine runs it once for all of
them. beta and T2 are never options of a rule, so that one pass can serve every value of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from gradbench.dynamics.meter import PRODUCT
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.ranges import refuse_outside

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


class Role(StrEnum):
    """What an estimator is there for."""

    RULE = "rule"  # to be compared with the reference
    REFERENCE = "reference"
    CONTROL = "control"  # made from the reference, to test the comparison


@dataclass(frozen=True)
class Count:
    """Evaluations on one batch of examples."""

    force: int = 0
    jvp: int = 0
    vjp: int = 0
    partial: bool = False  # whether there are more of them, which only the measurement tells

    @property
    def work(self) -> int:
        """All of them, in units of one force."""
        return self.force + PRODUCT * (self.jvp + self.vjp)

    def __add__(self, other: Count) -> Count:
        partial = self.partial or other.partial
        return Count(self.force + other.force, self.jvp + other.jvp, self.vjp + other.vjp, partial)

    def __mul__(self, times: int) -> Count:
        return Count(self.force * times, self.jvp * times, self.vjp * times, self.partial)


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


def credited(free: Trajectory, snapshot: Snapshot) -> Reading:
    """The estimate of the credit that a second phase gives."""
    assert snapshot.credit is not None
    return along(free, snapshot, snapshot.credit[:, None])


def reading_at(
    rule: AbstractEstimator,
    free: Trajectory,
    T2: int | None,
    beta: float | None,
    phase: AbstractPhase | None = None,
) -> Reading:
    """What a rule makes of a trajectory of one T1; in place of its phase it may have another such one."""
    betas = free.ends.new_tensor([] if beta is None else [beta])
    snapshots = (phase or rule.phase).run(free, () if T2 is None else (T2,), betas)
    snapshot = next(s for s in snapshots if s.depth == T2)
    return rule.read(free, snapshot, betas)


@dataclass(frozen=True, eq=False)
class Change:
    """The credit of a second phase at one depth, after one more of its parts is taken as it is."""

    name: str
    cause: Cause  # of the difference from the change before
    snapshot: Snapshot
    credit: Float[Tensor, "i j *c b n"]


class AbstractPhase(ABC):
    """A second phase. Final ones are frozen dataclasses: equal ones run once.

    What it declares beside its run tells causes apart. A phase that declares nothing has none of it.
    """

    linearises: ClassVar[bool] = False  # whether `linearised` is given, and `credit` or other `changes`
    hints: ClassVar[bool] = False  # whether `terms` is no more than a hint of whoever wrote the rule
    recordable: ClassVar[bool] = True  # whether a training step with it can be recorded as a CUDA graph
    beta_tells: frozenset[Cause] = frozenset()  # causes that the other beta of a grid tell apart
    # the cause of what the rule is off all that its phase declares: of all its error, where it declares no terms
    departure: ClassVar[Cause] = Cause.READOUT

    @abstractmethod
    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        """Run once to the largest depth, from s* of every T1, and stop at each depth.

        Every problem of a stack has its own betas, but as many as the others.
        """

    @abstractmethod
    def count(self, T1: int, depth: int | None) -> Count:
        """Evaluations that one cell of this phase needs by itself, after its free phase."""

    def run_count(self, T1: int, depths: tuple[int, ...]) -> Count:
        """What a run that stops at several depths evaluates for a T1 and a beta: of most phases as for the deepest."""
        return self.count(T1, max(depths, default=None))

    def evidence_count(self, depth: int | None) -> Count:
        """Evaluations of evidence, once for all cells of one T1."""
        return Count()

    @property
    def unobserved(self) -> AbstractPhase:
        """The same without what only evidence needs."""
        return self

    def drawn(self, draws: range) -> AbstractPhase:
        """The same as the mean over other draws, by their numbers; of a phase that draws nothing itself."""
        return self

    def terms(self, depth: int | None) -> int | None:
        """How many terms of the adjoint series its credit stands for; None: that is not declared."""
        return None

    def step_size(self, free: Trajectory) -> Tensor:
        """eps of this phase, against states."""
        return free.field.step_size

    @property
    def step_size_key(self) -> object:
        """Equal for phases of equal step size."""
        return None

    def linear_key(self, system: AbstractSystem) -> object:
        """Equal for phases that are linearised alike on a system; None where the linearised phase is the adjoint."""
        return None

    def linearised(
        self, free: Trajectory, depths: Collection[int], *, drifting: bool
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        """The credit for beta -> 0 at some depths, by the linearised phase.

        If `drifting`, it is linearised at the states through which s* drifts without a nudge.
        """
        raise NotImplementedError

    def changes(
        self,
        free: Trajectory,
        depths: tuple[int, ...],
        betas: Float[Tensor, "j *c"],
        no_limit: Cause,
        *,
        drifting: bool = True,
    ) -> Iterator[Change]:
        """From the linearised phase to the phase as it is, depth by depth; `no_limit` is the cause of what drifts.

        By default along the drift, and then by a finite nudge.
        """
        tangents = dict(self.linearised(free, depths, drifting=True)) if drifting else {}
        for snapshot in self.run(free, depths, betas):
            assert snapshot.depth is not None
            if drifting:
                yield Change("along the drift", no_limit, snapshot, tangents[snapshot.depth][:, None])
            yield Change("beta", Cause.NONLINEARITY, snapshot, self.credit(free, snapshot, betas))

    def credit(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Float[Tensor, "i j *c b n"]:
        """The credit of this phase at one depth."""
        raise NotImplementedError

    def trained(self, free: Trajectory, depth: int | None) -> Trajectory:
        """The part of a trajectory that this phase needs where nothing else reads it, as in a training step."""
        return free


class AbstractEstimator(ABC):
    """A gradient rule. Final ones are frozen dataclasses of their options."""

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]]  # of {"T2", "beta"}
    source: ClassVar[str]
    role: ClassVar[Role] = Role.RULE
    draws: ClassVar[int] = 0  # how many draws its estimate is the mean of; 0: it draws no random numbers
    unseen: ClassVar[str | None] = None  # a part of its code or data that no digest sees; None: there is none
    truncates: ClassVar[bool] = False  # whether the estimate is the reference, summed over its last T2 steps alone

    def __post_init__(self) -> None:
        refuse_outside(self)

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

    def terms(self, T2: int | None) -> int | None:
        """How many terms of the adjoint series the credit stands for; None: the diagnostics look for the nearest."""
        return self.phase.terms(T2)

    def sole_cause(self, T2: int | None) -> Cause | None:
        """The cause of all its error, where its phase has a departure and no terms; None: its error is taken apart."""
        departure = self.phase.departure
        return departure if departure is not Cause.READOUT and self.terms(T2) is None else None

    def variants(self) -> Mapping[Cause, tuple[str, AbstractEstimator]]:
        """By cause, the same rule with one option changed that removes it, and how the change is told."""
        return {}

    def skip(self, system: type[AbstractSystem]) -> str | None:
        """Why the rule does not apply to a system, or None."""
        part = self.claim.energy_for
        return f"{part} needs an energy, which {system.name} has not" if part and not system.conservative else None

    def skip_cell(self, T1: int, T2: int) -> str | None:
        """Why there is nothing to read at this T1 and T2, or None."""
        return None
