"""Layered Hopfield networks with feedback weights of their own.

Letters: s_0 = x the pixels, s_1 ... s_L hidden layers, s_{L+1} the output; r = rho(s), and r_0 = x.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems.base import SPREAD, Params
from gradbench.systems.hopfield_layers import AbstractHopfield

if TYPE_CHECKING:
    from torch import Generator


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
