"""A baseline: what the cells of a suite read once, with their noise, and whether a run still reads as well.

A metric has a direction (`Column.better`), and is compared where a cell is settled in the baseline and in the run. What
it may lose is `max(3 * noise, tolerance)`, of numbers above 1 as a share of the number. A residual spans many orders of
magnitude, so that it may grow tenfold, from round-off or from what it was. A cell that is missing, that is no longer
settled or whose number became undefined fails: what cannot be compared has not passed.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.planning import files, suites
from gradbench.planning.cells import key_at
from gradbench.planning.plans import plan
from gradbench.planning.registry import DIGEST
from gradbench.tables.checks import where_is
from gradbench.tables.consistency import RANGE_ERROR
from gradbench.tables.disk import SCHEMA, read_footer, read_table, write_table
from gradbench.tables.findings import Finding
from gradbench.tables.runs import results_folder
from gradbench.tables.schema import BASELINE_VERSION, BETTER, IDENTITY, OUTCOME, range_of
from gradbench.tables.statements import claimed
from gradbench.tables.store import BEGAN
from gradbench.tables.verifying import PLAN, POINT, verify
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from gradbench.tables.snapshots import Snapshot
    from gradbench.tables.store import Run

NO_BASELINE = "none"  # in place of the file of a baseline: the run is compared with none
TOLERANCE = 1e-3  # what a number may lose without noise
FACTOR = 3  # of the noise
NOISE = {"float32": 1e-4, "float64": 1e-8}  # least of a cosine that was measured once, by the dtype of its cell
# Most of a cosine that was measured once, however much of a signal is round-off: 5 % of it turn an estimate by about
# 0.05, and its cosine by 0.0025. By its noise a cosine may thus lose 0.0075, and an error or a norm ratio 0.21.
MOST_NOISE = 2.5e-3
ROWS = 4096  # of a baseline that are words of Python at a time: those of 100,000 cells take 100 MB
GROWTH = 10  # of a residual, which is not compared by its noise
MAGIC = b"PAR1"  # begins every parquet file
ROUND_OFF = {"float32": 16 * 2.0**-23, "float64": 16 * 2.0**-52}  # least residual that is told from 0, by dtype
# what a run may not be, unless it is allowed
REFUSED = ("partial", "dirty", "damaged", "foreign", "failing", "disagreeing")
# keys of the metadata: the name, what is told of the runs, and the thresholds that decided their statuses
SUITE, RUNS, THRESHOLDS = b"gradbench.suite", b"gradbench.runs", b"gradbench.thresholds"
KIND = "baseline"  # begins the version of the schema of a baseline, and of no other table
_SAYS = (*(name for name in IDENTITY if name != "problem"), "status", "cause")
SCHEMA_OF_BASELINE = pa.schema(
    [
        *(pa.field(name, (IDENTITY | OUTCOME)[name].type) for name in _SAYS),
        *(pa.field(name, pa.float64()) for metric in BETTER for name in (metric, f"{metric}_noise")),
    ],
    metadata={SCHEMA: f"{KIND} {BASELINE_VERSION}".encode()},
)


@dataclass(frozen=True)
class Demand:
    """What a run is held to: a baseline, what a number may lose, and what it may never fall to."""

    path: Path
    tolerance: float = TOLERANCE
    floors: Mapping[str, float] = field(default_factory=dict)  # by metric

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(
                f"tolerance = {self.tolerance}: expected a number from 0 to below 1, which is a whole cosine"
            )
        for metric, floor in self.floors.items():
            if metric not in BETTER:
                raise UserError(f"floor {metric!r}: is no metric with a direction{near_miss(metric, BETTER)}")
            low, high = range_of(metric)
            if not (math.isfinite(floor) and low <= floor <= high):
                raise UserError(f"floor {metric} = {floor:g}: expected a number from {low:g} to {high:g}")


def path_of(suite: str, out: Path) -> Path:
    """The file of the baseline of a suite."""
    return out / "baselines" / f"{suite}.parquet"


def demanded(
    run: Run,
    baseline: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    floors: Mapping[str, float] | None = None,
    *,
    out: Path | None = None,
    told: str = "{}",
) -> tuple[Demand | None, str]:
    """What a run is held to, None where its suite has no baseline, and then where one was sought.

    `baseline` is the file of one, or `NO_BASELINE`; None is that of the suite, which is also looked for in the results
    `out`. `told` is how a message names an argument. Raises UserError for a file that is not there, and for a tolerance
    or a floor where there is no baseline.
    """
    bounds = {"tolerance": tolerance, "floor": floors or None}
    held = [told.format(name) for name, value in bounds.items() if value is not None]
    if baseline == NO_BASELINE:
        if held:
            raise UserError(f"{told.format('baseline')} none: there is no baseline for {' and '.join(held)}")
        return None, ""
    try:
        places = places_of(run, out) if baseline is None else [Path(baseline)]
    except StoreError:
        return None, ""  # the plan is damaged, as the verdict tells
    path = next((p for p in places if os.path.lexists(p)), None)  # what is there and no file is damage, as judge tells
    if path is not None and baseline is not None and (why := _no_baseline(path, run)):
        raise UserError(f"{told.format('baseline')} {path}: {why}")
    if path is not None:
        return Demand(path, TOLERANCE if tolerance is None else tolerance, floors or {}), ""
    sought = " or ".join(map(str, places))
    if baseline is not None:
        expected = f"expected the file of a baseline, or the word {NO_BASELINE}"
        raise UserError(f"{told.format('baseline')} {sought}: there is no such file; {expected}")
    none = f"no baseline at {sought}" if places else f"no baseline: {run.folder} is in no folder of results"
    if held:
        way_on = f"make one with: gradbench baseline set {shlex.quote(str(run.folder))}"
        raise UserError(f"{' and '.join(held)}: there is {none}; {way_on}")
    return None, none


def _no_baseline(path: Path, run: Run) -> str:
    """Why a file that somebody named is no baseline of a run; empty where it is one, or was one and is damaged."""
    expected = "expected a file that gradbench baseline set wrote"
    if path.exists() and not path.is_file():
        return f"is no file, {expected}"
    footer = read_footer(path)
    if footer is None:
        return "" if _torn(path) else f"is no table, {expected}"
    metadata = footer.metadata
    version = metadata.get(SCHEMA, b"none").decode(errors="replace")
    if not version.startswith(KIND):
        return f"is a table of schema version {version}, {expected}"
    name = metadata.get(SUITE, b"").decode(errors="replace")
    with suppress(StoreError):  # a plan that does not name its suite is damaged, as the verdict tells
        if name not in ("", suite := _suite_of(run)):
            return f"is the baseline of the suite {name!r}, and the run is of {suite!r}"
    return ""


def _torn(path: Path) -> bool:
    """Whether a file that is no parquet may have been one: it begins as one does, or is empty, or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) in (b"", MAGIC)
    except OSError:
        return True


