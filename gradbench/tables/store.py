"""The store of a run: a folder that holds either all cells of a problem or none of them.

Every file is written under a temporary name, synced and renamed. A record is a parquet file with a checksum, named by
the content key of its problem. A run that is cut off keeps every record that it had finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradbench.errors import StoreError, UserError
from gradbench.planning.cells import digest
from gradbench.tables.schema import CELLS, METADATA, NESTED, RECORD, TABLES, readable, upgraded

if TYPE_CHECKING:
    from pandas import DataFrame

# The checksums of parquet cover its pages, and a flipped bit in an offset reads another column: this one covers all.
BLANK = b"sha256:" + b"0" * 64
# Keys of the metadata of a table. A record says which environment measured it, and for the plan with which key; a table
# says which environment made it.
SEAL, SCHEMA, MADE_BY, PLANNED = b"gradbench.seal", b"gradbench.schema", b"gradbench.env", b"gradbench.plan"
DIGESTS = "tables.json"  # of the tables and of the records that they were made from
# A key of env.json: the id under which the run began. Where it is, all records and the checks say that they are of this
# run; a run without it was made before they did.
BEGAN = "run"
BOUND = "bound_to"  # a key of checks.json: the digest of its content and of the run that it is of
TOLD = 3  # entries of an environment that a message names
# for a few hundred rows: a third of the time of zstd with dictionaries, to write and to read, and no more bytes
SHORT = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
LONG = {"compression": "zstd"}
UNCHANGED = "; what was stored before is unchanged"  # what is said where something cannot be written


@contextmanager
def guarded(path: Path, more: str = "") -> Iterator[None]:
    """Inside, an OSError becomes a StoreError, which says `more` behind what happened."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}{more}") from error


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically and durably. Raises StoreError where the folder or the disk refuses."""
    with guarded(path, UNCHANGED):
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically: a line for every value, and for every entry of a list."""
    write(path, lambda file: file.write(_lines(content).encode()))


