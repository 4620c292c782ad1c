"""The command line. Data go to stdout, messages to stderr; heavy modules are imported only where they are needed."""

from __future__ import annotations

import codecs
import difflib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gradbench.commands.progress import say
from gradbench.errors import StoreError, UserError, from_shell
from gradbench.vocabulary.exit import Exit
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.commands.explaining import Explanation
    from gradbench.commands.reporting import Form, What
    from gradbench.planning.overrides import Overrides
    from gradbench.tables.comparing import Comparison
    from gradbench.tables.findings import Finding
    from gradbench.tables.snapshots import Snapshot
    from gradbench.tables.store import Run

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How faithful is a gradient estimator to backpropagation through time?",
)

baselines = typer.Typer(help="What a suite read once, for `check` to compare with.")
app.add_typer(baselines, name="baseline")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Markdown = Annotated[
    str | None, typer.Option(metavar="PATH|-", help="Write it as Markdown, for a pull request; - prints it.")
]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Path, id, prefix of an id, suite, suite/id, or latest.")]
SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="Name of a shipped suite, or a TOML file.")]
PLUGIN: dict[str, Any] = {"metavar": "FILE.py|MODULE", "help": "Python whose systems and rules have names then."}
Plugins = Annotated[list[str] | None, typer.Option("--plugin", callback=lambda names: _load_plugins(names), **PLUGIN)]
# the command that has this one loads the plugins itself, after it has started a worker process
Unloaded = Annotated[list[str] | None, typer.Option("--plugin", **PLUGIN)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=V,...", help="Replace a key of every grid.")]


USAGE_ERROR: Any = typer.BadParameter.__base__  # the base of all mistakes in a command line
KEY = re.compile(r"[0-9a-f]{16}")  # of a cell
NARROWEST = 40  # characters of a line: a terminal that has fewer breaks lines itself
WIDEST = 100  # of `list`, where stdout is no terminal
NAMES = (14, 24)  # letters of the column of names in `list`, at least and at most
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # why a file cannot be written, whatever its name is


def _put(text: object, *, flush: bool = False) -> None:
    """Print data on stdout. A reader that leaves, as `head` does, is no failure: the rest is not printed."""
    try:
        print(text, flush=flush)
    except BrokenPipeError:
        _drop(sys.stdout)


def _drop(stream: Any) -> None:
    """Send what is left in a stream, and what follows, to the null device: else it is flushed again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _width() -> int | None:
    """Characters of a line: those of the terminal or of $COLUMNS. None: stdout is neither, and lines are not folded."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return None
    return max(NARROWEST, shutil.get_terminal_size().columns)


def _load_plugins(names: list[str] | None) -> list[str]:
    """The callback of --plugin: what the plugins register has its name before the command begins."""
    if names:
        from gradbench.planning import plugins

        plugins.load(names)
    return names or []


def _version(asked: bool) -> None:
    if asked:
        from gradbench import __version__

        _put(f"gradbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command("list")
def list_(plugin: Plugins = None, as_json: Json = False) -> None:
    """Systems, estimators, suites and trainings."""
    from gradbench.planning import files, registry

    suites, trainings = files.shipped(files.SUITES), files.shipped(files.CONFIGS)
    items = {
        "systems": [(n, _summary(c)) for n, c in registry.known_systems().items()],
        "estimators": [
            (n, f"{_summary(c)} Exact when: {c().claim.prose(c.uses)}.") for n, c in registry.known_estimators().items()
        ],
        "suites": [(n, files.about(p)) for n, p in suites.items()],
        "trainings": [(n, files.about(p)) for n, p in trainings.items()],
    }
    if as_json:
        _put(json.dumps({kind: dict(rows) for kind, rows in items.items()}, indent=1))
        return
    least, most = NAMES
    column = min(max([least, *(len(name) for rows in items.values() for name, _ in rows)]), most)
    for kind, rows in items.items():
        _put(kind)
        for name, text in rows:
            _put(_entry(f"  {name}", text, column + 3, _width() or WIDEST))
    for kind, paths in (("suites", suites), ("trainings", trainings)):
        say(f"{kind} from {', '.join(dict.fromkeys(str(path.parent) for path in paths.values()))}")
    say("next: gradbench show NAME, gradbench plan SUITE")


def _entry(name: str, text: str, column: int, width: int | None) -> str:
    """A name, and beside it a text that is folded in its column; below it where the name is too long."""
    from gradbench.tables.text import wrapped

    lines = wrapped(" " * column + " ".join(text.splitlines()), width) or [""]
    if len(name) >= column or (width is not None and len(lines[0]) > width):
        return "\n".join([name, *lines])
    return "\n".join([name + lines[0][len(name) :], *lines[1:]]).rstrip()


@app.command()
def show(name: str, plugin: Plugins = None, as_json: Json = False) -> None:
    """A system or an estimator: definition, options, defaults, source."""
    from dataclasses import fields

    from gradbench.planning import files, registry
    from gradbench.tables.text import wrapped

    known: dict[str, Any] = {**registry.known_systems(), **registry.known_estimators()}
    if name not in known:
        first = name.split()[:1]
        if first and first[0] in known:
            raise UserError(f"{name!r}: show takes a name without options: gradbench show {first[0]}")
        if name in files.shipped(files.SUITES):
            raise UserError(f"{name!r} is a suite; what it would do: gradbench plan {name}")
        if name in files.shipped(files.CONFIGS):
            raise UserError(
                f"{name!r} is a training; gradbench train {name} runs it, and gradbench list says what it does"
            )
        raise UserError(f"{name!r} is neither a system nor an estimator{registry.near_name(name, known)}")
    cls = known[name]
    options = {f.name: f.default for f in fields(cls)}
    facts: dict[str, Any] = {"name": name, "definition": _definition(cls), "options": options, "source": cls.source}
    facts["uses"] = sorted(cls.uses)
    if name in registry.known_systems():
        facts |= {"conservative": cls.conservative, "defaults": dict(cls.defaults), "parameters": cls().shapes}
    else:
        claim = cls().claim
        facts |= {"exact_when": claim.prose(cls.uses), "bias_order": claim.order}
    if as_json:
        _put(json.dumps(facts, indent=1))
        return
    _put(f"{name}\n")
    for line in facts.pop("definition").splitlines():
        _put("\n".join(wrapped(line, _width(), 2)))
    _put("")
    for key, value in facts.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        _put(_entry(key, ", ".join(text) if isinstance(text, list) else str(text), 14, _width()))


@app.command("plan")
def plan_(
    suite: SuiteName,
    out: Out = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where it would run.")] = "auto",
    set_: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """What a suite would do: cells, problems, families, evaluations, skips, and what is done. Runs nothing."""
    from gradbench.commands.coverage import standing
    from gradbench.commands.running import prepare
    from gradbench.planning import files

    loaded, planned = prepare(suite, _overrides(set_))
    there = standing(planned, out, device)
    if as_json:
        _put(json.dumps(planned.to_json() | {"standing": there and there.to_json()}, indent=1))
        return
    _put(_entry(f"{planned.suite}:", loaded.about, len(planned.suite) + 2, _width()))
    for name, text in planned.summary.items():
        _put(_entry(f"  {name}", text, 23, _width()))
    for reason, n in planned.skip_reasons.most_common():
        _put(_entry("  skipped", f"{n:,}: {reason}", 23, _width()))
    if there is not None:
        _put(_entry("  stale" if there.stale else "  so far", str(there), 23, _width()))
    say(f"suite {files.find(suite, files.SUITES, 'suite')}")
    options = [f" --set {shlex.quote(pair)}" for pair in set_ or ()] + [
        f" --plugin {_argument(p)}" for p in plugin or ()
    ]
    say(f"next: gradbench run {''.join(options).lstrip()}{' ' if options else ''}{_argument(suite)}")


@app.command()
def run(
    suite: SuiteName,
    out: Out = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64, in every grid.")] = None,
    set_: Set = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager (a problem at a time), batched, compiled or fused (kernels).")
    ] = "auto",
    memory: Annotated[str | None, typer.Option(help="What packs may take: 80% of what is free, or 24GiB.")] = None,
    certify: Annotated[bool, typer.Option("--certify", help="Eigenvalues and condition of every free state.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write where the time went into the run folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, even where a run could be gone on with.")] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="What a problem may take, as 30s; then its cells say error.")
    ] = None,
    retry: Annotated[
        str | None, typer.Option(metavar="failed", help="Measure again the cells that say error or oom.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", help="Begin nothing more once so many cells have failed.")
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin nothing more after this time, as 8m or 1h30m.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="local|ADDRESS|FILE", help="Measure on the workers of dask: here, or at tcp://HOST:PORT."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Measure a share of equal cost, as 2/8; gradbench merge joins them."),
    ] = None,
    plugin: Unloaded = None,
) -> None:
    """Run a suite, or go on with it where it was cut off."""
    from gradbench.commands.archiving import expected
    from gradbench.commands.progress import watcher
    from gradbench.commands.running import run as execute
    from gradbench.planning import files

    _check_dtypes(dtype)
    overrides = _overrides([*(set_ or ()), *([f"dtype={dtype}"] if dtype else ())])
    with watcher(f"suite {files.find(suite, files.SUITES, 'suite')}") as watch:
        done = execute(
            suite,
            out=out,
            device=device,
            overrides=overrides,
            engine=engine,
            memory=memory,
            certify=certify,
            profile=profile,
            fresh=fresh,
            timeout=timeout,
            retry=retry,
            max_failures=max_failures,
            stop_after=stop_after,
            plugins=plugin or (),
            cluster=cluster,
            shard=shard,
            watch=watch,
        )
    statuses = done.cells["status"].value_counts()
    for status, n in statuses.items():
        _put(f"  {status:<16} {n:<7,} {Status(status).prose}")
    _put(done.folder)
    if profile:
        _put(done.folder / "profile" / "table.txt")
    plan = done.plan
    if not plan["cells"]:
        say("gradbench: every cell of this suite is skipped: nothing was measured")
        raise typer.Exit(Exit.NOTHING)
    planned = expected(plan)
    if missing := planned - int(statuses.sum()):
        say(f"{missing} of {planned} cells are not measured yet")
        say("next: the same command goes on with them")
        raise typer.Exit(Exit.INCOMPLETE)
    incomplete = int(sum(n for s, n in statuses.items() if Status(s).incomplete))
    if incomplete and not done.claims["allow_incomplete"]:
        rows = done.cells
        first = rows[rows["status"].isin([s for s in Status if s.incomplete])].iloc[0]
        say(f"{incomplete} of {planned} cells were not measured; first: {first['reason']}")
        say("next: the same command with --retry failed tries them again")
        raise typer.Exit(Exit.INCOMPLETE)