def places_of(run: Run, out: Path | None) -> list[Path]:
    """Where the baseline of a run is looked for: in the folder of results, in that of the run, and in the package.

    Raises StoreError for a plan that does not name its suite.
    """
    suite = _suite_of(run)
    folder = run.folder.absolute()
    near = [folder.parents[2]] if len(folder.parents) > 2 and folder.parents[1].name == "runs" else []
    folders = [*([] if out is None else [out]), *near]
    places: dict[Path, Path] = {}
    for place in folders:  # a verdict names the path as it was asked for
        places.setdefault(path_of(suite, place).absolute(), path_of(suite, place))
    shipped = shipped_baseline(run.plan)
    return [*places.values(), *([] if shipped is None else [shipped])]


def _suite_of(run: Run) -> str:
    """The suite that the plan of a run names. Raises StoreError for a plan that names none."""
    suite = run.plan.get("suite")
    if not isinstance(suite, str):
        raise StoreError(f"{run.folder / 'plan.json'}: damaged: it does not name its suite")
    return suite


def shipped_baseline(planned: Mapping[str, Any]) -> Path | None:
    """The baseline that ships for a run with this plan; None where it is not that of the suite as it ships."""
    path, toml = (
        files.PACKAGED / f for f in (f"baselines/{planned['suite']}.parquet", f"suites/{planned['suite']}.toml")
    )
    if not (path.is_file() and toml.is_file()):
        return None
    return path if plan(suites.load(toml)).key == planned.get("key") else None


