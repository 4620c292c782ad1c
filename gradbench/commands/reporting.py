"""`gradbench report` and `gradbench.report`: a run as one HTML file; `gradbench export`: as CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradbench.data.given import article
from gradbench.errors import UserError, near_miss, public, spoken
from gradbench.planning.selection import keys, why_none
from gradbench.planning.values import untypable
from gradbench.tables import runs
from gradbench.tables.disk import write
from gradbench.tables.selecting import selected
from gradbench.tables.store import Run
from gradbench.tables.verifying import trusted

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "report.html"  # in the folder of the run
Form = Literal["csv", "latex"]
What = Literal["cells", "matrix"]


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
    write(target, lambda file: file.write(content), inside=there.folder if path is None else None)
    return target


def file_at(path: object) -> Path:
    """A file that a caller names. Raises UserError for what is no path, and for a folder."""
    if not isinstance(path, str | PathLike) or isinstance(fspath(path), bytes) or "\0" in fspath(path):
        raise UserError(f"path: got {article(path)}, expected the path of a file")
    there = Path(path)
    if fault := untypable(fspath(path)):
        raise UserError(f"path = {fspath(path)!r} cannot name a file: {fault}")
    if there.is_dir():
        raise UserError(f"path = {there}: it is a folder, expected a file")
    if above := runs.file_above(there.absolute().parent):
        raise UserError(f"path = {there}: {above} is no folder")
    return there


def html(run: Run) -> str:
    """The report of a run as text. Raises StoreError for a damaged run."""
    from gradbench.pages.composing import rendered
    from gradbench.pages.sources import Source

    return rendered(Source.of(trusted(run)))


def exported(
    run: Run, to: Form, what: What = "cells", where: Mapping[str, Any] | None = None, columns: Collection[str] = ()
) -> str:
    """The cells of a run, or the matrix of its rules and systems, as CSV or as a table of LaTeX.

    `where` chooses cells as in a check, and `columns` their columns. CSV has all columns of the table where none is
    named; LaTeX has those in which the cells differ, and what is read first. Raises UserError for a key, a value or a
    column that no cell has, StoreError for a damaged run.
    """
    from gradbench.pages import matrix, writing
    from gradbench.pages.answers import answered
    from gradbench.pages.sources import Source

    source = Source.of(trusted(run))
    if what == "matrix":
        if where or columns:
            named = spoken(python="where and columns are", shell="--where and --columns are")
            raise UserError(f"{named} of cells: the matrix holds every rule and system")
        told = answered(source)
        return writing.csv(matrix.rows_of(told)) if to == "csv" else writing.latex_matrix(told)
    chosen = _chosen(source.cells, where or {})
    if unknown := [name for name in columns if name not in chosen]:
        raise UserError(f"columns: {unknown[0]!r} is no column of the cells{near_miss(unknown[0], chosen.columns)}")
    if to == "csv":
        return writing.csv(chosen[[*columns]] if columns else chosen)
    return writing.latex(chosen[[*columns]] if columns else chosen[writing.differing(chosen)])


def _chosen(cells: DataFrame, where: Mapping[str, Any]) -> DataFrame:
    if not where:
        return cells
    place = spoken(python="where:", shell="--where")
    rows: list[dict[str, Any]] = cells.to_dict("records")
    known = set().union(*map(keys, rows))
    for key in where:
        if key not in known:
            raise UserError(f"{place} {key}: is neither a column nor an option{near_miss(key, known)}")
    chosen = selected(cells, where)
    if chosen.empty:
        raise UserError(f"{place.removesuffix(':')}: {why_none(rows, where, 'stored')}")
    return chosen
