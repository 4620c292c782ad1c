"""In which layer credit goes wrong: its cosine with the credit of the reference, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from gradbench.plots import hold, look
from gradbench.plots.scale import FLOOR_WORDS, SPACED, floored, show_cosines
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

CREDITS = {"cosine": "displacement", "cosine_error": "prediction error"}


@look.themed
def draw_credit_by_layer(cells: DataFrame, blocks: DataFrame) -> Figure | None:
    """Settled cells of systems with three or more blocks, at one point each: a marker a seed, lines at the median."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    layered = blocks.groupby("cell")["block"].transform("size") >= 3
    cells = cells[cells["cell"].isin(blocks[layered]["cell"]) & (cells["status"] == Status.SETTLED)]
    if cells.empty:
        return None
    keys = ["cell", "estimator_label", "seed", "status"]
    rows = {title: here[keys].merge(blocks, on="cell") for title, here in hold.by_system(cells).items()}
    shown = [column for column in CREDITS if any(here[column].notna().any() for here in rows.values())]
    if not shown:
        return None
    figure = Figure(figsize=(look.WIDTH, 0.9 + 1.9 * len(rows)), layout="constrained")
    strips = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    panels: list[Axes] = []
    titled: set[str] = set()
    for strip, (title, here) in zip(strips, rows.items(), strict=True):
        strip.suptitle(title, x=0.01, ha="left", size=9.5, weight="bold")
        has = [column for column in CREDITS if here[column].notna().any()]
        for ax, column in zip(strip.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
            ax.set_visible(column in has)
            if column in has:
                _panel(ax, here, column, styles)
                ax.set_title("" if column in titled else CREDITS[column])
                titled.add(column)
                ax.set_ylabel(f"cosine of the credit\n{SPACED}" if column == has[0] else "")
                ax.tick_params(labelleft=column == has[0])
                panels.append(ax)
    drawn = pd.concat(rows.values())
    show_cosines(panels, drawn[list(CREDITS)])
    named = drawn.dropna(subset=list(CREDITS), how="all")["estimator_label"].unique()
    look.legend(figure, {label: styles[label] for label in named})
    look.caption(
        figure,
        [
            "Cosine of the state credit with the reference's by layer, settled cells: a point a seed, a median line.",
            "Rules that agree lie on each other. A clamped layer has no displacement and counts 0;",
            "adjoints have no prediction error.",
            f"Shaded: negative. {FLOOR_WORDS.capitalize()}.",
        ],
    )
    return figure


def _panel(ax: Axes, here: DataFrame, column: str, styles: dict[str, look.Style]) -> None:
    names = list(here["block"].unique())
    here = here.dropna(subset=[column])
    here = here.assign(place=here["block"].map(names.index), **{column: floored(here[column])})
    for label, style in styles.items():
        rows = here[here["estimator_label"] == label]
        median = rows.groupby("place")[column].median()
        ax.plot(median.index, median, color=style.colour, dashes=style.dashes or (None, None), linewidth=1.2, zorder=2)
        look.points(ax, rows, "place", column, style)
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.4, len(names) - 0.6)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "credit_by_layer": lambda tables: draw_credit_by_layer(tables.cells, tables.blocks)
}
