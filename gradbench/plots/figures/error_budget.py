"""Where the error comes from: its causes, stacked, along depth, nudge and free phase."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradbench.plots import hold, look
from gradbench.vocabulary.cause import CAUSES, column
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

KNOBS = ("T1", "T2", "beta")  # a panel each, from left to right: the knobs that bring an error of their own
RULES = ("ep", "aep")  # the default form of each has a bar, from left to right
TOP = 1.25  # bars are cut here; how wrong an estimate is no longer matters where its error exceeds its reference
WITHOUT = (Status.DIVERGED, Status.COLLAPSED, Status.UNDEFINED)  # statuses of cells whose error says nothing
LEAST = 0.012  # height of the bar of a faithful cell, whose error is too small to be seen; no bar means no cell
PALETTE = (
    "#56B4E9", "#332288", "#0072B2", "#D55E00", "#882255", "#999933", "#E69F00", "#CC79A7", "#117733", "#000000"
)  # fmt: skip
COLOURS = dict(zip(map(column, CAUSES), itertools.chain(PALETTE, itertools.repeat(look.GREY)), strict=False))


@look.themed
def draw_error_budget(cells: DataFrame, budget: DataFrame) -> Figure | None:
    """A bar for each rule and value: its height is the error, its parts are proportional to the steps of the ladder."""
    shown = cells[cells["estimator_label"].isin(RULES) & ~cells["status"].isin(WITHOUT)]
    ladders = budget.merge(shown[["cell", "cause_of"]], left_on=["cell", "param"], right_on=["cell", "cause_of"])
    panels: dict[str, dict[str, tuple[str, DataFrame]]] = {}
    for knob in KNOBS:
        for title, here in hold.by_system(hold.estimates(shown), free=(knob,)).items():
            here = here[here["cell"].isin(ladders["cell"]) | here["cause"].isna()]
            if here[knob].nunique() > 1 and here["cause"].notna().any():
                system, _, point = title.partition("   at ")
                panels.setdefault(system, {})[knob] = point, here
    if not panels:
        return None
    figure = Figure(figsize=(look.WIDTH, 0.9 + 2.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(KNOBS), sharey=True, squeeze=False)
    seen: dict[str, None] = {}
    for line, (system, by_knob) in zip(axes, panels.items(), strict=True):
        for ax, knob in zip(line, KNOBS, strict=True):
            ax.set_visible(knob in by_knob)
        for ax, knob in [(ax, knob) for ax, knob in zip(line, KNOBS, strict=True) if knob in by_knob]:
            point, here = by_knob[knob]
            seen |= dict.fromkeys(_bars(ax, here, ladders, knob))
            first = knob == next(iter(by_knob))
            ax.set_title(f"{system if first else ''}\nat {point}", loc="left", fontsize=8)
            ax.tick_params(labelleft=first)
            ax.set_ylabel("relative error" if first else "")
    handles = [Patch(color=COLOURS[name], label=name.replace("_", " ")) for name in COLOURS if name in seen]
    handles.append(Patch(color="0.85", label="faithful"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False)
    look.caption(
        figure,
        [
            "Error of the whole gradient, or where that is faithful of the worst parameter, mean over seeds; left bar",
            "naive EP, right bar asymmetric EP. Parts are the steps of the ladder, scaled to the error, and cut at",
            f"{TOP:g}. Hatched: some seeds are not settled.",
        ],
    )
    return figure


def _bars(ax: Axes, here: DataFrame, ladders: DataFrame, knob: str) -> list[str]:
    """Draw the bars of one panel; the causes that were drawn."""
    values, seen = sorted(here[knob].unique()), []
    for k, rule in enumerate(RULES):
        for x, value in enumerate(values):
            rows = here[(here[knob] == value) & (here["estimator"] == rule)]
            if rows.empty:
                continue
            parts = ladders[ladders["cell"].isin(rows["cell"])]
            steps = parts[list(COLOURS)].astype(float).fillna(0.0)
            finite = np.isfinite(steps.to_numpy()).all(1) & np.isfinite(parts["rel_error"])
            shares = steps[finite].div(steps[finite].sum(axis=1), axis=0)
            heights = shares.mul(parts["rel_error"][finite].clip(upper=TOP), axis=0).sum() / len(rows)
            lost = (~finite).sum() * TOP / len(rows)
            bottom, left = 0.0, x + 0.42 * (k - 0.5)
            hatch = "////" if (rows["status"] != "settled").any() else None
            faithful = rows.loc[rows["cause"].isna(), "rel_error"].sum() / len(rows)
            faithful = max(faithful, LEAST) if rows["cause"].isna().any() else 0.0
            for name, height in [*heights.items(), ("nonlinearity_in_beta", lost), ("", faithful)]:
                if height > 0.004:
                    face = COLOURS.get(str(name), "0.85")
                    ax.bar(left, height, 0.38, bottom, color=face, hatch=hatch, edgecolor="white", linewidth=0.3)
                    bottom += height
                    seen += [str(name)] if name else []
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    ax.set(xlabel=COORDINATES[knob].axis, xlim=(-0.6, len(values) - 0.4), ylim=(0, TOP * 1.02))
    ax.grid(axis="x", visible=False)
    return seen


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_budget": lambda tables: draw_error_budget(tables.cells, tables.budget)
}
