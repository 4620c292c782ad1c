"""Files that are wholly there or not at all, and that are what was written or an error.

A file is written under a temporary name, synced and renamed. JSON and parquet carry a seal, the SHA-256 of all their
bytes, so that damage is told and never read as other content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gradbench.errors import StoreError
from gradbench.planning.regular_files import regular
from gradbench.tables.schema import CELLS, readable, upgraded

# The checksums of parquet cover its pages, and a flipped bit in an offset reads another column: this one covers all.
BLANK = b"sha256:" + b"0" * 64
SEAL, SCHEMA = b"gradbench.seal", b"gradbench.schema"  # keys of the metadata of a table
BETWEEN = 2  # bytes between a key and its value in the footer of a parquet file
# The first keys of sealed JSON. A file that has one of them is sealed, or damaged: no flipped bit takes both away.
JSON_SEAL, JSON_FORMAT = "seal", "format"
FORMAT = 1  # of sealed JSON and of the files of a run; a file of a larger number is of a newer gradbench
SEALED = re.compile(rb'\{\n "seal": "(sha256:[0-9a-f]{64})",\n "format": ')
# for a few hundred rows: a third of the time of zstd with dictionaries, to write and to read, and no more bytes
SHORT = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
LONG = {"compression": "zstd"}
# what is read at most: bytes of a file, and of a table the numbers and the bytes that its pages hold
JSON_BYTES, TABLE_BYTES = 2**30, 2**32
VALUES, DECODED = 10**9, 2**32
UNCHANGED = "; what was stored before is unchanged"  # what is said where something cannot be written
UNCONFIRMED = "; the new file is there, and the disk does not confirm that it outlives a loss of power"
DRAWN = r"\.[a-z0-9_]{8}"  # the end of the name of a file that is being written
TEMPORARY = re.compile(rf"\.(.+){DRAWN}")  # that name
SCRATCH = "scratch"  # in the place of the name, of a folder in which something is made


@contextmanager
def guarded(path: Path, more: str = "") -> Iterator[None]:
    """Inside, an OSError becomes a StoreError, which says `more` behind what happened."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}{more}") from error


@contextmanager
def way_out(words: str) -> Iterator[None]:
    """Inside, the sentence of a StoreError ends with what helps."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{error}; {words}") from error.__cause__


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in order; none where there is no folder.

    Raises StoreError where the folder cannot be read. `Path.glob` says then that nothing is there.
    """
    with guarded(folder):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def refuse_links(path: Path, inside: Path) -> None:
    """Raise StoreError where a link stands at `path`, or on the way to it from the folder `inside`."""
    for part in (path, *path.parents):
        if part == inside:
            return
        if part.is_symlink():
            raise StoreError(f"{part}: is a link, and nothing is written through a link in {inside}; remove the link")


