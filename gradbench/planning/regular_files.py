"""Regular files of bounded size: a device, a pipe or a file without end is refused, and not read for ever."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CHECKPOINT = 2**34  # bytes of a checkpoint, at most


@contextmanager
def opened(path: Path, most: int) -> Iterator[IO[bytes]]:
    """A regular file of at most `most` bytes, open for reading. Raises OSError for anything else.

    A link is followed. Nothing else than a regular file is opened, since opening a pipe waits and opening a device may
    do something.
    """
    _refuse(os.stat(path).st_mode)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        there = os.fstat(file.fileno())
        _refuse(there.st_mode)  # another file may have this name by now
        _refuse_larger(there.st_size, most)
        yield file


def regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError for anything else."""
    with opened(path, most) as file:
        size = os.fstat(file.fileno()).st_size  # a buffer of the largest size takes longer to make than most files
        content = file.read(size + 1)
        if len(content) > size:  # it grows while it is read
            content += file.read(most + 1 - len(content))
        _refuse_larger(len(content), most)
        return content


def _refuse_larger(size: int, most: int) -> None:
    if size > most:
        raise OSError(errno.EFBIG, f"it holds {size:,} bytes, and of such a file at most {most:,} are read")


def _refuse(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, and no regular file")
