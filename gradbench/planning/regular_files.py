"""Regular files of bounded size: a device, a pipe or a file without end is refused, and not read for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

CHECKPOINT = 2**34  # bytes of a checkpoint, at most


def regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError for anything else.

    A link is followed. Nothing else than a regular file is opened, since opening a pipe waits and opening a device may
    do something.
    """
    _refuse(os.stat(path).st_mode)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        there = os.fstat(handle)
        _refuse(there.st_mode)  # another file may have this name by now
        content = file.read(most + 1) if there.st_size <= most else b""
    if max(there.st_size, len(content)) > most:
        size = max(there.st_size, len(content))
        raise OSError(errno.EFBIG, f"it holds {size:,} bytes, and of such a file at most {most:,} are read")
    return content


def _refuse(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, and no regular file")
