"""Damage of any file of a run, leftovers, links and archives of strangers: the same rows, or one sentence."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import gradbench
from gradbench.cli import _code
from gradbench.commands import archiving
from gradbench.commands.archiving import Index, indexed, pack, prove, unpack
from gradbench.commands.progress import CellProgress
from gradbench.engine import checkpoint
from gradbench.errors import StoreError, UserError
from gradbench.planning import values
from gradbench.planning.regular_files import regular
from gradbench.tables import disk, journal, runs
from gradbench.tables.disk import (
    BLANK,
    SEAL,
    read_json,
    read_sealed,
    read_table,
    sealed_json,
    tidy,
    write,
    write_json,
    write_table,
)
from gradbench.tables.schema import CELLS, RECORD
from gradbench.tables.store import Run
from gradbench.tables.verifying import verify
from gradbench.vocabulary.exit import Exit

SOURCES = ("plan.json", "env.json", "checks.json", "manifest.json", "cells.parquet", "params.parquet", "blocks.parquet")
SMALL = """
about = "Four cells."

[[grid]]
system = { name = "toy_cons", N = 2, D = 4, out = 2 }
estimator = ["bptt", "aep"]
damp = 3.0
T1 = 10
T2 = 4
seed = [0, 1]
batch = 2
"""
DRAWN = 24  # bits of a file that are flipped


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results with one finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "small.toml").write_text(SMALL)
    gradbench.run(str(folder / "small.toml"), out=folder / "results", device="cpu")
    return folder


@pytest.fixture
def there(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(measured, tmp_path / "copy"))


@pytest.fixture
def run(there: Path) -> Run:
    (env,) = there.glob("results/runs/small/*/env.json")
    return Run(env.parent)


def again(there: Path) -> Run:
    """The same command once more."""
    return Run(gradbench.run(str(there / "small.toml"), out=there / "results", device="cpu").folder)


def rows(run: Run) -> str:
    """What somebody reads of a run, or the sentence in its place."""
    snapshot, faults = verify(run)
    if faults or snapshot is None:
        assert all(str(run.folder) in fault.detail and "\n" not in fault.detail for fault in faults), faults
        return "an error"
    return repr([table.to_pylist() for table in snapshot.tables.values()])


def resealed(content: bytes, path: Path) -> bytes:
    """Damaged content with the seal that is right for it, where it still has a place for one."""
    start = content.find(BLANK[:7]) if path.suffix == ".json" else content.rfind(SEAL) + len(SEAL) + disk.BETWEEN
    behind = start + len(BLANK)
    blank = content[:start] + BLANK + content[behind:]
    return content[:start] + BLANK[:7] + hashlib.sha256(blank).hexdigest().encode() + content[behind:]


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def damages(content: bytes, places: int, rng: random.Random) -> list[bytes]:
    """The content with one bit flipped at drawn places, and cut at the start of each page and at drawn lengths."""
    bits = rng.sample(range(8 * len(content)), min(places, 8 * len(content)))
    cuts = [*range(0, len(content), 4096), *rng.sample(range(len(content)), 4)]
    return [*(flipped(content, bit) for bit in bits), *(content[:cut] for cut in cuts)]


def files(run: Run) -> list[Path]:
    return [*(run.folder / name for name in SOURCES), sorted((run.folder / "records").iterdir())[0]]


def test_damage_of_any_file_is_the_same_rows_or_a_sentence(run: Run) -> None:
    good = rows(run)
    assert good != "an error"
    rng = random.Random(0)
    for path in files(run):
        content = path.read_bytes()
        for damaged in damages(content, DRAWN, rng):
            path.write_bytes(damaged)
            assert rows(run) in (good, "an error"), path
        path.write_bytes(content)
    assert rows(run) == good


def test_damage_with_a_seal_that_is_right_is_the_same_rows_or_a_sentence(run: Run) -> None:
    good, rng = rows(run), random.Random(1)
    for path in files(run):
        content = path.read_bytes()
        for bit in rng.sample(range(8 * len(content)), DRAWN):
            path.write_bytes(resealed(flipped(content, bit), path))
            assert rows(run) in (good, "an error"), (path, bit)
        path.write_bytes(content)
    assert rows(run) == good


@pytest.mark.long
@pytest.mark.parametrize("name", [*SOURCES, "record"])
def test_every_byte_of_a_file_can_be_damaged(run: Run, name: str) -> None:
    path = run.folder / name if name != "record" else files(run)[-1]
    content, good, rng = path.read_bytes(), rows(run), random.Random(2)
    for byte in range(min(len(content), 2**16)):
        path.write_bytes(flipped(content, 8 * byte + rng.randrange(8)))
        assert rows(run) in (good, "an error"), byte
    for _ in range(2000):
        path.write_bytes(resealed(flipped(content, rng.randrange(8 * len(content))), path))
        assert rows(run) in (good, "an error")


@pytest.mark.parametrize("name", [*SOURCES, "budget.parquet"])
def test_a_command_on_a_damaged_run_says_one_sentence_and_the_next_run_helps(
    there: Path, run: Run, capsys: Any, name: str
) -> None:
    good, path = rows(run), run.folder / name
    path.write_bytes(path.read_bytes()[:-9])
    assert _code(["verify", str(run.folder)]) == Exit.STORE
    said = capsys.readouterr().out
    assert re.search(rf"{re.escape(str(path))}: damaged: .*; gradbench run small ", " ".join(said.split())), said
    done = again(there)
    assert prove(done).code is Exit.OK
    if name in ("plan.json", "env.json"):
        assert done.folder != run.folder
        assert f"this run is passed over: {path}: damaged" in capsys.readouterr().err
    else:
        assert (done.folder, rows(done)) == (run.folder, good)


SHAPES = [b"[]", b"null", b"7", b'"text"', b"{}", b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b'{"seal": 1}', b"NaN"]


@pytest.mark.parametrize("name", [n for n in SOURCES if n.endswith(".json")])
def test_json_of_another_shape_is_a_sentence(run: Run, name: str) -> None:
    for content in SHAPES:
        (run.folder / name).write_bytes(content)
        assert rows(run) == "an error", content
    for content in ({}, {"cells": 7}, {"run": [], "plan_seal": 3}, {"a": 10**400}):
        write_json(run.folder / name, content)
        assert rows(run) == "an error", content


def rewritten(run: Run, change: Callable[[pa.Table], pa.Table]) -> Path:
    """The first record, changed and sealed, of a run that goes on."""
    path = sorted((run.folder / "records").iterdir())[0]
    table = read_table(path, RECORD)
    write_table(path, change(table).replace_schema_metadata(table.schema.metadata), disk.SHORT)
    (run.folder / "manifest.json").unlink(missing_ok=True)
    return path


def put(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of the first row."""

    def change(table: pa.Table) -> pa.Table:
        first, *others = table.to_pylist()
        return pa.Table.from_pylist([first | {column: value}, *others], schema=table.schema)

    return change


