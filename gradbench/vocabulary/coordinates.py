"""The coordinates of a cell, each declared once.

A coordinate is a field of `Point`. Grids, overrides, `--where`, selectors of checks, training files, columns of tables,
`measure`, `explain` and axis labels are all made from these fields, so that a new coordinate is one more field here,
and one more tensor of `Knobs` where it enters the dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from gradbench.errors import near_miss
from gradbench.vocabulary.notation import Word
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

Value = float | int | str | None


@dataclass(frozen=True, kw_only=True)
class Coordinate(Word):
    """The declaration of one coordinate: how it is called, which values it takes, who uses it, how it is drawn.

    A coordinate that only one system brings is a `Coordinate` too: nothing here needs it to be a field of `Point`.
    """

    name: str  # in suites, on the command line, in tables and in `measure`
    attribute: str  # in the code, where `s` is the state and the coupling scale is `sigma`
    type: type[float] | type[int] | type[str]
    default: Value = None  # where the caller names none; None: the system's default
    least: int | None = None  # smallest value
    most: int | None = None  # largest value
    positive: bool = False  # whether 0 is too small as well
    choices: tuple[str, ...] = ()  # all values of a word
    optional: bool = False  # null where neither the system nor the estimator uses it
    listed: bool = True  # whether a grid takes a list or a range of values
    shared: bool = False  # whether cells that differ in it alone share one free trajectory
    # Whether it came after the first tables. The key of a cell leaves it out at its default, so that keys of before
    # stay as they are, and tables of before are read with the default.
    late: bool = False

    @property
    def prose(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            one = " or ".join(map(repr, self.choices))
        else:
            one = {int: "a whole number", float: "a number", str: "a word"}[self.type]
            one += f" of {self.least} or more" if self.least is not None else " above 0" if self.positive else ""
        return f"{one}, or a list or a range of these" if self.listed else one

    def check(self, value: float | str) -> None:
        """Raise ValueError for a value of the right type that is out of range."""
        if self.choices and value not in self.choices:
            raise ValueError(f"{value!r} is not a choice{near_miss(str(value), self.choices)}")
        if self.least is not None and float(value) < self.least:
            raise ValueError(f"{value!r} is below {self.least}")
        if self.most is not None and float(value) > self.most:
            raise ValueError(f"{value!r} is above {self.most:,}")
        if self.positive and float(value) <= 0:
            raise ValueError(f"{value!r} is not positive")


# A step takes 0.05 ms and more, so that a larger number of steps takes hours, and a larger batch is more than any data
# set has: both are slips of the hand.
STEPS, EXAMPLES = 10**7, 10**6


def _declared(symbol: str, words: str, unit: str = "", **more: Any) -> Any:
    """A field of `Point` that carries its declaration."""
    return field(metadata={"symbol": symbol, "words": words, "unit": unit} | more)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a cell lies: one field for every coordinate, in the order of the tables. None: nobody uses it there."""

    sigma: float | None = _declared("$s$", "coupling scale", name="s", type=float, optional=True)
    damp: float | None = _declared("$c$", "damping", type=float, optional=True)
    T1: int | None = _declared(
        "$T_1$", "free phase", "steps", type=int, least=1, most=STEPS, log=True, optional=True, shared=True
    )
    T2: int | None = _declared(
        "$T_2$", "second phase", "steps", type=int, least=1, most=STEPS, log=True, optional=True, shared=True
    )
    beta: float | None = _declared(
        r"$\beta$", "nudge", "per unit of cost", type=float, positive=True, log=True, optional=True, shared=True
    )
    eps: float = _declared(r"$\varepsilon$", "step size", type=float, positive=True)
    seed: int = _declared("", "seed", type=int, least=0, default=0)
    dtype: str = _declared("", "dtype", type=str, choices=("float32", "float64"), default="float32")
    batch: int = _declared("", "examples of a batch", type=int, least=1, most=EXAMPLES, listed=False)
    # what estimates are compared with: the gradient through the T1 steps, or that of the fixed point at s_T1
    reference: str = _declared(
        "", "reference", type=str, choices=("bptt", "implicit"), default="bptt", shared=True, late=True
    )
    # how the free phase finds its end state; T1 counts the iterations
    solver: str = _declared(
        "", "solver of the free phase", type=str, choices=tuple(map(str, Solver)), default=str(Solver.EULER), late=True
    )


def _coordinates() -> Iterator[Coordinate]:
    for f in fields(Point):
        named: dict[str, Any] = {"name": f.name, "attribute": f.name} | dict(f.metadata)
        yield Coordinate(**named)


COORDINATES: Mapping[str, Coordinate] = {coordinate.name: coordinate for coordinate in _coordinates()}
LATE: Mapping[str, Value] = {name: c.default for name, c in COORDINATES.items() if c.late}  # with their defaults


class Knobs(NamedTuple):
    """The coordinates that enter the dynamics, as 0-d tensors; `(c,)` in a stack of cells."""

    sigma: Tensor  # scale of attention (of tanh in toy_cons)
    damp: Tensor  # c: adds -c z to the force of what relaxes as tokens
    eps: Tensor  # step size
