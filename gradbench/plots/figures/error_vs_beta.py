"""Which nudge is right: error against beta. Curvature makes it grow to the right, round-off to the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from gradbench.plots import hold, look, titles
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

FLOOR = 1e-14  # smaller errors are drawn here
COLUMNS = 2
LINES = {"float32": (1.4, None), "float64": (4, 0.3)}  # width in points, and opacity


@look.themed
def draw_error_vs_beta(cells: DataFrame) -> Figure | None:
    """A U in float32: slope 2 (centred) or 1 (one-sided) to the right, -1 to the left, where round-off predicts it."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells = cells[cells["beta"].notna() & (cells["status"] == Status.SETTLED) & cells["rel_error"].notna()]
    systems = {
        place: here
        for place, here in hold.by_system(cells, free=("beta",), dtypes=True).items()
        if here["beta"].nunique() > 2
    }
    if not systems:
        return None
    columns = min(COLUMNS, len(systems))
    lines = -(-len(systems) // columns)
    figure = look.figure(0.9 + 3.2 * lines, wide=columns > 1)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    drawn = {label for here in systems.values() for label in here["estimator_label"]}
    for ax, (place, here) in zip(axes, systems.items(), strict=False):
        _panel(ax, here, styles)
        look.panel_title(
            ax,
            titles.of_nudge(place.system, here) if len(systems) > 1 else "",
            place.point,
            (look.room(figure) - 60) / columns - 30,
        )
    for i, ax in enumerate(axes):
        ax.set_visible(i < len(systems))
        ax.set_ylabel(f"whole gradient: {METRICS['rel_error'].axis}" if i % columns == 0 else "")
    keys = [Line2D([], [], color=look.GREY, linestyle=":", label="round-off of float32, order of magnitude")]
    if any((here["dtype"] == "float64").any() for here in systems.values()):
        keys.append(Line2D([], [], color=look.GREY, linewidth=4, alpha=0.3, label="float64"))
    styles = {label: style for label, style in styles.items() if label in drawn}
    look.legend(figure, styles, keys, hollow=False)
    look.title(figure, titles.of_nudges({place.system: here for place, here in systems.items()}))
    look.caption(
        figure,
        [
            "Relative error of the whole gradient against the nudge, worst of the settled seeds. The dotted line is",
            "one unit of float32 round-off of s* over the displacement of the state: an order of magnitude, no bound.",
            "Where errors rise along it, a smaller nudge makes things worse.",
        ],
    )
    return figure


def _panel(ax: Axes, here: DataFrame, styles: dict[str, look.Style]) -> None:
    here = here.assign(error=here["rel_error"].clip(lower=FLOOR))
    ax.set(xscale="log", yscale="log", xlabel=COORDINATES["beta"].axis)
    for (label, dtype), rows in here.groupby(["estimator_label", "dtype"]):
        style = styles[label]
        worst = rows.groupby("beta")["error"].max()
        width, alpha = LINES[dtype]
        ax.plot(worst.index, worst, color=style.colour, linestyle=style.line, linewidth=width, alpha=alpha, zorder=2)
        look.points(ax, rows, "beta", "error", style, alpha=1 if dtype == "float32" else 0.35)
    floor = here[here["dtype"] == "float32"].groupby("beta")["noise_floor"].max()
    ax.plot(floor.index, floor, ":", color=look.GREY, zorder=1)
    betas, top = np.array(sorted(here["beta"].unique())), here["error"].max()
    low = max(FLOOR / 2, 0.3 * min(here["error"].min(), floor.min() if len(floor) else 1))
    for slope, words in ((1, r"$\propto\beta$"), (2, r"$\propto\beta^2$")):
        line = top * (betas / betas[-1]) ** slope
        ax.plot(betas, line, color=look.GREY, linewidth=0.8, zorder=1)
        end = int(np.argmax(line > low))  # the name of a slope stands at its lower end
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        small = look.pt(look.VALUE)
        ax.text(betas[end], line[end], words, size=small, color=look.GREY, ha="center", va="center", bbox=box)
    ax.set_ylim(low, top * 3)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_vs_beta": lambda tables: draw_error_vs_beta(tables.cells)
}
