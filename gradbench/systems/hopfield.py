"""Layered Hopfield networks, with symmetric weights or with feedback weights of their own.

Letters: s_0 = x the pixels, s_1 ... s_L hidden layers, s_{L+1} the output; r = rho(s), and r_0 = x.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.base import SPREAD, AbstractEnergySystem, Data, Params
from gradbench.systems.hopfield_layers import AbstractHopfield
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


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


@final
@dataclass(frozen=True)
class HopfieldAsymmetric(AbstractHopfield):
    """Layered Hopfield network whose feedback has weights V_l = W_l + asymmetry R_l, R_l drawn as W_l: no energy.

    F_l = -(1 + c) s_l + rho'(s_l) (sigma (W_l r_{l-1} + V_{l+1}^T r_{l+1}) + b_l)
    W and V are parameters of their own. asymmetry = 0 begins as `hopfield` is.
    """

    name: ClassVar[str] = "hopfield_asymmetric"
    source: ClassVar[str] = "Scellier et al. 2018 (vector field); Laborieux et al. 2021 (weights that are not tied)"
    knobs: ClassVar[frozenset[str]] = frozenset({"asymmetry"})

    asymmetry: float = field(default=0.5, metadata=SPREAD)

    @property
    def feedback(self) -> str:
        return "V"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes
        return shapes | {f"V{name[1:]}": shapes[name] for name in self.carriers}

    def init_params(self, rng: Generator) -> Params:
        theta = super().init_params(rng)
        return theta | {
            n: theta[f"W{n[1:]}"] + self.asymmetry * p for n, p in theta.items() if n.startswith(self.feedback)
        }
