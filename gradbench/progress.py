"""How far the work is, told on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY = 5.0  # seconds between plain lines


class Told(Protocol):
    """What can be told of: `runner.Progress` and `training.loop.Progress`."""

    weight: int  # of all that is to be done, and of what is
    done_weight: int

    @property
    def text(self) -> str:
        """The state of things in a few words."""

    @property
    def over(self) -> bool:
        """Whether nothing is left."""

    @property
    def eta(self) -> float | None:
        """Seconds left, where that can be said."""


@contextmanager
def told() -> Iterator[Callable[[Told], None]]:
    """A watcher for `runner.run` and `training.loop.train`."""
    if sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _lines()


def _lines() -> Callable[[Told], None]:
    last = -EVERY

    def watch(progress: Told) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY or progress.over:
            last = now
            eta = f"  eta {progress.eta:.0f} s" if progress.eta and not progress.over else ""
            print(f"  {progress.text}{eta}", file=sys.stderr, flush=True)

    return watch


@contextmanager
def _bar() -> Iterator[Callable[[Told], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def watch(progress: Told) -> None:
            bar.update(task, total=progress.weight or 1, completed=progress.done_weight or (not progress.weight))
            bar.update(task, description=progress.text)

        yield watch
