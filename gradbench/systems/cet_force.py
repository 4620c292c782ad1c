"""The force of the transformers, whatever their attention is, and the energy E_0 of its attention-free part.

E_0 = w |z|^2 - <enc(xbar) + benc + bpos, z> - sum relu(z Wmem)^2
      + 1/2 |y|^2 - <dec(y), z> - <bdec, y>  + 1/2 c |z|^2
with xbar the image outside its mask, and enc and dec convolutions whose stride is the patch.

Weights that multiply the same operand are parts of one matrix. One product takes the tokens to their features:
those of the pixels, of the memories and of each kind of head. A second product takes the features back to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from gradbench.systems.base import Data, Params
from gradbench.systems.cet_attention import AbstractAttention
from gradbench.systems.cet_options import visible
from gradbench.systems.products import matmul
from gradbench.systems.tokens import as_one_row, image, join, patches
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ALIGNED = 32  # the length of a row is a multiple of this: a compiled free step took a seventh less time, measured


class AbstractCetForce(AbstractAttention):
    """F_z = -dE_0/dz + sum_i sigma o_i W_i with the outputs o of attention,   F_y = -dE_0/dy."""

    well: ClassVar[float] = 2.0  # w, the weight of |z|^2

    def context(self, theta: Params, x: Data) -> Params:
        seen = visible(x)
        tokens = self.encoded(theta, seen) + theta["benc"] + theta["bpos"]
        return {"input": tokens, "seen": patches(seen, self.patch)} | self._fused(theta)

    def _fused(self, theta: Params) -> Params:
        """The matrices of F, from tokens to features (D, K) and from features to tokens (K, D), and of its transpose.

        Rows of zeros at the end of `ahead_out` give the products a length that they are fast at.
        """
        import torch

        decoder, memories = theta["Wdec"].flatten(1), theta["Wmem"]
        returned = [decoder.mT, 2 * memories.mT]
        reading, writing = self._head_weights(theta)
        spare = -sum(W.shape[0] for W in (*returned, *writing)) % ALIGNED
        return {
            "ahead_in": torch.cat([decoder, memories, *(W.mT for W in reading)], -1),
            "ahead_out": torch.cat([*returned, *writing, memories.new_zeros((spare, self.D))], -2),
            "back_in": torch.cat([decoder, memories, *(W.mT for W in writing)], -1),
            "back_out": torch.cat([*returned, *reading], -2),
        }

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(s)
        decoded, memory, *features = self._cut(matmul(z, context["ahead_in"]), self.pixels, self.mem)
        attended = self._attended(self._attend(features), knobs.sigma)
        returned = self._returned(context["ahead_out"], (patches(y, self.patch), memory.relu()), attended)
        tokens = self._damped(z, context["input"] + returned, knobs)
        return join(tokens, self._image(decoded) + theta["bdec"][:, None, None] - y)

    def _energy_without_attention(
        self, theta: Params, context: Params, z: Tensor, y: Tensor, knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        """E_0 of each example."""
        decoded = patches(y, self.patch) @ theta["Wdec"].flatten(1).mT
        tokens = (self.well + 0.5 * knobs.damp) * z.square() - (context["input"] + decoded) * z
        memory = (z @ theta["Wmem"]).relu().square()
        pixels = 0.5 * y.square() - theta["bdec"][:, None, None] * y
        return tokens.sum((-2, -1)) - memory.sum((-2, -1)) + pixels.sum((-3, -2, -1))

    def _damped(
        self, z: Float[Tensor, "*b N D"], tokens: Float[Tensor, "*b N D"], knobs: Knobs
    ) -> Float[Tensor, "*b N D"]:
        """The force `tokens` with that of the well and of the damping: tokens - (2 w + c) z."""
        return tokens.addcmul(z, 2 * self.well + knobs.damp, value=-1)

    def _parts(self, s: Float[Tensor, "*r b n"]) -> tuple[Tensor, Tensor]:
        """Tokens and pixels. The copy of the tokens is contiguous for the products that read it."""
        part = self.split(s)
        return part["z"].contiguous(), part["y"]

    def _cut(self, row: Float[Tensor, "*b K"], *flat: int) -> tuple[Tensor, ...]:
        """Split features: first those without heads, of the widths `flat`, then those of each kind of head."""
        width = self.heads * self.dh
        kinds = (row.shape[-1] - sum(flat)) // width
        return row.split([*flat, *[width] * kinds], -1)

    def _returned(
        self, W: Float[Tensor, "K D"], flat: Sequence[Tensor], by_head: Sequence[Tensor]
    ) -> Float[Tensor, "*b N D"]:
        """Features taken back to tokens. W may have more rows than there are features."""
        return matmul(as_one_row(flat, by_head, W.shape[-2]), W)

    def _image(self, p: Float[Tensor, "*b N P"]) -> Float[Tensor, "*b ch img img"]:
        return image(p, self.ch, self.side, self.patch)

    def _grads(
        self,
        token: Float[Tensor, "*r N D"],
        pixel: Float[Tensor, "*r ch"],
        encoding: Float[Tensor, "*r D P"],
        reading: Sequence[Float[Tensor, "*r D _"]],
        writing: Sequence[Float[Tensor, "*r D _"]],
    ) -> Params:
        """Gradients of the parameters, from sums of a credit and from outer products with tokens.

        `token` is the sum over examples, `pixel` that over examples and places. `encoding` is the product of the credit
        with the visible patches. `reading` are the products of the state with credits of the features, and `writing`
        those of the credit with the features: of pixels, of memories, and of each kind of head.
        """
        kernel = (self.ch, self.patch, self.patch)
        return self._head_grads(reading[2:], writing[2:]) | {
            "Wenc": encoding.unflatten(-1, kernel),
            "benc": token.sum(-2),
            "bpos": token,
            "Wdec": (reading[0] + writing[0]).unflatten(-1, kernel),
            "bdec": pixel,
            "Wmem": 2 * (reading[1] + writing[1]),
        }
