"""Training files: strictly checked, and shipped ones are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradbench.errors import UserError
from gradbench.planning import files
from gradbench.training import config

pytestmark = pytest.mark.fast

BASE: dict[str, Any] = {
    "name": "t",
    "about": "",
    "system": "cet_real",
    "estimator": "aep",
    "steps": 10,
    "batch": 8,
    "optimiser": {"lr": 1e-3},
}
SHIPPED = sorted(files.CONFIGS.glob("*.toml"))


def parsed(**changes: Any) -> config.Config:
    return config.parse({k: v for k, v in (BASE | changes).items() if v is not None}, "t.toml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_files_are_valid(path: Path) -> None:
    assert config.load(str(path)).length > 0


def test_what_is_left_out_takes_the_default_of_the_system() -> None:
    c = parsed()
    assert (c.s, c.damp, c.T1, c.T2, c.beta, c.eps) == (1.0, 0.0, 100, 15, 0.02, 0.2)
    assert parsed(T1=7).T1 == 7


def test_an_epoch_is_as_many_whole_batches_as_there_are() -> None:
    assert parsed(steps=None, epochs=3, batch=100).length == 15  # 512 images


def test_an_evaluation_shows_no_test_image_twice() -> None:
    assert parsed(batch=100).test_batches == 5  # 512 images
    assert parsed(batch=100, eval_batches=3).test_batches == 3


@pytest.mark.parametrize(("steps", "every"), [(10, 1), (60, 3), (999, 49), (1500, 50)])
def test_a_log_that_names_no_interval_has_twenty_rows_or_more(steps: int, every: int) -> None:
    assert parsed(steps=steps).log_every == every
    assert parsed(steps=steps, log_every=7).log_every == 7


def test_the_key_is_of_what_is_trained_and_not_of_its_name() -> None:
    assert parsed().key == parsed(name="other", about="words").key == parsed(T1=100).key
    assert parsed().key == parsed(system={"name": "cet_real", "D": 64}, estimator={"name": "aep", "clip": "none"}).key
    assert parsed().key != parsed(T1=101).key


def test_options_are_filled_in_with_those_that_follow_from_the_dataset() -> None:
    name, options = parsed(system={"name": "cet_real", "dataset": "cifar10"}).system
    assert name == "cet_real"
    assert [options[key] for key in ("dataset", "ch", "img", "patch", "D")] == ["cifar10", 3, 32, 8, 64]
    assert parsed().estimator == ("aep", {"nudge": "centred", "clip": "none"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "cet_rael"}, "t.toml: system = 'cet_rael' is not registered. Did you mean 'cet_real'?"),
        ({"system": {"name": "cet_real", "hed": 2}}, "t.toml: system.hed: system 'cet_real' has no such option"),
        ({"system": "toy_cons"}, "t.toml: system: toy_cons looks at no images"),
        ({"system": {"name": "cet_real", "dataset": "fashion"}}, "t.toml: system: dataset = 'fashion'"),
        ({"estimator": "eqprop"}, "t.toml: estimator = 'eqprop' is not registered"),
        ({"estimator": {"clip": "none"}}, "t.toml: estimator: .* is neither a name nor a table with a name"),
        ({"estimator": {"name": "ep", "readout": "energy_contrast"}}, "needs an energy, which cet_real has not"),
        ({"estimator": "control"}, "t.toml: estimator = 'control': it is made from the reference"),
        ({"estimator": "tbptt", "T1": 3, "T2": 4}, "t.toml: estimator = 'tbptt': T2 > T1"),
        ({"stepz": 3}, "t.toml: stepz: unknown key. Did you mean 'steps'?"),
        ({"optimiser": {"lr": 1e-3, "clipp": 1}}, "t.toml: optimiser.clipp: unknown key. Did you mean 'clip'?"),
        (
            {"optimiser.lr": 0.1},
            "optimiser.lr: unknown key; the whole table is set at once: optimiser = {lr = ..., ...}",
        ),
        ({"lr": 0.1}, "t.toml: lr: unknown key; it is a key of optimiser"),
        ({"name": "../../../x"}, "t.toml: name: '../../../x' cannot name a folder of runs"),
        ({"name": ""}, "t.toml: name: '' cannot name a folder"),
        ({"optimiser": {}}, "t.toml: optimiser.lr: missing"),
        ({"optimiser": {"lr": 0}}, "t.toml: optimiser.lr: 0.0 is not above 0"),
        ({"optimiser": {"lr": 1e-3, "lr_min": 1}}, "t.toml: optimiser.lr_min = 1 is above lr = 0.001"),
        ({"steps": None}, "t.toml: a training has either steps or epochs"),
        ({"epochs": 1}, "t.toml: a training has either steps or epochs"),
        ({"steps": 0}, "t.toml: steps: 0 is below 1"),
        ({"steps": 1.5}, "t.toml: steps: 1.5 is not a whole number"),
        ({"seeds": [0, 0]}, "t.toml: seeds: 0 stands there twice"),
        ({"seeds": [-1]}, "t.toml: seeds: -1 is below 0"),
        ({"seeds": []}, "t.toml: seeds: the list is empty"),
        ({"batch": 513}, "t.toml: batch = 513: a part of 'fashion_mnist_sample' has 512 images only"),
        ({"norm_cap": {"WV": 0}}, "t.toml: norm_cap.WV: 0.0 is not above 0"),
        ({"norm_cap": {"WX": 1.5}}, "t.toml: norm_cap.WX: cet_real has no such parameter"),
        ({"random_targets": True}, "t.toml: random_targets: cet_real has no labels"),
        ({"dtype": "float16"}, "t.toml: dtype: 'float16' is not a choice"),
    ],
)
def test_a_mistake_names_file_key_and_way_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parsed(**changes)


def test_keys_can_be_replaced_and_steps_replace_epochs(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('about = ""\nsystem = "cet_real"\nestimator = "ep"\nepochs = 2\n[optimiser]\nlr = 1e-3\n')
    assert config.load(str(path)).length == 16
    assert config.load(str(path), {"steps": 5}).length == 5


def test_a_name_that_does_not_ship_is_told_with_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"training 'quik' does not exist\. Did you mean 'quick'"):
        config.load("quik")
