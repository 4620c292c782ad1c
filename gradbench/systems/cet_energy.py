"""A transformer whose attention is a gradient, without the projection of `cet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.systems.cet_conservative import AbstractConservativeCet


@final
@dataclass(frozen=True)
class CetEnergy(AbstractConservativeCet):
    """Transformer whose attention is a gradient: the conservative control.

    E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds
    """

    name: ClassVar[str] = "cet_energy"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET); Hoover et al. 2023 (energy attention)"
