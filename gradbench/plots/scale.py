"""The scale on which every figure shows cosines: nines above zero, plain numbers below.

0, 0.9, 0.99, 0.999 ... stand equally far apart. So 0.9999 and 0.99999 can be told apart, where a plain axis shows both
as 1. An estimate with a negative cosine points uphill; negative cosines have a shaded linear strip at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

FLOOR = 1e-8  # of 1 - cos: a cosine that is closer to 1 is drawn here, since no question needs more digits
FLOOR_WORDS = r"cosines above $1-10^{-8}$ are drawn there"
SPACED = r"spaced by $\log(1-\cos)$"  # what an axis says below its words
SHADED = "Shaded: negative cosines, evenly spaced."
TOP = 4  # nines of the last colour: all cosines from 0.9999 on have it
# Colours from 0 to `TOP` nines. They jump at 0.99 from dark to light, so that a rule that misses is seen in grey too.
COLOURS = ListedColormap(mpl.colormaps["viridis"](np.r_[np.linspace(0, 0.42, 128), np.linspace(0.72, 1, 128)]))

Cosines = TypeVar("Cosines")  # a column or an array


def floored(cosines: Cosines) -> Cosines:
    """Cosines, where those closer to 1 than the floor are set to the floor; undefined ones stay undefined."""
    return np.minimum(cosines, 1 - FLOOR)  # type: ignore[call-overload]


def nines(cosine: ArrayLike) -> NDArray[np.float64]:
    """Where a cosine stands: -log10(1 - cos) from zero up, the cosine itself below zero."""
    cosine = np.asarray(cosine, float)
    return np.where(cosine < 0, cosine, -np.log10(np.clip(1 - cosine, FLOOR / 100, 1)))


def cosine_at(nines: ArrayLike) -> NDArray[np.float64]:
    """The inverse of `nines`."""
    nines = np.asarray(nines, float)
    return np.where(nines < 0, nines, 1 - 10.0 ** -np.maximum(nines, 0))


def tick(k: int) -> str:
    """How the cosine with k nines is written."""
    if k <= 0:
        return "0" if k == 0 else "$-1$"
    return "0." + "9" * k if k <= 4 else rf"$1-10^{{-{k}}}$"


def written(cosine: float) -> str:
    """A cosine with four digits, cut and not rounded, so that 1 is written for nothing less."""
    if np.isnan(cosine):
        return "-"
    return ">0.9999" if cosine > 0.9999 else f"{np.trunc(cosine * 1e4) / 1e4 + 0.0:.4f}"  # + 0.0: no -0


def limits_of(cosines: ArrayLike) -> list[str]:
    """What a caption says of the ends of an axis of cosines, where the drawn cosines reach them."""
    values = np.asarray(cosines, float)
    negative, close = bool((values < 0).any()), bool((values >= 1 - FLOOR).any())
    return [SHADED] * negative + [f"{FLOOR_WORDS.capitalize()}."] * close


def show_cosines(axes: Sequence[Axes], cosines: ArrayLike) -> None:
    """Give axes the scale on y, just wide enough for the cosines that are drawn in any of them."""
    values = np.asarray(cosines, float)
    drawn = nines(floored(values[np.isfinite(values)]))
    top = int(np.ceil(drawn.max(initial=1)))
    bottom = -1 if drawn.min(initial=0) < 0 else 0
    ticks = [k for k in range(bottom, top + 1) if k <= 4 or k % 2 == 0]
    low, high = float(cosine_at(bottom - 0.15)), float(cosine_at(top + 0.3))
    for ax in axes:
        ax.set_yscale("function", functions=(nines, cosine_at))
        ax.set_ylim(low, high)
        ax.set_yticks(cosine_at(ticks), [tick(k) for k in ticks])
        ax.minorticks_off()
        if bottom < 0:
            ax.axhspan(low, 0, color="0.93", zorder=0, linewidth=0)
