"""Whether the tables of a run are what was measured: every cell of its plan once, with numbers that can be.

This guards against mistakes and damage: a file that was edited, torn, copied from another run, or written by a faulty
program. Who changes plan, records, tables and digests alike and keeps every rule is not told apart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from gradbench.errors import StoreError
from gradbench.planning.cells import digest, key_at
from gradbench.planning.plans import key_of
from gradbench.planning.suites import Check, Statement, Table
from gradbench.tables import consistency, manifest
from gradbench.tables.disk import SEAL
from gradbench.tables.findings import Finding, counted
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.snapshots import Snapshot
from gradbench.tables.store import BEGAN, BOUND, MADE_BY, PLAN_SEAL, Run, as_told, differing
from gradbench.vocabulary.coordinates import COORDINATES, LATE
from gradbench.vocabulary.status import Status, Thresholds

_MISSHAPEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, pa.ArrowException)
PLAN = "the plan can be read"  # the rule without which no other one can be looked at
TRIES = 5  # readings of a run that another process works on
POINT = ("system", "system_options", "estimator", "estimator_options", *COORDINATES)
# what cells of one problem have in common
_COMMON = [i for i, n in enumerate(POINT) if n.startswith("system") or (n in COORDINATES and not COORDINATES[n].shared)]
Fault = tuple[str, str]  # the rule that is broken, and where and how


def verify(run: Run, *, deep: bool = False) -> tuple[Snapshot | None, tuple[Finding, ...]]:
    """Read a run and say all that is wrong with it; the snapshot is None where a file cannot be read.

    `deep` also makes the tables again from the records and compares. Nothing is written. Where another process works on
    the run, its files may change while they are read; then what seemed wrong is looked at again.
    """
    for _ in range(TRIES):
        before = _state(run)
        snapshot: Snapshot | None = None
        try:
            snapshot = Snapshot(run.folder)
            faults = list(_faults(snapshot, deep))
        except StoreError as error:
            faults = [("every file can be read", str(error))]
        except _MISSHAPEN as error:  # a plan, an environment or checks of a shape that no rule above speaks of
            what = f"{run.folder}: damaged: plan.json, env.json or {manifest.NAME}: {type(error).__name__}: {error}"
            faults = [("every file can be read", what)]
        if not faults or _state(run) == before:
            break
    return snapshot, tuple(Finding(name, "fail", 0, detail, kind="store") for name, detail in faults)


def trusted(run: Run) -> Snapshot:
    """The run as it is now. Raises StoreError with all that is wrong with it."""
    snapshot, faults = verify(run)
    if snapshot is None or faults:
        raise StoreError("\n".join(f"{fault.name}: {fault.detail}" for fault in faults))
    return snapshot


def _state(run: Run) -> object:
    """What changes when another process stores a record or the tables."""
    try:
        stat = (run.folder / manifest.NAME).stat()
    except OSError:
        return len(run.done())
    return stat.st_ino, stat.st_mtime_ns, len(run.done())


def _faults(run: Snapshot, deep: bool) -> Iterator[Fault]:
    path = run.folder / "plan.json"
    try:
        planned = _Planned(run.plan)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        yield PLAN, f"{path}: damaged: {type(error).__name__}: {error}"
        return
    try:
        for check in run.claims["check"]:
            Check(**check)
        for statement in run.claims.get("statement", ()):
            Statement(**statement)
        for table in run.claims.get("table", ()):
            Table(**table)
        if not isinstance(run.claims["allow_incomplete"], bool):
            raise TypeError("allow_incomplete is neither true nor false")
    except (LookupError, TypeError, ValueError) as error:
        yield "the checks can be read", f"{run.folder / 'checks.json'}: damaged: {type(error).__name__}: {error}"
    if unnamed := [(name, table["cell"].null_count) for name, table in run.tables.items() if table["cell"].null_count]:
        for name, rows in unnamed:
            yield "every row is of a cell", f"{run.folder / name}.parquet: {rows} rows name no cell"
        return
    if (home := run.folder.absolute().parent).parent.name == "runs" and home.name != planned.suite:
        yield "a run lies with those of its suite", f"{path}: it is of the suite {planned.suite!r}, and lies in {home}"
    if (run.binds or BOUND in run.claims) and run.claims.get(BOUND) != run.bound(run.claims):
        told = f"was edited, or is of another run; gradbench run {planned.suite} writes the checks of its suite anew"
        yield "the checks are those of this run", f"{run.folder / 'checks.json'}: {told}"
    if run.env.get(PLAN_SEAL, run.plan_seal) != run.plan_seal:
        told = f"is not the plan with which the run began; {run.command} --fresh begins another run"
        yield "the plan is that of this run", f"{path}: {told}"
    for rule, detail in planned.faults():
        yield rule, f"{path}: {detail}"
    yield from _binding_faults(run)
    yield from _digest_faults(run)
    for rule, detail in _row_faults(run, planned):
        yield rule, f"{run.folder / 'cells.parquet'}: {detail}"
    for name, rule, detail in consistency.faults(run.tables, planned.at):
        yield rule, f"{run.folder / name}.parquet: {detail}"
    if deep:
        yield from _compaction_faults(run)


class _Planned:
    """The content of plan.json: cells by key, with what the plan says of them."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        entries = [*plan["cells"], *plan["skipped"]]
        self.keys: list[str] = [entry["cell"] for entry in entries]
        self.points = {entry["cell"]: tuple((LATE | entry)[name] for name in POINT) for entry in entries}
        self.skipped = {entry["cell"]: entry["reason"] for entry in plan["skipped"]}
        self.problems, self.key, self.thresholds = plan["problems"], plan["key"], plan["thresholds"]
        self.suite: str = plan["suite"]
        self.at = Thresholds(**self.thresholds)

    def faults(self) -> Iterator[Fault]:
        """Whether the plan is as it was frozen."""
        if twice := _repeated(self.keys):
            yield "the plan has every cell once", counted(twice, "stand there more than once")
        wrong = [key for key, point in self.points.items() if key_at(dict(zip(POINT, point, strict=True))) != key]
        if wrong:
            yield "a key is the digest of its coordinates", counted(wrong, "have the key of other coordinates")
        measured = (key for key in self.keys if key not in self.skipped)
        if key_of(self.suite, measured, self.skipped, self.thresholds) != self.key:
            told = "its key is not that of its suite, its cells, those that it skips, and its thresholds"
            yield "the plan is as it was frozen", told
        if sorted(digest(sorted(keys)) for keys in self.grouped().values()) != sorted(self.problems):
            yield "the plan is as it was frozen", "its problems are not those of its cells"

    def grouped(self) -> dict[object, list[str]]:
        """Keys of the cells that share a problem."""
        groups: dict[object, list[str]] = {}
        for key in self.keys:
            if key not in self.skipped:
                shared = tuple(self.points[key][i] for i in _COMMON)
                groups.setdefault(shared, []).append(key)
        return groups


