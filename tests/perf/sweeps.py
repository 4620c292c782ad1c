"""The cost against every size of a stored benchmark: `python tests/perf/sweeps.py docs/performance/DEVICE.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from gradbench.plots import look

WORDS = {"T1": "free steps T1", "N": "tokens N", "D": "width D", "b": "examples b", "problems": "problems"}


@look.themed
def sweeps(stored: dict[str, Any]) -> Figure:
    """Time of a cell against each size alone; the dashed line grows as the size does."""
    figure = Figure(figsize=(look.WIDTH * 1.1, 2.9), layout="constrained")
    found = stored["sweeps"]
    axes = figure.subplots(1, len(found), sharey=True)
    for ax, (knob, sweep) in zip(axes, found.items(), strict=True):
        sizes, ms = sweep["values"], sweep["ms_per_cell"]
        ax.plot(sizes, ms, "o-", color="#0072B2", markersize=5)
        if knob != "problems":  # a pack costs less a cell, the more it holds
            middle = len(sizes) // 2
            ax.plot(sizes, [ms[middle] * n / sizes[middle] for n in sizes], "--", color=look.GREY, linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel=WORDS[knob])
        ax.set_xticks(sizes, [str(n) for n in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("ms a cell")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    where = f"{stored['processor']}, torch {stored['torch']}"
    title = "cet_real: bptt, ep and aep, one size varied at a time (dashed: in proportion)"
    figure.suptitle(f"{title}\n{where}", fontsize=9)
    return figure


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        sweeps(json.loads(path.read_text())).savefig(path.with_name(f"{path.stem}-sweeps.png"), dpi=100)
