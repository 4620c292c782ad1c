"""Clusters of dask: rows equal those of one process, and what is lost, killed or different costs nothing or is told."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import assert_same_rows

import gradbench as gb
from gradbench.commands import agents, clusters, measuring
from gradbench.commands.archiving import prove
from gradbench.commands.executing import Job
from gradbench.engine import checkpoint, hosts
from gradbench.engine.failures import ClusterGoneError
from gradbench.errors import UserError
from gradbench.planning.cells import trained
from gradbench.tables.store import Run

FOLDER = Path(__file__).parent


def cells(suite: Any, out: Path, **more: Any) -> pd.DataFrame:
    return Run(gb.run(suite, out=out, device="cpu", **more).folder).cells


def faulty(faults: list[float], gains: list[float]) -> gb.Suite:
    grids = [{"gain": 0.7, "fault": faults}, {"gain": gains, "fault": 0.0}]
    return gb.suite([{"system": "faulty", "estimator": "aep", **grid} for grid in grids], name="faults")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


def test_rows_of_threads_workers_and_clusters_are_equal(
    write_suite: Any, two_workers: Any, capsys: pytest.CaptureFixture[str], cores: Any
) -> None:
    cores(1)
    path = write_suite()
    here = cells(str(path), path.parent / "here")
    processes = cells(str(path), path.parent / "processes", timeout=60)
    local = cells(str(path), path.parent / "local", cluster="local")
    assert "cluster: 1 worker on this machine; dashboard: http://127.0.0.1:" in capsys.readouterr().err
    there = cells(str(path), path.parent / "there", cluster=two_workers.scheduler_address)
    assert f"cluster: 2 workers at {two_workers.scheduler_address}" in capsys.readouterr().err
    assert len(here) == 60
    for other in (processes, local, there):
        assert_same_rows(here, other)


def test_plugins_travel_and_a_crash_costs_its_problem(
    faulty_plugin: None, two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_faults = cells(faulty([1, 4, 8], [0.5, 0.6]), tmp_path / "there", cluster=two_workers, timeout=5)
    told = dict(zip(with_faults["fault"], with_faults["reason"], strict=True))
    assert {fault: told[fault] for fault in (1, 4, 8)} == {
        1: "the worker process was ended by SIGSEGV, twice",
        4: "no result within 5 s (timeout)",
        8: "faulty: step raised ValueError: planted",
    }
    monkeypatch.setattr(measuring, "with_crew", lambda setup, planned: setup)
    healthy = cells(faulty([0], [0.5, 0.6]), tmp_path / "here")
    assert_same_rows(with_faults[with_faults["fault"] == 0], healthy[healthy["gain"] < 0.7])
    failing = gb.suite({"system": "faulty", "estimator": "aep", "fault": 8.0, "seed": list(range(9))}, name="bound")
    assert 1 <= len(cells(failing, tmp_path / "bound", cluster=two_workers, max_failures=1)) <= 4


def test_what_is_no_cluster_is_refused(tmp_path: Path, two_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, told in (
        ("locl", "cluster = 'locl' is not known.*Did you mean 'local'"),
        (7, "cluster: got an int, expected local, an address"),
        ("tcp://127.0.0.1:1", "cluster = tcp://127.0.0.1:1: "),
    ):
        monkeypatch.setattr(clusters, "CONNECT", 0.2)
        with pytest.raises(UserError, match=told):
            cells("smoke", tmp_path, cluster=given)
    with pytest.raises(UserError, match="profile: "):
        cells("smoke", tmp_path, cluster="local", profile=True)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'gradbench\[cluster\]'"):
        cells("smoke", tmp_path, cluster="local")
    assert not list(tmp_path.iterdir())


FACTS: hosts.Facts = {
    "device": "cpu",
    "processor": "a processor",
    "versions": hosts.versions_here("cpu"),
    "rooms": hosts.room_digests(),
    "data": {"cifar10": "0"},
    "budget": 1,
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"versions": {**FACTS["versions"], "torch": "2.0.1"}}, "torch 2.0.1, and the coordinator has "),
        ({"versions": {**FACTS["versions"], "numpy": "1.26"}}, "numpy 1.26, and the coordinator has "),
        ({"rooms": {**FACTS["rooms"], "engine": "0"}}, "the code of gradbench differs .* in engine"),
        ({"processor": "another"}, "processor another, and tcp://a has a processor"),
        ({"device": "cuda:0"}, "device cuda, and tcp://a has cpu"),
        ({"data": {"cifar10": "1"}}, "the images of cifar10 1, and tcp://a has 0"),
    ],
)
def test_workers_that_differ_are_named(changed: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = clusters.Cluster(None, {}, local=False)  # type: ignore[arg-type]  # which is asked nothing
    monkeypatch.setattr(clusters.Cluster, "ask", lambda *_: {"tcp://a": FACTS, "tcp://b": {**FACTS, **changed}})
    with pytest.raises(UserError, match=f"worker tcp://b: {told}"):
        there.agreed("cpu", None, [])
    monkeypatch.setattr(clusters.Cluster, "ask", lambda *_: {"tcp://a": FACTS, "tcp://b": {**FACTS, "budget": 0}})
    assert there.agreed("cpu", None, []) == {**FACTS, "budget": 0}


def test_who_comes_back_at_an_address_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    there = clusters.Cluster(None, {}, local=False)  # type: ignore[arg-type]  # which is asked nothing
    there.agreeing = {"tcp://a"}
    seen = [{"tcp://a": 1}, {}, {"tcp://a": 1}]
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(clusters, "LOOK", 0.0)
    monkeypatch.setattr(clusters.Cluster, "workers", lambda _: seen.pop(0))
    monkeypatch.setattr(clusters.Cluster, "address", "tcp://s")
    monkeypatch.setattr(clusters.ClusterLanes, "_ask", lambda _, task, *more: asked.append((task.address, task.kind)))
    terms = clusters.Terms(
        content=b"", facts=FACTS, device="cpu", engine="eager", memory=None, data=[], budget=1, seconds=None
    )
    lanes = clusters.ClusterLanes(there, terms)
    while seen:
        lanes._look()
    assert asked == [("tcp://a", "open"), ("tcp://a", "check")]
    lanes.workers["tcp://a"].ready = True  # and so is one that does not know the session, which was started since
    lanes._measured(clusters._Asked("tcp://a", "job", Job([])), agents.Unopened())
    assert asked[2:] == [("tcp://a", "check")]
    assert not lanes.workers["tcp://a"].ready


def test_what_answers_and_is_no_scheduler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT", 0.5)
    listening = socket.create_server(("127.0.0.1", 0))  # takes a connection and never says a word
    files = {"a": '{"address": 5}', "b": "[1", "c": "{}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given = {
        f"tcp://127.0.0.1:{listening.getsockname()[1]}": "nothing of dask answers|in .* time|Timed out",
        "tls://127.0.0.1:1": "TLS expects",
        "foo://a": "unknown address scheme",
        **{str(tmp_path / name): "is no file of a scheduler" for name in files},
    }
    with listening:
        for name, told in given.items():
            with pytest.raises(UserError, match=told), clusters.connected(name, "cpu"):
                pass


@pytest.mark.fast
@pytest.mark.parametrize("place", ["_look", "_answered"])
def test_answers_that_are_there_are_handed_on_before_the_run_ends(place: str) -> None:
    """The scheduler is gone at a look, or a further answer is a mistake of the user."""
    end: Exception = ClusterGoneError("gone") if place == "_look" else UserError("a mistake")

    class Ending(clusters.ClusterLanes):
        def __init__(self) -> None:
            self.done, self.lost, self.ended = queue.SimpleQueue(), [], None

        def _answered(self, future: Any) -> Any:
            if future is None:
                raise end
            return [future]

        def _look(self) -> None:
            if place == "_look":
                raise end

    lanes = Ending()
    lanes.done.put(("job", "answer"))
    lanes.done.put(None if place == "_answered" else ("another", "answer"))
    assert lanes.wait()[0] == ("job", "answer")
    with pytest.raises(type(end), match=str(end)):
        lanes.wait()


def test_a_worker_of_another_version_stops_a_run_before_it_begins(
    write_suite: Any, two_workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_here", lambda: {**FACTS["versions"], "numpy": "0.1"})
    path = write_suite()
    with pytest.raises(UserError, match=rf"worker tcp://.*: numpy {FACTS['versions']['numpy']}, and the coord.* 0\.1"):
        cells(str(path), path.parent, cluster=two_workers)
    assert not (path.parent / "runs").exists()


SLOW = """
import time
import torch
import gradbench as gb