def _repeated(keys: list[str]) -> list[str]:
    return [key for key, n in Counter(keys).items() if n > 1]


def _binding_faults(run: Snapshot) -> Iterator[Fault]:
    """Whether the manifest is that of this run, with this plan and this environment."""
    made = run.manifest
    if made is None or made.run is None:
        return
    there = {"run": run.env.get(BEGAN), "plan": run.plan_seal, "env": run.env_seal}
    if wrong := [name for name, value in there.items() if getattr(made, name) != value]:
        told = f"names another {' and another '.join(wrong)} than there is; {run.command} makes it again"
        yield "the manifest is that of this run", f"{run.folder / manifest.NAME}: {told}"


def _digest_faults(run: Snapshot) -> Iterator[Fault]:
    """Whether finished tables are those that were made from the records of this run."""
    if run.manifest is None:
        return
    tables, records = run.manifest.tables, run.manifest.records
    for name, table in run.tables.items():
        path = run.folder / f"{name}.parquet"
        metadata = table.schema.metadata
        if metadata[SEAL].decode() != tables[name]:
            yield "tables are as they were made", f"{path}: is another table than the one that the records made"
        made_by = as_told(metadata.get(MADE_BY))
        if made_by != run.env:
            told = f"the environment that made it is not that of env.json: {differing(run.env, made_by)}"
            yield "tables are of this run", f"{path}: {told}"
    folder, there = run.folder / "records", run.done()
    remade = f"{run.command} measures what is missing, and makes the tables again"
    for keys, words in (
        (sorted(records.keys() - there), "of which tables were made are gone"),
        (sorted(set(run.tables["cells"]["problem"].drop_null().to_pylist()) - records.keys()), "of rows are not named"),
        (sorted(there.intersection(run.plan["problems"]) - records.keys()), "are in no table"),
        ([key for key in sorted(records.keys() & there) if run.seal(key) != records[key]], "changed after the tables"),
    ):
        if keys:
            detail = f"{len(keys)} records {words}; first {keys[0]}; {remade}"
            yield "tables are made of the records", f"{folder}: {detail}"


