"""Cosine to BPTT along one coordinate, a figure each: the whole gradient, mean, worst parameter and attention.

beta  Bias falls with beta, rounding grows. In float64 (pale) the error falls all the way; in float32 it turns back
      where beta is too small.
T1    How much free phase a comparison needs. Hollow points have no fixed point to compare at.
T2    Truncation. A rule that is right rises with T2; one that is biased stops at its bias.
s     Coupling. The stronger it is, the further off is a rule that assumes a symmetric Jacobian.
damp  Damping. What it costs and gains to force a fixed point.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.lines import Line2D

from gradbench.plots import bands, hold, look, sweep_titles
from gradbench.plots.parameterwise import with_missed
from gradbench.plots.scale import SPACED, floored, limits_of, show_cosines
from gradbench.plots.wording import equal
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Index

    from gradbench.plots.sources import Tables

RAIL = -0.06  # of a panel's height: where values with cells without a cosine are marked, below the axis
PANELS = 0.87  # of the width of the figure: the rest is the axis of cosines, and space
SHOWN = ("cosine", "cosine_mean", "cosine_min", "cosine_attn")


@look.themed
def draw_cosine_sweep(cells: DataFrame, params: DataFrame, x: str) -> Figure | None:
    """Cosines against the coordinate x, the others held: a row a system, a marker a seed."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells = cells[cells[x].notna()]
    rows = hold.by_system(cells, free=(x,), dtypes=x == "beta")  # dtypes differ in rounding
    # a rule is drawn where it has two points for a line
    rows = {place: here[here.groupby("estimator_label")[x].transform("nunique") > 1] for place, here in rows.items()}
    rows = {place: here for place, here in rows.items() if here.dropna(subset=["cosine"])[x].nunique() > 1}
    if not rows:
        return None
    if bands.crowded(pd.concat(rows.values())["estimator_label"]):
        return _matrix(cells, rows, x)
    rows = {place: with_missed(here, params) for place, here in rows.items()}

    # a system without attention has no panel for it; the title of a column stands in its first row
    has = {place: [metric for metric in SHOWN if here[metric].notna().any()] for place, here in rows.items()}
    columns = [metric for metric in SHOWN if any(metric in metrics for metrics in has.values())]
    first = {metric: next(place for place, metrics in has.items() if metric in metrics) for metric in columns}
    said = {
        place: look.row_title(
            sweep_titles.of_sweep(place.system, here, x) if len(rows) > 1 else "", _point(place, here, x)
        )
        for place, here in rows.items()
    }
    heights = [1.75 + 0.35 * (place in first.values()) + look.LINE * len(said[place].split("\n")) for place in rows]
    heights[-1] += 0.25  # for the label of x
    figure = look.figure(0.6 + sum(heights))
    strips = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels: list[Axes] = []
    width = PANELS * look.room(figure) / len(columns)
    for strip, (place, here) in zip(strips, rows.items(), strict=True):
        look.head(strip, said[place])
        for ax, metric in zip(strip.subplots(1, len(columns), sharey=True), columns, strict=True):
            if metric not in has[place]:
                ax.set_axis_off()
                absent = f"no {METRICS[metric].words}"
                ax.text(
                    0.5, 0.5, absent, transform=ax.transAxes, ha="center", color=look.GREY, size=look.pt(look.VALUE)
                )
                continue
            _panel(ax, here, x, metric, styles, width)
            ax.set_title(look.metric(metric) if place == first[metric] else "")
            ax.set_xlabel(COORDINATES[x].axis if strip is strips[-1] else "")
            ax.set_ylabel(f"cosine to BPTT\n{SPACED}" if metric == columns[0] else "")
            panels.append(ax)
    drawn = pd.concat(rows.values())
    show_cosines(panels, drawn[list(SHOWN)])
    named = {label: styles[label] for label in drawn["estimator_label"].unique()}
    hollow = bool((drawn[drawn["cosine"].notna()]["status"] != Status.SETTLED).any())
    look.legend(figure, named, _keys(drawn, x), hollow=hollow)
    look.title(figure, sweep_titles.of_sweeps({place.system: here for place, here in rows.items()}, x))
    look.caption(
        figure,
        [
            f"Cosine to BPTT against {COORDINATES[x].words}: {len(drawn)} cells, a point a seed,",
            "lines at the worst of the seeds that are settled at every value of a line.",
            *look.without(drawn[drawn["cosine"].isna()]),
            *limits_of(drawn[list(SHOWN)]),
        ],
    )
    return figure


