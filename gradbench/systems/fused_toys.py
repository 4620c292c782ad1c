"""Steps of the toys by Triton kernels, for their usual sizes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from gradbench.systems.base import FusedSteps, KernelInputs, Params, Saved
from gradbench.systems.toy import AbstractToy

if TYPE_CHECKING:
    from torch import Tensor


class AbstractFusedToy(FusedSteps, AbstractToy):
    """Kernels for 8 tokens of 32 numbers with 16 readouts."""

    @property
    def fused(self) -> bool:
        return (self.N, self.D, self.out) == (8, 32, 16)

    def fused_step(
        self, read: KernelInputs, s: Tensor, eps: Tensor, nudge: Tensor | None = None, bent: Tensor | None = None
    ) -> Tensor:
        from gradbench.systems.kernels import toys

        return toys.step(read, s, eps, nudge, bent)

    def fused_bent(self, read: KernelInputs, s: Tensor, start: Tensor, inputs: Tensor) -> Tensor:
        from gradbench.systems.kernels import toys

        return toys.bent(read, s, start, inputs)

    def fused_product(self, read: KernelInputs, inputs: dict[str, Tensor], v: Tensor) -> Tensor:
        from gradbench.systems.kernels import toys

        return toys.product(read, v, **inputs)

    def pull_sums(self, rows: int, cells: int, like: Tensor) -> Params:
        """z^T credits of the features, and p^T features: both (rows of T1, c, D, features)."""
        return {name: like.new_zeros((rows, cells, self.D, width)) for name, width in self.widths.items()}

    def fused_back(self, read: KernelInputs, s: Tensor, a: Tensor, summed: Tensor, sums: Params) -> None:
        from gradbench.systems.kernels import toys

        toys.back(read, s, a, summed, **sums)

    def pulled(self, read: KernelInputs, summed: Tensor, sums: Params) -> Params:
        return self.weight_grads(sums) | {"b": self.split(summed)["z"].sum((-3, -2))}

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """How many features are read from tokens and written to them."""

    @abstractmethod
    def weight_grads(self, sums: Params) -> Params:
        """The gradients of the weights, from the sums of `pull_sums`."""


class AbstractFusedAttention(AbstractFusedToy):
    """Kernels of the toy with attention: 4 heads of 8 numbers, which zeros fill up to 16."""

    heads: int

    @property
    def fused(self) -> bool:
        return super().fused and self.heads == 4

    @property
    def widths(self) -> dict[str, int]:
        return {"reading": 3 * 64, "writing": 64}

    def packed(self, theta: Params) -> Params:
        """The matrices to features (c, features, D) and to tokens (c, D, features)."""
        import torch

        reading = [_filled(theta[w]) for w in ("WQ", "WK", "WV")]
        writing = _filled(theta["WO"].mT)
        return {
            "ahead_in": torch.cat(reading, -1).mT.contiguous(),
            "ahead_out": writing.contiguous(),
            "skew_in": torch.cat([*reading, writing], -1).mT.contiguous(),
            "skew_out": torch.cat([writing, *(-W for W in reading)], -1),
        }

    def correction_inputs(self, saved: Saved) -> Tensor | None:
        """q, k, v and P at s*, stacked: (i, c, 4, b, H, N, h)."""
        import torch

        return torch.stack([saved[name].movedim(0, 1) for name in ("q", "k", "v", "P")], 2)

    def product_inputs(self, saved: Saved, u: Tensor) -> dict[str, Tensor]:
        inputs = self.correction_inputs(saved)
        assert inputs is not None
        return {"saved": inputs}

    def weight_grads(self, sums: Params) -> Params:
        read = sums["reading"].unflatten(-1, (3, 4, 16))[..., :8].flatten(-2).unbind(-2)
        written = sums["writing"].unflatten(-1, (4, 16))[..., :8].flatten(-2)
        return {**dict(zip(("WQ", "WK", "WV"), read, strict=True)), "WO": written.mT}


class AbstractFusedTanh(AbstractFusedToy):
    """Kernels of the toy with an energy."""

    @property
    def widths(self) -> dict[str, int]:
        return {"reading": self.D, "writing": self.D}

    def packed(self, theta: Params) -> Params:
        """S from features to tokens, and S^T from tokens to features."""
        return {"ahead_in": theta["S"].mT.contiguous(), "ahead_out": theta["S"].contiguous()}

    def correction_inputs(self, saved: Saved) -> Tensor | None:
        return None  # A = 0: the force is a gradient

    def product_inputs(self, saved: Saved, u: Tensor) -> dict[str, Tensor]:
        return {"saved": saved["t"].movedim(0, 1).contiguous()}

    def weight_grads(self, sums: Params) -> Params:
        return {"S": sums["reading"] + sums["writing"]}


def _filled(W: Tensor) -> Tensor:
    """(c, D, 4 heads of 8) -> (c, D, 4 heads of 16), with zeros."""
    import torch

    return torch.nn.functional.pad(W.unflatten(-1, (4, 8)), (0, 8)).flatten(-2)
