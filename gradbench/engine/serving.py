"""What a worker process does: it measures packs that arrive through a pipe, and answers with rows.

The process is started by `engine/processes.py`. It may die at any moment, by code that it runs. Everything that it
reads comes from the process that started it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from gradbench.dynamics.meter import Meter
from gradbench.engine import checkpoint, packs
from gradbench.engine.draws import build
from gradbench.engine.failures import Failed, failure_of
from gradbench.engine.hosts import Facts, facts_here, room_digests, rooms_apart
from gradbench.engine.outcome import records_of
from gradbench.engine.precision import dedicate, isolated
from gradbench.errors import UserError
from gradbench.planning import registry
from gradbench.planning.problems import Problem

if TYPE_CHECKING:
    from gradbench.planning.cells import Cell
    from gradbench.vocabulary.status import Thresholds

NEWS = 0.25  # seconds between two messages of how far a pack is
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a worker is told before its first pack of a run."""

    folder: str  # the working folder; on another host only where there is one of this path
    environment: dict[str, str] | None  # None: a worker of a cluster has the one of its host
    path: list[str] | None  # sys.path; None: as above
    classes: dict[registry.Base, dict[str, Any]]  # from outside of the package, each with the types of its options
    thresholds: Thresholds
    device: str
    engine: str
    certify: bool
    memory: int | None  # bytes of data that the process may have; None: no bound
    files: dict[str, bytes]  # checkpoints that the plan names, by that name, where they are not read from a disk
    rooms: dict[str, str]  # the digest of every room that decides a number, in the process that the run belongs to


def serve(pipe: int, lifeline: int, device: str) -> None:
    """Make ready for a device, by its name or `auto`; then answer the messages of a pipe until it is closed.

    `lifeline` is a socket through which nothing is ever sent. When its other end is closed, the kernel ends this
    process, whatever code runs here: so no worker outlives the process that started it.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which ends it
    # the usual allocator of Arrow reserves a GiB at first use, which would count among the bytes that `bound` allows
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(OSError):  # where memory is short, the kernel ends this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    dedicate()
    room_digests()  # of the code that was just read
    if device != "cpu":
        with suppress(Exception):  # what the device lacks is said where it is used
            _use(device.replace("auto", "cuda"))
    worker = _Worker(Connection(pipe))
    with suppress(EOFError, OSError):  # the pipe was closed
        while True:
            worker.answer()
    os._exit(0)  # code that ran here may hang, or fail, where Python ends


class _Worker:
    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.sending = pipe, threading.Lock()
        self.session: Session | None = None
        self.limits = resource.getrlimit(resource.RLIMIT_DATA)  # that the process began with

    def answer(self) -> None:
        """Receive a message, do what it asks, and send the answer."""
        content = self.pipe.recv_bytes()
        answer: object
        try:
            task, *arguments = pickle.loads(content)
            answer = getattr(self, task)(*arguments)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt of the code that was measured
            answer = failure_of(error)
            del error
        if isinstance(answer, Failed) and self.session is not None and not _works(self.session.device):
            answer = replace(answer, broken=True)
        self.send(answer)

    def send(self, answer: object) -> None:
        with self.sending:
            self.pipe.send_bytes(pickle.dumps(answer))

    def open(self, session: Session) -> None:
        """Take what a session knows, and be ready to measure. Raises UserError where the code here is another one."""
        self.session = None
        if wrong := rooms_apart(session.rooms, room_digests()):
            raise UserError(
                f"the code of gradbench changed in {', '.join(wrong)} while the run was measured; what is stored "
                "belongs to the code of before, and a new process begins a new run"
            )
        if session.environment is None or session.path is None:
            with suppress(OSError):
                os.chdir(session.folder)
        else:
            os.chdir(session.folder)
            os.environ.clear()
            os.environ.update(session.environment)
            sys.path[:] = session.path
        self.bound(session.memory)
        registry.bring(session.classes)
        checkpoint.bring(session.files)
        if session.device.startswith("cuda"):
            _use(session.device)
        self.session = session

    def bound(self, memory: int | None) -> None:
        """Take so many bytes of data at most; None: the limit that this process began with."""
        soft, hard = self.limits
        resource.setrlimit(resource.RLIMIT_DATA, (soft if memory is None else memory, hard))

    def facts(self, device: str, memory: str | None, data: list[str]) -> Facts:
        """What this process is, as far as numbers depend on it."""
        return facts_here(device, memory, data)

    def build(self, cells: tuple[Cell, ...]) -> None:
        """Build the system of a problem."""
        problem = Problem(cells)
        with packs.refused_where_too_large(problem):
            build(problem, "cpu")

    def compile(self, cells: tuple[Cell, ...]) -> None:
        """Compile the kernels of the system of a problem, where the engine has some."""
        assert self.session is not None
        packs.compile_kernels(Problem(cells), self.session.device, self.session.engine)

    def measure(self, pack: list[tuple[Cell, ...]], budget: int) -> list[list[Row]]:
        """The rows of every problem of a pack, which may take `budget` bytes."""
        session, problems = self.session, [Problem(cells) for cells in pack]
        assert session is not None
        meter, done = Meter(len(problems)), threading.Event()
        telling = threading.Thread(target=self._tell, args=(meter, done), daemon=True)
        telling.start()
        try:
            with isolated():
                outcomes = packs.measure_pack(
                    problems, session.device, session.thresholds, session.engine, budget, session.certify, meter
                )
                rows = [table.to_pylist() for table in records_of(outcomes)]
        finally:
            done.set()
            telling.join()
        return rows

    def _tell(self, meter: Meter, done: threading.Event) -> None:
        """Send how far a pack is, until it is done."""
        told = 0
        while not done.wait(NEWS):
            if meter.launched != told:
                told = meter.launched
                with suppress(OSError):
                    self.send(told)


def _use(device: str) -> None:
    """Make the context of a CUDA device, which takes a while."""
    torch.zeros(1, device=device).sum().item()


def _works(device: str) -> bool:
    """Whether anything can still be computed: an invalid access on a GPU spoils the process for good."""
    if not device.startswith("cuda"):
        return True
    try:
        torch.cuda.synchronize(device)
        return bool(torch.zeros(1, device=device).sum().item() == 0)
    except Exception:
        return False
