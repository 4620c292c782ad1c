"""How far the work of a command is, and a watcher that says so on stderr."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradbench.planning.problems import Problem

EVERY = 5.0  # seconds between plain lines


@dataclass(kw_only=True)
class AbstractProgress(ABC):
    """How far the work is since this start of the command. A weight is in proportion to the time that work takes."""

    weight: int  # of all work of this start
    done_weight: int = 0
    resumed: int = 0  # cells or steps that an earlier start had finished
    began: float = field(default_factory=time.monotonic)

    @property
    @abstractmethod
    def text(self) -> str:
        """The progress in a few words."""

    @property
    def over(self) -> bool:
        """Whether no work is left."""
        return self.done_weight == self.weight

    @property
    def eta(self) -> float | None:
        """Seconds left; None before some work is done."""
        return self.elapsed * (self.weight - self.done_weight) / self.done_weight if self.done_weight else None

    @property
    def elapsed(self) -> float:
        """Seconds since this start."""
        return time.monotonic() - self.began


@dataclass(kw_only=True)
class CellProgress(AbstractProgress):
    """How far the cells of a plan are. Weights are evaluations, so that a long problem counts for more."""

    cells: int  # of the plan, the resumed ones included
    done: int = 0  # cells
    statuses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, problems: Iterable[Problem], resumed: Iterable[str] = ()) -> CellProgress:
        """The progress before `problems` are measured; `resumed` are the statuses of all other cells of the plan."""
        waiting, statuses = list(problems), Counter(resumed)
        weight, number = sum(map(_evaluations, waiting)), statuses.total()
        cells = sum(len(problem.cells) for problem in waiting) + number
        return cls(weight=weight, resumed=number, cells=cells, statuses=statuses)

    def add(self, problem: Problem, statuses: Iterable[str]) -> None:
        """Count the cells of a measured problem."""
        before = self.statuses.total()
        self.statuses.update(statuses)
        self.done += self.statuses.total() - before
        self.done_weight += _evaluations(problem)

    @property
    def text(self) -> str:
        """Cells done and their statuses."""
        counts = "  ".join(f"{status} {n}" for status, n in self.statuses.most_common())
        return f"{self.done + self.resumed}/{self.cells} cells  {counts}"


@dataclass(kw_only=True)
class StepProgress(AbstractProgress):
    """How far a training is. The weight of a step is 1."""

    score: str = ""  # the last one measured

    @property
    def text(self) -> str:
        """Steps taken, steps a second with evaluations included, and the score."""
        steps = f"step {self.resumed + self.done_weight}/{self.resumed + self.weight}"
        if not self.done_weight:
            return f"{steps}  {self.score}"
        return f"{steps}  {self.done_weight / max(self.elapsed, 1e-9):.3g} steps/s  {self.score}"


CellWatch = Callable[[CellProgress], None]
StepWatch = Callable[[StepProgress], None]


def _evaluations(problem: Problem) -> int:
    """The time of a problem in units of one force; a product with the Jacobian takes about three."""
    cost = problem.cost
    return cost.force + 3 * cost.vjp + 3 * cost.jvp


@contextmanager
def watcher() -> Iterator[Callable[[AbstractProgress], None]]:
    """A function that says a progress on stderr: in a bar on a terminal, in a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _lines()


def _lines() -> Callable[[AbstractProgress], None]:
    last = -EVERY

    def watch(progress: AbstractProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY or progress.over:
            last = now
            eta = f"  eta {progress.eta:.0f} s" if progress.eta and not progress.over else ""
            print(f"  {progress.text}{eta}", file=sys.stderr, flush=True)

    return watch


@contextmanager
def _bar() -> Iterator[Callable[[AbstractProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def watch(progress: AbstractProgress) -> None:
            bar.update(task, total=progress.weight or 1, completed=progress.done_weight or (not progress.weight))
            bar.update(task, description=progress.text)

        yield watch
