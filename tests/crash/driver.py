"""Calls that are counted, that kill their process, or that fail: the points at which a run is broken.

Every call of `os`, of `open` and of pyarrow that concerns the results is counted by its name. A point is a call by name
and index, and what happens there. Nothing of the package knows of it: the functions are replaced in a forked process.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from crash.forking import tell

KILLS = ("before", "after", "half")
ERRORS = ("ENOSPC", "EIO", "EACCES")
CALLS: dict[Any, tuple[str, ...]] = {
    os: (
        "open", "replace", "rename", "fsync", "fdatasync", "unlink", "remove", "link", "symlink", "chmod", "fchmod",
        "mkdir", "rmdir", "fdopen", "stat", "lstat", "scandir", "listdir", "ftruncate",
    ),
    io: ("open",),
    tempfile: ("mkstemp",),
    fcntl: ("flock", "lockf"),
    pq: ("write_table", "ParquetFile", "read_metadata"),
}  # fmt: skip
WRITES, READS = "file.write", "file.read"  # of what `open` and `fdopen` return
# calls that look, and change nothing: to be killed there is to be killed before the next one
LOOKS = {"os.stat", "os.lstat", "os.scandir", "os.listdir", "io.open", READS, "pq.ParquetFile", "pq.read_metadata"}


@dataclass(frozen=True)
class Point:
    """A call, and what happens there: one of KILLS, or the name of an error."""

    call: str
    index: int
    what: str

    def __str__(self) -> str:
        return f"{self.call}:{self.index}:{self.what}"

    @classmethod
    def read(cls, text: str) -> Point:
        """The point that `str` writes."""
        call, index, what = text.rsplit(":", 2)
        return cls(call, int(index), what)

    @property
    def kills(self) -> bool:
        """Whether the process is killed there."""
        return self.what in KILLS


def points(counted: Counter[str]) -> list[Point]:
    """Every point of a run whose calls were counted."""
    found = []
    for call, number in sorted(counted.items()):
        kills = () if call in LOOKS else KILLS if call == WRITES else KILLS[:2]
        found += [Point(call, i, what) for i in range(number) for what in (*kills, *ERRORS)]
    return found


class Driver:
    """Replaces the calls; `point` None counts them and tells every one."""

    def __init__(self, folder: Path, point: Point | None = None) -> None:
        self.folder = os.path.abspath(folder)
        self.point = point
        self.counted: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.inside = threading.local()

    def install(self) -> None:
        """Replace the functions in this process."""
        for module, names in CALLS.items():
            short = {"pyarrow.parquet": "pq"}.get(module.__name__, module.__name__)
            for name in names:
                setattr(module, name, self._wrapped(f"{short}.{name}", getattr(module, name)))

    def _wrapped(self, call: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            if getattr(self.inside, "counting", False) or not self._concerns(call, args, kwargs):
                return function(*args, **kwargs)
            if call.startswith("pq."):  # what pyarrow calls of `os` is a part of this call
                self.inside.counting = True
            try:
                return self._file(call, self.at(call, lambda: function(*args, **kwargs)))
            finally:
                self.inside.counting = False

        return counting

    def at(self, call: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Count a call, and do what the point says where it is this one."""
        with self.lock:
            index = self.counted[call]
            self.counted[call] += 1
        point = self.point
        if point is None:
            tell(f"call {call}")
        elif (point.call, point.index) == (call, index):
            tell(f"reached {point}")
            if not point.kills:
                number = getattr(errno, point.what)
                raise OSError(number, os.strerror(number))
            if point.what == "after":
                act()
            elif half is not None and point.what == "half":
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        return act()

    def _file(self, call: str, result: Any) -> Any:
        return File(result, self) if call in ("os.fdopen", "io.open") else result

    def _concerns(self, call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is of the results: by a path, or by the number of an open file."""
        if call.startswith("pq."):
            return True
        given = kwargs.get("dir") if call == "tempfile.mkstemp" else (args[0] if args else None)
        try:
            path = (
                os.readlink(f"/proc/self/fd/{given}") if isinstance(given, int) else os.path.abspath(os.fspath(given))
            )
        except (OSError, TypeError, ValueError):
            return False
        return f"{path}/".startswith(f"{self.folder}/")


class File:
    """An open file whose reads and writes are counted."""

    def __init__(self, file: Any, driver: Driver) -> None:
        self._file, self._driver = file, driver

    def write(self, content: Any) -> Any:
        """Write, or a half of it and then the end."""
        file = self._file

        def half() -> None:
            file.write(content[: len(content) // 2])
            file.flush()

        return self._driver.at(WRITES, lambda: file.write(content), half)

    def read(self, *size: int) -> Any:
        """Read."""
        return self._driver.at(READS, lambda: self._file.read(*size))

    def __enter__(self) -> File:
        self._file.__enter__()
        return self

    def __exit__(self, *why: Any) -> Any:
        return self._file.__exit__(*why)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