def set_baseline(runs: Sequence[Run], out: Path, allow: Collection[str] = ()) -> Path:
    """Write the baseline of a suite from runs of it; the file.

    A value is the median over the runs, its noise their spread; of a single run it is `NOISE`. The status of a cell is
    the first in the order of precedence over the runs. Raises UserError for a run that is partial, dirty, damaged,
    failing or foreign to the first one, and for runs that disagree, where that is not allowed, and for an `out` that
    can be no folder.
    """
    for word in allow:
        if word not in REFUSED:
            raise UserError(f"--allow {word}: is nothing that a run is refused for{near_miss(word, REFUSED)}")
    out = results_folder(out)
    folders = [run.folder.resolve() for run in runs]
    if twice := [str(folder) for i, folder in enumerate(folders) if folder in folders[:i]]:
        raise UserError(f"{twice[0]}: is named twice; a run has no spread against itself")
    snapshots: list[Snapshot] = []
    told: list[str] = []
    for run in runs:
        snapshot, faults = verify(run)
        if snapshot is None or any(fault.name == PLAN for fault in faults):  # nothing says what it is a run of
            raise StoreError("\n".join(fault.detail for fault in faults))
        for other in snapshots:
            marks = ((s.env.get(BEGAN), s.manifest) for s in (snapshot, other))
            if any(mine is not None and mine == that for mine, that in zip(*marks, strict=True)):
                raise UserError(f"{run.folder}: is a copy of {other.folder}; a run has no spread against itself")
        snapshots.append(snapshot)
        refused = _refusals(snapshot, snapshots[0], faults, path_of(str(snapshots[0].plan["suite"]), out))
        told += [f"{run.folder}: {_way_out(word, why)}" for word, why in refused if word not in allow]
    suite = snapshots[0].plan["suite"]
    path = path_of(suite, out)
    rows = merged(snapshots)
    if "disagreeing" not in allow:
        told += [f"{path}: {_way_out('disagreeing', why)}" for why in _disagreements(snapshots, rows)]
    if told:
        raise UserError("\n".join(told))
    of_runs = [{"run": s.id} | {k: s.env.get(k) for k in ("commit", "dirty", "processor", "torch")} for s in snapshots]
    thresholds = json.dumps(snapshots[0].plan["thresholds"], sort_keys=True)
    more = {SUITE: suite.encode(), RUNS: json.dumps(of_runs).encode(), THRESHOLDS: thresholds.encode()}
    metadata = {**SCHEMA_OF_BASELINE.metadata, **more}
    table = pa.Table.from_pandas(rows, schema=SCHEMA_OF_BASELINE, preserve_index=False)
    write_table(path, table.replace_schema_metadata(metadata))
    return path


def _way_out(word: str, why: str) -> str:
    return f"is {word}: {why}; --allow {word} takes it all the same"


def _refusals(run: Snapshot, first: Snapshot, faults: Sequence[Finding], path: Path) -> Iterator[tuple[str, str]]:
    if faults:
        yield "damaged", f"{faults[0].name}: {faults[0].detail}"
    planned = len(run.plan["cells"]) + len(run.plan["skipped"])
    measured = int((~run.cells["status"].isin([s for s in Status if s.incomplete])).sum())
    if measured < planned:
        yield "partial", f"{planned - measured} of {planned} cells were not measured"
    for whose, keys in _wanted(str(run.plan["suite"]), path):
        if missing := keys - set(run.cells["cell"]):
            yield "partial", f"{len(missing)} of {len(keys)} cells of {whose} are not in it"
    if run.env.get("dirty"):  # an installed package has no commit, and its code is that of its version
        yield "dirty", "it was made by code that differs from its commit"
    failed = [] if faults else [f for f in claimed(run.claims, run.cells) if not f]
    if failed:
        yield "failing", f"{len(failed)} of its checks do not hold; first {failed[0].name!r}: {failed[0].detail}"
    for what, mine, that in (
        ("suite", run.plan["suite"], first.plan["suite"]),
        ("plan", run.plan["key"], first.plan["key"]),
        ("source", run.env.get("source"), first.env.get("source")),
    ):
        if mine != that:
            yield "foreign", f"its {what} is {mine}, that of {first.id} {that}"
            return


