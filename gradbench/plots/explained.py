"""One cell taken apart: error by cause, eigenvalues at s*, cosine against depth, updates step by step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gradbench.plots import look
from gradbench.plots.wording import number, part
from gradbench.vocabulary.status import Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType
    from pandas import DataFrame, Series

SMALLEST = 1e-8  # a smaller error by cause, and a smaller 1 - cos, is drawn here
FAR = 0.1  # of 1 - cos: where every curve stays above it, the axis is linear, since there are no decades to show
CROWDED = 300  # end over start of an axis of steps, from which on it has labels at powers of ten only
ESCAPE = 3  # the axis of updates is cut at so many times the largest update of the reference
CAUSED = "#D55E00"
FEW_TIMES = 2.0  # distances from BPTT within this factor are alike
DEPARTED = 0.1  # of the largest update of the reference: farther off, an update has left it
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of entries, so that they are told apart in grey
# Dashes tell curves that lie on each other apart; a name that is not here has a solid line.
DASHES = {"ep": (5, 1.5), "aep": (1, 1.2), "tbptt": (5, 1.5, 1, 1.5)}
NAMES = {"ep": "EP, linearised", "aep": "asymmetric EP, linearised"}


@look.themed
def draw_explanation(
    causes: DataFrame,
    eigenvalues: DataFrame,
    depths: DataFrame,
    updates: DataFrame,
    *,
    negligible: float,
    T2: int | None,
    system: str,
    rule: str,
    status: str,
    sentences: Sequence[str],
) -> Figure:
    """Four panels of a cell.

    causes       cause, size, culprit
    eigenvalues  real, imaginary, whole
    depths       estimator, T2, cosine; `T2` marks the cell's
    updates      param, step, estimate, reference; of `rule`
    """
    figure = look.figure(6.8, layout=ConstrainedLayoutEngine(w_pad=look.pt(0.12), h_pad=look.pt(0.12)))
    (left, right), (lower, last) = figure.subplots(2, 2)
    _causes(left, causes, negligible)
    _eigenvalues(right, eigenvalues)
    _depths(lower, depths, T2)
    _updates(last, updates, rule)
    look.title(figure, f"{system}, {look.words(rule)} ({status}): {blame(causes, negligible)}")
    look.caption(figure, sentences)
    return figure


def blame(causes: DataFrame, negligible: float) -> str:
    """Which cause makes the error of a cell, and how large it is."""
    blamed = causes[causes["culprit"]]
    if blamed.empty:
        return f"no cause is above {number(negligible)} of the reference"
    size = float(blamed["size"].iloc[0])
    large = f"{number(size)} of |g|" if math.isfinite(size) else "not finite"
    return f"the cause of its error is {blamed['cause'].iloc[0]} ({large})"


def stability(eigenvalues: DataFrame) -> str:
    """Whether the eigenvalues of the step map lie in the unit circle, and what that means for s*."""
    whole = bool(eigenvalues["whole"].all())
    outside = int(_outside(eigenvalues).sum())
    kind = "Eigenvalues" if whole else "Ritz values"
    where = f"{part(outside, len(eigenvalues))} outside the circle" if outside else "all inside the circle"
    return f"{kind} of $J_G$: {where}, s* {'repels' if outside else 'attracts'}"


def _outside(eigenvalues: DataFrame) -> Series:
    """Whether an eigenvalue is larger than the status of a stable cell allows; round-off puts some at 1."""
    return np.hypot(eigenvalues["real"], eigenvalues["imaginary"]) > 1 + Thresholds().growth


def reach(depths: DataFrame, T2: int | None) -> str:
    """Which rule is the closest to BPTT at a depth, at the largest where none is named, and which the farthest."""
    at = depths["T2"].max() if T2 is None else T2
    off = (1 - depths[depths["T2"] == at].set_index("estimator")["cosine"]).dropna().clip(lower=SMALLEST)
    if off.empty:
        return f"Depth: nothing is defined at T2 = {at}"
    names = {name: NAMES.get(str(name), look.words(str(name))) for name in off.index}
    if off.max() <= FEW_TIMES * off.min():
        ends = " to ".join(dict.fromkeys([number(off.min()), number(off.max())]))
        return f"T2 = {at}: all {len(off)} rules off by {ends}"
    return f"T2 = {at}: {names[off.idxmin()]} off by {number(off.min())},\n{names[off.idxmax()]} by {number(off.max())}"


def departure(updates: DataFrame) -> str:
    """At which step an update of the estimate first differs from that of the reference, and of which entry."""
    bound = DEPARTED * updates["reference"].abs().max()
    off = updates[~((updates["estimate"] - updates["reference"]).abs() <= bound)]
    if off.empty:
        return f"Updates stay with BPTT for all {int(updates['step'].max())} steps"
    first = off.loc[off["step"].idxmin()]
    return f"Updates of {first['param']} leave BPTT at step {int(first['step'])}"


def _causes(ax: Axes, causes: DataFrame, negligible: float) -> None:
    sizes = causes["size"].to_numpy(float)
    top = 10 * max(1.0, np.max(sizes[np.isfinite(sizes)], initial=1.0))
    drawn = np.clip(np.where(np.isfinite(sizes), sizes, top), SMALLEST, top)
    colours = [CAUSED if culprit else "0.6" for culprit in causes["culprit"]]
    places = range(len(causes))
    ax.barh(places, drawn, left=0, color=colours, height=0.62, zorder=3)
    for place, size, end in zip(places, sizes, drawn, strict=True):
        text = "not finite" if not math.isfinite(size) else f"{size:.1e}" if size >= SMALLEST else "< 1e-8"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # over the dotted line
        at = (4, 0)  # points to the right of the bar
        ax.annotate(
            text, (end, place), at, textcoords="offset points", va="center", size=look.pt(8), bbox=paper, zorder=5
        )
    ax.axvline(negligible, color=look.GREY, linewidth=0.9, linestyle=":", zorder=4)
    ax.set_xscale("log")
    ax.set_xlim(SMALLEST / 2, 200 * top)
    ax.xaxis.set_major_locator(LogLocator(numticks=7))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(places, causes["cause"])
    ax.set_ylim(len(causes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="error, of the reference's norm $|g|$", title="Error by cause (dotted: negligible below)")


def _eigenvalues(ax: Axes, eigenvalues: DataFrame) -> None:
    turn = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(turn), np.sin(turn), color=look.GREY, linewidth=0.9)
    whole = bool(eigenvalues["whole"].all())
    outside = _outside(eigenvalues)
    kinds = ((eigenvalues[~outside], look.COLOURS["aep"], "o"), (eigenvalues[outside], CAUSED, "D"))
    for rows, colour, marker in kinds:
        faces = colour if whole else "none"
        drawn: dict[str, Any] = {"facecolors": faces, "edgecolors": colour, "marker": marker, "s": look.pt(3.7) ** 2}
        ax.scatter(rows["real"], rows["imaginary"], linewidths=0.8, zorder=3, **drawn)
    ax.set_aspect("equal", adjustable="datalim")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    said = f"{stability(eigenvalues)}\n(worst sample)"
    ax.set(xlabel=r"Re $\lambda$, eigenvalue of a step", ylabel=r"Im $\lambda$", title=said)


def _depths(ax: Axes, depths: DataFrame, T2: int | None) -> None:
    entries = []
    for name, rows in depths.groupby("estimator", sort=False):
        colour, dashes = look.colour(str(name)), DASHES.get(str(name))
        style: LineStyleType = (0, dashes) if dashes else "-"
        width, alpha, zorder = (4.5, 0.45, 1.5) if name == "adjoint" else (1.8, None, 2)  # others lie on the adjoint
        (line,) = ax.plot(
            rows["T2"],
            np.clip(1 - rows["cosine"], SMALLEST, None),
            color=colour,
            linestyle=style,
            linewidth=width,
            alpha=alpha,
            zorder=zorder,
            label=NAMES.get(str(name), look.words(str(name))),
        )
        entries.append(line)
    if T2 is not None:
        ax.axvline(T2, color=look.GREY, linewidth=0.9, linestyle=":")
        entries.append(Line2D([], [], label="T2 of the cell", color=look.GREY, linewidth=0.9, linestyle=":"))
    _steps(ax)
    if (1 - depths["cosine"]).min() < FAR:
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.yaxis.set_major_locator(MaxNLocator(4))
    _legend(ax, entries)
    ax.set(xlabel="depth T2 (steps)", ylabel="$1 -$ cosine to BPTT", title=reach(depths, T2))


def _updates(ax: Axes, updates: DataFrame, rule: str) -> None:
    if updates.empty:
        ax.set_title("Updates: none to be compared")
        ax.text(0.5, 0.5, "no steps of both\nto be compared", transform=ax.transAxes, ha="center", va="center")
        ax.set_axis_off()
        return
    ax.set_title(departure(updates))
    entries, looks = [], zip(look.RESERVE, MARKERS, strict=True)
    for (name, rows), (colour, marker) in zip(updates.groupby("param", sort=False), looks, strict=False):
        marked: dict[str, Any] = {"color": colour, "marker": marker, "markersize": look.pt(4), "markevery": 0.12}
        ax.plot(rows["step"], rows["reference"], linewidth=3.2, alpha=0.35, **marked)
        ax.plot(rows["step"], rows["estimate"], linewidth=1.3, linestyle="--", **marked)
        entries.append(Line2D([], [], color=colour, marker=marker, markersize=look.pt(4), linewidth=2, label=str(name)))
    entries.append(Line2D([], [], color=look.GREY, linewidth=3.2, alpha=0.35, label="BPTT"))
    entries.append(Line2D([], [], color=look.GREY, linewidth=1.3, linestyle="--", label=look.words(rule)))
    _legend(ax, entries)
    bound = ESCAPE * updates["reference"].abs().max()
    if not updates["estimate"].abs().max() <= bound:
        ax.set_ylim(-bound, bound)
        ax.set_title(f"{departure(updates)}\n(estimate off scale)")
    _steps(ax)
    ax.set(xlabel="step of the second phase", ylabel="update, of the largest entry")


def _legend(ax: Axes, entries: list[Line2D]) -> None:
    """A legend below the panel, where it hides no line."""
    ax.legend(
        handles=entries,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=3,
        fontsize=look.pt(8),
        frameon=False,
        columnspacing=1.2,
        handlelength=2.2,
    )


def _steps(ax: Axes) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < CROWDED * low else (1.0,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