def _matrix(cells: DataFrame, rows: dict[hold.Place, DataFrame], x: str) -> Figure:
    """The worst parameter of the worst seed of many rules: a column a value of x."""
    kinds = bands.kinds(cells)
    shown = {place.system: hold.one_dtype(here) for place, here in rows.items()}
    shown = {system: shown[system] for system in kinds if system in shown}
    cosines = _worst(shown, x)
    groups = [
        bands.Group(system, kinds[system], tuple(hold.number(value) for value in sorted(here[x].unique())))
        for system, here in shown.items()
    ]
    figure = bands.of_cosines(cosines, groups, bands.SILENT, columns=f"{COORDINATES[x].symbol or x} =")
    of = {place.system: here for place, here in rows.items()}
    look.title(figure, sweep_titles.of_crowded_sweeps(of, x, kinds))
    word = COORDINATES[x]
    look.caption(
        figure,
        [
            "A field is the cosine to BPTT of the worst parameter in the worst settled seed; columns of a system are",
            f"values of {word.words} {word.symbol}.",
            bands.spacing(),
            bands.held_at(hold.Place(system, point.removesuffix(", float64")) for system, point in rows),
        ],
    )
    return figure


def _worst(systems: dict[str, DataFrame], x: str) -> dict[bands.Place, float]:
    """The smallest cosine over parameters and settled seeds, by rule, system and value; NaN where none is settled."""
    worst: dict[bands.Place, float] = {}
    for system, here in systems.items():
        known = here["cosine_min"].where(here["status"] == Status.SETTLED)
        least = known.groupby([here["estimator_label"], here[x]]).min()
        worst |= {(rule, system, hold.number(value)): float(of) for (rule, value), of in least.items()}
    return worst


def _point(place: hold.Place, here: DataFrame, x: str) -> str:
    """The point at which a row is held, and where it has how many seeds, if these are not the same along x."""
    seeds = here.groupby(x)["seed"].nunique()
    at = [(number, list(values.index)) for number, values in seeds.groupby(seeds)]
    said = [f"{look.count(number, 'seed')} at {equal(x, values)}" for number, values in reversed(at)]
    return f"{place.point}; {', '.join(said)}" if len(at) > 1 else place.point


def _everywhere(rows: DataFrame, x: str) -> Index[int]:
    """The seeds that have every value of x. A line through other seeds at other values would bend for that alone."""
    values = rows.groupby("seed")[x].nunique()
    return values.index[values == rows[x].nunique()]


def _through(drawn: DataFrame, x: str) -> str:
    """Which seeds the lines go through, in words."""
    settled = drawn[drawn["status"] == Status.SETTLED]
    lines = [_everywhere(rows, x) for _, rows in settled.groupby(["system_label", "estimator_label", "dtype"])]
    seeds = {seed for of in lines for seed in of}
    if len(seeds) == 1:
        return f"line: seed {seeds.pop()}, the only one run at every value"
    alone = any(len(of) == 1 for of in lines)
    return "line: worst seed of those run at every value" + " (one in some rows)" * alone


def _keys(drawn: DataFrame, x: str) -> list[Line2D]:
    line = Line2D([], [], color=look.GREY, linewidth=2, label=_through(drawn, x))
    keys = [look.followed_key(), line]
    if statuses := sorted(set(drawn[drawn["cosine"].isna()]["status"])):
        words = f"below the axis: {', '.join(statuses)}, no cosine".replace("_", " ")
        keys.append(Line2D([], [], color=look.GREY, linestyle="", marker="x", markersize=look.pt(5), label=words))
    if (drawn.groupby("system_label")["dtype"].nunique() > 1).any():
        keys.append(Line2D([], [], color=look.GREY, linewidth=4, alpha=0.3, label=look.PALE_WIDE))
    return keys


def _panel(ax: Axes, here: DataFrame, x: str, metric: str, styles: dict[str, look.Style], width: float) -> None:
    word = COORDINATES[x]
    ticks = sorted(here[x].unique())
    low, high = ticks[0], ticks[-1]
    if word.log:
        ax.set_xscale("log")
        ax.set_xlim(low * (low / high) ** 0.08, high * (high / low) ** 0.08)
    else:
        ax.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    look.label_values(ax, ticks, list(map(hold.number, ticks)), width)
    # a value with cells that have no cosine gets a cross on a rail below the axis
    absent = here[here["cosine"].isna()][x].unique()
    if len(absent):
        rail: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(absent, [RAIL] * len(absent), "x", color=look.GREY, markersize=look.pt(5), **rail)
        ax.tick_params(axis="x", pad=look.pt(10))
    look.followed(ax)
    here = here[["estimator_label", "dtype", "status", "seed", x]].assign(**{metric: floored(here[metric])})
    for dtype, rows in here.groupby("dtype"):
        pale = dtype == "float64" and here["dtype"].nunique() > 1
        for _, style, of_rule in look.by_style(rows, styles):
            settled = of_rule[of_rule["status"] == Status.SETTLED]
            worst = settled[settled["seed"].isin(_everywhere(settled, x))].groupby(x)[metric].min()
            look.line(ax, worst, style, *((4, 0.3) if pale else ()))
            look.points(ax, of_rule, x, metric, style, alpha=0.35 if pale else 1)


def _sweep(x: str, tables: Tables) -> Figure | None:
    return draw_cosine_sweep(tables.cells, tables.params, x)


# There is a sweep for every coordinate that titles name. The step size and the batch are held in all figures.
FIGURES: dict[str, Callable[[Tables], Figure | None]] = {f"cosine_vs_{x}": partial(_sweep, x) for x in hold.ALWAYS}
