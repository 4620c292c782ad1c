"""A convergent energy transformer with ordinary attention, which is its swirl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractDrivenSystem, Data, Params, Saved
from gradbench.systems.cet_attention import AbstractSoftmaxAttention
from gradbench.systems.cet_derivatives import AbstractCet
from gradbench.systems.products import matmul
from gradbench.systems.tokens import join
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractDrivenCet(AbstractSoftmaxAttention, AbstractCet, AbstractDrivenSystem):
    """F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy.

    The attention is the swirl: a force on the tokens alone.
    """

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        return self._energy_without_attention(theta, context, part["z"], part["y"], knobs)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        features = self._head_features(context["ahead_in"], part["z"])
        attended = self._attended(self._attend(features), knobs.sigma)
        return self._on_tokens(context["ahead_out"][self._first_head :], attended, part["y"])

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        attended = self._attended_jvp(saved, self._head_features(context["ahead_in"], z), knobs.sigma)
        return self._on_tokens(context["ahead_out"][self._first_head :], attended, y)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        attended = self._attended_vjp(saved, self._head_features(context["back_in"], z), knobs.sigma)
        return self._on_tokens(context["back_out"][self._first_head :], attended, y)

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        *ahead, back = self._cut(matmul(z, context["skew_in"]))
        attended = self._attended_jvp(saved, ahead, knobs.sigma), self._attended_vjp(saved, [back], knobs.sigma)
        return self._on_tokens(context["skew_out"], (*attended[0], *attended[1]), y)

    def _fused(self, theta: Params) -> Params:
        """With the matrices of the antisymmetric part: both products read the same direction."""
        import torch

        reading, writing = self._head_weights(theta)
        return super()._fused(theta) | {
            "skew_in": torch.cat([W.mT for W in (*reading, *writing)], -1),
            "skew_out": 0.5 * torch.cat([*writing, *(-W for W in reading)], -2),
        }

    @property
    def _first_head(self) -> int:
        """Features of a token before those of the heads."""
        return self.pixels + self.mem

    def _head_features(self, W: Float[Tensor, "D K"], z: Float[Tensor, "*b N D"]) -> tuple[Tensor, ...]:
        """Features of each kind of head alone."""
        return self._cut(matmul(z, W[:, self._first_head :]))

    def _on_tokens(self, W: Float[Tensor, "K D"], attended: tuple[Tensor, ...], y: Tensor) -> Float[Tensor, "*b n"]:
        """A force on the tokens, and none on the pixels."""
        return join(self._returned(W, (), attended), y.new_zeros(y.shape))
