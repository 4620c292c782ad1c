"""One step: the gradient is the rule's, the update is AdamW's, and seeds do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradbench.data import datasets
from gradbench.dynamics.stack import Plain
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.bptt import Bptt
from gradbench.estimators.tbptt import Tbptt
from gradbench.training.config import Optimiser
from gradbench.training.state import State, descend, gradient
from gradbench.training.trainer import Trainer
from gradbench.vocabulary.coordinates import Knobs

Make = Callable[..., Any]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state() -> State:
    return State.start({"A": random(2, 3, 4), "b": random(2, 5, seed=1)})


@pytest.mark.fast
@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_steps_equal_those_of_torch_adamw(clip: float | None) -> None:
    ours = state()
    theirs = [{n: torch.nn.Parameter(p[c].clone()) for n, p in ours.theta.items()} for c in range(2)]
    optimisers = [torch.optim.AdamW(p.values(), lr=1e-2, weight_decay=0.3) for p in theirs]
    how = Optimiser(lr=1e-2, weight_decay=0.3, clip=clip)
    for step in range(4):
        grads = {n: random(*p.shape, seed=10 * step + i) for i, (n, p) in enumerate(reversed(ours.theta.items()))}
        lr = 1e-2 / (step + 1)
        descend(ours, grads, torch.tensor(lr, dtype=torch.float64), how, {})
        for c in range(2):
            for name, p in theirs[c].items():
                p.grad = grads[name][c].clone()
            if clip:
                torch.nn.utils.clip_grad_norm_(theirs[c].values(), clip)
            optimisers[c].param_groups[0]["lr"] = lr
            optimisers[c].step()
            for name, p in theirs[c].items():
                torch.testing.assert_close(ours.theta[name][c], p.data, rtol=1e-12, atol=1e-14)


@pytest.mark.fast
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_seed_whose_gradient_is_not_finite_stands_still_and_the_other_does_not_see_it(bad: float) -> None:
    how, lr = Optimiser(lr=1e-2, clip=1.0), torch.tensor(1e-2, dtype=torch.float64)
    grads = {n: torch.ones_like(p) for n, p in state().theta.items()}
    good, hurt = state(), state()
    descend(good, grads, lr, how, {})
    spoilt = {n: g.clone() for n, g in grads.items()}
    spoilt["A"][1, 0, 0] = bad
    descend(hurt, spoilt, lr, how, {"A": torch.tensor([1e9, 1e-3])})
    for name, before in state().theta.items():
        assert torch.equal(hurt.theta[name][0], good.theta[name][0])
        assert torch.equal(hurt.theta[name][1], before[1])
    assert (hurt.taken.tolist(), hurt.skipped.tolist(), hurt.counted.tolist()) == ([1, 0], [0, 1], [1, 0])
    assert hurt.norm.tolist() == [pytest.approx(17**0.5), 0.0]
    assert not hurt.m[1].any()


def test_a_norm_above_its_cap_is_scaled_back_to_it_and_one_below_is_left_alone() -> None:
    ours = state()
    norms = ours.theta["A"].flatten(1).norm(dim=-1)
    grads = {n: torch.zeros_like(p) for n, p in ours.theta.items()}
    before = ours.theta["A"].clone()
    caps = {"A": norms * torch.tensor([0.5, 2.0])}
    descend(ours, grads, torch.tensor(0.0, dtype=torch.float64), Optimiser(lr=1.0), caps)
    torch.testing.assert_close(ours.theta["A"][0], before[0] / 2)
    assert torch.equal(ours.theta["A"][1], before[1])


@pytest.mark.fast
def test_the_learning_rate_is_that_of_torch_cosine_annealing(tiny: Make) -> None:
    trainer = Trainer(tiny(), "cpu")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6, eta_min=1e-4)
    for step in range(6):
        assert trainer.lr(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("rule", ["bptt", "tbptt", "ep", "aep", "adjoint"])
def test_seeds_trained_together_are_seeds_trained_alone(tiny: Make, rule: str) -> None:
    together = Trainer(tiny(estimator=rule), "cpu")
    alone = [Trainer(tiny(estimator=rule, seeds=[seed]), "cpu") for seed in (0, 1)]
    for step in range(3):
        for trainer in (together, *alone):
            trainer.advance(step)
    for c, trainer in enumerate(alone):
        for name, p in trainer.state.theta.items():
            torch.testing.assert_close(together.state.theta[name][c], p[0], rtol=1e-9, atol=1e-12)
        assert together.test()[c] == pytest.approx(trainer.test()[0], rel=1e-9)
    assert not torch.equal(together.state.theta["Wenc"][0], together.state.theta["Wenc"][1])


def unrolled(trainer: Trainer, T1: int, depth: int) -> dict[str, torch.Tensor]:
    """Autograd through the last `depth` of T1 steps, summed over the batch of every seed."""
    drawn = trainer.batches.train(0)
    theta = {n: p.clone().requires_grad_() for n, p in trainer.state.theta.items()}
    system, data, cost = trainer.system, trainer.batches.shown(drawn, train=True), torch.zeros(())
    for c in range(2):
        own, x = ({n: v[c] for n, v in values.items()} for values in (theta, data))
        knobs = Knobs(*(v[c] for v in trainer.knobs))
        s, context = system.init_state(own, x).detach(), system.context(own, x)
        for t in range(T1):
            s = s + knobs.eps * system.force(own, x, context, s, knobs)
            s = s if t >= T1 - depth else s.detach()
        cost = cost + system.cost(own, x, s).sum()
    return dict(zip(theta, torch.autograd.grad(cost, list(theta.values())), strict=True))


@pytest.mark.fast
@pytest.mark.parametrize(("rule", "depth"), [(Bptt(), 12), (Tbptt(), 4)])
def test_the_gradient_is_that_of_the_unrolled_steps(tiny: Make, rule: Any, depth: int) -> None:
    """tbptt of T2 steps is T1 - T2 steps without and T2 with a graph; only these are swept back."""
    trainer = Trainer(tiny(), "cpu")
    field = trainer._field(Plain, trainer.batches.train(0), train=True)
    ours = gradient(rule, relax(field, (12,)), 4, trainer.betas)
    for name, theirs in unrolled(trainer, 12, depth).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.fast
def test_batches_are_a_function_of_seed_and_step_and_an_epoch_shows_every_image_once(tiny: Make) -> None:
    batches = Trainer(tiny(batch=128), "cpu").batches
    epoch = torch.cat([batches.train(step)["index"] for step in range(4)], -1)
    assert [sorted(row) for row in epoch.tolist()] == [list(range(512))] * 2
    assert not torch.equal(epoch[0], epoch[1])
    again = Trainer(tiny(batch=128), "cpu").batches.train(3)
    assert all(torch.equal(v, batches.train(3)[n]) for n, v in again.items())
    assert not torch.equal(batches.train(4)["mask"], batches.train(3)["mask"])
    first, second = batches.test(0), batches.test(1)
    assert first["index"].tolist() == [list(range(128))] * 2
    assert torch.equal(first["mask"][0], first["mask"][1])
    assert not torch.equal(first["mask"], second["mask"])


def test_the_score_is_the_squared_error_of_a_masked_pixel(tiny: Make) -> None:
    trainer = Trainer(tiny(), "cpu")
    field = trainer._field(Plain, trainer.batches.train(0), train=True)
    s = relax(field, (12,)).ends[0]
    y = trainer.system.split(s)["y"]
    for c, score in enumerate(trainer.batches.score(field, s).tolist()):
        hidden = field.x["mask"][c].bool()
        assert score == pytest.approx(float((y[c] - field.x["x"][c])[hidden].square().mean()))


class Operations(TorchDispatchMode):
    """Names of all operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("system", ["cet_real", "cet", "labelled"])
