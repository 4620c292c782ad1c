"""The seals of the records of a run, in the order in which these are stored.

Until a run has a manifest, this is what holds a record to the numbers that were measured: one that was changed and
sealed again has another seal. A line is appended before its record gets its name, and is not synced: after a loss of
power the last lines may be missing, and a record without a line is bound by nothing.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from gradbench.planning.regular_files import regular
from gradbench.tables.disk import UNCHANGED, guarded, refuse_links

NAME = "seals.txt"
BYTES = 2**30  # that are read at most


class Journal:
    """The journal in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._read: tuple[int, dict[str, set[str]]] = 0, {}  # bytes of the file when it was read, and what it says

    def note(self, problem: str, seal: str) -> None:
        """Append the seal of a record. Raises StoreError where the disk refuses."""
        refuse_links(self.path, self.path.parent)
        # an empty line before each, so that a line that was torn takes no other one with it
        line = f"\n{_checked(f'{problem} {seal}')}\n".encode()
        with guarded(self.path, UNCHANGED):
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)

    def binds(self, problem: str, seal: str) -> bool:
        """Whether a record of a problem may have this seal: one that was noted, or any where none was."""
        known = self._known().get(problem)
        return known is None or seal in known

    def names(self, entry: str, seal: str) -> bool:
        """Whether this seal was noted."""
        return seal in self._known().get(entry, ())

    def _known(self) -> dict[str, set[str]]:
        with guarded(self.path):
            try:
                size = os.lstat(self.path).st_size
            except FileNotFoundError:
                return {}
            text = regular(self.path, BYTES) if size != self._read[0] else b""
        if text:
            known: dict[str, set[str]] = {}
            for line in text.decode(errors="replace").splitlines():
                entry = line.rpartition(" ")[0]
                if line and line == _checked(entry) and entry.count(" ") == 1:
                    problem, seal = entry.split(" ")
                    known.setdefault(problem, set()).add(seal)
            self._read = len(text), known
        return self._read[1]


def _checked(entry: str) -> str:
    """An entry with its checksum: a line that is torn or damaged says nothing."""
    return f"{entry} {zlib.crc32(entry.encode()):08x}"
