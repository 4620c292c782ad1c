"""Which nudge is right: error against beta. Curvature makes it grow to the right, round-off to the left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from gradbench.plots import hold, look, titles
from gradbench.plots.parameterwise import WORST, with_worst
from gradbench.plots.wording import default_forms
from gradbench.vocabulary.coordinates import COORDINATES
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
SLOPES = ((1, r"$\propto\beta$"), (2, r"$\propto\beta^2$"))
SPAN = 0.16  # of the width of a panel: the lines that show slopes
CORNER = 0.97, 0.12  # of a panel: right and lower end of these lines, where an error never is


@look.themed
def draw_error_vs_beta(cells: DataFrame, params: DataFrame, faithful: float) -> Figure | None:
    """A U in float32: slope 2 (centred) or 1 (one-sided) to the right, -1 to the left, where round-off predicts it."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells = with_worst(cells[cells["beta"].notna()], params)
    systems = {  # the point is that of all cells, as in the figures of cosines
        place: here[(here["status"] == Status.SETTLED) & here["rel_error"].notna() & np.isfinite(here["error"])]
        for place, here in hold.by_system(cells, free=("beta",), dtypes=True).items()
    }
    systems = {place: here for place, here in systems.items() if here["beta"].nunique() > 2}
    if not systems:
        return None
    columns = min(COLUMNS, len(systems))
    lines = -(-len(systems) // columns)
    figure = look.figure(0.9 + 3.2 * lines, wide=columns > 1)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    drawn = {label for here in systems.values() for label in here["estimator_label"]}
    for ax, (place, here) in zip(axes, systems.items(), strict=False):
        _panel(ax, here, styles, faithful)
        look.panel_title(
            ax,
            titles.of_nudge(place.system, here, faithful) if len(systems) > 1 else "",
            place.point,
            (look.room(figure) - 60) / columns - 30,
        )
    for i, ax in enumerate(axes):
        ax.set_visible(i < len(systems))
        ax.set_ylabel(WORST if i % columns == 0 else "")
    line = partial(Line2D, [], [], color=look.GREY)
    thin: dict[str, Any] = {"linewidth": 0.8, "marker": "o", "markersize": look.pt(2.5)}
    keys = [
        line(linewidth=0.9, linestyle=look.FOLLOWED, label=f"faithful: {faithful:g} or less"),
        line(**thin, label="thin and small: the whole gradient"),
        line(linestyle=":", label="round-off of float32, order of magnitude"),
    ]
    if any((here["dtype"] == "float64").any() for here in systems.values()):
        keys.append(Line2D([], [], color=look.GREY, linewidth=4, alpha=0.3, label=look.PALE_WIDE))
    styles = {label: style for label, style in styles.items() if label in drawn}
    look.legend(figure, styles, keys, hollow=False)
    look.title(figure, titles.of_nudges({place.system: here for place, here in systems.items()}, faithful))
    look.caption(
        figure,
        [
            "Relative error of the worst parameter against the nudge, worst of the settled seeds. Thin, with",
            "small markers: that of the whole gradient, of the default forms of the rules, in float32. It is small",
            "where one parameter that holds most of the gradient is right. The dotted line is one unit of float32",
            "round-off of s* over the displacement of the state: an order of magnitude, no bound.",
            "Where errors rise along it, a smaller nudge makes things worse.",
        ],
    )
    return figure


def _panel(ax: Axes, here: DataFrame, styles: dict[str, look.Style], faithful: float) -> None:
    here = here.assign(**{name: here[name].clip(lower=FLOOR) for name in ("error", "rel_error")})
    ax.set(xscale="log", yscale="log", xlabel=COORDINATES["beta"].axis)
    for (label, dtype), rows in here.groupby(["estimator_label", "dtype"]):
        style = styles[label]
        worst = rows.groupby("beta")["error"].max()
        width, alpha = LINES[dtype]
        ax.plot(worst.index, worst, color=style.colour, linestyle=style.line, linewidth=width, alpha=alpha, zorder=2)
        look.points(ax, rows, "beta", "error", style, alpha=1 if dtype == "float32" else 0.35)
    floor = here[here["dtype"] == "float32"].groupby("beta")["noise_floor"].max()
    ax.plot(floor.index, floor, ":", color=look.GREY, zorder=1)
    main = here[
        (here["dtype"] == here["dtype"].min()) & here["estimator_label"].isin(default_forms(here["estimator_label"]))
    ]
    for label, rows in main.groupby("estimator_label"):
        whole = rows.groupby("beta")["rel_error"].max()
        style = styles[label]
        thin: dict[str, Any] = {"marker": style.marker, "markersize": look.pt(style.size / 2), "linewidth": 0.8}
        ax.plot(whole.index, whole, color=style.colour, linestyle=style.line, zorder=2, **thin)
    look.followed(ax, faithful)
    ax.set_ylim(0.2 * min(here["error"].min(), main["rel_error"].min()), max(here["error"].max(), 1) * 3)
    _show_slopes(ax)


def _show_slopes(ax: Axes) -> None:
    """Two short lines in the lower right corner, which have the slopes of beta and beta² on the axes of the panel."""
    x, y = CORNER
    wide, high = (float(np.diff(np.log10(limits))[0]) for limits in (ax.get_xlim(), ax.get_ylim()))
    for (slope, words), side, gap in zip(SLOPES, ("top", "bottom"), (-0.02, 0.0), strict=True):
        rise = slope * SPAN * wide / high
        small = look.pt(look.VALUE)
        ax.plot([x - SPAN, x], [y, y + rise], color=look.GREY, linewidth=0.8, transform=ax.transAxes, zorder=1)
        ax.text(x, y + rise + gap, words, size=small, color=look.GREY, ha="right", va=side, transform=ax.transAxes)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_vs_beta": lambda tables: draw_error_vs_beta(tables.cells, tables.params, tables.faithful)
}
