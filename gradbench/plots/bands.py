"""A matrix of many rules: a row for a rule, columns grouped by system, in as many lines as a page needs.

A field has a colour and may have a hatch. What a row and a column mean is the same in all lines; a line has its systems
grouped by whether their Jacobian is symmetric.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from gradbench.plots import hold, look, titles
from gradbench.plots.scale import COLOURS, TOP, cosine_at, nines, tick
from gradbench.plots.wording import default_forms, short

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType
    from pandas import DataFrame


Place = tuple[str, str, str]  # rule, system and column
KINDS = {"symmetric": "symmetric Jacobian", "asymmetric": "asymmetric Jacobian", "": "not measured at rest"}
ORDER = list(KINDS)
NAME, LABEL = 6.5, 7.5  # points of the letters of columns and systems, and of rules
NARROW, WIDE = 8.2, 40.0  # points of a column, at the least and at the most
GAP = 0.6  # columns between two systems
TALL = 0.22  # inches of a row, at the most
PAGE = 8.6  # inches of all lines together, where rows of the least height fit
LOW = 0.125  # inches of a row, at the least
QUANTITY = "cosine to BPTT in the worst seed"  # of the colours
BAR, BAR_WIDTH = 0.62, 0.55  # inches of the strip with the colours, and their part of the width


class Fill(NamedTuple):
    """How a field is filled: its colour, its hatch and the colour of that."""

    face: ColorType
    hatch: str = ""
    edge: str = "white"


NOTHING = Fill("0.96", "////", "0.7")  # where there is no evidence
SILENT = "nothing is settled: no evidence"


class Group(NamedTuple):
    """The columns of a system."""

    system: str
    kind: str  # a key of `KINDS`
    columns: tuple[str, ...]
    framed: str = ""  # a column with a frame


def crowded(labels: Iterable[str]) -> bool:
    """Whether rules are too many for curves or bars side by side: more than `hold.FORMS` in their default forms."""
    return len(default_forms(labels)) > hold.FORMS


def kinds(cells: DataFrame) -> dict[str, str]:
    """What the Jacobian of every system is: symmetric ones first, within a kind in the order of the cells."""
    of = {str(s): titles.kind(hold.one_dtype(rows)) for s, rows in cells.groupby("system_label", sort=False)}
    return dict(sorted(of.items(), key=lambda item: ORDER.index(item[1])))


def cosine_fill(cosine: float) -> Fill:
    """The colour of a cosine; without one, that there is no evidence."""
    return NOTHING if math.isnan(cosine) else Fill(COLOURS(float(nines(max(cosine, 0.0))) / TOP))


def by_following(rules: Collection[str], cosines: Mapping[Place, float]) -> list[str]:
    """Rules from top to bottom: by the number of their fields that follow BPTT, then by the share of these."""

    def worth(rule: str) -> tuple[int, float]:
        of = [cosine for (label, *_), cosine in cosines.items() if label == rule and not math.isnan(cosine)]
        good = sum(cosine >= look.FOLLOWS for cosine in of)
        return good, good / max(1, len(of))

    return sorted(look.in_order(rules), key=worth, reverse=True)


def broken(name: str, size: float, width: float) -> str:
    """The name of a system in lines of so many points, broken after underscores too."""
    return look.fit(name.replace("_", "_ "), size, width).replace("_ ", "_").replace("_\n", "_\n")


def show_kinds(ax: Axes, spans: Sequence[tuple[str, float, float]], y: float, lift: float, unit: float) -> None:
    """Name kinds of systems over their columns, each with a line at y and words `lift` above it.

    spans: kind, left and right end in units of x, each of so many points
    """
    for kind, left, right in spans:
        ax.plot([left, right], [y, y], color=look.GREY, linewidth=1.5, clip_on=False)
        words = look.fit(KINDS[kind], look.VALUE, (right - left) * unit)
        at: dict[str, Any] = {"ha": "center", "va": "bottom", "weight": "bold"}
        ax.text((left + right) / 2, y + lift, words, size=look.pt(look.VALUE), **at)


def lines(groups: Sequence[Group], room: float) -> list[list[Group]]:
    """Groups in as few lines as hold columns of the least width, of which the longest one is as short as possible."""
    most = max(room / NARROW, *(_units([group]) for group in groups))
    fewest = len(_filled(groups, most))
    lengths = {_units(groups[i:j]) for i, j in itertools.combinations(range(len(groups) + 1), 2)}
    return next(filled for limit in sorted(lengths) if len(filled := _filled(groups, limit)) <= fewest)


def _filled(groups: Sequence[Group], limit: float) -> list[list[Group]]:
    filled: list[list[Group]] = [[]]
    for group in groups:
        if filled[-1] and _units([*filled[-1], group]) > limit:
            filled.append([])
        filled[-1].append(group)
    return filled


def _units(groups: Sequence[Group]) -> float:
    """The width of a line in columns."""
    return sum(len(group.columns) for group in groups) + GAP * (len(groups) - 1)


def of_cosines(
    cosines: Mapping[Place, float], groups: Sequence[Group], absent: str, *keys: Patch, columns: str = ""
) -> Figure:
    """The matrix of cosines with the key to its colours and other keys, without title and caption.

    A cosine is NaN where there is no evidence, and `absent` says why. `columns` stands before the names of columns.
    """
    rules = by_following({rule for rule, *_ in cosines}, cosines)
    fields = {place: cosine_fill(cosine) for place, cosine in cosines.items()}
    figure, strip = draw(rules, groups, fields, BAR, columns)
    silent = [silent_key(absent)] * any(map(math.isnan, cosines.values()))
    blank = Line2D([], [], linestyle="", label="blank: not run, or does not apply")
    _colours(strip, [*keys, *silent, blank])
    return figure


def draw(
    rules: Sequence[str], groups: Sequence[Group], fields: Mapping[Place, Fill], above: float = 0.0, columns: str = ""
) -> tuple[Figure, Axes]:
    """The matrix, and the first of its axes, which is empty and so many inches high where a height is named.

    `columns` stands before the names of columns.
    A rule and a column without a field are blank there. A line has rows for the rules that have a field in it.
    """
    room = 72 * (look.WIDTH - 0.1) - max(look.length(look.words(rule), LABEL) for rule in rules) - 12
    stacked = lines(groups, room)
    unit = min(room / max(map(_units, stacked)), WIDE)
    names = short(group.system for group in groups)
    upright = any(look.length(name, NAME) + 2 > unit for group in groups for name in group.columns)
    heads = [_Head.of(line, names, unit, upright) for line in stacked]
    free = PAGE - sum(head.total for head in heads)
    shown = [[rule for rule in rules if _run(rule, line, fields)] for line in stacked]
    row = max(LOW, min(TALL, free / sum(map(len, shown))))
    heights = [head.total + row * len(of) for head, of in zip(heads, shown, strict=True)]
    figure = look.figure(0.3 + above + sum(heights) + 0.08 * len(stacked))
    ratios = [*([above] if above else []), *heights]
    axes = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for ax, line, head, of in zip(axes[-len(stacked) :], stacked, heads, shown, strict=True):
        _line(ax, list(map(look.words, of)), row, room / unit)
        _headings(ax, line, head, names, row, unit, upright)
        ax.text(-0.3, -0.03 / row, columns, size=look.pt(NAME), ha="right", va="bottom")
        _fill(ax, of, line, fields)
    return figure, axes[0]


class _Head(NamedTuple):
    """Inches above the rows of a line: of names of columns, of systems, of kinds."""

    columns: float
    systems: float
    kinds: float

    @property
    def total(self) -> float:
        return sum(self)

    @classmethod
    def of(cls, line: Sequence[Group], names: Mapping[str, str], unit: float, upright: bool) -> _Head:
        longest = max(look.length(name, NAME) for group in line for name in group.columns)
        deep = max(_name(group, names, unit).count("\n") + 1 for group in line)
        return cls(((longest if upright else NAME) + 7) / 72, (1.25 * NAME * deep + 5) / 72, 0.26)


def _name(group: Group, names: Mapping[str, str], unit: float) -> str:
    return broken(names[group.system], NAME, (len(group.columns) + GAP) * unit)


def _run(rule: str, line: Sequence[Group], fields: Mapping[Place, Fill]) -> bool:
    """Whether a rule has a field in a line; a line has no row for the others."""
    return any((rule, group.system, name) in fields for group in line for name in group.columns)


def _lefts(line: Sequence[Group]) -> list[float]:
    """Where every group begins."""
    return [_units(line[:i]) + GAP if i else 0.0 for i in range(len(line))]


def _line(ax: Axes, labels: Sequence[str], row: float, width: float) -> None:
    ax.set(xlim=(0, width), ylim=(len(labels), 0))
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels, size=look.pt(min(LABEL, 60 * row)))
    ax.set_xticks([])
    ax.tick_params(left=False, pad=look.pt(2))
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _headings(
    ax: Axes, line: Sequence[Group], head: _Head, names: Mapping[str, str], row: float, unit: float, upright: bool
) -> None:
    """Names of columns, of systems and of kinds, above the rows."""
    ax.set_ylim(ax.get_ylim()[0], -head.total / row)
    small = look.pt(NAME)
    for group, left in zip(line, _lefts(line), strict=True):
        for place, name in enumerate(group.columns):
            weight = "bold" if name == group.framed else "normal"
            turned: dict[str, Any] = {
                "ha": "center",
                "va": "bottom",
                "weight": weight,
                "rotation": 90 if upright else 0,
            }
            ax.text(left + place + 0.5, -0.03 / row, name, size=small, **turned)
        middle, top = left + len(group.columns) / 2, -head.columns / row
        ax.text(
            middle, top - 0.02 / row, _name(group, names, unit), size=small, ha="center", va="bottom", linespacing=1.05
        )
        ax.plot([left, left + len(group.columns)], [top, top], color=look.GREY, linewidth=0.6)
    ends = [(group.kind, left, left + len(group.columns)) for group, left in zip(line, _lefts(line), strict=True)]
    present = list(dict.fromkeys(kind for kind, *_ in ends))
    spans = [(k, min(a for of, a, _ in ends if of == k), max(b for of, _, b in ends if of == k)) for k in present]
    show_kinds(ax, spans, -(head.columns + head.systems) / row, -0.03 / row, unit)


def _fill(ax: Axes, rules: Sequence[str], line: Sequence[Group], fields: Mapping[Place, Fill]) -> None:
    """The fields of a line, those of one hatch together."""
    drawn: dict[tuple[str, str], list[tuple[float, int, ColorType]]] = defaultdict(list)
    for group, left in zip(line, _lefts(line), strict=True):
        for place, name in enumerate(group.columns):
            for y, rule in enumerate(rules):
                if fill := fields.get((rule, group.system, name)):
                    drawn[fill.hatch, fill.edge].append((left + place, y, fill.face))
        if group.framed:
            x = left + group.columns.index(group.framed)
            run = [y for y, rule in enumerate(rules) if (rule, group.system, group.framed) in fields]
            edge_of: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 1.1, "zorder": 4}
            ax.add_patch(Rectangle((x, run[0]), 1, run[-1] + 1 - run[0], **edge_of))
    for (hatch, edge), of in drawn.items():
        corners = [np.array([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]) for x, y, _ in of]
        faces = [face for *_, face in of]
        ax.add_collection(
            PolyCollection(corners, facecolors=faces, edgecolors=edge, hatch=hatch or None, linewidths=0.7)
        )


def _colours(ax: Axes, keys: Sequence[Patch | Line2D]) -> None:
    """The colours of cosines, with values, from where on a rule follows BPTT, and other keys to the right."""
    ax.set_axis_off()
    bar = ax.inset_axes((0.0, 0.45, BAR_WIDTH, 0.3))
    bar.imshow(np.linspace(0, TOP, 400)[None], aspect="auto", extent=(0, TOP, 0, 1), cmap=COLOURS)
    words = [tick(k) for k in range(TOP + 1)]
    words[0], words[-1] = "0 or less", f"{words[-1]} or more"
    bar.set_xticks(range(TOP + 1), words)
    bar.set_yticks([])
    bar.grid(visible=False)
    middle = float(nines(look.FOLLOWS))
    for place, said in ((middle / 2, "misses BPTT"), ((middle + TOP) / 2, "follows BPTT in direction")):
        bar.text(place, 1.25, said, ha="center", va="bottom", size=look.pt(look.VALUE))
    bar.text(TOP / 2, -1.9, QUANTITY, ha="center", va="top", size=look.pt(look.VALUE))
    ax.legend(handles=keys, loc="center right", frameon=False, fontsize=look.pt(look.VALUE), borderpad=0)


def silent_key(words: str = SILENT) -> Patch:
    """What the hatch of a field without evidence means."""
    return Patch(facecolor=NOTHING.face, edgecolor=NOTHING.edge, hatch=NOTHING.hatch, label=words)


def held_at(places: Iterable[hold.Place]) -> str:
    """A sentence with the points at which systems are held, those of one point together."""
    points = {place.system: place.point.removeprefix("at ") for place in places}
    names, at = short(points), defaultdict[str, list[str]](list)
    for system, point in points.items():
        at[point].append(names[system])
    told = [point if len(at) == 1 else f"{point} ({', '.join(of)})" for point, of in at.items()]
    return f"Held at {'; '.join(told)}."


def spacing() -> str:
    """What a caption says of the colours."""
    return f"Colours are spaced by log(1 - cos), the same from {float(cosine_at(TOP)):g} on and below 0."
