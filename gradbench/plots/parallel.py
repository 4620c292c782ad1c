"""Figures of a run drawn by several processes: matplotlib works on one core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradbench.plots import SCREEN, draw, gallery
from gradbench.tables.store import Run

CELLS = 500  # of a run from which on figures take longer than another process takes to start
MOST = 4  # processes: with more, one has a single slow figure


def draw_in_parallel(run: Run, style: str = SCREEN, names: Collection[str] = ()) -> list[Path]:
    """Do what `draw` does, with a process a core where the run is large; the files, in the order of their names.

    A figure that another process fails to draw is drawn here, so that its error is raised here.
    """
    wanted = list(gallery.chosen(names))
    shares = min(os.cpu_count() or 1, MOST, len(wanted)) if len(run.cells) >= CELLS else 1
    with _others(run, style, [wanted[i::shares] for i in range(1, shares)]) as others:
        paths = draw(run, style, wanted[::shares])
        for share, process in others:
            told, _ = process.communicate()
            paths += [Path(line) for line in told.splitlines()] if not process.returncode else draw(run, style, share)
    return sorted(paths)


@contextmanager
def _others(run: Run, style: str, shares: list[list[str]]) -> Iterator[list[tuple[list[str], subprocess.Popen[str]]]]:
    """A process for each share of the figures; none of them outlives this one's work."""
    command = [sys.executable, "-m", "gradbench", "plot", str(run.folder), "--style", style]
    others = [
        (
            share,
            subprocess.Popen(
                [*command, *(word for name in share for word in ("--figure", name))],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ),
        )
        for share in shares
    ]
    try:
        yield others
    finally:
        for _, process in others:
            process.kill()
            process.wait()
