"""What a small error costs: error of the worst parameter against the evaluations that an estimate needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gradbench.estimators.base import Count
from gradbench.estimators.reference import REFERENCE
from gradbench.plots import bands, hold, look, titles
from gradbench.plots.wording import default_forms, short
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

FLOOR = 1e-8  # smaller errors are drawn here
SMALL = 0.6  # size of a marker that is not on a front, as a part of the size of one that is
PALE = 0.35  # opacity of a settled setting that is not on the front
CROWDED = 100  # end over start of an axis of costs, from which on it has labels at powers of ten only
PRODUCTS = f"$Jv$ and $J^Ta$ count {Count(jvp=1).work}"
# the settings of a rule: T1, T2 and beta
FREE = tuple(name for name, c in COORDINATES.items() if c.shared and c.type is not str)

CAPTION = (
    "Error of the worst parameter of the worst seed against what one estimate costs by itself, free phase",
    "included and reference excluded, at every T1, T2 and beta, in evaluations of the force on the batch; a",
    f"product with the Jacobian or its transpose counts as {Count(jvp=1).work}. A triangle on the axis is the",
    f"cost of BPTT itself at a T1, its free phase included. Errors below {FLOOR:g} are drawn there.",
    "A parameter whose estimate is zero has error 1. One whose reference is zero, not finite or below the",
    "floor of liveness, or whose estimate is not finite, has no cosine and is left out; so is a setting",
    "without any.",
)


@look.themed
def draw_error_vs_cost(cells: DataFrame) -> Figure | None:
    """Down and to the left is better. A line is the front of a rule: settings that are better than all cheaper ones."""
    cells = hold.estimates(cells)
    settings = {place: _settings(rows) for place, rows in hold.by_system(cells, FREE).items()}
    systems = {place: here for place, here in settings.items() if not here.empty}
    if not systems:
        return None
    if bands.crowded(label for here in systems.values() for label in here["estimator_label"]):
        return _of_many(cells, systems)
    columns = min(3, len(systems))
    lines = -(-len(systems) // columns)
    figure = look.figure(1.0 + 3.1 * lines, wide=columns > 1)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    styles = look.styles(cells)
    drawn = {label for here in systems.values() for label in here["estimator_label"]}
    styles = {label: style for label, style in styles.items() if label in drawn}
    main = set(default_forms(drawn))
    for ax, (place, here) in zip(axes, systems.items(), strict=False):
        for label, style, rows in look.by_style(here, styles):
            settled = rows["status"] == Status.SETTLED
            front = _front(rows[settled])
            small = replace(style, size=SMALL * style.size)
            look.points(ax, rows[~settled], "cost", "error", small)
            if label in main:  # other forms have many settings: only those on their front are drawn
                look.points(ax, rows[settled].drop(front.index), "cost", "error", small, alpha=PALE)
            look.points(ax, front, "cost", "error", style)
            if len(front) and label in main:
                line = {"color": style.colour, "linestyle": style.line}
                ax.step(front["cost"], front["error"], where="post", linewidth=1.5, **line)
        look.followed(ax, 1 - look.FOLLOWS)
        _mark_reference(ax, here)
        said = titles.of_cost(place.system, here) if len(systems) > 1 else ""
        look.panel_title(ax, said, place.point, (look.room(figure) - 60) / columns - 10)
        _scales(ax)
    for i, ax in enumerate(axes):
        ax.set_ylabel("" if i % columns else f"$1-$ {METRICS['cosine_min'].words}")
        ax.set_visible(i < len(systems))
    pale = Line2D([], [], color=look.GREY, linestyle="", marker="o", markersize=look.pt(5), alpha=PALE)
    pale.set_label("small and pale: a cheaper setting is as good")
    stairs = Line2D(
        [], [], color=look.GREY, linewidth=1.5, label="line, large: least error for the cost (default form)"
    )
    keys = [look.followed_key(), stairs, pale, *_triangle(systems)]
    every = pd.concat(systems.values())
    look.legend(figure, styles, keys, lined=main, hollow=bool((every["status"] != Status.SETTLED).any()))
    look.title(figure, titles.of_costs({place.system: here for place, here in systems.items()}))
    look.caption(figure, CAPTION)
    return figure


def _of_many(cells: DataFrame, systems: dict[hold.Place, DataFrame]) -> Figure:
    """Of many rules the front of each system, of all rules together; a rule on a front has its colour."""
    kinds, names = bands.kinds(cells), short(place.system for place in systems)
    ordered = sorted(systems.items(), key=lambda item: list(kinds).index(item[0].system))
    fronts = {place: _front(here[here["status"] == Status.SETTLED]) for place, here in ordered}
    drawn = {label for here in systems.values() for label in here["estimator_label"]}
    styles = {label: style for label, style in look.styles(cells).items() if label in drawn}
    on_front = {label for front in fronts.values() for label in front["estimator_label"]}
    styles = look.lit(styles, on_front | set(look.MAIN))  # the title names the main rules, wherever they are
    columns = min(4, len(systems))
    lines = -(-len(systems) // columns)
    figure = look.figure(1.0 + 2.1 * lines, wide=columns > 1)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for ax, (place, here) in zip(axes, ordered, strict=False):
        front = fronts[place]
        others = here.drop(front.index)
        main = others["estimator_label"].isin(look.MAIN)
        look.points(ax, others[~main], "cost", "error", look.OTHER)
        for label, rows in others[main].groupby("estimator_label"):
            look.points(ax, rows, "cost", "error", styles[str(label)], alpha=0.8)
        ax.step(front["cost"], front["error"], where="post", linewidth=1.2, color=look.GREY)
        for label, rows in front.groupby("estimator_label"):
            look.points(ax, rows, "cost", "error", styles[str(label)])
        look.followed(ax, 1 - look.FOLLOWS)
        _mark_reference(ax, here)
        said = titles.of_cheapest(names[place.system], here)
        look.panel_title(ax, said, "", (look.room(figure) - 60) / columns - 10)
        _scales(ax)
    words = "$1-$ " + look.fit(METRICS["cosine_min"].words, look.TEXT, 90)  # a panel is low
    for i, ax in enumerate(axes):
        ax.set_ylabel("" if i % columns else words)
        ax.set_xlabel("cost (evaluations)" if i + columns >= len(systems) else "")
        ax.set_visible(i < len(systems))
    stairs = Line2D([], [], color=look.GREY, linewidth=1.2, label="least error of any rule for the cost")
    grey = Line2D([], [], color=look.OTHER.colour, linestyle="", marker="o", markersize=look.pt(look.OTHER.size))
    grey.set_label("all other settings, but for naive and asymmetric EP")
    coloured = {label: style for label, style in styles.items() if style is not look.OTHER}
    every = pd.concat(systems.values())
    keys = [grey, stairs, look.followed_key(), *_triangle(systems)]
    look.legend(figure, coloured, keys, lined=(), hollow=bool((every["status"] != Status.SETTLED).any()))
    look.title(figure, titles.of_front({place.system: here for place, here in ordered}, kinds))
    look.caption(figure, [*CAPTION, bands.held_at(systems)])
    return figure


def _scales(ax: Axes) -> None:
    """Both axes in decades, with round numbers on that of cost."""
    ax.set(xscale="log", yscale="log", xlabel=f"cost of an estimate (evaluations\nof the force; {PRODUCTS})")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < CROWDED * low else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _triangle(systems: dict[hold.Place, DataFrame]) -> list[Line2D]:
    """What the triangles mean, where there are some."""
    if not any(here["reference_cost"].notna().any() for here in systems.values()):
        return []
    triangle = Line2D([], [], color="black", linestyle="", marker="^", markersize=look.pt(5))
    triangle.set_label("cost of BPTT itself, at a T1")
    return [triangle]


def _settings(rows: DataFrame) -> DataFrame:
    """One row a setting: its worst seed. A seed that is not settled is worse than any that is.

    `cost` is in evaluations of the force, and so is `reference_cost`, that of backpropagation at the same T1; it is NaN
    where the cells are compared with another reference.
    """
    T1s = rows["T1"].where(rows["reference"] == REFERENCE.name).astype(float)
    rows = rows.assign(
        cost=Count(rows["n_force"], rows["n_jvp"], rows["n_vjp"]).work,
        reference_cost=T1s.map(_of_reference, na_action="ignore"),
        unsettled=rows["status"] != Status.SETTLED,
    )
    worst = rows.sort_values("cosine_min").sort_values("unsettled", ascending=False, kind="stable")
    worst = worst.drop_duplicates(["estimator_label", *FREE])
    worst = worst[worst["cosine_min"].notna() & worst["cost"].notna()]
    return worst.assign(error=(1 - worst["cosine_min"]).clip(lower=FLOOR))


def _of_reference(T1: float) -> float:
    """What backpropagation through T1 steps costs with the free phase; a forward pass is one step."""
    return float((Count(force=max(1, int(T1))) + REFERENCE.phase.count(int(T1), None)).work)


def _mark_reference(ax: Axes, here: DataFrame) -> None:
    """Triangles on the axis of cost: what backpropagation itself costs at every T1."""
    marks = here.dropna(subset=["reference_cost"]).drop_duplicates("T1")
    bottom = ax.get_xaxis_transform()
    for cost, T1 in zip(marks["reference_cost"], marks["T1"], strict=True):
        ax.plot([cost], [0], "^", color="black", markersize=look.pt(5), transform=bottom, clip_on=False, zorder=4)
        small = look.pt(look.VALUE)
        ax.text(cost, 0.04, f"$T_1\\,=\\,${T1:g}", transform=bottom, size=small, rotation=90, ha="center", va="bottom")


def _front(rows: DataFrame) -> DataFrame:
    """Settings with a smaller error than every cheaper one."""
    rows = rows.sort_values(["cost", "error"])
    return rows[rows["error"] < rows["error"].cummin().shift(fill_value=float("inf"))]


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_vs_cost": lambda tables: draw_error_vs_cost(tables.cells)
}
