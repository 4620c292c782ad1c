"""Bundles: copies of the rows of many records, which stand in for these records and for no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import gradbench
from gradbench.commands.running import prepare
from gradbench.errors import StoreError
from gradbench.planning.suites import Suite
from gradbench.tables import bundles, journal, store
from gradbench.tables.disk import read_table, write_table
from gradbench.tables.records import judged
from gradbench.tables.schema import RECORD
from gradbench.tables.store import Run

GRID = {
    "system": {"name": "toy_cons", "N": 2, "D": 4, "out": 2},
    "estimator": ["bptt", "aep"],
    "damp": 3.0,
    "T1": 10,
    "T2": 4,
    "seed": [0, 1, 2, 3, 4],
    "batch": 2,
}


@pytest.fixture
def suite() -> Suite:
    return gradbench.suite(GRID, name="bundled")


@pytest.fixture
def run(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of five records, of which four are in two bundles."""
    monkeypatch.setattr(bundles, "SIZE", 2)
    run = Run(gradbench.run(suite, out=tmp_path, device="cpu").folder)
    assert len(copies(run)) == 2
    return run


def copies(run: Run) -> list[Path]:
    return sorted((run.folder / bundles.FOLDER).iterdir())


def unread(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the records that are parsed from now on."""
    names: list[str] = []

    def read(path: Path, schema: pa.Schema) -> pa.Table:
        names.append(path.stem)
        return read_table(path, schema)

    monkeypatch.setattr(store, "read_table", read)
    return names


def statuses(run: Run, suite: Suite) -> dict[str, Any]:
    planned = prepare(suite)[1]
    return dict(judged(run, {p.key: p.cells for p in planned.problems}, planned.thresholds))


def test_records_of_which_there_is_a_copy_are_not_parsed_and_make_the_same_tables(
    run: Run, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path: path.read_bytes() for path in run.folder.glob("*") if path.suffix in (".parquet", ".json")}
    names = unread(run, monkeypatch)
    told = statuses(run, suite)
    assert told.keys() == run.done()
    assert len(names) == 1
    run.compact([])
    assert len(names) == 2
    assert {path: path.read_bytes() for path in files} == files
    assert statuses(Run(run.folder), suite) == told


def test_a_run_without_copies_gets_them_with_its_tables(
    run: Run, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = statuses(run, suite)
    for path in copies(run):
        path.unlink()
    names = unread(run, monkeypatch)
    run.compact([])
    assert len(names) == 5
    assert len(copies(run)) == 2
    names.clear()
    assert statuses(run, suite) == told
    assert len(names) == 1


def test_the_tables_of_a_run_are_made_of_rows_in_memory_where_this_process_measured_them(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(store, "read_table", lambda path, schema: names.append(path.stem) or read_table(path, schema))
    run = Run(gradbench.run(suite, out=tmp_path, device="cpu").folder)
    assert names == []
    assert len(run.done()) == 5
    files = {path: path.read_bytes() for path in run.folder.glob("*") if path.suffix in (".parquet", ".json")}
    Run(run.folder).compact([])  # by a process that has nothing in memory
    assert len(names) == 5
    assert {path: path.read_bytes() for path in files} == files


def test_rows_in_memory_that_can_be_no_record_are_passed_over(run: Run) -> None:
    key = min(run.done())
    rows = run.record(key)
    run.store(key, pa.concat_tables([rows, rows]))  # every cell twice
    with pytest.raises(StoreError, match="a cell has two rows"):
        run.compact([])


def other_rows(path: Path) -> None:
    """Other numbers, with a seal that is right for them."""
    table = read_table(path, RECORD)
    status = pa.array(["error"] * len(table))
    place = table.column_names.index("status")
    write_table(path, table.set_column(place, table.schema.field(place), status))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [other_rows, flipped, folder, lambda path: path.write_bytes(b"")])
def test_a_copy_that_is_damaged_is_passed_over(
    run: Run, suite: Suite, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = statuses(run, suite)
    harm(copies(run)[0])
    names = unread(run, monkeypatch)
    assert statuses(run, suite) == told
    assert len(names) == 3


def test_a_copy_that_the_journal_does_not_name_is_passed_over(
    run: Run, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = statuses(run, suite)
    (run.folder / journal.NAME).unlink()
    names = unread(run, monkeypatch)
    assert statuses(Run(run.folder), suite) == told
    assert len(names) == 5


def test_a_damaged_record_is_told_though_there_is_a_copy_of_it(run: Run, suite: Suite) -> None:
    (run.folder / "manifest.json").unlink()
    for harm, key in zip((other_rows, flipped), sorted(run.done()), strict=False):
        harm(run.path_of(key))
        assert isinstance(statuses(run, suite)[key], StoreError)
        with pytest.raises(StoreError, match=r"damaged: .*gradbench run bundled measures it again"):
            run.compact([])


def test_a_record_that_was_stored_again_is_not_that_of_the_copy(run: Run, suite: Suite) -> None:
    key = min(run.done())
    rows = run.record(key).to_pylist()
    run.keep(key, [row | {"seconds": 17.0} for row in rows])
    run.compact([])
    cells = run.cells
    assert set(cells.loc[cells["problem"] == key, "seconds"]) == {17.0}
    assert not isinstance(statuses(run, suite)[key], StoreError)
