"""The two attentions of the transformers: the gradient of an energy, and the ordinary one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradbench.systems.attention import (
    attend,
    attend_jvp,
    attend_saved,
    attend_vjp,
    energy_slope,
    energy_slope_jvp,
    energy_slope_saved,
    heads,
)
from gradbench.systems.base import Params, Saved
from gradbench.systems.cet_options import AbstractCetOptions

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractAttention(AbstractCetOptions):
    """An attention as a part of the force on the tokens: F_z = ... + sum_i sigma o_i(z R_1^T, z R_2^T, ...) W_i.

    The weights R (Hh, D) read features of the tokens, the outputs o of attention are functions of all features,
    and the weights W (Hh, D) write them to the tokens. The transposed Jacobian product has the same form:
    there the W read a credit and the R write.
    """

    @abstractmethod
    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        """The weights R that read, and the weights W that write."""

    @abstractmethod
    def _head_grads(
        self, reading: Sequence[Float[Tensor, "*r D Hh"]], writing: Sequence[Float[Tensor, "*r D Hh"]]
    ) -> Params:
        """Gradients of the parameters, from those of the transposed R and of the transposed W."""

    @abstractmethod
    def _attend(self, features: Sequence[Float[Tensor, "*b N Hh"]]) -> Saved:
        """What the outputs and their derivatives need, from the features z R^T."""

    @abstractmethod
    def _attended(self, saved: Saved, sigma: Tensor) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """sigma o, one for each W."""

    @abstractmethod
    def _attended_jvp(
        self, saved: Saved, features: Sequence[Float[Tensor, "*b N Hh"]], sigma: Tensor
    ) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """Change of sigma o with the features v R^T of a direction v, one for each W."""

    @abstractmethod
    def _attended_vjp(
        self, saved: Saved, features: Sequence[Float[Tensor, "*b N Hh"]], sigma: Tensor
    ) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """The transpose: credits of the features, one for each R, from the features a W^T of a credit a."""

    def _by_head(self, features: Sequence[Float[Tensor, "*b N Hh"]]) -> list[Float[Tensor, "*b H N h"]]:
        return [heads(f, self.heads) for f in features]

    def _kernel(self, g: Float[Tensor, "*r D Hh"]) -> Float[Tensor, "*r H h D"]:
        return g.mT.unflatten(-2, (self.heads, self.dh))


class AbstractEnergyAttention(AbstractAttention):
    """Both slopes of L = 1/gamma sum_{h,m} logsumexp_n(gamma q_m . k_n). WQ and WK read, and they also write."""

    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        both = [theta[w].flatten(0, 1) for w in ("WQ", "WK")]
        return both, both

    def _head_grads(self, reading: Sequence[Tensor], writing: Sequence[Tensor]) -> Params:
        return {w: self._kernel(z + a) for w, z, a in zip(("WQ", "WK"), reading, writing, strict=True)}

    def _attend(self, features: Sequence[Tensor]) -> Saved:
        q, k = self._by_head(features)
        return energy_slope_saved(q, k, self.gamma)

    def _attended(self, saved: Saved, sigma: Tensor) -> tuple[Tensor, ...]:
        return tuple(sigma * slope for slope in energy_slope(saved))

    def _attended_jvp(self, saved: Saved, features: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        dq, dk = self._by_head(features)
        return tuple(sigma * moved for moved in energy_slope_jvp(saved, dq, dk, self.gamma))

    def _attended_vjp(self, saved: Saved, features: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        return self._attended_jvp(saved, features, sigma)  # a Hessian


class AbstractSoftmaxAttention(AbstractAttention):
    """o = softmax(q k^T / sqrt(h)) v. WQ, WK and WV read, and WO writes."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return super().shapes | {"WV": (self.heads, self.dh, self.D), "WO": (self.D, self.heads * self.dh)}

    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        return [theta[w].flatten(0, 1) for w in ("WQ", "WK", "WV")], [theta["WO"].mT]

    def _head_grads(self, reading: Sequence[Tensor], writing: Sequence[Tensor]) -> Params:
        (WO,) = writing
        return {w: self._kernel(g) for w, g in zip(("WQ", "WK", "WV"), reading, strict=True)} | {"WO": WO}

    def _attend(self, features: Sequence[Tensor]) -> Saved:
        return attend_saved(*self._by_head(features))

    def _attended(self, saved: Saved, sigma: Tensor) -> tuple[Tensor, ...]:
        return (sigma * attend(saved),)

    def _attended_jvp(self, saved: Saved, features: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        return (sigma * attend_jvp(saved, *self._by_head(features)),)

    def _attended_vjp(self, saved: Saved, features: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        (credit,) = self._by_head(features)
        return tuple(sigma * part for part in attend_vjp(saved, credit))