@app.command()
def check(
    run: RunName = "latest",
    out: Out = Path("results"),
    deep: Annotated[bool, typer.Option("--deep", help="Make the tables again from the records, and compare.")] = False,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Its baseline, or none; left out: that of the suite, where there is one."),
    ] = None,
    tolerance: Annotated[
        str | None, typer.Option(metavar="X", help="What a number may lose against the baseline; 1e-3 by default.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=V,...", help="What no settled cell may cross, unless the baseline did."),
    ] = None,
    plugin: Plugins = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write it as JUnit XML, which GitHub, GitLab and Jenkins read.")
    ] = None,
    markdown: Markdown = None,
    as_json: Json = False,
) -> None:
    """Verify a run, print its tables, evaluate checks, compare with a baseline; the last line is the verdict."""
    from gradbench.tables.baselines import demanded
    from gradbench.tables.junit import verdict_junit
    from gradbench.tables.markdown import verdict_markdown
    from gradbench.tables.verdict import judge

    _one_on_stdout(markdown, as_json)
    target, width = _target(run, out), _width()
    demand, unheld = demanded(target, baseline, **_bounds(tolerance, floor), out=out, told="--{}")
    verdict = judge(target, deep=deep, demand=demand, unheld=unheld)
    if verdict.unwritten:
        say(f"gradbench: the verdict is not stored: {verdict.unwritten}")
    if junit is not None:
        _write(junit, verdict_junit(verdict))
    if _put_markdown(markdown, verdict_markdown(verdict)):
        raise typer.Exit(verdict.code)
    if as_json:
        _put(json.dumps(verdict.to_json(), indent=1))
        raise typer.Exit(verdict.code)
    if verdict.snapshot is not None and verdict.code is not Exit.STORE:
        _print_cells(verdict.snapshot, width)
    _put_findings(verdict.findings, width)
    if verdict.unheld and verdict.code is not Exit.STORE:
        _put(_entry("  NOTE", verdict.unheld, 8, width))
    stored = [] if verdict.unwritten else [str(target.folder / "verdict.json")]
    _put(_one_or_two_lines([verdict.line, *stored], "  ", width, reverse=True))
    raise typer.Exit(verdict.code)


