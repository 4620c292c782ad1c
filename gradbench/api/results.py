"""Suites and runs from Python: `gradbench.suite(grid)` and `gradbench.run(suite)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.commands import running
from gradbench.data.given import article, table
from gradbench.errors import UserError, near_miss, public
from gradbench.planning import registry, suites, values
from gradbench.planning.overrides import ITEMS, of_overrides
from gradbench.planning.suites import Suite
from gradbench.tables.schema import IDENTITY
from gradbench.tables.store import Run
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.api.explained import Explained
    from gradbench.commands.progress import CellWatch
    from gradbench.planning.plugins import Names
    from gradbench.tables.findings import Finding
    from gradbench.tables.verdict import Verdict


def _of_grid(name: str) -> str:
    """Where a key of a grid belongs in a call of `suite`."""
    return f"{name!r} is a key of a grid: suite({{{name!r}: ...}})" if name in (*ITEMS, *COORDINATES) else ""


@public(_of_grid)
def suite(
    grid: Mapping[str, object] | Sequence[Mapping[str, object]],
    *,
    check: Mapping[str, object] | Sequence[Mapping[str, object]] = (),
    table: Mapping[str, object] | Sequence[Mapping[str, object]] = (),
    thresholds: Mapping[str, object] | None = None,
    name: str = "session",
    about: str = "",
) -> Suite:
    """A suite as a suite file has it: a grid or a list of grids, with checks, printed tables and thresholds.

    A grid, a check and a table are a table of keys each, and one of them may stand without a list around it. Systems
    and estimators are names, tables of a name with options, or what `gradbench.system` and `gradbench.estimator` made.
    A knob of a system is a key of its grid. Raises UserError for what is not known, with the key.
    """
    if isinstance(grid, str):
        raise UserError("suite: got a str, expected a table of lists by name; gradbench.run takes a suite by its name")
    content = {
        "name": name,
        "about": about,
        "grid": [_written(g) for g in _tables(grid, "grid")],
        "check": _tables(check, "check"),
        "table": _tables(table, "table"),
        "thresholds": _table(thresholds, "thresholds"),
    }
    return suites.parse(content, "suite")


def _tables(given: object, argument: str) -> list[dict[str, object]]:
    """The tables of an argument that takes one or a list of them."""
    listed = [given] if isinstance(given, Mapping) else given
    if not isinstance(listed, list | tuple):
        raise UserError(f"suite: {argument}: got {article(given)}, expected a table of keys, or a list of tables")
    return [_table(entry, f"{argument}[{i}]") for i, entry in enumerate(listed)]


def _table(given: object, argument: str) -> dict[str, object]:
    return {str(k): v for k, v in table(given, f"suite: {argument}", "a table of keys").items()}


def _written(grid: Mapping[str, object]) -> dict[str, object]:
    """A grid as a suite file would have it: items as tables of name and options."""
    return {k: registry.written(v) if k in ITEMS else v for k, v in grid.items()}


class Results(Run):
    """A run with its figures and checks. Its tables are pandas frames: cells, params, blocks, budget."""

    @property
    def run(self) -> Run:
        """The run without figures and checks."""
        return Run(self.folder)

    @public()
    def plot(self, *names: str, folder: str | Path | None = None) -> dict[str, Figure]:
        """Figures by name, all of them where none is named; a figure with nothing to show is left out.

        They are written as SVG and PNG where a folder is named. Raises UserError for a name that no figure has.
        """
        from gradbench.plots import drawn, written

        return written(drawn(self, names), folder)

    @public()
    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of the run, one HTML file, as `gradbench.report` does; its path.

        It is `report.html` in the folder of the run, unless `path` names another file. Raises UserError for a path that
        cannot be written to, StoreError for a damaged run.
        """
        from gradbench.commands.reporting import report

        return report(self, path)

    @public()
    def check(
        self,
        *,
        baseline: str | Path | None = None,
        tolerance: float | None = None,
        floor: Mapping[str, float] | None = None,
        **claim: Any,
    ) -> Verdict | Finding:
        """The verdict of the suite; or the finding of one check, with the keys that a check of a suite file has.

        The verdict is that of `gradbench check`: it compares with the baseline of the suite where there is one.
        `baseline` is the file of another one, or "none". `tolerance` is what a number may lose against it, 1e-3 where
        its noise is not more; of numbers above 1 it is a share. `floor` is what no settled cell may cross, by metric,
        unless it did in the baseline, as in `{"cosine_min": 0.9}`.

        check(metric=, min=, max=, at=, reduce=, against=, status=, where=, **where) is one check, of this run alone:
        every other key is one of `where`. Raises UserError for a key or a value that no cell has, for a baseline that
        is not there and for a bound that is none. A verdict says that a run is damaged; one check raises StoreError.
        """
        from gradbench.commands.claiming import refuse_hopeless
        from gradbench.planning.plans import verify_items
        from gradbench.tables.baselines import demanded
        from gradbench.tables.checks import evaluate
        from gradbench.tables.verdict import judge
        from gradbench.tables.verifying import trusted

        held = {"baseline": baseline, "tolerance": tolerance, "floor": floor}
        named = [name for name, value in held.items() if value is not None]
        if not claim:
            demand, unheld = demanded(self, _path(baseline), *_bounds(tolerance, floor))
            return judge(self, demand=demand, unheld=unheld)
        keys = suites.Check.model_fields
        if not claim.keys() & keys:
            first, known = next(iter(claim)), {*held, *keys} - {"name"}
            raise UserError(f"check: {first!r} is no key of a check, and no metric is named{near_miss(first, known)}")
        if named:
            raise UserError(f"check: {named[0]} is of the verdict; {next(iter(claim))!r} asks for one check alone")
        more, where = {k: v for k, v in claim.items() if k not in keys}, dict(claim.get("where") or {})
        if twice := more.keys() & where.keys():
            raise UserError(f"check: {min(twice)} is given twice, in where and as a keyword")
        asked = {k: v for k, v in claim.items() if k in keys} | {"name": "check", "where": where | more}
        content = suites.parse_check(asked, "check")
        refuse_hopeless([content], "check")
        cells = trusted(self).cells
        planned = cells.loc[cells["status"] != Status.SKIPPED, list(IDENTITY)]  # a result chooses no cell
        verify_items(planned.to_dict("records"), "planned", [("check", [content])], "check")
        return evaluate(content, cells)

    @public()
    def explain(
        self, cell: str | None = None, *, worst: int | None = None, **where: Any
    ) -> Explained | list[Explained]:
        """Why a cosine is what it is: of the cell whose key starts with `cell`, or that matches `where`.

        `worst` takes so many of the settled cells, those with the smallest cosine of a parameter, and gives a list.
        Raises UserError where no cell is meant, or several without `worst`.
        """
        from gradbench.api.explained import Explained
        from gradbench.commands.explaining import choose
        from gradbench.commands.explaining import explain as explain_row

        taken = [Explained(explain_row(self, row)) for row in choose(self, cell, where, worst)]
        return taken[0] if worst is None else taken

    def __repr__(self) -> str:
        statuses = ", ".join(f"{n} {status}" for status, n in self.cells["status"].value_counts().items())
        return f"{self.folder}: {len(self.cells):,} cells, {statuses}"


