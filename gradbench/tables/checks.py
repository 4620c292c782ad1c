"""Whether the claims of a suite hold in a run, by the table `cells` alone.

A check that matches no cell, meets a NaN or lacks a cell to compare with has no verdict, and no verdict is a failure:
a check that sees no number must not pass.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gradbench.planning.selection import IDENTITY, matches
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    import pandas as pd
    from pandas.core.groupby import DataFrameGroupBy

    from gradbench.planning.suites import Check

Result = Literal["pass", "fail", "none"]
TOLD = (*(name for name, c in COORDINATES.items() if c.optional), "seed")  # coordinates that a message names


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    result: Result
    cells: int  # how many matched
    detail: str  # the number that decided, and its cell
    cell: str = ""  # content key of the worst cell

    @property
    def passed(self) -> bool:
        """Whether the check has a verdict, and passes."""
        return self.result == "pass"


def evaluate(check: Check, cells: pd.DataFrame) -> Finding:
    """One check against the cells of a run."""
    rows = _where(cells, check.where)
    if rows.empty:
        return Finding(check.name, "none", 0, "no cell matches")
    if check.status is not None:
        wrong = rows[rows["status"] != check.status]
        if wrong.empty:
            return Finding(check.name, "pass", len(rows), f"all {len(rows)} cells are {check.status}")
        worst = wrong.iloc[0]
        detail = (
            f"{len(wrong)} of {len(rows)} cells are not {check.status}; first {worst['status']} at {_where_is(worst)}"
        )
        return Finding(check.name, "fail", len(rows), detail, worst["cell"])
    assert check.metric is not None
    values = _at(rows, check.at, check.reduce)
    if check.against is not None:
        others = _at(_partners(cells, check.where, check.against), check.at, check.reduce)
        values = _difference(values, others, check.metric)
    metric = values[check.metric].astype(float)
    if metric.isna().any():
        worst = values[metric.isna()].iloc[0]
        many = f"{int(metric.isna().sum())} of {len(metric)} values are undefined or have no partner"
        detail = f"{many}; first at {_where_is(worst)}"
        return Finding(check.name, "none", len(rows), detail, worst["cell"])
    for i, (coordinate, how) in enumerate(check.reduce.items()):
        # a coordinate that is already reduced must not split the groups: the best beta differs between seeds
        values = _reduce(values, {coordinate, *list(check.reduce)[:i]}, how, check.metric)
    return _bounded(check, values, len(rows))


def _bounded(check: Check, values: pd.DataFrame, matched: int) -> Finding:
    metric = values[check.metric].astype(float)
    what = f"{check.metric} - that of {check.against}" if check.against else str(check.metric)
    ends = [(check.min, metric.idxmin(), operator.lt, "<", ">="), (check.max, metric.idxmax(), operator.gt, ">", "<=")]
    details, beyond = [], []
    for bound, row, outside, bad, good in ends:
        if bound is None:
            continue
        extreme, worst = float(metric[row]), values.loc[row]
        details.append(
            f"{what} {extreme:.6g} {bad if outside(extreme, bound) else good} {bound:g} at {_where_is(worst)}"
        )
        beyond += [worst["cell"]] if outside(extreme, bound) else []
    return Finding(check.name, "fail" if beyond else "pass", matched, "; ".join(details), next(iter(beyond), ""))


def _where(cells: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Rows that match. Skipped rows, which have no metrics, match only a `where` with a status."""
    keep = [matches(row, where) for row in cells.to_dict("records")]
    rows = cells.loc[keep]  # with .loc an empty list selects rows, too, and not columns
    return rows if "status" in where else rows[rows["status"] != Status.SKIPPED]


def _partners(cells: pd.DataFrame, where: Mapping[str, Any], against: str) -> pd.DataFrame:
    """Rows of the estimator to compare with. `against` is a label, or else a name, which labels may share."""
    shared = {k: v for k, v in where.items() if k in cells.columns and not k.startswith("estimator")}
    rows = _where(cells, shared)
    exact = rows[rows["estimator_label"] == against]
    return rows[rows["estimator"] == against] if exact.empty else exact


def _groups(values: pd.DataFrame, without: set[str]) -> DataFrameGroupBy:
    keys = [c for c in IDENTITY if c not in without]
    return values.groupby(keys, dropna=False, sort=False)


def _at(rows: pd.DataFrame, at: Mapping[Any, str], reduced: Mapping[Any, str]) -> pd.DataFrame:
    for coordinate, end in at.items():
        extreme = _groups(rows, {*at, *reduced})[coordinate].transform(end)
        rows = rows[(rows[coordinate] == extreme) | rows[coordinate].isna()]  # null: a coordinate that is not used
    return rows


def _difference(mine: pd.DataFrame, other: pd.DataFrame, metric: str) -> pd.DataFrame:
    keys = [c for c in IDENTITY if c != "estimator_label"]
    partner = other.drop_duplicates(keys, keep=False)[[*keys, metric]]  # where a cell has two partners, neither counts
    joined = mine.merge(partner, on=keys, how="left", suffixes=("", "_other"))
    joined[metric] = joined[metric] - joined[f"{metric}_other"]
    return joined


def _reduce(values: pd.DataFrame, over: set[str], how: str, metric: str) -> pd.DataFrame:
    groups = _groups(values, over)[metric]
    if how in ("min", "max"):
        return values.loc[groups.idxmin() if how == "min" else groups.idxmax()]
    reduced = values.copy()
    reduced[metric] = groups.transform(how)
    return reduced.loc[groups.head(1).index]


def _where_is(row: pd.Series) -> str:
    """System, estimator and coordinates of a row, for a message."""
    point = [f"{c}={row[c]:g}" for c in TOLD if row[c] == row[c]]
    return " ".join((row["system_label"], "/", row["estimator_label"], *point))