UNTRUSTED = {
    "fewer cells": (lambda t: t.slice(1), "cells, which are not the 2 of its problem"),
    "no cells": (lambda t: t.slice(0, 0), "is not the record of problem"),
    "a cell of another problem": (put("cell", "0" * 16), "cells, which are not the 2 of its problem"),
    "no cell": (put("cell", None), "a row no cell"),
    "a status that is none": (put("status", "fine"), "'fine' is no status"),
    "no status": (put("status", None), "'None' is no status"),
    "another coordinate": (put("T1", 11), "stands at another place"),
    "another label": (put("estimator_label", "aep clip=batch"), "stands at another place"),
    "a number that cannot be": (put("cosine", 2.0), "cosine"),
    "rows without a name": (put("params", [{"param": None}]), "params_0_.parquet|reference|param"),
    "a further column that is one": (put("extra", [{"column": "cosine", "value": 1.0}]), "a further column"),
    "a further column without a name": (put("extra", [{"column": None, "value": 1.0}]), "a further column"),
}


@pytest.mark.parametrize("kind", UNTRUSTED)
def test_a_record_that_cannot_be_trusted_is_told_and_measured_again(
    there: Path, run: Run, capsys: Any, kind: str
) -> None:
    good = rows(run).replace("'seconds'", "").split("'peak_memory'")[0][:400]
    change, told = UNTRUSTED[kind]
    (run.folder / journal.NAME).unlink()  # as after a loss of power: the rules alone are left
    path = rewritten(run, change)
    assert rows(run) == "an error"
    done = again(there)
    assert done.folder == run.folder
    said = capsys.readouterr().err
    assert re.search(told, said), said
    assert path.with_suffix(".aside").exists()
    assert prove(done).code is Exit.OK
    assert good[:200] in rows(done)


