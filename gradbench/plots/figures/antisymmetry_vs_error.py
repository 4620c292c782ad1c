"""What asymmetry costs: antisymmetry of the Jacobian against the error of the worst parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D

from gradbench.plots import bands, hold, look, titles
from gradbench.plots.wording import short
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

STRIP = (1.0, 3.0)  # widths of the panel of symmetric systems and of that of the others, where they have one each
STRIP_WIDTH = 130.0  # points of the former
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
    if (shown["antisymmetry"] <= titles.SYMMETRIC).all():  # what is left on x is round-off
        return None
    shown = shown.assign(error=1 - shown["cosine_min"])
    floored = bool((shown["error"] < FLOOR).any())
    shown["error"] = shown["error"].clip(lower=FLOOR)
    styles = {label: style for label, style in styles.items() if label in set(shown["estimator_label"])}
    many = bands.crowded(styles)
    styles = look.lit(styles, titles.in_colour(shown)) if many else styles
    flat = shown["antisymmetry"] <= titles.SYMMETRIC
    split = many and flat.any() and not flat.all()  # symmetric systems would pile up at 0
    right = shown[~flat] if split else shown
    spans = right.groupby("system_label")["antisymmetry"].agg(["min", "max"]).sort_values(["min", "max"])
    spans.index = spans.index.map(short(spans.index)) if many else spans.index
    heights = 0.2 * len(spans), 3.8
    figure = look.figure(0.3 + sum(heights), wide=many)
    shape: dict[str, Any] = {"width_ratios": STRIP} if split else {}
    axes = figure.subplots(2, 1 + split, height_ratios=heights, sharey="row", squeeze=False, **shape)
    ax = axes[1, -1]
    for _, style, rows in look.by_style(right, styles):
        look.points(ax, rows, "antisymmetry", "error", style, alpha=0.8)
    ax.set(xlabel=METRICS["antisymmetry"].axis)
    if split:
        axes[0, 0].set_axis_off()
        _strip(axes[1, 0], shown[flat], styles)
    for panel in axes[1]:
        look.followed(panel, 1 - look.FOLLOWS)
    axes[1, 0].set(yscale="log", ylabel=f"$1-$ {METRICS['cosine_min'].words}\n(lower is better)")
    _show_spans(axes[0, -1], spans, *ax.get_xlim())
    span = Line2D([], [], color=look.GREY, linewidth=1.5, marker="|", markersize=look.pt(5), label="span of a system")
    hollow = bool((shown["status"] != Status.SETTLED).any())
    coloured = {label: style for label, style in styles.items() if style is not look.OTHER}
    keys = [*look.others_key(styles), span, look.followed_key("each cell")]
    look.legend(figure, coloured, keys, lined=(), hollow=hollow)
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


def _strip(ax: Axes, shown: DataFrame, styles: dict[str, look.Style]) -> None:
    """The cells of symmetric systems: a place on x for every rule in colour, and one for all others."""
    coloured = [label for label, style in styles.items() if style is not look.OTHER]
    for label, style, rows in look.by_style(shown, styles):
        place = 1 + coloured.index(label) if label in coloured else 0
        look.points(ax, rows.assign(place=place), "place", "error", style, alpha=0.8)
    names = ["others", *map(look.words, coloured)]
    ax.set_xticks(range(len(names)), names, rotation=90)
    systems = look.fit(", ".join(short(map(str, shown["system_label"].unique())).values()), look.VALUE, STRIP_WIDTH)
    ax.set_title(f"symmetric Jacobian:\n{systems}", size=look.pt(look.VALUE))
    ax.set_xlim(-0.6, len(names) - 0.4)


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
