"""Direct feedback alignment: every layer gets its credit from the output, through a fixed random matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.estimators.feedback import AbstractFeedback
from gradbench.estimators.phases.feedback import Kind


@final
@dataclass(frozen=True)
class Dfa(AbstractFeedback):
    """Direct feedback alignment: every hidden layer gets its credit from the output, through a fixed random matrix.

    relaxing  the adjoint with T2 terms, in whose J^T credit reaches a hidden layer from above through B_l alone
    forward   <B_l e, dh_l/dtheta>, e = dC/dlogits and h_l the layer as a function of the layer below, held fixed
    B is drawn from the seed of the cell, N(0, mean W^2) with W the output weights. Exact nowhere, as `fa`, which it is
    for the last hidden layer. A block of a residual network is a layer: within it credit goes by its own derivative.
    """

    name: ClassVar[str] = "dfa"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Nøkland 2016; Refinetti, d'Ascoli, Ohana & Goldt 2021"

    @property
    def kind(self) -> Kind:
        return "direct"
