"""Trainings of systems that hold their examples: those that `gradbench.system` made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradbench as gb
from gradbench.commands.trainings import Training
from gradbench.data.streams import Streams
from gradbench.engine.checkpoint import load_params
from gradbench.training import config

T1, BATCH, STEPS, LR = 40, 5, 7, 1e-2


def layer() -> nn.ModuleDict:
    torch.manual_seed(3)
    net = nn.ModuleDict({"recur": nn.Linear(6, 6), "enter": nn.Linear(4, 6), "head": nn.Linear(6, 3)})
    nn.init.orthogonal_(net["recur"].weight, 0.6)  # type: ignore[arg-type]
    return net


NET = layer()
DATA = {
    "x": torch.randn(12, 4, generator=torch.Generator().manual_seed(0)),
    "label": torch.arange(12) % 3,
    "tilt": torch.linspace(-0.1, 0.1, 6),
}


def step(net: Any, x: Any, z: Any) -> Any:
    return torch.tanh(net["recur"](z) + net["enter"](x["x"]) + x["tilt"])


def cost(net: Any, x: Any, z: Any) -> Any:
    return functional.cross_entropy(net["head"](z), x["label"], reduction="none")


def made(**changes: Any) -> Any:
    how = {
        "step": step,
        "cost": cost,
        "state": lambda net, x: torch.zeros(len(x["x"]), 6),
        "params": NET,
        "data": DATA,
        "shared": ["tilt"],
        "defaults": {"T1": T1, "T2": 20, "beta": 0.01},
        "name": "held",
    }
    return gb.system(**how | changes)


def asked(system: Any, **changes: Any) -> dict[str, Any]:
    plain = {
        "system": system,
        "estimator": "bptt",
        "batch": BATCH,
        "steps": STEPS,
        "seeds": [0, 4],
        "dtype": "float64",
        "log_every": 1,
        "fidelity_every": 3,
        "optimiser": {"lr": LR, "weight_decay": 0.1},
    }
    return plain | changes


def by_hand(seed: int, over: float) -> tuple[nn.Module, list[float]]:
    """The same training in plain torch: unrolled steps, AdamW, half a cosine; mean cost before every update."""
    net = layer().double()
    x = {n: v.double() if v.is_floating_point() else v for n, v in DATA.items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    seen = []
    for k in range(STEPS):
        epoch, slot = divmod(k, 12 // BATCH)
        order = torch.randperm(12, generator=Streams(seed).part(f"epoch {epoch}")["data"])
        rows = order[slot * BATCH : (slot + 1) * BATCH]
        batch = {n: v if n == "tilt" else v[rows] for n, v in x.items()}
        z = torch.zeros(BATCH, 6, dtype=torch.float64)
        for _ in range(T1):
            z = step(net, batch, z)
        costs = cost(net, batch, z)
        optimiser.zero_grad()
        (costs.sum() / over).backward()
        optimiser.step()
        schedule.step()
        seen.append(costs.mean().item())
    return net, seen


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return gb.train(asked(made()), out=tmp_path_factory.mktemp("results"), device="cpu")


def test_a_training_by_bptt_is_that_of_plain_torch(done: Training) -> None:
    log = done.log
    for seed in (0, 4):
        net, seen = by_hand(seed, over=1.0)
        theta = load_params(done.checkpoint, seed)
        for name, p in net.named_parameters():
            torch.testing.assert_close(theta[name], p.data, rtol=1e-10, atol=1e-12)
        trained = log[(log["seed"] == seed) & log["train"].notna()]
        assert trained["train"].tolist() == pytest.approx(seen, rel=1e-10)
    assert set(log["score"]) == {"cost"}
    assert log["test"].isna().all()  # all examples are to train on


def test_the_mean_cost_is_that_of_the_sum_divided_by_the_batch(tmp_path: Path) -> None:
    mean = made(cost=lambda net, x, z: cost(net, x, z).mean(), cost_of="mean", name="held mean")
    done = gb.train(asked(mean, seeds=4), out=tmp_path, device="cpu")
    net, seen = by_hand(4, over=BATCH)
    theta = load_params(done.checkpoint, 4)
    for name, p in net.named_parameters():
        torch.testing.assert_close(theta[name], p.data, rtol=1e-9, atol=1e-11)
    log = done.log
    assert log[log["train"].notna()]["train"].tolist() == pytest.approx(seen, rel=1e-9)


def test_fidelity_is_that_of_measure_at_the_trained_weights(done: Training) -> None:
    row = done.log[(done.log["seed"] == 4) & (done.log["step"] == STEPS)].iloc[0]
    assert row["status"] == "settled"
    assert row["cosine_min"] == pytest.approx(1.0, abs=1e-12)  # the rule is the reference
    order = torch.randperm(12, generator=Streams(4).part("fidelity")["data"])[:BATCH]
    data = {n: v if n == "tilt" else v[order] for n, v in DATA.items()}
    m = gb.measure(
        made(), "bptt", batch=BATCH, dtype="float64", data=data, params=load_params(done.checkpoint, 4), seed=4
    )
    assert row["residual"] == pytest.approx(m.residual, rel=1e-6)


def test_it_goes_on_where_it_was_cut_off_and_an_edited_function_begins_anew(tmp_path: Path) -> None:
    whole = gb.train(asked(made(), estimator="aep"), out=tmp_path / "whole", device="cpu")

    def stop(progress: Any) -> None:
        if progress.done_weight == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gb.train(asked(made(), estimator="aep"), out=tmp_path / "cut", device="cpu", watch=stop)
    again = gb.train(asked(made(), estimator="aep"), out=tmp_path / "cut", device="cpu")
    assert len(list((tmp_path / "cut" / "training" / "session").glob("2*"))) == 1
    for name, p in load_params(whole.checkpoint, 0).items():
        assert torch.equal(load_params(again.checkpoint, 0)[name], p)
    edited = made(step=lambda net, x, z: step(net, x, z) * 0.9)
    gb.train(asked(edited, estimator="aep", steps=1), out=tmp_path / "cut", device="cpu")
    assert len(list((tmp_path / "cut" / "training" / "session").glob("2*"))) == 2


def test_a_suite_measures_at_the_trained_weights_and_the_curve_has_no_line_of_a_test(
    done: Training, tmp_path: Path
) -> None:
    grid = {"system": made(), "estimator": "aep", "params_from": str(done.folder), "seed": [0, 4]}
    cells = gb.run(gb.suite(grid), out=tmp_path, device="cpu").cells
    fresh = gb.run(gb.suite({k: v for k, v in grid.items() if k != "params_from"}), out=tmp_path, device="cpu").cells
    assert (cells["reference_norm"] != fresh["reference_norm"]).all()
    svg = next(path for path in done.draw() if path.suffix == ".svg").read_text()
    assert "mean cost of an example" in svg
    assert "train" in svg
    assert ">test<" not in svg


@pytest.mark.fast
def test_what_it_takes_is_what_a_file_takes_and_mistakes_are_told() -> None:
    parsed = config.load(asked(made()), {"epochs": 3})
    assert (parsed.name, parsed.length, parsed.parts, parsed.test_batches) == ("session", 6, (12, 0), 0)
    for changes, told in (
        ({"batch": 13}, "config: system: batch = 13: the data of 'held' have 12 examples"),
        ({"random_targets": True}, "config: random_targets: held holds its data"),
        ({"norm_cap": {"recur": 2}}, "config: norm_cap.recur: held has no such parameter. Did you mean 'recur.bias'?"),
        ({"stepz": 1}, "config: stepz: unknown key. Did you mean 'steps'?"),
        ({"estimator": 3}, "config: estimator: 3 is neither a name nor a table with a name"),
    ):
        with pytest.raises(gb.UserError) as error:
            config.load(asked(made()) | changes)
        assert told in str(error.value)
