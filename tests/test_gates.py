"""docs/gates.md and the workflows: a repository that gates its rule is made in an empty folder, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import warm

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
    """The package and its command, as pip installs them: no checkout is near."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "gradbench", folder / "gradbench", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bin").mkdir()
    command = folder / "bin" / "gradbench"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gradbench "$@"\n')
    command.chmod(0o755)
    return folder


def made(folder: Path) -> Path:
    """The files of the page in a folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository of the page."""
    return made(tmp_path / "mine")


@pytest.fixture(scope="module")
def measured(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same after the commands of the page, and what they said."""
    folder = made(tmp_path_factory.mktemp("mine"))
    return folder, shell(SHELL[1], folder, site)


def shell(script: str, folder: Path, site: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A script as GitHub runs it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))} | more
    env |= {"PATH": f"{site / 'bin'}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(site)}
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(bash, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def by_pytest(folder: Path, *arguments: str) -> str:
    """What pytest says of the tests of a folder, in a forked process that finds torch imported.

    The plugin is named, since what runs here may not be what is installed; a test of the wheel finds it by itself.
    """
    told = folder.parent / "told"
    told.unlink(missing_ok=True)
    code = "import os, sys, pytest; os.chdir(sys.argv[1]); sys.exit(pytest.main(sys.argv[2:]))"
    plugins = ("gradbench.pytest_plugin", "no:cacheprovider", "no:benchmark")
    warm.ended(warm.start(code, folder, *(f"-p{name}" for name in plugins), *arguments, streams={1: told}))
    return told.read_text()


def broken(repository: Path) -> None:
    path = repository / "rules.py"
    text = path.read_text()
    path.write_text(text.replace("total + term", "total - term"))
    assert path.read_text() != text


def test_the_page_has_a_rule_a_suite_tests_and_ten_lines_of_ci() -> None:
    assert set(FILES) == {"rules.py", "suites/mine.toml", "test_rules.py", ".github/workflows/gate.yml"}
    assert len(FILES[".github/workflows/gate.yml"].splitlines()) == 11  # the first one names the file
    assert len(SHELL) == 2


def test_the_repository_passes_its_tests_and_not_with_a_broken_rule(repository: Path) -> None:
    assert SHELL[0] == "pytest\n"
    told = by_pytest(repository)
    assert "3 passed" in told, told
    assert {p.name for p in repository.iterdir()} <= {*(n.partition("/")[0] for n in FILES), "__pycache__"}
    broken(repository)
    told = by_pytest(repository, "-k", "the_gradient")
    assert "1 failed" in told, told
    (shown,) = (text for kind, text in BLOCKS if kind == "text")
    for line in shown.splitlines():
        assert blank(line) in map(blank, told.splitlines()), told


def blank(line: str) -> str:
    """A line in which spaces are one, and numbers, keys and folders are none."""
    return re.sub(r"\b[0-9a-f]{16}\b|/\S+|[\d.]+(e-\d+)?", "#", " ".join(line.replace("FOLDER", "/folder").split()))


def test_the_commands_of_the_page_pass(measured: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = measured
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"VERDICT pass \(0\)  2 of 2 checks, (\d+) of \1 comparisons", done.stdout)
    assert (folder / "results" / "baselines" / "mine.parquet").is_file()
    assert {p.name for p in (folder / "gate").iterdir()} == {"junit.xml", "gate.md"}


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


def test_the_script_of_the_gate_fails_as_check_does(
    measured: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, site: Path
) -> None:
    """With what the page hands over, and a rule that is broken since its baseline."""
    step = scripts(workflow(ROOT / ".github" / "workflows" / "gate.yml"))["gate"]
    assert set(step["env"]) == {"SUITE", "BASELINE", "PLUGIN"}
    (job,) = workflow(FILES[".github/workflows/gate.yml"])["jobs"].values()
    repository = Path(shutil.copytree(measured[0], tmp_path / "mine"))
    broken(repository)
    done = shell(step["run"], repository, site, **{name: job["with"][name.lower()] for name in step["env"]})
    assert done.returncode == 1, done.stdout + done.stderr
    cases = ElementTree.parse(repository / "gate" / "junit.xml").getroot().iter("testcase")
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert {"verdict", "neumann follows backpropagation where T2 is long", "rel_error is no worse"} <= failed
    assert "every cell of the baseline" not in failed
    assert "| FAIL | baseline | `rel_error is no worse` |" in (repository / "gate" / "gate.md").read_text()
