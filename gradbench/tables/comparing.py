"""Two runs cell by cell: what is in both, what changed, and what is worse than noise."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbench.errors import UserError, near_miss
from gradbench.planning.registry import DIGEST
from gradbench.planning.suites import ANY
from gradbench.tables.baselines import allowance, by_place, losses, merged, same_thresholds, settled_in_both, worse
from gradbench.tables.checks import where_is
from gradbench.tables.findings import Finding
from gradbench.tables.schema import BETTER
from gradbench.tables.selecting import selected
from gradbench.tables.verifying import POINT
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.exit import Ended, Exit

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.tables.snapshots import Snapshot

_WORDS = {
    Exit.OK: "nothing is worse than noise",
    Exit.CHECK_FAILED: "worse",
    Exit.INCOMPLETE: "unfinished",
    Exit.NOTHING: "nothing compared",
}
_TOLD = ("commit", "dirty", "device", "processor", "torch", "cuda", "python", "source")  # of an environment
LISTED = 4  # values that a message names
SHARED = "shared "  # begins the key of a row that shares its coordinates with another one
Across = tuple[str, Any, Any]  # a column or an option, its value in the first run and in the second


@dataclass(frozen=True)
class Comparison(Ended):
    """Two runs, cell by cell. The second one is judged by the first, and passed where nothing is worse than noise."""

    table: DataFrame  # a row a metric: cells, median change, worst change with what is noise there, and its cell
    # 0: nothing is worse than noise; 1: something is, or is missing; 3: one of them is unfinished; 4: nothing was
    # compared, since no cell is common or none is settled in both
    code: Exit
    common: int
    only_a: int
    only_b: int
    environment: dict[str, tuple[Any, Any]]  # what differs
    findings: tuple[Finding, ...]
    pairs: DataFrame = field(repr=False)  # a row a cell and metric: a, b, change, allowed
    sides: tuple[str, str]  # what tells the two apart: the values of `across`, the runs where these are two

    @property
    def line(self) -> str:
        """The comparison in one line."""
        failed = sum(not f.passed for f in self.findings)
        told = failed and self.code is not Exit.NOTHING  # else there was no comparison
        more = f"  {failed} of {len(self.findings)} comparisons failed" if told else ""
        return (
            f"COMPARED {_WORDS[self.code]} ({self.code.value}){more}  {self.common} cells in both, "
            f"{self.only_a} only in the first, {self.only_b} only in the second"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code.value,
            "line": self.line,
            "common": self.common,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "environment": {name: list(pair) for name, pair in self.environment.items()},
            "metrics": json.loads(self.table.to_json(orient="records")),
            "findings": [asdict(f) for f in self.findings],
        }


def compared(
    a: Snapshot, b: Snapshot, metrics: Collection[str] | None = None, across: Across | None = None
) -> Comparison:
    """Compare the cells of two runs, or of one run with itself `across` a coordinate or an option.

    Noise is that of one run. Raises UserError for a metric without a direction, where `across` leaves no cell, and for
    a comparison of cells with themselves.
    """
    if across is None and a.folder.resolve() == b.folder.resolve():
        raise UserError(f"{a.folder}: is compared with itself; name another run, or two values with --across")
    if across is None and a.manifest is not None and a.manifest == b.manifest:
        raise UserError(f"{b.folder}: is a copy of {a.folder}; name another run, or two values with --across")
    if across is not None and across[1] == across[2]:
        raise UserError(f"--across {across[0]}: its two values are equal: {across[1]!r}")
    for metric in metrics or ():
        if metric not in BETTER:
            raise UserError(f"{metric!r} is no metric with a direction{near_miss(metric, BETTER)}")
    asked = tuple(dict.fromkeys(metrics)) if metrics else tuple(BETTER)
    before, after = (by_place(merged([run])) for run in (a, b))
    if across is not None:
        before, after = (_across(rows, across, value) for rows, value in zip((before, after), across[1:], strict=True))
    common = before.index.intersection(after.index, sort=False)
    left, right = before.loc[common].copy(), after.loc[common]
    left["dtype"] = np.where(right["dtype"] == "float32", "float32", left["dtype"])  # of two dtypes the coarser one
    for metric in asked:
        left[f"{metric}_noise"] = np.fmax(left[f"{metric}_noise"], right[f"{metric}_noise"])
    told = [_apart(before, after, across)]
    if len(common):
        same = same_thresholds("the first run", a.plan["thresholds"], b.plan["thresholds"], len(common))
        told = [_missing(before, after), same, *losses(left, right, 0.0, asked)]
    findings = tuple(replace(f, kind="compare") for f in told)
    pairs = _pairs(left, right, asked)
    both = [{k: run.env.get(k) for k in _TOLD} for run in (a, b)]
    differ = {k: (both[0][k], both[1][k]) for k in both[0] if both[0][k] != both[1][k]}
    nothing = pairs.empty and all(f.result != "fail" for f in findings)
    code = Exit.NOTHING if nothing else Exit.OK if all(findings) else Exit.CHECK_FAILED
    if len(common) and any(len(run.cells) < len(run.plan["cells"]) + len(run.plan["skipped"]) for run in (a, b)):
        code = Exit.INCOMPLETE
    only = len(before) - len(common), len(after) - len(common)
    sides = _side(a, across, 1, alone=a.folder == b.folder), _side(b, across, 2, alone=a.folder == b.folder)
    return Comparison(_by_metric(pairs, asked), code, len(common), *only, differ, findings, pairs, sides)


def _side(run: Snapshot, across: Across | None, place: int, *, alone: bool) -> str:
    """What one of the two is called; `alone`: both are of one run, so that its name says nothing."""
    value = [] if across is None else [f"{across[0]} = {across[place]}"]
    return ", ".join([*value, *([] if alone else [f"{run.folder.parent.name}/{run.id}"])])


def _missing(before: DataFrame, after: DataFrame) -> Finding:
    """Whether every cell of the first run has a partner."""
    there = before.index.isin(after.index)
    told = f"{int(there.sum())} of {len(before)} have a partner in the second"
    if shared := int(sum(rows.index.str.startswith(SHARED).sum() for rows in (before, after))):
        told += f"; {shared} share all other coordinates with another cell, so that none is its partner"
    if there.all():
        return Finding("every cell of the first run", "pass", len(before), told)
    row = before[~there].iloc[0]
    detail = f"{told}; first without {row['cell']}, {where_is(row)}"
    return Finding("every cell of the first run", "fail", len(before), detail, row["cell"])


def _apart(before: DataFrame, after: DataFrame, across: Across | None) -> Finding:
    """Why two runs have no cell in common: the coordinates of which they share no value, and how to pair one."""
    apart = []
    for name in (*("system_label", "estimator_label"), *COORDINATES):
        kind = name.removesuffix("_label")
        if across is not None and across[0] in (name, kind):
            continue
        mine, that = (rows[name].dropna().unique().tolist() for rows in (before, after))
        if not set(mine) & set(that) and (mine or that):
            apart.append((kind, mine, that))
    told = "no cell is in both"
    if shared := sum(rows.index.str.startswith(SHARED).sum() for rows in (before, after)):
        told += f"; {shared} share all other coordinates with another cell, so that none is its partner"
    for kind, mine, that in apart:
        told += f"; {kind} is {_listed(mine)} in the first and {_listed(that)} in the second"
    if not apart:
        told += ": no coordinate differs everywhere, and no cell has all of them as one of the other run has"
    elif len(apart) == 1 and across is None:
        kind = apart[0][0]
        pair = [_value(v) for v in (before[kind].iloc[0], after[kind].iloc[0]) if v == v]
        if len(set(pair)) > 1:  # two labels may have one name, and their options are what differs
            told += f"; to pair two values of it: --across {shlex.quote(f'{kind}={pair[0]},{pair[1]}')}"
    return Finding("every cell of the first run", "none", 0, told)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return (", ".join(map(_value, values[:LISTED])) or "not used") + more


def _across(rows: DataFrame, across: Across, value: Any) -> DataFrame:
    """Rows with this value, under a key that leaves it out. Rows that share such a key have keys without a partner."""
    name = across[0]
    options = {
        key for n in ("system_options", "estimator_options") for text in set(rows[n]) for key in json.loads(text)
    }
    kinds = {f"{kind}{end}" for kind in ("system", "estimator") for end in ("", "_label")}
    if name not in (known := {*COORDINATES, *kinds, *options}):
        raise UserError(f"--across {name}: is neither a coordinate nor an option{near_miss(name, known)}")
    column = f"{name}_label" if name in ("system", "estimator") and (rows[f"{name}_label"] == value).any() else name
    rows = selected(rows, {column: value, "status": ANY})
    if rows.empty:
        raise UserError(f"--across {name}: no cell has {name} = {value!r}")
    kind = name.removesuffix("_label")
    dropped = {kind, f"{kind}_options"} if name in kinds else {name}
    points = [
        tuple(_without(row[n], name) if n.endswith("options") else row[n] for n in POINT if n not in dropped)
        for row in rows[list(POINT)].astype(object).where(rows[list(POINT)].notna(), None).to_dict("records")
    ]
    rows = rows.set_axis([json.dumps(point) for point in points])
    shared = rows.index.duplicated(keep=False)
    return rows.set_axis(np.where(shared, SHARED + str(value) + rows["cell"], rows.index))


def _without(options: str, name: str) -> str:
    return json.dumps({k: v for k, v in json.loads(options).items() if k not in (name, DIGEST)}, sort_keys=True)


def _pairs(before: DataFrame, after: DataFrame, metrics: Sequence[str]) -> DataFrame:
    import pandas as pd

    both = settled_in_both(before, after)
    before, after = before[both], after[both]
    named = ["system_label", "estimator_label"]
    frames = []
    for metric in metrics:
        a, b = before[metric].astype(float), after[metric].astype(float)
        numbers = {"metric": metric, "a": a, "b": b, "change": b - a, "allowed": allowance(metric, before, 0.0)}
        loss = worse(metric, a, b).where(np.isfinite(b), np.inf)
        frame = pd.DataFrame({"cell": after["cell"], **numbers, "loss": loss}).join(after[named])
        frames.append(frame[np.isfinite(a)])
    return pd.concat(frames, ignore_index=True)


def _by_metric(pairs: DataFrame, metrics: Sequence[str]) -> DataFrame:
    import pandas as pd

    lines: list[Mapping[str, Any]] = []
    for metric in metrics:
        rows = pairs[pairs["metric"] == metric]
        if rows.empty:
            continue
        worst = rows.loc[(rows["loss"] - rows["allowed"]).idxmax()]
        numbers = {"cells": len(rows), "median": rows["change"].median(), "worst": worst["change"]}
        more = {"noise": worst["allowed"], "worse": int((rows["loss"] > rows["allowed"]).sum()), "cell": worst["cell"]}
        lines.append({"metric": metric} | numbers | more)
    return pd.DataFrame(lines, columns=["metric", "cells", "median", "worst", "noise", "worse", "cell"])
