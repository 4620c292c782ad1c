"""Figures. Each is a function of tables, so that it can be drawn again from what is stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.errors import UserError, near_miss
from gradbench.estimators.reference import IMPLICIT
from gradbench.tables.disk import write
from gradbench.tables.store import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.plots.sources import Tables

SCREEN = "screen"  # the style that is drawn where none is named


def draw(run: Run, style: str = SCREEN, names: Collection[str] = ()) -> list[Path]:
    """Draw the figures of a run into its folder, all of them where none is named; the files.

    A figure with nothing to show is left out.

    On the screen they are SVG and PNG in `plots/`. Any other style is for print: PDF and SVG in a folder of its name
    there. pandas, seaborn and matplotlib are loaded here, and not where the package is imported. Raises UserError for a
    style that there is none of, and for a name that no figure has.
    """
    from gradbench.plots import look

    if style not in look.PAGES:
        raise UserError(f"plot: there is no style {style!r}{near_miss(style, look.PAGES)}")
    folder = run.folder / "plots" / ("" if style == SCREEN else style)
    paths = []
    with look.on(style):
        for name, figure in drawn(run, names):
            paths += save(figure, folder / name, inside=run.folder)
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
    tables = cells, frames["params"], frames["blocks"], frames["budget"]
    yield from _of_tables(Tables.by_one_reference(tables, *limits, "One measurement"), names)


def _of_tables(tables: Tables, names: Collection[str]) -> Iterator[tuple[str, Figure]]:
    from gradbench.plots import gallery, look

    for name, drawing in gallery.chosen(names).items():
        figure = drawing(tables)
        if figure is not None:
            look.sign(figure, tables.source)
            if tables.reference == IMPLICIT:
                look.say(figure, "BPTT", "the implicit gradient")
            yield name, figure


def save(figure: Figure, stem: Path, kinds: Collection[str] = (), *, inside: Path | None = None) -> list[Path]:
    """Write a figure in the kinds of files of the page (SVG and PNG on the screen), or in those named; the files.

    Below the folder `inside`, which is that of a run, no link is followed.
    Title and caption are in the metadata of every file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    from gradbench.plots import look

    title, caption = look.said(figure, "title"), look.said(figure, "caption")
    # The files hold no dates and no version strings, so that equal tables make equal files.
    metadata: dict[str, dict[str, str | None]] = {
        "svg": {"Title": title, "Description": caption, "Date": None, "Creator": None},
        "png": {"Title": title, "Description": caption, "Software": None},
        "pdf": {"Title": title, "Subject": caption, "Creator": None, "Producer": None, "CreationDate": None},
    }
    paths = []
    with look.theme():
        FigureCanvasAgg(figure)  # a figure without one makes a renderer for every text that is measured
        if engine := figure.get_layout_engine():
            engine.execute(figure)  # the layout is computed once, and not again for each file
        figure.set_layout_engine(None)  # a placeholder of an engine would draw everything once more for each file
        # the caption stands below the figure, and all else within it
        low = min([0.0, *(text.get_window_extent().y0 for text in figure.texts if text.get_visible())]) / figure.dpi
        inches = Bbox.from_extents(0, low - look.pt(0.06), figure.get_figwidth(), figure.get_figheight())
        for kind in kinds or look.page().kinds:
            paths.append(stem.with_suffix(f".{kind}"))
            fill = partial(figure.savefig, format=kind, metadata=metadata[kind], dpi=look.DPI, bbox_inches=inches)
            write(paths[-1], fill, inside=inside)
    return paths
