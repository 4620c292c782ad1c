"""The store of a run: a folder that holds either all cells of a problem or none of them.

A record is a parquet file, named by the content key of its problem. A run that is cut off keeps every record that it
had finished. Every file that a run is read from has a seal, and the manifest of a finished run holds them all.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.errors import StoreError, UserError
from gradbench.planning.cells import digest
from gradbench.tables import bundles, manifest
from gradbench.tables.bundles import HOLDS, Batch, Bundles
from gradbench.tables.disk import (
    DRAWN,
    SCRATCH,
    SEAL,
    SHORT,
    UNCHANGED,
    guarded,
    names_in,
    read_seal,
    read_sealed,
    read_table,
    refuse_links,
    sealed_table,
    sync,
    tidy,
    way_out,
    write,
    write_json,
    write_table,
)
from gradbench.tables.journal import Journal
from gradbench.tables.manifest import Manifest
from gradbench.tables.schema import CELLS, METADATA, NESTED, RECORD, TABLES

if TYPE_CHECKING:
    from pandas import DataFrame

# Keys of the metadata of a table. A record says which environment measured it, and for the plan with which key; a table
# says which environment made it.
MADE_BY, PLANNED = b"gradbench.env", b"gradbench.plan"
# Keys of env.json. The first is the id under which the run began: where it is, all records and the checks say that they
# are of this run. The second is the seal of plan.json: where it is, every file of JSON of this run has a seal. A run
# without them was made before.
BEGAN, PLAN_SEAL = "run", "plan_seal"
STARTED_BY = ("gradbench", "__main__.py")  # names of the program of a command line
PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")  # that a shell takes as it is
BOUND = "bound_to"  # a key of checks.json: the digest of its content and of the run that it is of
TOLD = 3  # entries of an environment that a message names
# of an error that comes when the manifest is gone already
MADE_AGAIN = "; the records are unchanged, and the same command makes the tables again"
LOCK = ".lock"  # of the process that works on a run
TRIES, PAUSE = 10, 0.02  # to get the lock, which a reader may hold for a moment; seconds between two
# patterns of the files of a run, and of its suite, that are written under a temporary name first
NAMES = rf"(plan|config|env|checks|verdict|manifest|tables)\.json|\w+\.(parquet|html|pt|svg|png)|{SCRATCH}"
# what is there before `start` has written env.json: whole files, and those under temporary names
BEFORE_ENV = re.compile(rf"(plan|config|checks)\.json|\.(plan|config|checks|env)\.json{DRAWN}")
NAMES_BELOW = {
    "records": r".+\.parquet",
    bundles.FOLDER: r".+\.parquet",
    "plots": r".+\.(svg|png|pdf)",
    "plots/paper": r".+\.(svg|pdf)",
    "plots/paper-sans": r".+\.(svg|pdf)",
    "profile": r"trace\.json\.gz|table\.txt",
    "..": f"latest|{SCRATCH}",
}


def as_told(metadata: bytes | None) -> Any:
    """The environment that the metadata of a table names; None where it names none."""
    try:
        return json.loads(metadata or b"null")
    except (ValueError, RecursionError):
        return None


def _origin(env: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {MADE_BY: json.dumps(env).encode(), PLANNED: str(plan.get("key")).encode()}


def differing(env: Mapping[str, Any], other: Any) -> str:
    """What differs between the environment of a run and another one, in words."""
    if not isinstance(other, Mapping):
        return "no environment"
    # `whole` is the identity without the share of a shard, and tells nothing more
    keys = [key for key in dict.fromkeys((*env, *other)) if env.get(key) != other.get(key) and key != "whole"]
    told = [f"{key} {other.get(key)!r} in place of {env.get(key)!r}" for key in keys[:TOLD]]
    return ", ".join([*told, *([f"{len(keys) - TOLD} more"] if len(keys) > TOLD else [])])


def _locked(lock: int) -> bool:
    """Whether an open file could be locked, or lies where there are no locks."""
    for _ in range(TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE)
        except OSError:  # two processes on one run go unnoticed there
            return True
        else:
            return True
    return False


def taken_apart(records: pa.Table) -> dict[str, pa.Table]:
    """The tables whose rows lie nested in the rows of records, by name, and `cells` of the rows themselves."""
    tables = {"cells": _with_extra(records).replace_schema_metadata(METADATA)}
    for name, schema in NESTED.items():
        nested = records[name].combine_chunks()
        owner = records["cell"].take(pc.list_parent_indices(nested))
        tables[name] = pa.table([owner, *pc.list_flatten(nested).flatten()], schema=schema)
    return tables


def _with_extra(records: pa.Table) -> pa.Table:
    """The table `cells` of records: behind its columns one for every name in `extra`, sorted; null where it is not."""
    cells = records.select(CELLS.names)
    nested = records["extra"].combine_chunks()
    owner = pc.list_parent_indices(nested).to_numpy()
    named = pc.struct_field(pc.list_flatten(nested), "column").dictionary_encode()
    values = pc.struct_field(pc.list_flatten(nested), "value")
    numbers, null = values.to_numpy(zero_copy_only=False), values.is_null().to_numpy(zero_copy_only=False)
    codes = named.indices.to_numpy(zero_copy_only=False)
    for code, name in sorted(enumerate(named.dictionary.to_pylist()), key=lambda entry: entry[1]):
        there = np.flatnonzero(codes == code)
        column, missing = np.zeros(len(records)), np.ones(len(records), bool)
        column[owner[there]], missing[owner[there]] = numbers[there], null[there]
        cells = cells.append_column(name, pa.array(column, pa.float64(), mask=missing))
    return cells


def _batch(tables: dict[str, pa.Table]) -> Batch:
    """Records as one table."""
    seals = [table.schema.metadata[SEAL].decode() for table in tables.values()]
    whole = pa.concat_tables(list(tables.values())).combine_chunks()
    return Batch(list(tables), seals, list(map(len, tables.values())), whole)


class Unread(NamedTuple):
    """A record that cannot be used."""

    problem: str
    why: StoreError


class Compaction(NamedTuple):
    """The tables of a run, made from its records."""

    tables: dict[str, pa.Table]
    records: dict[str, str]  # the seal of every record that they are made from
    missing: int  # planned cells without a row


class Run:
    """The folder of a run: plan, environment, checks, a record for every problem, tables, verdict, plots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder)
        self._bundles = Bundles(folder, self._journal)

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def command(self) -> str:
        """What a message says to type, so that the suite is run."""
        home = self.folder.absolute().parent
        return f"gradbench run {home.name if home.parent.name == 'runs' else 'SUITE'}"

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as it was frozen. Raises StoreError for one that is not that of env.json."""
        plan, seal = self.sealed("plan.json")
        if self.env.get(PLAN_SEAL, seal) != seal:
            told = "is not the plan with which the run began"
            raise StoreError(f"{self.folder / 'plan.json'}: {told}; {self.command} --fresh begins another run")
        return plan

    @property
    def env(self) -> dict[str, Any]:
        """Device, versions and code of the run."""
        return self.sealed("env.json")[0]

    @property
    def claims(self) -> dict[str, Any]:
        """Checks and printed tables of the suite, from the last time that the run was worked on."""
        return self.sealed("checks.json")[0]

    @property
    def manifest(self) -> Manifest | None:
        """The seals of the finished tables and of what they were made from; None: there is no such file.

        A run that was cut off, or that goes on, has none, and nor has one that was made before they were stored. Raises
        StoreError for a file that holds anything else.
        """
        names = [name for name in (manifest.NAME, manifest.OLD_NAME) if os.path.lexists(self.folder / name)]
        if not names or (names[0] == manifest.OLD_NAME and self.sealing):
            return None
        return Manifest.of(self.sealed(names[0])[0], self.folder / names[0])

    def sealed(self, name: str) -> tuple[dict[str, Any], str | None]:
        """The object in a file of JSON, and its seal; None where the run was made before there were seals.

        Raises StoreError where the file is damaged, and where it has no seal and the run has.
        """
        path = self.folder / name
        with way_out(self._way_out(name)):
            content, seal = read_sealed(path)
            if not isinstance(content, dict):
                raise StoreError(f"{path}: damaged: it holds no object")
            if seal is None and (PLAN_SEAL in content if name == "env.json" else self.sealing):
                raise StoreError(f"{path}: damaged: it has no seal, and the files of this run have one")
        return content, seal

    def _way_out(self, name: str) -> str:
        if name in ("plan.json", "env.json"):
            return f"{self.command} --fresh begins another run"
        if name == "verdict.json":
            return "gradbench check writes it anew"
        return f"{self.command} writes it anew" if name.endswith(".json") else f"{self.command} makes it again"

    @cached_property
    def origin(self) -> dict[bytes, bytes]:
        """What a record of this run says of where it is from: metadata of its table."""
        return _origin(self.env, self.plan)

    @property
    def binds(self) -> bool:
        """Whether records and checks of this run say that they are its own. Runs made before do not."""
        return BEGAN in self.env

    @property
    def sealing(self) -> bool:
        """Whether every file of JSON of this run has a seal. Runs made before have none."""
        return PLAN_SEAL in self.env

    def bound(self, claims: Mapping[str, Any]) -> str:
        """The digest of checks and printed tables, and of the run that they are of."""
        content = {key: value for key, value in claims.items() if key != BOUND}
        return digest([content, *(part.decode() for part in self.origin.values())])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process works on the run. Raises UserError where one does; a lock dies with its process.

        What writers that died left under temporary names is removed.
        """
        lock = self._opened_lock()
        try:
            if not _locked(lock):
                words = "wait for it, or begin a run of its own with --fresh"
                raise UserError(f"{self.folder}: another process works on this run; {words}")
            self._tidy()
            yield
        finally:
            os.close(lock)

    def _opened_lock(self) -> int:
        path = self.folder / LOCK
        refuse_links(path, self.folder)
        with guarded(path, UNCHANGED):
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            os.close(lock)
            raise StoreError(f"{path}: is no regular file{UNCHANGED}; remove it")
        return lock

    def _tidy(self) -> None:
        tidy(self.folder, NAMES)
        for below, names in NAMES_BELOW.items():
            folder = self.folder / below
            if not folder.is_symlink():
                tidy(folder, names)

    @property
    def worked_on(self) -> bool | None:
        """Whether a process works on the run now; None where a file system without locks does not say it."""
        try:
            lock = os.open(self.folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        finally:
            os.close(lock)
        return False

    @property
    def standing(self) -> str:
        """What is told of a run without a manifest: whether its writer is alive, and what goes on with it."""
        if self.worked_on:
            return "another process works on it"
        gone = "no process works on it" if self.worked_on is False else "it goes on or was cut off"
        return f"{gone}; {self._begun_by() or self.command} goes on with it"

    def _begun_by(self) -> str:
        """The command line that began the run; empty where it is unknown, or no line that a shell takes as it is."""
        try:
            words = [str(word) for word in self.env["command"]]
        except (StoreError, LookupError, TypeError):
            return ""
        more = [word for word in words[1:] if word != "--fresh"]
        shown = more[:1] == ["run"] and Path(words[0]).name in STARTED_BY and all(map(PLAIN_WORD.fullmatch, more))
        return " ".join(["gradbench", *more]) if shown else ""

    def claim(self, claims: dict[str, Any]) -> None:
        """Set checks and printed tables. They may change between two starts, since they change no measurement."""
        write_json(self.folder / "checks.json", {**claims, BOUND: self.bound(claims)}, inside=self.folder)

    def start(
        self,
        plan: Mapping[str, Any],
        env: Mapping[str, Any],
        claims: dict[str, Any] | None = None,
        name: str = "plan.json",
    ) -> None:
        """Write plan, checks and environment, once; of a training its `config.json` stands for the plan.

        The environment comes last: a folder without it never started.
        """
        seal = write_json(self.folder / name, plan, inside=self.folder)
        content = {BEGAN: self.id, **env, PLAN_SEAL: seal}
        if claims is not None:
            self.origin = _origin(content, plan)
            self.claim(claims)
        write_json(self.folder / "env.json", content, inside=self.folder)

    def remove_unbegun(self) -> None:
        """Remove the folder of a run whose `start` was cut off: it holds a part of what that writes, and nothing else.

        Raises OSError where the folder cannot be read or removed.
        """
        if self.folder.is_symlink() or not self.folder.is_dir():
            return
        parts = list(self.folder.iterdir())
        if all(BEFORE_ENV.fullmatch(part.name) and not part.is_dir() for part in parts):
            for part in parts:
                part.unlink()
            self.folder.rmdir()

    def path_of(self, problem: str) -> Path:
        """The file of a record."""
        return self.folder / "records" / f"{problem}.parquet"

    def done(self) -> set[str]:
        """Keys of the problems that have a record. Raises StoreError where the folder of records cannot be read."""
        names = names_in(self.folder / "records")
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and name[0] != "."}

    def outdate(self) -> bool:
        """Say, before a record changes or the tables do, that the tables are no longer those of the records.

        Returns whether something said so before.
        """
        gone = False
        for name in (manifest.NAME, manifest.OLD_NAME):
            with guarded(self.folder, UNCHANGED), suppress(FileNotFoundError):
                (self.folder / name).unlink()
                gone = True
        if gone:
            with guarded(self.folder, MADE_AGAIN):
                sync(self.folder)
        return gone

    def keep(self, problem: str, rows: list[dict[str, Any]]) -> None:
        """Store the record of a problem, which says of which run it is."""
        self.store(problem, pa.Table.from_pylist(rows, schema=RECORD))

    def store(self, problem: str, table: pa.Table) -> None:
        """Store the rows of a problem as a record of this run, whichever run they were a record of."""
        told = MADE_AGAIN if self.outdate() else UNCHANGED
        table = table.replace_schema_metadata({**METADATA, **self.origin})
        content, seal = sealed_table(table, SHORT)
        self._journal.note(problem, seal)
        write(self.path_of(problem), lambda file: file.write(content), inside=self.folder, told=told)
        self._bundles.add(problem, seal, table, self.origin)

    def set_aside(self, problem: str) -> Path:
        """Rename a record that cannot be used, so that its problem is measured again; the new path, which was free."""
        path = self.path_of(problem)
        refuse_links(path.parent, self.folder)
        self.outdate()
        with guarded(path, UNCHANGED):
            numbered = (path.with_suffix(f".aside{i or ''}") for i in itertools.count())
            return path.replace(next(free for free in numbered if not os.path.lexists(free)))

    def seal(self, problem: str) -> str:
        """The seal of a record. Raises StoreError where the record is damaged."""
        with way_out(f"{self.command} measures it again"):
            return read_seal(self.path_of(problem))

    def record(self, problem: str) -> pa.Table:
        """The record of a problem. Raises StoreError where it is damaged, or that of another problem or another run."""
        path = self.path_of(problem)
        table = read_table(path, RECORD)
        if foreign := self._foreign(table.schema.metadata):
            raise StoreError(f"{path}: is no record of this run: {foreign}")
        if set(table["problem"].to_pylist()) != {problem}:
            raise StoreError(f"{path}: damaged: it is not the record of problem {problem}")
        if table["cell"].null_count or len(set(table["cell"].to_pylist())) < len(table):
            raise StoreError(f"{path}: damaged: a cell has two rows, or a row no cell")
        if bundles.unusable(table):
            raise StoreError(f"{path}: damaged: it names a further column that cannot be one")
        if not self._journal.binds(problem, (table.schema.metadata or {}).get(SEAL, b"").decode()):
            raise StoreError(f"{path}: damaged: it is not the record that was stored")
        return table

    def batches(self, problems: Iterable[str], *, copied: bool = True) -> Iterator[Batch | Unread]:
        """The records of these problems, some at a time and in any order, or why one cannot be used, as `record` does.

        If `copied`, rows come from bundles where the record is the one that was copied.
        """
        left = dict.fromkeys(problems)
        if copied and (self._bundles.waiting or os.path.lexists(self.folder / bundles.FOLDER)):
            seals = {}
            for problem in left:
                with suppress(StoreError):
                    seal = read_seal(self.path_of(problem))
                    if self._journal.binds(problem, seal):
                        seals[problem] = seal
            for batch in self._bundles.batches(seals, self.origin):
                for problem in batch.problems:
                    del left[problem]
                yield batch
        waiting = iter(left)
        while some := list(itertools.islice(waiting, bundles.SIZE)):
            yield from self._read(some)

    def _read(self, problems: list[str]) -> Iterator[Batch | Unread]:
        """A few records, checked together."""
        tables: dict[str, pa.Table] = {}
        for problem in problems:
            try:
                table = read_table(self.path_of(problem), RECORD)
                told = table.schema.metadata
                if self._foreign(told) or not self._journal.binds(problem, told.get(SEAL, b"").decode()):
                    table = self.record(problem)
                tables[problem] = table
            except StoreError as error:
                yield Unread(problem, error)
        if not tables:
            return
        batch = _batch(tables)
        if bundles.sound(batch):
            yield batch
            return
        for problem in tables:
            try:
                yield _batch({problem: self.record(problem)})
            except StoreError as error:
                yield Unread(problem, error)

    def _foreign(self, metadata: Mapping[bytes, bytes]) -> str:
        """Why a record with this metadata is not of this run; empty where it is."""
        origin = {key: metadata.get(key) for key in self.origin}
        if origin == self.origin:
            return ""
        if None in origin.values():  # a run that was made before, and goes on, has records of both kinds
            return "it does not say which run measured it" if self.binds or any(origin.values()) else ""
        if origin[MADE_BY] != self.origin[MADE_BY]:
            told = differing(self.env, as_told(origin[MADE_BY]))
            return f"the environment that measured it is not that of env.json: {told}"
        planned = (origin[PLANNED] or b"").decode(errors="replace")
        return f"it was measured for the plan {planned}, and this one is {self.plan['key']}"

    def compact(self, extra: Iterable[dict[str, Any]]) -> int:
        """Write the tables from all records and the `extra` rows; the number of planned cells without a row.

        Rows stand in the order of the plan, so that equal results make equal files. The manifest comes last, so that it
        is never that of other tables.
        """
        made = self._compacted(extra, copying=True)
        self.outdate()
        env = {**METADATA, MADE_BY: self.origin[MADE_BY]}
        seals = {
            name: write_table(
                self.folder / f"{name}.parquet",
                table.replace_schema_metadata(env),
                inside=self.folder,
                told=MADE_AGAIN,
            )
            for name, table in made.tables.items()
        }
        content: dict[str, Any] = {"missing": made.missing, "tables": seals, "records": made.records}
        began, seal = self.sealed("env.json")
        name = manifest.OLD_NAME
        if PLAN_SEAL in began:
            name = manifest.NAME
            content = {"run": str(began.get(BEGAN)), "plan": began[PLAN_SEAL], "env": seal, **content}
        write_json(self.folder / name, content, inside=self.folder, told=MADE_AGAIN)
        return made.missing

    def compacted(self, extra: Iterable[dict[str, Any]]) -> Compaction:
        """The tables that `compact` writes, from the records that there are now, and from no copies of them."""
        return self._compacted(extra, copying=False)

    def _compacted(self, extra: Iterable[dict[str, Any]], *, copying: bool) -> Compaction:
        """The tables; if `copying`, from bundles where there are some, and others are made of what has none."""
        plan = self.plan
        planned = [c["cell"] for c in (*plan["cells"], *plan["skipped"])]
        if "origin" not in self.__dict__:
            self.origin = _origin(self.env, plan)  # without a second reading of the plan
        done = self.done()
        tables, known = [], dict[str, str]()
        with way_out(f"{self.command} measures it again"):
            for part in self.batches((key for key in plan["problems"] if key in done), copied=copying):
                if isinstance(part, Unread):
                    raise part.why
                tables.append(part.table)
                known |= zip(part.problems, part.seals, strict=True)
                if copying and HOLDS not in part.table.schema.metadata and len(part.problems) == bundles.SIZE:
                    self._bundles.store(part, self.origin)
        unrecorded = pa.Table.from_pylist(list(extra), schema=RECORD)
        table = pa.concat_tables([*tables, unrecorded])
        del tables
        index = {key: i for i, key in enumerate(table["cell"].to_pylist())}
        there = [index[key] for key in planned if key in index]
        table = table.take(pa.array(there, pa.int64()))
        seals = {key: known[key] for key in plan["problems"] if key in known}
        return Compaction(taken_apart(table), seals, len(planned) - len(there))

    def table(self, name: str) -> pa.Table:
        """One of the tables as it is stored. Raises StoreError where it is damaged, or not that of the manifest."""
        path, made = self.folder / f"{name}.parquet", self.manifest
        with way_out(f"{self.command} makes it again"):
            table = read_table(path, TABLES[name])
            if made is not None and table.schema.metadata[SEAL].decode() != made.tables[name]:
                raise StoreError(f"{path}: is another table than the one that the records made")
        return table

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
