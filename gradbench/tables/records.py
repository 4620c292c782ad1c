"""Which records of a run can be trusted, so that the problems of all others are measured again."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.errors import StoreError
from gradbench.planning.cells import identities
from gradbench.tables import consistency
from gradbench.tables.disk import SEAL
from gradbench.tables.schema import METADATA
from gradbench.tables.store import Run, Unread, taken_apart
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.planning.cells import Cell
    from gradbench.tables.bundles import Batch
    from gradbench.tables.manifest import Manifest
    from gradbench.vocabulary.status import Thresholds


def judged(
    run: Run, problems: Mapping[str, Collection[Cell]], at: Thresholds
) -> Iterator[tuple[str, list[str] | StoreError]]:
    """The records of a run by the key of their problem, in order: the statuses of their cells, or why one is no use.

    `problems` holds the cells of every problem. A record counts where it is undamaged and of this run, where its seal
    is that of the manifest, if there is one, where it has the cells of its problem and each in its place, with a
    status, and where its numbers can be those of cells that were judged with the thresholds `at`.
    """
    made = _manifest(run)
    read: dict[str, list[str] | StoreError] = {}
    for part in run.batches(sorted(run.done() & problems.keys())):
        if isinstance(part, Unread):
            read[part.problem] = part.why
            continue
        statuses = iter(part.table["status"].to_pylist())
        told = [list(itertools.islice(statuses, n)) for n in part.rows]
        suspects = _suspects(part, problems, made, at)
        for key, known, suspect in zip(part.problems, told, suspects, strict=True):
            fault = _fault(run, key, problems[key], made, at) if suspect else None
            read[key] = known if fault is None else fault
    for key in sorted(read):
        yield key, read[key]


def _suspects(
    part: Batch, problems: Mapping[str, Collection[Cell]], made: Manifest | None, at: Thresholds
) -> list[bool]:
    """For every record of a batch whether it has to be looked at by itself: False where it surely counts."""
    owner = np.repeat(np.arange(len(part.rows)), part.rows)
    cells = [cell for key in part.problems for cell in problems[key]]
    wanted = [len(problems[key]) for key in part.problems]
    suspect = np.array(part.rows) != wanted
    if made is not None:
        suspect |= [made.records.get(key) != seal for key, seal in zip(part.problems, part.seals, strict=True)]
    places = pc.index_in(part.table["cell"].combine_chunks(), pa.array([cell.key for cell in cells], pa.string()))
    place = places.fill_null(0).to_numpy()
    wrong = places.is_null().to_numpy(zero_copy_only=False)
    wrong |= np.repeat(np.arange(len(wanted)), wanted)[place] != owner
    wrong |= ~pc.is_in(part.table["status"], pa.array(list(map(str, Status)))).to_numpy()
    for name, values in identities(cells).items():
        there = part.table[name].combine_chunks()
        try:
            planned = pa.array(values, there.type).take(pa.array(place))
        except (pa.ArrowException, OverflowError):  # values that no such column holds
            return [True] * len(part.rows)
        equal = pc.equal(there, planned).fill_null(False)
        same = pc.or_(equal, pc.and_(there.is_null(), planned.is_null()))
        wrong |= ~same.to_numpy(zero_copy_only=False)
    suspect[owner[wrong]] = True
    if not suspect.all():
        sure = part.table.filter(pa.array(~suspect[owner])) if suspect.any() else part.table
        suspect |= next(_faults(sure, at), None) is not None
    return list(suspect.tolist())


def _fault(run: Run, key: str, cells: Collection[Cell], made: Manifest | None, at: Thresholds) -> StoreError | None:
    """Why the record of a problem does not count; None: it does."""
    record = _read(run, key, cells, made)
    if isinstance(record, StoreError):
        return record
    fault = next(_faults(record, at), None)
    return None if fault is None else StoreError(f"{run.path_of(key)}: {fault}")


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
