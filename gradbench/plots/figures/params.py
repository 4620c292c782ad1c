"""Which parameters a rule gets right: cosine to BPTT by parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import Patch

from gradbench.plots import bands, hold, look, titles
from gradbench.plots.scale import SPACED, floored, limits_of, show_cosines
from gradbench.plots.wording import cosine, percent
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

WIDE = 530.0  # points of a panel's width, where the names of parameters stand
WHOLE = "whole g"  # the gradient of all parameters as one vector
TOGETHER = 0.8  # of the place of a parameter, that its bars fill
SMALL = 6.5  # points of the numbers above bars
CLOSE = 1.3  # widths of a bar that a number above it may have: the numbers beside it mostly stand at another height
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.2}  # behind them, over the dashed line
UNDEFINED = "undefined in every seed"  # what a hatched field of the matrix says
SHADE = "#F3EBC6"  # behind the parameter that decides it


@look.themed
def draw_params(cells: DataFrame, params: DataFrame) -> Figure | None:
    """Settled cells at one point a system: bars at the worst seed, whiskers up to the best.

    The whole gradient stands on the left. A parameter that holds most of |g|² is shaded, since it alone decides that.
    """
    cells = hold.estimates(cells)
    if bands.crowded(cells["estimator_label"]):
        return _matrix(cells, params)
    styles = look.styles(cells)
    cells, left_out = hold.main_forms(cells)
    rows = _rows(cells, params)
    if not rows:
        return None
    unsettled = sorted(set(cells["system_label"]) - {place.system for place in rows})

    drawn = set(pd.concat(rows.values())["estimator_label"])
    styles = {label: styles[label] for label in look.in_order(drawn)}
    slots = 1 + max(here["param"].nunique() for here in rows.values())  # as many in all rows, so that bars are equal
    longest = {
        place: max(look.length(_name(name, here, ", "), look.VALUE) for name in here["param"].unique())
        if any(look.length(name, look.VALUE) + look.VALUE > WIDE / slots for name in here["param"].unique())
        else 0.0
        for place, here in rows.items()
    }
    upright = {place: name for place, name in longest.items() if name + look.VALUE > WIDE / slots}
    said = {place: _said(place, here) for place, here in rows.items()}
    lines = sum(len(text.split("\n")) for text in said.values())
    figure = look.figure(0.6 + 1.55 * len(rows) + look.LINE * lines + sum(upright.values()) / 72)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, (place, here) in zip(axes, rows.items(), strict=True):
        _panel(ax, here, styles, slots)
        between = ", " if place in upright else "\n"
        names = [_name(label.get_text(), here, between) for label in ax.get_xticklabels()]
        ax.set_xticks(ax.get_xticks(), names, rotation=90 if place in upright else 0)
        ax.set_xlim(-0.5, slots - 0.5)
        ax.set_title(said[place], loc="left", weight="bold", size=look.pt(look.ROW))
    values = np.concatenate([here[n].to_numpy(float) for here in rows.values() for n in ("cosine", "cosine_whole")])
    show_cosines(list(axes), values)
    handles: list[Patch | Line2D] = [
        Patch(
            facecolor=style.colour,
            edgecolor="black",
            linewidth=0.6,
            hatch=style.hatch or None,
            label=look.words(label),
        )
        for label, style in styles.items()
    ]
    if any(titles.dominant(here) for here in rows.values()):
        handles.append(Patch(facecolor=SHADE, edgecolor=look.GREY, linewidth=0.6, label="decides the whole gradient"))
    look.strip(figure, [*handles, look.followed_key()], 5)
    look.title(figure, titles.of_params({place.system: here for place, here in rows.items()}))
    look.caption(
        figure,
        [
            "Cosine to BPTT by parameter, settled cells only: bars at the worst seed with a cosine, whiskers up",
            "to the best; on the left the whole gradient. Numbers, where there is room: cosines of the worst seed",
            f"below {look.FOLLOWS:g}, and that of the whole gradient for such a rule. Yellow: a parameter that holds",
            f"over {titles.DOMINATES:.0%}",
            "of the squared norm of the reference.",
            *([f"Nothing settled there: {', '.join(unsettled)}."] if unsettled else []),
            "A bar that says undefined has no cosine in any seed: its reference is zero, not finite or below the",
            "floor of liveness, or its estimate is not finite. An estimate of zero has cosine 0.",
            *limits_of(values),
            *left_out,
        ],
    )
    return figure


def _rows(cells: DataFrame, params: DataFrame) -> dict[hold.Place, DataFrame]:
    """The parameters of the settled cells of every system at its point, where there are some."""
    rows = {}
    for place, here in hold.by_system(cells).items():
        here = here[here["status"] == Status.SETTLED]
        if not here.empty:
            rows[place] = here.merge(params, on="cell", suffixes=("_whole", ""))
    return rows


def _matrix(cells: DataFrame, params: DataFrame) -> Figure | None:
    """The worst settled seed of many rules: a column a parameter, after that of the whole gradient."""
    kinds, rows = bands.kinds(cells), _rows(cells, params)
    if not rows:
        return None
    shown = {place.system: here for place, here in rows.items()}
    shown = {system: shown[system] for system in kinds if system in shown}
    large = {system: titles.dominant(here) for system, here in shown.items()}
    groups = [
        bands.Group(system, kinds[system], (WHOLE, *here["param"].unique()), (large[system] or ("",))[0])
        for system, here in shown.items()
    ]
    frame = Patch(
        facecolor="none", edgecolor="black", label=f"holds over {titles.DOMINATES:.0%} of $|g|^2$: decides {WHOLE}"
    )
    figure = bands.of_cosines(_worst(shown), groups, UNDEFINED, *([frame] if any(large.values()) else []))
    look.title(figure, titles.of_params(shown))
    unsettled = sorted(kinds.keys() - shown.keys())
    look.caption(
        figure,
        [
            "A field is the cosine to BPTT of a parameter in the worst settled seed; the first column of a system is",
            "the whole gradient. A cosine is undefined where the reference is zero, not finite or below the floor of",
            "liveness, or the estimate is not finite; an estimate of zero has cosine 0.",
            bands.spacing(),
            *([f"Nothing settled there: {', '.join(unsettled)}."] if unsettled else []),
            bands.held_at(rows),
        ],
    )
    return figure


def _worst(systems: dict[str, DataFrame]) -> dict[bands.Place, float]:
    """The smallest cosine over settled seeds, by rule, system and parameter; NaN where no seed has one."""
    worst: dict[bands.Place, float] = {}
    for system, here in systems.items():
        least = _with_whole(here).groupby(["estimator_label", "param"])["cosine"].min()
        worst |= {(rule, system, param): float(of) for (rule, param), of in least.items()}
    return worst


def _said(place: hold.Place, here: DataFrame) -> str:
    """The title of a row."""
    point = f"{place.point}, {look.count(here['seed'].nunique(), 'seed')}"
    return look.row_title(titles.of_params_row(place.system, here), point, WIDE)


def _with_whole(here: DataFrame) -> DataFrame:
    """The rows of parameters after those of the whole gradient, once a cell."""
    whole = here.drop_duplicates("cell")
    return pd.concat([whole.assign(param=WHOLE, cosine=whole["cosine_whole"]), here], ignore_index=True)


def _panel(ax: Axes, here: DataFrame, styles: dict[str, look.Style], slots: int) -> None:
    names, labels = [WHOLE, *here["param"].unique()], list(styles)
    look.followed(ax, zorder=3)  # above the bars, which reach it from below
    if large := titles.dominant(here):
        place = names.index(large[0])
        ax.axvspan(place - 0.5, place + 0.5, facecolor=SHADE, edgecolor=look.GREY, linewidth=0.6, zorder=0)
    here = _with_whole(here)
    sns.barplot(
        here.assign(cosine=floored(here["cosine"])),
        x="param",
        y="cosine",
        hue="estimator_label",
        order=names,
        hue_order=labels,
        palette={label: s.colour for label, s in styles.items()},
        saturation=1,
        estimator="min",
        errorbar=("pi", 100),
        err_kws={"linewidth": 1.2, "color": "black"},
        legend=False,
        zorder=2,
        ax=ax,
    )
    for bars, label in zip(ax.containers, labels, strict=True):
        for bar in bars:  # the edge shows a bar of nearly zero, the hatch tells rules apart in grey
            bar.set(edgecolor="black", linewidth=0.6, hatch=styles[label].hatch or None)
    _write_values(ax, here, names, labels, WIDE / slots)
    ax.set(xlabel="", ylabel=f"cosine to BPTT\n{SPACED}")
    ax.grid(visible=False, axis="x")
    ax.axvline(0.5, color=look.GREY, linewidth=0.9)
    width = TOGETHER / len(labels)
    undefined = here["cosine"].isna().groupby([here["param"], here["estimator_label"]]).all()
    for i, name in enumerate(names):
        without = [label for label in labels if undefined.get((name, label), False)]
        places = {i + (labels.index(label) - (len(labels) - 1) / 2) * width: styles[label].colour for label in without}
        if len(without) == len(labels) > 1:  # said once, where it is so of every rule
            places = {i: look.GREY}
        for x, colour in places.items():
            small = look.pt(look.VALUE)
            ax.text(x, 0.02, "undefined", rotation=90, size=small, ha="center", va="bottom", color=colour)


def _write_values(ax: Axes, here: DataFrame, names: list[str], labels: list[str], slot: float) -> None:
    """The cosines of the parameters that a rule misses, and its whole gradient's, where they have room above the bars.

    A parameter has `slot` points of the width.
    """
    width = TOGETHER / len(labels)
    seeds = here.groupby(["estimator_label", "param"])["cosine"].agg(["min", "max"]).dropna()
    for i, label in enumerate(labels):
        of_rule = seeds.loc[label] if label in seeds.index else seeds.iloc[:0].droplevel(0)
        missed = of_rule["min"] < look.FOLLOWS
        for param, (worst, best) in of_rule[missed | (missed.any() & (of_rule.index == WHOLE))].iterrows():
            text = cosine(worst)
            if look.length(text, SMALL) > CLOSE * width * slot:
                continue
            x = names.index(str(param)) + (i - (len(labels) - 1) / 2) * width
            top = max(float(floored(best)), 0.0)
            at: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "bbox": PAPER}
            ax.annotate(text, (x, top), (0, look.pt(1.5)), size=look.pt(SMALL), **at)


def _name(param: str, here: DataFrame, between: str) -> str:
    """A parameter below its bars, with its share of |g|² where that decides the whole gradient."""
    large = titles.dominant(here)
    return f"{param}{between}{percent(large[1])} of $|g|^2$" if large and large[0] == param else param


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "params": lambda tables: draw_params(tables.cells, tables.params)
}
