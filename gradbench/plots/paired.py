"""Two runs, or two rules, cell by cell: one metric against the other, and what changed by system and rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradbench.plots import look
from gradbench.vocabulary.notation import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from pandas import DataFrame

NAMED = 3  # cells that are named: those that lost the most beyond noise
ROOM = 0.28  # for these names, of the width of the panel
SHOWN = "cosine_min"  # the metric that is paired, where it was compared
WORDS = 34  # letters of a row of the heat map
LEAST = 12  # of these for the system, however long the name of the rule is


@look.themed
def draw_comparison(pairs: DataFrame, sides: tuple[str, str], sentences: Sequence[str]) -> Figure | None:
    """A scatter of pairs with the worst cells named, and a heat map of the largest loss; None where there is no pair.

    pairs: cell, metric, a, b, allowed, loss, system_label, estimator_label
    sides: what the first and the second number of a pair are of
    """
    if pairs.empty:
        return None
    metrics = list(dict.fromkeys(pairs["metric"]))
    metric = SHOWN if SHOWN in metrics else metrics[0]
    shown = pairs[pairs["metric"] == metric]
    groups = pairs.groupby(["system_label", "estimator_label"], sort=False)
    height = max(4.0, 0.34 * len(groups) + 1.6)
    figure = Figure(figsize=(look.WIDTH, height), layout="constrained")
    apart = {"wspace": 0.08}  # the names at the map keep clear of the frame on their left
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1), gridspec_kw=apart)
    _scatter(left, shown, metric, sides)
    empty = _changes(figure, right, pairs, metrics)
    rules = look.in_order({str(label) for label in shown["estimator_label"]})
    dots = [Line2D([], [], color=look.colour(r.partition(" ")[0]), marker="o", linestyle="", label=r) for r in rules]
    if len(dots) > 1:
        look.strip(figure, dots, 4)
    look.caption(figure, [*sentences, *(["White, crossed: no number to compare."] if empty else [])])
    return figure


def _scatter(ax: Axes, shown: DataFrame, metric: str, sides: tuple[str, str]) -> None:
    for label, rows in shown.groupby("estimator_label", sort=True):
        ax.scatter(rows["a"], rows["b"], s=16, color=look.colour(str(label).partition(" ")[0]), alpha=0.7, zorder=3)
    ends = shown[["a", "b"]].to_numpy(float)
    low, high = np.min(ends[np.isfinite(ends)]), np.max(ends[np.isfinite(ends)])
    ax.plot([low, high], [low, high], color=look.GREY, linewidth=0.9, zorder=2)
    beyond = shown[shown["loss"] > shown["allowed"]]
    for place, row in enumerate(beyond.sort_values("loss", ascending=False).head(NAMED).to_dict("records")):
        at = (8, -10 * (place + 1))  # points
        if np.isfinite(row["b"]):
            ax.annotate(row["cell"][:8], (row["a"], row["b"]), at, textcoords="offset points", size=7.5)
    if len(beyond):  # a name stands to the right of its dot, within the panel; there is no value to mark there
        left, right = ax.get_xlim()
        ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= right])
        ax.set_xlim(left, right + ROOM * (high - low))
    words = METRICS[metric].axis
    ax.set(xlabel=f"{words}\n{sides[0]}", ylabel=f"{sides[1]}\n{words}", title="Cell by cell (line: no change)")


def _changes(figure: Figure, ax: Axes, pairs: DataFrame, metrics: Sequence[str]) -> bool:
    """The heat map; whether a field of it has no number."""
    worst = pairs.pivot_table(index=["system_label", "estimator_label"], columns="metric", values="loss", aggfunc="max")
    worst = worst[list(metrics)]
    values = np.clip(worst.to_numpy(float), -10, 10)
    norm = SymLogNorm(1e-4, vmin=-10, vmax=10)
    image = ax.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", norm=norm, aspect="auto")
    ax.set_xticks(range(len(metrics)), metrics, rotation=40, ha="right")
    ax.set_yticks(range(len(worst)), _row_names(list(worst.index)), size=7)
    ax.grid(visible=False)
    empty = np.isnan(values)
    for row, column in zip(*np.nonzero(empty), strict=True):  # as white as no change, but for the cross
        ax.plot(column, row, marker="x", markersize=5, color=look.GREY)
    ax.set_title("Largest loss (orange: worse)")
    figure.colorbar(image, ax=ax, shrink=0.8, ticks=[-1, -1e-2, 0, 1e-2, 1], format="%g")
    return bool(empty.any())


def _row_names(labels: Sequence[tuple[str, str]]) -> list[str]:
    """System and rule of every row, with the options in which labels of one name differ, and the rule never cut."""
    systems, rules = (_short(list(column)) for column in zip(*labels, strict=True))
    room = [max(WORDS - len(f" / {rule}"), LEAST) for rule in rules]
    cut = [s if len(s) <= n else f"{s[: n - 3]}..." for s, n in zip(systems, room, strict=True)]
    return [f"{system} / {rule}" for system, rule in zip(cut, rules, strict=True)]


def _short(labels: Sequence[str]) -> list[str]:
    """Labels without the options that all labels of their name have."""
    words = [label.split() for label in labels]
    shared = {name: set.intersection(*(set(w) for w in words if w[0] == name)) for name in {w[0] for w in words}}
    return [" ".join([w[0], *(option for option in w[1:] if option not in shared[w[0]])]) for w in words]
