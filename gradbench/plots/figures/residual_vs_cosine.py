"""Whether the reference can be trusted: residual of the free phase against the smallest cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradbench.plots import bands, hold, look, titles
from gradbench.plots.scale import SPACED, floored, limits_of, show_cosines
from gradbench.plots.wording import short
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

NO_EVIDENCE = "#F9EBD9"  # behind cells that are not settled
COLLAPSED = "The residual is a share of |s|, so that a state that shrinks to 0 (collapsed) stands right of the line."
EXACT = 1e-12  # smaller residuals are drawn here; float64 reaches 1e-18, and a step in float32 may be exactly zero


@look.themed
def draw_residual_vs_cosine(cells: DataFrame, threshold: float) -> Figure | None:
    """Right of the line the free phase has not settled, so that a cosine there compares with a transient."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells = hold.deepest(cells)
    absent = cells["cosine_min"].isna() | cells["residual"].isna()
    shown = cells[~absent]
    if shown.empty or (shown["status"] == Status.SETTLED).all():  # of states at rest the residual tells nothing
        return None
    shown = shown.assign(residual=shown["residual"].clip(lower=EXACT), cosine_min=floored(shown["cosine_min"]))
    systems = dict(list(shown.groupby("system_label")))
    many = bands.crowded(shown["estimator_label"])
    columns = min(4 if many else 3, len(systems))
    figure = look.figure(1.0 + (2.1 if many else 2.7) * -(-len(systems) // columns), wide=columns > 1)
    axes = figure.subplots(-(-len(systems) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {label: style for label, style in styles.items() if label in set(shown["estimator_label"])}
    styles = look.lit(styles, titles.in_colour(shown)) if many else styles
    names = short(map(str, systems))
    for ax, (system, rows) in zip(axes, systems.items(), strict=False):
        for _, style, of_rule in look.by_style(rows, styles):
            look.points(ax, of_rule, "residual", "cosine_min", style, alpha=0.7)
        ax.axvline(threshold, color=look.GREY, linestyle="--", linewidth=1)
        said = titles.of_crowd(names[str(system)], rows) if many else titles.of_cloud(str(system), rows)
        ax.set_title(
            look.fit(said, look.VALUE, (look.room(figure) - 100) / columns - 10),
            loc="left",
            fontsize=look.pt(look.VALUE),
        )
        look.followed(ax)
        ax.set(
            xscale="log",
            xlabel=METRICS["residual"].axis,
            ylabel=f"{look.metric('cosine_min')}\n{SPACED}",
        )
    for i, ax in enumerate(axes):
        ax.tick_params(labelbottom=True)
        ax.set_ylabel("" if i % columns else ax.get_ylabel())
        ax.set_xlabel(ax.get_xlabel() if i + columns >= len(systems) or not many else "")
        ax.set_visible(i < len(systems))
    show_cosines(list(axes[: len(systems)]), shown["cosine_min"])
    left, right = axes[0].get_xlim()  # of all panels
    right = max(right, threshold)
    axes[0].set_xlim(left, right)
    for ax in axes[: len(systems)]:
        ax.axvspan(threshold, right, color=NO_EVIDENCE, zorder=0, linewidth=0)
    line = Line2D([], [], color=look.GREY, linestyle="--", linewidth=1, label=f"settled up to {threshold:g}")
    shade = Patch(facecolor=NO_EVIDENCE, edgecolor=look.GREY, linewidth=0.6, label="right of it: no evidence")
    hollow = bool((shown["status"] != Status.SETTLED).any())
    coloured = {label: style for label, style in styles.items() if style is not look.OTHER}
    look.legend(
        figure,
        coloured,
        [*look.others_key(styles), line, shade, look.followed_key("each cell")],
        lined=(),
        hollow=hollow,
    )
    look.title(figure, titles.of_residuals(cells))
    look.caption(
        figure,
        [
            f"Smallest cosine against free residual: {len(shown)} cells, each s and damping at its deepest T2 and the",
            f"nudge nearest {hold.USUAL_BETA}, any T1: a cosine is not small for a short second phase.",
            *([COLLAPSED] if (shown["status"] == Status.COLLAPSED).any() else []),
            *look.without(cells[absent]),
            f"Residuals below {EXACT:g} are drawn there.",
            *limits_of(shown["cosine_min"]),
        ],
    )
    return figure


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "residual_vs_cosine": lambda tables: draw_residual_vs_cosine(tables.cells, tables.residual)
}
