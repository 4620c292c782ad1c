"""A baseline: what the cells of a suite read once, with their noise, and whether a run still reads as well.

A metric has a direction (`Column.better`), and is compared where a cell is settled in the baseline and in the run. What
it may lose is `max(3 * noise, tolerance)`, of numbers above 1 as a share of the number. A cell that is missing, that is
no longer settled or whose number became undefined fails: what cannot be compared has not passed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.planning import files, plans, suites
from gradbench.planning.cells import digest
from gradbench.planning.registry import DIGEST
from gradbench.tables.checks import where_is
from gradbench.tables.consistency import RANGE_ERROR
from gradbench.tables.findings import Finding
from gradbench.tables.schema import BETTER, IDENTITY, OUTCOME
from gradbench.tables.store import SCHEMA, read_table, write_table
from gradbench.tables.verifying import POINT, verify
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame, Series

    from gradbench.tables.snapshots import Snapshot
    from gradbench.tables.store import Run

TOLERANCE = 1e-3  # what a number may lose without noise
FACTOR = 3  # of the noise
NOISE = {"float32": 1e-4, "float64": 1e-8}  # of a cosine that was measured once, by the dtype of its cell
REFUSED = ("partial", "dirty", "damaged", "foreign")  # what a run may not be, unless it is allowed
SUITE, RUNS = b"gradbench.suite", b"gradbench.runs"  # keys of the metadata: the name, and what is told of the runs
_SAYS = (*(name for name in IDENTITY if name != "problem"), "status", "cause")
SCHEMA_OF_BASELINE = pa.schema(
    [
        *(pa.field(name, (IDENTITY | OUTCOME)[name].type) for name in _SAYS),
        *(pa.field(name, pa.float64()) for metric in BETTER for name in (metric, f"{metric}_noise")),
    ],
    metadata={SCHEMA: b"baseline 1"},
)


@dataclass(frozen=True)
class Demand:
    """What a run is held to: a baseline, what a number may lose, and what it may never fall to."""

    path: Path
    tolerance: float = TOLERANCE
    floors: Mapping[str, float] = field(default_factory=dict)  # by metric

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UserError(f"tolerance = {self.tolerance}: expected a number that is not negative")
        for metric, floor in self.floors.items():
            if metric not in BETTER:
                raise UserError(f"floor {metric!r}: is no metric with a direction{near_miss(metric, BETTER)}")
            if not math.isfinite(floor):
                raise UserError(f"floor {metric} = {floor}: expected a number")


def path_of(suite: str, out: Path) -> Path:
    """The file of the baseline of a suite."""
    return out / "baselines" / f"{suite}.parquet"


def baseline_of(plan: Mapping[str, Any], out: Path) -> Path | None:
    """The baseline that a run with this plan is held to where none is named: that of the results, else the shipped one.

    A shipped baseline is of the suite as it ships: a run of a part of it, or of another suite of its name, has none.
    """
    name = plan["suite"]
    there, packaged = path_of(name, out), path_of(name, files.PACKAGED)
    if there.is_file():
        return there
    if not packaged.is_file():
        return None
    shipped = suites.load(files.PACKAGED / files.SUITES / f"{name}.toml")
    return packaged if plans.plan(shipped).key == plan["key"] else None


def set_baseline(runs: Sequence[Run], out: Path, allow: Collection[str] = ()) -> Path:
    """Write the baseline of a suite from runs of it; the file.

    A value is the median over the runs, its noise their spread; of a single run it is `NOISE`. The status of a cell is
    the first in the order of precedence over the runs. Raises UserError for a run that is partial, dirty, damaged or
    foreign to the first one and is not allowed to be.
    """
    for word in allow:
        if word not in REFUSED:
            raise UserError(f"--allow {word}: is nothing that a run is refused for{near_miss(word, REFUSED)}")
    if twice := sorted({str(r.folder) for i, r in enumerate(runs) if r.folder in [o.folder for o in runs[:i]]}):
        raise UserError(f"{twice[0]}: is named twice; a run has no spread against itself")
    snapshots: list[Snapshot] = []
    told: list[str] = []
    for run in runs:
        snapshot, faults = verify(run)
        if snapshot is None:
            raise StoreError("\n".join(fault.detail for fault in faults))
        snapshots.append(snapshot)
        refused = {word: why for word, why in _refusals(snapshot, snapshots[0], faults) if word not in allow}
        told += [
            f"{run.folder}: is {word}: {why}; --allow {word} takes it all the same" for word, why in refused.items()
        ]
    if told:
        raise UserError("\n".join(told))
    suite = snapshots[0].plan["suite"]
    path = path_of(suite, out)
    of_runs = [{"run": s.id} | {k: s.env.get(k) for k in ("commit", "dirty", "processor", "torch")} for s in snapshots]
    metadata = {**SCHEMA_OF_BASELINE.metadata, SUITE: suite.encode(), RUNS: json.dumps(of_runs).encode()}
    table = pa.Table.from_pandas(merged(snapshots), schema=SCHEMA_OF_BASELINE, preserve_index=False)
    write_table(path, table.replace_schema_metadata(metadata))
    return path


def _refusals(run: Snapshot, first: Snapshot, faults: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    if faults:
        yield "damaged", f"{faults[0].name}: {faults[0].detail}"
    planned = len(run.plan["cells"]) + len(run.plan["skipped"])
    measured = int((~run.cells["status"].isin([s for s in Status if s.incomplete])).sum())
    if measured < planned:
        yield "partial", f"{planned - measured} of {planned} cells were not measured"
    if run.env.get("dirty"):
        yield "dirty", "it was made by code that differs from its commit"
    for what, mine, that in (
        ("suite", run.plan["suite"], first.plan["suite"]),
        ("plan", run.plan["key"], first.plan["key"]),
        ("source", run.env.get("source"), first.env.get("source")),
    ):
        if mine != that:
            yield "foreign", f"its {what} is {mine}, that of {first.id} {that}"
            return


def merged(runs: Sequence[Snapshot]) -> DataFrame:
    """A row with its noise for every cell of the runs that is not skipped."""
    import pandas as pd

    rows = pd.concat([run.cells[run.cells["status"] != Status.SKIPPED] for run in runs], ignore_index=True)
    rows["rank"] = rows["status"].map({str(s): s.rank for s in Status})
    grouped = rows.groupby("cell", sort=False)
    merged = rows.loc[grouped["rank"].idxmin(), list(_SAYS)].reset_index(drop=True)
    causes = grouped["cause"].nunique(dropna=False).reindex(merged["cell"]).to_numpy()
    merged["cause"] = merged["cause"].where(causes == 1, None)  # runs that disagree have none
    single = merged["dtype"].map(NOISE).to_numpy()
    for metric, better in BETTER.items():
        values = grouped[metric]
        whole = (values.count() == values.size()).reindex(merged["cell"]).to_numpy()
        middle, low, high = (values.agg(how).reindex(merged["cell"]).to_numpy() for how in ("median", "min", "max"))
        merged[metric] = np.where(whole, middle, np.nan)
        # two gradients whose cosine is 1 - x differ by sqrt(2 x) of their length
        once = single if better == "up" or metric == "residual" else np.sqrt(2 * single)
        with np.errstate(invalid="ignore"):
            merged[f"{metric}_noise"] = np.where(whole, high - low if len(runs) > 1 else once, np.nan)
    return merged


def read_baseline(path: Path, suite: str) -> pa.Table:
    """The baseline of a suite. Raises StoreError for a file that is none, and for numbers that cannot be."""
    table = read_table(path, SCHEMA_OF_BASELINE)
    name = (table.schema.metadata.get(SUITE) or b"").decode()
    if name != suite:
        raise StoreError(f"{path}: is the baseline of the suite {name!r}, and the run is of {suite!r}")
    keys = table["cell"].to_pylist()
    if len(set(keys)) < len(keys):
        raise StoreError(f"{path}: damaged: a cell stands there more than once")
    points = zip(*(table[name].to_pylist() for name in POINT), strict=True)
    for key, point in zip(keys, points, strict=True):
        if digest(dict(zip(POINT, point, strict=True))) != key:
            raise StoreError(f"{path}: damaged: {key} is not the digest of its coordinates")
    if unknown := sorted(set(table["status"].to_pylist()) - set(Status)):
        raise StoreError(f"{path}: damaged: {unknown[0]!r} is not a status")
    settled = np.array([status == Status.SETTLED for status in table["status"].to_pylist()], bool)
    for metric in BETTER:
        value, noise = (table[n].to_numpy() for n in (metric, f"{metric}_noise"))
        low, high = OUTCOME[metric].least, OUTCOME[metric].most
        ends = (-math.inf if low is None else low, math.inf if high is None else high)
        beyond = (value < ends[0] - RANGE_ERROR) | (value > ends[1] + RANGE_ERROR)
        unknown_noise = np.isfinite(value) & ~(np.isfinite(noise) & (noise >= 0))
        if (settled & (beyond | unknown_noise)).any():
            key = keys[int(np.flatnonzero(settled & (beyond | unknown_noise))[0])]
            raise StoreError(f"{path}: damaged: {metric} of {key} or its noise is no number that can be")
    return table


def compare_with(demand: Demand, run: Snapshot) -> list[Finding]:
    """Whether a run reads as well as a baseline: a finding for cells, for statuses and for every metric."""
    table = read_baseline(demand.path, run.plan["suite"])
    base, now = by_place(table.to_pandas()), by_place(run.cells[run.cells["status"] != Status.SKIPPED])
    common = base.index.intersection(now.index, sort=False)
    findings = [_coverage(demand, table, base, now, common)]
    if len(common):
        base, now = base.loc[common], now.loc[common]
        findings += losses(base, now, demand.tolerance)
        both = settled_in_both(base, now)
        findings += [_floored(metric, floor, base[both], now[both]) for metric, floor in demand.floors.items()]
    return findings


def by_place(cells: DataFrame) -> DataFrame:
    """Rows by their content key; what is made of functions by its coordinates without the digest of its code.

    So a rule is compared with what it was before it was edited. A plan has no two that differ in the digest alone.
    """
    options = cells["system_options"] + cells["estimator_options"]
    made = np.flatnonzero(options.str.contains(f'"{DIGEST}"', regex=False))
    places = cells["cell"].to_numpy(object, copy=True)
    for i, point in zip(made, cells.iloc[made][list(POINT)].to_dict("records"), strict=True):
        places[i] = json.dumps([_undigested(v) if k.endswith("options") else _plain(v) for k, v in point.items()])
    return cells.set_index(places)


def _undigested(options: str) -> list[Any]:
    return sorted((k, v) for k, v in json.loads(options).items() if k != DIGEST)


def _plain(value: Any) -> Any:
    """A coordinate as it is in every table: a column of whole numbers is one of floats where some are null."""
    return value if isinstance(value, str) else None if value is None or value != value else float(value)


def settled_in_both(base: DataFrame, now: DataFrame) -> Series:
    """Where numbers are evidence on both sides."""
    return (base["status"] == Status.SETTLED) & (now["status"] == Status.SETTLED)


def losses(
    base: DataFrame, now: DataFrame, tolerance: float, metrics: Collection[str] = tuple(BETTER)
) -> list[Finding]:
    """What `now` reads worse than `base`, which has the noise of its numbers and the same index."""
    findings = [_statuses(base, now)]
    both = settled_in_both(base, now)
    base, now = base[both], now[both]
    there = [metric for metric in metrics if np.isfinite(base[metric]).any()]
    if not there:
        findings.append(_finding("numbers", "none", 0, "no cell is settled in both: no number was compared"))
    return [*findings, *(_loss(metric, base, now, tolerance) for metric in there)]


def _finding(name: str, result: Any, cells: int, detail: str, cell: object = "") -> Finding:
    return Finding(name, result, cells, detail, str(cell), kind="baseline")


def _at(row: Series) -> str:
    return f"{row['cell']}, {where_is(row)}"


def _coverage(demand: Demand, table: pa.Table, base: DataFrame, now: DataFrame, common: Any) -> Finding:
    name = "every cell of the baseline"
    runs = json.loads(table.schema.metadata.get(RUNS, b"[]"))
    commits = ", ".join(sorted({str(r.get("commit"))[:10] for r in runs}))
    whose = f"{demand.path} ({len(runs)} {'run' if len(runs) == 1 else 'runs'}, commit {commits})"
    if not len(common):
        return _finding(name, "none", 0, f"{whose} has {len(base)} cells, the run none of them: nothing was compared")
    missing, new = base.index.difference(now.index, sort=False), now.index.difference(base.index, sort=False)
    told = f"{len(common)} of {len(base)} cells of {whose}"
    edited = int((base.loc[common, "cell"] != now.loc[common, "cell"]).sum())
    told += f"; {edited} are of a system or a rule whose code changed" if edited else ""
    told += f"; {len(new)} cells are new, first {_at(now.loc[new[0]])}" if len(new) else ""
    if len(missing):
        told += f"; {len(missing)} are missing, first {_at(base.loc[missing[0]])}"
        return _finding(name, "fail", len(common), told, base.loc[missing[0], "cell"])
    return _finding(name, "pass", len(common), told)


def _statuses(base: DataFrame, now: DataFrame) -> Finding:
    name = "what was settled is settled"
    settled = base["status"] == Status.SETTLED
    changed = base.index[base["status"] != now["status"]]
    lost = base.index[settled & (now["status"] != Status.SETTLED)]
    told = f"{int(settled.sum()) - len(lost)} of {int(settled.sum())}"
    others = changed.difference(lost, sort=False)
    for what, keys in (("no longer", lost), ("changed another status", others)):
        if len(keys):
            was, became = base.loc[keys[0], "status"], now.loc[keys[0], "status"]
            told += f"; {len(keys)} {what}, first {was} -> {became} at {_at(now.loc[keys[0]])}"
    was_of, became_of = base["cause"].fillna("none"), now["cause"].fillna("none")
    keys = base.index[was_of != became_of]
    if len(keys):  # no failure: the error that it is the cause of is compared by its size
        change = f"{was_of[keys[0]]} -> {became_of[keys[0]]}"
        told += f"; {len(keys)} have another cause, first {change} at {_at(now.loc[keys[0]])}"
    if len(lost):
        return _finding(name, "fail", len(base), told, now.loc[lost[0], "cell"])
    return _finding(name, "pass", len(base), told)


def worse(metric: str, base: Series, now: Series) -> Series:
    """By how much a number is worse than another one."""
    better = BETTER[metric]
    if better == "up":
        return base - now
    return now - base if better == "down" else (now - 1).abs() - (base - 1).abs()


def allowance(metric: str, base: DataFrame, tolerance: float) -> Series:
    """What a number may lose."""
    return np.maximum(FACTOR * base[f"{metric}_noise"], tolerance) * np.maximum(1, base[metric].abs())


def _loss(metric: str, base: DataFrame, now: DataFrame, tolerance: float) -> Finding:
    there = np.isfinite(base[metric])
    base, now = base[there], now[there]
    value, became = base[metric], now[metric].astype(float)
    allowed = allowance(metric, base, tolerance)
    loss = worse(metric, value, became).where(np.isfinite(became), np.inf)
    beyond = loss > allowed
    key = (loss - allowed).idxmax()
    told = f"{value[key]:.6g} -> {became[key]:.6g} at {_at(now.loc[key])}, allowed {allowed[key]:.3g}"
    if beyond.any():
        return _finding(
            f"{metric} is no worse",
            "fail",
            len(base),
            f"{int(beyond.sum())} are worse, most {told}",
            now.loc[key, "cell"],
        )
    widest = f"; the widest allowance is {allowed.max():.3g}"
    return _finding(f"{metric} is no worse", "pass", len(base), f"nearest to a loss {told}{widest}")


def _floored(metric: str, floor: float, base: DataFrame, now: DataFrame) -> Finding:
    """Whether no cell has crossed a floor: cells that are beyond it in the baseline are told, and decide nothing."""
    name = f"{metric} keeps to {floor:g}"
    limit = base[metric] * 0 + floor
    good = worse(metric, limit, base[metric]) <= 0
    told = (
        f"{int((~good).sum())} cells are beyond it in the baseline" if not good.all() else "all cells keep to it there"
    )
    if not good.any():
        return _finding(name, "none", 0, "no cell of the baseline keeps to it: nothing was asked")
    became = now.loc[good, metric].astype(float)
    loss = worse(metric, limit[good], became).where(np.isfinite(became), np.inf)
    key = loss.idxmax()
    place = f"{became[key]:.6g} at {_at(now.loc[key])}"
    return _finding(
        name,
        "pass" if loss[key] <= 0 else "fail",
        int(good.sum()),
        f"{place}; {told}",
        now.loc[key, "cell"] if loss[key] > 0 else "",
    )