def test_a_record_that_is_not_that_of_the_manifest_is_measured_again(there: Path, run: Run, capsys: Any) -> None:
    path = sorted((run.folder / "records").iterdir())[0]
    (run.folder / journal.NAME).unlink()
    write_table(path, read_table(path, RECORD), disk.LONG)
    assert rows(run) == "an error"
    assert prove(again(there)).code is Exit.OK
    assert "is not the record that the tables were made from" in capsys.readouterr().err


def test_a_record_of_a_run_that_goes_on_is_the_one_that_was_stored(there: Path, run: Run, capsys: Any) -> None:
    (run.folder / "manifest.json").unlink()
    before = rows(run)
    path = rewritten(run, lambda table: put("cosine_mean", 0.5)(table))
    assert rows(run) == "an error"
    assert prove(again(there)).code is Exit.OK
    assert f"{path.name}: damaged: it is not the record that was stored" in capsys.readouterr().err
    assert before != "an error"


@pytest.mark.parametrize(
    "harm", [lambda text: text[: len(text) // 2], lambda text: text.replace("sha256", "sha265"), ""]
)
def test_a_damaged_journal_costs_no_record(run: Run, harm: Any) -> None:
    before, path = rows(run), run.folder / journal.NAME
    path.write_text(harm(path.read_text()) if harm else "")
    assert rows(Run(run.folder)) == before


def test_a_table_of_results_is_that_of_the_manifest(run: Run) -> None:
    path = run.folder / "cells.parquet"
    write_table(path, put("cosine", 0.5)(read_table(path, CELLS)))
    with pytest.raises(StoreError, match="is another table than the one that the records made; gradbench run small"):
        _ = run.cells


@pytest.mark.parametrize("name", ["plan.json", "env.json", "manifest.json", "checks.json", "verdict.json"])
def test_a_file_whose_seal_is_taken_away_is_damage(run: Run, name: str) -> None:
    assert _code(["check", str(run.folder), "--baseline", "none"]) == Exit.NOTHING
    text = (run.folder / name).read_text().splitlines(keepends=True)
    assert '"seal": "sha256:' in text[1]
    for without in ([0, 2], [0, 1], [0]):
        lines = [line for i, line in enumerate(text) if i > 2 or i in without]
        (run.folder / name).write_text("".join(lines))
        assert prove(run).code is Exit.STORE


def test_json_of_a_newer_gradbench_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "FORMAT", 2)
    write_json(tmp_path / "x.json", {"a": 1})
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"x\.json: format 2, this gradbench reads 1; take a newer one"):
        read_json(tmp_path / "x.json")
    write_json(tmp_path / "x.json", {"a": 1})
    content, seal = read_sealed(tmp_path / "x.json")
    assert content == {"a": 1}
    assert seal == disk.seal_of((tmp_path / "x.json").read_bytes())


