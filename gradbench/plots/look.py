"""How figures look: a colour and a marker a name, filled for settled, one theme, one caption line."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradbench.notation import METRICS
from gradbench.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

WIDTH = 9.0  # inches: at a print width of 7, and as a PNG of 900 pixels, 9 points read as 7
GREY = "0.35"

# Okabe & Ito 2008: told apart under every common colour blindness. The reserve is Tol's muted scheme.
COLOURS = {"ep": "#D55E00", "aep": "#0072B2", "bptt": "#000000", "adjoint": "#009E73", "tbptt": "#E69F00"}
RESERVE = ("#CC79A7", "#882255", "#999933", "#44AA99", "#332288", "#AA4499", "#117733")

# told apart in grey; the naive rule is large, so that it shows under a rule that agrees with it
MARKERS = {"ep": ("s", 6.5), "aep": ("o", 4.0)}
OTHER_MARKERS = ("D", "P", "X")
HATCHES = {"ep": "////"}
VARIANT_MARKERS = ("^", "v", "<", ">", "d", "h", "*", "8")
VARIANT_DASHES = ((3, 1.5), (1, 1.2), (5, 1.5, 1, 1.5), (6, 2), (2, 1, 2, 3))


@dataclass(frozen=True)
class Style:
    """How one estimator, with its options, is drawn."""

    colour: str
    marker: str
    size: float  # of the marker, in points
    dashes: Any = ""


def colour(estimator: str) -> str:
    """The colour of an estimator: fixed, or for one unknown here by its name alone."""
    return COLOURS.get(estimator) or RESERVE[zlib.crc32(estimator.encode()) % len(RESERVE)]


def styles(cells: DataFrame) -> dict[str, Style]:
    """A style for every estimator label; options change marker and dashes, never the colour."""
    labels = sorted(cells["estimator_label"].unique())
    drawn = {}
    for label in labels:
        name, _, options = label.partition(" ")
        variants = [other for other in labels if " " in other]
        if options:
            rank = variants.index(label)
            marker, size = VARIANT_MARKERS[rank % len(VARIANT_MARKERS)], 5.0
            dashes = VARIANT_DASHES[rank % len(VARIANT_DASHES)]
            drawn[label] = Style(colour(name), marker, size, dashes)
        else:
            spare = OTHER_MARKERS[zlib.crc32(name.encode()) % len(OTHER_MARKERS)]
            drawn[label] = Style(colour(name), *MARKERS.get(name, (spare, 5.0)))
    # naive first, so that what agrees with it is drawn on top
    return dict(sorted(drawn.items(), key=lambda item: (-item[1].size, item[0])))


def theme() -> AbstractContextManager[None]:
    """Fonts, lines and grids, for the while that a figure is made or saved."""
    settings: Any = {
        **sns.axes_style("whitegrid"),
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
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
    kind: dict[str, Any] = {"marker": style.marker, "s": style.size**2, "alpha": alpha, "zorder": 3}
    hollow, filled = rows[~settled], rows[settled]
    ax.scatter(hollow[x], hollow[y], facecolors="none", edgecolors=style.colour, linewidths=0.9, **kind)
    ax.scatter(filled[x], filled[y], facecolors=style.colour, edgecolors="white", linewidths=0.4, **kind)


def metric(name: str) -> str:
    """Words and symbol of a metric, on two lines, for narrow panels."""
    return f"{textwrap.fill(METRICS[name].words, 16)} {METRICS[name].symbol}"


def legend(figure: Figure, styles: dict[str, Style], extra: Iterable[Line2D] = (), lines: bool = True) -> None:
    """What colours, markers and filling mean, in a strip above the panels."""
    entries = []
    for label, style in sorted(styles.items()):
        dashes: Any = (0, style.dashes) if style.dashes else "-"
        line = Line2D([], [], color=style.colour, linestyle=dashes if lines else "", marker=style.marker)
        line.set(label=label, markersize=style.size, markeredgecolor="white", markeredgewidth=0.4)
        entries.append(line)
    grey: dict[str, Any] = {"color": GREY, "linestyle": "", "marker": "o", "markersize": 5}
    entries.append(Line2D([], [], label="settled", **grey))
    entries.append(Line2D([], [], label="not settled", markerfacecolor="none", **grey))
    entries += extra
    figure.legend(handles=entries, loc="outside upper center", ncols=min(5, len(entries)), frameon=False)


def count(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def without(cells: DataFrame) -> list[str]:
    """What became of cells that have no cosine; no sentence where there are none."""
    found = cells["status"].value_counts()
    said = ", ".join(f"{number} {status}" for status, number in found.items())
    return [f"No cosine: {count(len(cells), 'cell')} ({said})."] if said else []


def caption(figure: Figure, sentences: Iterable[str]) -> None:
    """A small grey paragraph below the panels."""
    text = _fit(" ".join(sentences), figure)
    figure.text(0.01, -0.01, text, size=8.5, color=GREY, va="top", ha="left", gid="caption")


def sign(figure: Figure, source: str) -> None:
    """Add where the numbers come from to the caption."""
    for text in figure.texts:
        if text.get_gid() == "caption":
            text.set_text(_fit(f"{text.get_text()} {source}.", figure))


def _fit(text: str, figure: Figure) -> str:
    return textwrap.fill(text, int(figure.get_figwidth() * 14.5))  # characters of 8.5 points an inch
