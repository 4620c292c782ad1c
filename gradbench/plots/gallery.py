"""The figures of a run by name, collected from the files of `plots/figures`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from gradbench.plots import figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from gradbench.plots.sources import Tables


def collect() -> dict[str, Callable[[Tables], Figure | None]]:
    """Every figure that a file declares in `FIGURES`, sorted by name: the name is that of the drawn file.

    Raises ValueError where two files declare a figure of one name.
    """
    collected: dict[str, Callable[[Tables], Figure | None]] = {}
    for module in pkgutil.iter_modules(figures.__path__):
        declared = importlib.import_module(f"{figures.__name__}.{module.name}").FIGURES
        if twice := collected.keys() & declared.keys():
            raise ValueError(f"{module.name}: another file draws {', '.join(sorted(twice))} already")
        collected |= declared
    return dict(sorted(collected.items()))
