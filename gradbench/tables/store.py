"""The store of a run: a folder in which a problem's cells are wholly there or not there at all.

Every file is written under a temporary name, synced, and renamed; a record is a checksummed parquet file
named by its problem's content key. A run that is cut off keeps every record it had finished.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradbench.errors import StoreError
from gradbench.tables.schema import CELLS, METADATA, PARAMS, RECORD, VERSION


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}; what was stored before is unchanged") from error


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically and durably. Raises StoreError where the folder or the disk refuses."""
    with _guarded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def read_json(path: Path) -> Any:
    """Read JSON. Raises StoreError where it is missing or torn."""
    with _guarded(path):
        text = path.read_text()
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write parquet atomically, with page checksums."""
    write(path, lambda file: pq.write_table(table, file, compression="zstd", write_page_checksum=True))


def read_table(path: Path) -> pa.Table:
    """Read parquet and verify its checksums and schema version. Raises StoreError for anything else."""
    with _guarded(path):
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowInvalid, pa.ArrowException) as error:
            raise StoreError(f"{path}: damaged: {error}") from None
    version = int((table.schema.metadata or {}).get(b"gradbench.schema", b"0"))
    if version != VERSION:
        raise StoreError(f"{path}: schema version {version}, this gradbench reads {VERSION}")
    return table


class Run:
    """A run folder: plan and environment, a record a problem, tables, verdict, plots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as it was frozen."""
        content: dict[str, Any] = read_json(self.folder / "plan.json")
        return content

    @property
    def env(self) -> dict[str, Any]:
        """Where and with what the run was made."""
        content: dict[str, Any] = read_json(self.folder / "env.json")
        return content

    @property
    def claims(self) -> dict[str, Any]:
        """The checks of the suite, as it stood when the run was last worked on."""
        content: dict[str, Any] = read_json(self.folder / "checks.json")
        return content

    def claim(self, claims: dict[str, Any]) -> None:
        """Set the checks: these may change without anything being measured again."""
        write_json(self.folder / "checks.json", claims)

    def start(self, plan: dict[str, Any], env: dict[str, Any]) -> None:
        """Freeze plan and environment. The environment comes last: a folder without it never started."""
        write_json(self.folder / "plan.json", plan)
        write_json(self.folder / "env.json", env)

    def _record(self, problem: str) -> Path:
        return self.folder / "records" / f"{problem}.parquet"

    def done(self) -> set[str]:
        """Keys of the problems that have a record."""
        return {p.stem for p in (self.folder / "records").glob("*.parquet")}

    def keep(self, problem: str, rows: list[dict[str, Any]]) -> None:
        """Store the record of a problem."""
        write_table(self._record(problem), pa.Table.from_pylist(rows, schema=RECORD))

    def drop(self, problem: str) -> None:
        """Forget a record, so that its problem is measured again."""
        with _guarded(self._record(problem)):
            self._record(problem).unlink(missing_ok=True)

    def record(self, problem: str) -> pa.Table:
        """The record of a problem."""
        return read_table(self._record(problem)).cast(RECORD)

    def compact(self, extra: Iterable[dict[str, Any]]) -> int:
        """Write the tables from all records and from rows that have none; the number of planned cells without a row.

        Rows stand in the order of the plan, so that equal results make equal files.
        """
        plan = self.plan
        planned = [c["cell"] for c in (*plan["cells"], *plan["skipped"])]
        records = [self.record(key) for key in plan["problems"] if key in self.done()]
        rest = pa.Table.from_pylist(list(extra), schema=RECORD)
        table = pa.concat_tables([*records, rest])
        index = {key: i for i, key in enumerate(table["cell"].to_pylist())}
        there = [index[key] for key in planned if key in index]
        table = table.take(pa.array(there, pa.int64()))
        env = {**METADATA, b"gradbench.env": json.dumps(self.env).encode()}
        write_table(self.folder / "cells.parquet", table.select(CELLS.names).replace_schema_metadata(env))
        nested = table["params"].combine_chunks()
        owner = table["cell"].take(pc.list_parent_indices(nested))
        columns = [owner, *pc.list_flatten(nested).flatten()]
        write_table(self.folder / "params.parquet", pa.table(columns, schema=PARAMS.with_metadata(env)))
        return len(planned) - len(there)

    @property
    def cells(self) -> Any:
        """The `cells` table as a pandas frame."""
        return read_table(self.folder / "cells.parquet").to_pandas()

    @property
    def params(self) -> Any:
        """The `params` table as a pandas frame."""
        return read_table(self.folder / "params.parquet").to_pandas()
