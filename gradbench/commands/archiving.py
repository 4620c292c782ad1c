"""`gradbench verify`, `pack` and `unpack`: a run proved complete and undamaged, and carried in one file.

An archive is a tar in gzip: first its index, then the files of the run in the order of their names, nothing else. Only
what `_fill` writes is read, so that an archive of a stranger can name no other place and unpack to no other size.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple

from gradbench.errors import StoreError, UserError
from gradbench.planning.regular_files import opened
from gradbench.planning.shards import SHARD
from gradbench.planning.values import misnamed
from gradbench.tables.disk import SCRATCH, guarded, parsed, scratch, sealed_json, sync, tidy, write
from gradbench.tables.findings import Finding
from gradbench.tables.store import BEGAN, Run
from gradbench.tables.verifying import verify
from gradbench.vocabulary.exit import Ended, Exit
from gradbench.vocabulary.status import Status

ENDING = ".tar.gz"
INDEX = "index.json"  # the first file of an archive
SOURCES = ("plan.json", "env.json", "checks.json", "manifest.json", "tables.json")  # with the tables: what a run is
# what an archive may hold at most: bytes of its index, bytes of its files together, and how many these are
INDEX_BYTES, ARCHIVE_BYTES, FILES = 2**28, 2**36, 10**6
BLOCK = 512  # bytes of a block of a tar
CHUNK = 2**20


@dataclass(frozen=True)
class Proof(Ended):
    """Whether a run is complete and undamaged. No check of its suite is evaluated."""

    run: str
    code: Exit
    planned: int
    present: int
    statuses: dict[str, int]
    findings: tuple[Finding, ...]  # all that is wrong
    standing: str = ""  # of a run without a manifest: whether a process works on it
    shard: str = ""  # which share of the plan it has, as 2/8; "": all of it

    @property
    def line(self) -> str:
        """The result in one line."""
        words = {Exit.OK: "complete and undamaged", Exit.INCOMPLETE: "incomplete", Exit.STORE: "damaged"}[self.code]
        unmeasured = sum(n for status, n in self.statuses.items() if Status(status).incomplete)
        told = f"{self.present} of {self.planned} cells" + (f", {unmeasured} not measured" if unmeasured else "")
        told += f" of shard {self.shard}" if self.shard else ""
        return f"{self.run}: {words} ({self.code.value})  {told}" + (f"; {self.standing}" if self.standing else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"code": self.code.value, "line": self.line}


def prove(run: Run) -> Proof:
    """Read every file of a run, make its tables again from its records, and say what is missing or wrong."""
    snapshot, faults = verify(run, deep=True)
    if os.path.lexists(run.folder / "verdict.json"):
        try:
            run.sealed("verdict.json")
        except StoreError as error:
            faults = (*faults, Finding("the verdict can be read", "fail", 0, str(error), kind="store"))
    if snapshot is None or faults:
        return Proof(run.id, Exit.STORE, 0, 0, {}, faults)
    statuses = Counter(snapshot.tables["cells"]["status"].to_pylist())
    planned, present = expected(snapshot.plan), sum(statuses.values())
    unmeasured = 0 if snapshot.claims["allow_incomplete"] else sum(statuses[s] for s in Status if s.incomplete)
    whole = snapshot.finished and present == planned and not unmeasured
    standing = "" if snapshot.finished else run.standing
    code, shard = Exit.OK if whole else Exit.INCOMPLETE, str(snapshot.env.get("shard") or "")
    return Proof(run.id, code, planned, present, dict(statuses), (), standing, shard)


def expected(plan: Mapping[str, Any]) -> int:
    """How many cells a run with this plan comes to: all of the plan, or its share, and those that are skipped."""
    measured: int = plan[SHARD]["cells"] if SHARD in plan else len(plan["cells"])
    return measured + len(plan["skipped"])


class Index(NamedTuple):
    """What an archive says first."""

    suite: str
    run: str  # the name of its folder
    files: dict[str, tuple[int, str]]  # by path in the folder: bytes, and their SHA-256

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {"suite": self.suite, "run": self.run, "files": {name: list(f) for name, f in self.files.items()}}

    @classmethod
    def of(cls, text: bytes, path: Path) -> Index:
        """An index that was read. Raises StoreError where it is damaged, or names what no archive may hold."""
        content, seal = parsed(text, path)
        shaped = isinstance(content, dict) and content.keys() == set(cls._fields) and seal is not None
        if not shaped or not isinstance(content["files"], dict):
            raise StoreError(f"{path}: is no archive of gradbench pack: its index is none")
        for name in (content["suite"], content["run"]):
            if _misplaced(name) or "/" in name:
                raise StoreError(f"{path}: is refused: {name!r} cannot name a folder")
        files: dict[str, tuple[int, str]] = {}
        for name, entry in content["files"].items():
            if fault := _misplaced(name):
                raise StoreError(f"{path}: is refused: the file {name!r} {fault}")
            if not (isinstance(entry, list) and [type(part) for part in entry] == [int, str] and entry[0] >= 0):
                raise StoreError(f"{path}: is refused: its index does not say how large {name!r} is")
            files[name] = (entry[0], entry[1])
            try:
                _block(f"{content['run']}/{name}", entry[0])
            except ValueError as error:
                raise StoreError(f"{path}: is refused: the file {name!r}: {error}") from None
        if len(files) > FILES or sum(size for size, _ in files.values()) > ARCHIVE_BYTES:
            raise StoreError(f"{path}: is refused: it holds more than {FILES:,} files or {ARCHIVE_BYTES:,} bytes")
        return cls(content["suite"], content["run"], files)


def _misplaced(name: object) -> str:
    """Why a path is none of a file in the folder of a run; "" where it is one."""
    if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode():
        return "is no text"
    parts = name.split("/")
    if any(part == "" or part.startswith(".") for part in parts):
        return "leads out of the folder, or is hidden"
    return next(filter(None, map(misnamed, parts)), "")


def indexed(run: Run) -> tuple[Index, Proof]:
    """The index of the archive of a run, which is proved undamaged, and the proof.

    Raises StoreError for a damaged run and for a link or a device among its files, UserError where another process
    works on it.
    """
    if run.worked_on:
        raise UserError(f"{run.folder}: another process works on this run; wait for it")
    files = dict(_listed(run.folder))
    proof = prove(run)
    if proof.code is Exit.STORE:
        raise StoreError("\n".join(f"{fault.name}: {fault.detail}" for fault in proof.findings))
    index = Index(str(run.plan["suite"]), run.folder.absolute().name, files)
    return Index.of(sealed_json(index.to_json()), run.folder), proof  # what cannot be unpacked is not packed


def pack(run: Run, index: Index, path: Path) -> None:
    """Write a run into one archive.

    Equal runs make equal archives: files in the order of their names, without times, owners, hidden and temporary
    files. Raises StoreError where a file changed since it was `indexed`.
    """
    write(path.resolve(), lambda file: _fill(file, run.folder, index))


def _listed(folder: Path) -> Iterator[tuple[str, tuple[int, str]]]:
    """The files of a run by path, sorted, with size and digest."""
    names = []
    for place, folders, files in os.walk(folder, onerror=_raised):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *files):
            if Path(place, name).is_symlink():
                raise StoreError(f"{Path(place, name)}: is a link, and an archive holds none; put its target there")
        names += [str(Path(place, name).relative_to(folder).as_posix()) for name in files if name[:1] != "."]
    for name in sorted(names):
        with guarded(folder / name), opened(folder / name, ARCHIVE_BYTES) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            yield name, (file.tell(), digest)


def _raised(error: OSError) -> None:
    """For `os.walk`, which leaves out a folder that it cannot read."""
    raise StoreError(f"{error.filename}: {error.strerror}")


def _fill(file: BinaryIO, folder: Path, index: Index) -> None:
    text = sealed_json(index.to_json())
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar,
    ):
        tar.addfile(_entry(INDEX, len(text)), io.BytesIO(text))
        for name, (size, digest) in index.files.items():
            with guarded(folder / name), opened(folder / name, ARCHIVE_BYTES) as content:
                hashed = _Hashed(content)
                tar.addfile(_entry(f"{index.run}/{name}", size), hashed)
            if hashed.digest.hexdigest() != digest:
                raise StoreError(f"{folder / name}: changed while it was packed; pack it again")


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def _block(name: str, size: int) -> bytes:
    """What stands before a file in an archive. Raises ValueError for a name that is too long or a file too large."""
    return _entry(name, size).tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


class _Hashed(io.RawIOBase):
    """A file that takes the digest of what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.digest.update(content)
        return content


