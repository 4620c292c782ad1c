"""Batches as a pure function of seed and step, so that a training resumes without any state of a generator.

Random numbers are drawn on the CPU, the same for every device. Images lie on the device as they are stored; there a
batch is gathered and brought into the form that the system asks for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gradbench.data import datasets
from gradbench.data.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.systems.base import AbstractSystem, Data
    from gradbench.training.config import Config

Drawn = dict[str, "Tensor"]  # indices of images, and what the system draws with these images: (c, b, ...)


class Batches:
    """Training and test batches of every seed."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device, self.batch = config, device, config.point.batch
        self.system = config.build_system()
        self.shapes = self.system.data_shapes(self.batch)
        self._parts = {train: self._load(train) for train in (True, False)}
        self.classes = int(self._parts[True][1].max()) + 1
        self._orders: dict[tuple[int, int], Tensor] = {}

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        pixels, labels = datasets.part(self.config.dataset, train)
        return torch.from_numpy(pixels).to(self.device), torch.from_numpy(labels).to(self.device, torch.int64)

    def train(self, step: int) -> Drawn:
        """The batch of a step: a slice of the shuffled images of an epoch, whose incomplete last batch is dropped."""
        epoch, k = divmod(step, datasets.PARTS[self.config.dataset][0] // self.batch)
        index = [self._order(seed, epoch)[k * self.batch : (k + 1) * self.batch] for seed in self.config.seeds]
        return self._drawn(index, [Streams(seed).part(f"step {step}") for seed in self.config.seeds], train=True)

    def fixed(self) -> Drawn:
        """The training batch of every seed on which fidelity is measured."""
        streams = [Streams(seed).part("fidelity") for seed in self.config.seeds]
        number = datasets.PARTS[self.config.dataset][0]
        index = [torch.randperm(number, generator=s["data"])[: self.batch] for s in streams]
        return self._drawn(index, streams, train=True)

    def test(self, i: int) -> Drawn:
        """The i-th batch of the test images, in their order. All seeds get the masks of seed 0."""
        seeds = len(self.config.seeds)
        index = [torch.arange(i * self.batch, (i + 1) * self.batch)] * seeds
        return self._drawn(index, [Streams(0).part(f"test {i}")] * seeds, train=False)

    def _order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        if (seed, epoch) not in self._orders:
            self._orders.pop((seed, epoch - 1), None)
            rng = Streams(seed).part(f"epoch {epoch}")["data"]
            self._orders[seed, epoch] = torch.randperm(datasets.PARTS[self.config.dataset][0], generator=rng)
        return self._orders[seed, epoch]

    def _drawn(self, index: list[Tensor], streams: list[Streams], train: bool) -> Drawn:
        by_seed = [self._extras(s, train) for s in streams]
        stacked = {"index": torch.stack(index)} | {n: torch.stack([e[n] for e in by_seed]) for n in by_seed[0]}
        return {n: self._moved(v) for n, v in stacked.items()}

    def _extras(self, streams: Streams, train: bool) -> dict[str, Tensor]:
        """Data that are drawn for the images: masks, and labels where labels are random."""
        drawn: dict[str, Tensor] = {}
        if set(self.shapes) - {"x", "label"}:
            given: AbstractSystem = replace(self.system, dataset=datasets.GIVEN)  # type: ignore[type-var]
            dtype = getattr(torch, self.config.point.dtype)
            drawn |= {n: v.to(dtype) for n, v in given.sample(streams, self.batch).items()}
        if train and self.config.random_targets:
            drawn["label"] = torch.randint(self.classes, (self.batch,), generator=streams["label"])
        return drawn

    def _moved(self, value: Tensor) -> Tensor:
        return value.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else value

    def shown(self, drawn: Drawn, train: bool) -> Data:
        """The data of a batch, on the device: (c, b, ...)."""
        pixels, labels = self._parts[train]
        index, extras = drawn["index"], {n: v for n, v in drawn.items() if n != "index"}
        x = self._picture(pixels[index]).to(getattr(torch, self.config.point.dtype))
        return {"x": x} | ({"label": labels[index]} if "label" in self.shapes else {}) | extras

    def _picture(self, pixels: Int[Tensor, "c b colours h w"]) -> Float[Tensor, "c b ..."]:
        shape = self.shapes["x"][1:]
        if len(shape) == 3:
            return datasets.shown(pixels, shape[0], shape[-1])
        (d,) = shape  # the same picture as one row
        side = pixels.shape[-1] + (0 if d == pixels[0, 0].numel() else 2 * datasets.FRAME)
        return datasets.shown(pixels, d // side**2, side).flatten(2)
