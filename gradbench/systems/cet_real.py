"""A transformer with ordinary attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.systems.cet_driven import AbstractDrivenCet


@final
@dataclass(frozen=True)
class CetReal(AbstractDrivenCet):
    """Transformer with ordinary attention, whose free value and output matrices no energy generates.

    F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy
    """

    name: ClassVar[str] = "cet_real"
    source: ClassVar[str] = "CET with transformer attention; Scurria et al. 2026, arXiv:2602.03670"
