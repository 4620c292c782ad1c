"""Figures of a run: each a function of its tables, drawn anew from what is stored."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gradbench.tables.store import Run, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(run: Run) -> list[Path]:
    """Draw every figure that has something to show into the run's folder, as SVG and as PNG; the files."""
    from gradbench.plots import look  # pandas, seaborn and matplotlib: loaded only where something is drawn
    from gradbench.plots.figures import FIGURES, Tables

    tables = Tables.of(run)
    paths = []
    for name, figure in FIGURES.items():
        drawn = figure(tables)
        if drawn is not None:
            look.sign(drawn, tables.source)
            paths += save(drawn, run.folder / "plots" / name)
    return paths


def save(figure: Figure, stem: Path, kinds: Collection[str] = ("svg", "png")) -> list[Path]:
    """Write a figure as SVG, as PNG, or as both; the files."""
    from gradbench.plots import look

    # no dates and no version strings: equal tables make equal files
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    paths = []
    with look.theme():
        figure.draw_without_rendering()  # lay out once, not again for each file
        figure.set_layout_engine("none")
        inches = figure.get_tightbbox().padded(0.06)  # the caption hangs below the figure
        for kind, nothing in ((kind, metadata[kind]) for kind in kinds):
            paths.append(stem.with_suffix(f".{kind}"))
            fill = partial(figure.savefig, format=kind, metadata=nothing, dpi=150, bbox_inches=inches)
            write(paths[-1], fill)
    return paths
