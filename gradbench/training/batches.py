"""Batches as a pure function of seed and step, so that a training resumes without any state of a generator.

Random numbers are drawn on the CPU, the same for every device. The examples lie on the device; there a batch is
gathered and brought into the form that the system asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gradbench.data import datasets
from gradbench.data.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.dynamics.field import Field
    from gradbench.systems.base import AbstractSystem, Data
    from gradbench.training.config import Config

Drawn = dict[str, "Tensor"]  # indices of images, and what the system draws with these images: (c, b, ...)


def batches_of(config: Config, device: str) -> AbstractBatches:
    """The batches of a training: images, or the examples that its system holds."""
    return ImageBatches(config, device) if config.build_system().held is None else HeldBatches(config, device)


class AbstractBatches(ABC):
    """Batches to train on and to test on, of every seed, and how well a state does on one."""

    scored: str  # what `score` is

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device, self.batch = config, device, config.point.batch
        self.system, self.dtype = config.build_system(), getattr(torch, config.point.dtype)
        self._orders: dict[tuple[int, int], Tensor] = {}

    def train(self, step: int) -> Drawn:
        """The batch of a step: a slice of the shuffled examples of an epoch, whose incomplete last batch is dropped."""
        epoch, k = divmod(step, self.config.parts[0] // self.batch)
        index = [self._order(seed, epoch)[k * self.batch : (k + 1) * self.batch] for seed in self.config.seeds]
        return self._drawn(index, [Streams(seed).part(f"step {step}") for seed in self.config.seeds], train=True)

    def fixed(self) -> Drawn:
        """The training batch of every seed on which fidelity is measured."""
        streams = [Streams(seed).part("fidelity") for seed in self.config.seeds]
        index = [torch.randperm(self.config.parts[0], generator=s["data"])[: self.batch] for s in streams]
        return self._drawn(index, streams, train=True)

    def test(self, i: int) -> Drawn:
        """The i-th batch to test on, in the order of the examples. All seeds get the masks of seed 0."""
        seeds = len(self.config.seeds)
        index = [torch.arange(i * self.batch, (i + 1) * self.batch)] * seeds
        return self._drawn(index, [Streams(0).part(f"test {i}")] * seeds, train=False)

    @abstractmethod
    def shown(self, drawn: Drawn, train: bool) -> Data:
        """The data of a batch, on the device: (c, b, ...)."""

    @abstractmethod
    def score(self, field: Field, s: Float[Tensor, "c b n"]) -> Float[Tensor, "c"]:
        """How well the states of a batch do, a number for every seed."""

    def _order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        if (seed, epoch) not in self._orders:
            self._orders.pop((seed, epoch - 1), None)
            rng = Streams(seed).part(f"epoch {epoch}")["data"]
            self._orders[seed, epoch] = torch.randperm(self.config.parts[0], generator=rng)
        return self._orders[seed, epoch]

    def _drawn(self, index: list[Tensor], streams: list[Streams], train: bool) -> Drawn:
        by_seed = [self._extras(s, train) for s in streams]
        stacked = {"index": torch.stack(index)} | {n: torch.stack([e[n] for e in by_seed]) for n in by_seed[0]}
        return {n: self._moved(v) for n, v in stacked.items()}

    def _extras(self, streams: Streams, train: bool) -> dict[str, Tensor]:
        """What is drawn for a batch beside the choice of its examples."""
        return {}

    def _moved(self, value: Tensor) -> Tensor:
        return value.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else value


class HeldBatches(AbstractBatches):
    """Batches of the examples that a system holds. The score is the mean cost of an example."""

    scored = "cost"

    def __init__(self, config: Config, device: str) -> None:
        super().__init__(config, device)
        data = self.system.sample(Streams(0), config.parts[0])
        self._data = {n: (v.to(self.dtype) if v.is_floating_point() else v).to(device) for n, v in data.items()}

    def shown(self, drawn: Drawn, train: bool) -> Data:
        """The examples of a batch, and for every seed what they share."""
        index = drawn["index"]
        return {
            n: v[index] if n in self.system.per_example else v.expand(len(index), *v.shape)
            for n, v in self._data.items()
        }

    def score(self, field: Field, s: Float[Tensor, "c b n"]) -> Float[Tensor, "c"]:
        """The mean cost of an example."""
        costs = field.cost(s).double()
        return costs.sum(-1) if self.system.mean_cost else costs.mean(-1)


class ImageBatches(AbstractBatches):
    """Batches of a data set of images, which lie on the device as they are stored.

    The score is `accuracy`, the share of right labels, or `masked_mse`, the squared error of a masked pixel in [-1, 1].
    """

    def __init__(self, config: Config, device: str) -> None:
        super().__init__(config, device)
        self._shapes = self.system.data_shapes(self.batch)
        self._parts = {train: self._load(train) for train in (True, False)}
        self._classes = int(self._parts[True][1].max()) + 1
        self.scored = "accuracy" if "label" in self._shapes else "masked_mse"

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        pixels, labels = datasets.part(self.config.dataset, train)
        return torch.from_numpy(pixels).to(self.device), torch.from_numpy(labels).to(self.device, torch.int64)

    def _extras(self, streams: Streams, train: bool) -> dict[str, Tensor]:
        """Data that are drawn for the images: masks, and labels where labels are random."""
        drawn: dict[str, Tensor] = {}
        if set(self._shapes) - {"x", "label"}:
            given: AbstractSystem = replace(self.system, dataset=datasets.GIVEN)  # type: ignore[type-var]
            drawn |= {n: v.to(self.dtype) for n, v in given.sample(streams, self.batch).items()}
        if train and self.config.random_targets:
            drawn["label"] = torch.randint(self._classes, (self.batch,), generator=streams["label"])
        return drawn

    def shown(self, drawn: Drawn, train: bool) -> Data:
        """The images of a batch in the form that the system asks for, with what is drawn for them."""
        pixels, labels = self._parts[train]
        index, extras = drawn["index"], {n: v for n, v in drawn.items() if n != "index"}
        x = self._picture(pixels[index]).to(self.dtype)
        return {"x": x} | ({"label": labels[index]} if "label" in self._shapes else {}) | extras

    def score(self, field: Field, s: Float[Tensor, "c b n"]) -> Float[Tensor, "c"]:
        """The score of a batch. The label that the system gives to an example is the label of least cost."""
        if self.scored == "masked_mse":
            return 2 * field.cost(s).double().sum(-1) / field.x["mask"].double().sum((-4, -3, -2, -1))
        label = field.x["label"]
        costs = [replace(field, x=field.x | {"label": torch.full_like(label, k)}).cost(s) for k in range(self._classes)]
        return (torch.stack(costs).argmin(0) == label).double().mean(-1)

    def _picture(self, pixels: Int[Tensor, "c b colours h w"]) -> Float[Tensor, "c b ..."]:
        shape = self._shapes["x"][1:]
        if len(shape) == 3:
            return datasets.shown(pixels, shape[0], shape[-1])
        (d,) = shape  # the same picture as one row
        side = pixels.shape[-1] + (0 if d == pixels[0, 0].numel() else 2 * datasets.FRAME)
        return datasets.shown(pixels, d // side**2, side).flatten(2)
