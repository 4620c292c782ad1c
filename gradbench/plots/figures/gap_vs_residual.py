"""Whether the reference moved: the gap between the two references against the residual of the free phase."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from gradbench.plots import look, titles
from gradbench.vocabulary.notation import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

EXACT = 1e-16  # smaller residuals and gaps are drawn here
KINDS = {  # by column: colour and marker
    "reference_gap": look.Style("#0b5394", "o", 6.5),
    "reference_open": look.Style("#b45309", "^", 3),
}


@look.themed
def draw_gap_vs_residual(cells: DataFrame, threshold: float) -> Figure | None:
    """A point is a free state: one T1 of one problem. Cells of rules at the same state share it."""
    states = cells[cells["reference_gap"].notna() & cells["residual"].notna()]
    states = states.drop_duplicates(["problem", "T1"])
    if states.empty:
        return None
    columns = [*KINDS, "residual"]
    shown = states.assign(**{name: states[name].clip(lower=EXACT) for name in columns})
    systems = dict(list(shown.groupby("system_label")))
    across = min(3, len(systems))
    figure = look.figure(1.0 + 2.7 * -(-len(systems) // across), wide=across > 1)
    axes = figure.subplots(-(-len(systems) // across), across, sharex=True, sharey=True, squeeze=False).ravel()
    for i, (ax, (system, rows)) in enumerate(zip(axes, systems.items(), strict=False)):
        for name, style in KINDS.items():
            look.points(ax, rows[rows[name].notna()], "residual", name, style, alpha=0.8)
        ax.axvline(threshold, color=look.GREY, linestyle="--", linewidth=1)
        width = (look.room(figure) - 60) / across - 20
        look.panel_title(ax, f"{system}: they differ {titles.gaps(rows)}" if len(systems) > 1 else "", "", width)
        ax.set(xscale="log", yscale="log", xlabel=METRICS["residual"].axis)
        ax.set_ylabel("share of the reference" if i % across == 0 else "")
    for ax in axes[len(systems) :]:
        ax.set_visible(False)
    marks = partial(Line2D, [], [], linestyle="", markersize=look.pt(5))
    grey = partial(marks, color=look.GREY, marker="o")
    line = Line2D([], [], color=look.GREY, linestyle="--", linewidth=1, label=f"settled up to {threshold:g}")
    look.strip(
        figure,
        [
            *(marks(color=s.colour, marker=s.marker, label=LABELS[name]) for name, s in KINDS.items()),
            grey(label="settled"),
            grey(label="not settled: no evidence", markerfacecolor="none"),
            line,
        ],
        5,
    )
    look.title(figure, titles.of_gap(states))
    look.caption(
        figure,
        [
            f"{look.count(len(states), 'free state')}, at every coordinate and dtype.",
            "Circles: |g - h| / |g|, g by backpropagation through the T1 steps, h the implicit gradient of the fixed",
            "point. Triangles: the part of dC/ds that the credit of backpropagation leaves in its equation.",
            f"Numbers below {EXACT:g} are drawn there.",
        ],
    )
    return figure


LABELS = {
    "reference_gap": "gap: backpropagation through T1 steps to implicit gradient",
    "reference_open": "left open by the credit of backpropagation",
}
FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "gap_vs_residual": lambda tables: draw_gap_vs_residual(tables.whole, tables.residual)
}
