"""What decides a number decides whether a run is gone on with: plugins with their helpers, and data that are read."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradbench as gb
from gradbench.commands.environment import describe_environment
from gradbench.data import datasets
from gradbench.planning import plans, registry, suites
from gradbench.tables.disk import read_json

HELPER = """
FACTOR = 2.0
FILE = open(__import__("os").devnull)
"""
RULE = '''
from __future__ import annotations
from dataclasses import dataclass
from gradbench.estimators.base import Claim, Reading
from gradbench.estimators.bptt import Bptt
import helper_of_mine as helper


def scale(g):
    return helper.FACTOR * g[:, None]


@dataclass(frozen=True)
class Mine(Bptt):
    """A multiple of the reference."""

    name = "mine"
    claim = Claim()
    power: int = 1

    def read(self, free, snapshot, betas):
        return Reading(snapshot.depth, {n: scale(g) for n, g in snapshot.gradient.items()}, None, snapshot.evidence)
'''
SUITE = """
about = "One toy."

[[grid]]
system = { name = "toy_cons", N = 2, D = 4, out = 2 }
estimator = "%s"
T1 = 5
batch = 2
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The helper module of a rule `mine` that lies in a file of its own, and is registered."""
    made = {}
    for name, text in (("helper_of_mine", HELPER), ("rule_of_mine", RULE)):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        made[name] = types.ModuleType(name)
        made[name].__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, made[name])
        exec(compile(text, str(path), "exec", dont_inherit=True), vars(made[name]))
    with registry.scope():
        registry.register(made["rule_of_mine"].Mine)
        yield made["helper_of_mine"]
    made["helper_of_mine"].FILE.close()


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[str], Any]:
    """Run the toy with a rule."""

    def run(rule: str) -> Any:
        path = tmp_path / f"{rule}.toml"
        path.write_text(SUITE % rule)
        return gb.run(path, out=tmp_path / "results", device="cpu")

    return run


def test_an_edited_helper_of_a_plugin_is_another_run(helper: Any, run_of: Callable[[str], Any]) -> None:
    first, other = run_of("mine"), run_of("bptt")
    assert first.cells["norm_ratio"].tolist() == pytest.approx([2.0])
    assert run_of("mine").folder == first.folder
    helper.FACTOR = 5.0
    edited = run_of("mine")
    assert edited.folder != first.folder
    assert edited.cells["norm_ratio"].tolist() == pytest.approx([5.0])
    assert run_of("bptt").folder == other.folder  # which does not use the plugin
    helper.FACTOR = 2.0
    assert run_of("mine").folder == first.folder
    plugins = [read_json(run.folder / "env.json")["plugins"] for run in (first, edited, other)]
    items = [[(p["path"], list(p["items"])) for p in told] for told in plugins]
    assert items == [[("rule_of_mine", ["estimator 'mine'"])]] * 2 + [[]]
    assert plugins[0] != plugins[1]


def test_an_edit_of_the_file_of_a_plugin_is_another_run(helper: Any, run_of: Callable[[str], Any]) -> None:
    first = run_of("mine")
    file = Path(sys.modules["rule_of_mine"].__file__ or "")
    file.write_text(f"# a comment\n{RULE}")
    assert run_of("mine").folder == first.folder
    file.write_text(RULE + "\nimport torch\ntorch.set_flush_denormal(True)\n")
    assert run_of("mine").folder != first.folder


def test_a_run_that_no_digest_sees_whole_is_never_gone_on_with_and_says_why(
    helper: Any, run_of: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    helper.FACTOR = helper.FILE
    made = describe_environment("key", "cpu", [registry.estimator("mine")])
    again = describe_environment("key", "cpu", [registry.estimator("mine")])
    assert made["identity"] != again["identity"]
    reason = "estimator 'mine': helper_of_mine.FACTOR: a TextIOWrapper"
    assert made["undigested"] == reason
    folders = {run_of("mine").folder for _ in range(2)}
    assert len(folders) == 2
    said = capsys.readouterr().err
    line = f"gradbench: every run begins anew, since no digest sees all that decides its numbers: {reason}\n"
    assert said.count(line) == 2
    assert run_of("bptt").folder == run_of("bptt").folder
    assert "begins anew" not in capsys.readouterr().err


def environment_of(dataset: str, **more: bool) -> Any:
    for images in (datasets.load, datasets.part, datasets.content):  # as in a new process
        images.cache_clear()
    system = {"name": "residual_mlp", "dataset": dataset, "d_in": 3 * 32 * 32, "d": 8, "L": 2}
    content = {"name": "images", "about": "", "grid": [{"system": system, "estimator": "bptt", "batch": 2}]}
    return describe_environment("key", "cpu", plans.plan(suites.parse(content, "here")).parts, **more)


def test_edited_images_are_another_run_and_edited_test_images_another_training(
    colour_images: np.ndarray, empty_folder: Path
) -> None:
    first, training = environment_of("cifar10"), environment_of("cifar10", test=True)
    assert list(first["data"]) == ["cifar10"]
    assert environment_of("cifar10")["identity"] == first["identity"]
    edited = colour_images.reshape(6, 4, 3072)[5].copy()
    edited[0, 0] ^= 1
    folder = empty_folder / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(pickle.dumps({"data": edited, "labels": [5, 1, 2, 9]}))
    assert environment_of("cifar10")["identity"] == first["identity"]  # no run reads images to test on
    assert environment_of("cifar10", test=True)["identity"] != training["identity"]
    pixels = colour_images.reshape(6, 4, 3072)[0]
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": pixels, "labels": [1, 1, 2, 9]}))
    assert environment_of("cifar10")["data"] != first["data"]
    assert environment_of("cifar10")["identity"] != first["identity"]
    assert environment_of("fashion_mnist_sample")["data"] == {}  # a part of the source
