"""The command line. Data on stdout, talk on stderr; nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradbench.errors import StoreError, UserError
from gradbench.exit import Exit
from gradbench.status import Status

if TYPE_CHECKING:
    from gradbench.explain import Explanation

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


USAGE_ERROR: Any = typer.BadParameter.__base__  # the parent of all that typer says of a command line


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Systems, estimators, suites and trainings."""
    from gradbench import registry, suite
    from gradbench.training import config

    items = {
        "systems": [(n, _summary(c)) for n, c in registry.systems().items()],
        "estimators": [(n, f"{_summary(c)} Exact when: {c.exact_when}.") for n, c in registry.estimators().items()],
        "suites": [(p.stem, suite.about(p)) for p in sorted(suite.SUITES.glob("*.toml"))],
        "trainings": [(p.stem, suite.about(p)) for p in sorted(config.CONFIGS.glob("*.toml"))],
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

    from gradbench import registry
    from gradbench.errors import near_miss

    known: dict[str, Any] = {**registry.systems(), **registry.estimators()}
    if name not in known:
        raise UserError(f"{name!r} is neither a system nor an estimator{near_miss(name, known)}")
    cls = known[name]
    options = {f.name: f.default for f in fields(cls)}
    facts: dict[str, Any] = {"name": name, "definition": _definition(cls), "options": options, "source": cls.source}
    facts["uses"] = sorted(cls.uses)
    if name in registry.systems():
        facts |= {"conservative": cls.conservative, "defaults": dict(cls.defaults), "parameters": cls().shapes}
    else:
        facts |= {"exact_when": cls.exact_when, "bias_order": cls().bias_order}
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
    from gradbench.runner import prepare

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
    from gradbench.progress import told
    from gradbench.runner import run as execute

    overrides = _settings([*(set_ or ()), *([f"dtype={dtype}"] if dtype else ())])
    with told() as watch:
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
    incomplete = int(sum(n for s, n in statuses.items() if s in ("error", "oom")))
    if incomplete and not done.claims["allow_incomplete"]:
        rows = done.cells
        first = rows[rows["status"].isin(["error", "oom"])].iloc[0]
        _say(f"{incomplete} of {len(rows)} cells were not measured; first: {first['reason']}")
        _say("next: the same command tries them again")
        raise typer.Exit(Exit.INCOMPLETE)


@app.command()
def check(run: RunName = "latest", out: Out = Path("results"), as_json: Json = False) -> None:
    """Print the tables of a run's suite and evaluate its checks; the last line is the verdict."""
    from gradbench.suite import Table
    from gradbench.tables import runs
    from gradbench.tables.show import show_causes, show_table
    from gradbench.tables.verdict import judge

    found = runs.find(run, out)
    verdict = judge(found)
    if as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        for table in found.claims.get("table", ()):
            print(f"{show_table(Table(**table), found.cells)}\n")
        if causes := show_causes(found.cells):
            print(f"{causes}\n  why, and what helps: gradbench explain {found.id} --worst 1\n")
        for finding in verdict.findings:
            print(f"  {finding.result.upper():<5} {finding.name}  [{finding.cells} cells]  {finding.detail}")
        print(f"{verdict.line}  {found.folder / 'verdict.json'}")
    raise typer.Exit(verdict.code)


@app.command()
def plot(run: RunName = "latest", out: Out = Path("results")) -> None:
    """Draw the figures of a run as SVG and PNG."""
    from gradbench import plots
    from gradbench.tables import runs

    found = runs.find(run, out)
    _say(f"drawing {found.folder}")
    for path in plots.draw(found):
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
    from gradbench.explain import choose, tell
    from gradbench.explain import explain as of
    from gradbench.tables import runs

    found = runs.find(run, out)
    rows = choose(found, cell, _settings(where, "--where"), worst)
    if figure is not None and figure.suffix not in ("", ".png", ".svg"):
        raise UserError(f"--figure {figure}: expected a .png, a .svg or a folder")
    if figure is not None and figure.suffix and len(rows) > 1:
        raise UserError(f"--figure {figure}: {len(rows)} cells have a figure each; name a folder")
    for i, row in enumerate(rows):
        if len(rows) > 1:
            _say(f"{i + 1} of {len(rows)}")
        explanation = of(found, row)
        print(tell(explanation), flush=True)
        if figure is not None:
            _draw(explanation, figure)


def _draw(explanation: Explanation, path: Path) -> None:
    from gradbench.explain import picture
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
    from gradbench.progress import told
    from gradbench.training.loop import train as execute

    with told() as watch:
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
    from gradbench.progress import told
    from gradbench.tune import tune as search

    with told() as watch:
        found = search(system, estimator, want, _settings(set_), device, watch)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        for point in found.front:
            print(f"{'->' if point == found.chosen else '  '} {point}")
        if found.unsettled:
            print(f"   left out, since not every seed settles there: T1 = {', '.join(map(str, found.unsettled))}")
    if found.chosen is None:
        best = f"the best reaches {found.front[-1].cosine_min:.6f}" if found.front else "no T1 settles"
        _say(f"gradbench: no setting reaches cosine_min {want:g}: {best}")
        raise typer.Exit(Exit.CHECK_FAILED)
    if not as_json and found.chosen not in found.front:
        print(f"-> {found.chosen}")


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _definition(cls: type) -> str:
    import inspect

    return inspect.getdoc(cls) or ""


def _settings(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    from gradbench.suite import settings

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
    except OSError as error:  # of stdout: the store has errors of its own
        _say(f"gradbench: {error.strerror}")
        code = Exit.STORE
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    if code == Exit.INTERRUPTED:
        kept = "; what was measured is kept, run the same command to go on"
        _say(f"gradbench: interrupted{kept if arguments[:1] in (['run'], ['train']) else ''}")
    return int(code)


def main() -> None:
    """Entry point: every failure is one line and an exit code."""
    code = _code(sys.argv[1:] or ["--help"])
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit would try it again
        if not isinstance(error, BrokenPipeError):  # a reader that leaves, as `head` does, needs no telling
            _say(f"gradbench: {error.strerror}")
            code = Exit.STORE
    sys.exit(code)
