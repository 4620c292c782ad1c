"""How figures look: a colour and a marker for every name, filled for settled, a page, one title, one caption.

Lengths of this package are those of the screen. `figure`, `pt` and the theme turn them into those of the page.
"""

from __future__ import annotations

import itertools
import math
import textwrap
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.layout_engine import LayoutEngine
    from matplotlib.patches import Patch
    from matplotlib.typing import LineStyleType, RcKeyType
    from pandas import DataFrame, Series

DPI = 150  # of a PNG, and of the layout: letters are hinted, so that their widths depend on it
WIDTH = 9.0  # inches; in a PNG that is shown at 900 pixels, 9 points read as 7
GREY = "0.35"
FOLLOWS = 0.99  # smallest cosine over parameters from which on titles say that a rule follows BPTT: `tune` asks for it
FOLLOWED = (0, (7, 2.5))  # dashes of the line there
PALE_WIDE = "pale and wide, in the rule's colour: float64"
HEAD = 11  # points of a letter of the title
ROW = 9.5  # the same of the title of a row of panels
TEXT = 9  # of all else
CAPTION = 8.5  # of the caption
VALUE = 8  # of the values on an axis
LINE = 0.17  # inches of a line of a row's title
FILL = 0.94  # of the room for a text: on the screen letters are a little wider than their outlines
SPACE = 0.4  # of a letter's size: between words
HANDLE, GAP, SPACING = 2.0, 0.8, 2.0  # of a legend, in letters: a handle, the space to its text, that between columns


@dataclass(frozen=True)
class Page:
    """What figures are drawn for. `scale` times a length of the screen is the length there."""

    width: float  # inches of a figure that has panels side by side
    column: float  # inches of a figure of one panel
    scale: float
    family: str  # a font that comes with matplotlib, so that the picture is the same on every machine
    maths: str  # the font of formulas
    kinds: tuple[str, ...]  # of files
    captioned: bool  # whether a paragraph stands below the panels; in print the text has it


# 88.9 and 182.9 mm are what journals call one column and two. At this scale the text has 7.2 points and the smallest
# letters 5.2, where journals ask for 5 or more.
PAGES = {
    "screen": Page(WIDTH, 0.75 * WIDTH, 1.0, "DejaVu Sans", "dejavusans", ("svg", "png"), captioned=True),
    "paper": Page(7.2, 3.5, 0.8, "STIXGeneral", "stix", ("pdf", "svg"), captioned=False),
    "paper-sans": Page(7.2, 3.5, 0.8, "DejaVu Sans", "dejavusans", ("pdf", "svg"), captioned=False),
}
_PAGE: ContextVar[Page] = ContextVar("page", default=PAGES["screen"])

# Okabe & Ito 2008: colours that can be told apart under every common colour blindness. The reserve is from Tol's
# muted scheme.
COLOURS = {"ep": "#D55E00", "aep": "#0072B2", "bptt": "#000000", "adjoint": "#009E73", "tbptt": "#E69F00"}
WORDS = {
    "ep": "naive EP",
    "aep": "asymmetric EP",
    "bptt": "BPTT",
    "adjoint": "adjoint",
    "tbptt": "truncated BPTT",
}  # what figures say for a name, in titles, legends and below bars
MAIN = ("ep", "aep")  # rules that titles name also where there are many
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
NARROW, BROAD = 1.2, 2.8  # points of a line, and of that of a rule whose marker is larger than the next number
BROAD_FROM = 6.0
NUMBER_SIZE = 6.5  # of the markers after these, which are numbers
HATCHES = {"ep": "////", "aep": "", "adjoint": "", "tbptt": ""}
OTHER_HATCHES = ("....", "xxxx", "\\\\\\\\", "++++", "oo", "||||", "----", "**")
VARIANT_MARKERS = ("^", "v", "<", ">", "d", "h", "*", "8")
FORMS = (
    "aep clip=batch",
    "aep clip=sample",
    "aep nudge=positive",
    "ep nudge=positive",
    "ep readout=energy_contrast",
    "ep reduction=mean",
    "ep nudge=positive reduction=mean",
)  # forms of rules with fixed markers, those of `VARIANT_MARKERS` in this order
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
    def edge(self) -> str:
        """The colour around a filled marker. White would leave nothing of the strokes of a number."""
        return self.colour if str(self.marker).startswith("$") else "white"

    @property
    def line(self) -> LineStyleType:
        """Its dashes, as matplotlib wants them."""
        return (0, self.dashes) if self.dashes else "-"


OTHER = Style("0.72", "o", 3.5)  # of a rule without a colour of its own, where there are many


@contextmanager
def on(style: str) -> Iterator[Page]:
    """Draw and save what is drawn and saved inside for a page of `PAGES`."""
    token = _PAGE.set(PAGES[style])
    try:
        yield PAGES[style]
    finally:
        _PAGE.reset(token)


