"""The store: a file is wholly there or not there at all, and damage is an error, never other rows."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradbench.errors import StoreError
from gradbench.planning.selection import IDENTITY
from gradbench.tables import disk, schema
from gradbench.tables.disk import read_json, read_table, write, write_json, write_table
from gradbench.tables.schema import BLOCKS, CELLS, PARAMS, RECORD
from gradbench.tables.store import Run
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS

pytestmark = pytest.mark.fast


def row(cell: str, problem: str, cosine: float = 0.5, params: tuple[str, ...] = ("S", "b")) -> dict[str, Any]:
    nested = [{"param": p, "cosine": cosine + i, "reason": ""} for i, p in enumerate(params)]
    tables = {"params": nested, "blocks": [{"block": "z", "cosine": cosine}]}
    return {"cell": cell, "problem": problem, "T1": 5, "status": "settled", "cosine": cosine, **tables}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two problems and a skipped cell, in an order that is not that of its records."""
    run = Run(tmp_path / "run")
    cells = [{"cell": c} for c in ("c3", "c1", "c2")]
    run.start({"cells": cells, "skipped": [{"cell": "c4"}], "problems": ["p1", "p2"]}, {"identity": "i"})
    run.keep("p1", [row("c1", "p1", 0.1), row("c2", "p1", math.nan, params=())])
    run.keep("p2", [row("c3", "p2", 0.3)])
    return run


SKIPPED = {"cell": "c4", "problem": None, "status": "skipped", "params": []}


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), ValueError("bad"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file"
    write(path, lambda file: file.write(b"old"))

    def fill(file: Any) -> None:
        file.write(b"half")
        raise failure

    with pytest.raises(StoreError if isinstance(failure, OSError) else type(failure)):
        write(path, fill)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def test_a_disk_that_is_full_at_the_sync_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.folder / "records" / "p1.parquet"
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(StoreError, match=r"p1\.parquet: No space left on device; what was stored before is unchanged"):
        run.keep("p1", [row("c1", "p1", 0.9)])
    assert path.read_bytes() == before
    assert listing(run.folder / "records") == ["p1.parquet", "p2.parquet"]


def test_a_limit_on_file_size_is_a_store_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="File too large"):
            write_table(tmp_path / "t", pa.table({"x": random.Random(0).sample(range(10**9), 10_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("below", ["file/run", "file"])
def test_a_folder_that_cannot_be_is_a_store_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="unchanged"):
        write_json(tmp_path / below / "plan.json", {})


def test_a_written_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = os.fsync, os.replace
    monkeypatch.setattr(disk.os, "fsync", lambda handle: (calls.append("sync"), real[0](handle))[1])
    monkeypatch.setattr(disk.os, "replace", lambda a, b: (calls.append("rename"), real[1](a, b))[1])
    write_json(tmp_path / "x.json", {"a": 1})
    assert calls == ["sync", "rename", "sync"]  # the file, its name, the folder that holds the name
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["records/p1.parquet", "cells.parquet", "params.parquet", "blocks.parquet"])
def test_a_flipped_bit_is_a_store_error_and_never_other_rows(run: Run, name: str) -> None:
    run.compact([SKIPPED])
    path = run.folder / name
    wanted = {"cells.parquet": CELLS, "params.parquet": PARAMS, "blocks.parquet": BLOCKS}.get(name, RECORD)
    good, rows = path.read_bytes(), repr(read_table(path, wanted).to_pylist())
    rng = random.Random(0)
    for position in range(0, len(good), 29):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged"):
            read_table(path, wanted)
    path.write_bytes(good)
    assert repr(read_table(path, wanted).to_pylist()) == rows


def test_a_table_is_plain_parquet_with_page_checksums_for_other_tools(run: Run) -> None:
    path = run.folder / "records" / "p1.parquet"
    assert pq.read_table(path, page_checksum_verification=True).drop(["cosine"]).num_rows == 2
    good = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(RECORD.names.index("cosine"))
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    path.write_bytes(good[: end - 1] + bytes([good[end - 1] ^ 1]) + good[end:])
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["records/p1.parquet", "cells.parquet"])
def test_a_truncated_table_is_a_store_error(run: Run, name: str, share: float) -> None:
    run.compact([SKIPPED])
    path = run.folder / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StoreError, match="damaged"):
        run.record("p1") if "records" in name else run.cells


def test_a_record_under_the_name_of_another_problem_is_a_store_error(run: Run) -> None:
    os.replace(run.folder / "records" / "p2.parquet", run.folder / "records" / "p1.parquet")
    with pytest.raises(StoreError, match="not the record of problem p1"):
        run.record("p1")


@pytest.mark.parametrize("version", [b"1", b"%d" % (schema.VERSION + 1), b"x", None])
def test_a_table_of_another_schema_version_is_refused(tmp_path: Path, version: bytes | None) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, CELLS.with_metadata({b"gradbench.schema": version} if version else None).empty_table())
    with pytest.raises(StoreError, match=f"schema version .*reads 4 and {schema.VERSION}"):
        read_table(path, CELLS)


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    renamed = CELLS.set(CELLS.names.index("cosine"), pa.field("cosinf", pa.float64()))
    write_table(path, renamed.empty_table())
    with pytest.raises(StoreError, match="columns"):
        read_table(path, CELLS)


@pytest.mark.parametrize("content", [b"", b"{", b'{"cells": [', b"\xff\xfe\x00"])
def test_torn_json_is_a_store_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"plan\.json: damaged"):
        read_json(path)


