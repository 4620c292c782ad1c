"""Which cells a figure compares.

A figure shows some coordinates freely and holds the others at one point a system. Titles name that point.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.plots import look
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HELD = tuple(name for name, c in COORDINATES.items() if c.type is not str and name != "seed")  # all seeds are shown
ALWAYS = tuple(name for name in HELD if COORDINATES[name].optional)  # every title tells these
FREQUENT = ("damp", *(name for name in HELD if name not in ALWAYS))  # held where most cells are; `point` says the rest
USUAL_S, USUAL_BETA = 1.0, 0.02
FORMS = 6  # rules with their options that fit beside each other
LINE = 100  # characters of a line


class Place(NamedTuple):
    """A system and the point at which its cells are held, in words."""

    system: str
    point: str

    def title(self, width: int) -> str:
        """Both in lines of so many characters, of the system too."""
        return f"{lines(self.system, width)}\n{self.point}"


def estimates(cells: DataFrame) -> DataFrame:
    """The cells of rules that apply to their system. Reference and controls are left out: their cosines are known."""
    return cells[(cells["estimator"].map(registry.role) == Role.RULE) & (cells["status"] != Status.SKIPPED)]


def main_forms(cells: DataFrame) -> tuple[DataFrame, list[str]]:
    """The cells that a figure with room for few rules shows, and a sentence that names the rules that it leaves out.

    Where there are more than `FORMS` labels, these are the cells of each rule in its default form, and of a rule that
    the run has with options only in all its forms.
    """
    default = cells["estimator_label"] == cells["estimator"]
    if cells["estimator_label"].nunique() <= FORMS:
        return cells, []
    shown = cells[default | ~cells["estimator"].isin(cells[default]["estimator"])]
    others = map(look.words, sorted(set(cells["estimator_label"]) - set(shown["estimator_label"])))
    return shown, [f"Not drawn: {named}."] if (named := ", ".join(others)) else []


def one_dtype(cells: DataFrame) -> DataFrame:
    """The cells in float32, or all where there is none."""
    single = cells[cells["dtype"] == "float32"]
    return cells if single.empty else single


def point(cells: DataFrame, free: tuple[str, ...] = ()) -> dict[str, float]:
    """Where to hold every coordinate that is not free, for the cells of one system.

    It is the point where settled cells cover the most values of the free coordinates, then the most estimators, then
    the most seeds. Among equals it has s nearest 1, the most frequent damp, eps and batch, the least damp, the largest
    T1, the deepest T2 and beta nearest 0.02, in this order.
    """
    cells = cells[[*HELD, "status", "estimator_label", "seed"]]
    cells = cells.assign(estimator_label=pd.factorize(cells["estimator_label"])[0])  # numbers are compared faster
    pool = cells[cells["status"] == Status.SETTLED]
    if pool.empty:
        pool = cells
    keys = [key for key in HELD if key not in free and pool[key].notna().any()]
    covering = (["estimator_label"], ["seed"]) if not free else ([], ["estimator_label"], ["seed"])
    worth = pd.DataFrame({i: _covered(pool, keys, [*free, *by]) for i, by in enumerate(covering)})
    if worth.empty:
        return {}
    points = worth.index.to_frame(index=False)
    nearness = [-(points["s"] - USUAL_S).abs()] if "s" in keys else []
    nearness += [points[key].map(cells[key].value_counts()) for key in FREQUENT if key in keys]
    nearness += [-points["damp"]] if "damp" in keys else []
    nearness += [points[key] for key in ("T1", "T2") if key in keys]
    nearness += [-np.log(points["beta"].astype(float) / USUAL_BETA).abs()] if "beta" in keys else []
    every = pd.concat([worth.reset_index(drop=True), *nearness], axis=1, ignore_index=True)
    best = every.sort_values(list(every), ascending=False, kind="stable").index[0]
    return {str(key): points[key][best] for key in keys}


def _covered(cells: DataFrame, keys: list[str], covered: list[str]) -> Series[int]:
    """How many values of `covered` together the cells of every point have, by point."""
    return cells.drop_duplicates([*keys, *covered]).groupby(keys).size()


def at(cells: DataFrame, point: dict[str, float]) -> DataFrame:
    """The cells at a point. A cell that does not have a coordinate of the point matches any value of it."""
    here = cells["cell"].notna()
    for key, value in point.items():
        here &= (cells[key] == value) | cells[key].isna()
    return cells[here]


def deepest(cells: DataFrame) -> DataFrame:
    """The cells of each system, s and damp at the deepest T2 and the usual beta, in float32 where there is any.

    Neither truncation nor a large nudge hides there what else is wrong.
    """
    parts = []
    for _, rows in cells.groupby(["system_label", "s", "damp"], dropna=False):
        rows = one_dtype(rows)
        if (rows[["T2", "beta"]].nunique() > 1).any():  # there is something to choose
            rows = at(rows, {key: value for key, value in point(rows).items() if key in ("T2", "beta")})
        parts.append(rows)
    return pd.concat(parts) if parts else cells


def by_system(cells: DataFrame, free: tuple[str, ...] = (), dtypes: bool = False) -> dict[Place, DataFrame]:
    """The cells of each system at its point, in one dtype or in all."""
    held = {}
    for system, rows in cells.groupby("system_label"):
        rows = rows if dtypes else one_dtype(rows)
        where = point(rows, free)
        here = at(rows, where)
        words = ", ".join([*_words(where, rows), *sorted(here["dtype"].unique())])
        held[Place(str(system), f"at {words}")] = here
    return held


def lines(system: str, width: int) -> str:
    """A system with its options in lines of a width, broken between options."""
    return textwrap.fill(system, width, break_long_words=False, break_on_hyphens=False)


def _words(point: dict[str, float], cells: DataFrame) -> list[str]:
    """A point as a title says it. A coordinate that every system has is said only where the cells differ in it."""
    said = [key for key in point if key in ALWAYS or cells[key].nunique() > 1]
    return [f"{COORDINATES[key].symbol or key}$\\,=\\,${number(point[key])}" for key in said]


def number(value: float) -> str:
    """A value of a coordinate as a figure says it: a whole number as it is, others with three digits."""
    return f"{value:g}" if float(value).is_integer() else f"{value:.3g}"
