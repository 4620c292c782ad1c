"""How figures look: a colour and a marker for every name, filled for settled, one theme, one caption."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import LineStyleType, RcKeyType
    from pandas import DataFrame

WIDTH = 9.0  # inches; in a print of 7 inches, and in a PNG that is shown at 900 pixels, 9 points read as 7
GREY = "0.35"

# Okabe & Ito 2008: colours that can be told apart under every common colour blindness. The reserve is from Tol's
# muted scheme.
COLOURS = {"ep": "#D55E00", "aep": "#0072B2", "bptt": "#000000", "adjoint": "#009E73", "tbptt": "#E69F00"}
RESERVE = ("#CC79A7", "#882255", "#999933", "#44AA99", "#332288", "#AA4499", "#117733")

# Markers can be told apart in grey. That of the naive rule is large, so that it shows under a rule that agrees with it.
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
    dashes: tuple[float, ...] = ()  # points of ink and of gap by turns; none: a solid line

    @property
    def line(self) -> LineStyleType:
        """Its dashes, as matplotlib wants them."""
        return (0, self.dashes) if self.dashes else "-"


def colour(estimator: str) -> str:
    """The colour of an estimator. One that has no fixed colour gets one by its name alone, whatever else is drawn."""
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
    # large markers come first, so that the small ones of rules that agree are drawn on top of them
    return dict(sorted(drawn.items(), key=lambda item: (-item[1].size, item[0])))


def theme() -> AbstractContextManager[None]:
    """Fonts, lines and grids, in force while a figure is made or saved."""
    settings: dict[RcKeyType, float | str | list[str]] = {
        **sns.axes_style("whitegrid"),
        "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that the picture is the same on every machine
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
    scatter = partial(ax.scatter, marker=style.marker, s=style.size**2, alpha=alpha, zorder=3)
    hollow, filled = rows[~settled], rows[settled]
    scatter(hollow[x], hollow[y], facecolors="none", edgecolors=style.colour, linewidths=0.9)
    scatter(filled[x], filled[y], facecolors=style.colour, edgecolors="white", linewidths=0.4)


def metric(name: str) -> str:
    """Words and symbol of a metric, on two lines, for narrow panels."""
    return f"{textwrap.fill(METRICS[name].words, 16)} {METRICS[name].symbol}"


def legend(figure: Figure, styles: dict[str, Style], extra: Iterable[Line2D] = (), lines: bool = True) -> None:
    """What colours, markers and filling mean, in a strip above the panels."""
    entries = []
    for label, style in sorted(styles.items()):
        line = Line2D([], [], color=style.colour, linestyle=style.line if lines else "", marker=style.marker)
        line.set(label=label, markersize=style.size, markeredgecolor="white", markeredgewidth=0.4)
        entries.append(line)
    grey = partial(Line2D, [], [], color=GREY, linestyle="", marker="o", markersize=5)
    entries += [grey(label="settled"), grey(label="not settled", markerfacecolor="none")]
    entries += extra
    figure.legend(handles=entries, loc="outside upper center", ncols=min(5, len(entries)), frameon=False)


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
