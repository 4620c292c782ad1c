"""The roofline figure of a stored benchmark: `python tests/perf/roofline.py docs/performance/DEVICE.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradbench.plots import look

PHASES = {"free": "o", "reverse": "s", "reverse + pull": "D", "nudged ep": "^", "correction": "v", "nudged aep": "P"}
ENGINES = {"eager": "#999999", "batched": "#0072B2", "compiled": "#D55E00", "fused": "#009E73"}


@look.themed
def roofline(stored: dict[str, Any]) -> Figure:
    """Rate of products against the products that the plain operations do for each byte they move.

    Right of the ridge a phase could reach the rate of products, left of it that of copies. The intensity is
    that of the eager operations; what a compiled step or a kernel fuses moves less and may pass the slanted roof.
    """
    peak, stream = stored["ceilings"]["tflops"], stored["ceilings"]["tbytes"]
    figure = Figure(figsize=(look.WIDTH * 0.75, 4.2), layout="constrained")
    ax = figure.subplots()
    x = np.geomspace(1, 60, 100)
    ax.plot(x, np.minimum(peak, stream * x), color="black", linewidth=1.5)
    ax.annotate(
        f"{peak:.0f} TFLOP/s float32 products",
        (58, peak),
        ha="right",
        va="bottom",
        xytext=(0, 3),
        textcoords="offset points",
    )
    ax.annotate(
        f"{stream:.1f} TB/s copies",
        (1.15, stream * 1.15),
        ha="left",
        va="bottom",
        rotation=33,
        xytext=(2, 6),
        textcoords="offset points",
    )
    for e in stored["entries"]:
        if e["engine"] in ENGINES:
            ax.plot(
                e["mflop"] / e["mbyte"],
                e["mflop"] / e["us"],
                PHASES[e["phase"]],
                color=ENGINES[e["engine"]],
                markersize=7,
            )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(1, 60),
        ylim=(0.04, 90),
        xlabel="FLOP of products a byte moved",
        ylabel="TFLOP/s",
    )
    shapes = [Line2D([], [], marker=m, color="0.3", linestyle="", label=p) for p, m in PHASES.items()]
    colours = [Line2D([], [], marker="o", color=c, linestyle="", label=e) for e, c in ENGINES.items()]
    figure.legend(handles=[*shapes, *colours], loc="outside right upper", frameon=False)
    where = f"{stored['processor']}, torch {stored['torch']}"
    ax.set_title(f"cet_real, 32 cells of 64 examples, float32 (eager: one cell)\n{where}", loc="left")
    return figure


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        roofline(json.loads(path.read_text())).savefig(path.with_suffix(".png"), dpi=100)
