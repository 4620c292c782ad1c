"""The command in forked processes, which may be killed and whose calls may fail.

A process started from nothing takes seconds to import torch. Here one process imports everything, with torch on one
thread, and every trial is a fork of it. A test of tests/test_crash.py compares the rows of both.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import pyarrow as pa

SUBREAPER = 36  # of prctl: orphans become children of this process, so that it sees them
PATIENCE = 5.0  # seconds that a worker may live after its coordinator
T = TypeVar("T")
_pipe: list[int] = []  # of a forked process: the end that it tells its parent through


@dataclass(frozen=True)
class Kill:
    """When a process is killed, and whom of its family.

    `delay` counts seconds from the first stored record, or from the start where `at_once`.
    """

    delay: float
    whom: str = "coordinator"  # coordinator, worker, or both; the coordinator where there is no worker
    at_once: bool = False


@dataclass
class Ended:
    """A forked process that has ended."""

    code: int  # negative: the signal that ended it
    out: str = ""
    err: str = ""
    told: list[str] = field(default_factory=list)
    seconds: float = 0.0
    first: float = 0.0  # seconds until the first stored record
    hung: bool = False
    killed: tuple[str, ...] = ()  # whom the kill reached
    orphans: int = 0  # processes that lived longer than their coordinator by more than PATIENCE

    def of(self, word: str) -> list[str]:
        """What was told under a word."""
        return [line.removeprefix(f"{word} ") for line in self.told if line.startswith(f"{word} ")]


def warm(folder: Path) -> None:
    """Import and initialise all that a run needs, on one thread, so that forked processes need not."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    import hypothesis.stateful  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import gradbench.api
    import gradbench.pages.writing
    import gradbench.tables.verdict  # noqa: F401
    from gradbench.cli import _code
    from gradbench.commands import reporting, trainings  # noqa: F401

    for name in ("measuring", "profiling"):
        __import__(f"gradbench.commands.{name}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "warm.toml").write_text(WARM)
    with open(os.devnull, "w") as null:
        out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, null, null
        try:
            for words in (["plan", str(folder / "warm.toml")], ["list"]):
                _code(words)
        finally:
            sys.stdout, sys.stderr = out, err
    gc.collect()
    gc.freeze()


WARM = """
about = "Read before the first fork."
[[grid]]
system = { name = "toy_cons", N = 2, D = 2, out = 2 }
estimator = "bptt"
T1 = 2
batch = 1
"""


def tell(line: str) -> None:
    """Say something to the parent, at once."""
    os.write(_pipe[0], f"{line}\n".encode(errors="replace"))


BACKLOG = 1  # problems whose rows wait for the disk, in place of `running.BACKLOG`, which is more than a suite here has


def _told_of_records() -> None:
    """Tell the parent when the measurement of a problem begins, and when its record is stored."""
    from gradbench.commands import running
    from gradbench.engine import packs
    from gradbench.tables.store import Run

    running.BACKLOG = BACKLOG

    store, measure = Run.store, packs.measure_pack

    def stored(self: Run, problem: str, table: pa.Table) -> None:
        store(self, problem, table)
        tell(f"stored {problem}")

    def begun(pack: Sequence[object], *rest: object) -> object:
        for problem in pack:
            tell(f"begun {problem.key}")  # type: ignore[attr-defined]
        return measure(pack, *rest)  # type: ignore[arg-type]

    Run.store = stored  # type: ignore[method-assign]
    packs.measure_pack = begun  # type: ignore[assignment]


def command(
    arguments: Sequence[str | Path],
    folder: Path,
    *,
    first: Sequence[Callable[[], object]] = (),
    kill: Kill | None = None,
    limit: float = 120.0,
) -> Ended:
    """Run the command line in a forked process that works in a folder."""

    def work() -> NoReturn:
        from gradbench import cli

        _told_of_records()
        for prepare in first:
            prepare()
        sys.argv = ["gradbench", *map(str, arguments)]
        cli.main()
        raise AssertionError("main always raises SystemExit")

    return forked(work, folder, kill=kill, limit=limit)


def forked(
    work: Callable[[], object], folder: Path, *, kill: Kill | None = None, limit: float = 120.0, silence: float = 120.0
) -> Ended:
    """Call a function in a forked process, and wait for it, its words and its children.

    It is ended after `limit` seconds, and where it says nothing for `silence` seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _child(work, folder, write, [out.fileno(), err.fileno()])
        os.close(write)
        try:
            ended = _watched(pid, read, kill, limit, silence)
        finally:
            os.close(read)
        ended.orphans = _reaped()
        for name, stream in (("out", out), ("err", err)):
            stream.seek(0)
            setattr(ended, name, stream.read().decode(errors="replace"))
    return ended


def each(tries: Sequence[T], attempt: Callable[[T], str], folder: Path, seconds: float = 10.0) -> list[tuple[T, str]]:
    """Those of many inputs with which an attempt says that something is wrong, raises, crashes, or hangs.

    The attempts are made in one forked process, and in another one behind an input that ended it.
    """
    wrong: list[tuple[T, str]] = []
    begin = 0
    while begin < len(tries):
        start = begin

        def work(start: int = start) -> None:
            import traceback

            for i in range(start, len(tries)):
                tell(f"at {i}")
                try:
                    said = attempt(tries[i])
                except BaseException as error:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    said = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
                if said:
                    tell(f"wrong {i} {' '.join(said.split())[:1000]}")

        ended = forked(work, folder, limit=3600.0, silence=seconds)
        for line in ended.of("wrong"):
            i, _, said = line.partition(" ")
            wrong.append((tries[int(i)], said))
        reached = ended.of("at")
        begin = int(reached[-1]) + 1 if reached else begin + 1
        if ended.hung or ended.code:
            how = f"no answer within {seconds:g} s" if ended.hung else f"the process ended with {ended.code}"
            wrong.append((tries[begin - 1], f"{how} {ended.err[-300:]}"))
    return wrong


def _child(work: Callable[[], object], folder: Path, write: int, streams: list[int]) -> NoReturn:
    code = 70
    try:
        _pipe[:] = [write]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in enumerate((null, *streams)):
            os.dup2(source, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w", closefd=False) for i in range(3))
        os.chdir(folder)
        code = int(work() or 0)  # type: ignore[call-overload]
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:  # whatever happens, this process must not go on with what its parent does
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code)


def _watched(pid: int, read: int, kill: Kill | None, limit: float, silence: float) -> Ended:
    """Read what a process tells until it ends, and kill it when it is due."""
    began = heard = time.monotonic()
    due = began + kill.delay if kill and kill.at_once else None
    ended = Ended(0)
    over = 0.0  # when the process ended
    buffer, process = b"", os.pidfd_open(pid)
    try:
        while True:
            now = time.monotonic()
            if due is not None and now >= due and not ended.killed:
                ended.killed = _kill(pid, kill)
            if now - began > limit or now - heard > silence:
                ended.hung = True
                os.kill(pid, signal.SIGKILL)
            wait = limit if due is None or ended.killed else max(0.0, due - now)
            if over and now - over > PATIENCE:
                break
            ready, _, _ = select.select([read] if over else [read, process], [], [], min(wait, 1.0))
            if read in ready:
                if not (more := os.read(read, 1 << 16)):  # its children have ended, too
                    break
                heard = time.monotonic()
                *lines, buffer = (buffer + more).split(b"\n")
                ended.told += [line.decode(errors="replace") for line in lines]
                if not ended.first and any(line.startswith(b"stored ") for line in lines):
                    ended.first = time.monotonic() - began
                    if kill and not kill.at_once:
                        due = time.monotonic() + kill.delay
            elif process in ready:
                over = now
    finally:
        os.close(process)
    _, status = os.waitpid(pid, 0)
    ended.code, ended.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
    return ended


def _kill(pid: int, kill: Kill) -> tuple[str, ...]:
    workers = children(pid)
    whom = kill.whom if workers else "coordinator"
    reached = []
    if whom in ("worker", "both"):
        with suppress(ProcessLookupError):  # the worker may have ended since it was listed
            os.kill(random.choice(workers), signal.SIGKILL)
            reached.append("worker")
    if whom in ("coordinator", "both"):
        os.kill(pid, signal.SIGKILL)
        reached.append("coordinator")
    return tuple(reached)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _reaped() -> int:
    """Wait for what a dead process has left; how many of these processes had to be ended."""
    late = time.monotonic() + PATIENCE
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if reaped == 0:
            if time.monotonic() > late:
                break
            time.sleep(0.01)
    left = children(os.getpid())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(left)
