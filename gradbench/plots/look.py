"""How figures look: a colour and a marker for every name, filled for settled, one theme, one caption."""

from __future__ import annotations

import itertools
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch
    from matplotlib.typing import LineStyleType, RcKeyType
    from pandas import DataFrame

WIDTH = 9.0  # inches; in a print of 7 inches, and in a PNG that is shown at 900 pixels, 9 points read as 7
GREY = "0.35"
TEXT = 9  # points of a letter
VALUE = 8  # the same of the values on an axis
HANDLE, GAP, SPACING = 2.0, 0.8, 2.0  # of a legend, in letters: a handle, the space to its text, that between columns

# Okabe & Ito 2008: colours that can be told apart under every common colour blindness. The reserve is from Tol's
# muted scheme.
COLOURS = {"ep": "#D55E00", "aep": "#0072B2", "bptt": "#000000", "adjoint": "#009E73", "tbptt": "#E69F00"}
RESERVE = ("#CC79A7", "#882255", "#999933", "#44AA99", "#332288", "#AA4499", "#117733")

Marker: TypeAlias = str | tuple[int, Literal[0, 1, 2], int]  # a letter, or points, style and turn of a star

# Markers can be told apart in grey. That of the naive rule is large, so that it shows under a rule that agrees with it.
MARKERS: dict[str, tuple[Marker, float]] = {
    "ep": ("s", 6.5),
    "aep": ("o", 4.0),
    "adjoint": ("D", 5.0),
    "tbptt": ("P", 5.0),
}
OTHER_MARKERS: tuple[tuple[Marker, float], ...] = (
    ("X", 5.5), ("p", 5.5), ((4, 1, 0), 8.0), ((7, 1, 0), 7.0)
)  # fmt: skip
NUMBER_SIZE = 6.5  # of the markers after these, which are numbers
HATCHES = {"ep": "////", "aep": "", "adjoint": "", "tbptt": ""}
OTHER_HATCHES = ("....", "xxxx", "\\\\\\\\", "++++", "oo", "||||", "----", "**")
VARIANT_MARKERS = ("^", "v", "<", ">", "d", "h", "*", "8")
VARIANT_DASHES = ((3, 1.5), (1, 1.2), (5, 1.5, 1, 1.5), (6, 2), (2, 1, 2, 3))


@dataclass(frozen=True)
class Style:
    """How one estimator, with its options, is drawn."""

    colour: str
    marker: Marker
    size: float  # of the marker, in points
    dashes: tuple[float, ...] = ()  # points of ink and of gap by turns; none: a solid line
    hatch: str = ""  # of its bars

    @property
    def line(self) -> LineStyleType:
        """Its dashes, as matplotlib wants them."""
        return (0, self.dashes) if self.dashes else "-"


def colour(estimator: str) -> str:
    """The colour of an estimator. One that has no fixed colour gets one by its name alone, whatever else is drawn."""
    return COLOURS.get(estimator) or RESERVE[zlib.crc32(estimator.encode()) % len(RESERVE)]


def styles(cells: DataFrame) -> dict[str, Style]:
    """A style for every estimator label; options change marker and dashes, never the colour.

    The cells are those of a run, so that a label has one style in all figures of the run. Names without a fixed marker
    take theirs in the order of the alphabet; where two of them have one colour, the second one's lines are dashed.
    """
    labels = sorted(cells["estimator_label"].unique())
    variants = [label for label in labels if " " in label]
    others = sorted({label.partition(" ")[0] for label in labels} - MARKERS.keys())
    hatches = dict(zip([*others, *variants], itertools.cycle(OTHER_HATCHES), strict=False))
    drawn = {}
    for label in labels:
        name, _, options = label.partition(" ")
        if options:
            rank = variants.index(label)
            marker: Marker = VARIANT_MARKERS[rank % len(VARIANT_MARKERS)]
            dashes: tuple[float, ...] = VARIANT_DASHES[rank % len(VARIANT_DASHES)]
            drawn[label] = Style(colour(name), marker, 5.0, dashes, hatches[label])
        elif name in MARKERS:
            drawn[label] = Style(colour(name), *MARKERS[name], hatch=HATCHES[name])
        else:
            rank = others.index(name)
            marker, size = (*OTHER_MARKERS, (f"${rank + 1}$", NUMBER_SIZE))[min(rank, len(OTHER_MARKERS))]
            twins = sum(colour(other) == colour(name) for other in others[:rank])
            dashes = VARIANT_DASHES[-twins % len(VARIANT_DASHES)] if twins else ()
            drawn[label] = Style(colour(name), marker, size, dashes, hatches[label])
    # large markers come first, so that the small ones of rules that agree are drawn on top of them
    return dict(sorted(drawn.items(), key=lambda item: (-item[1].size, item[0])))


def in_order(labels: Iterable[str]) -> list[str]:
    """Estimator labels from left to right: names with a fixed marker, the others by the alphabet, each with options."""
    places = {name: place for place, name in enumerate(MARKERS)}
    return sorted(labels, key=lambda label: (places.get(label.partition(" ")[0], len(places)), label))


