"""One meaning for every word: the code is held to the table of words in docs/notation.md."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradbench"
FILES = sorted(PACKAGE.rglob("*.py"))
TABLE = (ROOT / "docs" / "notation.md").read_text().partition("<!-- words -->\n")[2].partition("<!-- end -->")[0]
# word -> where it may be part of a name, as paths under gradbench/; nowhere for an empty set
WORDS = {
    word: set(re.findall(r"`([^`]+)`", places))
    for word, places in re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", TABLE, re.MULTILINE)
}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier that a module gives or uses, with its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name, getattr(node, "lineno", 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_word_is_used_where_it_has_its_one_meaning(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    wrong = [
        f"{place}:{line} {name}"
        for name, line in names(ast.parse(path.read_text()))
        for word in re.split(r"[_.]", name.lower())
        if word in WORDS and not any(place.startswith(allowed) for allowed in WORDS[word])
    ]
    assert not wrong, "see the table of words in docs/notation.md"


def test_no_module_shares_its_name_with_a_function() -> None:
    modules = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    functions = {
        node.name: path
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert not {name: str(functions[name].relative_to(PACKAGE)) for name in modules & set(functions)}


def test_no_module_of_the_top_has_the_name_of_a_public_function() -> None:
    reserved = [
        "measure",
        "run",
        "suite",
        "system",
        "estimator",
        "register",
        "explain",
        "tune",
        "train",
        "conform",
        "compare",
        "report",
        "baseline",
    ]
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not top & set(reserved)


def test_every_room_stands_in_the_design_with_what_it_decides() -> None:
    from gradbench.engine.hosts import DECIDING_ROOMS

    design = (ROOT / "docs" / "design.md").read_text()
    lines = re.findall(r"^\| (`.*?) \| (yes|no) \|", design, re.MULTILINE)
    told = {room.rstrip("/"): decides for rooms, decides in lines for room in re.findall(r"`([\w./]+)`", rooms)}
    there = {path.name for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__main__.py", "__pycache__")}
    assert set(told) == {name for name in there if name != "py.typed"}
    assert {room for room, answer in told.items() if answer == "yes"} == set(DECIDING_ROOMS)


def test_every_name_is_defined_but_the_axes_of_arrays() -> None:
    """Linters take the axes in the shapes of arrays for names, so that the rule is off there: they have one letter."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821", "--isolated", "--output-format", "json"]
    told = subprocess.run([*command, "gradbench", "tests"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = {entry["message"].split("`")[1] for entry in json.loads(told.stdout)}
    assert names
    assert [name for name in names if len(name) > 1] == []