def unpack(path: Path, out: Path) -> tuple[Run, Proof]:
    """Unpack an archive into the results `out`; the run, and the proof of it.

    It is unpacked into a hidden folder next to its place, proved and renamed. A run that is there already, with the
    same plan, environment, checks, records and tables, stays as it is. Raises StoreError for a damaged archive, for one
    that holds anything else than the run, and for a damaged run, UserError where another run has its name.
    """
    with guarded(path), opened(path, ARCHIVE_BYTES) as file:
        return _unpacked(_Archive(file, path), path, out)


def _unpacked(archive: _Archive, path: Path, out: Path) -> tuple[Run, Proof]:
    index = Index.of(archive.index(), path)
    home = out / "runs" / index.suite
    target = Run(home / index.run)
    if os.path.lexists(target.folder):
        for name, told in index.files.items():
            archive.skip(f"{index.run}/{name}", told)
        archive.end()
        if not _same(target.folder, index):
            raise UserError(f"{target.folder}: is another run of this name; name other results with --out")
        return target, prove(target)
    with guarded(home):
        home.mkdir(parents=True, exist_ok=True)
    tidy(home, SCRATCH)
    with scratch(home) as place:
        folder = place / "unpacked" / index.run
        with guarded(target.folder):
            folder.mkdir(parents=True)
            for name, told in index.files.items():
                archive.copy(f"{index.run}/{name}", told, folder / PurePosixPath(name))
            archive.end()
            sync(folder)
        proof = prove(Run(folder))
        if proof.code is Exit.STORE:
            raise StoreError(
                f"{path}: holds a damaged run, and nothing was unpacked\n"
                + "\n".join(f"{fault.name}: {fault.detail}" for fault in proof.findings)
            )
        inside = Run(folder)
        if inside.plan.get("suite") != index.suite or inside.env.get(BEGAN, index.run) != index.run:
            raise StoreError(f"{path}: is refused: its index names another run than it holds")
        with guarded(target.folder):
            os.rename(folder, target.folder)
            sync(home)
    return target, proof


