"""Random streams of a seed: one independent CPU generator a purpose, the same on every device."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Streams:
    """Generators named by purpose (`params`, `data`, `mask`, `probes`), derived from one seed.

    Draws are float64 on the CPU and are cast and moved afterwards, so that float32 and float64,
    CPU and CUDA see the same numbers; a further draw in one stream never shifts another.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def part(self, name: str) -> Streams:
        """The streams of a part of the work, such as one step: independent of these and of every other part's."""
        return Streams(_derived(f"{self.seed}/part/{name}"))

    def __getitem__(self, purpose: str) -> Generator:
        """A fresh generator, always at the start of its stream."""
        import torch

        return torch.Generator().manual_seed(_derived(f"{self.seed}/{purpose}"))


def _derived(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def normal(rng: Generator, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
    """N(0, std^2) in float64 on the CPU."""
    import torch

    return torch.randn(shape, generator=rng, dtype=torch.float64) * std


def uniform(rng: Generator, shape: tuple[int, ...], bound: float = 1.0) -> Tensor:
    """U(-bound, bound) in float64 on the CPU."""
    import torch

    return (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) * bound
