"""Random streams of a seed: one independent generator for each purpose, on the CPU."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Streams:
    """Generators named by purpose (`params`, `data`, `mask`, `probes`), derived from one seed.

    Draws are float64 on the CPU. They are cast and moved afterwards, so float32 and float64, CPU and CUDA
    see the same numbers. A further draw from one stream changes no other stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def part(self, name: str) -> Streams:
        """Streams for a part of the work, such as one step. They are independent of the whole and of other parts."""
        return Streams(_derived(f"{self.seed}/part/{name}"))

    def draw(self, number: int) -> Streams:
        """Streams of one of several draws of a rule; the first draw has these themselves."""
        return self.part(f"draw {number}") if number else self

    def __getitem__(self, purpose: str) -> Generator:
        """A fresh generator, always at the start of its stream."""
        import torch

        return torch.Generator("cpu").manual_seed(_derived(f"{self.seed}/{purpose}"))


def _derived(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def normal(rng: Generator, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
    """N(0, std^2) in float64 on the CPU."""
    import torch

    return torch.randn(shape, generator=rng, dtype=torch.float64, device="cpu") * std


def uniform(rng: Generator, shape: tuple[int, ...], bound: float = 1.0) -> Tensor:
    """U(-bound, bound) in float64 on the CPU."""
    import torch

    return (2 * torch.rand(shape, generator=rng, dtype=torch.float64, device="cpu") - 1) * bound