def write(path: Path, fill: Callable[[BinaryIO], object], *, inside: Path | None = None, told: str = UNCHANGED) -> None:
    """Write a file atomically and durably. Raises StoreError where the folder or the disk refuses.

    Below the folder `inside` no link is followed. An error that leaves the old file says what is `told`.
    """
    if inside is not None:
        refuse_links(path, inside)
    with guarded(path, told):
        _make(path.parent)
        handle, name = _temporary(path)
        lock = os.dup(handle)  # the file stays locked until it has its name
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)
    with guarded(path, UNCONFIRMED):
        sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def _temporary(path: Path) -> tuple[int, str]:
    """A new file in the folder of `path`, open and locked. Who removes what dead writers left may have been faster."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with suppress(OSError):  # file systems of clusters may have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(name), os.fstat(handle)):
                    return handle, name
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which is removed at the end, or after a crash by `tidy`."""
    there = Path(tempfile.mkdtemp(dir=folder, prefix=f".{SCRATCH}."))
    lock = os.open(there, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield there
    finally:
        os.close(lock)
        shutil.rmtree(there, ignore_errors=True)


def tidy(folder: Path, names: str) -> None:
    """Remove temporary files of dead writers: those that nobody locks, of files whose names match the pattern `names`.

    What cannot be locked or removed stays. A link is not followed.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            written = TEMPORARY.fullmatch(entry.name)
            if written and re.fullmatch(names, written[1]):
                with suppress(OSError):
                    _remove(Path(entry.path))


def _remove(path: Path) -> None:
    """Remove a temporary file or folder. Raises OSError where a writer has its lock, or where there are no locks."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return
    how = os.O_RDONLY | os.O_DIRECTORY if stat.S_ISDIR(mode) else os.O_RDWR
    lock = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(lock)


def write_json(path: Path, content: Mapping[str, Any], *, inside: Path | None = None, told: str = UNCHANGED) -> str:
    """Write an object as sealed JSON, atomically: a line for every value, and for every entry of a list.

    Returns the seal. `inside` and `told` are those of `write`.
    """
    text = sealed_json(content)
    write(path, lambda file: file.write(text), inside=inside, told=told)
    return seal_of(text)


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """An object as JSON whose first key is the digest of the whole text, in which that digest is blank.

    A seal that the object has from before is replaced.
    """
    head = {JSON_SEAL: BLANK.decode(), JSON_FORMAT: FORMAT}
    text = _lines(head | {key: value for key, value in content.items() if key not in head}).encode()
    start = text.index(BLANK)
    return _sealed(text, start)


def seal_of(text: bytes) -> str:
    """The seal of sealed JSON."""
    return _seal_at(text, text.index(BLANK[:7]))


def _lines(content: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        entries = isinstance(value, list) and len(value) > 1
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if entries else json.dumps(value)

    return "{\n " + ",\n ".join(f"{json.dumps(key)}: {text(value)}" for key, value in content.items()) + "\n}\n"


def read_json(path: Path) -> Any:
    """Read JSON, without its seal. Raises StoreError where it is missing, torn, not what was sealed, or newer."""
    return read_sealed(path)[0]


def read_sealed(path: Path) -> tuple[Any, str | None]:
    """The content of JSON and its seal; None: it was written before files had seals. Raises StoreError as `read_json`.

    Who reads a file that must have a seal asks for it.
    """
    with guarded(path):
        text = regular(path, JSON_BYTES)
    return parsed(text, path)


def parsed(text: bytes, path: Path) -> tuple[Any, str | None]:
    """What `read_sealed` returns, of a text that was read from `path`."""
    begins = SEALED.match(text)
    if begins and _sealed(text, begins.start(1)) != text:
        raise StoreError(f"{path}: damaged: its digest is not the one that it was written with")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if not isinstance(content, dict):
        return content, None
    if not begins:
        if {JSON_SEAL, JSON_FORMAT} & content.keys():
            raise StoreError(f"{path}: damaged: it was sealed, and its seal cannot be read")
        return content, None
    form = content.pop(JSON_FORMAT)
    if form != FORMAT:
        raise StoreError(f"{path}: format {form!r}, this gradbench reads {FORMAT}; take a newer one")
    return content, str(content.pop(JSON_SEAL))


def write_table(
    path: Path,
    table: pa.Table,
    form: Mapping[str, Any] = LONG,
    *,
    inside: Path | None = None,
    told: str = UNCHANGED,
) -> str:
    """Write a `sealed_table` atomically. Returns the seal. `inside` and `told` are those of `write`."""
    content, seal = sealed_table(table, form)
    write(path, lambda file: file.write(content), inside=inside, told=told)
    return seal


def sealed_table(table: pa.Table, form: Mapping[str, Any] = LONG) -> tuple[bytes, str]:
    """A table as parquet with page checksums, and its seal, the digest of the whole file, which is in the footer."""
    metadata = {**(table.schema.metadata or {}), SEAL: BLANK}
    buffer = pa.BufferOutputStream()  # a file of Python is called for every page, which takes as long as the encoding
    pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True, **form)
    content = buffer.getvalue().to_pybytes()
    start = _place(content)
    content = _sealed(content, start)
    return content, _seal_at(content, start)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read parquet and verify its seal, schema version and columns. Raises StoreError where one of them is wrong.

    `cells` may have further columns of float64 behind those of its schema. A table of an older version gets the columns
    that came later: a coordinate with its default, anything else with null.
    """
    content = _whole(path)
    wanted = schema.metadata[SCHEMA].decode()
    try:
        table = _decoded(content)
        version = (table.schema.metadata or {}).get(SCHEMA, b"none").decode(errors="replace")
        if version not in readable(wanted):
            raise StoreError(f"{path}: schema version {version}, this gradbench reads {' and '.join(readable(wanted))}")
        if version != wanted:
            table = upgraded(table, schema)
    except StoreError:
        raise
    except Exception as error:  # whatever bytes that are no parquet make pyarrow raise
        first = str(error).partition("\n")[0] or type(error).__name__
        raise StoreError(f"{path}: damaged: {first}") from None
    further = list(table.schema)[len(schema) :] if schema is CELLS else []
    expected = pa.schema([*schema, *(pa.field(column.name, pa.float64()) for column in further)])
    if len(set(expected.names)) < len(expected) or not table.schema.equals(expected):
        raise StoreError(f"{path}: its columns are not those of schema version {wanted}")
    return table


def _decoded(content: bytes) -> pa.Table:
    """The table of a parquet file. Raises ValueError for one that is larger in memory than any table of results.

    A page of a few bytes can hold one text a billion times. Where rows times bytes could be too many, rows are decoded
    a few at a time, and counted.
    """
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    told = file.metadata
    values = told.num_rows * told.num_columns  # columns of a group are not asked: pyarrow aborts where one is missing
    size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups))
    if values > VALUES or size > DECODED:
        raise ValueError(f"it holds {values:,} values in {size:,} bytes, more than are read")
    if told.num_rows * size <= DECODED:
        table = file.read(use_threads=False)  # a thread that lets go of `content` while Python ends aborts the process
    else:
        batches, total = [], 0
        for batch in file.iter_batches(max(1, DECODED // 64 // max(1, size)), use_threads=False):
            total += batch.nbytes
            if total > DECODED:
                raise ValueError(f"it comes to more than {DECODED:,} bytes in memory")
            batches.append(batch)
        # the schema of the file holds the metadata of before it was sealed, and that of a batch the sealed ones
        table = pa.Table.from_batches(batches, batches[0].schema if batches else file.schema_arrow).combine_chunks()
    table.validate(full=True)
    return table


class Footer(NamedTuple):
    """What the footer of a parquet file says."""

    rows: int
    metadata: dict[bytes, bytes]


def read_footer(path: Path) -> Footer | None:
    """The footer of a parquet file; None where the file is not, or no longer, one."""
    try:
        told = pq.read_metadata(pa.BufferReader(regular(path, TABLE_BYTES)))
        return Footer(told.num_rows, told.metadata or {})
    except Exception:  # whatever bytes that are no parquet make pyarrow raise
        return None


def read_seal(path: Path) -> str:
    """The seal of a table, which need not be parsed for it. Raises StoreError where the file is not what was sealed."""
    content = _whole(path)
    return _seal_at(content, _place(content))


def _whole(path: Path) -> bytes:
    """The content of a table that is as it was sealed."""
    with guarded(path):
        content = regular(path, TABLE_BYTES)
    start = _place(content)
    if start < 0 or _sealed(content, start) != content:
        raise StoreError(f"{path}: damaged: its digest is not the one that it was written with")
    return content


def _place(content: bytes) -> int:
    """Where the seal of a parquet file stands, behind its key; -1: it has none."""
    start = content.rfind(SEAL) + len(SEAL) + BETWEEN
    return start if content[start : start + 7] == BLANK[:7] and len(content) >= start + len(BLANK) else -1


def _seal_at(content: bytes, start: int) -> str:
    """The seal that stands at a place."""
    return content[start : start + len(BLANK)].decode()


def _sealed(content: bytes, start: int) -> bytes:
    """Content with its digest at a place, which is blank while the digest is taken."""
    behind = start + len(BLANK)
    digest = hashlib.sha256(content[:start])
    digest.update(BLANK)
    digest.update(memoryview(content)[behind:])
    return b"".join((content[:start], BLANK[:7], digest.hexdigest().encode(), content[behind:]))
