"""Copies of the rows of many records in one file, so that a run of thousands of records is read in seconds.

To open a file of parquet takes some milliseconds, whatever it holds. The records are what counts: a copy stands in for
a record where the file of that record is as it was sealed, and its seal is the one that the copy was made from. A copy
that cannot be used is passed over, and the record is read. The journal holds the seal of every bundle, as of records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.errors import StoreError
from gradbench.planning.cells import digest
from gradbench.tables.disk import LONG, SEAL, names_in, read_table, sealed_table, write
from gradbench.tables.journal import Journal
from gradbench.tables.schema import CELLS, METADATA, RECORD

FOLDER = "bundles"
SIZE = 256  # records of a bundle
HOLDS = b"gradbench.records"  # a key of its metadata: of every record problem, seal and number of rows


class Batch(NamedTuple):
    """The rows of some records, one record after the other."""

    problems: list[str]
    seals: list[str]
    rows: list[int]  # of every record
    table: pa.Table


class Bundles:
    """The bundles of a run."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder, self._journal = folder, journal
        self.waiting: list[tuple[str, str, pa.Table]] = []  # problem, seal and rows of records without a bundle

    def add(self, problem: str, seal: str, table: pa.Table, origin: Mapping[bytes, bytes]) -> None:
        """Copy a record that was stored, together with others once there are enough of them."""
        self.waiting.append((problem, seal, table))
        if len(self.waiting) >= SIZE:
            batch = _joined(self.waiting)
            self.waiting.clear()
            self.store(batch, origin)

    def store(self, batch: Batch, origin: Mapping[bytes, bytes]) -> None:
        """Store a bundle of a run whose records have this `origin`. Where the disk refuses there is none."""
        holds = list(zip(batch.problems, batch.seals, batch.rows, strict=True))
        table = batch.table.combine_chunks().replace_schema_metadata(
            {**METADATA, **origin, HOLDS: json.dumps(holds).encode()}
        )
        name = f"{digest(holds)}.parquet"
        content, seal = sealed_table(table, LONG)
        with suppress(StoreError):
            self._journal.note(f"{FOLDER}/{name}", seal)
            write(self.folder / FOLDER / name, lambda file: file.write(content), inside=self.folder)

    def batches(self, seals: Mapping[str, str], origin: Mapping[bytes, bytes]) -> Iterator[Batch]:
        """The rows of records with these `seals`, by problem, of which there is a copy; each record once.

        Records that this process stored and that wait for their bundle have their copy in memory.
        """
        left = dict(seals)
        waiting = {entry[0]: entry for entry in self.waiting if left.get(entry[0]) == entry[1]}
        if waiting and sound(joined := _joined(list(waiting.values()))):
            yield joined
            left = {problem: seal for problem, seal in left.items() if problem not in waiting}
        with suppress(StoreError):
            for name in names_in(self.folder / FOLDER):
                if not left:
                    return
                batch = self._read(name, origin)
                if batch is None:
                    continue
                wanted = [left.get(p) == seal for p, seal in zip(batch.problems, batch.seals, strict=True)]
                if any(wanted):
                    chosen = _chosen(batch, wanted)
                    for problem in chosen.problems:
                        del left[problem]
                    yield chosen

    def _read(self, name: str, origin: Mapping[bytes, bytes]) -> Batch | None:
        """A bundle of this run, as it was stored; None where it is anything else."""
        if not name.endswith(".parquet") or name.startswith("."):
            return None
        try:
            table = read_table(self.folder / FOLDER / name, RECORD)
            told = table.schema.metadata
            if not self._journal.names(f"{FOLDER}/{name}", told[SEAL].decode()):
                return None
            if any(told.get(key) != value for key, value in origin.items()):
                return None
            problems, seals, rows = map(list, zip(*json.loads(told[HOLDS]), strict=True))
        except (StoreError, LookupError, TypeError, ValueError):
            return None
        batch = Batch(problems, seals, rows, table)
        return batch if len(set(problems)) == len(problems) and sound(batch) else None


def _joined(records: Sequence[tuple[str, str, pa.Table]]) -> Batch:
    problems, seals, tables = zip(*records, strict=True)
    return Batch(list(problems), list(seals), list(map(len, tables)), pa.concat_tables(tables))


def _chosen(batch: Batch, wanted: Sequence[bool]) -> Batch:
    """Some of the records of a batch."""
    if all(wanted):
        return batch

    def those(values: list[str]) -> list[str]:
        return [value for value, is_wanted in zip(values, wanted, strict=True) if is_wanted]

    rows = [n for n, is_wanted in zip(batch.rows, wanted, strict=True) if is_wanted]
    table = batch.table.filter(pa.array(np.repeat(wanted, batch.rows)))
    return Batch(those(batch.problems), those(batch.seals), rows, table)


def sound(batch: Batch) -> bool:
    """Whether every record of a batch is of its problem, has no cell twice and no column that cannot be one."""
    table = batch.table
    if len(table) != sum(batch.rows) or table["cell"].null_count or 0 in batch.rows:
        return False
    problems = pa.array(np.repeat(np.array(batch.problems, object), batch.rows), pa.string())
    if not table["problem"].combine_chunks().equals(problems):
        return False
    if len(table["cell"].unique()) < len(table):
        return False
    return not unusable(table)


def unusable(records: pa.Table) -> set[str | None]:
    """Names of further columns of records that can be none: those of columns that there are, and null."""
    named = pc.struct_field(pc.list_flatten(records["extra"].combine_chunks()), "column")
    return set(named.unique().to_pylist()) & {None, *CELLS.names}