def state(net, x):
    time.sleep(0.15)
    return torch.zeros(len(x["x"]), 6)

slow = gb.system(
    step=lambda net, x, z, k: torch.tanh(k.gain * z @ net["W"] + x["x"]),
    cost=lambda net, x, z: (z**2).sum(-1),
    state=state,
    params={"W": 0.1 * torch.eye(6)},
    data={"x": torch.ones(4, 6)},
    knobs={"gain": 1.0},
    defaults={"T1": 30, "T2": 10, "beta": 0.02},
    name="slow",
)
"""
SUITE = """
about = "Problems that take a while and no work."

[[grid]]
system = "slow"
estimator = "ep"
gain = { linspace = [0.1, 1.0, 24] }
"""


class Hosts:
    """A scheduler and hosts of workers, each a group of processes that can be killed as one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.groups = [self.start("scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")]

    def start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self.file)]
        log = (self.folder / "log").open("ab")
        return subprocess.Popen([*command, *arguments], start_new_session=True, stdout=log, stderr=log)

    def host(self, workers: int) -> subprocess.Popen[bytes]:
        sizes = ["--nworkers", str(workers), "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"]
        self.groups.append(self.start("worker", *sizes))
        return self.groups[-1]

    def run(self, suite: Path, plugin: Path) -> subprocess.Popen[bytes]:
        arguments = ["run", str(suite), "--plugin", str(plugin), "--out", str(self.folder), "--device", "cpu"]
        command = [sys.executable, "-m", "gradbench", *arguments, "--cluster", str(self.file)]
        with (self.folder / "told").open("ab") as told:
            self.groups.append(subprocess.Popen(command, start_new_session=True, stdout=told, stderr=told))
        return self.groups[-1]

    def kill(self, group: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def until(holds: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.1)
    return found


def dask_workers(group: subprocess.Popen[bytes]) -> list[int]:
    """The processes of dask that a host has for its workers, below a nanny each."""
    psutil = pytest.importorskip("psutil")  # comes with distributed
    with suppress(psutil.Error):
        below = psutil.Process(group.pid).children(recursive=True)
        return [process.pid for process in below if "spawn_main" in " ".join(process.cmdline())]
    return []


@pytest.mark.long
def test_a_worker_a_host_and_the_coordinator_are_killed_and_the_run_is_finished_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    plugin, suite = tmp_path / "slow.py", tmp_path / "waits.toml"
    plugin.write_text(SLOW)
    suite.write_text(SUITE)
    there = Hosts(tmp_path)

    def records() -> int:
        return len(list(tmp_path.glob("runs/waits/*/records/*.parquet")))

    try:
        until(there.file.exists)
        first = there.host(2)
        coordinator = there.run(suite, plugin)
        until(lambda: records() >= 2 or coordinator.poll() is not None)
        assert coordinator.poll() is None, (tmp_path / "told").read_text()
        os.kill(dask_workers(first)[-1], signal.SIGKILL)  # its nanny starts another one
        seen = records()
        until(lambda: records() > seen)
        second = there.host(1)
        until(lambda: dask_workers(second))
        there.kill(first)  # a whole host
        seen = records()
        until(lambda: records() > seen)
        assert coordinator.poll() is None
        there.kill(coordinator)
        before = {path: path.read_bytes() for path in tmp_path.glob("runs/waits/*/records/*.parquet")}
        assert len(before) < 24
        assert there.run(suite, plugin).wait(90) == 0, (tmp_path / "told").read_text()
    finally:
        for group in reversed(there.groups):
            there.kill(group)
    (folder,) = tmp_path.glob("runs/waits/2*")
    assert all(path.read_bytes() == content for path, content in before.items())  # nothing is measured twice
    proof = prove(Run(folder))
    assert proof.line.endswith("complete and undamaged (0)  24 of 24 cells")
    assert Run(folder).cells["status"].tolist() == ["settled"] * 24


@pytest.mark.long
def test_the_job_script_for_slurm_runs_a_suite(write_suite: Any) -> None:
    """With a stand-in for srun, which starts one task."""
    pytest.importorskip("distributed")
    suite = write_suite()
    folder = suite.parent
    (folder / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (folder / "srun").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", "THREADS": "1"}
    script = ["bash", str(FOLDER.parent / "docs" / "scale" / "slurm.sh"), str(suite), "--device", "cpu"]
    with (folder / "told").open("wb") as told:
        code = subprocess.run(script, cwd=folder, env=environment, stdout=told, stderr=told, timeout=120).returncode
    assert code == 0, (folder / "told").read_text()
    assert len(Run(next(folder.glob("results/runs/tiny/2*"))).cells) == 60
    assert not (folder / "scheduler-7.json").exists()


def measured_until_nobody_waits(path: str) -> None:
    wanted = agents._still_wanted()
    Path(path).write_text("begun")
    while wanted():
        time.sleep(0.05)
    Path(path).write_text("ended")


def test_a_pack_for_which_nobody_waits_is_ended(two_workers: Any, tmp_path: Path) -> None:
    """So that the workers of a coordinator that is gone measure for the next one."""
    distributed = pytest.importorskip("distributed")
    path = tmp_path / "told"
    client = distributed.Client(two_workers, set_as_default=False)
    future = client.submit(measured_until_nobody_waits, str(path), pure=False)
    until(path.exists)
    assert not future.done()
    client.close()
    until(lambda: path.read_text() == "ended", 20)


@pytest.mark.long
def test_an_interrupted_run_is_gone_on_with(write_suite: Any, two_workers: Any) -> None:
    path = write_suite()

    def interrupt(progress: Any) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells(str(path), path.parent, cluster=two_workers, watch=interrupt)
    (folder,) = path.parent.glob("runs/tiny/2*")
    before = {record: record.read_bytes() for record in folder.glob("records/*")}
    assert before
    assert len(cells(str(path), path.parent, cluster=two_workers)) == 60
    assert {record: record.read_bytes() for record in before} == before
    assert [found.name for found in path.parent.glob("runs/tiny/2*")] == [folder.name]


def test_trained_weights_travel(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, [3], 1, {"theta.W": torch.ones(1, 2, 2)}, [])
    name = trained(path)
    files = {name: checkpoint.planned_bytes(name)}
    path.write_bytes(b"another")
    for read in (checkpoint.planned_bytes, lambda name: checkpoint.planned_params(name, 3, {"W": (2, 2)})):
        with pytest.raises(UserError, match="is not the checkpoint that was planned: it has changed since"):
            read(name)
    checkpoint.bring(files)
    assert checkpoint.planned_params(name, 3, {"W": (2, 2)})["W"].tolist() == [[1, 1], [1, 1]]
    checkpoint.bring({})


def test_a_worker_remembers_few_sessions() -> None:
    for number in range(agents.SESSIONS + 1):
        agents.open_session(str(number), b"")
    assert list(agents._sessions) == [str(number) for number in range(1, agents.SESSIONS + 1)]
    agents._sessions.clear()