@app.command("verify")
def verify_(run: RunName = "latest", out: Out = Path("results"), as_json: Json = False) -> None:
    """Prove a run complete and undamaged: every file is read, and the tables are made again from the records."""
    from gradbench.commands.archiving import prove

    proof = prove(_target(run, out))
    if as_json:
        _put(json.dumps(proof.to_json(), indent=1))
        raise typer.Exit(proof.code)
    _put_findings(proof.findings, _width())
    _put(proof.line)
    raise typer.Exit(proof.code)


@app.command("merge")
def merge_(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="All shards of a run, each named as any run is.")],
    out: Out = Path("results"),
) -> None:
    """Put the shards of a run together: every cell once, of one identity, or nothing is written."""
    from gradbench.commands.merging import merged
    from gradbench.tables.runs import results_folder

    done, proof = merged([_target(name, out) for name in run], results_folder(out))
    say(proof.line)
    _put(done.folder)
    raise typer.Exit(proof.code)


@app.command("pack")
def pack_(
    run: RunName = "latest",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The archive; SUITE-ID.tar.gz by default."),
    ] = None,
    out: Out = Path("results"),
) -> None:
    """Verify a run and write it into one archive, the same to the byte each time."""
    from gradbench.commands.archiving import ENDING, indexed, pack

    target = _target(run, out)
    index, proof = indexed(target)
    path = Path(f"{index.suite}-{index.run}{ENDING}") if output is None else output
    _typable(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write to, and this is a folder")
    with _named(path):
        pack(target, index, path)
    say(proof.line)
    _put(path)


@app.command("unpack")
def unpack_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of gradbench pack.")],
    out: Out = Path("results"),
) -> None:
    """Check an archive and put its run among the results."""
    from gradbench.commands.archiving import unpack
    from gradbench.tables.runs import results_folder

    done, proof = unpack(file, results_folder(out))
    say(proof.line)
    _put(done.folder)


