"""A convergent energy transformer whose attention is a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.systems import attention
from gradbench.systems.base import AbstractEnergySystem, Data, Params
from gradbench.systems.cet_attention import AbstractEnergyAttention
from gradbench.systems.cet_derivatives import AbstractCet
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractConservativeCet(AbstractEnergyAttention, AbstractCet, AbstractEnergySystem):
    """E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        z, y = part["z"], part["y"]
        q, k = self._by_head([z @ theta[w].flatten(0, 1).mT for w in ("WQ", "WK")])
        attended = attention.energy(q, k, self.gamma)
        return self._energy_without_attention(theta, context, z, y, knobs) - knobs.sigma * attended
