"""Every rule on every system: how faithful it can be there, at which cost, and what breaks it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from gradbench.estimators.base import Count, Role
from gradbench.planning import registry
from gradbench.plots import bands, hold, look, titles
from gradbench.plots.scale import COLOURS, TOP, cosine_at, floored, nines, written
from gradbench.plots.wording import equal, short
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

LEAST = 3  # rules: of fewer, other figures tell more
NUMBER, WORDS = 8, 6.8  # points of the letters in a field
MANY = 11  # systems beside which letters of that size fit
ROW, HEAD = 0.46, 1.25  # inches of a row, and of the names and kinds of the systems
KIND = 0.33  # inches of the kinds
SETTING = tuple(name for name in COORDINATES if name != "seed")
LEGEND = (  # places on the colours, and what they mean
    (
        0.8,
        f"light: follows BPTT in direction (cosine {look.FOLLOWS:g} or more); below: its cost in evaluations of F",
    ),
    (0.1, "dark: misses BPTT; below: its most frequent cause"),
)
DASH = "-"  # the rule does not apply
ALIKE = float(cosine_at(TOP))  # larger cosines count as equal, as their colours do
PANEL = 0.85  # of the width of the figure


class Field(NamedTuple):
    """What a rule comes to on a system, at its best setting there."""

    cosine: float  # of the worst parameter and seed; NaN: there is no settled setting with a cosine
    words: str  # below the number: the cost of the setting, or what breaks the rule, or why there is no number


@look.themed
def draw_rules_by_system(cells: DataFrame) -> Figure | None:
    """A number is a cosine of the worst seed and parameter; the next best setting is at most as good."""
    rules = cells[cells["estimator"].map(registry.role) == Role.RULE]
    systems = {str(s): hold.one_dtype(rows) for s, rows in rules.groupby("system_label", sort=False)}
    kinds = bands.kinds(rules)
    systems = {system: systems[system] for system in kinds}
    labels = look.in_order(rules["estimator_label"].unique())
    if len(labels) < LEAST:
        return None
    fields = {
        label: {system: _field(rows[rows["estimator_label"] == label]) for system, rows in systems.items()}
        for label in labels
    }
    order = sorted(labels, key=lambda label: _follows_on(fields[label]), reverse=True)
    figure = look.figure(HEAD + ROW * len(order))
    upper, ax = figure.subplots(2, 1, height_ratios=(KIND, HEAD - KIND + ROW * len(order)))
    _draw(ax, [[fields[label][system] for system in systems] for label in order])
    _show_kinds(upper, ax, [kinds[system] for system in systems], look.room(figure) * PANEL)
    told = short(systems)
    width = max(8, 90 // len(systems))
    names = [hold.lines(told[s].replace("_", "_ "), width).replace("_ ", "_") for s in systems]  # broken at underscores
    ax.set_xticks(
        np.arange(len(systems)) + 0.5, names, rotation=0, size=look.pt(look.VALUE if len(systems) <= 8 else 6)
    )
    called = [hold.lines(look.words(label), 26) + _only(rules, label) for label in order]
    ax.set_yticks(np.arange(len(order)) + 0.5, called, rotation=0)
    every = [field for of in fields.values() for field in of.values()]
    keys: list[Patch | Line2D] = [Patch(facecolor=COLOURS(shade), label=words) for shade, words in LEGEND]
    if any(f and math.isnan(f.cosine) and f.words != DASH for f in every):
        keys.append(bands.silent_key())
    absent = ["empty: not run"] * (None in every)
    absent += [f"{DASH} : does not apply"] * any(f and f.words == DASH for f in every)
    keys += [Line2D([], [], linestyle="", label=words) for words in absent]
    look.strip(figure, keys, 5)
    look.title(figure, titles.of_matrix({label: _held(fields[label]) for label in order}, kinds))
    look.caption(
        figure,
        [
            "A field is one setting of a rule, s and damping included: of those settled in every seed, the one with",
            "the largest cosine of the worst parameter in the worst seed, and the cheapest of those above",
            f"{ALIKE:g}. The number is that cosine. Below it what an estimate costs at this setting, in evaluations of",
            f"the force, free phase included, a product with the Jacobian counted as {Count(jvp=1).work}. Where a rule",
            "misses BPTT at every setting, it is the most frequent cause of errors at settled ones. Colours are",
            f"spaced by log(1 - cos), the same from {ALIKE:g} on. A Jacobian is symmetric where its antisymmetry",
            f"{METRICS['antisymmetry'].symbol} is at most {titles.SYMMETRIC:g} in every settled cell.",
        ],
    )
    return figure


def _only(cells: DataFrame, label: str) -> str:
    """The one value of a knob at which a rule was run, where others were run at several; in a line of its own."""
    of_rule = cells[cells["estimator_label"] == label]
    alone = [
        equal(knob, [values[0]])
        for knob in ("T2", "beta")
        if len(values := of_rule[knob].dropna().unique()) == 1 < cells[knob].nunique()
    ]
    return f"\n(at {', '.join(alone)} only)" if alone else ""


def _show_kinds(upper: Axes, ax: Axes, kinds: list[str], width: float) -> None:
    """Name the kinds of the systems above them, with a line over each and between two; kinds are in order."""
    spans = []
    for kind in dict.fromkeys(kinds):
        first, last = kinds.index(kind), len(kinds) - kinds[::-1].index(kind)
        spans.append((kind, first + 0.06, last - 0.06))
        if first:
            ax.axvline(first, color=look.GREY, linewidth=1.5, zorder=4)
    bands.show_kinds(upper, spans, 0, 0.15, width / len(kinds))
    upper.set(xlim=(0, len(kinds)), ylim=(-0.1, 1))
    upper.set_axis_off()


def _field(rows: DataFrame) -> Field | None:
    """None where the rule was not run."""
    measured = rows[rows["status"] != Status.SKIPPED]
    if rows.empty:
        return None
    if measured.empty:
        return Field(math.nan, DASH)
    settings = [
        (float(floored(setting["cosine_min"].min())), _cost(setting), setting)
        for _, setting in measured.groupby(list(SETTING), dropna=False, sort=False)
        if (setting["status"] == Status.SETTLED).all() and setting["cosine_min"].notna().all()
    ]
    if not settings:
        return Field(math.nan, str(measured["status"][measured["status"] != Status.SETTLED].mode().iloc[0]))
    # the cheapest of the settings whose cosines count as equal
    cosine, cost, _ = max(settings, key=lambda of: (min(of[0], ALIKE), -of[1]))
    if cosine >= look.FOLLOWS:
        return Field(cosine, f"cost {cost:,.0f}")
    causes = pd.concat([setting["cause"] for *_, setting in settings]).dropna()
    return Field(cosine, str(causes.mode().iloc[0]) if len(causes) else "")


def _cost(setting: DataFrame) -> float:
    """Evaluations of the force that one estimate needs at a setting."""
    counts = setting[["n_force", "n_jvp", "n_vjp"]].max()
    return float(Count(*counts).work)


def _follows_on(fields: dict[str, Field | None]) -> tuple[int, float]:
    """For the order of the rows: on how many systems a rule follows BPTT, and on which share of those with a number."""
    held = _held(fields)
    return sum(held.values()), sum(held.values()) / max(1, len(held))


def _held(fields: dict[str, Field | None]) -> dict[str, bool]:
    """By system whether a rule follows BPTT there, of those on which it has a number."""
    return {s: f.cosine >= look.FOLLOWS for s, f in fields.items() if f is not None and not math.isnan(f.cosine)}


def _draw(ax: Axes, fields: list[list[Field | None]]) -> None:
    shade = np.array([[float(nines(max(f.cosine, 0))) if f else math.nan for f in row] for row in fields])
    lines = {"linewidths": 1, "linecolor": "white"}
    small = min(1.0, MANY / shade.shape[1])  # of many systems the letters are smaller
    sns.heatmap(shade, ax=ax, cmap=COLOURS, vmin=0, vmax=TOP, cbar=False, mask=np.isnan(shade), **lines)
    for y, row in enumerate(fields):
        for x, field in enumerate(row):
            if field is None:
                continue
            ink = "white" if field.cosine < look.FOLLOWS else "black"  # misses are dark
            if math.isnan(field.cosine) and field.words != DASH:
                face, hatch, edge = bands.NOTHING
                ax.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0))
            number = "" if math.isnan(field.cosine) else written(field.cosine)
            ax.text(x + 0.5, y + 0.3, number, size=look.pt(small * NUMBER), color=ink, ha="center", va="center")
            below = 0.5 if math.isnan(field.cosine) else 0.68
            words = field.words.replace(" ", "\n", 1) if field.cosine < look.FOLLOWS else field.words
            ax.text(x + 0.5, y + below, words, size=look.pt(small * WORDS), color=ink, ha="center", va="center")
    ax.tick_params(left=False, bottom=False, top=False, labelbottom=False, labeltop=True)
    ax.grid(visible=False)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "rules_by_system": lambda tables: draw_rules_by_system(tables.cells)
}