@pytest.mark.parametrize("rule", ["bptt", "tbptt", {"name": "aep", "clip": "batch"}, "ep", "adjoint"])
@pytest.mark.usefixtures("labelled")
def test_a_step_asks_nothing_of_the_host(tiny: Make, system: str, rule: Any) -> None:
    """What reads a value, or makes a tensor of a Python number, cannot be recorded as a graph."""
    if system == "labelled" and isinstance(rule, dict):
        rule = "aep"  # the clip is one of tokens
    sizes = {"D": 8, "heads": 2, "dh": 4, "mem": 6, "patch": 14, "img": 28, "ch": 1}
    changes: dict[str, Any] = {"norm_cap": None} if system == "labelled" else {"norm_cap": {"WQ": 1.5}}
    trainer = Trainer(
        tiny(system={"name": system, **({} if system == "labelled" else sizes)}, estimator=rule, **changes), "cpu"
    )
    drawn, lr = trainer.batches.train(0), torch.full((), 1e-3, dtype=torch.float64)
    with Operations() as seen:
        trainer._advance(drawn, lr)
        trainer._test(trainer.batches.test(0))
    assert "logsumexp" in seen.names or "_softmax" in seen.names  # the mode sees into stacks
    assert not {"_local_scalar_dense", "lift_fresh", "nonzero", "equal", "is_nonzero"} & seen.names


