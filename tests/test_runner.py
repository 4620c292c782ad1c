"""Running: a run that is cut off goes on, nothing is measured twice, and nothing measured is ever mixed."""

from __future__ import annotations

import errno
import gzip
import json
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
import warm

import gradbench
from gradbench.cli import _code
from gradbench.commands import environment, profiling, running
from gradbench.commands.progress import CellProgress
from gradbench.engine import device, hosts, packs
from gradbench.engine.device import resolve
from gradbench.engine.packs import available
from gradbench.errors import StoreError, UserError
from gradbench.tables import journal, runs
from gradbench.tables.disk import read_json, read_table, write_table
from gradbench.tables.schema import METADATA, RECORD
from gradbench.tables.store import Run
from gradbench.tables.verdict import judge
from gradbench.vocabulary.exit import Exit

COST_OF_TIME = ["seconds", "peak_memory"]
PROBLEMS = 6  # of the tiny suite


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch, cores: Callable[[int], None]) -> list[str]:
    """Keys of the problems that are measured, one after the other, while a test runs."""
    cores(1)
    keys: list[str] = []
    measure = packs.measure_pack
    monkeypatch.setattr(
        packs, "measure_pack", lambda pack, *rest: (keys.extend(p.key for p in pack), measure(pack, *rest))[1]
    )
    return keys


def run(suite: Path, **more: Any) -> Run:
    return gradbench.run(str(suite), **({"out": suite.parent / "results", "device": "cpu"} | more))


def same(a: Run, b: Run) -> None:
    pd.testing.assert_frame_equal(a.cells.drop(columns=COST_OF_TIME), b.cells.drop(columns=COST_OF_TIME))
    pd.testing.assert_frame_equal(a.params, b.params)


def interrupt_after(problems: int) -> Callable[[CellProgress], None]:
    calls = iter(range(problems + 1))

    def watch(progress: CellProgress) -> None:
        if next(calls) == problems:
            raise KeyboardInterrupt

    return watch


@pytest.mark.fast
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_run_goes_on_and_gives_the_tables_of_one_that_was_not(
    write_suite: Any, solved: list[str], after: int
) -> None:
    suite = write_suite()
    with pytest.raises(KeyboardInterrupt):
        run(suite, watch=interrupt_after(after))
    assert len(solved) == after
    done = run(suite)
    assert len(solved) == len(set(solved)) == PROBLEMS
    same(done, run(suite, out=suite.parent / "other"))
    assert len(list((suite.parent / "results" / "runs" / "tiny").glob("*/plan.json"))) == 1