def test_a_manifest_of_another_run_is_told(there: Path, run: Run) -> None:
    other = Run(gradbench.run(str(there / "small.toml"), out=there / "results", device="cpu", fresh=True).folder)
    shutil.copy(other.folder / "manifest.json", run.folder)
    _, faults = verify(run)
    assert "names another run and another env than there is" in str(faults)  # their plans are equal


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "DECODED", 2**24)
    text = pa.array(["x" * 2**16]).take(pa.array([0] * 2_000))
    table = pa.table([text if f.name == "reason" else pa.nulls(2_000, f.type) for f in CELLS], schema=CELLS)
    write_table(tmp_path / "t.parquet", table, {"compression": "zstd", "use_dictionary": True})
    assert (tmp_path / "t.parquet").stat().st_size < 2**16
    with pytest.raises(StoreError, match="damaged: it comes to more than 16,777,216 bytes in memory"):
        read_table(tmp_path / "t.parquet", CELLS)


@pytest.mark.parametrize("name", ["plan.json", "cells.parquet", "record", "manifest.json"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_and_not_read(run: Run, name: str) -> None:
    path = run.folder / name if name != "record" else files(run)[-1]
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in str(verify(run)[1])
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no regular file" in str(verify(run)[1])


def test_a_file_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=r"it holds 1,099,511,627,776 bytes, and of such a file at most 1,000 are read"):
        regular(path, 1000)


# leftovers


def test_what_dead_writers_left_is_removed_and_what_a_writer_has_open_is_not(there: Path, run: Run) -> None:
    suite = run.folder.parent
    left = [run.folder / ".cells.parquet.abcdefg1", run.folder / "records" / ".p.parquet.abcdefg1"]
    left += [suite / ".latest.abcdefg1", run.folder / ".verdict.json.abcdefg1"]
    others = [run.folder / ".notes.txt.abcdefg1", suite / ".plan.json.abcdefg1", run.folder / ".env.json"]
    for path in (*left, *others):
        path.write_text("half")
    (suite / ".scratch.abcdefg1" / "inner").mkdir(parents=True)
    held = run.folder / ".env.json.abcdefg2"
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        again(there)
        assert held.exists()
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in others)
    assert not (suite / ".scratch.abcdefg1").exists()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / ".a.json.abcdefg1").symlink_to(tmp_path / "elsewhere")
    tidy(tmp_path, ".*")
    assert (tmp_path / "elsewhere").exists()


def test_a_writer_whose_file_was_removed_before_it_had_the_lock_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, iter(range(9))

    def late(handle: int, how: int) -> None:
        if next(calls) == 0:
            tidy(tmp_path, ".*")
            for path in tmp_path.iterdir():
                path.unlink()
        lock(handle, how)

    monkeypatch.setattr(disk.fcntl, "flock", late)
    write(tmp_path / "a", lambda file: file.write(b"whole"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["/x/bin/gradbench", "run", "a.toml", "--fresh", "--shard", "2/3"], "gradbench run a.toml --shard 2/3"),
        (["/x/gradbench/__main__.py", "run", "small", "--cluster", "local"], "gradbench run small --cluster local"),
        (["make.py", "run", "small"], "gradbench run small"),
        (["gradbench", "run", "$(touch there)"], "gradbench run small"),  # a folder may be a stranger's
        (["gradbench", "run", "\x1b[2J"], "gradbench run small"),
        ("gradbench run", "gradbench run small"),
        (None, "gradbench run small"),
    ],
)
def test_a_run_is_gone_on_with_by_the_command_that_began_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: object, told: str
) -> None:
    (run.folder / "manifest.json").unlink()
    monkeypatch.setattr(Run, "env", {"command": command})
    assert run.standing == f"no process works on it; {told} goes on with it"


