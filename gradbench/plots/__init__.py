"""Figures. Each is a function of tables, so that it can be drawn again from what is stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.errors import UserError, near_miss
from gradbench.tables.store import Run, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.plots.sources import Tables


def draw(run: Run) -> list[Path]:
    """Draw the figures of a run into its folder, as SVG and PNG; the files. A figure with nothing to show is left out.

    pandas, seaborn and matplotlib are loaded here, and not where the package is imported.
    """
    paths = []
    for name, figure in drawn(run):
        paths += save(figure, run.folder / "plots" / name)
    return paths


def drawn(run: Run, names: Collection[str] = ()) -> Iterator[tuple[str, Figure]]:
    """The figures of a run by name, all of them where none is named. A figure with nothing to show is left out.

    Raises UserError for a name that no figure has.
    """
    from gradbench.plots.sources import Tables

    yield from _of_tables(Tables.of(run), names)


def written(figures: Iterable[tuple[str, Figure]], folder: str | Path | None) -> dict[str, Figure]:
    """The figures by name, which are written into a folder as SVG and PNG where one is named."""
    named = dict(figures)
    for name, figure in named.items() if folder is not None else ():
        save(figure, Path(str(folder)) / name)
    return named


def of_cell(
    row: Mapping[str, Any], nested: Mapping[str, list[dict[str, Any]]], names: Collection[str]
) -> Iterator[tuple[str, Figure]]:
    """Figures by name of one cell: its row of the table `cells`, and its rows of the other tables.

    A figure with nothing to show is left out. Raises UserError for a name that no figure has.
    """
    from pandas import DataFrame

    from gradbench.plots.sources import Tables
    from gradbench.tables.schema import CELLS, NESTED
    from gradbench.vocabulary.status import Thresholds

    frames = {
        name: DataFrame([{"cell": row["cell"]} | entry for entry in nested[name]], columns=schema.names)
        for name, schema in NESTED.items()
    }
    cells = DataFrame([row], columns=[*CELLS.names, *(n for n in row if n not in CELLS.names)])
    limits = Thresholds().residual, Thresholds().faithful
    tables = Tables(cells, frames["params"], frames["blocks"], frames["budget"], *limits, "One measurement")
    yield from _of_tables(tables, names)


def _of_tables(tables: Tables, names: Collection[str]) -> Iterator[tuple[str, Figure]]:
    from gradbench.plots import gallery, look

    known = gallery.collect()
    for name in names:
        if name not in known:
            raise UserError(f"plot: there is no figure {name!r}{near_miss(name, known)}")
    for name, drawing in known.items():
        figure = drawing(tables) if not names or name in names else None
        if figure is not None:
            look.sign(figure, tables.source)
            yield name, figure


def save(figure: Figure, stem: Path, kinds: Collection[str] = ("svg", "png")) -> list[Path]:
    """Write a figure as SVG, as PNG, or as both; the files."""
    from gradbench.plots import look

    # The files hold no dates and no version strings, so that equal tables make equal files.
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    paths = []
    with look.theme():
        figure.draw_without_rendering()  # the layout is computed once, and not again for each file
        figure.set_layout_engine("none")
        inches = figure.get_tightbbox().padded(0.06)  # the caption stands below the figure
        for kind in kinds:
            paths.append(stem.with_suffix(f".{kind}"))
            fill = partial(figure.savefig, format=kind, metadata=metadata[kind], dpi=150, bbox_inches=inches)
            write(paths[-1], fill)
    return paths
