"""Finding runs: by path, id, prefix, suite, or `latest`."""

from __future__ import annotations

from pathlib import Path

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.tables.store import Run, write

POINTER = "latest"  # a file beside the runs of a suite that holds the id of the one last worked on


def point(folder: Path, run: Run) -> None:
    """Make a run the latest of its suite."""
    write(folder / POINTER, lambda file: file.write(run.id.encode()))


def matching(folder: Path, identity: str) -> Run | None:
    """The newest run of a suite whose records may be gone on with."""
    for path in sorted(folder.glob("*/env.json"), reverse=True):
        run = Run(path.parent)
        if run.env.get("identity") == identity:
            return run
    return None


def find(name: str, out: Path = Path("results")) -> Run:
    """The run that a name means. Raises UserError where there is none, or more than one."""
    if (Path(name) / "plan.json").is_file():
        return Run(Path(name))
    root = out / "runs"
    pointers = sorted(root.glob(f"*/{POINTER}"), key=lambda p: p.stat().st_mtime)
    if name == POINTER:
        if not pointers:
            raise UserError(f"there is no run in {root} yet; make one with: gradbench run SUITE")
        return _pointed(pointers[-1])
    if (root / name / POINTER).is_file():
        return _pointed(root / name / POINTER)
    found = [p.parent for p in root.glob("*/*/plan.json") if p.parent.name.startswith(name)]
    if len(found) > 1:
        raise UserError(f"run {name!r} is ambiguous: {', '.join(sorted(p.name for p in found))}")
    if not found:
        known = [POINTER, *(p.parent.name for p in pointers), *(p.parent.name for p in root.glob("*/*/plan.json"))]
        raise UserError(f"run {name!r} does not exist in {root}{near_miss(name, known)}")
    return Run(found[0])


def _pointed(pointer: Path) -> Run:
    run = Run(pointer.parent / pointer.read_text().strip())
    if not (run.folder / "plan.json").is_file():
        raise StoreError(f"{pointer}: names {run.folder}, which holds no run")
    return run
