"""What a training step costs against the same step written step by step. `make perf`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from ledger import DEVICE
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.autograd.functional import jvp, vjp

from gradbench.dynamics.field import Field
from gradbench.engine.precision import isolated
from gradbench.training.config import Config, parse
from gradbench.training.trainer import Trainer
from gradbench.vocabulary.coordinates import Knobs

# on a GPU the sizes at which cet_real is trained; on a CPU what takes seconds
SIZES = {"batch": 64, "T1": 100, "T2": 15} if DEVICE == "cuda" else {"batch": 8, "T1": 20, "T2": 5}


def training(dtype: str = "float32", **changes: Any) -> Config:
    content = {"system": "cet_real", "estimator": "aep", **SIZES, "steps": 1000, "dtype": dtype}
    optimiser = {"lr": 4e-4, "lr_min": 4e-6, "weight_decay": 1e-4, "clip": 5.0}
    return parse({"name": "perf", "about": "", "optimiser": optimiser, **content, **changes}, "perf")


class StepByStep:
    """One seed of the same training as a loop that asks autograd for each thing anew.

    The conservative force is the gradient of an energy, J v and J^T v are taken at s* in every nudged step of
    either sign, the parameter gradient is autograd's of <a, F(s*)>, and torch.optim.AdamW updates.
    """

    def __init__(self, trainer: Trainer) -> None:
        config = self.config = trainer.config
        assert config.T1
        assert config.T2
        assert config.beta
        self.T1, self.T2, self.beta, self.trainer = config.T1, config.T2, config.beta, trainer
        self.theta = {n: torch.nn.Parameter(p[0].clone()) for n, p in trainer.state.theta.items()}
        knobs = trainer.knobs
        self.knobs = Knobs(knobs.sigma[0], knobs.damp[0], knobs.eps[0])
        self.optimiser = torch.optim.AdamW(self.theta.values(), lr=config.optimiser.lr, weight_decay=1e-4)

    def force(self, field: Field, s: Tensor) -> Tensor:
        """-dE/ds by autograd, and the attention."""
        system: Any = field.system
        with torch.enable_grad():
            s = s if s.requires_grad else s.detach().requires_grad_()
            context = system.context(self.theta, field.x)
            energy = system.energy(self.theta, field.x, context, s, self.knobs).sum()
            (slope,) = torch.autograd.grad(energy, s, create_graph=True)
            return system.swirl(self.theta, field.x, context, s, self.knobs) - slope

    def relax(self, field: Field, s: Tensor, steps: int, nudge: float = 0.0, rest: Tensor | None = None) -> Tensor:
        system: Any = field.system
        theta = {n: p.detach() for n, p in self.theta.items()}
        context = system.context(theta, field.x)
        for _ in range(steps):
            force = self.force(field, s).detach()
            if rest is not None:
                v = s - rest

                def swirl(s: Tensor) -> Tensor:
                    return system.swirl(theta, field.x, context, s, self.knobs)

                correction = jvp(swirl, rest, v)[1] - vjp(swirl, rest, v)[1]
                force = force - nudge * field.cost_slope(s) - correction
            s = s + self.knobs.eps * force
        return s

    def advance(self, step: int) -> None:
        drawn = self.trainer.batches.shown(self.trainer.batches.train(step), train=True)
        field = Field(self.trainer.system, self.theta, {n: v[0] for n, v in drawn.items()}, self.knobs)
        rest = self.relax(field, field.init_state(), self.T1)
        ends = [self.relax(field, rest.clone(), self.T2, sign * self.beta, rest) for sign in (1, -1)]
        a = ((ends[1] - ends[0]) / (2 * self.beta)).detach()
        with torch.enable_grad():
            grads = torch.autograd.grad((a * self.force(field, rest)).sum(), list(self.theta.values()))
        for p, g in zip(self.theta.values(), grads, strict=True):
            p.grad = g
        if all(bool(g.isfinite().all()) for g in grads):
            torch.nn.utils.clip_grad_norm_(self.theta.values(), 5.0)
            self.optimiser.param_groups[0]["lr"] = self.trainer.lr(step)
            self.optimiser.step()


def seconds(advance: Callable[[int], None], first: int, steps: int) -> float:
    """A step's time, in the middle of many."""
    start = perf_counter()
    for step in range(first, first + steps):
        advance(step)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - start) / steps


def test_both_are_the_same_training() -> None:
    with isolated():
        trainer = Trainer(training("float64", T1=6, T2=3, batch=4, damp=1.0), "cpu")
        plain = StepByStep(trainer)
        for step in range(3):
            plain.advance(step)
            trainer.advance(step)
    for name, p in plain.theta.items():
        torch.testing.assert_close(trainer.state.theta[name][0], p.data, rtol=1e-8, atol=1e-11)


@pytest.mark.benchmark(group="training")
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_training_step_of_cet_real_by_aep(benchmark: BenchmarkFixture, seeds: int) -> None:
    """Side by side at equal sizes, as a ratio a seed: a stack of seeds takes its step at once."""
    with isolated():
        trainer = Trainer(training(seeds=list(range(seeds))), DEVICE)
        plain = StepByStep(trainer)
        for advance in (trainer.advance, plain.advance):
            seconds(advance, 0, 2)  # warm, and recorded
        rounds = [(seconds(plain.advance, 2 + k, 1), seconds(trainer.advance, 2 + 5 * k, 5)) for k in range(3)]
        theirs, ours = (sorted(column)[1] for column in zip(*rounds, strict=True))
        benchmark.pedantic(seconds, (trainer.advance, 20, 1), rounds=3)
    ratio = theirs * seeds / ours
    benchmark.extra_info.update(seeds=seeds, step=ours, step_by_step=theirs, ratio=ratio, device=DEVICE, **SIZES)
    print(
        f"\ntraining on {DEVICE}, {SIZES}: {ours * 1e3:.2f} ms a step of {seeds} seed(s), "
        f"{theirs * 1e3:.1f} ms step by step and seed: {ratio:.1f} x"
    )
    if DEVICE == "cuda":
        assert ratio >= 10
