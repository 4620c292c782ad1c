"""The tests that take a minute: they are of every room, and one of them walks through all rooms."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gradbench as gb
from gradbench import cli, pytest_plugin
from gradbench.conformance.system_checks import system_findings
from gradbench.planning import registry
from gradbench.plots import gallery
from gradbench.plots.sources import Tables

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradbench"
(LAYERS,) = (
    contract["layers"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
)
ROOMS = {room for layer in LAYERS for room in layer.split(" | ")} - {"__main__"}  # which begins `cli`, and no more

TRAINING = """
about = "Two steps."
system = { name = "cet_real", D = 8, heads = 2, dh = 4, mem = 6, patch = 14 }
estimator = "aep"
T1 = 5
T2 = 2
batch = 4
steps = 2
eval_batches = 1
[optimiser]
lr = 1e-2
"""
CLAIM = """
[[check]]
name = "bptt is itself"
where = { estimator = "bptt", status = "any" }
metric = "cosine"
min = 0.999
"""


def marked(tree: ast.Module) -> bool:
    """Whether a file of tests or one of its tests has the mark."""
    marks = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) == "pytest.mark.fast"]
    return bool(marks)


def imported(tree: ast.Module) -> Iterator[str]:
    """Rooms from which a file imports by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gradbench":
            inner = node.module.split(".")[1:2]
            yield from inner or (alias.name for alias in node.names)


@contextmanager
def called() -> Iterator[set[str]]:
    """Rooms of the functions that are called in this thread; what an import runs is no call of a function."""
    rooms: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(f"{PACKAGE}/"):
            rooms.add(Path(code.co_filename).relative_to(PACKAGE).parts[0].removesuffix(".py"))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield rooms
    finally:
        sys.setprofile(before)


@pytest.mark.fast
def test_tests_of_every_room_are_fast() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    rooms = {room for tree in trees if marked(tree) for room in imported(tree)}
    assert ROOMS - {"api"} <= rooms  # its functions are those of the package itself
    assert any("gb.measure" in ast.unparse(tree) for tree in trees if marked(tree))


@pytest.mark.fast
def test_a_walk_through_the_house_calls_functions_of_every_room(
    write_suite: Any, tmp_path: Path, cores: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cores(1)  # a run measures in the thread that asks
    suite, out = str(write_suite(CLAIM)), ("--out", str(tmp_path / "r"))
    (tmp_path / "t.toml").write_text(TRAINING)
    with called() as rooms:
        assert cli._code(["run", suite, *out, "--device", "cpu", "--set", "seed=0"]) == 0
        run = gb.run(suite, out=tmp_path / "r", device="cpu", overrides={"seed": 0})
        assert cli._code(["check", run.id, *out]) == 0
        pytest_plugin.assert_readings(suite, out=tmp_path / "r", device="cpu", overrides={"seed": 0})
        assert run.report().name == "report.html"
        assert gallery.collect()["residual_vs_cosine"](Tables.of(run)) is not None
        assert cli._code(["train", str(tmp_path / "t.toml"), *out, "--device", "cpu"]) == 0
        options = json.loads(run.cells["system_options"].iloc[0])
        assert gb.measure("toy_cons", "ep", damp=3.0, T1=5, T2=2, batch=2, system_options=options).cosine > 0
        assert next(system_findings(registry.system("toy_cons", options), 2, 0)).result == "pass"
        with pytest.raises(gb.UserError, match="Did you mean"):
            gb.measure("toy_con", "ep")
    assert rooms >= ROOMS
    assert rooms <= ROOMS | {"__init__"}
