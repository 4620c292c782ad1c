"""What asymmetry costs: antisymmetry of the Jacobian against the error of the worst parameter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from gradbench.plots import hold, look, titles
from gradbench.vocabulary.notation import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

    from gradbench.plots.sources import Tables

PANEL = 0.88  # of the width of the figure: the rest is the axis of errors, and space
SAME = 8.0  # points: systems that are closer share a place
FLOOR = 1e-10  # smaller errors are drawn here; AEP in float64 reaches 1e-16


@look.themed
def draw_antisymmetry_vs_error(cells: DataFrame) -> Figure | None:
    """Naive EP agrees with BPTT at the left edge only; a rule that corrects for asymmetry stays low everywhere."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells, left_out = hold.main_forms(cells)
    cells = pd.concat(
        [_deep(hold.one_dtype(rows)) for _, rows in cells.groupby(["system_label", "s", "damp"])] or [cells]
    )
    absent = cells["cosine_min"].isna() | cells["antisymmetry"].isna()
    shown = cells[~absent]
    if shown.empty:
        return None
    shown = shown.assign(error=(1 - shown["cosine_min"]).clip(lower=FLOOR))
    figure = look.figure(4.4, wide=False)
    ax = figure.subplots()
    styles = {label: style for label, style in styles.items() if label in set(shown["estimator_label"])}
    for label, style in styles.items():
        look.points(ax, shown[shown["estimator_label"] == label], "antisymmetry", "error", style, alpha=0.8)
    look.followed(ax, cosine=False)
    ax.set(
        yscale="log",
        xlabel=METRICS["antisymmetry"].axis,
        ylabel=f"$1-$ {METRICS['cosine_min'].words}\n(lower is better)",
    )
    middle = shown.groupby("system_label")["antisymmetry"].median().sort_values()
    _name_systems(ax, middle, look.room(figure))
    look.legend(figure, styles, [look.followed_key("each cell")], lines=False)
    look.title(figure, titles.of_antisymmetry(shown))
    look.caption(
        figure,
        [
            f"Error of the worst parameter against antisymmetry: {len(shown)} cells, each s and damping at its",
            f"deepest T2 and the nudge nearest {hold.USUAL_BETA}, any T1. Errors below {FLOOR:g} are drawn there.",
            "Hollow: not settled, so that the cosine is no evidence.",
            *look.without(cells[absent]),
            f"Median antisymmetry: {', '.join(f'{system} {value:.2g}' for system, value in middle.items())}.",
            *left_out,
        ],
    )
    return figure


def _name_systems(ax: Axes, middle: Series, width: float) -> None:
    """Name systems above the panel at their median antisymmetry; a name that would touch the last one stands higher."""
    low, high = ax.get_xlim()
    named: list[tuple[float, str]] = []  # place and names, with empty lines below one that stands higher
    for system, place in middle.items():
        words = str(system).replace(" ", "\n")
        apart = (place - named[-1][0]) / (high - low) * PANEL * width if named else math.inf
        if apart < SAME:
            named[-1] = named[-1][0], f"{named[-1][1]},\n{words}"
        elif named and apart < (_long(named[-1][1]) + _long(words)) / 2 + 2 * look.VALUE:
            named.append((float(place), words + "\n" * (1 + named[-1][1].count("\n"))))
        else:
            named.append((float(place), words))
    upper = ax.secondary_xaxis("top")
    upper.set_xticks([place for place, _ in named], [words for _, words in named])
    upper.tick_params(labelsize=look.pt(look.VALUE), length=3, color=look.GREY)


def _long(words: str) -> float:
    """Points of the longest line."""
    return max(look.length(line, look.VALUE) for line in words.split("\n"))


def _deep(rows: DataFrame) -> DataFrame:
    """The cells with the deepest T2 and the usual beta, where truncation and nudge do not hide the asymmetry."""
    return hold.at(rows, {key: value for key, value in hold.point(rows).items() if key in ("T2", "beta")})


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "antisymmetry_vs_error": lambda tables: draw_antisymmetry_vs_error(tables.cells)
}
