"""Worker processes: what crashes, hangs or fails costs its own rows, and the bounds of a run end it cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
from tiny import assert_same_rows

import gradbench as gb
from gradbench.commands import measuring, running
from gradbench.commands.coverage import standing
from gradbench.commands.limits import Limits
from gradbench.commands.running import prepare
from gradbench.engine import hosts, packs, processes
from gradbench.errors import UserError
from gradbench.tables import runs
from gradbench.tables.disk import read_json, write_json
from gradbench.tables.store import Run
from gradbench.vocabulary.exit import Exit

pytestmark = pytest.mark.usefixtures("faulty_plugin")
SAID = {  # by fault
    1: "the worker process was ended by SIGSEGV, twice",
    2: "the worker process ended with exit status 7, twice",
    3: "SystemExit: bye",
    4: "no result within 10 s (timeout)",
    5: "no result within 10 s (timeout)",
    6: "MemoryError",
    7: "the worker process was ended by SIGABRT, twice",
    8: "faulty: step raised ValueError: planted",
    9: "KeyboardInterrupt",
    10: "the worker process ended with exit status 0, twice",
}


def suite(faults: list[int], gains: tuple[float, ...] = (0.7,), healthy: tuple[float, ...] = ()) -> gb.Suite:
    grids = [{"gain": list(gains), "fault": [float(fault) for fault in faults]}]
    grids += [{"gain": list(healthy), "fault": 0.0}] if healthy else []
    return gb.suite([{"system": "faulty", "estimator": "aep", **grid} for grid in grids], name="faults")


def run(asked: gb.Suite, out: Path, **more: Any) -> Run:
    return Run(gb.run(asked, out=out, device="cpu", **more).folder)


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "with_crew", lambda setup, planned: setup)


def test_a_fault_costs_the_cells_of_its_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = run(suite([0, 1, 3, 8, 9], healthy=(0.5, 0.6, 0.8)), tmp_path).cells
    told = dict(zip(cells["fault"], cells["reason"], strict=True))
    assert {fault: told[fault] for fault in (1, 3, 8, 9)} == {fault: SAID[fault] for fault in (1, 3, 8, 9)}
    assert (cells["status"] == np.where(cells["fault"] > 0, "error", "settled")).all()
    in_this_process(monkeypatch)
    threads = run(suite([0], healthy=(0.5, 0.6, 0.8)), tmp_path / "threads").cells
    assert_same_rows(cells[cells["fault"] == 0], threads)


@pytest.mark.long
def test_ten_kinds_of_faults_among_two_hundred_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = tuple(np.linspace(0.3, 0.69, 190).round(6))
    monkeypatch.setattr(processes, "memory", lambda workers: int(1.5 * 2**30))
    cells = run(suite(list(range(11)), healthy=gains), tmp_path, timeout=10).cells
    bad = cells[cells["fault"] > 0]
    assert dict(zip(bad["fault"], bad["reason"], strict=True)) == SAID
    assert set(bad["status"]) == {"error", "oom"}
    assert bad.loc[bad["status"] == "oom", "fault"].tolist() == [6]
    in_this_process(monkeypatch)
    assert_same_rows(cells[cells["fault"] == 0], run(suite([0], healthy=gains), tmp_path / "threads").cells)


def test_a_problem_that_is_late_says_so_and_is_tried_again_when_asked_for(tmp_path: Path) -> None:
    asked = suite([4], healthy=(0.5,))
    first = run(asked, tmp_path, timeout=3).cells
    assert first["status"].tolist() == ["error", "settled"]
    assert first["reason"][0] == "no result within 3 s (timeout)"
    again = run(asked, tmp_path, timeout=2).cells
    assert again["reason"][0] == first["reason"][0]
    again = run(asked, tmp_path, timeout="2s", retry="failed").cells
    assert again["reason"][0] == "no result within 2 s (timeout)"


def test_a_pack_that_loses_its_worker_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs: list[tuple[int, ...]] = []
    measure = processes.WorkerProcess.measure

    def lost(worker: processes.WorkerProcess, pack: Any, *more: Any) -> Any:
        packs.append(tuple(problem.point.seed for problem in pack))
        if 3 in packs[-1]:
            worker.close()
            raise processes.WorkerLostError("gone")
        return measure(worker, pack, *more)

    monkeypatch.setattr(processes.WorkerProcess, "measure", lost)
    grid = {"system": "faulty", "estimator": "aep", "gain": 0.7, "seed": list(range(5))}
    cells = run(gb.suite(grid, name="faults"), tmp_path, engine="batched").cells
    assert packs == [(0, 1, 2, 3, 4), (0, 1), (2, 3, 4), (2,), (3, 4), (3,), (3,), (4,)]
    assert cells["status"].tolist() == ["settled", "settled", "settled", "error", "settled"]
    assert cells["reason"][3] == "gone, twice"


def test_a_worker_that_has_read_other_code_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gradbench was edited while the run was measured, and a worker was started since."""
    monkeypatch.setattr(measuring, "room_digests", lambda: {**hosts.room_digests(), "engine": "0"})
    with pytest.raises(UserError, match="the code of gradbench changed in engine while the run was measured"):
        run(suite([0]), tmp_path)


