"""Steps of the toys by kernels, for their usual sizes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractDrivenSystem, KernelInputs, Params, Program, Saved
from gradbench.systems.by_kernels import AbstractByKernels
from gradbench.systems.toy import AbstractToy

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor


class AbstractFusedToy(AbstractByKernels, AbstractToy):
    """Kernels for 8 tokens of 32 numbers with 16 readouts."""

    @property
    def fused(self) -> bool:
        return (self.N, self.D, self.out) == (8, 32, 16)

    @property
    def program(self) -> Program:
        driven = isinstance(self, AbstractDrivenSystem)
        kernels = "step", "jacobian", "back", *(["bend"] if driven else [])
        return Program("toys", kernels, (("D", self.D), ("ENERGY", int(not driven))))

    @property
    def _family(self) -> ModuleType:
        from gradbench.systems.kernels import toys

        return toys

    @property
    def _kind(self) -> Program:
        return self.program

    def pulled(self, read: KernelInputs, summed: Tensor, sums: Params) -> Params:
        return self.weight_grads(sums) | {"b": self.split(summed)["z"].sum((-3, -2))}

    @abstractmethod
    def weight_grads(self, sums: Params) -> Params:
        """The gradients of the weights, from the sums of `pull_sums`."""


class AbstractFusedAttention(AbstractFusedToy):
    """Kernels of the toy with attention: 4 heads of 8 numbers."""

    heads: int

    @property
    def fused(self) -> bool:
        return super().fused and self.heads == 4

    @property
    def widths(self) -> dict[str, int]:
        return {"reading": 3 * self.D, "writing": self.D}

    def packed(self, theta: Params) -> Params:
        """The matrices to features (c, features, D) and to tokens (c, D, features), in the order of `fragments`."""
        import torch

        from gradbench.systems.kernels.programs import fragments

        reading, writing = [theta[w] for w in ("WQ", "WK", "WV")], theta["WO"].mT
        return {
            "ahead_in": fragments(torch.cat(reading, -1).mT),
            "ahead_out": fragments(writing),
            "skew_in": fragments(torch.cat([*reading, writing], -1).mT),
            "skew_out": fragments(torch.cat([writing, *(-W for W in reading)], -1)),
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
        read = sums["reading"].split(self.D, -1)
        return {**dict(zip(("WQ", "WK", "WV"), read, strict=True)), "WO": sums["writing"].mT}


class AbstractFusedTanh(AbstractFusedToy):
    """Kernels of the toy with an energy."""

    @property
    def widths(self) -> dict[str, int]:
        return {"reading": self.D, "writing": self.D}

    def packed(self, theta: Params) -> Params:
        """S^T from tokens to features, and S from features to tokens, in the order of `fragments`."""
        from gradbench.systems.kernels.programs import fragments

        return {"ahead_in": fragments(theta["S"].mT), "ahead_out": fragments(theta["S"])}

    def correction_inputs(self, saved: Saved) -> Tensor | None:
        return None  # A = 0: the force is a gradient

    def product_inputs(self, saved: Saved, u: Tensor) -> dict[str, Tensor]:
        return {"saved": saved["t"].movedim(0, 1).contiguous()}

    def weight_grads(self, sums: Params) -> Params:
        return {"S": sums["reading"] + sums["writing"]}