def test_a_reader_says_whether_the_writer_is_alive(run: Run, capsys: Any) -> None:
    (run.folder / "manifest.json").unlink()
    with run.alone():
        assert run.worked_on is True
        assert _code(["verify", str(run.folder)]) == Exit.INCOMPLETE
        assert "another process works on it" in capsys.readouterr().out
        with pytest.raises(UserError, match="another process works on this run"):
            indexed(run)
    assert run.worked_on is False
    assert _code(["verify", str(run.folder)]) == Exit.INCOMPLETE
    assert "no process works on it; gradbench run small goes on with it" in capsys.readouterr().out
    _code(["report", str(run.folder)])
    assert "is not finished: no process works on it" in capsys.readouterr().err
    (run.folder / ".lock").unlink()
    assert run.worked_on is False
    assert not (run.folder / ".lock").exists()


def test_that_nothing_changed_is_said_only_where_it_is_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", broken)
        with pytest.raises(StoreError, match="the new file is there, and the disk does not confirm") as told:
            write(run.folder / "plan.json", lambda file: file.write(b"new"))
    assert "unchanged" not in str(told.value)
    assert (run.folder / "plan.json").read_bytes() == b"new"


def test_tables_that_cannot_be_written_leave_the_records(there: Path, run: Run) -> None:
    replace, calls = os.replace, iter(range(9))

    def second_fails(source: Any, target: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.os, "replace", second_fails)
        with pytest.raises(StoreError, match="records are unchanged, and the same command makes the tables again"):
            run.compact(())
    assert prove(again(there)).code is Exit.OK


# links


@pytest.mark.parametrize("name", ["records", ".lock", "checks.json", "manifest.json", "cells.parquet", "../latest"])
def test_nothing_is_written_through_a_link_below_a_run(there: Path, run: Run, tmp_path: Path, name: str) -> None:
    path, elsewhere = run.folder / name, tmp_path / "elsewhere"
    if name == "records":
        path.rename(elsewhere)
        sorted(elsewhere.iterdir())[0].unlink()
    else:
        if path.exists():
            path.unlink()
        elsewhere.write_text("x")
    path.symlink_to(elsewhere)
    before = [p.name for p in elsewhere.iterdir()] if elsewhere.is_dir() else elsewhere.read_text()
    if name == "manifest.json":  # a name is removed, and not what it leads to
        assert prove(again(there)).code is Exit.OK
    else:
        with pytest.raises(StoreError, match="is a link, and nothing is written through a link"):
            again(there)
    assert before == ([p.name for p in elsewhere.iterdir()] if elsewhere.is_dir() else elsewhere.read_text())