def page() -> Page:
    """The page that is drawn for."""
    return _PAGE.get()


def pt(length: float) -> float:
    """A length of the screen, in points or inches, as it is on the page."""
    return length * page().scale


def figure(height: float, wide: bool = True, layout: LayoutEngine | Literal["constrained"] = "constrained") -> Figure:
    """An empty figure so many inches of the screen high, as wide as the page or as one column of it."""
    return Figure(figsize=(page().width if wide else page().column, pt(height)), dpi=DPI, layout=layout)


def room(figure: Figure) -> float:
    """Its width in points of the screen."""
    return 72 * float(figure.get_figwidth()) / page().scale


def words(label: str) -> str:
    """What a figure says for an estimator with its options, wherever it names it."""
    name, _, options = label.partition(" ")
    return " ".join([WORDS.get(name, name), *([options] if options else [])])


def colour(estimator: str) -> str:
    """The colour of an estimator. One that has no fixed colour gets one by its name alone, whatever else is drawn."""
    return COLOURS.get(estimator) or RESERVE[zlib.crc32(estimator.encode()) % len(RESERVE)]


def styles(cells: DataFrame) -> dict[str, Style]:
    """A style for every estimator label; options change marker and dashes, never the colour.

    A rule of the package without a fixed marker takes its marker by its place in the alphabet of all of these, so that
    a marker means one rule in every figure of every run; rules from elsewhere come after them. Forms of `FORMS` have
    fixed markers too, and other forms take what these leave. Where two names have one colour, the second one's lines
    are dashed.
    """
    labels = sorted(cells["estimator_label"].unique())
    variants = [label for label in labels if " " in label]
    others = _others(label.partition(" ")[0] for label in labels)
    present = [name for name in others if any(label.partition(" ")[0] == name for label in labels)]
    hatches = dict(zip([*present, *variants], itertools.cycle(OTHER_HATCHES), strict=False))
    places = _places(variants)
    drawn = {}
    for label in labels:
        name, _, options = label.partition(" ")
        if options:
            marker: Marker = VARIANT_MARKERS[places[label]]
            dashes: tuple[float, ...] = VARIANT_DASHES[places[label] % len(VARIANT_DASHES)]
            drawn[label] = Style(colour(name), marker, 5.0, dashes, hatches[label])
        elif name in MARKERS:
            drawn[label] = Style(colour(name), *MARKERS[name], hatch=HATCHES[name])
        else:
            rank = others.index(name)
            marker, size = (*OTHER_MARKERS, (rf"$\mathbf{{{rank + 1}}}$", NUMBER_SIZE))[min(rank, len(OTHER_MARKERS))]
            twins = sum(colour(other) == colour(name) for other in present[: present.index(name)])
            dashes = VARIANT_DASHES[-twins % len(VARIANT_DASHES)] if twins else ()
            drawn[label] = Style(colour(name), marker, size, dashes, hatches[label])
    # large markers come first, so that the small ones of rules that agree are drawn on top of them
    return dict(sorted(drawn.items(), key=lambda item: (-item[1].size, item[0])))


def lit(styles: Mapping[str, Style], chosen: Collection[str]) -> dict[str, Style]:
    """Styles of many rules, of which the chosen ones have their colours and are drawn on top of all others."""
    others = {label: OTHER for label in styles if label not in chosen}
    return others | {label: style for label, style in styles.items() if label in chosen}


def others_key(styles: Mapping[str, Style]) -> list[Line2D]:
    """What the markers of the rules without a colour of their own mean; none where each has one."""
    grey = sum(style is OTHER for style in styles.values())
    words = count(grey, "other rule")
    dot = Line2D([], [], color=OTHER.colour, linestyle="", marker="o", markersize=pt(OTHER.size), label=words)
    return [dot] * (grey > 0)


def _others(names: Iterable[str]) -> list[str]:
    """The rules without a fixed marker: those of the package, then those of these names that it does not have."""
    known = {name for name in registry.known_estimators() if registry.role(name) == Role.RULE} - MARKERS.keys()
    return [*sorted(known), *sorted(set(names) - known - MARKERS.keys())]


def _places(labels: Sequence[str]) -> dict[str, int]:
    """A place among the markers of options for every label: that in `FORMS`, or the next one that these leave."""
    known = {label: place for place, label in enumerate(FORMS) if label in labels}
    left = [place for place in range(len(VARIANT_MARKERS)) if place not in known.values()]
    others = [label for label in labels if label not in known]
    return known | dict(zip(others, itertools.cycle(left), strict=False))


def in_order(labels: Iterable[str]) -> list[str]:
    """Estimator labels from left to right: names with a fixed marker, the others by the alphabet, each with options."""
    places = {name: place for place, name in enumerate(MARKERS)}
    return sorted(labels, key=lambda label: (places.get(label.partition(" ")[0], len(places)), label))