@pytest.mark.usefixtures("labelled")
def test_labels_are_learnt_and_the_score_is_the_share_of_right_ones(tiny: Make) -> None:
    changes = {"damp": None, "norm_cap": None, "T1": None, "T2": None, "batch": 32, "steps": 30}
    trainer = Trainer(tiny(system="labelled", estimator="bptt", **changes), "cpu")
    before = trainer.test()
    for step in range(30):
        trainer.advance(step)
    assert all(after > b + 0.2 for after, b in zip(trainer.test(), before, strict=True))
    field = trainer._field(Plain, trainer.batches.test(0), train=False)
    s = relax(field, (20,)).ends[0]
    right = (s @ trainer.state.theta["V"]).argmax(-1) == field.x["label"]
    assert trainer.batches.score(field, s).tolist() == pytest.approx(right.double().mean(-1).tolist())


@pytest.mark.usefixtures("labelled")
def test_random_targets_are_new_in_every_step_and_never_those_of_the_test(tiny: Make) -> None:
    changes = {"system": "labelled", "estimator": "ep", "damp": None, "norm_cap": None, "batch": 64}
    plain, control = (Trainer(tiny(random_targets=r, **changes), "cpu").batches for r in (False, True))
    assert torch.equal(plain.train(0)["index"], control.train(0)["index"])
    labels = [b.shown(b.train(step), train=True)["label"] for b in (plain, control) for step in (0, 8)]
    assert float((labels[0] == labels[2]).double().mean()) < 0.25
    assert not torch.equal(labels[2], labels[3])
    test = [b.shown(b.test(0), train=False)["label"] for b in (plain, control)]
    assert torch.equal(*test)


@pytest.mark.parametrize("name", ["residual_mlp_ep", "residual_mlp_ep_sum", "residual_mlp_bp"])
def test_the_residual_mlp_takes_a_step_by_every_rule(name: str) -> None:
    from gradbench.training import config

    content = config.load(name).model_dump(mode="json", exclude_none=True)
    options = {"name": "residual_mlp", **content["system"][1], "dataset": "fashion_mnist_sample", "d": 16, "L": 2}
    rule = {"name": content["estimator"][0], **content["estimator"][1]}
    trainer = Trainer(config.parse(content | {"system": options, "estimator": rule, "eval_batches": 1}, name), "cpu")
    before = {n: p.clone() for n, p in trainer.state.theta.items()}
    trainer.advance(0)
    assert trainer.state.taken.tolist() == [1, 1, 1]
    assert any(not torch.equal(p, before[n]) for n, p in trainer.state.theta.items())
    assert all(0 <= score <= 1 for score in trainer.test())


@pytest.mark.parametrize(
    ("name", "sizes", "rule"),
    [("cet_real", {"D": 8, "heads": 2, "dh": 4, "mem": 6}, "aep"), ("residual_mlp", {"d": 8, "L": 2}, "bptt")],
)
def test_colour_images_are_trained_on_at_their_own_size(
    tiny: Make, colour_images: np.ndarray, name: str, sizes: dict[str, int], rule: str
) -> None:
    own = {"name": name, "dataset": "cifar10", **sizes}
    trainer = Trainer(tiny(system=own, estimator=rule, norm_cap=None, eval_batches=1), "cpu")
    batch = trainer.batches.train(0)
    x = trainer.batches.shown(batch, train=True)["x"]
    assert torch.equal(x.view(2, 4, 3, 32, 32), datasets.shown(torch.from_numpy(colour_images)[batch["index"]], 3, 32))
    shown = trainer.batches.shown(trainer.batches.test(0), train=False)["x"][0]
    assert torch.equal(shown.view(4, 3, 32, 32), datasets.shown(torch.from_numpy(colour_images[20:]), 3, 32))
    trainer.advance(0)
    assert trainer.state.taken.tolist() == [1, 1]
    assert len(trainer.test()) == 2
