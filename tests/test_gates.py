"""docs/gates.md and the workflows: a repository that gates its rule is made in an empty folder, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NAMED = ("python", "toml", "yaml")  # kinds of blocks whose first line is the name of their file
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "gates.md").read_text(), re.DOTALL)
FILES = {
    text.partition("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind in ("python", "toml", "yaml")
}
SHELL = [text for kind, text in BLOCKS if kind == "sh"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it, with its entry points and its commands: no checkout is near it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "gradbench", folder / "gradbench", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = folder / "gradbench-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gradbench\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(
        "".join(f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in project["entry-points"].items())
    )
    (folder / "bin").mkdir()
    for name in ("gradbench", "pytest"):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
        command.chmod(0o755)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The files of the page in a folder."""
    for name, text in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "mine"


def shell(script: str, folder: Path, site: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A script as GitHub runs it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))} | more
    env |= {"PATH": f"{site / 'bin'}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(site)}
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(bash, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def plugins(site: Path, folder: Path) -> None:
    """Skip where the command has no --plugin."""
    if "--plugin" not in shell("gradbench run --help", folder, site, COLUMNS="200").stdout:
        pytest.skip("gradbench run has no --plugin")


def broken(repository: Path) -> None:
    path = repository / "rules.py"
    text = path.read_text()
    path.write_text(text.replace("total + term", "total - term"))
    assert path.read_text() != text


def test_the_page_has_a_rule_a_suite_tests_and_ten_lines_of_ci() -> None:
    assert set(FILES) == {"rules.py", "suites/mine.toml", "test_rules.py", ".github/workflows/gate.yml"}
    assert len(FILES[".github/workflows/gate.yml"].splitlines()) == 11  # the first one names the file
    assert len(SHELL) == 2


def test_the_repository_passes_its_tests_and_not_with_a_broken_rule(repository: Path, site: Path) -> None:
    assert SHELL[0] == "pytest\n"
    done = shell("pytest -p no:cacheprovider -p no:benchmark", repository, site)
    assert "3 passed" in done.stdout, done.stdout
    assert {p.name for p in repository.iterdir()} <= {*(n.partition("/")[0] for n in FILES), "__pycache__"}
    broken(repository)
    done = shell("pytest -p no:cacheprovider -p no:benchmark", repository, site)
    assert "3 failed" in done.stdout, done.stdout
    for line in (
        r"FAIL  rel_error <= 0\.001  \[4 cells\]  rel_error \S+ > 0\.001 at toy_\w+ drive_std=1\.0 / neumann .*T2=100",
        r"why: gradbench explain \S+ [0-9a-f]{16}\n",
        r"estimator neumann: failed",
    ):
        assert re.search(line, done.stdout), done.stdout


def test_the_commands_of_the_page_gate_by_a_baseline(repository: Path, site: Path) -> None:
    plugins(site, repository)
    done = shell(SHELL[1], repository, site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"VERDICT pass \(0\)  2 of 2 checks, \d+ of \d+ comparisons", done.stdout)
    assert (repository / "results" / "baselines" / "mine.parquet").is_file()
    broken(repository)
    done = shell(f"{SHELL[1].splitlines()[0]}\n{SHELL[1].splitlines()[2]}", repository, site)
    assert done.returncode == 1, done.stdout + done.stderr
    cases = ElementTree.parse(repository / "gate" / "junit.xml").getroot().iter("testcase")
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert {"verdict", "neumann follows backpropagation where T2 is long", "rel_error is no worse"} <= failed
    assert "| FAIL | baseline | `rel_error is no worse` |" in (repository / "gate" / "gate.md").read_text()


def workflow(path: Path | str) -> dict[Any, Any]:
    """A workflow as YAML 1.1 reads it, in which the key `on` is a truth value."""
    yaml = pytest.importorskip("yaml")
    text = path.read_text() if isinstance(path, Path) else path
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    return content


def scripts(content: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """The steps of the only job that run a script, by name; one without a name, by its script."""
    (job,) = content["jobs"].values()
    return {step.get("name", step["run"]): step for step in job["steps"] if "run" in step}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_what_github_takes_and_its_scripts_are_bash(path: Path) -> None:
    content = workflow(path)
    assert set(content) == {"name", True, "permissions", "jobs"}
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert set(job) <= {"runs-on", "timeout-minutes", "steps"}
        for step in job["steps"]:
            assert set(step) <= {"name", "if", "uses", "with", "env", "run"}
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            assert "${{" not in step.get("run", "")  # what somebody hands over is no part of a script
            assert not subprocess.run(["bash", "-nc", step.get("run", "")], capture_output=True, check=True).stderr


def test_every_make_target_and_command_of_ci_exists() -> None:
    text = "\n".join(step["run"] for step in scripts(workflow(ROOT / ".github" / "workflows" / "ci.yml")).values())
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    assert targets == ["setup", "lint", "test"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)
    assert "gradbench check smoke" in text


def test_every_input_of_the_gate_is_used_and_the_page_hands_over_what_there_is() -> None:
    path = ROOT / ".github" / "workflows" / "gate.yml"
    inputs = workflow(path)[True]["workflow_call"]["inputs"]
    assert set(re.findall(r"\$\{\{ inputs\.(\w+) \}\}", path.read_text())) == set(inputs)
    assert [name for name, about in inputs.items() if about.get("required")] == ["suite"]
    assert all(about.get("required") or "default" in about for about in inputs.values())
    (job,) = workflow(FILES[".github/workflows/gate.yml"])["jobs"].values()
    assert job["uses"].endswith(path.relative_to(ROOT).as_posix() + "@main")
    assert set(job["with"]) <= set(inputs)


def test_the_script_of_the_gate_passes_and_fails_as_check_does(tmp_path: Path, site: Path) -> None:
    """With a suite that ships and its baseline, and with one that claims nothing."""
    step = scripts(workflow(ROOT / ".github" / "workflows" / "gate.yml"))["gate"]
    assert set(step["env"]) == {"SUITE", "BASELINE", "PLUGIN"}
    done = shell(step["run"], tmp_path, site, SUITE="smoke", BASELINE="", PLUGIN="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"VERDICT pass \(0\)  8 of 8 checks, (\d+) of \1 comparisons", done.stdout)
    (tmp_path / "no claim.toml").write_text(TINY)
    done = shell(step["run"], tmp_path, site, SUITE="no claim.toml", BASELINE="none", PLUGIN="")
    assert done.returncode == 4, done.stdout + done.stderr
    (report,) = ElementTree.parse(tmp_path / "gate" / "junit.xml").getroot()
    assert (report.get("tests"), report.get("failures")) == ("1", "1")
