"""A training in memory: parameters of all seeds, what a step does to them, and how they are judged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from gradbench.engine.solve import solve
from gradbench.field import Stack
from gradbench.plan import plan
from gradbench.streams import Streams
from gradbench.suite import parse
from gradbench.systems.base import Knobs
from gradbench.training.batches import Batches, Drawn
from gradbench.training.step import Plain, State, descend, gradient, recorded
from gradbench.trajectory import relax

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.engine.outcome import Outcome
    from gradbench.field import Field, Step
    from gradbench.training.config import Config


class Trainer:
    """All seeds of a training file at once: theta, data and moments carry a leading seed axis c."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device
        self.system, self.rule = config.build_system(), config.build_rule()
        self.batches = Batches(config, device)
        drawn = [self.system.init_params(Streams(seed)["params"]) for seed in config.seeds]
        dtype = getattr(torch, config.dtype)
        theta = {n: torch.stack([d[n] for d in drawn]).to(device, dtype) for n in drawn[0]}
        self.state = State.start(theta)
        self.caps = {n: cap * theta[n].double().flatten(1).norm(dim=-1) for n, cap in config.norm_cap.items()}
        coordinates = [torch.full((len(drawn),), v or 0.0, dtype=dtype) for v in (config.s, config.damp, config.eps)]
        self.knobs = Knobs(*(v.to(device) for v in coordinates))
        self.betas = torch.full((1, len(drawn)), config.beta or 0.0, dtype=dtype, device=device)
        self._recorded: dict[str, Step] = {}

    @property
    def score(self) -> str:
        """What a curve shows: `accuracy`, the share of right labels, or `masked_mse`, of a masked pixel in [-1, 1]."""
        return "accuracy" if "label" in self.batches.shapes else "masked_mse"

    def lr(self, step: int) -> float:
        """Learning rate of a step: half a cosine from lr to lr_min over the whole training."""
        how = self.config.optimiser
        return how.lr_min + 0.5 * (how.lr - how.lr_min) * (1 + math.cos(math.pi * step / self.config.length))

    def advance(self, step: int) -> None:
        """Take one step; the device is not waited for."""
        lr = torch.full((), self.lr(step), dtype=torch.float64, device=self.device)
        self._run("step", self._advance, self.batches.train(step), lr)

    def _advance(self, drawn: Drawn, lr: Tensor) -> tuple[Tensor, ...]:
        field = self._field(Plain, drawn, train=True)
        free = relax(field, (self.config.T1 or 0,))
        estimate = gradient(self.rule, free, self.config.T2 or 1, self.betas)
        with torch.no_grad():
            taken = self.state.taken.clone()
            score = self._score(field, free.ends[0])
            descend(self.state, estimate, lr, self.config.optimiser, self.caps)
            self.state.score += score.masked_fill(self.state.taken == taken, 0.0)
        return ()

    @torch.no_grad()
    def test(self) -> list[float]:
        """The score of every seed on the test images; NaN where the free phase diverges."""
        scores = []
        for i in range(self.config.test_batches):
            (score,) = self._run("test", self._test, self.batches.test(i))
            scores.append(score.clone())
        return torch.stack(scores).mean(0).tolist()

    def _test(self, drawn: Drawn) -> tuple[Tensor, ...]:
        field = self._field(Plain, drawn, train=False)
        return (self._score(field, relax(field, (self.config.T1 or 0,)).ends[0]),)

    def fidelity(self) -> list[Outcome]:
        """The rule against backpropagation through time on one fixed batch of every seed, with its status."""
        config = self.config
        grid = {
            "system": {"name": config.system[0], **config.system[1]},
            "estimator": {"name": config.estimator[0], **config.estimator[1]},
            **{k: v for k in ("s", "damp", "T1", "T2", "beta", "eps") if (v := getattr(config, k)) is not None},
            "seed": list(config.seeds),
            "dtype": config.dtype,
            "batch": config.batch,
        }
        planned = plan(parse({"name": config.name, "about": "", "grid": [grid]}, config.name), config.name)
        field = self._field(Stack, self.batches.fixed(), train=True)
        return solve(planned.problems, field, planned.thresholds)

    def _field(self, kind: type[Stack], drawn: Drawn, train: bool) -> Stack:
        return kind(self.system, self.state.theta, self.batches.shown(drawn, train), self.knobs)

    def _score(self, field: Field, s: Float[Tensor, "c b n"]) -> Float[Tensor, "c"]:
        """The score of a batch; the label given to an example is the one that costs least."""
        if self.score == "masked_mse":
            return 2 * field.cost(s).double().sum(-1) / field.x["mask"].double().sum((-4, -3, -2, -1))
        label = field.x["label"]
        costs = [
            replace(field, x=field.x | {"label": torch.full_like(label, k)}).cost(s)
            for k in range(self.batches.classes)
        ]
        return (torch.stack(costs).argmin(0) == label).double().mean(-1)

    def _run(self, name: str, function: Any, drawn: Drawn, *more: Tensor) -> tuple[Tensor, ...]:
        """Call a function of a batch, on CUDA as a recorded graph."""
        names = tuple(drawn)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            return function(dict(zip(names, values, strict=False)), *values[len(names) :])

        values = (*drawn.values(), *more)
        if name not in self._recorded:
            self._recorded[name] = recorded(flat, self.state, *values)
        return self._recorded[name](*values)