def theme() -> AbstractContextManager[None]:
    """Fonts, lines and grids, in force while a figure is made or saved."""
    settings: dict[RcKeyType, float | str | list[str]] = {
        **sns.axes_style("whitegrid"),
        "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that the picture is the same on every machine
        "font.size": TEXT,
        "axes.titlesize": TEXT,
        "axes.labelsize": TEXT,
        "legend.fontsize": TEXT,
        "xtick.labelsize": VALUE,
        "ytick.labelsize": VALUE,
        "axes.linewidth": 0.7,
        "grid.linewidth": 0.5,
        "grid.color": "0.88",
        "hatch.linewidth": 0.5,
        "svg.hashsalt": "gradbench",
        "svg.fonttype": "path",
    }
    return mpl.rc_context(settings)


P = ParamSpec("P")
R = TypeVar("R")


def themed(figure: Callable[P, R]) -> Callable[P, R]:
    """Make a figure under the theme, whatever the caller's settings are."""

    @wraps(figure)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        with theme():
            return figure(*args, **kwargs)

    return made


def points(ax: Axes, rows: DataFrame, x: str, y: str, style: Style, alpha: float = 1.0) -> None:
    """Markers, filled where the cell is settled and hollow where it is not."""
    settled = rows["status"] == Status.SETTLED
    scatter = partial(ax.scatter, marker=style.marker, s=style.size**2, alpha=alpha, zorder=3)
    hollow, filled = rows[~settled], rows[settled]
    scatter(hollow[x], hollow[y], facecolors="none", edgecolors=style.colour, linewidths=0.9)
    scatter(filled[x], filled[y], facecolors=style.colour, edgecolors="white", linewidths=0.4)


def metric(name: str) -> str:
    """Words and symbol of a metric, on two lines, for narrow panels."""
    return f"{textwrap.fill(METRICS[name].words, 16)} {METRICS[name].symbol}"


def legend(figure: Figure, styles: dict[str, Style], extra: Iterable[Line2D] = (), lines: bool = True) -> None:
    """What colours, markers and filling mean, in a strip above the panels."""
    entries: list[Line2D | Patch] = []
    for label, style in sorted(styles.items()):
        line = Line2D([], [], color=style.colour, linestyle=style.line if lines else "", marker=style.marker)
        line.set(label=label, markersize=style.size, markeredgecolor="white", markeredgewidth=0.4)
        entries.append(line)
    grey = partial(Line2D, [], [], color=GREY, linestyle="", marker="o", markersize=5)
    entries += [grey(label="settled"), grey(label="not settled", markerfacecolor="none")]
    entries += extra
    strip(figure, entries, 5)


def strip(figure: Figure, entries: Sequence[Line2D | Patch], most: int) -> None:
    """A legend above the panels, in as many columns as fit, at the most so many."""
    widths = [length(str(entry.get_label()), TEXT) + TEXT * (HANDLE + GAP) for entry in entries]

    def total(columns: int) -> float:
        lines, longer = divmod(len(entries), columns)  # the first columns are longer
        ends = itertools.accumulate(lines + (column < longer) for column in range(columns))
        return sum(max(widths[a:b]) for a, b in itertools.pairwise([0, *ends])) + TEXT * SPACING * (columns - 1)

    room = 72 * figure.get_figwidth() - TEXT
    columns = next((n for n in range(min(most, len(entries)), 1, -1) if total(n) < room), 1)
    figure.legend(handles=entries, loc="outside upper center", ncols=columns, frameon=False)


def label_values(ax: Axes, places: Sequence[float], words: Sequence[str], width: float) -> None:
    """Name values on x, with a label for those that have room beside the last one; a panel is so many points wide."""
    transform = ax.xaxis.get_transform().transform
    low, high = transform(np.array(ax.get_xlim()))
    shown: list[int] = []
    end = -math.inf  # of the last label, in points
    for i, word in enumerate(words):
        middle, half = width * float(transform(places[i]) - low) / (high - low), length(word, VALUE) / 2
        if middle - half > end + VALUE / 2:
            shown.append(i)
            end = middle + half
    ax.set_xticks(places, [word if i in shown else "" for i, word in enumerate(words)])


@cache
def length(text: str, size: float) -> float:
    """How long a text is, in points, in letters of so many points."""
    return float(TextPath((0, 0), text, size=size).get_extents().width)


def count(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def without(cells: DataFrame) -> list[str]:
    """A sentence that counts cells without a cosine by status; none where there are no such cells."""
    counts = cells["status"].value_counts()
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    return [f"No cosine: {count(len(cells), 'cell')} ({said})."] if said else []


def caption(figure: Figure, sentences: Iterable[str]) -> None:
    """A small grey paragraph below the panels."""
    text = _fit(" ".join(sentences), figure)
    figure.text(0.01, -0.01, text, size=8.5, color=GREY, va="top", ha="left", gid="caption")


def sign(figure: Figure, source: str) -> None:
    """Add the source of the numbers to the caption of a figure."""
    for text in figure.texts:
        if text.get_gid() == "caption":
            text.set_text(_fit(f"{text.get_text()} {source}.", figure))


def _fit(text: str, figure: Figure) -> str:
    return textwrap.fill(text, int(figure.get_figwidth() * 14.5))  # characters of 8.5 points an inch