def test_missing_files_are_store_errors(tmp_path: Path) -> None:
    for read in (lambda r: r.plan, lambda r: r.env, lambda r: r.claims, lambda r: r.cells, lambda r: r.record("p")):
        with pytest.raises(StoreError):
            read(Run(tmp_path))


def test_tables_stand_in_the_order_of_the_plan(run: Run) -> None:
    assert run.compact([SKIPPED]) == 0
    assert run.cells["cell"].tolist() == ["c3", "c1", "c2", "c4"]
    assert run.params["cell"].tolist() == ["c3", "c3", "c1", "c1"]
    assert run.blocks["cell"].tolist() == ["c3", "c1", "c2"]
    assert run.blocks["block"].tolist() == ["z", "z", "z"]


def test_a_table_that_is_decoded_a_few_rows_at_a_time_is_the_same_to_its_seal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.compact(())
    whole = {name: run.table(name) for name in schema.TABLES}
    for name, table in whole.items():
        sizes = pq.read_metadata(run.folder / f"{name}.parquet")
        size = sum(sizes.row_group(i).total_byte_size for i in range(sizes.num_row_groups))
        if len(table) < 2:
            continue
        monkeypatch.setattr(disk, "DECODED", max(table.nbytes, size))
        assert table.num_rows * size > disk.DECODED  # so it is not decoded at once
        again = run.table(name)
        assert again.schema.equals(table.schema, check_metadata=True)
        assert repr(again.to_pylist()) == repr(table.to_pylist())  # in which NaN is equal to NaN


def test_the_params_table_is_what_the_records_hold(run: Run) -> None:
    run.compact([SKIPPED])
    nested = {r["cell"]: r["params"] for key in ("p1", "p2") for r in run.record(key).to_pylist()}
    for cell, rows in run.params.groupby("cell"):
        assert rows["param"].tolist() == [p["param"] for p in nested[str(cell)]]
        assert rows["cosine"].tolist() == [p["cosine"] for p in nested[str(cell)]]
    assert len(run.params) == sum(map(len, nested.values()))


def test_a_cell_without_a_record_is_counted_as_missing(run: Run) -> None:
    (run.folder / "records" / "p1.parquet").unlink()
    assert run.compact([SKIPPED]) == 2
    assert run.cells["cell"].tolist() == ["c3", "c4"]


def test_a_run_without_any_record_has_empty_tables(run: Run) -> None:
    for path in (run.folder / "records").iterdir():
        path.unlink()
    assert run.compact(()) == 4
    assert run.cells.empty
    assert run.params.empty


def test_null_and_nan_are_kept_apart(run: Run) -> None:
    run.compact([SKIPPED])
    cosine = read_table(run.folder / "cells.parquet", CELLS)["cosine"].to_pylist()
    assert cosine[:2] == [0.3, 0.1]
    assert math.isnan(cosine[2])
    assert cosine[3] is None


def test_equal_input_gives_equal_bytes(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    other.start(run.plan, run.env)
    other.keep("p2", [row("c3", "p2", 0.3)])
    other.keep("p1", [row("c1", "p1", 0.1), row("c2", "p1", math.nan, params=())])
    for one in (run, other):
        one.compact([SKIPPED])
    for name in ("cells.parquet", "params.parquet", "records/p1.parquet", "plan.json"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_the_environment_is_in_the_footer_of_the_tables(run: Run) -> None:
    run.compact([SKIPPED])
    metadata = pq.read_schema(run.folder / "cells.parquet").metadata
    assert json.loads(metadata[b"gradbench.env"]) == run.env


def test_what_is_left_of_a_killed_write_is_no_record(run: Run) -> None:
    (run.folder / "records" / ".p3.parquet.x8f2k1").write_bytes(b"half")
    assert run.done() == {"p1", "p2"}


def test_a_record_that_is_set_aside_is_kept_and_not_done(run: Run) -> None:
    aside = run.set_aside("p1")
    content = aside.read_bytes()
    assert run.done() == {"p2"}
    run.keep("p1", [row("c1", "p1", 0.2)])
    assert run.set_aside("p1") != aside
    assert aside.read_bytes() == content


def test_every_metric_and_coordinate_has_a_column() -> None:
    assert {*METRICS, *COORDINATES, *IDENTITY} <= set(CELLS.names)


def test_a_measured_row_has_every_column_and_no_other() -> None:
    from gradbench import measure

    m = measure(
        "toy_cons", "aep", T1=3, T2=2, batch=2, system_options={"N": 2, "D": 4}, estimator_options={"clip": "batch"}
    )
    assert set(m.row) == set(CELLS.names)
    assert set(m.row) | {"params", "blocks", "budget", "extra"} == set(RECORD.names)


def test_numbers_that_some_rows_have_are_columns_behind_the_others(run: Run) -> None:
    assert list(run.record("p1").schema.names) == RECORD.names
    known = [{"column": "left", "value": 0.25}, {"column": "depth", "value": math.nan}]
    run.keep("p2", [row("c3", "p2", 0.3) | {"extra": known}])
    run.compact([SKIPPED])
    table = read_table(run.folder / "cells.parquet", CELLS)
    assert table.schema.names == [*CELLS.names, "depth", "left"]
    assert table["left"].to_pylist() == [0.25, None, None, None]
    assert math.isnan(table["depth"].to_pylist()[0])
    write_table(run.folder / "x.parquet", table.append_column("word", pa.array(["a"] * 4)))
    with pytest.raises(StoreError, match="columns"):
        read_table(run.folder / "x.parquet", CELLS)
