"""Which cells a figure compares: the other coordinates are held at one point a system, and that point is said."""

from __future__ import annotations

import textwrap
from math import log
from typing import TYPE_CHECKING, Any

from gradbench.notation import COORDINATES
from gradbench.selection import CONTROL, REFERENCE
from gradbench.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame

ALWAYS = ("s", "damp", "T1", "T2", "beta")
HELD = (*ALWAYS, "eps", "batch")
USUAL_S, USUAL_BETA = 1.0, 0.02
BESIDE, LINE = 40, 100  # characters of a system that leave room for its point in the same line, and in a line at all


def estimates(cells: DataFrame) -> DataFrame:
    """The cells of rules that apply to their system: cosines of the reference and of its controls are known."""
    return cells[~cells["estimator"].isin([REFERENCE, CONTROL]) & (cells["status"] != Status.SKIPPED)]


def one_dtype(cells: DataFrame) -> DataFrame:
    """The cells in float32, or all where there is none."""
    single = cells[cells["dtype"] == "float32"]
    return cells if single.empty else single


def point(cells: DataFrame, free: tuple[str, ...] = ()) -> dict[str, Any]:
    """Where to hold every coordinate that is not free, for the cells of one system.

    Where settled cells cover the most values of the free coordinates, then the most estimators, then the
    most seeds; among equals s nearest 1, the most frequent damp, the largest T1, the deepest T2, beta nearest 0.02.
    """
    pool = cells[cells["status"] == Status.SETTLED]
    if pool.empty:
        pool = cells
    keys = [key for key in HELD if key not in free and pool[key].notna().any()]
    often = {key: cells[key].value_counts() for key in ("damp", "eps", "batch")}

    def worth(item: tuple[Any, DataFrame]) -> tuple[Any, ...]:
        values, rows = item
        at = dict(zip(keys, values, strict=True))
        nearness = [-abs(at["s"] - USUAL_S)] if "s" in at else []
        nearness += [often[key][at[key]] for key in ("damp", "eps", "batch") if key in at]
        nearness += [-at["damp"]] if "damp" in at else []
        nearness += [at[key] for key in ("T1", "T2") if key in at]
        nearness += [-abs(log(at["beta"] / USUAL_BETA))] if "beta" in at else []
        covering = (["estimator_label"], ["seed"]) if not free else ([], ["estimator_label"], ["seed"])
        return (*(len(rows[[*free, *by]].drop_duplicates()) for by in covering), *nearness)

    values, _ = max(pool.groupby(keys), key=worth, default=((), None))
    return dict(zip(keys, values, strict=False))


def at(cells: DataFrame, point: dict[str, Any]) -> DataFrame:
    """The cells at a point; a coordinate that an estimator does not have holds anywhere."""
    here = cells["cell"].notna()
    for key, value in point.items():
        here &= (cells[key] == value) | cells[key].isna()
    return cells[here]


def by_system(cells: DataFrame, free: tuple[str, ...] = (), dtypes: bool = False) -> dict[str, DataFrame]:
    """The cells of each system at its point, under a title that names system and point."""
    held = {}
    for system, own in cells.groupby("system_label"):
        own = own if dtypes else one_dtype(own)
        where = point(own, free)
        here = at(own, where)
        between = "   " if len(system) <= BESIDE else "\n"
        words = f"at {_words(where, own)}, {', '.join(sorted(here['dtype'].unique()))}"
        held[f"{lines(system, LINE)}{between}{words}"] = here
    return held


def lines(system: str, width: int) -> str:
    """A system with its options in lines of a width, broken between options."""
    return textwrap.fill(system, width, break_long_words=False, break_on_hyphens=False)


def _words(point: dict[str, Any], cells: DataFrame) -> str:
    """A point as a title says it; eps and batch only where they differ between the cells."""
    said = [key for key in point if key in ALWAYS or cells[key].nunique() > 1]
    symbols = {key: COORDINATES[key].symbol if key in COORDINATES else key for key in said}
    return ", ".join(f"{symbol}$\\,=\\,${point[key]:g}" for key, symbol in symbols.items())
