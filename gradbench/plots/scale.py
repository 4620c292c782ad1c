"""The one scale on which every figure shows cosines: nines above zero, plain numbers below.

0, 0.9, 0.99, 0.999 ... stand equally far apart, so that 0.9999 and 0.99999 can be told apart where a plain
axis shows both as 1. Negative cosines, where a step along the estimate climbs, keep a shaded linear strip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR = 1e-8  # of 1 - cos: closer to 1 is drawn here, for nobody needs to tell such cosines apart
FLOOR_WORDS = r"cosines above $1-10^{-8}$ are drawn there"


def floored(cosine: Any) -> Any:
    """Cosines with those above the floor drawn down to it; undefined ones stay undefined."""
    return np.minimum(cosine, 1 - FLOOR)


def nines(cosine: Any) -> Any:
    """Where a cosine stands: -log10(1 - cos) from zero up, the cosine itself below zero."""
    cosine = np.asarray(cosine, float)
    return np.where(cosine < 0, cosine, -np.log10(np.clip(1 - cosine, FLOOR / 100, 1)))


def cosine_at(nines: Any) -> Any:
    """The inverse of `nines`."""
    nines = np.asarray(nines, float)
    return np.where(nines < 0, nines, 1 - 10.0 ** -np.maximum(nines, 0))


def tick(k: int) -> str:
    """How the cosine with k nines is written."""
    if k <= 0:
        return "0" if k == 0 else "$-1$"
    return "0." + "9" * k if k <= 4 else rf"$1-10^{{-{k}}}$"


def show_cosines(axes: list[Axes], drawn: Any) -> None:
    """Give axes the scale on y, just wide enough for the cosines that are drawn in any of them."""
    drawn = np.asarray(drawn, float)
    drawn = nines(floored(drawn[np.isfinite(drawn)]))
    top = int(np.ceil(drawn.max(initial=1)))
    bottom = -1 if drawn.min(initial=0) < 0 else 0
    ticks = [k for k in range(bottom, top + 1) if k <= 4 or k % 2 == 0]
    for ax in axes:
        ax.set_yscale("function", functions=(nines, cosine_at))
        ax.set_ylim(cosine_at(bottom - 0.15), cosine_at(top + 0.3))
        ax.set_yticks(cosine_at(ticks), [tick(k) for k in ticks])
        ax.minorticks_off()
        ax.axhspan(float(cosine_at(bottom - 0.15)), 0, color="0.93", zorder=0, linewidth=0)
