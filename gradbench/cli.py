"""The command line. Data go to stdout, messages to stderr; heavy modules are imported only where they are needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradbench.errors import StoreError, UserError
from gradbench.vocabulary.exit import Exit
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.commands.explaining import Explanation

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How faithful is a gradient estimator to backpropagation through time?",
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Path, id, prefix of an id, suite, suite/id, or latest.")]
SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="Name of a shipped suite, or a TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=V,...", help="Replace a key of every grid.")]


USAGE_ERROR: Any = typer.BadParameter.__base__  # the base of all mistakes in a command line


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Systems, estimators, suites and trainings."""
    from gradbench.planning import files, registry

    items = {
        "systems": [(n, _summary(c)) for n, c in registry.known_systems().items()],
        "estimators": [
            (n, f"{_summary(c)} Exact when: {c().claim.prose(c.uses)}.") for n, c in registry.known_estimators().items()
        ],
        "suites": [(p.stem, files.about(p)) for p in sorted(files.SUITES.glob("*.toml"))],
        "trainings": [(p.stem, files.about(p)) for p in sorted(files.CONFIGS.glob("*.toml"))],
    }
    if as_json:
        print(json.dumps({kind: dict(rows) for kind, rows in items.items()}, indent=1))
        return
    for kind, rows in items.items():
        print(f"{kind}")
        for name, text in rows:
            print(f"  {name:<14} {text}")
    _say("next: gradbench show NAME, gradbench plan SUITE")


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """A system or an estimator: definition, options, defaults, source."""
    from dataclasses import fields

    from gradbench.errors import near_miss
    from gradbench.planning import registry

    known: dict[str, Any] = {**registry.known_systems(), **registry.known_estimators()}
    if name not in known:
        raise UserError(f"{name!r} is neither a system nor an estimator{near_miss(name, known)}")
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
        print(json.dumps(facts, indent=1))
        return
    print(f"{name}\n\n{facts.pop('definition')}\n")
    for key, value in facts.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key:<13} {', '.join(text) if isinstance(text, list) else text}")


@app.command("plan")
def plan_(suite: SuiteName, set_: Set = None, as_json: Json = False) -> None:
    """What a suite would do: cells, problems, families, evaluations, skips. Runs nothing."""
    from gradbench.commands.running import prepare

    loaded, planned = prepare(suite, _settings(set_))
    if as_json:
        print(json.dumps(planned.to_json(), indent=1))
        return
    print(f"{planned.suite}: {loaded.about}")
    for name, text in planned.summary.items():
        print(f"  {name:<20} {text}")
    for reason, n in planned.skip_reasons.most_common():
        print(f"  {'skipped':<20} {n:,}: {reason}")
    _say(f"next: gradbench run {suite}")


