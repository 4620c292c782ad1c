"""Steps of the transformers by Triton kernels, for the sizes that the kernels take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractDrivenSystem, FusedSteps, KernelInputs, Params, Saved
from gradbench.systems.cet_force import AbstractCetForce

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractFusedTokens(FusedSteps, AbstractCetForce):
    """Kernels for 16 tokens of 64 numbers in 4 heads, patches of at most 64 pixels, and memories in multiples of 64."""

    @property
    def fused(self) -> bool:
        fits = self.side**2 == 16 and self.D == 64 and self.heads == 4 and self.dh == 16
        return fits and self.pixels <= 64 and self.mem % 64 == 0

    def packed(self, theta: Params) -> Params:
        """Matrices with rows of whole multiples of 64 numbers, each (c, ...)."""
        import torch

        decoder = torch.nn.functional.pad(theta["Wdec"].flatten(2), (0, 64 - self.pixels))
        reading, writing = torch.func.vmap(self._head_weights)(theta)
        memories = theta["Wmem"]
        packed = {
            "ahead_in": torch.cat([decoder, memories, *(W.mT for W in reading)], -1),
            "ahead_out": torch.cat([decoder.mT, 2 * memories.mT, *writing], -2),
        }
        if isinstance(self, AbstractDrivenSystem):
            packed["skew_in"] = torch.cat([W.mT for W in (*reading, *writing)], -1)
            packed["skew_out"] = torch.cat([*writing, *(-W for W in reading)], -2)
        return packed

    def correction_inputs(self, saved: Saved) -> Float[Tensor, "i c 4 b H N h"] | None:
        """q, k, v and P at s*, stacked."""
        import torch

        if not isinstance(self, AbstractDrivenSystem):
            return None  # A = 0: the attention is a gradient
        return torch.stack([saved[name].movedim(0, 1) for name in ("q", "k", "v", "P")], 2).contiguous()

    def fused_step(
        self, read: KernelInputs, s: Tensor, eps: Tensor, nudge: Tensor | None = None, bent: Tensor | None = None
    ) -> Tensor:
        from gradbench.systems.kernels import tokens

        kind = tokens.Kind(self.patch, self.well, self._scale, self.projects)
        return tokens.step(read, kind, s, eps, nudge, bent)

    def fused_bent(self, read: KernelInputs, s: Tensor, start: Tensor, inputs: Tensor) -> Tensor:
        from gradbench.systems.kernels import tokens

        return tokens.bent(read, self._scale, s, start, inputs)

    @property
    def _scale(self) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(self.dh) if isinstance(self, AbstractDrivenSystem) else self.gamma