def _wanted(suite: str, path: Path) -> Iterator[tuple[str, set[str]]]:
    """The cells that a baseline at `path` should have: those of the suite, where it is found, and of the file there."""
    try:
        file = files.find(suite, files.SUITES, "suite")
        planned = plan(suites.load(file), str(file))
    except UserError:
        pass  # a suite of another folder, or one that needs a plugin or a training
    else:
        yield str(file), {cell.key for cell in (*planned.cells, *(cell for cell, _ in planned.skipped))}
    with suppress(StoreError):  # there is none, or it is damaged: it asks for nothing
        yield f"the baseline {path}", set(read_baseline(path, suite)["cell"].to_pylist())


def _disagreements(runs: Sequence[Snapshot], rows: DataFrame) -> Iterator[str]:
    """Where runs differ so much that a baseline of them says little."""
    import pandas as pd

    statuses = pd.concat([run.cells.set_index("cell")["status"] for run in runs], axis=1)
    differ = statuses[statuses.nunique(axis=1) > 1]
    if len(differ):
        first = ", ".join(dict.fromkeys(differ.iloc[0].dropna()))
        yield f"{len(differ)} cells have another status in another run; first {differ.index[0]}: {first}"
    for metric in BETTER if len(runs) > 1 else ():
        wide = (rows["status"] == Status.SETTLED) & (FACTOR * rows[f"{metric}_noise"] >= 1) & (metric != "residual")
        if wide.any():
            row = rows[wide].iloc[0]
            told = f"{metric} of {int(wide.sum())} cells may lose 1 or more by its noise"
            yield f"{told}; first {row[f'{metric}_noise']:.3g} at {_at(row)}"


def merged(runs: Sequence[Snapshot]) -> DataFrame:
    """A row with its noise for every cell of the runs that is not skipped."""
    import pandas as pd

    rows = pd.concat([run.cells[run.cells["status"] != Status.SKIPPED] for run in runs], ignore_index=True)
    rows["rank"] = rows["status"].map({str(s): s.rank for s in Status})
    grouped = rows.groupby("cell", sort=False)
    merged = rows.loc[grouped["rank"].idxmin(), list(_SAYS)].reset_index(drop=True)
    causes = grouped["cause"].nunique(dropna=False).reindex(merged["cell"]).to_numpy()
    merged["cause"] = merged["cause"].where(causes == 1, None)  # runs that disagree have none
    # where rounding s* is a share f of the signal of a nudge, it turns the estimate by about f, and cosines move by f^2
    floor = grouped["noise_floor"].max().reindex(merged["cell"]).to_numpy()
    single = np.fmax(merged["dtype"].map(NOISE).to_numpy(), np.minimum(floor**2, MOST_NOISE))
    for metric in BETTER:
        values = grouped[metric]
        whole = (values.count() == values.size()).reindex(merged["cell"]).to_numpy()
        middle, low, high = (values.agg(how).reindex(merged["cell"]).to_numpy() for how in ("median", "min", "max"))
        merged[metric] = np.where(whole, middle, np.nan)
        with np.errstate(invalid="ignore"):
            spread = (high - low) / np.maximum(1, np.abs(middle))  # of numbers above 1 a share, as what they may lose
            merged[f"{metric}_noise"] = np.where(whole, spread if len(runs) > 1 else noise_of(metric, single), np.nan)
    return merged


def noise_of(metric: str, cosine: Any) -> Any:
    """The noise of a metric where that of a cosine is this.

    Two gradients whose cosine is 1 - x differ by sqrt(2 x) of their length.
    """
    return cosine if BETTER[metric] == "up" or metric == "residual" else np.sqrt(2 * cosine)


