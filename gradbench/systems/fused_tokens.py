"""Steps of the transformers by kernels, for the sizes that the kernels take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradbench.systems.attention import outer
from gradbench.systems.base import AbstractDrivenSystem, KernelInputs, Params, Program, Saved
from gradbench.systems.by_kernels import AbstractByKernels
from gradbench.systems.cet_force import AbstractCetForce

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.kernels.tokens import Kind


class AbstractFusedTokens(AbstractByKernels, AbstractCetForce):
    """Kernels for 16 tokens of up to 128 numbers in heads of 16, patches of up to 64 pixels, memories in sixteens."""

    @property
    def fused(self) -> bool:
        fits = self.side == 4 and self.dh == 16 and self.D == self.heads * self.dh <= 128
        return fits and self.pixels <= 64 and self.mem % 16 == 0

    def packed(self, theta: Params) -> Params:
        """The matrices of the force: those to features (c, features, D), those to tokens (c, D, features).

        Each is in the order of `fragments`. Zeros fill the features of the pixels up.
        """
        import torch

        from gradbench.systems.kernels.programs import fragments

        decoder = torch.nn.functional.pad(theta["Wdec"].flatten(2), (0, self._padded - self.pixels))
        reading, writing = torch.func.vmap(self._head_weights)(theta)
        memories = theta["Wmem"]
        packed = {
            "ahead_in": torch.cat([decoder.mT, memories.mT, *reading], -2),
            "ahead_out": torch.cat([decoder, 2 * memories, *(W.mT for W in writing)], -1),
        }
        if isinstance(self, AbstractDrivenSystem):
            packed["skew_in"] = torch.cat([*reading, *writing], -2)
            packed["skew_out"] = torch.cat([*(W.mT for W in writing), *(-W.mT for W in reading)], -1)
        return {name: fragments(W) for name, W in packed.items()}

    def correction_inputs(self, saved: Saved) -> Float[Tensor, "i c 4 b H N h"] | None:
        """q, k, v and P at s*, stacked."""
        import torch

        if not isinstance(self, AbstractDrivenSystem):
            return None  # A = 0: the attention is a gradient
        return torch.stack([saved[name].movedim(0, 1) for name in ("q", "k", "v", "P")], 2).contiguous()

    def fused_energy(self, read: KernelInputs, s: Tensor) -> Tensor | None:
        from gradbench.systems.kernels import tokens

        return None if isinstance(self, AbstractDrivenSystem) else tokens.energy(read, self._kind, s)

    def product_inputs(self, saved: Saved, u: Tensor) -> dict[str, Tensor]:
        """q, k, v and P at a state, stacked, the memories there, and the tokens of u."""
        import torch

        by_row = {name: value.movedim(0, 1) for name, value in saved.items()}
        attention = [by_row[name] for name in ("q", "k", "v", "P") if name in by_row]
        tokens = self.split(u)["z"].contiguous()
        return {"attention": torch.stack(attention, 2), "memory": by_row["memory"].contiguous(), "u": tokens}

    @property
    def widths(self) -> dict[str, int]:
        reading, writing = (3, 1) if isinstance(self, AbstractDrivenSystem) else (2, 2)  # kinds of head
        flat = self._padded + self.mem
        return {"reading": flat + self.D * reading, "writing": flat + self.D * writing}

    def pulled(self, read: KernelInputs, summed: Tensor, sums: Params) -> Params:
        part = self.split(summed)
        reading, writing = (self._cut(v, self._padded, self.mem) for v in (sums["reading"], sums["writing"]))
        of_patch = slice(0, self.pixels)
        return self._grads(
            part["z"].sum(-3),
            part["y"].sum((-4, -2, -1)),
            outer(part["z"], read.context["seen"]),
            (reading[0][..., of_patch], *reading[1:]),
            (writing[0][..., of_patch], *writing[1:]),
        )

    @property
    def program(self) -> Program:
        energy = not isinstance(self, AbstractDrivenSystem)
        constants = {"D": self.D, "M": self.mem, "CH": self.ch, "PATCH": self.patch}
        constants |= {"ENERGY": int(energy), "PROJECTS": int(self.projects)}
        kernels = "step", "jacobian", "back", "energy" if energy else "bend"
        return Program("tokens", kernels, tuple(constants.items()))

    @property
    def _family(self) -> ModuleType:
        from gradbench.systems.kernels import tokens

        return tokens

    @property
    def _kind(self) -> Kind:
        from gradbench.systems.kernels.tokens import Kind

        return Kind(self.program, float(self.well), float(self._scale))

    @property
    def _padded(self) -> int:
        """Features of the pixels, with the zeros that fill them up: lanes read weights of 16 features at a time."""
        return -(-self.pixels // 16) * 16

    @property
    def _scale(self) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(self.dh) if isinstance(self, AbstractDrivenSystem) else self.gamma
