"""Layered Hopfield networks with symmetric weights.

Letters: s_0 = x the pixels, s_1 ... s_L hidden layers, s_{L+1} the output; r = rho(s), and r_0 = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.base import AbstractEnergySystem, Data, Params
from gradbench.systems.hopfield_layers import AbstractHopfield
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@final
@dataclass(frozen=True)
class Hopfield(AbstractHopfield, AbstractEnergySystem):
    """Layered Hopfield network with symmetric weights.

    E = 1/2 (1 + c) |s|^2 - sigma sum_l r_l^T W_l r_{l-1} - sum_l b_l^T r_l,   F = -dE/ds,   C = 1/2 |s_out - one-hot|^2
    """

    name: ClassVar[str] = "hopfield"
    source: ClassVar[str] = "Scellier & Bengio 2017; Laborieux et al. 2021"

    @property
    def feedback(self) -> str:
        return "W"

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        r = self._rho(s)
        coupling = r * (context["input"] + 0.5 * self._ahead(theta, r))
        return (0.5 * (1 + knobs.damp) * s.square() - knobs.sigma * coupling - context["bias"] * r).sum(-1)
