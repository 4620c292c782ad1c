"""The figures of a run by name, collected from the files of `plots/figures`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from gradbench.errors import UserError, near_miss
from gradbench.plots import figures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

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


def chosen(names: Collection[str] = ()) -> dict[str, Callable[[Tables], Figure | None]]:
    """The figures of these names, all of them where none is named. Raises UserError for a name that no figure has."""
    known = collect()
    for name in names:
        if name not in known:
            raise UserError(f"plot: there is no figure {name!r}{near_miss(name, known)}")
    return {name: drawing for name, drawing in known.items() if not names or name in names}
