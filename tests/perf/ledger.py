"""The ledger of a benchmark session."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from gradbench.engine.device import resolve

DEVICE = resolve(os.environ.get("GRADBENCH_PERF_DEVICE", "auto"))
FOLDER = Path(__file__).parents[2] / "results" / "perf"
BASELINE = Path(__file__).parent / "baseline.json"
TOLERANCE = 0.7  # a ratio below this share of its baseline is a regression


@dataclass
class Entry:
    """One timing: a phase on one engine."""

    phase: str
    engine: str
    us: float  # per cell-step (per cell for a whole one)
    mflop: float  # of matrix products, per the same
    mbyte: float  # that the operations of the eager form read and write, views aside
    kernels: int  # launches, of all cells together
    ratio: float  # of the script's time over this one


@dataclass
class Sweep:
    """Warm seconds of the same cells against one size."""

    values: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ms_per_cell: list[float] = field(default_factory=list)

    def add(self, value: int, seconds: float, cells: int) -> None:
        """Take one size."""
        self.values.append(value)
        self.seconds.append(seconds)
        self.ms_per_cell.append(1e3 * seconds / cells)

    def line(self) -> str:
        """Milliseconds a cell, by size."""
        return ", ".join(f"{value} {ms:.2f}" for value, ms in zip(self.values, self.ms_per_cell, strict=True))


class Ledger:
    """Entries of a session."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ratios: dict[str, float] = {}
        self.ceilings: dict[str, float] = {}
        self.notes: dict[str, object] = {}
        self.sweeps: dict[str, Sweep] = {}

    def add(self, entry: Entry) -> None:
        """Take a timing."""
        self.entries.append(entry)
        if entry.engine != "script":
            self.ratios[f"{entry.phase} {entry.engine}"] = entry.ratio

    def table(self) -> str:
        """What is printed."""
        peak, stream = self.ceilings.get("tflops"), self.ceilings.get("tbytes")
        head = ("us", 12), ("MFLOP", 9), ("TFLOP/s", 9), ("of peak", 9), ("MB", 8), ("kernels", 9), ("x script", 10)
        lines = [f"{'phase':<16}{'engine':<10}" + "".join(f"{name:>{width}}" for name, width in head)]
        for e in self.entries:
            rate = e.mflop / e.us if e.us else 0.0
            share = f"{rate / peak:>9.1%}" if peak else f"{'':>9}"
            lines.append(
                f"{e.phase:<16}{e.engine:<10}{e.us:>12,.2f}{e.mflop:>9.1f}{rate:>9.2f}{share}"
                f"{e.mbyte:>8.2f}{e.kernels:>9}{e.ratio:>10.1f}"
            )
        if peak and stream:
            lines.append(f"ceilings measured here: {peak:.1f} TFLOP/s float32 products, {stream:.2f} TB/s copies")
        lines += [f"{k}: {v}" for k, v in self.notes.items()]
        return "\n".join(lines + [f"ms a cell by {knob}: {sweep.line()}" for knob, sweep in self.sweeps.items()])
