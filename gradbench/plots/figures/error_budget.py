"""Where the error comes from: its causes, stacked, along depth, nudge and free phase.

Every bar of every panel is one quantity: the largest relative error of a parameter. A cell has a cause where that is
above the threshold, so that a grey bar is low and a coloured one is not. The error of the whole gradient would hide
what happens to parameters with a small gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradbench.plots import bands, hold, look, titles
from gradbench.plots.parameterwise import WORST, with_worst
from gradbench.vocabulary.cause import CAUSES, Cause, column
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

    from gradbench.plots.sources import Tables

    Panel = tuple[str, hold.Place, DataFrame, DataFrame]  # knob, where the others are held, cells, bars

KNOBS = ("T1", "T2", "beta")  # a panel each, from left to right: the knobs that bring an error of their own
TOP = 3.0  # longer bars are cut here; an error of 1 is that of no estimate at all
HEADROOM = 1.25  # of the axis over `TOP`, where the numbers of cut bars stand
WITHOUT = (Status.DIVERGED, Status.COLLAPSED, Status.UNDEFINED)  # statuses of cells whose error says nothing
LEAST = 0.05  # height of the bar of a faithful cell, whose error is too small to be seen; no bar means no cell
BREAK, SLANT = (0.88 * TOP, 0.93 * TOP), 0.06  # height of the two strokes through a cut bar, and half of their rise
ABOVE = 0.05  # of the axis, between a cut bar and its number
VISIBLE = 0.04  # height from which on a part is drawn; the others give theirs to those that are
SMALL = 6.5  # points of the names below bars and the numbers above them
WIDE = 185.0  # points of a panel's width where three stand side by side
PITCH = 7.5  # points that a bar wants, for its name
FILLED, BROADEST = 0.84, 0.4  # of the place of a value, that its bars fill together, and a bar alone
PALETTE = {
    Cause.TRANSIENT: "#56B4E9",
    Cause.NO_FIXED_POINT: "#332288",
    Cause.TRUNCATION: "#0072B2",
    Cause.ASYMMETRY: "#D55E00",
    Cause.DAMPING: "#44AA99",
    Cause.WEIGHTS: "#AA4499",
    Cause.JACOBIAN: "#661100",
    Cause.RULE: "#882255",
    Cause.NUDGE: "#999933",
    Cause.NONLINEARITY: "#E69F00",
    Cause.CLIP: "#CC79A7",
    Cause.READOUT: "#117733",
    Cause.VARIANCE: "#DDCC77",
    Cause.PRECISION: "#000000",
}
COLOURS = {column(cause): PALETTE.get(cause, look.GREY) for cause in CAUSES}
FAITHFUL, OPEN = "faithful", "without a cause"  # what an error is that has none: small, or not looked into
FACES = {**COLOURS, FAITHFUL: "0.8", OPEN: "0.6"}
# A cause has a hatch as well as a colour, so that it can be read in grey.
PATTERNS = {
    Cause.TRANSIENT: "....",
    Cause.NO_FIXED_POINT: "xxxx",
    Cause.TRUNCATION: "\\\\\\\\",
    Cause.ASYMMETRY: "",
    Cause.DAMPING: "..",
    Cause.WEIGHTS: "xx",
    Cause.JACOBIAN: "++",
    Cause.RULE: "++++",
    Cause.NUDGE: "||||",
    Cause.NONLINEARITY: "////",
    Cause.CLIP: "----",
    Cause.READOUT: "oooo",
    Cause.VARIANCE: "--",
    Cause.PRECISION: "**",
}
HATCHES = {column(cause): PATTERNS.get(cause, "") for cause in CAUSES}
HOLLOW = "hollow"  # what a bar is whose seeds are not all settled
PART = "part: {}"  # the column that holds the share of a cause in the error of a cell


@look.themed
def draw_error_budget(cells: DataFrame, params: DataFrame, budget: DataFrame, faithful: float) -> Figure | None:
    """A bar for each rule and value: its height is the error, its parts are proportional to the steps of the ladder."""
    cells = hold.estimates(cells)
    if bands.crowded(cells["estimator_label"]):
        return _matrix(cells, params, budget, faithful)
    main, left_out = hold.main_forms(cells)
    shown = _with_parts(main[~main["status"].isin(WITHOUT)], params, budget, faithful)
    panels: dict[str, list[Panel]] = {}
    for knob in KNOBS:
        for panel in _along(knob, cells, shown):
            panels.setdefault(panel[1].system, []).append(panel)
    if not panels:
        return None
    panels = _with_evidence(panels)
    settled = set(cells[cells["status"] == Status.SETTLED]["system_label"])
    silent = sorted(set(cells["system_label"]) - settled - panels.keys())
    counts = [bars.groupby(knob).size() for p in panels.values() for knob, _, _, bars in p]
    across = min(_across(counts), len(counts))
    lines = _packed(panels, across)
    heights = [max(_height(panel, faithful, across) for panel in line) for line in lines]
    figure = look.figure(0.8 + sum(heights))
    axes = figure.subplots(len(lines), across, squeeze=False, height_ratios=heights)
    seen: set[str] = set()
    for line, axs in zip(lines, axes, strict=True):
        for i, ax in enumerate(axs):
            ax.set_visible(i < len(line))
        for ax, panel in zip(axs, line, strict=False):
            seen |= _panel(ax, panel, across)
            ax.set_title(_said(panel, faithful, across), loc="left", fontsize=look.pt(look.VALUE))
            ax.set_ylabel(WORST if ax is axs[0] else "")
            ax.tick_params(labelleft=ax is axs[0])
    every = pd.concat([bars for of in panels.values() for _, _, _, bars in of])
    _legend(figure, seen, faithful)
    look.title(figure, titles.of_budgets(every, faithful))
    look.caption(
        figure,
        [
            "The error of the parameter that a rule gets most wrong, of its reference's norm, in the worst seed.",
            "A part is the size of one step of the ladder, which goes from BPTT to the rule; the sizes of all steps",
            f"need not add up to the error. A bar longer than {TOP:g} is cut there, and its error stands above it; ∞:",
            "not finite. No bar: no cell, or one that diverged or collapsed.",
            *([f"Not drawn, as nothing is settled there: {', '.join(silent)}."] if silent else []),
            *left_out,
        ],
    )
    return figure


def _along(knob: str, cells: DataFrame, shown: DataFrame) -> list[Panel]:
    """The bars of every system that has several values of a knob and some cause along it."""
    panels = []
    # the point is that of all cells and forms, as in the figures of cosines
    for place, held in hold.by_system(cells[cells[knob].notna()], free=(knob,)).items():
        here = shown[shown["cell"].isin(held["cell"])]
        if here[knob].nunique() > 1 and here["cause"].notna().any():
            panels.append((knob, place, here, _bars(here, knob)))
    return panels


def _matrix(cells: DataFrame, params: DataFrame, budget: DataFrame, faithful: float) -> Figure | None:
    """The largest cause of the worst seed of many rules, along the knob that the most systems have."""
    shown = _with_parts(cells[~cells["status"].isin(WITHOUT)], params, budget, faithful)
    every = {knob: _along(knob, cells, shown) for knob in KNOBS}
    knob = max(("T2", "T1", "beta"), key=lambda knob: len(every[knob]))
    if not every[knob]:
        return None
    kinds = bands.kinds(cells)
    panels = {place.system: (place, bars) for _, place, _, bars in every[knob]}
    panels = {system: panels[system] for system in kinds if system in panels}
    fields, seen = {}, set()
    for system, (_, bars) in panels.items():
        for bar in bars.to_dict("records"):
            name = max(FACES, key=lambda name: bar[name]) if bar["settled"] else HOLLOW
            fields[bar["estimator_label"], system, hold.number(bar[knob])] = _field(name)
            seen.add(name)
    bars = pd.concat([bars for _, bars in panels.values()])
    settled = bars[bars["settled"]]
    good = (settled["leading"] == FAITHFUL).groupby(settled["estimator_label"]).agg(["sum", "mean"])
    order = good.reindex(look.in_order(bars["estimator_label"].unique())).fillna(0.0)
    rules = order.sort_values(["sum", "mean"], ascending=False, kind="stable").index
    groups = [
        bands.Group(system, kinds[system], tuple(map(hold.number, sorted(of[knob].unique()))))
        for system, (_, of) in panels.items()
    ]
    figure, _ = bands.draw(list(rules), groups, fields, columns=f"{COORDINATES[knob].symbol or knob} =")
    blank = Line2D([], [], linestyle="", label="blank: not run, or diverged, collapsed")
    silent = [bands.silent_key("some seeds not settled: no evidence")] * (HOLLOW in seen)
    look.strip(figure, [*_entries(seen, faithful), *silent, blank], 5)
    look.title(figure, titles.of_budgets(bars, faithful))
    look.caption(
        figure,
        [
            "A field is the largest cause of the error of the parameter that a rule gets most wrong, in the worst",
            f"seed; columns of a system are values of {COORDINATES[knob].words} {COORDINATES[knob].symbol}. A cause is",
            "a step of the ladder, which goes from BPTT to the rule.",
            bands.held_at(place for place, _ in panels.values()),
        ],
    )
    return figure


def _field(name: str) -> bands.Fill:
    """How a field of the matrix is filled."""
    return bands.NOTHING if name == HOLLOW else bands.Fill(FACES[name], HATCHES.get(name, ""))


def _with_parts(cells: DataFrame, params: DataFrame, budget: DataFrame, faithful: float) -> DataFrame:
    """The cells with the error of their worst parameter, and a column for every cause: its share of that error."""
    cells = with_worst(cells, params)
    cells = cells[cells["error"].notna() | cells["cause"].notna()].fillna({"error": np.inf}).reset_index(drop=True)
    steps = cells[["cell", "param"]].merge(budget, on=["cell", "param"], how="left")[list(COLOURS)].astype(float)
    total = steps.sum(axis=1)
    divided = (total > 0) & np.isfinite(total) & cells["cause"].notna()
    shares = steps.fillna(0.0).div(total, axis=0).where(divided, 0.0)
    # where no steps were taken for this parameter, all of its error has the cause of the cell
    causeless = pd.Series(np.where(cells["error"] <= faithful, FAITHFUL, OPEN), cells.index)
    whole = cells["cause"].map(column, na_action="ignore").fillna(causeless).mask(divided)
    shares = pd.DataFrame({name: shares.get(name, 0.0) + (whole == name) for name in FACES})
    return pd.concat([cells, shares.rename(columns=PART.format)], axis=1)


def _with_evidence(panels: dict[str, list[Panel]]) -> dict[str, list[Panel]]:
    """The panels with a settled bar; all where none has one."""
    some = {system: [p for p in of if p[3]["settled"].any()] for system, of in panels.items()}
    return {system: of for system, of in some.items() if of} or panels


def _across(bars: list[Series]) -> int:
    """How many panels stand side by side, so that every bar has room for its name; bars by value, a panel an entry."""
    widest = max(len(counts) * counts.max() for counts in bars)
    return next((across for across in (3, 2) if FILLED * WIDE * 3 / across / widest >= PITCH), 1)


def _packed(panels: dict[str, list[Panel]], across: int) -> list[list[Panel]]:
    """Lines of panels: those of a system side by side, beside them a system that fits."""
    lines: list[list[Panel]] = []
    for _, of_system in sorted(panels.items(), key=lambda item: (-len(item[1]), item[0])):
        for i in range(0, len(of_system), across):
            chunk = of_system[i : i + across]
            line = next((line for line in lines if len(line) + len(chunk) <= across), None)
            if line is None:
                lines.append(line := [])
            line += chunk
    return lines


def _said(panel: Panel, faithful: float, across: int) -> str:
    """The title of a panel: what every rule errs by, and the point at which the other coordinates are held."""
    knob, place, _, bars = panel
    width = WIDE * 3 / across
    sentence = look.fit(titles.of_budget(place.system, bars, knob, faithful), look.VALUE, width)
    return f"{sentence}\n{look.fit(place.point, look.VALUE, width)}"


def _height(panel: Panel, faithful: float, across: int) -> float:
    """Inches of a panel with the lines of its title and the names of its bars."""
    return 2.0 + 0.15 * len(_said(panel, faithful, across).split("\n")) + _room(panel, across) / 72


def _length(text: str) -> float:
    """How long a name or a number is, in points."""
    return look.length(text, SMALL)


def _bars(here: DataFrame, knob: str) -> DataFrame:
    """A row for every bar: its value and rule, error, shares of the causes, the largest one, whether all is settled."""
    drawn = []
    for (value, label), rows in here.groupby([knob, "estimator_label"]):
        error, parts = _worst(rows)
        settled = bool((rows["status"] == Status.SETTLED).all())
        bar = {knob: value, "estimator_label": label, "error": error, "settled": settled}
        drawn.append(bar | {"leading": str(parts.idxmax()).replace("_", " "), **parts})
    return pd.DataFrame(drawn)


def _worst(rows: DataFrame) -> tuple[float, Series]:
    """The error of one rule at one value in its worst seed, and the shares of its causes there."""
    worst = rows.sort_values(["error", "seed"]).iloc[-1]
    return float(worst["error"]), worst[[PART.format(name) for name in FACES]].set_axis(list(FACES)).astype(float)


def _width(bars: DataFrame) -> float:
    """Of a bar and the space to the next, where a value has a place of 1."""
    return min(BROADEST, FILLED / bars["estimator_label"].nunique())


def _pitch(bars: DataFrame, knob: str, across: int) -> float:
    """The same in points."""
    return _width(bars) * WIDE * 3 / across / bars[knob].nunique()


def _room(panel: Panel, across: int) -> float:
    """How much height the names of rules take, in points: one line where they fit side by side, else upright."""
    knob, _, _, bars = panel
    longest = max(_length(look.words(label)) for label in bars["estimator_label"].unique())
    return SMALL if longest + 3 < _pitch(bars, knob, across) else longest


def _panel(ax: Axes, panel: Panel, across: int) -> set[str]:
    """Draw a group of bars for every value, in it a bar for every rule with its name; what they are made of."""
    knob, _, _, bars = panel
    values, labels = sorted(bars[knob].unique()), look.in_order(bars["estimator_label"].unique())
    width, pitch, names, seen = _width(bars), _pitch(bars, knob, across), {}, set()
    for bar in bars.to_dict("records"):
        place = values.index(bar[knob]) + width * (labels.index(bar["estimator_label"]) - (len(labels) - 1) / 2)
        names[place] = look.words(bar["estimator_label"])
        seen |= _bar(ax, bar, place, width, pitch)
    names = dict(sorted(names.items()))
    ax.xaxis.remove_overlapping_locs = False  # the middle bar of a group stands where the value does
    room, small = _room(panel, across), look.pt(SMALL)
    ax.set_xticks(list(names), list(names.values()), minor=True, rotation=0 if room == SMALL else 90, size=small)
    ax.tick_params(axis="x", which="minor", length=0, pad=look.pt(2))
    ax.tick_params(axis="x", which="major", length=0, pad=look.pt(room + 9))  # values stand below the names of bars
    ax.set(xlabel=COORDINATES[knob].axis, xlim=(-0.55, len(values) - 0.45), ylim=(0, TOP * HEADROOM))
    look.label_values(ax, range(len(values)), list(map(hold.number, values)), WIDE * 3 / across)
    ax.set_yticks(np.arange(0, TOP + 0.1, 1.0))
    ax.grid(axis="x", visible=False, which="both")
    return seen


def _bar(ax: Axes, drawn: dict[str, Any], place: float, width: float, pitch: float) -> set[str]:
    """One bar, hollow where some seed is not settled; what it is made of."""
    error, shares = drawn["error"], pd.Series({name: drawn[name] for name in FACES})
    height, bottom, seen = min(max(error, LEAST), TOP), 0.0, set()
    shares = shares[shares * height >= min(VISIBLE, shares.max() * height)]
    if not drawn["settled"]:  # an outline: a cause there would look like a result
        shares = pd.Series({HOLLOW: 1.0})
    for name, part in (shares / shares.sum() * height).items():
        (bar,) = ax.bar(place, part, 0.9 * width, bottom)
        bar.set(**_fill(str(name), drawn["settled"]))
        bottom += part
        seen.add(str(name))
    if error > TOP:
        # two strokes through the bar: it goes on
        for low in BREAK:
            ends = [place - 0.5 * width, place + 0.5 * width], [low - SLANT, low + SLANT]
            ax.plot(*ends, color="white", linewidth=look.pt(3.5), zorder=3)
            ax.plot(*ends, color="black", linewidth=look.pt(0.8), zorder=4)
        text = f"{error:.2g}" if error < 100 else f"{error:.0e}".replace("e+0", "e").replace("e+", "e")
        text = text if np.isfinite(error) else "∞"
        turn = 0 if _length(text) + 1 < pitch else 90
        ax.text(place, TOP + ABOVE, text, size=look.pt(SMALL), rotation=turn, ha="center", va="bottom")
    return seen


def _fill(name: str, settled: bool) -> dict[str, Any]:
    """Face, edge and hatch of a part. A hatch has the colour of the edge."""
    if settled:
        face, hatch = FACES[name], HATCHES.get(name) or None
        return {"facecolor": face, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}
    return {"facecolor": "white", "edgecolor": look.GREY, "linewidth": 0.9, "linestyle": ":"}


def _legend(figure: Figure, seen: set[str], faithful: float) -> None:
    """What colours, hatches and hollow bars mean."""
    handles: list[Line2D | Patch] = list(_entries(seen, faithful))
    if HOLLOW in seen:
        words = "hollow: some seeds not settled, no evidence"
        handles.append(Patch(**_fill(HOLLOW, settled=False), label=words))
    if seen & COLOURS.keys():
        handles.append(Line2D([], [], linestyle="", label="parts: causes, scaled to fill the bar"))
    look.strip(figure, handles, 5)


def _entries(seen: set[str], faithful: float) -> list[Patch]:
    """What colours and hatches of settled cells mean."""
    names = {FAITHFUL: f"faithful: no parameter is off by more than {faithful:g}"}
    return [
        Patch(**_fill(name, settled=True), label=names.get(name, name.replace("_", " ")))
        for name in FACES
        if name in seen
    ]


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_budget": lambda tables: draw_error_budget(tables.cells, tables.params, tables.budget, tables.faithful)
}
