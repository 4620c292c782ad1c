"""Which parameters a rule gets right: cosine to BPTT by parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradbench.plots import hold, look
from gradbench.plots.scale import FLOOR_WORDS, SPACED, floored, show_cosines
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

WIDE = 530.0  # points of a panel's width, where the names of parameters stand


@look.themed
def draw_params(cells: DataFrame, params: DataFrame) -> Figure | None:
    """Settled cells at one point a system: bars at the median of seeds, whiskers from the smallest to the largest."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells, left_out = hold.main_forms(cells)
    rows = {}
    for title, here in hold.by_system(cells).items():
        here = here[here["status"] == Status.SETTLED]
        if not here.empty:
            seeds = look.count(here["seed"].nunique(), "seed")
            rows[f"{title}, {seeds}"] = here.merge(params, on="cell", suffixes=("_whole", ""))
    if not rows:
        return None
    unsettled = sorted(
        set(cells["system_label"]) - {system for here in rows.values() for system in here["system_label"]}
    )

    drawn = set(pd.concat(rows.values())["estimator_label"])
    styles = {label: styles[label] for label in look.in_order(drawn)}
    slots = max(
        here["param"].nunique() for here in rows.values()
    )  # every row has this many places, so that bars are equally wide
    longest = {title: max(look.length(name, look.VALUE) for name in here["param"]) for title, here in rows.items()}
    upright = {title: name for title, name in longest.items() if name + look.VALUE > WIDE / slots}
    height = 0.6 + 1.75 * len(rows) + sum(upright.values()) / 72
    figure = Figure(figsize=(look.WIDTH, height), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, (title, here) in zip(axes, rows.items(), strict=True):
        _panel(ax, here, styles)
        ax.tick_params(axis="x", rotation=90 if title in upright else 0)
        ax.set_xlim(-0.5, slots - 0.5)
        ax.set_title(title, loc="left", weight="bold", size=9.5)
    show_cosines(list(axes), np.concatenate([here["cosine"].to_numpy(float) for here in rows.values()]))
    handles = [
        Patch(facecolor=style.colour, edgecolor="black", linewidth=0.6, hatch=style.hatch or None, label=label)
        for label, style in styles.items()
    ]
    look.strip(figure, handles, 5)
    look.caption(
        figure,
        [
            "Cosine to BPTT by parameter, settled cells only: bars at the median of seeds with a cosine, whiskers to",
            "the extremes.",
            *([f"Nothing settled there: {', '.join(unsettled)}."] if unsettled else []),
            "Undefined in every seed: the reference is zero, not finite or below the floor of liveness, or the",
            f"estimate is not finite. An estimate of zero has cosine 0. {FLOOR_WORDS.capitalize()}.",
            *left_out,
        ],
    )
    return figure


def _panel(ax: Axes, here: DataFrame, styles: dict[str, look.Style]) -> None:
    names, labels = list(here["param"].unique()), list(styles)
    sns.barplot(
        here.assign(cosine=floored(here["cosine"])),
        x="param",
        y="cosine",
        hue="estimator_label",
        order=names,
        hue_order=labels,
        palette={label: s.colour for label, s in styles.items()},
        saturation=1,
        estimator="median",
        errorbar=("pi", 100),
        err_kws={"linewidth": 1.2, "color": "black"},
        legend=False,
        ax=ax,
    )
    for bars, label in zip(ax.containers, labels, strict=True):
        for bar in bars:  # the edge shows a bar of nearly zero, the hatch tells rules apart in grey
            bar.set(edgecolor="black", linewidth=0.6, hatch=styles[label].hatch or None)
    ax.set(xlabel="", ylabel=f"cosine to BPTT\n{SPACED}")
    ax.grid(visible=False, axis="x")
    width = 0.8 / len(labels)
    undefined = here["cosine"].isna().groupby([here["param"], here["estimator_label"]]).all()
    for i, name in enumerate(names):
        without = [label for label in labels if undefined.get((name, label), False)]
        places = {i + (labels.index(label) - (len(labels) - 1) / 2) * width: styles[label].colour for label in without}
        if len(without) == len(labels) > 1:  # said once, where it is so of every rule
            places = {i: look.GREY}
        for x, colour in places.items():
            ax.text(x, 0.02, "undefined", rotation=90, size=8, ha="center", va="bottom", color=colour)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "params": lambda tables: draw_params(tables.cells, tables.params)
}