def _path(baseline: object) -> str | Path | None:
    """The file that `baseline` names. Raises UserError for what is no path."""
    if baseline is None or (isinstance(baseline, str | Path) and "\0" not in str(baseline)):
        return baseline
    raise UserError(f"baseline: got {article(baseline)}, expected the path of a baseline, or the word none")


def _bounds(tolerance: object, floor: object) -> tuple[float | None, dict[str, float]]:
    """The tolerance, None where none is given, and floors by metric. Raises UserError for what is no number."""
    floors = table(floor, "floor", "a table of numbers by metric")
    given = {"tolerance": tolerance} if tolerance is not None else {}
    numbers: dict[str, float] = {}
    for name, value in (given | {f"floor {metric}": v for metric, v in floors.items()}).items():
        try:
            numbers[name] = values.number(value)
        except ValueError as error:
            raise UserError(f"{name} = {error}") from None
    return numbers.get("tolerance"), {str(metric): numbers[f"floor {metric}"] for metric in floors}


@public(of_overrides)
def run(
    suite: str | Path | Suite,
    *,
    out: str | Path = "results",
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
    engine: str = "auto",
    memory: str | None = None,
    certify: bool = False,
    profile: bool = False,
    fresh: bool = False,
    timeout: str | float | None = None,
    retry: str | None = None,
    max_failures: int | None = None,
    stop_after: str | float | None = None,
    plugins: Names = (),
    cluster: object = None,
    shard: str | None = None,
    watch: CellWatch | None = None,
) -> Results:
    """Run a suite, or resume a run of it that was cut off; its results.

    `suite` is a path, the name of a shipped suite, or what `gradbench.suite` made. `plugins` are Python files and
    modules whose systems and rules have names from then on, as with --plugin. `cluster` is "local", an address, a
    scheduler file, or a client or a cluster of dask, whose workers then measure. `shard`, as "2/8", measures a share of
    the suite. The other arguments are those of
    `gradbench.commands.running.run`. Raises UserError before anything runs, StoreError where the results cannot be
    written.
    """
    named: dict[str, Any] = {"out": out, "device": device, "overrides": overrides, "engine": engine, "memory": memory}
    more: dict[str, Any] = {"certify": certify, "profile": profile, "fresh": fresh, "plugins": plugins, "watch": watch}
    more |= {"timeout": timeout, "retry": retry, "max_failures": max_failures, "stop_after": stop_after}
    more |= {"cluster": cluster, "shard": shard}
    return Results(running.run(suite, **named, **more).folder)
