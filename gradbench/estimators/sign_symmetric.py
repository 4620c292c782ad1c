"""Sign-symmetric feedback: the signs of the transposed weights, with sizes that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.estimators.feedback import AbstractFeedback
from gradbench.estimators.phases.feedback import Kind


@final
@dataclass(frozen=True)
class SignSymmetric(AbstractFeedback):
    """Sign-symmetric feedback: credit goes down by the signs of the transposed weights, with random sizes.

    As `fa`, with B = sign(W) |b| entry by entry, b ~ N(0, mean W^2) drawn from the seed of the cell.
    Exact nowhere. For Gaussian W and b the cosine of B and W is 2/pi.
    """

    name: ClassVar[str] = "sign_symmetric"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Liao, Leibo & Poggio 2016; Moskovitz, Litwin-Kumar & Abbott 2018"

    @property
    def kind(self) -> Kind:
        return "signed"
