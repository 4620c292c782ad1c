"""The derivatives of the transformers' force in closed form.

A direction v and a credit a have tokens z and pixels y, as a state has. J v takes the tokens of v through the
matrices of F, and J^T a takes the tokens of a through the transposed matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.systems.activations import relu_slope
from gradbench.systems.attention import outer
from gradbench.systems.base import ClosedForms, Data, Params, Saved
from gradbench.systems.fused_tokens import AbstractFusedTokens
from gradbench.systems.products import matmul
from gradbench.systems.tokens import as_one_row, join, patches
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractCet(ClosedForms, AbstractFusedTokens):
    """Slope of the cost, Jacobian products and pulls. An attention adds the derivatives of its outputs."""

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        return join(part["z"].new_zeros(part["z"].shape), x["mask"] * (part["y"] - x["x"]))

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z, y = self._parts(s)
        # F is linear in the pixels, so no derivative needs the decoded tokens
        memory, *features = self._cut(matmul(z, context["ahead_in"][:, self.pixels :]), self.mem)
        return self._attend(features) | {"z": z, "y": y, "memory": memory.relu()}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        decoded, memory, *features = self._cut(matmul(z, context["ahead_in"]), self.pixels, self.mem)
        attended = self._attended_jvp(saved, features, knobs.sigma)
        flat = (patches(y, self.patch), memory * relu_slope(saved["memory"]))
        returned = self._returned(context["ahead_out"], flat, attended)
        return join(self._damped(z, returned, knobs), self._image(decoded) - y)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        credits, decoded = self._credits(context, saved, z, y, knobs)
        return self._vjp(context, z, y, credits, decoded, knobs)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        z, y = self._parts(a)
        credits, _ = self._credits(context, saved, z, y, knobs)
        return self._pull(context, saved, z, y, credits, knobs)

    def backward(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Params]:
        z, y = self._parts(a)
        credits, decoded = self._credits(context, saved, z, y, knobs)
        grads = self._pull(context, saved, z, y, credits, knobs)
        return self._vjp(context, z, y, credits, decoded, knobs), grads

    def _credits(
        self, context: Params, saved: Saved, z: Tensor, y: Tensor, knobs: Knobs
    ) -> tuple[Float[Tensor, "*r b N K"], Float[Tensor, "*r b N P"]]:
        """Credits of the features as one row, and the patches that the credit of the tokens decodes to."""
        decoded, memory, *features = self._cut(matmul(z, context["back_in"]), self.pixels, self.mem)
        by_head = self._attended_vjp(saved, features, knobs.sigma)
        return as_one_row((patches(y, self.patch), memory * relu_slope(saved["memory"])), by_head), decoded

    def _vjp(
        self, context: Params, z: Tensor, y: Tensor, credits: Tensor, decoded: Tensor, knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J^T a, from the credits of the features."""
        return join(self._damped(z, matmul(credits, context["back_out"]), knobs), self._image(decoded) - y)

    def _pull(self, context: Params, saved: Saved, z: Tensor, y: Tensor, credits: Tensor, knobs: Knobs) -> Params:
        """d<a, F>/dtheta, from the credits of the features.

        F holds f(z R^T) W. The gradient of R is the outer product of the tokens of the state with the credits of
        the features, and the gradient of W is that of the credit of the tokens with the features f.
        """
        flat = (patches(saved["y"], self.patch), saved["memory"], context["seen"])
        features = as_one_row(flat, self._attended(saved, knobs.sigma))
        reading = self._cut(outer(saved["z"], credits), self.pixels, self.mem)
        decoding, memory, encoding, *writing = self._cut(outer(z, features), self.pixels, self.mem, self.pixels)
        pixel = y.sum((-4, -2, -1))
        return self._grads(z.sum(-3), pixel, encoding, reading, (decoding, memory, *writing))
