"""Two runs, or two rules, cell by cell: one metric against the other, and what changed by system and rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.lines import Line2D

from gradbench.plots import look
from gradbench.plots.wording import MINUS, part, short
from gradbench.tables.text import capital, listed
from gradbench.vocabulary.notation import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAMED = 3  # cells that are named: those that lost the most beyond noise
ROOM = 0.28  # for these names, of the width of the panel
SHOWN = "cosine_min"  # the metric that is paired, where it was compared
SEEN = 1e-4  # a smaller loss is white in the heat map
DARK = 0.3  # a larger one is dark there
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
    figure = look.figure(height)
    apart = {"wspace": 0.08}  # the names at the map keep clear of the frame on their left
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1), gridspec_kw=apart)
    styles = look.styles(pairs)
    _scatter(left, shown, metric, sides, styles)
    empty = _changes(figure, right, pairs, metrics)
    rules = look.in_order({str(label) for label in shown["estimator_label"]})
    dots = [
        Line2D([], [], color=styles[r].colour, marker=styles[r].marker, linestyle="", label=look.words(r))
        for r in rules
    ]
    if len(dots) > 1:
        look.strip(figure, dots, 4)
    look.title(figure, f"From {sides[0]} to {sides[1]}: {losses(pairs, metric)}")
    look.caption(figure, [*sentences, *(["White, crossed: no number to compare."] if empty else [])])
    return figure


def losses(pairs: DataFrame, metric: str) -> str:
    """In how many cells a metric is worse than noise allows, and better, and in how many others lost."""
    worse = ~(pairs["loss"] <= pairs["allowed"])  # a loss that is not a number is one, too
    lost = pairs[worse]["metric"].value_counts(sort=False)
    shown = pairs["metric"] == metric
    better = int((pairs[shown]["loss"] < -pairs[shown]["allowed"]).sum())
    others = [f"{name} ({count})" for name, count in lost.items() if name != metric]
    where = part(int(lost.get(metric, 0)), int(shown.sum()))
    first = f"{metric} is worse beyond noise in {where} cells, better in {better}"
    return f"{first}; worse in others: {listed(others)}" if others else f"{first}; no other metric lost in any cell"


def _scatter(ax: Axes, shown: DataFrame, metric: str, sides: tuple[str, str], styles: dict[str, look.Style]) -> None:
    for label, rows in shown.groupby("estimator_label", sort=True):
        style = styles[str(label)]
        kind: dict[str, Any] = {"marker": style.marker, "s": look.pt(style.size) ** 2, "color": style.colour}
        ax.scatter(rows["a"], rows["b"], alpha=0.7, zorder=3, **kind)
    ends = shown[["a", "b"]].to_numpy(float)
    low, high = np.min(ends[np.isfinite(ends)]), np.max(ends[np.isfinite(ends)])
    ax.plot([low, high], [low, high], color=look.GREY, linewidth=0.9, zorder=2)
    beyond = shown[shown["loss"] > shown["allowed"]]
    for place, row in enumerate(beyond.sort_values("loss", ascending=False).head(NAMED).to_dict("records")):
        at = (8, -10 * (place + 1))  # points
        if np.isfinite(row["b"]):
            ax.annotate(row["cell"][:8], (row["a"], row["b"]), at, textcoords="offset points", size=look.pt(7.5))
    if len(beyond):  # a name stands to the right of its dot, within the panel; there is no value to mark there
        left, right = ax.get_xlim()
        ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= right])
        ax.set_xlim(left, right + ROOM * (high - low))
    words = METRICS[metric].axis
    ax.set(xlabel=f"{words}\n{sides[0]}", ylabel=f"{sides[1]}\n{words}", title=_moved(shown))


def _moved(shown: DataFrame) -> str:
    """The title of the scatter: how many of its cells lost more than noise allows."""
    worse = int((~(shown["loss"] <= shown["allowed"])).sum())
    return f"{capital(part(worse, len(shown)))} cells worse than noise (line: no change)"


def _changes(figure: Figure, ax: Axes, pairs: DataFrame, metrics: Sequence[str]) -> bool:
    """The heat map; whether a field of it has no number."""
    worst = pairs.pivot_table(index=["system_label", "estimator_label"], columns="metric", values="loss", aggfunc="max")
    worst = worst[list(metrics)]
    values = np.clip(worst.to_numpy(float), -10, 10)
    norm = SymLogNorm(SEEN, vmin=-10, vmax=10)
    image = ax.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", norm=norm, aspect="auto")
    ax.set_xticks(range(len(metrics)), metrics, rotation=40, ha="right")
    ax.set_yticks(range(len(worst)), _row_names(list(worst.index)), size=look.pt(7))
    ax.grid(visible=False)
    empty = np.isnan(values)
    for row, column in zip(*np.nonzero(empty), strict=True):  # as white as no change, but for the cross
        ax.plot(column, row, marker="x", markersize=5, color=look.GREY)
    for row, column in zip(*np.nonzero(np.abs(values) > SEEN), strict=True):  # in grey both ends are dark
        sign = "+" if values[row, column] > 0 else MINUS
        ax.text(column, row, sign, ha="center", va="center", size=look.pt(look.VALUE), color=_ink(values[row, column]))
    ax.set_title(f"Largest loss in a metric (orange, +: worse; violet, {MINUS}: better)")
    figure.colorbar(image, ax=ax, shrink=0.8, ticks=[-1, -1e-2, 0, 1e-2, 1], format="%g")
    return bool(empty.any())


def _ink(value: float) -> str:
    return "white" if abs(value) > DARK else "black"


def _row_names(labels: Sequence[tuple[str, str]]) -> list[str]:
    """System and rule of every row, with the options in which labels of one name differ, and the rule never cut."""
    columns = [list(column) for column in zip(*labels, strict=True)]
    systems, rules = ([short(column)[label] for label in column] for column in columns)
    room = [max(WORDS - len(f" / {rule}"), LEAST) for rule in rules]
    cut = [s if len(s) <= n else f"{s[: n - 3]}..." for s, n in zip(systems, room, strict=True)]
    return [f"{system} / {rule}" for system, rule in zip(cut, rules, strict=True)]
