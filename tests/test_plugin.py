"""Plugins as a user has them: files and modules with --plugin, and an installed package with entry points."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gradbench as gb
from gradbench import cli
from gradbench.errors import UserError
from gradbench.planning import plugins, registry

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example-plugin"
DEQ = """
import torch
from torch import nn

import gradbench as gb
from helper_of_deq import squared

print("talk")
torch.manual_seed(0)
net = nn.Linear(3, 3).double()
deq = gb.system(
    step=lambda net, x, z, k: torch.tanh(k.gain * net(z) + x["x"]),
    cost=lambda net, x, z: squared(z),
    state=lambda net, x: torch.zeros_like(x["x"]),
    params=net,
    data={"x": torch.randn(2, 3)},
    knobs={"gain": 0.5},
    defaults={"T1": 40, "T2": 20, "beta": 0.02},
    name="my deq",
)
"""
HELPER = "def squared(z):\n    return z.square().sum(-1)\n"
RULE = '''
from dataclasses import dataclass

import gradbench as gb
from gradbench.estimators.bptt import Bptt


@gb.register
@dataclass(frozen=True)
class Mine(Bptt):
    """The reference under another name."""

    name = "mine"
'''
SUITE = """
about = "mine"
[[grid]]
system = "my deq"
estimator = ["bptt", "mine", "aep"]
gain = [0.4, 0.5]
[[check]]
name = "mine is the reference"
where = { estimator = "mine", gain = 0.4 }
metric = "cosine_min"
min = 0.999999
"""


def forget() -> None:
    """What a new process would not know."""
    registry._handed.clear()
    for named in registry._of_session.values():
        named.clear()
    plugins._loaded.clear()
    for name in ("helper_of_deq", "gradbench_ring", "rule"):
        sys.modules.pop(name, None)
    registry._registered.cache_clear()
    registry._forget()


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_handed", {})
    monkeypatch.setattr(registry, "_of_session", {"systems": {}, "estimators": {}})
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a helper is edited within a second
    forget()
    yield
    forget()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command, as if in a process of its own: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        forget()
        code = cli._code(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user who has two plugins and a suite."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("deq.py", DEQ), ("helper_of_deq.py", HELPER), ("rule.py", RULE), ("mine.toml", SUITE)):
        Path(name).write_text(text)
    return tmp_path


BOTH = ("--plugin", "deq.py", "--plugin", "rule.py")


def test_a_plugin_is_known_to_every_verb(folder: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("list", "--json", *BOTH)
    assert code == 0
    assert "my deq" in json.loads(out)["systems"]
    assert "mine" in json.loads(out)["estimators"]
    assert err == "talk\n"
    assert json.loads(command("show", "my deq", "--json", *BOTH)[1])["options"]["gain"] == 0.5
    assert "Did you mean 'my deq'?" in command("show", "my deqq", *BOTH)[2]
    code, out, err = command("plan", "mine.toml", *BOTH)
    assert code == 0
    assert err.endswith("next: gradbench run --plugin deq.py --plugin rule.py mine.toml\n")
    code, first, _ = command("run", "mine.toml", *BOTH)
    assert code == 0
    run = Path(first.splitlines()[-1])
    told = json.loads((run / "env.json").read_text())["plugins"]
    assert [plugin["path"] for plugin in told] == [str(folder / "deq.py"), str(folder / "rule.py")]
    assert [list(plugin["items"]) for plugin in told] == [["system 'my deq'"], ["estimator 'mine'"]]
    Path("deq.py").write_text(f"# a comment{DEQ}")
    assert Path(command("run", "mine.toml", *BOTH)[1].splitlines()[-1]) == run
    code, out, _ = command("check")  # needs no code
    assert (code, "VERDICT pass" in out) == (0, True)
    code, out, err = command("explain", "--where", "estimator=mine,gain=0.4")
    assert code == 0, err
    assert out.splitlines()[0].partition("  ")[2].startswith("my deq gain=0.4 mine T1=40")


def test_tune_takes_a_name_with_a_space_and_options(folder: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    small = ("--set", "T1=40", "--set", "T2=10", "--set", "beta=0.01", "--set", "seed=0", "--json")
    code, out, err = command("tune", "my deq gain=0.4", "aep", "--plugin", "deq.py", *small)
    assert code == 0, err
    assert json.loads(out)["chosen"]["T1"] == 40
    assert "'my deqq' is not registered. Did you mean 'my deq'?" in command("tune", "my deqq", "aep", *BOTH)[2]


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("p.py", "import gradbench\n\nraise KeyError('a')\n", "plugin p.py, line 3: KeyError: 'a'"),
        ("p.py", "x = (\n", "plugin p.py, line 1: SyntaxError: '(' was never closed"),
        ("p.py", "import sys\nsys.exit(2)\n", "plugin p.py, line 2: SystemExit: 2"),
        ("p.py", "import nowhere_at_all\n", "plugin p.py, line 1: ModuleNotFoundError: No module named"),
        ("p.py", "x = 1\n", "plugin p.py: registers nothing"),
        ("p.py", RULE.replace("@gb.register\n", ""), "for its class Mine write gradbench.register(Mine)"),
        ("p.py", RULE.replace('"mine"', '"ep"'), "line 8: register: the name 'ep' is taken by gradbench.estimators.ep"),
        ("p.py", RULE + RULE, "the estimator 'mine' is defined twice; one needs another name"),
        ("p.py", "import gradbench as gb\ngb.register(3)\n", "line 2: register: got an int, expected a system or an"),
        (
            "p.py",
            RULE.replace("@dataclass(frozen=True)\n", "")
            .replace("(Bptt)", "(AbstractEstimator)")
            .replace(
                "from gradbench.estimators.bptt import Bptt",
                "from gradbench.estimators.base import AbstractEstimator",
            ),
            "line 8: register: Mine does not define phase, read",
        ),
        ("p.py", RULE.replace('"mine"', '"a/b"'), "line 8: register: name = 'a/b': it holds a slash"),
        ("p.toml", "x = 1\n", "plugin p.toml: expected a Python file, NAME.py, or the name of a module"),
        ("rulee.py", None, "plugin rulee.py does not exist. Did you mean 'rule.py'?"),
        ("rule_of_nobody", None, "plugin 'rule_of_nobody': there is no such module"),
        ("rul", None, "plugin 'rul': there is no such module. Did you mean 'rule.py'?"),
        ("jsn", None, "plugin 'jsn': there is no such module. Nothing was run."),
        ("a b", None, "plugin 'a b' is neither a file, NAME.py, nor the name of a module"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    folder: Path, command: Callable[..., tuple[int, str, str]], file: str, text: str | None, told: str
) -> None:
    if text is not None:
        Path(file).write_text(text)
    code, out, err = command("list", "--plugin", file)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert "mine" not in gb.estimators()


def test_two_plugins_with_one_name_are_named(folder: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    Path("again.py").write_text(RULE)
    _, _, err = command("list", "--plugin", "rule.py", "--plugin", "again.py")
    assert f"'mine' is defined by {folder / 'rule.py'} and by {folder / 'again.py'}; one needs another name" in err


def test_a_module_of_the_path_is_a_plugin_also_where_it_was_imported_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    import rule  # type: ignore[import-not-found]

    assert gb.estimators().count("mine") == 1
    (loaded,) = plugins.load("rule")
    assert (loaded.path, list(loaded.items)) == ("rule", ["estimator 'mine'"])
    assert registry.known_estimators()["mine"] is rule.Mine
    del sys.modules["rule"]


def test_explain_says_what_became_of_the_plugin(folder: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    cell = ("explain", "--where", "estimator=aep,gain=0.4")
    assert command("run", "mine.toml", *BOTH)[0] == 0
    Path("helper_of_deq.py").write_text(HELPER.replace("z.square()", "2 * z.square()"))
    code, _, err = command(*cell)
    assert code == 2
    assert "the system 'my deq' of run" in err
    assert "is not what plugin deq.py makes of it now" in err
    assert "--plugin FILE.py" in err
    Path("helper_of_deq.py").write_text(HELPER)
    Path("deq.py").rename("moved.py")
    code, _, err = command(*cell)
    assert code == 2
    assert f"plugin {folder / 'deq.py'} of run" in err
    assert "is not there; say with --plugin FILE.py where it is" in err
    assert command(*cell, "--plugin", "moved.py")[0] == 0


def test_explain_finds_the_module_of_a_class_that_no_plugin_named(
    folder: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    importlib.import_module("rule")
    suite = gb.suite({"system": {"name": "toy_cons", "N": 2, "D": 4}, "estimator": "mine", "T1": 20, "batch": 2})
    told = gb.run(suite, device="cpu").env["plugins"]
    assert [(p["path"], list(p["items"])) for p in told] == [("rule", ["estimator 'mine'"])]
    Path("rule.py").write_text(f"# a comment{RULE}")
    assert command("explain")[0] == 0
    Path("rule.py").write_text(RULE + "\n    def terms(self, T2):\n        return 3\n")
    code, _, err = command("explain")
    assert code == 2
    assert "the estimator 'mine' of run" in err
    assert "is not what plugin rule makes of it now" in err


def test_an_item_of_the_session_overrides_one_of_a_file_and_a_label_may_have_spaces(
    folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    made: dict[str, Any] = {}
    sys.path.insert(0, str(folder))
    exec(DEQ, made)
    Path("toy.toml").write_text('about = "a toy"\n[[grid]]\nsystem = "toy_cons"\nestimator = "bptt"\n')
    results = gb.run("toy.toml", overrides={"system": type(made["deq"])(gain=0.4)}, device="cpu")
    assert results.cells["system"].tolist() == ["my deq"]
    assert results.cells["gain"].tolist() == [0.4]
    code, out, err = command("conform", "my deq gain=0.4", "--batch", "2", "--plugin", "deq.py")
    assert code == 0, out + err
    with pytest.raises(UserError, match=r"plugins: got 3, expected files, NAME.py, or names of modules"):
        gb.run("toy.toml", plugins=3)  # type: ignore[arg-type]


def test_what_a_session_made_is_explained_there_and_nowhere_else(
    folder: Path, command: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, Any] = {}
    sys.path.insert(0, str(folder))
    exec(DEQ, made)
    results = gb.run(gb.suite({"system": made["deq"], "estimator": "aep"}, name="here"), device="cpu")
    assert results.env["plugins"] == []
    assert cli._code(["explain"]) == 0
    capsys.readouterr()
    code, _, err = command("explain")
    assert code == 2
    assert "was made in a Python session, which is over, and its code is in no plugin" in err
    assert "--plugin FILE.py" in err
    assert command("explain", "--plugin", "deq.py")[0] == 0  # it makes the same


def test_the_identity_of_a_run_holds_its_plugins(folder: Path) -> None:
    suite = gb.suite({"system": {"name": "toy_cons", "N": 2, "D": 4}, "estimator": "mine", "T1": 5, "batch": 2})
    first = gb.run(suite, plugins=["rule.py"], device="cpu")
    again = gb.run(suite, device="cpu")  # the name is there, and its plugin stands behind it
    assert again.folder == first.folder
    assert [plugin["path"] for plugin in again.env["plugins"]] == [str(folder / "rule.py")]
    Path("rule.py").write_text(RULE + "\n    def terms(self, T2):\n        return 3\n")
    changed = gb.run(suite, plugins="rule.py", device="cpu")
    assert changed.folder != first.folder
    assert registry.estimator("mine").terms(1) == 3


def test_what_no_digest_sees_begins_a_new_run_each_time(
    folder: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    Path("rule.py").write_text(RULE + "    stream = open(__file__)\n")
    Path("one.toml").write_text('about = ""\n[[grid]]\nsystem = "toy_cons"\nestimator = "mine"\nT1 = 5\n')
    told = [command("run", "one.toml", "--plugin", "rule.py") for _ in range(2)]
    assert len({out.splitlines()[-1] for _, out, _ in told}) == 2
    assert "no digest sees all that decides its numbers: estimator 'mine': Mine.stream: a TextIOWrapper" in told[0][2]
    code, _, err = command("explain")
    assert code == 2
    assert "can be explained only in the session that made it" in err


def test_register_gives_a_name_to_what_the_session_made(folder: Path) -> None:
    made: dict[str, Any] = {}
    sys.path.insert(0, str(folder))
    exec(DEQ, made)
    deq = made["deq"]
    assert "my deq" not in gb.systems()
    assert gb.register(deq) is deq
    other = gb.register(deq, "other deq")
    assert {"my deq", "other deq"} <= set(gb.systems())
    assert other.name == "other deq"
    asked = {"T1": 20, "T2": 10, "beta": 0.02, "gain": 0.3}
    assert gb.measure("other deq", "aep", **asked).cosine == gb.measure(deq, "aep", **asked).cosine
    with pytest.raises(UserError, match=r"register: the name 'toy_cons' is taken by gradbench.systems.toy"):
        gb.register(deq, "toy_cons")
    gb.register(gb.estimator(name="mine", source="a test")(lambda free: free.cost_slope))
    for taken in ("ep", "mine"):
        with pytest.raises(
            UserError, match=f"register: the name '{taken}' is that of an estimator; choose another one"
        ):
            gb.register(deq, taken)
    with pytest.raises(UserError, match=r"register: my deq has the options gain=0.7; a name has none"):
        gb.register(type(deq)(gain=0.7))
    tuned = gb.tune(deq, "aep", 0.5, {"T1": 40, "T2": 10, "beta": 0.01, "seed": 0}, device="cpu")
    assert tuned.chosen is not None
    with pytest.raises(UserError, match=r"estimator: got an int, expected a name, .* or what gradbench.estimator made"):
        gb.tune(deq, 3, 0.5)


def test_a_training_takes_a_rule_and_a_system_of_a_plugin(folder: Path) -> None:
    short = {"steps": 1, "seeds": 0, "eval_every": 100, "fidelity_every": 100, "T1": 2, "T2": 1}
    trained = gb.train("quick", overrides=short | {"estimator": "mine"}, plugins=["rule.py"], device="cpu")
    env = json.loads((trained.folder / "env.json").read_text())
    assert [list(plugin["items"]) for plugin in env["plugins"]] == [["estimator 'mine'"]]
    given = short | {"system": "my deq", "estimator": "ep", "optimiser": {"lr": 0.1}}
    trained = gb.train(given, plugins=["deq.py"], device="cpu")
    assert trained.log["score"].tolist() == ["cost", "cost"]


def test_the_blocks_of_the_docs_run(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: Any
) -> None:
    section = (ROOT / "docs" / "your-own.md").read_text().partition("## As a plugin, on the command line")[2]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "toml", "sh"]
    monkeypatch.chdir(tmp_path)
    for _, text in blocks[:2]:
        Path(text.partition("\n")[0].removeprefix("# ")).write_text(text)
    for line in blocks[2][1].splitlines():
        _, *arguments = shlex.split(line)
        code, _, err = command(*arguments)
        assert code == 0, f"{line}: {err}"


def test_the_example_package_is_installed_and_known(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools")
    source = shutil.copytree(EXAMPLE, tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    forget()
    assert {"ring", "one_term"} <= {*gb.systems(), *gb.estimators()}
    _, out, err = command("show", "one_term")
    assert out.startswith("one_term\n\nJacobian-free"), err
    results = gb.run(gb.suite({"system": "ring", "estimator": ["one_term", "adjoint"]}), device="cpu")
    assert list(results.cells["status"]) == ["settled"] * 2
    assert results.cells["cosine_min"][0] < results.cells["cosine_min"][1] > 0.999
    code, _, err = command("explain", "--where", "estimator=one_term")
    assert code == 0, err