def _row_faults(run: Snapshot, planned: _Planned) -> Iterator[Fault]:
    """Whether every cell of the plan has one row, which stands at its coordinates and in its problem."""
    table = run.tables["cells"]
    keys: list[str] = table["cell"].to_pylist()
    there = set(keys)
    if twice := _repeated(keys):
        yield "every cell once", counted(twice, "stand there more than once")
    if foreign := [key for key in dict.fromkeys(keys) if key not in planned.points]:
        yield "no cell that is not planned", counted(foreign, "are not in the plan")
    missing = [key for key in planned.keys if key not in there]
    if missing and run.manifest is not None and len(missing) != run.manifest.missing:
        yield "every planned cell", counted(missing, "of the plan have no row")
    if not (twice or foreign) and keys != [key for key in planned.keys if key in there]:
        yield "rows in the order of the plan", "its rows stand in another order"
    points = zip(*(table[name].to_pylist() for name in POINT), strict=True)
    moved = {}
    for key, point in zip(keys, points, strict=True):
        if point != planned.points.get(key, point):
            differing = zip(POINT, point, planned.points[key], strict=True)
            moved[key] = ", ".join(f"{name} = {a!r}, in the plan {b!r}" for name, a, b in differing if a != b)
    if moved:
        words = f"do not stand where their key says ({next(iter(moved.values()))})"
        yield "a key is the digest of its coordinates", counted(list(moved), words)
    yield from _label_faults(table, planned)
    grouped: dict[str | None, list[str]] = {}
    for key, problem in zip(keys, table["problem"].to_pylist(), strict=True):
        grouped.setdefault(problem, []).append(key)
    yield from _skip_faults(table, planned, grouped.pop(None, []))
    if wrong := [problem for problem, cells in grouped.items() if digest(sorted(cells)) != problem]:
        yield "a problem has all its cells", f"{len(wrong)} problems hold other cells than theirs; first {wrong[0]}"


def _label_faults(table: pa.Table, planned: _Planned) -> Iterator[Fault]:
    """Whether words that follow from coordinates do: labels, which begin with a name, and the data set of a system."""
    keys = table["cell"].to_pylist()
    options = {key: point[POINT.index("system_options")] for key, point in planned.points.items()}
    of_system = {text: json.loads(text).get("dataset") for text in set(options.values())}
    there = zip(keys, table["dataset"].to_pylist(), strict=True)
    if wrong := [key for key, name in there if key in options and of_system[options[key]] != name]:
        yield "a data set is that of its system", counted(wrong, "have another data set than their system")
    for kind in ("system", "estimator"):
        named = zip(keys, table[kind].to_pylist(), table[f"{kind}_label"].to_pylist(), strict=True)
        if wrong := [key for key, name, label in named if not f"{label} ".startswith(f"{name} ")]:
            yield "a label for every rule and system", counted(wrong, f"have another name in {kind}_label")
        columns = [table[name].to_pylist() for name in (kind, f"{kind}_options", f"{kind}_label")]
        pairs = set(zip(*columns, strict=True))
        if len(pairs) != len({pair[:2] for pair in pairs}) or len(pairs) != len({pair[2] for pair in pairs}):
            yield "a label for every rule and system", f"{kind}_label: one label has two meanings, or one {kind} two"


def _skip_faults(table: pa.Table, planned: _Planned, without_problem: list[str]) -> Iterator[Fault]:
    rows = zip(*(table[name].to_pylist() for name in ("cell", "status", "reason")), strict=True)
    skipped = {key: reason for key, status, reason in rows if status == Status.SKIPPED}
    if wrong := [key for key in skipped if key not in planned.skipped]:
        yield "what the plan skips is skipped", counted(wrong, "are skipped, and the plan measures them")
    if wrong := [key for key in planned.skipped.keys() & set(table["cell"].to_pylist()) if key not in skipped]:
        yield "what the plan skips is skipped", counted(sorted(wrong), "have a status, and the plan skips them")
    if wrong := [key for key, reason in skipped.items() if planned.skipped.get(key, reason) != reason]:
        yield "what the plan skips is skipped", counted(wrong, "are skipped for another reason than in the plan")
    if set(without_problem) != skipped.keys():
        wrong = sorted(set(without_problem) ^ skipped.keys())
        yield "a problem has all its cells", counted(wrong, "are skipped in a problem, or measured in none")


def _compaction_faults(run: Snapshot) -> Iterator[Fault]:
    """Whether the records make these tables."""
    for name, table in run.compacted(skipped_rows(run.plan)).tables.items():
        there = run.tables[name]
        differing = [c for c in table.column_names if not _same(table[c], there[c])]
        if differing:
            columns = ", ".join(differing)
            yield "the records make these tables", f"{run.folder / name}.parquet: other values in {columns}"


def _same(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """Equal values, NaN included."""
    if len(a) != len(b):
        return False
    if pa.types.is_floating(a.type):
        a, b = (c.combine_chunks().view(pa.int64()) for c in (a, b))
    return bool(a.equals(b))
