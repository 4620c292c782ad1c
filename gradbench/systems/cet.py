"""The convergent energy transformer: tokens z and a reconstruction y that relax together.

There are two attentions, a gradient (`cet_conservative`) and the usual one (`cet_driven`). Each comes with and without
the projection Pi = token_norm on z and the identity on y (`cet_projection`): `cet`, `cet_energy`, `cet_projected` and
`cet_real`. E_0, the energy without attention, is written out in `cet_force`.
Its w is 2, and 1/2 in `cet`, whose tokens the projection holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.systems.cet_conservative import AbstractConservativeCet
from gradbench.systems.cet_projection import AbstractProjectedTokens


@final
@dataclass(frozen=True)
class Cet(AbstractProjectedTokens, AbstractConservativeCet):
    """Convergent energy transformer: energy attention, tokens projected after every step.

    E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds,   w = 1/2
    Pi = token_norm on z. With zero biases the hidden tokens are all alike and may settle on a saddle;
    bpos_std > 0 tells them apart.
    """

    name: ClassVar[str] = "cet"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET)"
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 30, "T2": 5, "beta": 0.1, "eps": 0.5, "batch": 128
    }  # fmt: skip
    well: ClassVar[float] = 0.5
    mem_std: ClassVar[float] = 1.0

    img: int = 32
    ch: int = 3
    patch: int = 8
    D: int = 128
    dh: int = 32
    mem: int = 256