def _same(folder: Path, index: Index) -> bool:
    """Whether a folder holds the run of an archive, whatever was drawn or judged of it since."""

    def decides(name: str) -> bool:
        return name in SOURCES or name.endswith(".parquet")

    there = {name: entry for name, entry in _listed(folder) if decides(name)}
    return there == {name: entry for name, entry in index.files.items() if decides(name)}


class _Archive:
    """The files of an archive, one after the other. Raises StoreError where another one comes than was announced."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.stream, self.path = gzip.GzipFile(fileobj=file, mode="rb"), path

    def index(self) -> bytes:
        """The content of the first file."""
        size = self._header(INDEX)
        if size > INDEX_BYTES:
            raise StoreError(f"{self.path}: is refused: its index holds {size:,} bytes")
        return b"".join(self._content(size))

    def skip(self, name: str, told: tuple[int, str]) -> None:
        """Read the next file, and compare it with its entry of the index."""
        self._checked(name, told, None)

    def copy(self, name: str, told: tuple[int, str], to: Path) -> None:
        """Write the next file, durably, and compare it with its entry of the index."""
        to.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(handle, "wb") as file:
            self._checked(name, told, file)
            file.flush()
            os.fsync(handle)
        sync(to.parent)

    def end(self) -> None:
        """Raise StoreError where anything else follows than the blocks of zeros at the end."""
        left = BLOCK + tarfile.RECORDSIZE  # two blocks end a tar, and less than a record fills its last record
        while part := self._some(BLOCK):
            left -= len(part)
            if left < 0 or part.strip(b"\0"):
                raise StoreError(f"{self.path}: is refused: more follows than its index names")

    def _checked(self, name: str, told: tuple[int, str], to: IO[bytes] | None) -> None:
        size = self._header(name)
        if size != told[0]:
            raise StoreError(f"{self.path}: damaged: {name!r} has another size than in the index")
        digest = hashlib.sha256()
        for part in self._content(size):
            digest.update(part)
            if to is not None:
                to.write(part)
        if digest.hexdigest() != told[1]:
            raise StoreError(f"{self.path}: damaged: {name!r} is not what was packed")

    def _content(self, size: int) -> Iterator[bytes]:
        padding = -size % BLOCK
        while size:
            part = self._read(min(size, CHUNK))
            size -= len(part)
            yield part
        self._read(padding)

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self._some(size)):
            size -= len(part)
            parts.append(part)
        if size:
            raise StoreError(f"{self.path}: damaged: it ends in the middle of a file")
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except (EOFError, OSError, zlib.error) as error:
            raise StoreError(f"{self.path}: damaged: {error}") from None

    def _header(self, wanted: str) -> int:
        """The size of the next file, which must be a regular one of this name, as `pack` writes it."""
        block = self._read(BLOCK)
        size = re.fullmatch(rb"[0-7]{11}\0", block[124:136])
        told = int(size[0][:11], 8) if size else -1
        if size is None or block != _block(wanted, told):
            raise StoreError(f"{self.path}: is refused: expected the file {wanted!r}, and another entry follows")
        return told
