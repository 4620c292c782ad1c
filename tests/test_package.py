"""What `pip install` gives: a wheel, an sdist and an editable install, each tried in an empty folder."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradbench.planning import files

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
pytest.importorskip("setuptools")


def python(code: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python code in a folder; `path` holds the installed package, and the checkout is not on the path."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COLUMNS")}
    env |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )


def built(source: Path, how: str, to: Path) -> Path:
    """The file that the build backend makes of a source tree."""
    to.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.build_{how}({str(to)!r}))"
    done = python(code, source)
    assert done.returncode == 0, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without what a checkout has besides its files: a build leaves its folders in the source."""
    folder = tmp_path_factory.mktemp("holds the clone") / "gradbench"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("gradbench", "suites", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results" / "baselines", folder / "results" / "baselines")
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, "wheel", tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def gradbench(arguments: list[str], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return python(f"import sys; from gradbench.cli import main; sys.argv[1:] = {arguments}; main()", folder, path)


def test_a_wheel_holds_suites_trainings_baselines_and_licences(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    baselines = {f"gradbench/planning/shipped/baselines/{p.name}" for p in Path("results/baselines").glob("*.parquet")}
    assert "gradbench/planning/shipped/baselines/smoke.parquet" in baselines
    assert baselines <= set(names)
    for folder in (files.SUITES, files.CONFIGS):
        ours = {f"gradbench/planning/shipped/{path}" for path in folder.glob("*.toml")}
        assert ours
        assert ours <= set(names)
    ends = [name.partition(".dist-info/")[2] for name in names]
    assert {"licenses/LICENSE", "licenses/gradbench/data/LICENSE.fashion-mnist"} <= set(ends)
    assert {"gradbench/py.typed", "gradbench/data/fashion_mnist_sample.npz"} <= set(names)
    kernels = {str(path) for path in Path("gradbench/systems/kernels").glob("*.cu*")}
    assert "gradbench/systems/kernels/tokens_step.cu" in kernels
    assert kernels <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", "suites/", "results/"))]


def test_a_wheel_of_the_sdist_is_the_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(built(source, "sdist", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("gradbench-*")
    again = built(unpacked, "wheel", tmp_path / "dist")
    contents = []
    for path in (wheel, again):
        with zipfile.ZipFile(path) as archive:
            contents.append({n: archive.read(n) for n in archive.namelist() if not n.endswith("RECORD")})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("verb", [["list"], ["plan", "aep"], ["plan", "smoke", "--set", "T1=5"], ["show", "aep"]])
def test_a_wheel_answers_in_an_empty_folder(installed: Path, tmp_path: Path, verb: list[str]) -> None:
    done = gradbench(verb, tmp_path, installed)
    assert done.returncode == 0, done.stderr
    if verb == ["list"]:
        for folder in (files.SUITES, files.CONFIGS):
            assert all(re.search(rf"^  {path.stem} ", done.stdout, re.MULTILINE) for path in folder.glob("*.toml"))
    if verb[0] != "show":
        assert str(installed / "gradbench" / "planning" / "shipped" / "suites") in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wheel_runs_and_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    shrunk = ["estimator=bptt", "T1=5", "T2=2", "batch=2", "seed=0"]
    suite = gradbench(
        ["run", "aep", "--device", "cpu", *(a for s in shrunk for a in ("--set", s))], tmp_path, installed
    )
    assert suite.returncode == 0, suite.stderr
    assert f"suite {installed}/gradbench/planning/shipped/suites/aep.toml" in suite.stderr
    assert (tmp_path / suite.stdout.splitlines()[-1] / "cells.parquet").is_file()
    training = ["steps=1", "seeds=0", "eval_every=100", "fidelity_every=100", "T1=2", "T2=1"]
    trained = gradbench(
        ["train", "quick", "--device", "cpu", *(a for s in training for a in ("--set", s))], tmp_path, installed
    )
    assert trained.returncode == 0, trained.stderr
    assert f"training {installed}/gradbench/planning/shipped/configs/quick.toml" in trained.stderr


def test_a_wheel_runs_a_suite_from_python_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import gradbench as gb; r = gb.run('smoke', device='cpu', overrides={'T1': 5, 'T2': 2}); print(len(r.cells))"
    )
    done = python(f"{code}; print(gb.__file__)", tmp_path, installed)
    assert done.returncode == 0, done.stderr
    cells, file = done.stdout.splitlines()
    assert int(cells) > 0
    assert Path(file).is_relative_to(installed)


def test_a_wheel_brings_its_baselines_and_its_fixtures(installed: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from gradbench.commands.running import prepare\n"
        "from gradbench.tables.baselines import shipped_baseline\n"
        "print(shipped_baseline(prepare('smoke')[1].to_json()))\n"
        "import sys, pytest; sys.exit(pytest.main(['--fixtures', '-q']))"
    )
    done = python(code, tmp_path, installed)
    first, _, rest = done.stdout.partition("\n")
    assert first == str(installed / "gradbench" / "planning" / "shipped" / "baselines" / "smoke.parquet"), done.stderr
    fixtures = dict(re.findall(r"^(gradbench_\w+) \[session scope\].*\n +(.*)$", rest, re.MULTILINE))
    assert set(fixtures) == {"gradbench_check", "gradbench_conform"}, rest
    assert all(fixtures.values())


def test_a_file_here_wins_over_the_one_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    text = 'about = "mine"\n[[grid]]\nsystem = "toy_cons"\nestimator = "ep"\n'
    (tmp_path / "suites" / "aep.toml").write_text(text)
    done = gradbench(["plan", "aep"], tmp_path, installed)
    assert "suite suites/aep.toml\n" in done.stderr
    assert done.stdout.startswith("aep: mine\n")


def test_an_editable_install_is_an_entry_of_the_path(source: Path, tmp_path: Path) -> None:
    """So that a script beside a clone named gradbench imports the package, and not its folder."""
    with zipfile.ZipFile(built(source, "editable", tmp_path)) as editable:
        (entry,) = (name for name in editable.namelist() if name.endswith(".pth"))
        assert editable.read(entry).decode().strip() == str(source)
    code = f"import sys; sys.path.append({str(source)!r}); import gradbench as gb; print(gb.__version__, gb.__file__)"
    done = python(code, source.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1].endswith("gradbench/__init__.py")
    listed = gradbench(["plan", "smoke"], tmp_path, source)
    assert listed.returncode == 0, listed.stderr
    assert f"suite {source}/gradbench/planning/shipped/suites/smoke.toml" in listed.stderr


def imports(tree: ast.AST, typed: bool) -> Iterator[str]:
    """Modules that code imports from other packages; `typed`: also those that only a type checker imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typed:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        else:
            yield from imports(node, typed)


def asked(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", requirement)[0] for requirement in requirements}


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_imported() -> None:
    paths = set((ROOT / "gradbench").rglob("*.py")) - {ROOT / "gradbench" / "pytest_plugin.py"}  # which pytest loads
    trees = [ast.parse(path.read_text()) for path in paths]
    ours = {
        "gradbench",
        "__future__",
        *sys.stdlib_module_names,
        "pydantic_core",
        "cuda",
    }  # these come with pydantic and torch
    run = {module for tree in trees for module in imports(tree, typed=False)} - ours
    typed = {module for tree in trees for module in imports(tree, typed=True)} - ours
    extras = PROJECT["optional-dependencies"]
    assert asked(PROJECT["dependencies"]) | asked(extras["images"]) | asked(extras["cluster"]) == run
    assert asked(extras["cluster"]) <= asked(extras["dev"])
    assert typed - run <= asked(extras["dev"])


def test_every_pin_is_of_something_that_is_asked_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    extras = PROJECT["optional-dependencies"]
    everything = asked([*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)])
    assert asked(lines) == everything


@pytest.mark.parametrize("choice", ["full", "cpu", "none"])
def test_set_up_says_what_it_makes(tmp_path: Path, choice: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    command = [make, "-n", "setup", f"TORCH={choice}", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"TORCH={choice}: \d+\.\d GB on disk", done.stdout)
    assert ("download.pytorch.org/whl/cpu" in done.stdout) == (choice == "cpu")
    assert ("torchvision" in done.stdout or "[dev,images]" in done.stdout) == (choice != "none")
    assert "--quiet" not in done.stdout
    readme = (ROOT / "README.md").read_text()
    assert choice == "full" or f"make setup TORCH={choice}" in readme


def test_set_up_refuses_a_choice_that_is_none(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    command = [make, "setup", "TORCH=gpu", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "TORCH=gpu: expected full, cpu or none" in done.stdout
    assert not (tmp_path / "venv").exists()
