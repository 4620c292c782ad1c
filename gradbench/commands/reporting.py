"""`gradbench report` and `gradbench.report`: a run as one HTML file."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from gradbench.data.given import article
from gradbench.errors import UserError, public
from gradbench.tables import runs
from gradbench.tables.store import Run, write
from gradbench.tables.verifying import trusted

NAME = "report.html"  # in the folder of the run


@public()
def report(run: Run | str | Path, path: str | Path | None = None, *, out: str | Path = "results") -> Path:
    """Write the report of a run: one HTML file, which opens from disk without a network; its path.

    `run` is a run, a folder, or a name as `gradbench check` takes it, looked for in the results `out`. The file is
    `report.html` in the folder of the run, unless `path` names another one. It is made from the tables alone, and is
    the same to the byte when it is made again. Raises UserError for what is no run and for a path that cannot be
    written to, StoreError for a damaged run.
    """
    there = run if isinstance(run, Run) else runs.find(str(run), Path(out))
    target = there.folder / NAME if path is None else file_at(path)
    content = html(there).encode()
    write(target, lambda file: file.write(content))
    return target


def file_at(path: object) -> Path:
    """A file that a caller names. Raises UserError for what is no path, and for a folder."""
    if not isinstance(path, str | PathLike) or isinstance(fspath(path), bytes) or "\0" in fspath(path):
        raise UserError(f"path: got {article(path)}, expected the path of a file")
    there = Path(path)
    if there.is_dir():
        raise UserError(f"path = {there}: it is a folder, expected a file")
    if above := runs.file_above(there.absolute().parent):
        raise UserError(f"path = {there}: {above} is no folder")
    return there


def html(run: Run) -> str:
    """The report of a run as text. Raises StoreError for a damaged run."""
    from gradbench.pages.page import rendered
    from gradbench.pages.sources import Source

    return rendered(Source.of(trusted(run)))
