"""Whether the claims of a suite hold in a run, by the table `cells` alone.

A check of a metric looks at settled cells, unless it names the statuses that it looks at, and says how many cells it
left out. `at` comes first: it is the extreme of all matching cells, whatever became of them. A cell that was not
measured is never left out: nobody knows whether it would settle. A check that matches no cell, meets a number that is
not finite or lacks a cell to compare with has no verdict, and no verdict is a failure: a check that sees no number must
not pass.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from gradbench.planning.selection import IDENTITY
from gradbench.planning.suites import ANY, Fit
from gradbench.tables import schema
from gradbench.tables.findings import Finding
from gradbench.tables.selecting import selected
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from pandas.core.groupby import DataFrameGroupBy

    from gradbench.planning.suites import Check

FITTED = 3  # values that a slope or a rate is fitted to, at least
UNMEASURED = [status for status in Status if status.incomplete]
TOLD = (*(name for name, c in COORDINATES.items() if c.optional), "seed")  # coordinates that a message names


def evaluate(check: Check, cells: DataFrame) -> Finding:
    """One check against the cells of a run."""
    everywhere = {k: v for k, v in check.where.items() if k != "status"}
    if check.status is not None:
        return _in_status(check, check.status, selected(cells, everywhere))
    matching = _at(selected(cells, everywhere), check.at, check.reduce)
    rows = _in_statuses(matching, check.where)
    counts = matching["status"].drop(rows.index).value_counts()
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    if rows.empty:
        asked = check.where.get("status", Status.SETTLED)
        words = " or ".join(asked) if isinstance(asked, list) else asked
        return Finding(
            check.name, "none", 0, f"no cell is {words}: {told}" if told else "no cell matches", left_out=len(matching)
        )
    seen = _of_metric(check, rows, cells)
    detail = f"{seen.detail}; left out: {told}" if told else seen.detail
    return replace(seen, detail=detail, left_out=int(counts.sum()))


def _in_statuses(rows: DataFrame, where: Mapping[str, Any]) -> DataFrame:
    """Rows with a status that a metric is taken of: a named one, settled where none is, and what was not measured."""
    wanted = where.get("status", [Status.SETTLED])
    if wanted == ANY:
        return rows
    names = wanted if isinstance(wanted, list) else [wanted]
    return rows[rows["status"].isin([*names, *UNMEASURED])]


def _in_status(check: Check, status: Status, rows: DataFrame) -> Finding:
    if rows.empty:
        return Finding(check.name, "none", 0, "no cell matches")
    wrong = rows[rows["status"] != status]
    if wrong.empty:
        return Finding(check.name, "pass", len(rows), f"all {len(rows)} cells are {status}")
    worst = wrong.iloc[0]
    detail = f"{len(wrong)} of {len(rows)} cells are not {status}; first {worst['status']} at {where_is(worst)}"
    return Finding(check.name, "fail", len(rows), detail, worst["cell"])


def _of_metric(check: Check, rows: DataFrame, cells: DataFrame) -> Finding:
    """A check of a metric of `rows`; partners are among `cells`."""
    assert check.metric is not None
    values = rows
    if check.against is not None:
        others = _at(_partners(cells, check.where, check.against), check.at, check.reduce)
        values = _difference(values, _in_statuses(others, check.where), check.metric)
    if values.empty:
        return Finding(check.name, "none", 0, f"no cell is of another rule than {check.against}")
    unknown = _unknown(values, check.metric)
    if len(unknown):
        told = f"{len(unknown)} of {len(values)} values are not finite or have no partner"
        return _without_number(check, rows, unknown, told)
    for i, (coordinate, how) in enumerate(check.reduce.items()):
        # a coordinate that is already reduced must not split the groups: the best beta differs between seeds
        without = {coordinate, *list(check.reduce)[:i]}
        if how not in get_args(Fit):
            values = _reduce(values, without, how, check.metric)
            continue
        values = _fitted(values, without, how, check.metric, coordinate)
        if len(unknown := _unknown(values, check.metric)):
            told = f"no {how} over {coordinate}: it takes {FITTED} positive values"
            return _without_number(check, rows, unknown, told)
    if check.minus is not None:
        values = values.assign(**{check.metric: values[check.metric].astype(float) - values[check.minus].astype(float)})
        if len(unknown := _unknown(values, check.metric)):
            return _without_number(check, rows, unknown, f"no {check.minus} to subtract")
    return _bounded(check, values, len(rows))


def _unknown(values: DataFrame, metric: str) -> DataFrame:
    """The rows whose metric is not finite."""
    return values[~np.isfinite(values[metric].astype(float))]


def _without_number(check: Check, rows: DataFrame, unknown: DataFrame, told: str) -> Finding:
    """No verdict on `rows`, since some of the numbers that it rests on are not there; `told` says which."""
    first = unknown.iloc[0]
    return Finding(check.name, "none", len(rows), f"{told}; first at {where_is(first)}", first["cell"])


def _bounded(check: Check, values: DataFrame, matched: int) -> Finding:
    metric = values[check.metric].astype(float)
    what = f"{check.metric} - that of {check.against}" if check.against else str(check.metric)
    what = " ".join([*(f"{how} over {c} of" for c, how in check.reduce.items() if how in get_args(Fit)), what])
    what += f" - {check.minus}" if check.minus else ""
    ends = [(check.min, metric.idxmin(), operator.lt, "<", ">="), (check.max, metric.idxmax(), operator.gt, ">", "<=")]
    details, beyond = [], []
    for bound, row, outside, bad, good in ends:
        if bound is None:
            continue
        extreme, worst = float(metric[row]), values.loc[row]
        details.append(
            f"{what} {extreme:.6g} {bad if outside(extreme, bound) else good} {bound:g} at {where_is(worst)}"
        )
        beyond += [worst["cell"]] if outside(extreme, bound) else []
    return Finding(check.name, "fail" if beyond else "pass", matched, "; ".join(details), next(iter(beyond), ""))


def _partners(cells: DataFrame, where: Mapping[str, Any], against: str) -> DataFrame:
    """Rows of the estimator to compare with. `against` is a label, or else a name, which labels may share."""
    exact = cells[cells["estimator_label"] == against]
    rows = cells[cells["estimator"] == against] if exact.empty else exact
    shared = {k: v for k, v in where.items() if k in schema.IDENTITY and not k.startswith("estimator")}
    return selected(rows, {k: v for k, v in shared.items() if k not in _unused(rows)})


def _unused(rows: DataFrame) -> set[str]:
    """The coordinates that a rule does not use, by its rows; none where there are no rows."""
    return {c for c in IDENTITY if len(rows) and rows[c].isna().all()}


def _groups(values: DataFrame, without: set[str]) -> DataFrameGroupBy:
    keys = [c for c in IDENTITY if c not in without]
    return values.groupby(keys, dropna=False, sort=False)


def _at(rows: DataFrame, at: Mapping[Any, str], reduced: Mapping[Any, str]) -> DataFrame:
    for coordinate, end in at.items():
        extreme = _groups(rows, {*at, *reduced})[coordinate].transform(end)
        rows = rows[(rows[coordinate] == extreme) | rows[coordinate].isna()]  # null: a coordinate that is not used
    return rows


def _difference(mine: DataFrame, other: DataFrame, metric: str) -> DataFrame:
    # a coordinate that the other rule does not use, as truncated BPTT has no beta, sets no two cells apart
    keys = [c for c in IDENTITY if c != "estimator_label" and c not in _unused(other)]
    partner = other.drop_duplicates(keys, keep=False)  # where a cell has two partners, neither counts
    joined = mine.merge(partner[[*keys, metric, "cell"]], on=keys, how="left", suffixes=("", "_other"))
    joined[metric] = joined[metric] - joined[f"{metric}_other"]
    return joined[joined["cell"] != joined["cell_other"]]  # no cell is compared with itself


def _reduce(values: DataFrame, over: set[str], how: str, metric: str) -> DataFrame:
    groups = _groups(values, over)[metric]
    if how in ("min", "max"):
        return values.loc[groups.idxmin() if how == "min" else groups.idxmax()]
    reduced = values.copy()
    reduced[metric] = groups.transform(how)
    return reduced.loc[groups.head(1).index]


def _fitted(values: DataFrame, over: set[str], how: str, metric: str, coordinate: str) -> DataFrame:
    """One row a group, whose metric is the slope or the rate of the group; NaN where there is none."""
    rows = []
    for _, group in _groups(values, over):
        x, y = (group[name].to_numpy(float) for name in (coordinate, metric))
        fit = math.nan
        if len(set(x)) >= FITTED and (y > 0).all():
            x = np.log(x) if how == "slope" else x
            fit = float(np.polyfit(x, np.log(y), 1)[0])
        rows.append(group.iloc[[0]].assign(**{metric: math.exp(fit) if how == "rate" else fit}))
    return pd.concat(rows)


def where_is(row: Series) -> str:
    """System, estimator and coordinates of a row, for a message."""
    point = [f"{c}={row[c]:g}" for c in TOLD if row[c] == row[c]]
    return " ".join((row["system_label"], "/", row["estimator_label"], *point))