def test_workers_stay_for_the_next_run_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    run(suite([0]), tmp_path)
    before = {worker.process.pid for worker in processes._idle}
    run(suite([0], gains=(0.8,)), tmp_path)
    assert before & {worker.process.pid for worker in processes._idle}
    for worker in list(processes._idle):
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert run(suite([0], gains=(0.9,)), tmp_path).cells["status"].tolist() == ["settled"]


def test_what_cannot_be_sent_is_measured_here_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = threading.Lock()

    def step(theta: Any, x: Any, z: Any) -> Any:
        with lock:
            return 0.5 * z * theta["w"] + x["x"]

    import torch

    mine = gb.system(
        step=step,
        cost=lambda theta, x, z: (z**2).sum(-1),
        state=lambda theta, x: torch.zeros(len(x["x"]), 3),
        params={"w": torch.ones(3)},
        data={"x": torch.ones(2, 3)},
        defaults={"T1": 60, "T2": 20, "beta": 0.02},
        name="locked",
    )
    asked = gb.suite({"system": mine, "estimator": "ep"}, name="locked")
    assert run(asked, tmp_path).cells["status"].tolist() == ["settled"]
    assert "cannot be sent to a worker process" in capsys.readouterr().err
    with pytest.raises(UserError, match="timeout: it needs worker processes"):
        run(asked, tmp_path / "other", timeout=5)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_long_plan_on_a_cpu_is_measured_by_worker_processes_and_by_this_one(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gb.suite([{"system": "linear", "estimator": "aep", "seed": [0, 1, 2], "T1": 50, "T2": 9}], name="short")
    _, planned = prepare(asked)
    monkeypatch.setattr(packs, "how_many_at_once", lambda *given: cores)
    monkeypatch.setattr(processes, "memory", lambda workers: 2**40)
    setup = measuring.Setup(device="cpu", engine="eager", budget=2**32)
    work = sum(problem.cost.work for problem in planned.problems)
    threads = run(asked, tmp_path / "threads").cells
    assert measuring.with_processes(planned.problems, planned, setup).crew is None, "a short plan"
    monkeypatch.setattr(measuring, "LONG", work)
    assert (measuring.with_processes(planned.problems, planned, setup).crew is not None) == (cores > 2)
    processes.dismiss()
    tables, by_worker, here, begun = measuring._tables, processes.WorkerProcess.measure, list[int](), threading.Event()

    def measured_here(*given: Any) -> Any:
        here.append(len(given[2]))
        begun.set()
        return tables(*given)

    def measured_there(*given: Any) -> Any:
        assert begun.wait(60), "this process measures, too"
        return by_worker(*given)

    monkeypatch.setattr(measuring, "_tables", measured_here)
    monkeypatch.setattr(processes.WorkerProcess, "measure", measured_there)
    workers = run(asked, tmp_path / "workers").cells
    assert len(processes._idle) == (2 if cores > 2 else 0), "workers stay for the next run"
    assert (sum(here) < 3) == (cores > 2), "workers measure, too"
    assert_same_rows(workers, threads)
    monkeypatch.setattr(measuring, "LONG", work + 1)
    assert measuring.with_processes(planned.problems, planned, setup).crew is None, (
        "a plan that is one evaluation too short"
    )


def test_a_long_plan_is_measured_by_threads_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = gb.suite([{"system": "linear", "estimator": "aep", "seed": [0, 1], "T1": 50, "T2": 9}], name="short")
    _, planned = prepare(asked)
    monkeypatch.setattr(packs, "how_many_at_once", lambda *given: 4)
    monkeypatch.setattr(measuring, "LONG", 1)
    setup = measuring.Setup(device="cpu", engine="eager", budget=2**32)
    enough = (3 * measuring.WORKER + 2**32) // 4
    for room, by_processes in ((enough, True), (enough - 1, False), (None, True)):
        monkeypatch.setattr(processes, "memory", lambda workers, room=room: room)
        assert (measuring.with_processes(planned.problems, planned, setup).crew is not None) == by_processes
    assert measuring.with_processes(planned.problems, planned, replace(setup, alone=True)).crew is None, (
        "a profile sees this process alone"
    )

    def lost(worker: processes.WorkerProcess, content: bytes) -> None:
        raise error

    monkeypatch.setattr(processes.WorkerProcess, "open", lost)
    for error in (processes.WorkerLostError("ended by SIGKILL"), OSError("no more"), UserError("the code changed")):
        assert measuring.with_processes(planned.problems, planned, setup).crew is None
        assert f"threads measure, since no worker process can: {error}" in capsys.readouterr().err


def test_a_worker_is_bounded_by_its_session_alone() -> None:
    """A session without a bound lifts the bound of the session before."""
    _, planned = prepare(suite([0], healthy=(0.5,)))
    setup = measuring.Setup(device="cpu", engine="eager", budget=2**32)

    def limit(memory: int | None) -> int:
        content = processes.packed(measuring._session(setup, planned, memory))
        with processes.Crew(content, "cpu", 1).lent() as worker:
            limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        soft = next(line for line in limits.splitlines() if line.startswith("Max data size")).split()[3]
        return -1 if soft == "unlimited" else int(soft)

    processes.dismiss()
    before, bounded = limit(None), limit(2**34)
    assert bounded == 2**34
    assert limit(None) == before != bounded


def test_no_worker_outlives_the_process_that_started_it() -> None:
    code = """
import sys
from gradbench.engine import processes
worker = processes.WorkerProcess("cpu")
print(worker.process.pid, flush=True)
import time; time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        time.sleep(0.5)
        owner.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("8m", 480), ("1h30m", 5400), ("2", 2), (0.5, 0.5), (np.float64(3), 3)]
)
def test_times_are_read(given: Any, seconds: float) -> None:
    assert Limits.of(given, None, None, None).timeout == seconds


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        (("8 minutes", None, None, None), "timeout = '8 minutes': expected a time as 90s, 8m or 1h30m"),
        ((0, None, None, None), "timeout = 0"),
        ((float("inf"), None, None, None), "timeout"),
        (("", None, None, None), "timeout = ''"),
        ((None, None, None, "-3"), "stop_after = '-3'"),
        ((None, "faild", None, None), "retry = 'faild' is not known. Did you mean 'failed'?"),
        ((None, None, 0, None), "max_failures = 0: expected a number of cells"),
        ((None, None, 1.5, None), "max_failures = 1.5"),
    ],
)
def test_what_is_no_bound_is_refused(bounds: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        Limits.of(*bounds)
    assert told in str(error.value)


def test_a_run_that_is_stopped_is_gone_on_with(write_suite: Any) -> None:
    path = write_suite()
    command: list[str | Path] = ["run", path, "--out", path.parent, "--device", "cpu"]
    said = path.parent / "said"
    assert warm.run([*command, "--stop-after", "0.000001"], {2: said}) == Exit.INCOMPLETE
    told = said.read_text()
    assert "gradbench: stopped, since 1e-06 seconds are over (--stop-after)" in told
    assert "60 of 60 cells are not measured yet" in told
    assert warm.run(command, {2: said}) == Exit.OK
    assert len(runs.find("tiny", path.parent).cells) == 60


def test_a_run_stops_after_so_many_failures(write_suite: Any, monkeypatch: pytest.MonkeyPatch, cores: Any) -> None:
    cores(1)
    path = write_suite()

    def broken(*arguments: Any) -> Any:
        raise FloatingPointError("planted")

    monkeypatch.setattr(measuring.packs, "measure_pack", broken)
    cells = gb.run(str(path), out=path.parent, device="cpu", max_failures=11).cells
    assert len(cells) == 20  # two problems of ten cells
    assert set(cells["status"]) == {"error"}


def test_two_starts_on_a_fresh_folder_make_one_run(write_suite: Any) -> None:
    path = write_suite()
    _, planned = prepare(str(path))
    identity = "0123456789abcdef"
    plan, env = planned.to_json(), {"identity": identity}
    started = threading.Barrier(4)
    folders: list[Path] = []

    def start() -> None:
        started.wait()
        run = runs.resumed_or_begun(
            path.parent / "runs", identity, lambda run: run.start(plan, env, {}), print, fresh=False
        )
        folders.append(run.folder)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1


def test_the_folder_of_a_run_that_never_began_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    def start(fresh: bool) -> Path:
        plan, env = {"problems": []}, {"identity": "0123"}
        return runs.resumed_or_begun(folder, "0123", lambda run: run.start(plan, env, {}), print, fresh=fresh).folder

    whole = start(fresh=True)
    cut = {
        "20260101-000000-aaaa": ["plan.json", ".checks.json.a1b2c3d4"],
        "20260101-000000-aaaa-2": [],
        "20260101-000000-bbbb": ["plan.json", "notes.txt"],  # somebody's notes
        "20260101-000000-cccc": ["plan.json", "records/1.parquet"],  # its environment was lost
        "mine": [],  # no name of a run
    }
    for name, files in cut.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).parent.mkdir(exist_ok=True)
            (folder / name / file).write_text("{}")
    assert start(fresh=False) == whole
    assert {path.name for path in folder.iterdir()} == {whole.name, *list(cut)[2:]}
    assert (folder / "20260101-000000-cccc" / "plan.json").exists()


def test_records_of_two_engines_are_never_mixed(write_suite: Any) -> None:
    path = write_suite()
    batched, eager, again = (
        running.run(path, out=path.parent, device="cpu", overrides={"seed": 0}, engine=engine)
        for engine in ("batched", "auto", "eager")
    )
    assert batched.folder != eager.folder == again.folder
    assert [r.env["engine"] for r in (batched, eager)] == ["batched", "eager"]


def test_plan_says_what_is_done_failed_and_missing_and_why_a_run_is_stale(
    write_suite: Any, monkeypatch: pytest.MonkeyPatch, cores: Any
) -> None:
    cores(1)
    path = write_suite()
    _, planned = prepare(str(path))
    assert standing(planned, path.parent, "cpu") is None
    measure, calls = measuring.packs.measure_pack, []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise FloatingPointError("planted")
        return measure(*arguments)

    monkeypatch.setattr(measuring.packs, "measure_pack", broken)
    made = running.run(path, out=path.parent, device="cpu", max_failures=1)
    there = standing(planned, path.parent, "cpu")
    assert there is not None
    assert (there.done, there.failed, there.missing, there.stale) == (10, 10, 40, ())
    env = read_json(made.folder / "env.json")
    for changed, told in (
        ({"numpy": "1.0", "identity": "0"}, ("numpy was 1.0 and is",)),
        ({"engine": "batched", "identity": "0"}, ("engine was batched and is eager",)),
        (
            {"source": "0", "rooms": env["rooms"] | {"engine": "0"}, "identity": "0"},
            ("the code of gradbench changed in engine",),
        ),
        ({"identity": "0"}, ("it may have changed in what no digest sees",)),
    ):
        write_json(made.folder / "env.json", env | changed)
        there = standing(planned, path.parent, "cpu")
        assert there is not None
        assert (there.done, there.missing) == (0, 60)
        assert len(there.stale) == 1
        assert there.stale[0].startswith(told)