def _put_findings(findings: Iterable[Finding], width: int | None) -> None:
    """Print what was checked, a line each."""
    for finding in findings:
        _put(_entry(f"  {finding.result.upper()}", f"{finding.heading}  {finding.detail}", 8, width))


def _say_standing(run: Run) -> None:
    """Say of a run that is not finished whether a process works on it."""
    if run.manifest is None:
        say(f"{run.folder}: is not finished: {run.standing}")


def _one_on_stdout(markdown: str | None, as_json: bool) -> None:
    """Raise UserError where two forms are to be printed."""
    if markdown == "-" and as_json:
        raise UserError("--markdown - and --json: both are printed; write the Markdown to a file")


def _put_markdown(path: str | None, text: str) -> bool:
    """Write Markdown where it is asked for; whether it was printed, in place of anything else."""
    if path == "-":
        _put(text.removesuffix("\n"))
        return True
    if path is not None:
        _write(Path(path), text)
    return False


def _write(path: Path, text: str) -> None:
    """Write a file that is named on the command line. A device, a pipe or a link is written to, and not replaced."""
    from gradbench.tables.disk import guarded, write

    content = text.encode("utf-8", "backslashreplace")
    _typable(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write to, and this is a folder")
    with _named(path):
        if path.exists() and not path.is_file():
            with guarded(path):
                path.write_bytes(content)
        else:
            write(path.resolve(), lambda file: file.write(content))


def _typable(path: Path) -> None:
    """Raise UserError for the name of a file that a shell or a terminal takes for something else."""
    from gradbench.planning.values import untypable

    if fault := untypable(str(path)):
        raise UserError(f"{str(path)!r} cannot name a file: {fault}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside, what is written is named on the command line: that it cannot be says nothing of the results.

    A disk that is full stays an OSError, as it is behind stdout.
    """
    from gradbench.tables.runs import file_above

    try:
        yield
    except StoreError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        if cause.errno in FULL:
            raise OSError(cause.errno, f"{path}: {cause.strerror}") from None
        above = file_above(path.absolute().parent)
        why = f"{above} is no folder" if above else cause.strerror
        raise UserError(f"{path}: cannot be written: {why}") from None


@baselines.command("set")
def set_baseline(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs of one suite, named as in check.")],
    out: Out = Path("results"),
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD,...", help="Take what is partial, dirty, damaged, foreign, failing or disagreeing."),
    ] = None,
) -> None:
    """Make runs the baseline of their suite: the median of every number, and its spread as noise."""
    from gradbench.tables.baselines import set_baseline as store

    _put(store([_target(run, out) for run in runs], out, _words(allow) or ()))


def _words(given: list[str] | None) -> list[str] | None:
    """The words of an option that is given with commas or several times; None where it is not given."""
    return None if given is None else [word.strip() for text in given for word in text.split(",")]


def _bounds(tolerance: str | None, floors: list[str] | None) -> dict[str, Any]:
    """What --tolerance and --floor say, in numbers. Raises UserError for what is none."""
    named = {} if tolerance is None else _numbers([f"tolerance={tolerance}"], "--tolerance")
    if len(named) > 1:
        raise UserError(f"--tolerance {tolerance}: expected one number")
    return {**named, "floors": _numbers(floors, "--floor")}


def _numbers(pairs: list[str] | None, option: str) -> dict[str, float]:
    from gradbench.planning.values import number

    numbers = {}
    for name, value in _settings(pairs, option).items():
        try:
            numbers[name] = number(value)
        except ValueError as error:
            raise UserError(f"{option} {'' if option == f'--{name}' else f'{name} = '}{error}") from None
    return numbers


def _print_cells(run: Snapshot, width: int | None) -> None:
    """The tables of a suite, and the causes of errors."""
    from gradbench.planning.suites import Table
    from gradbench.tables.text import show_causes, show_table

    if not run.finished:
        before = "" if run.binds else "; or it was made before tables had digests"
        say(f"{run.folder}: judged by its records: {run.standing}{before}")
    if not run.binds:
        say(f"{run.folder}: was made before records and checks said of which run they are: they are taken as its own")
    for table in run.claims.get("table", ()):
        _put(f"{show_table(Table(**table), run.cells, width)}\n")
    if causes := show_causes(run.cells, width):
        way_on = ["  why, and what helps:", f"gradbench explain {run.id} --worst 1"]
        _put(f"{causes}\n{_one_or_two_lines(way_on, ' ', width)}\n")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, named as in check.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run that is compared with it.")],
    across: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V,W", help="Pair two values of a coordinate or an option.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="Metrics; left out: all that have a direction.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw it too: a .png or .svg, or a folder for both.")
    ] = None,
    out: Out = Path("results"),
    markdown: Markdown = None,
    as_json: Json = False,
) -> None:
    """Two runs cell by cell: what changed, and what is worse than noise."""
    from gradbench.commands.comparing import compare as compare_runs
    from gradbench.tables.markdown import comparison_markdown

    _one_on_stdout(markdown, as_json)
    runs = (_target(a, out), _target(b, out))
    _figure_file(figure)
    result = compare_runs(*runs, metrics=_words(metric), across=_settings(across, "--across") or None)
    if figure is not None:
        _draw_comparison(result, runs, figure)
    if _put_markdown(markdown, comparison_markdown(result)):
        raise typer.Exit(result.code)
    if as_json:
        _put(json.dumps(result.to_json(), indent=1))
        raise typer.Exit(result.code)
    for name, (first, second) in result.environment.items():
        _put(_entry(f"  {name}", f"{first} -> {second}", 14, _width()))
    if len(result.table):
        _put(result.table.to_string(index=False, float_format="{:.3g}".format))
    for finding in result.findings:
        _put(_entry(f"  {finding.result.upper()}", f"{finding.name}  {finding.detail}", 8, _width()))
    _put(result.line)
    raise typer.Exit(result.code)


@app.command()
def plot(
    run: RunName = "latest",
    out: Out = Path("results"),
    style: Annotated[str, typer.Option(help="screen, paper or paper-sans: widths of a journal column.")] = "screen",
    figure: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="These figures only; left out: all of them.")
    ] = None,
) -> None:
    """Draw the figures of a run as SVG and PNG; for paper as PDF and SVG with embedded letters."""
    from gradbench.plots.parallel import draw_in_parallel
    from gradbench.tables.verifying import trusted

    target = trusted(_target(run, out))
    say(f"drawing {target.folder}")
    for path in draw_in_parallel(target, style, _words(figure) or ()):
        _put(path)


@app.command()
def report(
    run: RunName = "latest",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write it; report.html of the run by default."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    out: Out = Path("results"),
) -> None:
    """Write a run as one HTML page: what was found, every cell, and how to replay it."""
    from gradbench.commands import reporting

    target = _target(run, out)
    _say_standing(target)
    if output is None:
        path = reporting.report(target)
    else:
        text, path = reporting.html(target), output
        _write(path, text)
    _put(path)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@app.command()
def export(
    run: RunName = "latest",
    to: Annotated[str, typer.Option(metavar="csv|latex", help="csv, or latex with the rules of booktabs.")] = "csv",
    of: Annotated[str, typer.Option(metavar="cells|matrix", help="cells, or every rule on every system.")] = "cells",
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=V,...", help="Cells by column or option.")
    ] = None,
    columns: Annotated[list[str] | None, typer.Option(metavar="NAME,...", help="Columns of the cells.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it; stdout by default.")
    ] = None,
    out: Out = Path("results"),
) -> None:
    """Write the cells of a run, or its rules and systems, as CSV or LaTeX."""
    from gradbench.commands.reporting import exported
    from gradbench.errors import near_miss

    for option, given, known in (("--to", to, ("csv", "latex")), ("--of", of, ("cells", "matrix"))):
        if given not in known:
            raise UserError(f"{option} {given}: is not a choice{near_miss(given, known)}")
    form, what = cast("tuple[Form, What]", (to, of))
    text = exported(_target(run, out), form, what, _settings(where, "--where"), _words(columns) or ())
    if output is None:
        _put(text.removesuffix("\n"))
    else:
        _write(output, text)
        say(str(output))


@app.command()
def explain(
    run: RunName = "latest",
    cell: Annotated[str | None, typer.Argument(metavar="CELL", help="Key of a cell, or the start of one.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=V,...", help="Cells by coordinate or option.")
    ] = None,
    worst: Annotated[str | None, typer.Option(metavar="N", help="The settled cells with the worst parameter.")] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw it too: a .png or .svg, or a folder for both.")
    ] = None,
    out: Out = Path("results"),
    plugin: Plugins = None,
) -> None:
    """Say why a cosine is what it is: certificate, ladder, cause and remedy, measured anew on the CPU."""
    from gradbench.commands.explaining import bring_back, choose
    from gradbench.commands.explaining import explain as explain_cell
    from gradbench.tables.verifying import trusted

    number = None if worst is None else _cells(worst)
    target, width = trusted(_target(run, out)), _width()
    rows = choose(target, cell, _settings(where, "--where"), number)
    _figure_file(figure)
    if figure is not None and figure.suffix and len(rows) > 1:
        raise UserError(f"--figure {figure}: {len(rows)} cells have a figure each; name a folder")
    for row in rows:
        bring_back(target, row)
    say(f"run {target.folder}")
    for i, row in enumerate(rows):
        if len(rows) > 1:
            say(f"{i + 1} of {len(rows)}")
        explanation = explain_cell(target, row, _teller(width))
        if figure is not None:
            _draw(explanation, figure)


def _teller(width: int | None) -> Callable[[Explanation], None]:
    """A function that prints of an explanation what has become known since it was called last."""
    from gradbench.commands.telling import tell

    told = ""

    def put(known: Explanation) -> None:
        nonlocal told
        text = tell(known, width)
        if text != told:
            _put(text[len(told) :].removeprefix("\n") if told else text, flush=True)
            told = text

    return put


def _figure_file(path: Path | None) -> None:
    """Raise UserError for a file that is no kind of figure."""
    if path is not None:
        _typable(path)
    if path is not None and path.suffix not in ("", ".png", ".svg"):
        raise UserError(f"--figure {path}: expected a .png, a .svg or a folder")


def _draw_comparison(comparison: Comparison, runs: tuple[Run, Run], path: Path) -> None:
    from gradbench.plots import save
    from gradbench.plots.paired import draw_comparison

    named = dict.fromkeys(f"{run.folder.parent.name}/{run.id}" for run in runs)
    drawn = draw_comparison(comparison.pairs, comparison.sides, [f"{' and '.join(named)}.", f"{comparison.line}."])
    if drawn is None:
        say("gradbench: no figure, since no cell is settled in both")
        return
    kinds = (path.suffix[1:],) if path.suffix else ("svg", "png")
    with _named(path):
        files = save(drawn, path if path.suffix else path / f"{runs[0].id}-{runs[1].id}", kinds)
    for file in files:
        say(str(file))


def _draw(explanation: Explanation, path: Path) -> None:
    from gradbench.commands.explaining import picture
    from gradbench.plots import save

    drawn = picture(explanation)
    if drawn is None:
        say(f"{explanation.cell.key}: no figure, since the free phase diverged")
        return
    kinds = (path.suffix[1:],) if path.suffix else ("svg", "png")
    with _named(path):
        files = save(drawn, path if path.suffix else path / explanation.cell.key, kinds)
    for file in files:
        _put(file)


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a shipped training, or a TOML file.")],
    out: Out = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=V", help="Replace a key of the file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, even where it could be gone on with.")] = False,
    plugin: Plugins = None,
) -> None:
    """Train by a rule and watch its fidelity, or go on with it where it was cut off."""
    from gradbench.commands.progress import watcher
    from gradbench.commands.trainings import train as execute
    from gradbench.planning import files

    with watcher(f"training {files.find(config, files.CONFIGS, 'training')}") as watch:
        done = execute(
            config, out=out, device=device, overrides=_overrides(set_), fresh=fresh, plugins=plugin or (), watch=watch
        )
    _put(done.last)
    for path in done.draw():
        _put(path)
    _put(done.folder)


@app.command()
def tune(
    system: Annotated[str, typer.Argument(help='Name, or a name with options: "toy_noncons drive_std=1".')],
    estimator: Annotated[str, typer.Argument(help='Name, or a name with options: "aep clip=batch".')],
    want: Annotated[
        str, typer.Option("--cosine-min", metavar="X", help="What every parameter of every seed is to reach.")
    ] = "0.99",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """The cheapest T1, T2 and beta at which a rule reaches a wanted cosine in every seed."""
    from gradbench.commands.progress import watcher
    from gradbench.commands.tuning import tune as search

    wanted = _cosine(want)
    with watcher() as watch:
        tuned = search(system, estimator, wanted, _overrides(set_), device, watch=watch)
    if as_json:
        _put(json.dumps(tuned.to_json(), indent=1))
    else:
        for point in tuned.front:
            _put(f"{'->' if point == tuned.chosen else '  '} {point}")
        if tuned.unsettled:
            _put(f"   left out, since not every seed settles there: T1 = {', '.join(map(str, tuned.unsettled))}")
    if tuned.chosen is None:
        best = f"the best reaches {tuned.front[-1].cosine_min:.6f}" if tuned.front else "no T1 settles"
        say(f"gradbench: no setting reaches cosine_min {wanted:g}: {best}")
        raise typer.Exit(Exit.CHECK_FAILED)
    if not as_json and tuned.chosen not in tuned.front:
        _put(f"-> {tuned.chosen}")


@app.command()
def conform(
    name: Annotated[str, typer.Argument(metavar="NAME", help='System or estimator, options too: "aep clip=batch".')],
    on: Annotated[str | None, typer.Option(metavar="SYSTEM", help="Try an estimator on this system.")] = None,
    batch: Annotated[int, typer.Option(help="Examples on which it is tried.")] = 4,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Try a system or an estimator: derivatives, purity, independence, and what it claims."""
    from gradbench.api.conforming import conform as try_item
    from gradbench.conformance.findings import measured

    tried = try_item(name, on=on, batch=batch, seed=seed)
    if as_json:
        _put(json.dumps(tried.to_json(), indent=1))
    else:
        for finding in tried.findings:
            text = "  ".join(part for part in (finding.name, measured(finding), finding.advice) if part)
            _put(_entry(f"  {finding.result.upper()}", text, 8, _width()))
        _put("\n".join(_wrapped(tried.line)))
    raise typer.Exit(tried.code)


def _wrapped(line: str) -> list[str]:
    from gradbench.tables.text import wrapped

    return wrapped(line, _width(), 2)


def _one_or_two_lines(parts: list[str], between: str, width: int | None, *, reverse: bool = False) -> str:
    """Two texts on a line, or on a line each, in reverse order if so asked: a command or a path is not folded."""
    line = between.join(parts)
    if width is None or len(line) <= width:
        return line
    return "\n".join(parts[::-1] if reverse else parts)


def _target(name: str, out: Path) -> Run:
    """The run that a name means. Raises UserError where there is none, with the way to make one of a shipped suite."""
    from gradbench.planning import files
    from gradbench.tables import runs

    inside = [path.parent for path in Path(name).glob("*/plan.json")] if name and os.path.isdir(name) else []
    if inside and not os.path.lexists(Path(name) / "plan.json"):
        newest = _argument(max(inside))
        raise UserError(f"{name} holds the runs of a suite; name one of them, such as the newest: {newest}")
    try:
        return runs.find(name, out)
    except UserError as error:
        if KEY.fullmatch(name):
            raise UserError(f"{error}; {name} looks like the key of a cell: gradbench explain RUN {name}") from None
        if name not in files.shipped(files.SUITES) or any((out / "runs" / name).glob("*/plan.json")):
            raise
        more = "" if out == Path("results") else f" --out {_argument(out)}"
        raise UserError(
            f"there is no run of the suite {name!r} in {out / 'runs'} yet; make one with: gradbench run {name}{more}"
        ) from None


def _argument(value: str | Path) -> str:
    """A value as a shell reads it."""
    text = shlex.quote(str(value))
    return f"-- {text}" if text.startswith("-") else text


def _cells(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UserError(f"--worst {text}: expected a number of cells, 1 or more")
    return int(text)


def _cosine(text: str) -> float:
    from gradbench.planning.values import NUMBER

    if not NUMBER.fullmatch(text):
        raise UserError(f"--cosine-min {text}: expected a number between 0 and 1")
    return float(text)


def _check_dtypes(text: str | None) -> None:
    """Raise UserError where a text is no dtype, and no list of dtypes with commas."""
    from gradbench.errors import near_miss
    from gradbench.vocabulary.coordinates import COORDINATES

    known = COORDINATES["dtype"].choices
    for word in () if text is None else text.split(","):
        if word.strip() not in known:
            raise UserError(f"--dtype {text}: {word!r} is not a choice{near_miss(word, known)}")


def _summary(cls: type) -> str:
    from gradbench.planning import registry

    return registry.summary(cls)


def _definition(cls: type) -> str:
    from gradbench.planning import registry

    return registry.definition(cls)


def _settings(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    from gradbench.planning.values import settings

    return settings(pairs or (), option)


def _overrides(pairs: list[str] | None) -> Overrides:
    from gradbench.planning.overrides import Overrides

    return Overrides(_settings(pairs), "--set {key}")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _usage(error: Any) -> str:
    """What a message says of a mistake in a command line, with the help of the command."""
    names, context = list[str](), error.ctx
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    command = " ".join(["gradbench", *names])
    message = error.format_message()
    if hasattr(error, "possibilities"):
        options = [o.removeprefix("--") for p in error.ctx.command.params for o in p.opts if o.startswith("--")]
        near = difflib.get_close_matches(error.option_name.lstrip("-"), options, 1)
        message = error.message + (f". Did you mean --{near[0]}?" if near else "")
    elif verbs := getattr(getattr(error.ctx, "command", None), "commands", {}):
        wrong = re.match("No such command '(.*)'", message)
        if wrong and len(verbs) == 1:
            message = f"{command} needs a verb. Did you mean {command} {next(iter(verbs))} {_argument(wrong[1])}?"
    return f"{_sentence(message)} See: {command} --help"


WRITING = {"merge": "merged", "pack": "packed", "unpack": "unpacked"}  # commands that run nothing, and what they do
_told_to_end: list[int] = []  # signals that ended the command as an interrupt does


def _end(number: int, frame: object) -> None:
    """The handler of SIGTERM."""
    _told_to_end.append(number)
    raise KeyboardInterrupt


def _code(arguments: list[str]) -> int:
    try:
        with from_shell():
            code = app(arguments, standalone_mode=False) or Exit.OK
    except UserError as error:
        say(f"gradbench: {_sentence(str(error))} Nothing was {WRITING.get(arguments[0], 'run')}.")
        code = Exit.USAGE
    except USAGE_ERROR as error:
        say(f"gradbench: {_usage(error)}")
        code = Exit.USAGE
    except StoreError as error:
        say(f"gradbench: {error}")
        code = Exit.STORE
    except OSError as error:  # of stdout, or of a file that is named: the store raises a StoreError
        say(f"gradbench: {error.strerror or error}")
        code = Exit.OUTPUT
    except SystemExit as stop:  # typer ends so where the reader of its help has left, which is no failure
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = Exit.OK
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    if code == Exit.INTERRUPTED:
        code = Exit.TERMINATED if _told_to_end else code
        way_on = "; what was measured is kept, run the same command to go on"
        say(f"gradbench: interrupted{way_on if arguments[:1] in (['run'], ['train']) else ''}")
    return int(code)


def main() -> None:
    """Entry point: every failure is one line and an exit code."""
    _open_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # else the parent has it ignored
        signal.signal(signal.SIGTERM, _end)
    code = _code(sys.argv[1:] or ["--help"])
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            say(f"gradbench: {error.strerror}")
            code = Exit.OUTPUT
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    sys.exit(code)


def _open_streams() -> None:
    """Put the null device in the place of a closed stream: else the next file that is opened takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    codecs.register_error("gradbench", _as_it_came)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # a stream that somebody has replaced
            stream.reconfigure(errors="gradbench")  # type: ignore[union-attr]


def _as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes of what a stream cannot encode: those of an argument that Python could not decode, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    way = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace"
    return letter.encode("ascii", way), error.start + 1
