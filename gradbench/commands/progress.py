"""What a command says on stderr while it works: talk, and how far the work is.

Talk never stops a command. Where stderr is closed, full or without a reader, nothing is said and the work goes on.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

from gradbench.data.given import article
from gradbench.errors import UserError

if TYPE_CHECKING:
    from gradbench.dynamics.meter import Meter
    from gradbench.planning.problems import Problem

NEWS = 5.0  # seconds between plain lines where there are news
QUIET = 30.0  # seconds between plain lines that only say that the command still works
FRAME = 0.25  # seconds between frames of the bar
WIDTH = 20  # characters of the bar


Report = TypeVar("Report", bound=Callable[..., None])


def silent(progress: object) -> None:
    """Watch without a word."""


def watching(watch: Report | None) -> Report:
    """The function that is told the progress, or one that does nothing. Raises UserError for what is no function."""
    if watch is None:
        return cast("Report", silent)
    if not callable(watch):
        raise UserError(f"watch: got {article(watch)}, expected a function of the progress")
    return watch


def say(text: str, end: str = "\n") -> bool:
    """Print talk on stderr; whether it could be printed."""
    if sys.stderr is None:  # closed before Python began
        return False
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a full disk, a reader that left; a stream that was closed
        return False
    return True


@dataclass(kw_only=True)
class AbstractProgress(ABC):
    """How far the work is since this start of the command. A weight is in proportion to the time that work takes."""

    weight: int  # of all work of this start
    done_weight: int = 0
    resumed: int = 0  # cells or steps that an earlier start had finished
    began: float = field(default_factory=time.monotonic)
    _last: tuple[float, int] = (0.0, 0)  # seconds from the start to the end of the last piece, and `moved` there

    def advance(self, weight: int = 1) -> None:
        """Count a piece of work that is done."""
        self.done_weight += weight
        self._last = self.elapsed, self.moved

    @property
    @abstractmethod
    def text(self) -> str:
        """The progress in a few words."""

    @property
    def over(self) -> bool:
        """Whether no work is left."""
        return self.done_weight == self.weight

    @property
    def elapsed(self) -> float:
        """Seconds since this start."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """The share of the work that is done, from 0 to 1. It is 1 only when no work is left."""
        return self.moved / self.weight if self.weight else 1.0

    @property
    def moved(self) -> int:
        """The weight of the work that is done, the piece under way included as far as it is known."""
        return self.done_weight

    @property
    def eta(self) -> float | None:
        """Seconds left, by the pace so far; None before some work is done.

        The pace is that of the last end of a piece, where it counts all that a piece takes, unless the work goes slower
        since then: so it does not swing with every piece.
        """
        (at, before), moved = self._last, self.moved
        paces = [at / before] if before else []
        paces += [self.elapsed / moved] if moved > before else []
        return (self.weight - moved) * max(paces) if paces else None


@dataclass(kw_only=True)
class CellProgress(AbstractProgress):
    """How far the cells of a plan are. Weights are evaluations, so that a long problem counts for more."""

    cells: int  # of the plan, the resumed ones included
    done: int = 0  # cells
    statuses: Counter[str] = field(default_factory=Counter)
    meters: list[Meter] = field(default_factory=list)  # of all packs that have begun

    @classmethod
    def of(cls, problems: Iterable[Problem], resumed: Iterable[str] = ()) -> CellProgress:
        """The progress before `problems` are measured; `resumed` are the statuses of all other cells of the plan."""
        waiting, statuses = list(problems), Counter(resumed)
        weight, number = sum(problem.cost.work for problem in waiting), statuses.total()
        cells = sum(len(problem.cells) for problem in waiting) + number
        return cls(weight=weight, resumed=number, cells=cells, statuses=statuses)

    def add(self, problem: Problem, statuses: Iterable[str]) -> None:
        """Count the cells of a measured problem."""
        before = self.statuses.total()
        self.statuses.update(statuses)
        self.done += self.statuses.total() - before
        self.advance(problem.cost.work)

    @property
    def moved(self) -> int:
        """The weight of all evaluations that have been launched; that of a problem counts as whole when it is done."""
        if self.over:
            return self.weight
        return min(max(self.done_weight, sum(meter.launched for meter in self.meters)), self.weight - 1)

    @property
    def text(self) -> str:
        """Cells done, and their statuses."""
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


@contextmanager
def watcher(title: str = "") -> Iterator[Callable[[AbstractProgress], None]]:
    """A function that says a progress on stderr: in a bar on a terminal, in a line every few seconds elsewhere.

    `title` is said before the first progress.
    """
    display: AbstractDisplay = Bar(title) if _on_terminal() else Lines(title)
    stop = threading.Event()
    clock = threading.Thread(target=display.tick_until, args=(stop,), daemon=True)
    clock.start()
    try:
        yield display.watch
    finally:
        stop.set()
        clock.join()
        display.close()


def _on_terminal() -> bool:
    """Whether stderr is a terminal on which a line can be written again."""
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # a stream that was closed
        return False


class AbstractDisplay(ABC):
    """Says a progress when it is told of one, and by the clock in between."""

    every: float  # seconds between looks at the clock

    def __init__(self, title: str) -> None:
        self.title = title
        self.progress: AbstractProgress | None = None
        self.text = ""  # of the progress, made in the thread of the work: it changes there
        self.lock = threading.Lock()

    def watch(self, progress: AbstractProgress) -> None:
        """Say how far the work is."""
        with self.lock:
            if self.title:
                say(self.title)
                self.title = ""
            text = progress.text
            news = progress is not self.progress or text != self.text
            self.progress, self.text = progress, text
            self.show(news=news)

    def tick_until(self, stop: threading.Event) -> None:
        """Show the time that passes, until the work is over."""
        while not stop.wait(self.every):
            with self.lock:
                if self.progress is not None and not self.progress.over:
                    self.show(news=False)

    @abstractmethod
    def show(self, *, news: bool) -> None:
        """Show the progress. `news`: whether it changed."""

    def close(self) -> None:
        """End the display."""


class Lines(AbstractDisplay):
    """A line every few seconds, for files and pipes."""

    every = 1.0

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.last = -math.inf  # seconds of the clock at the last line
        self.unsaid = False  # there are news that no line has said

    def show(self, *, news: bool) -> None:
        """Say a line, unless the last one is only a moment ago."""
        assert self.progress is not None
        now, self.unsaid = time.monotonic(), self.unsaid or news
        wait = NEWS if self.unsaid else QUIET
        if now - self.last >= wait or self.progress.over:
            self.last, self.unsaid = now, False
            percent = f"{_percent(self.progress)}{_of(self.progress)}"
            say(f"  {self.text.rstrip()}  {percent}  {_times(self.progress)}")


class Bar(AbstractDisplay):
    """One line of a terminal, written again and again."""

    every = FRAME

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.last = -math.inf  # seconds of the clock at the last frame

    def show(self, *, news: bool) -> None:
        """Write the line again, unless the last frame is only a moment ago: steps may take less than a frame."""
        assert self.progress is not None
        now = time.monotonic()
        if now - self.last < FRAME / 2 and not self.progress.over:
            return
        self.last = now
        filled = int(WIDTH * self.progress.share)
        bar = f"{'#' * filled}{'-' * (WIDTH - filled)} {_percent(self.progress):>4}{_of(self.progress)}"
        width = max(20, shutil.get_terminal_size().columns) - 1  # a full line would begin the next one
        say(f"\r{f'{bar}  {_times(self.progress)}  {self.text}'[:width].rstrip()}\x1b[K", end="")

    def close(self) -> None:
        """Leave the last line as it is."""
        if self.progress is not None:
            say("")


def _percent(progress: AbstractProgress) -> str:
    return f"{int(100 * progress.share)}%"


def _of(progress: AbstractProgress) -> str:
    """What a percentage is of, where an earlier start did a part of the work."""
    return " of what was left" if progress.resumed else ""


def _times(progress: AbstractProgress) -> str:
    left = "" if progress.eta is None or progress.over else f"  eta {clock_time(math.ceil(progress.eta))}"
    return f"{clock_time(progress.elapsed)} elapsed{left}"


def clock_time(seconds: float) -> str:
    """Seconds as M:SS, or H:MM:SS."""
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
