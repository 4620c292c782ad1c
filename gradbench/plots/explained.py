"""One cell taken apart: error by cause, eigenvalues at s*, cosine against depth, updates step by step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gradbench.plots import look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.typing import LineStyleType
    from pandas import DataFrame

SMALLEST = 1e-8  # a smaller error by cause, and a smaller 1 - cos, is drawn here
FAR = 0.1  # of 1 - cos: where every curve stays above it, the axis is linear, since there are no decades to show
CROWDED = 300  # end over start of an axis of steps, from which on it has labels at powers of ten only
ESCAPE = 3  # the axis of updates is cut at so many times the largest update of the reference
CAUSED = "#D55E00"
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
    rule: str,
    sentences: Sequence[str],
) -> Figure:
    """Four panels of a cell.

    causes       cause, size, culprit
    eigenvalues  real, imaginary, whole
    depths       estimator, T2, cosine; `T2` marks the cell's
    updates      param, step, estimate, reference; of `rule`
    """
    figure = Figure(figsize=(look.WIDTH, 6.8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    (left, right), (lower, last) = figure.subplots(2, 2)
    _causes(left, causes, negligible)
    _eigenvalues(right, eigenvalues)
    _depths(lower, depths, T2)
    _updates(last, updates, rule)
    look.caption(figure, sentences)
    return figure


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
        ax.annotate(text, (end, place), at, textcoords="offset points", va="center", size=8, bbox=paper, zorder=5)
    ax.axvline(negligible, color=look.GREY, linewidth=0.9, linestyle=":", zorder=4)
    ax.set_xscale("log")
    ax.set_xlim(SMALLEST / 2, 200 * top)
    ax.xaxis.set_major_locator(LogLocator(numticks=7))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(places, causes["cause"])
    ax.set_ylim(len(causes) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="error, of the reference's norm", title="Error by cause (dotted: negligible below)")


def _eigenvalues(ax: Axes, eigenvalues: DataFrame) -> None:
    turn = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(turn), np.sin(turn), color=look.GREY, linewidth=0.9)
    whole = bool(eigenvalues["whole"].all())
    outside = np.hypot(eigenvalues["real"], eigenvalues["imaginary"]) >= 1
    for rows, colour in ((eigenvalues[~outside], look.COLOURS["aep"]), (eigenvalues[outside], CAUSED)):
        faces = colour if whole else "none"
        ax.scatter(rows["real"], rows["imaginary"], s=14, facecolors=faces, edgecolors=colour, linewidths=0.8, zorder=3)
    ax.set_aspect("equal", adjustable="datalim")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    kind = "Eigenvalues" if whole else "Ritz values"
    ax.set(xlabel=r"Re $\lambda$", ylabel=r"Im $\lambda$", title=f"{kind} of $J_G$ at s*, worst sample")


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
            label=NAMES.get(str(name), str(name)),
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
    ax.set(xlabel="depth T2 (steps)", ylabel="$1 -$ cosine to BPTT", title="Depth")


def _updates(ax: Axes, updates: DataFrame, rule: str) -> None:
    ax.set_title("Updates, step by step")
    if updates.empty:
        ax.text(0.5, 0.5, "no steps of both\nto be compared", transform=ax.transAxes, ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return
    entries = []
    for (name, rows), colour in zip(updates.groupby("param", sort=False), look.RESERVE, strict=False):
        ax.plot(rows["step"], rows["reference"], color=colour, linewidth=3.2, alpha=0.35)
        ax.plot(rows["step"], rows["estimate"], color=colour, linewidth=1.3, linestyle="--")
        entries.append(Line2D([], [], color=colour, linewidth=2, label=str(name)))
    entries.append(Line2D([], [], color=look.GREY, linewidth=3.2, alpha=0.35, label="BPTT"))
    entries.append(Line2D([], [], color=look.GREY, linewidth=1.3, linestyle="--", label=rule))
    _legend(ax, entries)
    bound = ESCAPE * updates["reference"].abs().max()
    if not updates["estimate"].abs().max() <= bound:
        ax.set_ylim(-bound, bound)
        ax.set_title("Updates, step by step (estimate off scale)")
    _steps(ax)
    ax.set(xlabel="step of the second phase", ylabel="update, of the largest entry")


def _legend(ax: Axes, entries: list[Line2D]) -> None:
    """A legend below the panel, where it hides no line."""
    ax.legend(
        handles=entries,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=3,
        fontsize=8,
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