@pytest.mark.parametrize(
    ("name", "command"), [("report.html", ["report"]), ("verdict.json", ["check"]), ("plots", ["plot"])]
)
def test_what_is_drawn_and_judged_is_not_written_through_a_link(
    gated: Run, tmp_path: Path, capsys: Any, name: str, command: list[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (gated.folder / name).unlink(missing_ok=True)
    (gated.folder / name).symlink_to(elsewhere)
    arguments = ["--figure", "params"] if command == ["plot"] else []
    _code([*command, str(gated.folder), *arguments])
    assert not list(elsewhere.iterdir())
    if command != ["check"]:
        assert "is a link, and nothing is written through" in capsys.readouterr().err


def test_results_and_a_run_may_lie_on_another_disk(there: Path, run: Run, tmp_path: Path) -> None:
    shutil.move(run.folder, tmp_path / "disk")
    run.folder.symlink_to(tmp_path / "disk")
    assert again(there).folder == run.folder
    assert prove(run).code is Exit.OK


# names


@pytest.mark.parametrize(
    "name", ["-rf", "~", "~root", "a\nb", "a\x1b[31m", "a\u202eb", "a\u200bb", "a\u2028b", "a\x85b"]
)
def test_a_name_that_a_shell_or_a_terminal_trips_over_is_refused(name: str, run: Run) -> None:
    assert values.misnamed(name)
    for refuse in (
        lambda: runs.find(name),
        lambda: runs.results_folder(name),
        lambda: gradbench.suite({"system": "toy_cons", "estimator": "aep"}, name=name),
        lambda: gradbench.report(run, name),
    ):
        with pytest.raises(UserError):
            refuse()
    (run.folder.parent / "latest").write_text(name)
    with pytest.raises(StoreError, match="is no run"):
        runs.find("latest", run.folder.parents[2])


@pytest.mark.parametrize("name", ["smöke test 袋", "it's", "a-b~c", "Ω", "наука", "अ", "a b"])
def test_letters_of_any_language_make_a_name(name: str) -> None:
    assert not values.misnamed(name)


# checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    generator = torch.Generator().manual_seed(0)
    state = {"theta.W": torch.randn(2, 3, 4, generator=generator), "taken": torch.tensor([5, 5])}
    checkpoint.save(path, (0, 1), 5, state, [{"step": 5, "seed": 0, "train": 0.25, "test": None}])
    return path


def content(path: Path) -> str:
    """What a checkpoint holds, or that it is an error."""
    told, read = "", None
    try:
        read = checkpoint.read(path)
    except StoreError as error:
        told = str(error)
    if read is None:
        assert told.startswith(str(path))
        assert "\n" not in told
        return "an error"
    tensors = {n: (v.dtype, v.shape, v.numpy().tobytes()) for n, v in read["state"].items()}
    return repr([read["seeds"], read["step"], read["rows"], tensors])


@pytest.mark.parametrize("places", [150, pytest.param(20_000, marks=pytest.mark.long)])
def test_a_damaged_checkpoint_is_the_same_or_a_sentence(saved: Path, tmp_path: Path, places: int) -> None:
    good, whole, path = content(saved), saved.read_bytes(), tmp_path / "checkpoint.pt"
    told = []
    for damaged in damages(whole, places, random.Random(0)):
        path.write_bytes(damaged)
        told.append(content(path))
    assert set(told) <= {good, "an error"}
    assert "an error" in told


def stored(path: Path, **changes: Any) -> Path:
    read = torch.load(path, weights_only=True) | changes
    torch.save({k: v for k, v in read.items() if v is not None}, path)
    return path


def test_a_checkpoint_of_another_version_is_read_or_refused(saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(saved, tmp_path))
    good = content(saved)
    assert content(stored(path, **{"gradbench.checkpoint": 1, "digest": None})) == good
    stored(path, **{"gradbench.checkpoint": 2})
    with pytest.raises(StoreError, match="damaged: its digest"):
        checkpoint.read(path)
    stored(path, **{"gradbench.checkpoint": 3})
    with pytest.raises(StoreError, match="version 3, this gradbench reads 1 and 2"):
        checkpoint.read(path)
    stored(path, **{"gradbench.checkpoint": 2, "state": {"theta.W": torch.zeros(1).expand(10**12)}})
    with pytest.raises(StoreError, match="damaged"):
        checkpoint.read(path)


# archives


@pytest.fixture
def archive(run: Run, tmp_path: Path) -> Path:
    pack(run, indexed(run)[0], tmp_path / "a.tar.gz")
    return tmp_path / "a.tar.gz"


def test_equal_runs_make_equal_archives_and_an_archive_makes_the_run_again(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    (run.folder / ".cells.parquet.abcdefg1").write_text("left")
    for path in run.folder.rglob("*"):
        os.utime(path, (1, 1))
    pack(run, indexed(run)[0], tmp_path / "b.tar.gz")
    assert (tmp_path / "b.tar.gz").read_bytes() == archive.read_bytes()
    done, proof = unpack(archive, tmp_path / "other")
    assert proof.code is Exit.OK
    assert rows(done) == rows(run)
    assert not [p for p in done.folder.parent.iterdir() if p.name.startswith(".")]
    assert unpack(archive, tmp_path / "other")[0].folder == done.folder  # the same is there already
    pack(done, indexed(done)[0], tmp_path / "c.tar.gz")
    assert (tmp_path / "c.tar.gz").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("blocks", range(tarfile.RECORDSIZE // tarfile.BLOCKSIZE))
def test_an_archive_of_any_length_is_read_to_its_end(tmp_path: Path, blocks: int) -> None:
    content = b"x" * blocks * tarfile.BLOCKSIZE
    (tmp_path / "file.txt").write_bytes(content)
    index = Index("tiny", "run", {"file.txt": (len(content), hashlib.sha256(content).hexdigest())})
    packed = io.BytesIO()
    archiving._fill(packed, tmp_path, index)
    packed.seek(0)
    archive = archiving._Archive(packed, tmp_path)
    assert Index.of(archive.index(), tmp_path) == index
    archive.skip("run/file.txt", index.files["file.txt"])
    archive.end()


def test_a_run_of_the_same_name_is_not_replaced(there: Path, run: Run, archive: Path) -> None:
    path = rewritten(run, lambda table: table)
    shutil.copy(path, run.folder / "records" / "more.parquet")
    with pytest.raises(UserError, match="is another run of this name"):
        unpack(archive, there / "results")


def test_a_damaged_run_or_one_with_a_link_is_not_packed(run: Run, tmp_path: Path) -> None:
    (run.folder / "plots").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="plots: is a link, and an archive holds none"):
        indexed(run)
    (run.folder / "plots").unlink()
    rewritten(run, put("T1", 11))
    with pytest.raises(StoreError):
        indexed(run)


@pytest.mark.parametrize("places", [30, pytest.param(2000, marks=pytest.mark.long)])
def test_a_damaged_archive_is_the_same_run_or_a_sentence(archive: Path, run: Run, tmp_path: Path, places: int) -> None:
    good, whole = rows(run), archive.read_bytes()
    for damaged in damages(whole, places, random.Random(0)):
        archive.write_bytes(damaged)
        with suppress(StoreError):
            done, _ = unpack(archive, tmp_path / "other")
            assert rows(done) == good
            shutil.rmtree(tmp_path / "other")
        assert not list((tmp_path / "other").glob("runs/*/*"))


def strange(path: Path, entries: list[tuple[str, bytes, dict[str, Any]]], files: dict[str, Any], **named: str) -> None:
    """An archive with this index and these entries."""
    index = {"suite": "small", "run": "r", "files": files} | named
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name, text, more in [("index.json", sealed_json(index), {}), *entries]:
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            for key, value in more.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(text))


A = [1, hashlib.sha256(b"a").hexdigest()]
STRANGE = {
    "a parent": ([], {"../x": A}, {}, "leads out of the folder"),
    "an absolute path": ([], {"/etc/x": A}, {}, "leads out of the folder"),
    "a hidden file": ([], {".lock": A}, {}, "is hidden"),
    "an option": ([], {"-rf": A}, {}, "begins with -"),
    "a direction": ([], {"a\u202eb": A}, {}, "changes how text is shown"),
    "half a letter": ([], {"a\ud800": A}, {}, "is no text"),
    "a run elsewhere": ([], {}, {"run": "../../x"}, "cannot name a folder"),
    "a hidden run": ([], {}, {"run": ".x"}, "cannot name a folder"),
    "a suite elsewhere": ([], {}, {"suite": ".."}, "cannot name a folder"),
    "a long name": ([], {"a" * 300: A}, {}, "name is too long"),
    "many bytes": ([], {"a": [2**40, A[1]]}, {}, "overflow|more than"),
    "many files": ([], {str(i): [2**33 - 1, A[1]] for i in range(9)}, {}, "is refused: it holds more than"),
    "a size that is none": ([], {"a": [-1, A[1]]}, {}, "does not say how large"),
    "a link": ([("r/a", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"})], {"a": [0, A[1]]}, {}, "another entry"),
    "a hard link": ([("r/a", b"", {"type": tarfile.LNKTYPE, "linkname": "x"})], {"a": [0, A[1]]}, {}, "another entry"),
    "a device": ([("r/a", b"", {"type": tarfile.CHRTYPE})], {"a": [0, A[1]]}, {}, "another entry"),
    "an owner": ([("r/a", b"a", {"uid": 7})], {"a": A}, {}, "another entry"),
    "a file that is not named": ([("r/a", b"a", {}), ("r/b", b"a", {})], {"a": A}, {}, "more follows"),
    "a file twice": ([("r/a", b"a", {}), ("r/a", b"a", {})], {"a": A}, {}, "more follows"),
    "another file": ([("r/b", b"a", {})], {"a": A}, {}, "expected the file 'r/a'"),
    "a larger file": ([("r/a", b"aa", {})], {"a": A}, {}, "has another size"),
    "other bytes": ([("r/a", b"b", {})], {"a": A}, {}, "is not what was packed"),
    "no file": ([], {"a": A}, {}, "another entry follows"),
    "a file that is a folder": (
        [("r/a", b"a", {}), ("r/a/b", b"a", {})],
        {"a": A, "a/b": A},
        {},
        "r: File exists|Not a",
    ),
    "no run": ([("r/a", b"a", {})], {"a": A}, {}, "holds a damaged run, and nothing was unpacked"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_an_archive_of_a_stranger_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    entries, listed, named, told = STRANGE[kind]
    path = tmp_path / "a.tar.gz"
    strange(path, entries, listed, **named)
    with pytest.raises(StoreError, match=told):
        unpack(path, tmp_path / "out")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


def test_an_archive_that_is_none_or_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar.gz"
    for text in (b"", b"text", gzip.compress(b"text"), gzip.compress(bytes(10_000))):
        path.write_bytes(text)
        with pytest.raises(StoreError, match=r"a\.tar\.gz: (damaged|is refused)"):
            unpack(path, tmp_path)
    strange(path, [("r/zeros", bytes(10**8), {})], {"a": A})
    with pytest.raises(StoreError, match="another entry follows"):
        unpack(path, tmp_path)
    monkeypatch.setattr(archiving, "INDEX_BYTES", 100)
    with pytest.raises(StoreError, match="is refused: its index holds"):
        unpack(path, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="no regular file"):
        unpack(tmp_path / "pipe", tmp_path)


def test_an_archive_whose_index_names_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    index, _ = indexed(run)
    pack(run, Index("small", "another", index.files), tmp_path / "a.tar.gz")
    with pytest.raises(StoreError, match="its index names another run than it holds"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/small/*"))


def test_a_run_with_cells_that_were_not_measured_is_incomplete_and_can_be_packed(
    there: Path, run: Run, tmp_path: Path, capsys: Any
) -> None:
    key = sorted(run.done())[0]
    run.set_aside(key)
    assert prove(run).code is Exit.INCOMPLETE
    assert _code(["pack", str(run.folder), "-o", str(tmp_path / "x.tar.gz")]) == Exit.OK
    assert "incomplete (3)  2 of 4 cells; no process works on it" in capsys.readouterr().err
    assert _code(["unpack", str(tmp_path / "x.tar.gz"), "--out", str(tmp_path / "other")]) == Exit.OK


def test_a_run_that_is_interrupted_is_gone_on_with_and_proved(there: Path) -> None:
    def stop(progress: CellProgress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradbench.run(str(there / "small.toml"), out=there / "new", device="cpu", watch=stop)
    (env,) = there.glob("new/runs/small/*/env.json")
    assert prove(Run(env.parent)).code is Exit.INCOMPLETE
    done = gradbench.run(str(there / "small.toml"), out=there / "new", device="cpu")
    assert done.folder == env.parent
    assert prove(Run(done.folder)).code is Exit.OK