def test_problems_side_by_side_give_the_tables_of_one_after_the_other(
    write_suite: Any, cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, measure = write_suite(), packs.measure_pack
    both, threads = threading.Barrier(2, timeout=30), set()

    def together(*arguments: Any) -> Any:
        both.wait()  # two at a time, or never
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return measure(*arguments)

    cores(1)
    alone = run(suite)
    cores(2)
    monkeypatch.setattr(packs, "measure_pack", together)
    same(alone, run(suite, out=suite.parent / "other"))
    assert len(threads) == 2
    assert torch.get_num_threads() == 2


def test_an_interrupt_stops_every_worker_and_the_next_run_goes_on(
    write_suite: Any, cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, measure, stopped = write_suite(), packs.measure_pack, []

    def endless(pack: Any, *rest: Any) -> Any:
        if pack[0].point.seed == 0:
            return measure(pack, *rest)
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            stopped.append(pack[0].key)
            raise

    cores(2)
    monkeypatch.setattr(packs, "measure_pack", endless)
    with pytest.raises(KeyboardInterrupt):
        run(suite, watch=interrupt_after(1))
    assert stopped
    monkeypatch.setattr(packs, "measure_pack", measure)
    assert len(run(suite).cells) == 60


def test_workers_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = [[problem] for problem in running.prepare("smoke")[1].problems]
    most = max(packs.footprint(problem) for (problem,) in cut)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert packs.how_many_at_once(cut, "cpu", "eager", 2 * most) == 2
    assert packs.how_many_at_once(cut, "cpu", "eager", most // 2) == 1
    assert packs.how_many_at_once(cut[:3], "cpu", "eager", 9 * most) == 3
    assert packs.how_many_at_once(cut, "cpu", "batched", 9 * most) == 1
    assert packs.how_many_at_once(cut, "cuda", "batched", 9 * most) == packs.LANES
    assert packs.how_many_at_once(cut[:1], "cuda", "batched", 9 * most) == 1
    assert packs.how_many_at_once(cut, "cuda", "compiled", 9 * most) == 1
    assert packs.how_many_at_once([], "cpu", "eager", most) == 1


@pytest.mark.fast
def test_a_finished_run_measures_nothing_again(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    first = run(suite)
    before = first.cells
    seen: list[CellProgress] = []
    again = run(suite, watch=seen.append)
    assert again.folder == first.folder
    assert len(solved) == PROBLEMS
    assert (seen[0].resumed, seen[0].weight, sum(seen[0].statuses.values())) == (60, 0, 60)
    pd.testing.assert_frame_equal(before, again.cells)


def test_progress_counts_every_cell_once(write_suite: Any) -> None:
    seen: list[tuple[int, int, int]] = []
    run(write_suite(), watch=lambda p: seen.append((p.done, p.done_weight, sum(p.statuses.values()))))
    assert [s[0] for s in seen] == [0, 10, 20, 30, 40, 50, 60]
    assert [s[2] for s in seen] == [s[0] for s in seen]


def test_progress_ends_at_its_own_weight(write_suite: Any) -> None:
    seen: list[CellProgress] = []
    run(write_suite(), watch=seen.append)
    assert seen[-1].done_weight == seen[-1].weight > 0
    assert seen[-1].eta == 0


def test_a_run_whose_suite_was_reordered_goes_on(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    with pytest.raises(KeyboardInterrupt):
        run(suite, watch=interrupt_after(2))
    write_suite(base=suite.read_text().replace("[0, 1, 2]", "[2, 1, 0]").replace("[5, 10]", "[10, 5]"))
    done = run(suite)
    assert len(solved) == PROBLEMS
    assert len(done.cells) == 60


@pytest.mark.parametrize(
    ("before", "after"),
    [("beta = 0.1", "beta = 0.2"), ("seed = [0, 1, 2]", "seed = [0, 1]"), ("", "\n[thresholds]\nresidual = 0.5\n")],
)
def test_another_plan_is_another_run(write_suite: Any, before: str, after: str) -> None:
    suite = write_suite()
    text = suite.read_text()
    first = run(suite)
    suite.write_text(text.replace(before, after) if before else text + after)
    assert run(suite).folder != first.folder


def test_another_check_is_the_same_run_with_the_new_claims(write_suite: Any, solved: list[str]) -> None:
    first = run(write_suite())
    second = run(write_suite('\n[[check]]\nname = "c"\nstatus = "settled"\n'))
    assert second.folder == first.folder
    assert [c["name"] for c in second.claims["check"]] == ["c"]
    assert len(solved) == PROBLEMS


def test_other_source_is_another_run(write_suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite()
    first = run(suite)
    monkeypatch.setattr(environment, "room_digests", lambda: {"engine": "another"})
    assert run(suite).folder != first.folder


def test_another_processor_is_another_run(write_suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite()
    first = run(suite)
    monkeypatch.setattr(device, "describe", lambda name: "CPU of somebody else")
    assert run(suite).folder != first.folder


def test_a_cpu_is_named_by_its_model_or_by_its_kind_where_nobody_tells(tmp_path: Path) -> None:
    told, silent = tmp_path / "told", tmp_path / "silent"
    told.write_text("".join(f"processor\t: {i}\nmodel name\t: Some CPU @ 2.1GHz\n\n" for i in range(2)))
    silent.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert device._cpu(told) == "Some CPU @ 2.1GHz"
    other = platform.processor() or platform.machine()
    assert [device._cpu(path) for path in (silent, tmp_path / "none")] == [other, other]
    assert device.describe("cpu") == f"{device._cpu(Path('/proc/cpuinfo'))}, {torch.get_num_threads()} threads"


@pytest.mark.fast
def test_the_source_digest_covers_what_decides_a_number_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (read.append(self.name), real(self))[1])
    hosts.room_digests.__wrapped__()  # a process asks once
    assert {"cet.py", "toy.py", "ep.py", "aep.py", "reverse.py", "solving.py", "field.py", "metrics.py"} <= set(read)
    assert {"streams.py", "plans.py", "status.py", "fashion_mnist_sample.npz"} <= set(read)
    assert {"warp.cuh", "tokens_step.cu"} <= set(read)
    assert not {"cli.py", "measuring.py", "running.py", "progress.py", "store.py", "look.py"} & set(read)


def test_fresh_makes_a_new_run_even_within_a_second(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    folders = [run(suite, fresh=True, overrides={"seed": 0}).folder for _ in range(3)]
    assert len(set(folders)) == 3
    assert len(solved) == 6
    assert runs.find("latest", suite.parent / "results").folder == folders[-1]
    assert runs.find(folders[0].name, suite.parent / "results").folder == folders[0]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RuntimeError("the third failed"), "error"),
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (FloatingPointError("x"), "error"),
    ],
)
def test_what_goes_wrong_in_a_problem_is_a_status_and_is_tried_again_when_asked_for(
    write_suite: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: str
) -> None:
    suite, measure, keys = write_suite(), packs.measure_pack, []

    def broken(pack: Any, *rest: Any) -> Any:
        keys.extend(p.key for p in pack)
        if len(keys) == 3:
            raise failure
        return measure(pack, *rest)

    monkeypatch.setattr(packs, "measure_pack", broken)
    first = run(suite)
    bad = first.cells[first.cells["status"] == status]
    assert bad["problem"].tolist() == [keys[2]] * 10
    assert len(first.cells) == 60
    assert bad["reason"].str.len().min() > 0
    assert bad["cosine"].isna().all()
    run(suite)
    assert len(keys) == 6  # what failed stays so
    again = run(suite, retry="failed")
    assert keys[6:] == [keys[2]]
    same(again, run(suite, out=suite.parent / "other"))


def test_a_pack_that_fails_is_halved_until_one_problem_is_left(
    write_suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, measure, sizes = write_suite(), packs.measure_pack, []
    bad = running.prepare(str(suite))[1].problems[4].key

    def full(pack: Any, *rest: Any) -> Any:
        sizes.append(len(pack))
        if bad in {p.key for p in pack}:
            raise torch.OutOfMemoryError("full")
        return measure(pack, *rest)

    monkeypatch.setattr(packs, "measure_pack", full)
    cells = run(suite, engine="batched").cells
    assert max(sizes) > 1
    assert set(cells.loc[cells["status"] == "oom", "problem"]) == {bad}
    assert len(cells) == 60
    monkeypatch.setattr(packs, "measure_pack", measure)
    other = run(suite, out=suite.parent / "other", engine="batched").cells
    assert run(suite).cells["cell"].tolist() == other["cell"].tolist()


def test_a_mistake_of_the_user_during_a_run_is_raised(write_suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Any:
        raise UserError("no such data")

    monkeypatch.setattr(packs, "measure_pack", wrong)
    with pytest.raises(UserError, match="no such data"):
        run(write_suite())


@pytest.mark.fast
@pytest.mark.parametrize("damage", ["flipped", "truncated", "swapped"])
def test_a_damaged_record_is_set_aside_said_and_measured_again(
    write_suite: Any, solved: list[str], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    suite = write_suite()
    first = run(suite)
    before = first.cells
    path, other = sorted((first.folder / "records").iterdir())[:2]
    content = path.read_bytes()
    bad = {"flipped": content[:500] + bytes([content[500] ^ 4]) + content[501:], "truncated": content[:100]}
    path.write_bytes(bad.get(damage, other.read_bytes()))
    again = run(suite)
    assert solved[PROBLEMS:] == [path.stem]
    pd.testing.assert_frame_equal(before.drop(columns=COST_OF_TIME), again.cells.drop(columns=COST_OF_TIME))
    assert path.with_suffix(".aside").read_bytes() == bad.get(damage, other.read_bytes())
    assert path.with_suffix(".aside").name in capsys.readouterr().err


def unsigned(path: Path) -> None:
    """The record as it was stored before records said of which run they are."""
    write_table(path, read_table(path, RECORD).replace_schema_metadata(METADATA))


FOREIGN: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], dict[str, Any], str]] = {
    "another processor": (
        lambda suite, patch: patch.setattr(device, "describe", lambda name: "NVIDIA H100"),
        {},
        r"identity .*, processor 'NVIDIA H100' in place of '.*threads?'",
    ),
    "another code": (
        lambda suite, patch: patch.setattr(environment, "room_digests", lambda: {"engine": "another"}),
        {},
        r"source '\w{16}' in place of '\w{16}'",
    ),
    "other thresholds": (
        lambda suite, patch: suite.write_text(f"{suite.read_text()}\n[thresholds]\nresidual = 0.5\n"),
        {},
        r"the environment that measured it is not that of env\.json: run '.*', identity",
    ),
    "the same, measured again": (lambda suite, patch: None, {"fresh": True}, r"run '.*-2' in place of "),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_record_of_another_run_is_damage_and_is_measured_again(
    write_suite: Any, solved: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    suite = write_suite()
    content = suite.read_text()
    with pytest.raises(KeyboardInterrupt):
        run(suite, watch=interrupt_after(2))
    (first,) = (Run(path.parent) for path in suite.parent.glob("results/runs/tiny/*/env.json"))
    kept = {path.name: path.read_bytes() for path in (first.folder / "records").iterdir()}
    change, more, message = FOREIGN[kind]
    with monkeypatch.context() as patch:
        change(suite, patch)
        patch.setattr("gradbench.tables.runs.datetime", Noon)
        other = run(suite, out=suite.parent / "other", **more)
        if more:  # the same in all but the name of its folder
            other = run(suite, out=suite.parent / "other", **more)
    suite.write_text(content)
    (path,) = [p for p in sorted((other.folder / "records").iterdir()) if p.name not in kept][:1]
    shutil.copy(path, first.folder / "records")
    verdict = judge(first)
    assert (verdict.code, len(verdict.findings)) == (Exit.STORE, 1)
    detail = verdict.findings[0].detail
    assert detail.startswith(f"{first.folder / 'records' / path.name}: is no record of this run: ")
    assert re.search(message, detail), detail
    done, before = run(suite), len(solved)
    assert done.folder == first.folder
    assert solved[-4:].count(path.stem) == 1  # the two that were kept are not measured again
    assert len(set(solved[-4:])) == 4
    assert (done.folder / "records" / f"{path.stem}.aside").read_bytes() == path.read_bytes()
    assert f"{path.name}: is no record of this run" in capsys.readouterr().err
    assert {name: (done.folder / "records" / name).read_bytes() for name in kept} == kept
    assert judge(run(suite)).code is Exit.NOTHING  # whole, and nothing is claimed
    assert len(solved) == before


class Noon(datetime):
    """A clock that stands, so that two runs have one name."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return cls(2026, 1, 1, 12, tzinfo=tz)


def unsealed(run: Run, name: str, *without: str) -> None:
    """Write a file of JSON as it was before such files had seals."""
    content = read_json(run.folder / name)
    (run.folder / name).write_text(json.dumps({k: v for k, v in content.items() if k not in without}))


def test_a_run_that_was_made_before_records_said_whose_they_are_is_read_and_gone_on_with(
    write_suite: Any, solved: list[str], capsys: Any
) -> None:
    suite = write_suite()
    with pytest.raises(KeyboardInterrupt):
        run(suite, watch=interrupt_after(2))
    (first,) = (Run(path.parent) for path in suite.parent.glob("results/runs/tiny/*/env.json"))
    unsealed(first, "plan.json")
    unsealed(first, "env.json", "run", "plan_seal")
    unsealed(first, "checks.json")
    assert "does not say" not in str(judge(first).findings)  # its records name a run, and env.json has none
    assert judge(first).code is Exit.STORE
    for path in (first.folder / "records").iterdir():
        unsigned(path)
    (first.folder / journal.NAME).unlink()
    unsealed(first, "checks.json", "bound_to")
    assert judge(first).code is Exit.INCOMPLETE
    done = run(suite)
    assert (done.folder, len(solved)) == (first.folder, PROBLEMS)
    assert _code(["check", str(done.folder), "--baseline", "none"]) == Exit.NOTHING
    assert "was made before records and checks said of which run they are" in capsys.readouterr().err


def test_a_record_that_does_not_say_whose_it_is_is_none_of_a_run_whose_records_do(write_suite: Any) -> None:
    done = run(write_suite())
    path = sorted((done.folder / "records").iterdir())[0]
    unsigned(path)
    (done.folder / "manifest.json").unlink()
    (fault,) = judge(done).findings
    told = "gradbench run tiny measures it again"
    assert fault.detail == f"{path}: is no record of this run: it does not say which run measured it; {told}"


def test_a_run_folder_that_is_deleted_halfway_is_a_store_error_and_the_next_run_begins_anew(write_suite: Any) -> None:
    suite = write_suite()

    def watch(progress: CellProgress) -> None:
        if progress.done == 20:
            (folder,) = (suite.parent / "results" / "runs" / "tiny").glob("2*")
            folder.rename(suite.parent / "gone")  # at once: a record may be on its way into it

    with pytest.raises(StoreError):
        run(suite, watch=watch)
    assert len(run(suite).cells) == 60


def test_results_below_a_file_are_a_mistake_and_nothing_is_measured(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    (suite.parent / "file").write_text("")
    with pytest.raises(UserError, match=r"^out = .*/file: .*/file is no folder, expected one of results$"):
        run(suite, out=suite.parent / "file")
    assert solved == []


@pytest.mark.fast
def test_skipped_cells_are_rows_with_a_reason_and_no_metric(write_suite: Any) -> None:
    contrast = '\n[[grid]]\nsystem = "toy_noncons"\nestimator = { name = "ep", readout = "energy_contrast" }\n'
    cells = run(write_suite(contrast)).cells
    (skipped,) = cells[cells["status"] == "skipped"].to_dict("records")
    assert "needs an energy" in skipped["reason"]
    assert pd.isna(skipped["cosine"])
    assert len(cells) == 61


def test_nothing_is_written_before_a_mistake_is_found(write_suite: Any) -> None:
    suite = write_suite('\n[[check]]\nname = "c"\nstatus = "settled"\nwhere = { estimator = "eqprop" }\n')
    for more in ({}, {"overrides": {"betta": 1}}, {"overrides": {"beta": 0}}, {"device": "gpu"}):
        with pytest.raises(UserError):
            run(suite, **({"overrides": {"seed": 0}} | more if more else {}))
    assert not (suite.parent / "results").exists()


def test_the_environment_says_where_and_with_what(write_suite: Any) -> None:
    done = run(write_suite())
    env = read_json(done.folder / "env.json")
    assert env["torch"] == torch.__version__
    assert env["device"] == "cpu"
    assert set(env["flags"]["fp32_precision"].values()) == {"ieee"}
    assert len(env["identity"]) == 16


@pytest.mark.parametrize("backlog", [1, 3])
def test_where_the_disk_is_slow_a_bounded_number_of_problems_waits_for_it(
    write_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backlog: int
) -> None:
    begun, stored = [], []
    store, measure = Run.store, packs.measure_pack

    def slowly(self: Run, problem: str, table: pa.Table) -> None:
        time.sleep(0.1)
        store(self, problem, table)
        stored.append(problem)

    def measured(pack: Any, *more: Any) -> Any:
        begun.append((len(pack), len(stored)))
        return measure(pack, *more)

    monkeypatch.setattr(running, "BACKLOG", backlog)
    monkeypatch.setattr(Run, "store", slowly)
    monkeypatch.setattr(packs, "measure_pack", measured)
    run = gradbench.run(str(write_suite()), out=tmp_path, device="cpu", engine="eager")
    assert len(stored) == len(begun) == run.cells["problem"].nunique() == 6
    lost = [1 + i - done for i, (_, done) in enumerate(begun)]  # by a kill, when a problem begins
    assert max(lost) == 1 + backlog


def slow(suite: Path, out: Path) -> warm.Process:
    """A run in a process of its own that takes its time over every problem, and tells its talk to the file `told`."""
    code = (
        "import sys, time, torch, gradbench; from gradbench.engine import packs; solve = packs.measure_pack\n"
        "torch.set_num_threads(1)\n"  # another number of cores is another processor
        "packs.measure_pack = lambda *a: (time.sleep(0.3), solve(*a))[1]\n"
        "gradbench.run(sys.argv[1], out=sys.argv[2], device='cpu')"
    )
    return warm.start(code, suite, out, streams={2: suite.parent / "told"})


def records(out: Path) -> int:
    return len(list(out.glob("runs/tiny/*/records/*.parquet")))


def test_a_run_that_is_killed_goes_on(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    out = suite.parent / "results"
    process = slow(suite, out)
    deadline = time.monotonic() + 60
    while records(out) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert warm.ended(process) == -signal.SIGKILL
    kept = records(out)
    assert 2 <= kept < PROBLEMS
    done = run(suite)
    assert len(solved) == PROBLEMS - kept
    same(done, run(suite, out=suite.parent / "other"))


def test_a_second_process_on_a_run_is_refused(write_suite: Any) -> None:
    suite = write_suite()
    out = suite.parent / "results"
    first = run(suite)
    kept = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*.parquet")}
    with first.alone():
        assert warm.ended(slow(suite, out)) == 1
    told = (suite.parent / "told").read_text()
    assert "another process works on this run; wait for it, or begin a run of its own with --fresh" in told
    assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*.parquet")} == kept
    assert run(suite).id == first.id  # let go of


def test_measure_compares_one_cell_and_says_so_of_a_list() -> None:
    with pytest.raises(UserError, match=r"measure compares one cell; gradbench.suite takes lists"):
        gradbench.measure("toy_cons", "ep", T1=[5, 10])  # type: ignore[arg-type]


@pytest.mark.fast
def test_memory_is_a_share_or_a_size() -> None:
    assert available("cpu", "50%") == available("cpu") // 2
    assert available("cpu", "1.5GiB") == 3 * 2**29
    for wrong in ("5GB", "lots", "24", "-1GiB", "0%", "150%", ""):
        with pytest.raises(UserError, match="memory = "):
            available("cpu", wrong)


def test_a_run_in_little_memory_has_the_same_rows(write_suite: Any, tmp_path: Path) -> None:
    suite = write_suite()
    runs = [run(suite, out=tmp_path / m, engine=e, memory=m) for e, m in (("eager", "1GiB"), ("batched", "2KiB"))]
    ours, theirs = (r.cells.set_index("cell").sort_index() for r in runs)
    assert (ours["status"] == theirs["status"]).all()
    settled = ours["status"] == "settled"
    assert ours["cosine"][settled].to_numpy() == pytest.approx(theirs["cosine"][settled].to_numpy(), abs=1e-4)


def test_a_profile_says_where_the_time_went(write_suite: Any, tmp_path: Path) -> None:
    folder = run(write_suite(), out=tmp_path, profile=True).folder / "profile"
    table = (folder / "table.txt").read_text()
    for phase in ("free phase", "certificate", "reverse sweep", "NudgedPhase", "readouts"):
        assert f"\n{phase} " in table
    with gzip.open(folder / "trace.json.gz") as trace:
        assert profiling.table(profiling.spans(trace.read()), cuda=False) == table


def test_a_table_of_a_trace_is_its_sums() -> None:
    """On the host an operation by itself, without those that it calls; on the device its kernels and copies."""

    def entry(cat: str, name: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": tid, "ts": ts, "dur": dur, "args": {"Ev Idx": 0}}

    host = [
        entry("user_annotation", "gradbench: free phase", 0, 9000),
        entry("cpu_op", "outer", 0, 8000), entry("cpu_op", "inner", 1000, 2000), entry("cpu_op", "inner", 3000, 1000),
        entry("cpu_op", "inner", 0, 500, tid=2),
    ]  # fmt: skip
    device = [
        entry("gpu_user_annotation", "gradbench: free phase", 100, 7000, tid=7),
        entry("kernel", "gemm", 100, 3000, tid=7), entry("gpu_memcpy", "Memcpy DtoD", 4000, 1000, tid=7),
    ]  # fmt: skip
    named = [{"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "ts": 0, "args": {"name": "python"}}]
    trace = json.dumps({"schemaVersion": 1, "deviceProperties": [], "traceEvents": [*named, *host, *device]}).encode()
    found = [" ".join(line.split()) for line in profiling.table(profiling.spans(trace), cuda=False).splitlines()]
    assert found[1:] == [
        "free phase 1 9.0",
        "",
        "operation calls host ms share",
        "outer 1 5.0 58.8%",
        "inner 3 3.5 41.2%",
    ]
    found = [" ".join(line.split()) for line in profiling.table(profiling.spans(trace), cuda=True).splitlines()]
    assert found[1:3] == ["free phase 1 9.0 7.0", ""]
    assert found[3:] == ["operation calls device ms share", "gemm 1 3.0 75.0%", "Memcpy DtoD 1 1.0 25.0%"]


def test_a_profile_of_nothing_is_refused_and_the_one_before_stays(write_suite: Any, tmp_path: Path) -> None:
    suite = write_suite()
    table = run(suite, out=tmp_path, profile=True).folder / "profile" / "table.txt"
    before = table.read_bytes()
    with pytest.raises(UserError, match="nothing is left to measure, and so to profile; use fresh=True"):
        run(suite, out=tmp_path, profile=True)
    assert table.read_bytes() == before


def test_a_file_system_without_locks_is_one_to_run_on(write_suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refused)
    assert len(run(write_suite()).cells) == 60


def test_a_certified_run_is_a_run_of_its_own(write_suite: Any, solved: list[str]) -> None:
    suite = write_suite()
    plain, certified = run(suite), run(suite, certify=True)
    assert plain.id != certified.id
    assert len(solved) == 2 * PROBLEMS
    assert run(suite, certify=True).id == certified.id
    assert len(solved) == 2 * PROBLEMS  # gone on with, not measured again
    new = ["residual_rate", "rho_arnoldi", "rightmost", "spectrum_open", "sigma_max", "condition", "end_states"]
    new += ["distance", "angle"]
    assert plain.cells[new].isna().all(axis=None)
    rows = certified.cells[certified.cells["status"] == "settled"]
    assert rows[new].notna().all(axis=None)
    assert (rows["rho_arnoldi"] <= rows["sigma_max"] * 1.0001).all()
    pd.testing.assert_frame_equal(plain.cells["cosine"].to_frame(), certified.cells["cosine"].to_frame())


def test_another_gpu_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are made on torch's current device: a pack on another one would record nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("cuda:0") == "cuda:0"
    with pytest.raises(UserError, match="set CUDA_VISIBLE_DEVICES=1"):
        resolve("cuda:1")


def test_compiling_needs_cuda(write_suite: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a CUDA device"):
        run(write_suite(), out=tmp_path, device="cpu", engine="compiled")
    assert not list(tmp_path.glob("runs/*"))
