"""How far a run is, told on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gradbench.runner import Progress, Watch

EVERY = 5.0  # seconds between plain lines


def _text(progress: Progress) -> str:
    counts = "  ".join(f"{status} {n}" for status, n in progress.statuses.most_common())
    return f"{progress.done + progress.kept}/{progress.cells} cells  {counts}"


@contextmanager
def told() -> Iterator[Watch]:
    """A watcher for `runner.run`."""
    if sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _lines()


def _lines() -> Watch:
    last = -EVERY

    def watch(progress: Progress) -> None:
        nonlocal last
        now, over = time.monotonic(), progress.done + progress.kept == progress.cells
        if now - last >= EVERY or over:
            last = now
            eta = f"  eta {progress.eta:.0f} s" if progress.eta and not over else ""
            print(f"  {_text(progress)}{eta}", file=sys.stderr, flush=True)

    return watch


@contextmanager
def _bar() -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def watch(progress: Progress) -> None:
            bar.update(task, total=progress.weight or 1, completed=progress.done_weight or (not progress.weight))
            bar.update(task, description=_text(progress))

        yield watch