def _lines(content: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        entries = isinstance(value, list) and len(value) > 1
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if entries else json.dumps(value)

    return "{\n " + ",\n ".join(f"{json.dumps(key)}: {text(value)}" for key, value in content.items()) + "\n}\n"


def read_json(path: Path) -> Any:
    """Read JSON. Raises StoreError where it is missing or torn."""
    with guarded(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise StoreError(f"{path}: damaged: it holds no object")
    return content


def write_table(path: Path, table: pa.Table, form: Mapping[str, Any] = LONG) -> str:
    """Write parquet atomically, with page checksums, and in the footer its seal: the digest of the whole file.

    Returns the seal.
    """
    metadata = {**(table.schema.metadata or {}), SEAL: BLANK}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True, **form)
    content = _sealed(buffer.getvalue())
    write(path, lambda file: file.write(content))
    return _seal(content)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read parquet and verify its seal, schema version and columns. Raises StoreError where one of them is wrong.

    `cells` may have further columns of float64 behind those of its schema. A table of an older version gets the columns
    that came later: a coordinate with its default, anything else with null.
    """
    content = _whole(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        table = file.read(use_threads=False)  # a thread that lets go of `content` while Python ends aborts the process
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    wanted = schema.metadata[SCHEMA].decode()
    version = (table.schema.metadata or {}).get(SCHEMA, b"none").decode()
    if version not in readable(wanted):
        raise StoreError(f"{path}: schema version {version}, this gradbench reads {' and '.join(readable(wanted))}")
    if version != wanted:
        table = upgraded(table, schema)
    further = list(table.schema)[len(schema) :] if schema is CELLS else []
    expected = pa.schema([*schema, *(pa.field(column.name, pa.float64()) for column in further)])
    if len(set(expected.names)) < len(expected) or not table.schema.equals(expected):
        raise StoreError(f"{path}: its columns are not those of schema version {wanted}")
    return table


def read_metadata(path: Path) -> dict[bytes, bytes] | None:
    """What the footer of a parquet file says; None where the file is not, or no longer, one."""
    try:
        return pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None


def read_seal(path: Path) -> str:
    """The seal of a table, which need not be parsed for it. Raises StoreError where the file is not what was sealed."""
    return _seal(_whole(path))


def _whole(path: Path) -> bytes:
    """The content of a table that is as it was sealed."""
    with guarded(path):
        content = path.read_bytes()
    start = content.rfind(BLANK[:7])
    if start < 0 or _sealed(content.replace(content[start : start + len(BLANK)], BLANK)) != content:
        raise StoreError(f"{path}: damaged: its digest is not the one that it was written with")
    return content


def _seal(content: bytes) -> str:
    start = content.rfind(BLANK[:7])
    return content[start : start + len(BLANK)].decode()


def _with_extra(records: pa.Table) -> pa.Table:
    """The table `cells` of records: behind its columns one for every name in `extra`, sorted; null where it is not."""
    rows = [{entry["column"]: entry["value"] for entry in extra or ()} for extra in records["extra"].to_pylist()]
    cells = records.select(CELLS.names)
    for name in sorted({name for row in rows for name in row}):
        cells = cells.append_column(name, pa.array([row.get(name) for row in rows], pa.float64()))
    return cells


def _sealed(content: bytes) -> bytes:
    return content.replace(BLANK, BLANK[:7] + hashlib.sha256(content).hexdigest().encode())


def differing(env: Mapping[str, Any], other: Any) -> str:
    """What differs between the environment of a run and another one, in words."""
    if not isinstance(other, Mapping):
        return "no environment"
    keys = [key for key in dict.fromkeys((*env, *other)) if env.get(key) != other.get(key)]
    told = [f"{key} {other.get(key)!r} in place of {env.get(key)!r}" for key in keys[:TOLD]]
    return ", ".join([*told, *([f"{len(keys) - TOLD} more"] if len(keys) > TOLD else [])])


class Digests(NamedTuple):
    """The content of tables.json."""

    missing: int  # planned cells without a row
    tables: dict[str, str]  # the seal of every table
    records: dict[str, str]  # the seal of every record that they were made from

    @classmethod
    def of(cls, content: Any, path: Path) -> Digests:
        """The content of a file. Raises StoreError where it is not what `compact` writes."""
        if not isinstance(content, dict) or content.keys() != set(cls._fields):
            raise StoreError(f"{path}: damaged: it holds no digests: expected an object with {', '.join(cls._fields)}")
        missing, tables, records = (content[name] for name in cls._fields)
        if type(missing) is not int or missing < 0:
            raise StoreError(f"{path}: damaged: missing = {missing!r} is no number of cells")
        for name, seals in (("tables", tables), ("records", records)):
            if not isinstance(seals, dict) or not all(_is_seal(seal) for seal in seals.values()):
                raise StoreError(f"{path}: damaged: {name} holds what is no digest")
        if tables.keys() != TABLES.keys():
            raise StoreError(f"{path}: damaged: it has digests of {sorted(tables)}, expected {sorted(TABLES)}")
        return cls(missing, tables, records)


def _is_seal(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) is not None


class Compaction(NamedTuple):
    """The tables of a run, made from its records."""

    tables: dict[str, pa.Table]
    records: dict[str, str]  # the seal of every record that they are made from
    missing: int  # planned cells without a row


class Run:
    """The folder of a run: plan, environment, checks, a record for every problem, tables, verdict, plots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as it was frozen."""
        return _read_object(self.folder / "plan.json")

    @property
    def env(self) -> dict[str, Any]:
        """Device, versions and code of the run."""
        return _read_object(self.folder / "env.json")

    @property
    def claims(self) -> dict[str, Any]:
        """Checks and printed tables of the suite, from the last time that the run was worked on."""
        return _read_object(self.folder / "checks.json")

    @property
    def digests(self) -> Digests | None:
        """The seals of the finished tables and of the records that they were made from; None: there is no such file.

        A run that was cut off, or that goes on, has none, and nor has one that was made before they were stored. Raises
        StoreError for a file that holds anything else.
        """
        path = self.folder / DIGESTS
        return Digests.of(read_json(path), path) if os.path.lexists(path) else None

    @cached_property
    def origin(self) -> dict[bytes, bytes]:
        """What a record of this run says of where it is from: metadata of its table."""
        return {MADE_BY: json.dumps(self.env).encode(), PLANNED: str(self.plan.get("key")).encode()}

    @property
    def binds(self) -> bool:
        """Whether records and checks of this run say that they are its own. Runs made before do not."""
        return BEGAN in self.env

    def bound(self, claims: Mapping[str, Any]) -> str:
        """The digest of checks and printed tables, and of the run that they are of."""
        content = {key: value for key, value in claims.items() if key != BOUND}
        return digest([content, *(part.decode() for part in self.origin.values())])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process works on the run. Raises UserError where one does; a lock dies with its process."""
        with guarded(self.folder, UNCHANGED):
            lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                way_out = "wait for it, or begin a run of its own with --fresh"
                raise UserError(f"{self.folder}: another process works on this run; {way_out}") from None
            except OSError:
                pass  # file systems of clusters may have no locks: two processes on one run go unnoticed there
            yield
        finally:
            os.close(lock)

    def claim(self, claims: dict[str, Any]) -> None:
        """Set checks and printed tables. They may change between two starts, since they change no measurement."""
        write_json(self.folder / "checks.json", {**claims, BOUND: self.bound(claims)})

    def start(self, plan: Mapping[str, Any], env: Mapping[str, Any]) -> None:
        """Write plan and environment, once. The environment comes last: a folder without it never started."""
        write_json(self.folder / "plan.json", plan)
        write_json(self.folder / "env.json", {BEGAN: self.id, **env})

    def _record(self, problem: str) -> Path:
        return self.folder / "records" / f"{problem}.parquet"

    def done(self) -> set[str]:
        """Keys of the problems that have a record."""
        return {p.stem for p in (self.folder / "records").glob("*.parquet")}

    def _outdate(self) -> None:
        """Say, before a record changes or the tables do, that the tables are no longer those of the records."""
        with guarded(self.folder, UNCHANGED):
            (self.folder / DIGESTS).unlink(missing_ok=True)

    def keep(self, problem: str, rows: list[dict[str, Any]]) -> None:
        """Store the record of a problem, which says of which run it is."""
        self._outdate()
        table = pa.Table.from_pylist(rows, schema=RECORD)
        write_table(self._record(problem), table.replace_schema_metadata({**METADATA, **self.origin}), SHORT)

    def set_aside(self, problem: str) -> Path:
        """Rename a record that cannot be used, so that its problem is measured again; the new path, which was free."""
        path = self._record(problem)
        self._outdate()
        with guarded(path, UNCHANGED):
            numbered = (path.with_suffix(f".aside{i or ''}") for i in itertools.count())
            return path.replace(next(free for free in numbered if not os.path.lexists(free)))

    def seal(self, problem: str) -> str:
        """The seal of a record. Raises StoreError where the record is damaged."""
        return read_seal(self._record(problem))

    def record(self, problem: str) -> pa.Table:
        """The record of a problem. Raises StoreError where it is damaged, or that of another problem or another run."""
        table = read_table(self._record(problem), RECORD)
        if foreign := self._foreign(table.schema.metadata):
            raise StoreError(f"{self._record(problem)}: is no record of this run: {foreign}")
        if set(table["problem"].to_pylist()) != {problem}:
            raise StoreError(f"{self._record(problem)}: damaged: it is not the record of problem {problem}")
        if len(set(table["cell"].to_pylist())) < len(table):
            raise StoreError(f"{self._record(problem)}: damaged: a cell has two rows")
        return table

    def _foreign(self, metadata: Mapping[bytes, bytes]) -> str:
        """Why a record with this metadata is not of this run; empty where it is."""
        origin = {key: metadata.get(key) for key in self.origin}
        if origin == self.origin:
            return ""
        if None in origin.values():  # a run that was made before, and goes on, has records of both kinds
            return "it does not say which run measured it" if self.binds or any(origin.values()) else ""
        if origin[MADE_BY] != self.origin[MADE_BY]:
            told = differing(self.env, json.loads(origin[MADE_BY] or b"null"))
            return f"the environment that measured it is not that of env.json: {told}"
        return f"it was measured for the plan {(origin[PLANNED] or b'').decode()}, and this one is {self.plan['key']}"

    def compact(self, extra: Iterable[dict[str, Any]]) -> int:
        """Write the tables from all records and the `extra` rows; the number of planned cells without a row.

        Rows stand in the order of the plan, so that equal results make equal files. The digests come last, so that
        they are never those of other tables.
        """
        made = self.compacted(extra)
        self._outdate()
        env = {**METADATA, MADE_BY: json.dumps(self.env).encode()}
        seals = {
            name: write_table(self.folder / f"{name}.parquet", table.replace_schema_metadata(env))
            for name, table in made.tables.items()
        }
        write_json(self.folder / DIGESTS, {"missing": made.missing, "tables": seals, "records": made.records})
        return made.missing

    def compacted(self, extra: Iterable[dict[str, Any]]) -> Compaction:
        """The tables that `compact` writes, from the records that there are now."""
        plan = self.plan
        planned = [c["cell"] for c in (*plan["cells"], *plan["skipped"])]
        done = self.done()
        records = {key: self.record(key) for key in plan["problems"] if key in done}
        unrecorded = pa.Table.from_pylist(list(extra), schema=RECORD)
        table = pa.concat_tables([*records.values(), unrecorded])
        index = {key: i for i, key in enumerate(table["cell"].to_pylist())}
        there = [index[key] for key in planned if key in index]
        table = table.take(pa.array(there, pa.int64()))
        tables = {"cells": _with_extra(table).replace_schema_metadata(METADATA)}
        for name, schema in NESTED.items():
            nested = table[name].combine_chunks()
            owner = table["cell"].take(pc.list_parent_indices(nested))
            tables[name] = pa.table([owner, *pc.list_flatten(nested).flatten()], schema=schema)
        seals = {key: record.schema.metadata[SEAL].decode() for key, record in records.items()}
        return Compaction(tables, seals, len(planned) - len(there))

    def table(self, name: str) -> pa.Table:
        """One of the tables as it is stored."""
        return read_table(self.folder / f"{name}.parquet", TABLES[name])

    @property
    def cells(self) -> DataFrame:
        """The `cells` table as a pandas frame."""
        return self.table("cells").to_pandas()

    @property
    def params(self) -> DataFrame:
        """The `params` table as a pandas frame."""
        return self.table("params").to_pandas()

    @property
    def blocks(self) -> DataFrame:
        """The `blocks` table as a pandas frame."""
        return self.table("blocks").to_pandas()

    @property
    def budget(self) -> DataFrame:
        """The `budget` table as a pandas frame."""
        return self.table("budget").to_pandas()
