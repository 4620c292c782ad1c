"""Worker processes: packs with code that may crash, hang or fill the memory are measured where they can be lost.

Everything that travels is pickled by value, through the pipe of a process that this session started. What is pickled is
never read from a disk. This module is imported without torch, so that workers can start before their owner has torch.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from gradbench.data import origins
from gradbench.engine.failures import Failed
from gradbench.errors import UserError
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.dynamics.meter import Meter
    from gradbench.engine.hosts import Facts
    from gradbench.engine.serving import Session
    from gradbench.planning.problems import Problem

    Row = dict[str, Any]

POLL = 0.1  # seconds after which a waiting thread looks at deadlines and exceptions
LAST = 5.0  # seconds that a process gets to end
# SIGINT is ignored first: the terminal sends it to workers, too, and their owner ends them. All other imports go by
# the path.
PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from gradbench.engine.serving import serve
serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
"""
NOWHERE: Mapping[str, str] = MappingProxyType({})  # the place of a worker that sees what its owner sees
SHARE = 0.9  # of the free memory of the machine, for all workers


class CannotTravelError(Exception):
    """A system or a rule of the session cannot be sent to another process."""


class WorkerLostError(Exception):
    """A worker process ended, or can measure nothing more."""


class WorkerLateError(Exception):
    """A worker process did not answer in time, and was ended."""