def read_baseline(path: Path, suite: str) -> pa.Table:
    """The baseline of a suite. Raises StoreError for a file that is none, and for numbers that cannot be."""
    table = read_table(path, SCHEMA_OF_BASELINE)
    name = (table.schema.metadata.get(SUITE) or b"").decode(errors="replace")
    if name != suite:
        raise StoreError(f"{path}: is the baseline of the suite {name!r}, and the run is of {suite!r}")
    keys = table["cell"].to_pylist()
    if len(set(keys)) < len(keys):
        raise StoreError(f"{path}: damaged: a cell stands there more than once")
    for part in table.select(["cell", *POINT]).to_batches(max_chunksize=ROWS):
        for row in part.to_pylist():
            key = row.pop("cell")
            if key_at(row) != key:
                raise StoreError(f"{path}: damaged: {key} is not the digest of its coordinates")
    if unknown := sorted(set(table["status"].to_pylist()) - set(Status)):
        raise StoreError(f"{path}: damaged: {unknown[0]!r} is not a status")
    runs, _ = _told_of(table, path)
    settled = np.array([status == Status.SETTLED for status in table["status"].to_pylist()], bool)
    for metric in BETTER:
        value, noise = (table[n].to_numpy() for n in (metric, f"{metric}_noise"))
        ends = range_of(metric)
        beyond = (value < ends[0] - RANGE_ERROR) | (value > ends[1] + RANGE_ERROR)
        most = noise_of(metric, MOST_NOISE) if len(runs) == 1 else ends[1] - ends[0]  # no spread is wider than a range
        unknown_noise = np.isfinite(value) & ~(np.isfinite(noise) & (noise >= 0) & (noise <= most * (1 + RANGE_ERROR)))
        if (settled & (beyond | unknown_noise)).any():
            key = keys[int(np.flatnonzero(settled & (beyond | unknown_noise))[0])]
            raise StoreError(f"{path}: damaged: {metric} of {key} or its noise is no number that can be")
    return table


