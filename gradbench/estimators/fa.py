"""Feedback alignment: a fixed random matrix in place of every transposed weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.estimators.feedback import AbstractFeedback
from gradbench.estimators.phases.feedback import Kind


@final
@dataclass(frozen=True)
class Fa(AbstractFeedback):
    """Feedback alignment: credit goes down through fixed random matrices in place of the transposed weights.

    relaxing  the adjoint with T2 terms, eps <p, dF/dtheta(s*)>, B_l in place of W_l^T in J^T
    forward   backpropagation through the pass, with B in place of W^T in every linear map; T2 plays no part
    B is drawn from the seed of the cell, N(0, mean W^2). Exact nowhere: at initialisation hidden parameters have cosine
    0 +- 1/sqrt(n), the output weights are right, and training turns W towards B. In a recurrent system credit
    that goes up still goes by the transposed feedback weights, and the series need not have a limit.
    """

    name: ClassVar[str] = "fa"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Lillicrap, Cownden, Tweed & Akerman 2016"

    @property
    def kind(self) -> Kind:
        return "layered"