def _know_fonts() -> None:
    """Tell matplotlib of the fonts that come with it and that its list of fonts lacks.

    The list is made once for a user and kept on disk. It lacks a font whose file could not be read at that moment, and
    a font that it lacks is replaced by another one without an error.
    """
    listed = {Path(font.fname).name for font in fontManager.ttflist}
    for path in sorted((Path(mpl.get_data_path()) / "fonts" / "ttf").glob("*.ttf")):
        if path.name not in listed:
            fontManager.addfont(path)


def theme() -> AbstractContextManager[None]:
    """Fonts, lines and grids, in force while a figure is made or saved."""
    _know_fonts()
    settings: dict[RcKeyType, float | str | list[str]] = {
        **sns.axes_style("whitegrid"),
        "font.family": [page().family],
        "mathtext.fontset": page().maths,
        "font.size": pt(TEXT),
        "axes.titlesize": pt(TEXT),
        "axes.titley": 1.0,  # above the panel; to look for labels on top of it takes a tenth of the time of a figure
        "axes.labelsize": pt(TEXT),
        "legend.fontsize": pt(TEXT),
        "xtick.labelsize": pt(VALUE),
        "ytick.labelsize": pt(VALUE),
        "axes.linewidth": 0.7,
        "grid.linewidth": 0.5,
        "grid.color": "0.88",
        "hatch.linewidth": 0.5,
        "svg.hashsalt": "gradbench",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,  # letters are embedded as TrueType, which journals ask for
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


def line(ax: Axes, along: Series, style: Style, width: float | None = None, alpha: float = 1.0) -> None:
    """A line through numbers by place. That of a rule with a large marker is broad, so that it shows below others."""
    width = pt(width or (BROAD if style.size > BROAD_FROM else NARROW))
    ax.plot(along.index, along, color=style.colour, linestyle=style.line, linewidth=width, alpha=alpha, zorder=2)


def points(ax: Axes, rows: DataFrame, x: str, y: str, style: Style, alpha: float = 1.0) -> None:
    """Markers, filled where the cell is settled and hollow where it is not."""
    settled = (rows["status"] == Status.SETTLED).to_numpy(bool)
    scatter = partial(ax.scatter, marker=style.marker, s=pt(style.size) ** 2, alpha=alpha, zorder=3)
    places, values = rows[x].to_numpy(float), rows[y].to_numpy(float)
    for hollow in (True, False):
        if not (these := settled ^ hollow).any():
            continue
        face, edge, width = ("none", style.colour, 0.9) if hollow else (style.colour, style.edge, 0.4)
        scatter(places[these], values[these], facecolors=face, edgecolors=edge, linewidths=width)


def by_style(rows: DataFrame, styles: Mapping[str, Style]) -> Iterator[tuple[str, Style, DataFrame]]:
    """Rules in the order of their styles, each with its rows, where it has some."""
    groups = {str(label): of_rule for label, of_rule in rows.groupby("estimator_label", sort=False)}
    for label, style in styles.items():
        if label in groups:
            yield label, style, groups[label]


def metric(name: str) -> str:
    """Words and symbol of a metric, on two lines, for narrow panels."""
    return f"{textwrap.fill(METRICS[name].words, 16)} {METRICS[name].symbol}"


def legend(
    figure: Figure,
    styles: dict[str, Style],
    extra: Iterable[Line2D | Patch] = (),
    lined: Collection[str] | None = None,
    hollow: bool = True,
) -> None:
    """What colours, markers and filling mean, in a strip above the panels; filling where some markers are hollow.

    `lined` are the rules that are drawn with a line; None: all.
    """
    entries: list[Line2D | Patch] = []
    for label, style in sorted(styles.items()):
        line = Line2D(
            [],
            [],
            color=style.colour,
            linestyle=style.line if lined is None or label in lined else "",
            marker=style.marker,
        )
        line.set(label=words(label), markersize=pt(style.size), markeredgecolor=style.edge, markeredgewidth=0.4)
        entries.append(line)
    if hollow:
        grey = partial(Line2D, [], [], color=GREY, linestyle="", marker="o", markersize=pt(5))
        entries += [grey(label="settled"), grey(label="not settled: no evidence", markerfacecolor="none")]
    entries += extra
    strip(figure, entries, 5)


def strip(figure: Figure, entries: Sequence[Line2D | Patch], most: int) -> None:
    """A legend above the panels, in as many columns as fit, at the most so many."""
    widths = [length(str(entry.get_label()), TEXT) + TEXT * (HANDLE + GAP) for entry in entries]

    def total(columns: int) -> float:
        lines, longer = divmod(len(entries), columns)  # the first columns are longer
        ends = itertools.accumulate(lines + (column < longer) for column in range(columns))
        return sum(max(widths[a:b]) for a, b in itertools.pairwise([0, *ends])) + TEXT * SPACING * (columns - 1)

    columns = next((n for n in range(min(most, len(entries)), 1, -1) if total(n) < FILL * room(figure) - TEXT), 1)
    figure.legend(handles=entries, loc="outside upper left", ncols=columns, frameon=False)


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


def length(text: str, size: float, bold: bool = False) -> float:
    """How long a text is, in points, in letters of so many points."""
    return _length(text, size, bold, page().family) if text.strip() else 0.0


@cache
def _length(text: str, size: float, bold: bool, family: str) -> float:
    letters = FontProperties(family=family, weight="bold" if bold else "normal", size=size)
    return float(text_to_path.get_text_width_height_descent(text, letters, is_math_text(text))[0])


def fit(text: str, size: float, width: float, bold: bool = False) -> str:
    """A text in lines of so many points, broken between words; lines that are there stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, end = "", 0.0
        for word in paragraph.split(" "):
            long = length(word, size, bold)
            if line and end + SPACE * size + long > width:
                lines.append(line)
                line, end = word, long
            else:
                line, end = (f"{line} {word}", end + SPACE * size + long) if line else (word, long)
        lines.append(line)
    return "\n".join(lines)


def count(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def without(cells: DataFrame) -> list[str]:
    """A sentence that counts cells without a cosine by status; none where there are no such cells."""
    counts = cells["status"].value_counts()
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    return [f"No cosine: {count(len(cells), 'cell')} ({counted})."] if counted else []


def row_title(sentence: str, point: str, width: float = 72 * WIDTH) -> str:
    """The title of a row of panels: what is to be seen there, and below it the point at which the row is held."""
    return f"{fit(sentence, ROW, FILL * width, bold=True)}\n{point}" if sentence else point


def head(strip: SubFigure, text: str) -> None:
    """Put a title over a row of panels."""
    strip.suptitle(text, x=0.01, ha="left", size=pt(ROW), weight="bold")


def panel_title(ax: Axes, sentence: str, point: str, width: float) -> None:
    """The title of a panel of so many points: what is to be seen there, and the point at which it is held."""
    text = "\n".join(fit(words, VALUE, width) for words in (sentence, point) if words)
    ax.set_title(text, loc="left", fontsize=pt(VALUE))


def followed(ax: Axes, level: float = FOLLOWS, zorder: float = 1) -> None:
    """A line at the cosine from which on a rule is said to follow BPTT, or at the error up to which it is faithful."""
    ax.axhline(level, color=GREY, linewidth=0.9, linestyle=FOLLOWED, zorder=zorder)


def followed_key(statistic: str = "worst seed") -> Line2D:
    """What that line means, and of which number: of the worst of several seeds, or of every cell."""
    words = f"cosine {FOLLOWS:g}: follows BPTT in direction ({statistic})"
    return Line2D([], [], color=GREY, linewidth=0.9, linestyle=FOLLOWED, label=words)


def title(figure: Figure, sentence: str) -> None:
    """What is to be seen in a figure, above its legend; the figure is made higher by its lines."""
    text = fit(sentence, HEAD, FILL * room(figure), bold=True)
    figure.set_figheight(figure.get_figheight() + pt(1.3 * HEAD / 72) * len(text.split("\n")))
    if figure.legends:
        (legend,) = figure.legends
        legend.set_title(text, prop=FontProperties(size=pt(HEAD), weight="bold", family=page().family))
        legend.set_alignment("left")
        legend.get_title().set_gid("title")
    else:
        figure.suptitle(text, x=0.01, ha="left", size=pt(HEAD), weight="bold", gid="title")


def caption(figure: Figure, sentences: Iterable[str]) -> None:
    """A small grey paragraph below the panels, where the page has captions."""
    text = fit(" ".join(sentences), CAPTION, FILL * room(figure))
    shown = page().captioned
    figure.text(0.01, -0.01, text, size=pt(CAPTION), color=GREY, va="top", ha="left", gid="caption", visible=shown)


def said(figure: Figure, gid: Literal["title", "caption"]) -> str:
    """What the title or the caption of a figure says, in one line; empty where it has none."""
    texts = [*figure.texts, *(legend.get_title() for legend in figure.legends)]
    return next((" ".join(text.get_text().split()) for text in texts if text.get_gid() == gid), "")


def say(figure: Figure, word: str, other: str) -> None:
    """Say `other` wherever a figure says `word`."""
    for text in figure.findobj(Text):
        text.set_text(text.get_text().replace(word, other))


def sign(figure: Figure, source: str) -> None:
    """Add the source of the numbers to the caption of a figure."""
    for text in figure.texts:
        if text.get_gid() == "caption":
            text.set_text(fit(f"{said(figure, 'caption')} {source}.", CAPTION, FILL * room(figure)))
