"""Where each system settles, over coupling scale and damping, and how faithful each rule is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from gradbench.plots import hold, look, titles
from gradbench.plots.scale import COLOURS, SPACED, TOP, nines, tick, written
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

ACROSS = 3  # panels in a line
ORDER = list(Status)  # worst first
# Colours are pale, so that the words stand out. Cold colours are evidence, warm ones are none.
STATUSES = {
    Status.SETTLED: "#CFE3F1",
    Status.UNSTABLE: "#F6E8B1",
    Status.UNSETTLED: "#F9DDB1",
    Status.COLLAPSED: "#E3D3E4",
}
OTHER = "#F2C4B3"
NUMBERED = "A number in grey on a hatch says nothing of the rule."
SHORT = {Status.NUDGE_DIVERGED: "nudge\ndiverged"}


@look.themed
def draw_map_s_damp(cells: DataFrame) -> Figure | None:
    """Status and smallest cosine over s and damp. A number on a hatch is no evidence, since nothing settled there."""
    cells = hold.estimates(cells)
    cells, left_out = hold.main_forms(cells)
    rows = hold.by_system(cells, free=("s", "damp"))
    rows = {place: here for place, here in rows.items() if here["s"].nunique() > 1 and here["damp"].nunique() > 1}
    if not rows:
        return None

    by_place = {place: look.in_order(here["estimator_label"].unique()) for place, here in rows.items()}
    lines = [-(-(1 + len(labels)) // ACROSS) for labels in by_place.values()]
    said = {
        place: look.row_title(_said(place.system, here) if len(rows) > 1 else "", place.point)
        for place, here in rows.items()
    }
    heights = [0.1 + 2.3 * n + look.LINE * len(text.split("\n")) for n, text in zip(lines, said.values(), strict=True)]
    figure = look.figure(0.4 + sum(heights))
    strips = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for strip, n, (place, here) in zip(strips, lines, rows.items(), strict=True):
        labels = by_place[place]
        look.head(strip, said[place])
        axes = strip.subplots(n, ACROSS, squeeze=False).ravel()
        _statuses(axes[0], here)
        for ax, label in zip(axes[1:], labels, strict=False):
            _cosines(ax, here, label)
        for i, ax in enumerate(axes):
            ax.set_visible(i <= len(labels))
            ax.set_ylabel("" if i % ACROSS else ax.get_ylabel())
        bar = strip.colorbar(axes[1].collections[0], ax=list(axes), pad=0.01, aspect=25)
        bar.set_ticks(range(TOP + 1), labels=[f"≤ {tick(0)}", *map(tick, range(1, TOP)), f"≥ {tick(TOP)}"])
        bar.set_label(f"{look.metric('cosine_min')}\n{SPACED}")
        bar.outline.set_visible(False)
        bar.ax.axhline(nines(look.FOLLOWS), color="white", linewidth=2)
    look.title(figure, titles.of_maps({place.system: here for place, here in rows.items()}, ("s", "damp")))
    drawn = pd.concat(rows.values())
    idle, some = drawn["status"] != Status.SETTLED, drawn["cosine_min"].notna()
    look.caption(
        figure,
        [
            f"Status and smallest cosine over parameters: {len(drawn)} cells, both of the worst seed.",
            f"Light colours follow BPTT in direction, from {look.FOLLOWS:g} on. Hatched: not settled.",
            *([NUMBERED] if (idle & some).any() else []),
            *(["Dash: no cosine."] if (~some).any() else []),
            *left_out,
        ],
    )
    return figure


def _said(system: str, here: DataFrame) -> str:
    """The title of a row: at how many points the system is settled, and at how many of these a rule follows BPTT."""
    return titles.of_map(system, here, ("s", "damp"))


def _worst(statuses: Iterable[str]) -> int:
    return min(ORDER.index(Status(status)) for status in statuses)


def _size(table: DataFrame, characters: int) -> float:
    """The font size, in points, at which so many characters fit into a square of a panel."""
    return look.pt(min(8, 160 / table.shape[1] / (0.62 * characters)))


def _frame(ax: Axes, title: str) -> None:
    ax.set(title=title, xlabel=COORDINATES["damp"].axis, ylabel=COORDINATES["s"].axis)
    ax.tick_params(left=False, bottom=False, rotation=0)
    ax.grid(visible=False)


def _statuses(ax: Axes, here: DataFrame) -> None:
    table = here.pivot_table(index="s", columns="damp", values="status", aggfunc=_worst).sort_index(ascending=False)
    words = table.map(lambda i: "" if np.isnan(i) else SHORT.get(ORDER[int(i)], ORDER[int(i)].value))
    palette = ListedColormap([STATUSES.get(status, OTHER) for status in ORDER])
    sns.heatmap(
        table.astype(float),
        annot=words,
        fmt="",
        cmap=palette,
        vmin=-0.5,
        vmax=len(ORDER) - 0.5,
        cbar=False,
        ax=ax,
        linewidths=1,
        linecolor="white",
        annot_kws={"color": "black", "size": _size(table, len("collapsed"))},
    )
    _frame(ax, "status")


def _cosines(ax: Axes, here: DataFrame, label: str) -> None:
    cells = {"index": "s", "columns": "damp", "dropna": False}
    points = [sorted(here[key].unique()) for key in ("s", "damp")]  # a rule has not been everywhere
    here = here[here["estimator_label"] == label]
    cosine = here.pivot_table(values="cosine_min", aggfunc="min", **cells).reindex(points[0][::-1], columns=points[1])
    worst = here.pivot_table(values="status", aggfunc=_worst, **cells).reindex_like(cosine)
    settled = (worst == ORDER.index(Status.SETTLED)).to_numpy()
    there = worst.notna().to_numpy()
    size = _size(cosine, len(">0.9999"))
    shade = cosine.map(lambda value: float(nines(max(value, 0))))
    sns.heatmap(
        shade,
        mask=~settled,
        annot=cosine.map(written),
        fmt="",
        cmap=COLOURS,
        vmin=0,
        vmax=TOP,
        cbar=False,
        ax=ax,
        linewidths=1,
        linecolor="white",
        annot_kws={"size": size},
    )
    for row, column in zip(*np.nonzero(there & ~settled), strict=True):
        ax.add_patch(Rectangle((column, row), 1, 1, facecolor="0.96", edgecolor="0.8", hatch="////", linewidth=0))
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="white", linewidth=1))
        value = written(cosine.iat[row, column])
        box = {"facecolor": "0.96", "edgecolor": "none", "pad": 1}
        ax.text(column + 0.5, row + 0.5, value, color="0.5", size=size, ha="center", va="center", bbox=box)
    _frame(ax, look.words(label))


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {"map_s_damp": lambda tables: draw_map_s_damp(tables.cells)}
