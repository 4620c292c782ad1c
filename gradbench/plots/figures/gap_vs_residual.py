"""Whether the reference moved: the gap between the two references against the residual of the free phase."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from gradbench.plots import look, titles
from gradbench.plots.wording import short
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

EXACT = 1e-16  # smaller residuals and gaps are drawn here
KINDS = {  # by column: colour and marker
    "reference_gap": look.Style("#0b5394", "o", 6.5),
    "reference_open": look.Style("#b45309", "^", 5),
}
ACROSS = 3  # panels in a line
PARTLY = "Hollow left of the line: the batch as a whole is below the threshold, and some of its samples are not."


@look.themed
def draw_gap_vs_residual(cells: DataFrame, threshold: float) -> Figure | None:
    """A point is a free state: one T1 of one problem. Cells of rules at the same state share it."""
    states = cells[cells["reference_gap"].notna() & cells["residual"].notna()]
    states = states.drop_duplicates(["problem", "T1"])
    if states.empty:
        return None
    columns = [*KINDS, "residual"]
    idle = states["status"] != Status.SETTLED
    shown = states.assign(**{name: states[name].clip(lower=EXACT) for name in columns})
    systems = dict(list(shown.groupby("system_label")))
    told = short(systems)
    across = min(ACROSS, len(systems))
    lines = -(-len(systems) // across)
    figure = look.figure(1.0 + 4.2 * lines, wide=across > 1)
    axes = figure.subplots(2 * lines, across, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel():
        ax.set_visible(False)
    for i, (system, rows) in enumerate(systems.items()):
        line, place = divmod(i, across)
        for ax, (name, style) in zip(axes[2 * line : 2 * line + 2, place], KINDS.items(), strict=True):
            ax.set_visible(True)
            look.points(ax, rows[rows[name].notna()], "residual", name, style, alpha=0.8)
            ax.axvline(threshold, color=look.GREY, linestyle="--", linewidth=1)
            ax.set(xscale="log", yscale="log", ylabel=AXES[name] if place == 0 else "")
        width = (look.room(figure) - 60) / across - 20
        said = f"{told[system]}: they differ {titles.gaps(rows)}" if len(systems) > 1 else ""
        look.panel_title(axes[2 * line, place], said, "", width)
        ax.set_xlabel(METRICS["residual"].axis)
        ax.tick_params(labelbottom=True)
    marks = partial(Line2D, [], [], linestyle="", markersize=look.pt(5))
    grey = partial(marks, color=look.GREY, marker="o")
    settled = Line2D([], [], color=look.GREY, linestyle="--", linewidth=1, label=f"settled up to {threshold:g}")
    look.strip(
        figure,
        [
            *(marks(color=s.colour, marker=s.marker, label=LABELS[name]) for name, s in KINDS.items()),
            grey(label="settled"),
            grey(label="not settled: no evidence", markerfacecolor="none"),
            settled,
        ],
        5,
    )
    look.title(figure, titles.of_gap(states))
    look.caption(
        figure,
        [
            f"{look.count(len(states), 'free state')}, at every coordinate and dtype.",
            "Circles: |g - h| / |g|, g by backpropagation through the T1 steps, h the implicit gradient of the fixed",
            f"point. Triangles: {METRICS['reference_open'].symbol}, here with g = dC/ds and a the credit of BPTT: 0",
            "where a solves the adjoint equation of the fixed point.",
            *([PARTLY] if (idle & (states["residual"] <= threshold)).any() else []),
            *(f"{told[system]}: {system}." for system in systems if told[system] != system),
            f"Numbers below {EXACT:g} are drawn there.",
        ],
    )
    return figure


LABELS = {
    "reference_gap": "gap: backpropagation through T1 steps to implicit gradient",
    "reference_open": "residual of the adjoint equation, of BPTT's credit",
}
AXES = {"reference_gap": "gap,\nshare of the reference", "reference_open": "residual of the\nadjoint equation"}
FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "gap_vs_residual": lambda tables: draw_gap_vs_residual(tables.whole, tables.residual)
}