class PackFailedError(Exception):
    """A pack raised an exception in a worker process."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.reason)
        self.failed = failed


def failure_of_worker(error: BaseException) -> Failed | None:
    """What an exception of a worker means for its pack; None for any other exception."""
    if isinstance(error, PackFailedError):
        return error.failed
    if isinstance(error, WorkerLostError):
        return Failed(Status.ERROR, str(error), broken=True)
    if isinstance(error, WorkerLateError):
        return Failed(Status.ERROR, f"{error} (timeout)")
    return None


class WorkerProcess:
    """A Python process that measures packs. Whatever ends it raises WorkerLostError at the next answer.

    It makes ready for a device, by its name or `auto`, while nobody asks it for anything. `place` are variables of its
    environment, which say which GPU it sees.
    """

    def __init__(self, device: str, place: Mapping[str, str] = NOWHERE) -> None:
        self.place, self.bounded = dict(place), 0
        self.pipe, its_pipe = Pipe()
        self._lifeline, its_lifeline = socket.socketpair()
        ends = its_pipe.fileno(), its_lifeline.fileno()
        path = json.dumps([os.path.abspath(p) for p in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, *_flags(), "-c", PROGRAM, path, *map(str, ends), device],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what foreign code prints is talk
            env={**os.environ, **place},
        )
        its_pipe.close()
        its_lifeline.close()
        self.opened: bytes | None = None  # the session that it has opened

    def open(self, content: bytes) -> None:
        """Tell the worker what a session knows, as `packed` made it.

        Raises CannotTravelError for what the worker cannot read.
        """
        if self.opened == content:
            return
        self.opened = None
        try:
            self._ask(content)
        except PackFailedError as error:
            raise CannotTravelError(error.failed.reason) from None
        self.opened, self.bounded = content, 0  # a session brings a bound, or none

    def facts(self, device: str, memory: str | None, data: Sequence[str]) -> Facts:
        """What the worker is, as far as numbers depend on it. Raises PackFailedError and UserError as it tells them."""
        told: Facts = self._ask(pickle.dumps(("facts", device, memory, list(data))))
        return told

    def bound(self, memory: int) -> None:
        """Let the worker take so many bytes of data at most."""
        if self.bounded != memory:
            self._ask(pickle.dumps(("bound", memory)))
            self.bounded = memory

    def build(self, problem: Problem) -> None:
        """Build the system of a problem. Raises PackFailedError where it cannot be built."""
        self._ask(pickle.dumps(("build", problem.cells)))

    def measure(
        self,
        pack: Sequence[Problem],
        budget: int,
        seconds: float | None,
        meter: Meter | None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> list[list[Row]]:
        """The rows of every problem of a pack, which may take `budget` bytes and so many seconds.

        `meter` follows how far the pack is. Once it is no longer `wanted`, the worker is ended. Raises PackFailedError,
        WorkerLostError or WorkerLateError.
        """
        if seconds is not None:  # kernels are compiled before the clock runs
            self._ask(pickle.dumps(("compile", pack[0].cells)), wanted=wanted)
        answer = self._ask(pickle.dumps(("measure", [p.cells for p in pack], budget)), seconds, meter, wanted)
        rows: list[list[Row]] = answer
        return rows

    def _ask(
        self,
        message: bytes,
        seconds: float | None = None,
        meter: Meter | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Any:
        end = time.monotonic() + seconds if seconds is not None else None
        try:
            self.pipe.send_bytes(message)
            while True:
                while not self.pipe.poll(POLL):
                    if end is not None and time.monotonic() > end:
                        self.close()
                        raise WorkerLateError(f"no result within {seconds:g} s")
                    if not wanted():
                        self.close()
                        raise WorkerLostError("nobody waits for its answer")
                answer = pickle.loads(self.pipe.recv_bytes())
                if type(answer) is not int:
                    break
                if meter is not None:
                    meter.launched = answer
        except (EOFError, OSError):
            raise WorkerLostError(self._ended()) from None
        if isinstance(answer, Failed):
            if answer.broken:
                self.close()
                raise WorkerLostError(answer.reason)
            raise UserError(answer.reason) if answer.refused else PackFailedError(answer)
        return answer

    def _ended(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.process.wait(LAST)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code is None:
            return "the worker process closed its pipe"
        if code >= 0:
            return f"the worker process ended with exit status {code}"
        more = ", as the kernel does where memory is short" if -code == signal.SIGKILL else ""
        return f"the worker process was ended by {signal.Signals(-code).name}{more}"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self._lifeline.close()
        self.process.kill()
        self.process.wait()


class Crew:
    """The worker processes of a run. They stay for the next run of the session."""

    def __init__(self, content: bytes, device: str, number: int) -> None:
        self.content = content  # of the session, as `packed` made it
        self.device = device
        self._free = threading.Semaphore(number)  # for `lent_if_free`

    @contextmanager
    def lent(self) -> Iterator[WorkerProcess]:
        """A worker that has opened the session.

        It stays for the next pack unless an exception passes that is not an answer of it.
        """
        with lent(self.device) as worker:
            worker.open(self.content)
            yield worker

    @contextmanager
    def lent_if_free(self) -> Iterator[WorkerProcess | None]:
        """A worker as `lent` gives it; None while all workers of the crew are lent in this way."""
        if not self._free.acquire(blocking=False):
            yield None
            return
        try:
            with self.lent() as worker:
                yield worker
        finally:
            self._free.release()


@contextmanager
def lent(device: str, place: Mapping[str, str] = NOWHERE) -> Iterator[WorkerProcess]:
    """A worker, which stays for the next one who asks unless an exception passes that is not an answer of it."""
    worker = _take(device, place)
    try:
        yield worker
    except (PackFailedError, UserError):
        _give_back(worker)
        raise
    except BaseException:
        worker.close()
        raise
    _give_back(worker)


_idle: list[WorkerProcess] = []
_lock = threading.Lock()


def _take(device: str, place: Mapping[str, str]) -> WorkerProcess:
    with _lock:
        for worker in [worker for worker in reversed(_idle) if worker.place == place]:
            _idle.remove(worker)
            if worker.alive:
                return worker
            worker.close()
    return WorkerProcess(device, place)


def _give_back(worker: WorkerProcess) -> None:
    with _lock:
        _idle.append(worker)


def prepare(number: int, device: str) -> None:
    """Start workers until so many are idle, so that they are ready when they are needed."""
    started = [WorkerProcess(device) for _ in range(number - len(_idle))]
    with _lock:
        _idle.extend(started)


@atexit.register
def dismiss() -> None:
    """End all idle workers."""
    with _lock:
        while _idle:
            _idle.pop().close()


def packed(session: Session) -> bytes:
    """The message that opens a session. Raises CannotTravelError for a system or a rule that cannot be pickled.

    Functions, classes and modules of the author travel by value, as they are in this process: a file that was edited
    since it was imported is not read again.
    """
    import cloudpickle

    mine = list(_of_author())
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps(("open", session))
    except Exception as error:  # whatever an object raises that cannot be pickled
        raise CannotTravelError(f"{type(error).__name__}: {error}".partition("\n")[0]) from None
    finally:
        for module in mine:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _of_author() -> Iterator[ModuleType]:
    """Modules that are not installed, but for the script, which cloudpickle takes by value anyway."""
    known = [m for name, m in list(sys.modules.items()) if isinstance(m, ModuleType) and m.__name__ == name]
    for module in known:
        top = sys.modules.get(module.__name__.partition(".")[0], module)
        if top.__name__ not in ("__main__", "__mp_main__", origins.PACKAGE) and not origins.is_installed(top):
            yield module


def memory(workers: int) -> int | None:
    """Bytes of data that each of so many workers may have; None: unknown."""
    known = []
    for free in (_of_machine, _of_group):
        with suppress(OSError, ValueError, LookupError):  # no Linux, or no bound
            known.append(free())
    return int(SHARE * min(known)) // workers if known else None


def _of_machine() -> int:
    """Bytes that are free on this machine."""
    numbers = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(numbers["MemAvailable"].split()[0]) * 1024  # told in KiB


def _of_group() -> int:
    """Bytes that are free in the control group of this process."""
    folder = Path("/sys/fs/cgroup")
    return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())


def _flags() -> list[str]:
    """The options that this interpreter was started with."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags
