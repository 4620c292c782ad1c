"""Which records of a run can be trusted, so that the problems of all others are measured again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from gradbench.errors import StoreError
from gradbench.tables import consistency
from gradbench.tables.disk import SEAL
from gradbench.tables.schema import METADATA
from gradbench.tables.store import Run, taken_apart
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.planning.cells import Cell
    from gradbench.tables.manifest import Manifest
    from gradbench.vocabulary.status import Thresholds


def judged(
    run: Run, problems: Mapping[str, Collection[Cell]], at: Thresholds
) -> Iterator[tuple[str, pa.Table | StoreError]]:
    """The records of a run by the key of their problem, in order: the record, or why it cannot be trusted.

    `problems` holds the cells of every problem. A record counts where it is undamaged and of this run, where its seal
    is that of the manifest, if there is one, where it has the cells of its problem and each in its place, with a
    status, and where its numbers can be those of cells that were judged with the thresholds `at`.
    """
    made = _manifest(run)
    read = {key: _read(run, key, problems[key], made) for key in sorted(run.done() & problems.keys())}
    tables = [record for record in read.values() if isinstance(record, pa.Table)]
    suspect = bool(tables) and next(_faults(pa.concat_tables(tables), at), None) is not None
    for key, record in read.items():
        fault = next(_faults(record, at), None) if suspect and isinstance(record, pa.Table) else None
        yield key, record if fault is None else StoreError(f"{run.path_of(key)}: {fault}")


def _manifest(run: Run) -> Manifest | None:
    """The manifest; None where it is damaged, since it is made again."""
    try:
        return run.manifest
    except StoreError:
        return None


def _read(run: Run, key: str, cells: Collection[Cell], made: Manifest | None) -> pa.Table | StoreError:
    path = run.path_of(key)
    try:
        record = run.record(key)
    except StoreError as error:
        return error
    if made is not None and record.schema.metadata[SEAL].decode() != made.records.get(key):
        return StoreError(f"{path}: is not the record that the tables were made from")
    wanted = {cell.key: cell.identity for cell in cells}
    if set(record["cell"].to_pylist()) != wanted.keys():
        return StoreError(f"{path}: has {len(record)} cells, which are not the {len(wanted)} of its problem")
    for row in record.select(list(next(iter(wanted.values())))).to_pylist():
        if row != wanted[row["cell"]]:
            return StoreError(f"{path}: the cell {row['cell']} stands at another place than in the plan")
    if unknown := set(record["status"].to_pylist()) - set(Status):
        return StoreError(f"{path}: {min(map(str, unknown))!r} is no status")
    return record


def _faults(records: pa.Table, at: Thresholds) -> Iterator[str]:
    """What is wrong with the numbers of records."""
    try:
        for _, rule, detail in consistency.faults(taken_apart(records.replace_schema_metadata(METADATA)), at):
            yield f"{rule}: {detail}"
    except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        yield f"its rows cannot be read: {type(error).__name__}: {error}"
