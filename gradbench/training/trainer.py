"""A training in memory: the parameters of all seeds, the step that moves them, their score and their fidelity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from gradbench.data.streams import Streams
from gradbench.dynamics.stack import Looped, Plain, Stack
from gradbench.dynamics.trajectory import relax
from gradbench.engine.solving import solve
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.training.batches import Drawn, batches_of
from gradbench.training.config import HELD
from gradbench.training.state import State, descend, gradient, recorded
from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gradbench.dynamics.field import Step
    from gradbench.engine.outcome import Outcome
    from gradbench.training.config import Config


class Trainer:
    """All seeds of a training file at once: theta, data and moments carry a leading seed axis c."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device
        self.system, self.rule = config.build_system(), config.build_rule()
        self.batches = batches_of(config, device)
        drawn = [self.system.init_params(Streams(seed)["params"]) for seed in config.seeds]
        dtype = getattr(torch, config.point.dtype)
        theta = {n: torch.stack([d[n] for d in drawn]).to(device, dtype) for n in drawn[0]}
        self.state = State.start(theta)
        self.caps = {n: cap * theta[n].double().flatten(1).norm(dim=-1) for n, cap in config.norm_cap.items()}
        self.point = config.point
        self.T1 = self.point.T1 or 0 if "T1" in self.system.uses else 0
        self.solver = Solver(self.point.solver)
        knobs = [torch.full((len(drawn),), getattr(self.point, n) or 0.0, dtype=dtype) for n in Knobs._fields]
        self.knobs = Knobs(*(v.to(device) for v in knobs))
        self.betas = torch.full((1, len(drawn)), self.point.beta or 0.0, dtype=dtype, device=device)
        self._recorded: dict[str, Step] = {}

    def lr(self, step: int) -> float:
        """Learning rate of a step, on half a cosine from lr to lr_min over the whole training."""
        how = self.config.optimiser
        return how.lr_min + 0.5 * (how.lr - how.lr_min) * (1 + math.cos(math.pi * step / self.config.length))

    def advance(self, step: int) -> None:
        """Take one step, without waiting for the device."""
        lr = torch.full((), self.lr(step), dtype=torch.float64, device=self.device)
        self._run("step", self._advance, self.batches.train(step), lr)

    def _advance(self, drawn: Drawn, lr: Tensor) -> tuple[Tensor, ...]:
        field = self._field(Plain, drawn, train=True)
        free = relax(field, (self.T1,))
        estimate = gradient(self.rule, free, self.point.T2 or 1, self.betas)
        with torch.no_grad():
            taken = self.state.taken.clone()
            score = self.batches.score(field, free.ends[0])
            descend(self.state, estimate, lr, self.config.optimiser, self.caps)
            self.state.score += score.masked_fill(self.state.taken == taken, 0.0)
        return ()

    @torch.no_grad()
    def test(self) -> list[float]:
        """The score of every seed on the examples to test on; NaN where the free phase diverges."""
        scores = []
        for i in range(self.config.test_batches):
            (score,) = self._run("test", self._test, self.batches.test(i))
            scores.append(score.clone())
        return torch.stack(scores).mean(0).tolist()

    def _test(self, drawn: Drawn) -> tuple[Tensor, ...]:
        field = self._field(Plain, drawn, train=False)
        return (self.batches.score(field, relax(field, (self.T1,)).ends[0]),)

    def fidelity(self) -> list[Outcome]:
        """The rule against the reference on one fixed batch of every seed, with its status."""
        config = self.config
        grid = {
            "system": {"name": config.system[0], **config.system[1]},
            "estimator": {"name": config.estimator[0], **config.estimator[1]},
            **{n: v for n, c in HELD.items() if (v := getattr(self.point, c.attribute)) is not None},
            "seed": list(config.seeds),
        }
        planned = plan(parse({"name": config.name, "about": "", "grid": [grid]}, config.name), config.name)
        field = self._field(Stack, self.batches.fixed(), train=True)
        return solve(planned.problems, field, planned.thresholds)

    def _field(self, kind: type[Stack], drawn: Drawn, train: bool) -> Stack:
        kind = kind if self.system.lifted else Looped
        x, seeds = self.batches.shown(drawn, train), tuple(self.config.seeds)
        return kind(self.system, self.state.theta, x, self.knobs, seeds=seeds, solver=self.solver)

    def _run(
        self, name: str, function: Callable[..., tuple[Tensor, ...]], drawn: Drawn, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """Call a function of a batch: on CUDA as a recorded graph where rule, system and solver allow it, by `name`."""
        names = tuple(drawn)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            return function(dict(zip(names, values, strict=False)), *values[len(names) :])

        values = (*drawn.values(), *more)
        if name not in self._recorded:
            allowed = self.rule.phase.recordable and self.system.lifted and self.solver is Solver.EULER
            self._recorded[name] = recorded(flat, self.state, *values) if allowed else flat
        return self._recorded[name](*values)
