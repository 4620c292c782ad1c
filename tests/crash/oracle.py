"""What a run must hold: the rows of a run that nothing disturbed, by cell."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from gradbench.errors import StoreError
from gradbench.tables.schema import TABLES
from gradbench.tables.snapshots import Snapshot
from gradbench.tables.store import Run
from gradbench.tables.verifying import verify

TOLD = 500  # letters of what is wrong
TIMES = ("seconds", "peak_memory")
Rows = dict[str, list[str]]  # table and cell -> its rows, as text: NaN, null and -0.0 differ there


class WrongError(AssertionError):
    """A promise of the store that is broken."""


def rows_of_table(name: str, table: pa.Table) -> Rows:
    """The rows of one table by cell, without what depends on the time."""
    rows: Rows = {}
    for row in table.drop_columns([t for t in TIMES if t in table.column_names]).to_pylist():
        rows.setdefault(f"{name} {row['cell']}", []).append(repr(row))
    return rows


def rows_of(run: Snapshot) -> Rows:
    """The rows of all tables of a run."""
    return {key: rows for name in TABLES for key, rows in rows_of_table(name, run.tables[name]).items()}


def rows_of_record(run: Run, problem: str) -> Rows:
    """The rows of a record. Raises StoreError where it is damaged."""
    return rows_of_table("record", run.record(problem))


class Oracle:
    """The rows of an undisturbed run."""

    def __init__(self, folder: Path) -> None:
        run = Snapshot(folder)
        self.tables = rows_of(run)
        self.records = {problem: rows_of_record(run, problem) for problem in run.plan["problems"]}
        self.problems = list(run.plan["problems"])

    def judge(self, run: Run, stored: set[str], *, whole: bool = False, deep: bool = True) -> None:
        """Raise WrongError where something acknowledged is lost, or anything is torn, doubled, or different.

        `stored` are the keys of the problems whose records were acknowledged. `whole`: no row may be missing.
        """
        for problem in sorted(stored | run.done()):
            try:
                rows = rows_of_record(run, problem)
            except StoreError as error:
                kind = "lost or torn" if problem in stored else "torn"
                raise WrongError(f"{kind}: record {problem}: {error}") from None
            if rows != self.records[problem]:
                raise WrongError(f"different: record {problem}")
        snapshot, faults = verify(run, deep=deep)
        if snapshot is None or faults:
            raise WrongError("not verified: " + "; ".join(f"{fault.name}: {fault.detail}" for fault in faults)[:TOLD])
        self.compare(rows_of(snapshot), whole=whole)
        absent = [cell for problem in stored for cell in self.records[problem]]
        there = snapshot.tables["cells"]["cell"].to_pylist()
        if gone := [cell for cell in absent if cell.removeprefix("record ") not in there]:
            raise WrongError(f"lost: {len(gone)} cells whose record was acknowledged have no row; first {gone[0]}")

    def compare(self, rows: Rows, *, whole: bool = False) -> None:
        """Raise WrongError where rows are doubled, different, or, where `whole`, missing."""
        for key, found in rows.items():
            if found != self.tables.get(key):
                times = len(found) // max(1, len(self.tables.get(key, found)))
                raise WrongError(f"{'doubled' if times > 1 else 'different'}: {key}")
        if whole and rows.keys() != self.tables.keys():
            raise WrongError(f"lost: {len(self.tables.keys() - rows.keys())} rows of a finished run are missing")


def leftovers(folder: Path) -> list[str]:
    """Files that an interrupted write leaves in the folder of a run."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name.startswith(".") and not path.name.endswith(".lock")
    )


def started(out: Path, suite: str) -> list[Run]:
    """The runs of a suite that have begun, the newest last."""
    return [Run(path.parent) for path in sorted((out / "runs" / suite).glob("*/env.json"))]
