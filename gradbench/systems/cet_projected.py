"""A transformer with ordinary attention and the projection of `cet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.systems.cet_derivatives import AbstractCet
from gradbench.systems.cet_driven import AbstractDrivenCet
from gradbench.systems.cet_projection import AbstractProjectedTokens


@final
@dataclass(frozen=True)
class CetProjected(AbstractProjectedTokens, AbstractDrivenCet):
    """Transformer with ordinary attention, tokens projected after every step.

    F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy
    Pi = token_norm on z. Large sigma leaves no fixed point.
    """

    name: ClassVar[str] = "cet_projected"
    source: ClassVar[str] = "CET with transformer attention under the token norm"
    defaults: ClassVar[Mapping[str, float]] = {**AbstractCet.defaults, "T1": 120, "batch": 32}
