"""What asymmetry costs: antisymmetry of the Jacobian against the error of the worst parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from gradbench.plots import hold, look, titles
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

FLOOR = 1e-10  # smaller errors are drawn here; AEP in float64 reaches 1e-16


@look.themed
def draw_antisymmetry_vs_error(cells: DataFrame) -> Figure | None:
    """Naive EP agrees with BPTT at the left edge only; a rule that corrects for asymmetry stays low everywhere."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells, left_out = hold.main_forms(cells)
    cells = hold.deepest(cells)
    gone = cells["status"] == Status.COLLAPSED
    cells = cells[~gone]
    absent = cells["cosine_min"].isna() | cells["antisymmetry"].isna()
    shown = cells[~absent]
    if shown.empty:
        return None
    shown = shown.assign(error=1 - shown["cosine_min"])
    floored = bool((shown["error"] < FLOOR).any())
    shown["error"] = shown["error"].clip(lower=FLOOR)
    spans = shown.groupby("system_label")["antisymmetry"].agg(["min", "max"]).sort_values(["min", "max"])
    heights = 3.8, 0.2 * len(spans)
    figure = look.figure(0.3 + sum(heights), wide=False)
    upper, ax = figure.subplots(2, 1, height_ratios=heights[::-1])
    styles = {label: style for label, style in styles.items() if label in set(shown["estimator_label"])}
    for label, style in styles.items():
        look.points(ax, shown[shown["estimator_label"] == label], "antisymmetry", "error", style, alpha=0.8)
    look.followed(ax, 1 - look.FOLLOWS)
    ax.set(
        yscale="log",
        xlabel=METRICS["antisymmetry"].axis,
        ylabel=f"$1-$ {METRICS['cosine_min'].words}\n(lower is better)",
    )
    _show_spans(upper, spans, *ax.get_xlim())
    span = Line2D([], [], color=look.GREY, linewidth=1.5, marker="|", markersize=look.pt(5), label="span of a system")
    hollow = bool((shown["status"] != Status.SETTLED).any())
    look.legend(figure, styles, [span, look.followed_key("each cell")], lined=(), hollow=hollow)
    look.title(figure, titles.of_antisymmetry(shown))
    look.caption(
        figure,
        [
            f"Error of the worst parameter against antisymmetry: {len(shown)} cells, each s and damping at its",
            f"deepest T2 and the nudge nearest {hold.USUAL_BETA}, any T1.",
            *([f"Errors below {FLOOR:g} are drawn there."] if floored else []),
            *([f"Not drawn: {look.count(int(gone.sum()), 'collapsed cell')}."] if gone.any() else []),
            *look.without(cells[absent]),
            *left_out,
        ],
    )
    return figure


def _show_spans(ax: Axes, spans: DataFrame, low: float, high: float) -> None:
    """A line for every system from its least antisymmetry to its largest, with its name beside it."""
    for place, (system, span) in enumerate(spans.iterrows()):
        ax.plot(span, [place, place], color=look.GREY, linewidth=1.5, marker="|", markersize=look.pt(5))
        room = high - span["max"] > span["min"] - low  # the name stands where more of it is
        x, side, gap = (span["max"], "left", 5) if room else (span["min"], "right", -5)
        ax.annotate(
            str(system),
            (x, place),
            (look.pt(gap), 0),
            textcoords="offset points",
            size=look.pt(look.VALUE),
            va="center",
            ha=side,
        )
    ax.set(xlim=(low, high), ylim=(len(spans) - 0.4, -0.6))
    ax.set_axis_off()


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "antisymmetry_vs_error": lambda tables: draw_antisymmetry_vs_error(tables.cells)
}