@app.command()
def run(
    suite: SuiteName,
    out: Out = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64, in every grid.")] = None,
    set_: Set = None,
    engine: Annotated[str, typer.Option(help="auto, eager (a problem at a time), batched or compiled.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="What packs may take: 80% of what is free, or 24GiB.")] = None,
    certify: Annotated[bool, typer.Option("--certify", help="Eigenvalues and condition of every free state.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write where the time went into the run folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, even where a run could be gone on with.")] = False,
) -> None:
    """Run a suite, or go on with it where it was cut off."""
    from gradbench.commands.progress import watcher
    from gradbench.commands.running import run as execute

    overrides = _settings([*(set_ or ()), *([f"dtype={dtype}"] if dtype else ())])
    with watcher() as watch:
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
            watch=watch,
        )
    statuses = done.cells["status"].value_counts()
    for status, n in statuses.items():
        print(f"  {status:<16} {n:<7,} {Status(status).prose}")
    print(done.folder)
    if profile:
        print(done.folder / "profile" / "table.txt")
    if not done.plan["cells"]:
        _say("gradbench: every cell of this suite is skipped: nothing was measured")
        raise typer.Exit(Exit.NOTHING)
    incomplete = int(sum(n for s, n in statuses.items() if Status(s).incomplete))
    if incomplete and not done.claims["allow_incomplete"]:
        rows = done.cells
        first = rows[rows["status"].isin([s for s in Status if s.incomplete])].iloc[0]
        _say(f"{incomplete} of {len(rows)} cells were not measured; first: {first['reason']}")
        _say("next: the same command tries them again")
        raise typer.Exit(Exit.INCOMPLETE)


@app.command()
def check(run: RunName = "latest", out: Out = Path("results"), as_json: Json = False) -> None:
    """Print the tables of a run's suite and evaluate its checks; the last line is the verdict."""
    from gradbench.planning.suites import Table
    from gradbench.tables import runs
    from gradbench.tables.text import show_causes, show_table
    from gradbench.tables.verdict import judge

    target = runs.find(run, out)
    verdict = judge(target)
    if as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        for table in target.claims.get("table", ()):
            print(f"{show_table(Table(**table), target.cells)}\n")
        if causes := show_causes(target.cells):
            print(f"{causes}\n  why, and what helps: gradbench explain {target.id} --worst 1\n")
        for finding in verdict.findings:
            print(f"  {finding.result.upper():<5} {finding.name}  [{finding.cells} cells]  {finding.detail}")
        print(f"{verdict.line}  {target.folder / 'verdict.json'}")
    raise typer.Exit(verdict.code)


@app.command()
def plot(run: RunName = "latest", out: Out = Path("results")) -> None:
    """Draw the figures of a run as SVG and PNG."""
    from gradbench import plots
    from gradbench.tables import runs

    target = runs.find(run, out)
    _say(f"drawing {target.folder}")
    for path in plots.draw(target):
        print(path)


@app.command()
def explain(
    run: RunName = "latest",
    cell: Annotated[str | None, typer.Argument(metavar="CELL", help="Key of a cell, or the start of one.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=V,...", help="Cells by coordinate or option.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The settled cells with the worst parameter.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw it too: a .png or .svg, or a folder for both.")
    ] = None,
    out: Out = Path("results"),
) -> None:
    """Say why a cosine is what it is: certificate, ladder, cause and remedy, measured anew on the CPU."""
    from gradbench.commands.explaining import choose
    from gradbench.commands.explaining import explain as explain_cell
    from gradbench.commands.telling import tell
    from gradbench.tables import runs

    target = runs.find(run, out)
    rows = choose(target, cell, _settings(where, "--where"), worst)
    if figure is not None and figure.suffix not in ("", ".png", ".svg"):
        raise UserError(f"--figure {figure}: expected a .png, a .svg or a folder")
    if figure is not None and figure.suffix and len(rows) > 1:
        raise UserError(f"--figure {figure}: {len(rows)} cells have a figure each; name a folder")
    for i, row in enumerate(rows):
        if len(rows) > 1:
            _say(f"{i + 1} of {len(rows)}")
        explanation = explain_cell(target, row)
        print(tell(explanation), flush=True)
        if figure is not None:
            _draw(explanation, figure)


def _draw(explanation: Explanation, path: Path) -> None:
    from gradbench.commands.explaining import picture
    from gradbench.plots import save

    drawn = picture(explanation)
    if drawn is None:
        _say(f"{explanation.cell.key}: no figure, since the free phase diverged")
        return
    kinds = (path.suffix[1:],) if path.suffix else ("svg", "png")
    for file in save(drawn, path if path.suffix else path / explanation.cell.key, kinds):
        print(file)


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a shipped training, or a TOML file.")],
    out: Out = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=V", help="Replace a key of the file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, even where it could be gone on with.")] = False,
) -> None:
    """Train by a rule and watch its fidelity, or go on with it where it was cut off."""
    from gradbench.commands.progress import watcher
    from gradbench.commands.trainings import train as execute

    with watcher() as watch:
        done = execute(config, out=out, device=device, overrides=_settings(set_), fresh=fresh, watch=watch)
    print(done.last)
    for path in done.draw():
        print(path)
    print(done.folder)


@app.command()
def tune(
    system: Annotated[str, typer.Argument(help='Name, or a name with options: "toy_noncons drive_std=1".')],
    estimator: Annotated[str, typer.Argument(help='Name, or a name with options: "aep clip=batch".')],
    want: Annotated[float, typer.Option("--cosine-min", help="What every parameter of every seed is to reach.")] = 0.99,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """The cheapest T1, T2 and beta at which a rule reaches a wanted cosine in every seed."""
    from gradbench.commands.progress import watcher
    from gradbench.commands.tuning import tune as search

    with watcher() as watch:
        tuned = search(system, estimator, want, _settings(set_), device, watch)
    if as_json:
        print(json.dumps(tuned.to_json(), indent=1))
    else:
        for point in tuned.front:
            print(f"{'->' if point == tuned.chosen else '  '} {point}")
        if tuned.unsettled:
            print(f"   left out, since not every seed settles there: T1 = {', '.join(map(str, tuned.unsettled))}")
    if tuned.chosen is None:
        best = f"the best reaches {tuned.front[-1].cosine_min:.6f}" if tuned.front else "no T1 settles"
        _say(f"gradbench: no setting reaches cosine_min {want:g}: {best}")
        raise typer.Exit(Exit.CHECK_FAILED)
    if not as_json and tuned.chosen not in tuned.front:
        print(f"-> {tuned.chosen}")


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _definition(cls: type) -> str:
    import inspect

    return inspect.getdoc(cls) or ""


def _settings(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    from gradbench.planning.values import settings

    return settings(pairs or (), option)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _code(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False) or Exit.OK
    except UserError as error:
        _say(f"gradbench: {_sentence(str(error))} Nothing was run.")
        code = Exit.USAGE
    except USAGE_ERROR as error:
        _say(f"gradbench: {_sentence(error.format_message())} See: gradbench --help")
        code = Exit.USAGE
    except StoreError as error:
        _say(f"gradbench: {error}")
        code = Exit.STORE
    except OSError as error:  # of stdout: the store raises a StoreError
        _say(f"gradbench: {error.strerror}")
        code = Exit.STORE
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    if code == Exit.INTERRUPTED:
        way_on = "; what was measured is kept, run the same command to go on"
        _say(f"gradbench: interrupted{way_on if arguments[:1] in (['run'], ['train']) else ''}")
    return int(code)


def main() -> None:
    """Entry point: every failure is one line and an exit code."""
    code = _code(sys.argv[1:] or ["--help"])
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it is flushed again at the exit
        if not isinstance(error, BrokenPipeError):  # a reader that leaves, as `head` does, is no failure
            _say(f"gradbench: {error.strerror}")
            code = Exit.STORE
    sys.exit(code)
