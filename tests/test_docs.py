"""The README says what the registry says."""

from __future__ import annotations

import re
from pathlib import Path

from gradbench import registry
from gradbench import suite as suites
from gradbench.training import config

README = (Path(__file__).parents[1] / "README.md").read_text()


def between(marker: str) -> list[str]:
    return README.partition(f"<!-- {marker} -->\n")[2].partition("<!-- end -->")[0].strip().splitlines()


def summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0].rstrip(".")


def test_the_table_of_systems_is_that_of_the_registry() -> None:
    rows = [
        f"| `{name}` | {summary(c)} | {'yes' if c.conservative else 'no'} | {c.source} |"
        for name, c in registry.systems().items()
    ]
    assert between("systems") == ["| system | what it is | energy | source |", "|---|---|---|---|", *rows]


def test_the_table_of_estimators_is_that_of_the_registry() -> None:
    rows = [
        f"| `{name}` | {summary(c)} | {c.exact_when} | {c().bias_order or '-'} | {c.source} |"
        for name, c in registry.estimators().items()
    ]
    head = ["| estimator | what it is | exact when | error in β | source |", "|---|---|---|---|---|"]
    assert between("estimators") == [*head, *rows]


def test_every_shipped_suite_and_training_is_named_where_these_are_listed() -> None:
    named = re.split(r"\sEach\s", README.partition("Suites that ship:")[2])[0]
    assert set(re.findall(r"`(\w+)`", named)) == {path.stem for path in suites.SUITES.glob("*.toml")}
    table = (Path(__file__).parents[1] / "docs" / "training.md").read_text().partition("| file | trains |")[2]
    rows = re.findall(r"^\| (`\w+`.*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {path.stem for path in config.CONFIGS.glob("*.toml")}


def test_every_command_of_the_readme_exists() -> None:
    from gradbench.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    used = set(re.findall(r"^gradbench (\w+)", blocks, re.MULTILINE))
    assert used
    assert used <= known


def test_the_python_of_the_readme_runs() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(source, "README.md", "exec"), {})