def _told_of(table: pa.Table, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a baseline says of its runs, and their thresholds. Raises StoreError where it says nothing of the kind."""
    try:
        runs, thresholds = (json.loads(table.schema.metadata[key]) for key in (RUNS, THRESHOLDS))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path}: damaged: its runs or its thresholds: {type(error).__name__}: {error}") from None
    if not (isinstance(runs, list) and runs and all(isinstance(run, dict) for run in runs)):
        raise StoreError(f"{path}: damaged: it names no runs")
    if not isinstance(thresholds, dict):
        raise StoreError(f"{path}: damaged: it holds no thresholds")
    return runs, thresholds


def compare_with(demand: Demand, run: Snapshot) -> list[Finding]:
    """Whether a run reads as well as a baseline: a finding for cells, for statuses and for every metric."""
    table = read_baseline(demand.path, run.plan["suite"])
    read = [*_SAYS, *BETTER]  # the other columns of 100,000 cells would be copied several times
    base, now = by_place(table.to_pandas()), by_place(run.cells.loc[run.cells["status"] != Status.SKIPPED, read])
    common = base.index.intersection(now.index, sort=False)
    findings = [_coverage(demand, table, base, now, common)]
    if len(common):
        was = json.loads(table.schema.metadata[THRESHOLDS])
        findings.append(same_thresholds("the baseline", was, run.plan["thresholds"], len(common)))
        findings += losses(base.loc[common], now.loc[common], demand.tolerance)
        findings += [_floored(metric, floor, base, now) for metric, floor in demand.floors.items()]
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


def same_thresholds(whose: str, was: Mapping[str, Any], now: Mapping[str, Any], cells: int) -> Finding:
    """Whether statuses were decided by the same numbers."""
    name = f"the thresholds are those of {whose}"
    differ = [f"{k}: {was.get(k)} -> {now.get(k)}" for k in sorted({*was, *now}) if was.get(k) != now.get(k)]
    return _finding(name, "fail" if differ else "pass", cells, ", ".join(differ) or "all of them are equal")


def settled_in_both(base: DataFrame, now: DataFrame) -> Series:
    """Where numbers are evidence on both sides."""
    return (base["status"] == Status.SETTLED) & (now["status"] == Status.SETTLED)


def losses(
    base: DataFrame, now: DataFrame, tolerance: float, metrics: Collection[str] = tuple(BETTER)
) -> list[Finding]:
    """What `now` reads worse than `base`, which has the noise of its numbers and the same index."""
    findings = [_statuses(base, now)]
    both = settled_in_both(base, now)
    numbers = ["dtype", *metrics, *(f"{metric}_noise" for metric in metrics)]  # words are told of `now` alone
    base, now = base.loc[both, numbers], now[both]
    there = [metric for metric in metrics if np.isfinite(base[metric]).any() or np.isfinite(now[metric]).any()]
    if not there:
        none = f"of {len(now)} cells that are settled in both none has {' or '.join(metrics)}"
        why = none if len(now) else "no cell is settled in both"
        findings.append(_finding("numbers", "none", 0, f"{why}: no number was compared"))
    return [*findings, *(_loss(metric, base, now, tolerance) for metric in there)]


def _finding(name: str, result: Any, cells: int, detail: str, cell: object = "") -> Finding:
    return Finding(name, result, cells, detail, str(cell), kind="baseline")


def _at(row: Series) -> str:
    return f"{row['cell']}, {where_is(row)}"


def _coverage(demand: Demand, table: pa.Table, base: DataFrame, now: DataFrame, common: Any) -> Finding:
    name = "every cell of the baseline"
    runs = json.loads(table.schema.metadata[RUNS])
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
    """What a number may lose: a residual by growth, all others by their noise."""
    if metric == "residual":
        return (GROWTH - 1) * np.maximum(base[metric].abs(), base["dtype"].map(ROUND_OFF))
    return np.maximum(FACTOR * base[f"{metric}_noise"], tolerance) * np.maximum(1, base[metric].abs())


def _loss(metric: str, base: DataFrame, now: DataFrame, tolerance: float) -> Finding:
    there = np.isfinite(base[metric])
    gained = int((~there & np.isfinite(now[metric])).sum())
    lacking = f"{gained} have a number now, and had none" if gained else ""
    base, value, became = base[there], base.loc[there, metric], now.loc[there, metric].astype(float)
    if base.empty:
        return _finding(f"{metric} is no worse", "none", 0, f"no number was compared: {lacking}")
    allowed = allowance(metric, base, tolerance)
    loss = worse(metric, value, became).where(np.isfinite(became), np.inf)
    beyond = loss > allowed
    key = (loss - allowed).idxmax()
    told = f"{value[key]:.6g} -> {became[key]:.6g} at {_at(now.loc[key])}, allowed {allowed[key]:.3g}"
    told += _noisy(metric, base) + (f"; {lacking}" if lacking else "")
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


def _noisy(metric: str, base: DataFrame) -> str:
    """How many cells may lose more than what their dtype makes of one measurement; empty where none may."""
    noise = base[f"{metric}_noise"]
    wide = noise > noise_of(metric, base["dtype"].map(NOISE)) * (1 + RANGE_ERROR)
    if metric == "residual" or not wide.any():
        return ""
    return f"; the noise of {int(wide.sum())} is above that of their dtype, at most {noise.max():.3g}"


def _floored(metric: str, floor: float, base: DataFrame, now: DataFrame) -> Finding:
    """Whether no settled cell of a run lies beyond a floor, apart from those that did in the baseline.

    Cells that are new are held to it, and so are those that settle now and did not. Those that are not held are told.
    """
    name = f"{metric} keeps to {floor:g}"
    was = base[metric].where(base["status"] == Status.SETTLED).reindex(now.index)
    settled = now["status"] == Status.SETTLED
    exempt = settled & (worse(metric, was * 0 + floor, was) > 0)
    held = settled & ~exempt
    told = f"{int(exempt.sum())} cells are beyond it in the baseline" if exempt.any() else "none is beyond it there"
    told += f", {int((~settled).sum())} are not settled" if not settled.all() else ""
    if not held.any():
        return _finding(name, "none", 0, f"no cell is held to it: {told}")
    became = now.loc[held, metric].astype(float)
    loss = worse(metric, became * 0 + floor, became).where(np.isfinite(became), np.inf)
    key = loss.idxmax()
    detail = (
        f"{became[key]:.6g} at {_at(now.loc[key])}; of {int(held.sum())} cells {int((loss > 0).sum())} cross it; {told}"
    )
    crossed = loss[key] > 0
    return _finding(name, "fail" if crossed else "pass", int(held.sum()), detail, key if crossed else "")
