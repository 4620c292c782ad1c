"""Is the reference itself to be trusted? Residual of the free phase against the smallest cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradbench.notation import METRICS
from gradbench.plots import hold, look
from gradbench.plots.scale import FLOOR_WORDS, floored, show_cosines

if TYPE_CHECKING:
    from pandas import DataFrame

EXACT = 1e-12  # residuals below are drawn here: float64 reaches 1e-18, and a float32 step may be exactly zero


@look.themed
def residual_vs_cosine(cells: DataFrame, threshold: float) -> Figure | None:
    """Right of the line the free phase has not settled, and a cosine compares with a transient."""
    cells = hold.estimates(cells)
    absent = cells["cosine_min"].isna() | cells["residual"].isna()
    shown = cells[~absent]
    if shown.empty:
        return None
    shown = shown.assign(residual=shown["residual"].clip(lower=EXACT), cosine_min=floored(shown["cosine_min"]))
    systems = dict(list(shown.groupby("system_label")))
    columns = min(3, len(systems))
    figure = Figure(figsize=(look.WIDTH, 1.0 + 2.5 * -(-len(systems) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(systems) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {label: s for label, s in look.styles(cells).items() if label in set(shown["estimator_label"])}
    for ax, (system, own) in zip(axes, systems.items(), strict=False):
        for label, style in styles.items():
            look.points(ax, own[own["estimator_label"] == label], "residual", "cosine_min", style, alpha=0.7)
        ax.axvline(threshold, color=look.GREY, linestyle="--", linewidth=1)
        ax.set(
            title=hold.lines(system, hold.LINE // columns),
            xscale="log",
            xlabel=METRICS["residual"].axis,
            ylabel=look.metric("cosine_min"),
        )
    for i, ax in enumerate(axes):
        below = i + columns < len(systems)
        ax.tick_params(labelbottom=not below)
        ax.set_xlabel("" if below else ax.get_xlabel())
        ax.set_ylabel("" if i % columns else ax.get_ylabel())
        ax.set_visible(i < len(systems))
    show_cosines(list(axes[: len(systems)]), shown["cosine_min"])
    line = Line2D([], [], color=look.GREY, linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    look.legend(figure, styles, [line], lines=False)
    look.caption(
        figure,
        [
            f"Smallest cosine against free residual: {len(shown)} cells at every coordinate and dtype.",
            *look.without(cells[absent]),
            "Shaded: negative.",
            f"Residuals below {EXACT:g} and {FLOOR_WORDS}.",
        ],
    )
    return figure
