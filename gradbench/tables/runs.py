"""Finding runs: by path, id, prefix, suite, suite/id, or `latest`."""

from __future__ import annotations

import itertools
import os.path
from contextlib import suppress
from pathlib import Path

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.tables.store import Run, guarded, write

POINTER = "latest"  # a file beside the runs of a suite that holds the id of the one last worked on


def point(folder: Path, run: Run) -> None:
    """Make a run the latest of its suite."""
    write(folder / POINTER, lambda file: file.write(run.id.encode()))


def new(folder: Path, name: str) -> Run:
    """A folder for a run, of its own even where another run began in the same second."""
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for i in itertools.count(1):
            path = folder / (name if i == 1 else f"{name}-{i}")
            with suppress(FileExistsError):
                path.mkdir()
                break
    return Run(path)


def matching(folder: Path, identity: str) -> Run | None:
    """The newest run of a suite whose records may be gone on with."""
    for path in sorted(folder.glob("*/env.json"), reverse=True):
        run = Run(path.parent)
        if run.env.get("identity") == identity:
            return run
    return None


def find(name: str, out: Path = Path("results")) -> Run:
    """The run that a name means. Raises UserError where there is none, or more than one."""
    if os.path.isfile(Path(name) / "plan.json"):  # unlike Path.is_file, False for a name too long for a file
        return Run(Path(name))
    root = out / "runs"
    there = [p.parent for p in root.glob("*/*/plan.json")]
    if not there:
        raise UserError(f"there is no run in {root} yet; make one with: gradbench run SUITE")
    pointers = {p.parent.name: p for p in sorted(root.glob(f"*/{POINTER}"), key=lambda p: p.stat().st_mtime)}
    if name == POINTER and pointers:
        return _pointed(list(pointers.values())[-1])
    if name in pointers:
        return _pointed(pointers[name])
    known = [(f"{p.parent.name}/{p.name}" if "/" in name else p.name, p) for p in there]
    found = [p for n, p in known if n == name] or [p for n, p in known if n.startswith(name)]
    if len(found) > 1:  # suites that began in one second may even share an id, hence SUITE/ID
        raise UserError(f"run {name!r} is ambiguous: {', '.join(sorted(f'{p.parent.name}/{p.name}' for p in found))}")
    if not found:
        raise UserError(f"run {name!r} does not exist in {root}{near_miss(name, {POINTER, *pointers, *dict(known)})}")
    return Run(found[0])


def _pointed(pointer: Path) -> Run:
    run = Run(pointer.parent / pointer.read_text().strip())
    if not (run.folder / "plan.json").is_file():
        raise StoreError(f"{pointer}: names {run.folder}, which holds no run")
    return run
