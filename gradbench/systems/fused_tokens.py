"""Steps of the transformers by kernels of their own, for the shapes that these kernels take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractDrivenSystem, Data, FusedSteps, Params, Saved
from gradbench.systems.cet_force import AbstractCetForce
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractFusedTokens(FusedSteps, AbstractCetForce):
    """16 tokens of 64 numbers in 4 heads, patches of at most 64 pixels, memories in multiples of 64."""

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

    def kept(self, saved: Saved) -> Float[Tensor, "i c 4 b H N h"] | None:
        import torch

        if not isinstance(self, AbstractDrivenSystem):
            return None  # A = 0: the attention is a gradient
        return torch.stack([saved[name].movedim(0, 1) for name in ("q", "k", "v", "P")], 2).contiguous()

    def fused_step(
        self,
        packed: Params,
        theta: Params,
        x: Data,
        context: Params,
        s: Float[Tensor, "*r c b n"],
        knobs: Knobs,
        eps: Float[Tensor, "c"],
        nudge: Float[Tensor, "m c"] | None = None,
        bent: Float[Tensor, "i m c b d"] | None = None,
    ) -> Float[Tensor, "*r c b n"]:
        from gradbench.systems import token_kernels

        return token_kernels.step(
            packed,
            theta,
            x,
            context,
            s,
            knobs,
            eps,
            patch=self.patch,
            well=self.well,
            scale=self._scale,
            projects=self.projects,
            nudge=nudge,
            bent=bent,
        )

    def fused_bent(
        self,
        packed: Params,
        s: Float[Tensor, "i m c b n"],
        start: Float[Tensor, "i c b n"],
        kept: Float[Tensor, "i c 4 b H N h"] | None,
        knobs: Knobs,
    ) -> Float[Tensor, "i m c b d"] | None:
        from gradbench.systems import token_kernels

        return None if kept is None else token_kernels.bent(packed, s, start, kept, knobs.sigma, scale=self._scale)

    @property
    def _scale(self) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(self.dh) if isinstance(self, AbstractDrivenSystem) else self.gamma
