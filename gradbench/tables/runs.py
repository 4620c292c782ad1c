"""The folders of runs: making a new one, and finding one by path, id, prefix, suite, suite/id, or `latest`."""

from __future__ import annotations

import fcntl
import itertools
import os.path
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from gradbench.data.given import article
from gradbench.errors import StoreError, UserError, near_miss
from gradbench.planning.regular_files import regular
from gradbench.planning.values import untypable
from gradbench.tables.disk import UNCHANGED, guarded, names_in, write
from gradbench.tables.store import Run

LONGEST = 4096  # bytes of the file with the id
NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}(-\d+)?")  # of the folder of a run
POINTER = "latest"  # a file in the folder of a suite: the id of the run that was worked on last


def results_folder(out: object) -> Path:
    """The folder of results that a caller names. Raises UserError for what is no path, and for what is no folder."""
    if not isinstance(out, str | os.PathLike) or isinstance(os.fspath(out), bytes):
        raise UserError(f"out: got {article(out)}, expected the path of a folder")
    if "\0" in os.fspath(out):
        raise UserError(f"out = {os.fspath(out)!r} cannot be a path: it holds a zero byte")
    if fault := untypable(os.fspath(out)):
        raise UserError(f"out = {os.fspath(out)!r} cannot name a folder of results: {fault}")
    if there := file_above(Path(out)):
        raise UserError(f"out = {os.fspath(out)}: {there} is no folder, expected one of results")
    return Path(out)


def file_above(folder: Path) -> Path | None:
    """What lies where a folder should be, the path itself included; None where the folder can be made.

    Raises StoreError where that cannot be seen.
    """
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), None)
    if there is None:
        return None
    with guarded(there):
        try:
            return None if stat.S_ISDIR(os.stat(there).st_mode) else there
        except FileNotFoundError:  # a link that leads nowhere
            return there


def point(folder: Path, run: Run) -> None:
    """Make a run the latest of its suite."""
    write(folder / POINTER, lambda file: file.write(run.id.encode()), inside=folder)


def new(folder: Path, identity: str) -> Run:
    """A new folder for a run, named by the time and the identity; numbered where another run has this name."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{identity[:4]}"
    with guarded(folder, UNCHANGED):
        folder.mkdir(parents=True, exist_ok=True)
        for i in itertools.count(1):
            path = folder / (name if i == 1 else f"{name}-{i}")
            with suppress(FileExistsError):
                path.mkdir()
                break
    return Run(path)


def resumed_or_begun(
    folder: Path, identity: str, begin: Callable[[Run], object], tell: Callable[[str], object], *, fresh: bool
) -> Run:
    """The run of a suite, or the training of a file, to go on with; else a new one, which `begin` writes.

    Of two processes that start at once, the second takes the run of the first. `tell` is that of `matching`. With
    `fresh` there is always a new one.
    """
    with guarded(folder, UNCHANGED):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # file systems of clusters may have no locks: two starts may make two runs there
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in folder.iterdir():  # nobody begins a run while this process has the lock
                if NAME.fullmatch(path.name):
                    Run(path).remove_unbegun()
        run = None if fresh else matching(folder, identity, tell)
        if run is None:
            run = new(folder, identity)
            begin(run)
        return run
    finally:
        os.close(lock)


def begun(folder: Path) -> list[Run]:
    """The runs of a suite that have begun, the newest first. Raises StoreError where the folder cannot be read."""
    paths = [folder / name for name in reversed(names_in(folder))]
    return [Run(path) for path in paths if os.path.lexists(path / "env.json")]


def matching(folder: Path, identity: str, tell: Callable[[str], object] = lambda text: None) -> Run | None:
    """The newest run of a suite that has this identity, and so may be resumed; None where there is none.

    A run whose environment or plan is damaged is passed over, and `tell` is called with why.
    """
    for run in begun(folder):
        try:
            if run.env.get("identity") == identity and _sound(run):
                return run
        except StoreError as error:
            tell(f"gradbench: this run is passed over: {error}")
    return None


def _sound(run: Run) -> bool:
    """True. Raises StoreError where the plan of a run, or the configuration of a training, is damaged."""
    if os.path.lexists(run.folder / "config.json"):
        run.sealed("config.json")
    else:
        _ = run.origin  # of the plan; a run that goes on needs it and need not parse the plan again
    return True


def find(name: str, out: Path = Path("results")) -> Run:
    """The run that a name means.

    Raises UserError where there is none, or more than one; StoreError where a folder that may hold it cannot be read.
    """
    if not name:
        raise UserError("the name of the run is empty: name a path, an id, a suite, or latest")
    if fault := untypable(name):
        raise UserError(f"run {name!r} cannot be the name of a run: {fault}")
    root = out / "runs"
    there, pointing, unread = _seen(root)
    pointers = {p.parent.name: p for p in sorted(pointing, key=lambda p: p.lstat().st_mtime)}
    if os.path.isfile(Path(name) / "plan.json"):  # unlike Path.is_file, False for a name too long for a file
        if name in pointers or (name == POINTER and pointers):
            ways = f"write {os.path.join('.', name)} for the folder, or the path of the other run"
            raise UserError(
                f"run {name!r} is ambiguous: a folder here is a run, and {root} has one of that name; {ways}"
            )
        return Run(Path(name))
    if not there and unread:
        raise unread[0]
    if not there:
        raise UserError(f"there is no run in {root} yet; make one with: gradbench run SUITE")
    if name == POINTER and pointers:
        return _pointed(list(pointers.values())[-1])
    if name in pointers:
        return _pointed(pointers[name])
    known = [(f"{p.parent.name}/{p.name}" if "/" in name else p.name, p) for p in there]
    meant = [p for n, p in known if n == name] or [p for n, p in known if n.startswith(name)]
    if len(meant) > 1:  # runs of two suites that began in one second may even share an id, hence SUITE/ID
        raise UserError(f"run {name!r} is ambiguous: {', '.join(sorted(f'{p.parent.name}/{p.name}' for p in meant))}")
    if not meant and unread:
        raise unread[0]
    if not meant and (inside := sorted(p for p in there if p.parent.name == name)):
        raise UserError(
            f"run {name!r}: of the runs in {root / name} none is the latest, since a shard never is; name one, such as "
            f"{inside[-1].name}, or merge the shards"
        )
    if not meant:
        word = name.removesuffix(".toml")  # a suite file is no run, but its suite may have some
        raise UserError(f"run {name!r} does not exist in {root}{near_miss(word, {POINTER, *pointers, *dict(known)})}")
    return Run(meant[0])


def _seen(root: Path) -> tuple[list[Path], list[Path], list[StoreError]]:
    """The folders of all runs, the files that name the latest ones, and why something there could not be read."""
    there, pointing, unread = [], [], []
    for suite in names_in(root):
        try:
            for name in names_in(root / suite):
                path = root / suite / name
                if name == POINTER:
                    pointing.append(path)
                elif _lies(path / "plan.json"):
                    there.append(path)
        except StoreError as error:
            unread.append(error)
    return there, pointing, unread


def _lies(path: Path) -> bool:
    """Whether a file is there. Raises StoreError where that cannot be seen."""
    with guarded(path):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def _pointed(pointer: Path) -> Run:
    with guarded(pointer):
        name = regular(pointer, LONGEST).decode(errors="replace").strip()
    if Path(name).name != name or name == ".." or untypable(name):
        raise StoreError(f"{pointer}: names {name!r}, which is no run beside it")
    run = Run(pointer.parent / name)
    if not (run.folder / "plan.json").is_file():
        raise StoreError(f"{pointer}: names {run.folder}, which holds no run")
    return run
