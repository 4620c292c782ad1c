"""How close an estimate is to the reference: by parameter and as a whole, accumulated in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import Params

ATTENTION = ("WQ", "WK", "WV", "WO")  # the group of `cosine_attn`


@dataclass(frozen=True)
class Similarity:
    """Four readings of one comparison; NaN where the reading is undefined."""

    cosine: float
    norm_ratio: float  # |estimate| / |reference|
    rel_error: float  # |estimate - reference| / |reference|
    sign_agreement: float  # share of entries above the noise floor whose signs agree
    reference_norm: float
    reason: str = ""  # why the cosine is undefined


UNDEFINED = Similarity(math.nan, math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Comparison:
    """An estimate beside its reference."""

    whole: Similarity
    params: dict[str, Similarity] = field(default_factory=dict)

    @property
    def defined(self) -> dict[str, float]:
        """Cosines of the parameters that have one."""
        return {n: p.cosine for n, p in self.params.items() if not p.reason}

    @property
    def cosine_mean(self) -> float:
        """Mean over the parameters that have a cosine."""
        return _mean(list(self.defined.values()))

    @property
    def cosine_min(self) -> float:
        """Smallest over the parameters that have a cosine."""
        return min(self.defined.values(), default=math.nan)

    @property
    def cosine_attn(self) -> float:
        """Mean over those of WQ, WK, WV, WO that are present and defined."""
        return _mean([c for n, c in self.defined.items() if n in ATTENTION])

    @property
    def worst(self) -> str:
        """Name of the parameter with the smallest cosine."""
        return min(self.defined, key=self.defined.__getitem__, default="")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def compare(estimate: Params, reference: Params, live: float) -> Comparison:
    """Compare one estimate with its reference.

    `live`: a parameter whose reference norm is below this share of the global one has no cosine.
    """
    sums = tally(estimate, reference, 0).tolist()
    return comparison(dict(zip(reference, sums, strict=True)), live)


def tally(estimate: Params, reference: Params, lead: int) -> Float[Tensor, "*lead P 6"]:
    """<e, r>, |e|^2, |r|^2, |e - r|^2, signs that agree, signs compared: by parameter, in float64.

    The first `lead` axes stay, and the reference's broadcast against the estimate's. Signs are compared where
    |reference| exceeds 16 units of round-off of its largest entry.
    """
    rows = []
    for name, r in reference.items():
        e, r = (g.reshape(*g.shape[:lead], -1) for g in (estimate[name], r))
        noise = 16 * torch.finfo(r.dtype).eps * r.abs().amax(-1, keepdim=True)
        heard = r.abs() > noise
        agree = (e.sign() == r.sign()) & heard
        e, r = e.double(), r.double()
        terms = (e * r, e.square(), r.square(), (e - r).square(), agree.double(), heard.double())
        rows.append(torch.stack(torch.broadcast_tensors(*(term.sum(-1) for term in terms)), -1))
    return torch.stack(rows, -2)


def comparison(sums: dict[str, list[float]], live: float) -> Comparison:
    """The readings of one estimate, from its tallies by parameter."""
    whole = _similarity([sum(term) for term in zip(*sums.values(), strict=True)], 0.0, "the reference")
    floor = live * whole.reference_norm
    return Comparison(whole, {n: _similarity(row, floor, f"the reference of {n}") for n, row in sums.items()})


def _similarity(sums: list[float], floor: float, what: str) -> Similarity:
    dot, ee, rr, dd, agree, heard = sums
    norm, size = math.sqrt(rr), math.sqrt(ee)
    reason = ""
    if not math.isfinite(norm):
        reason = f"{what} is not finite"
    elif norm <= floor or norm == 0:
        reason = f"{what} is zero" if norm == 0 else f"{what} is below the floor of liveness"
    elif not math.isfinite(size):
        reason = "the estimate is not finite"
    elif size == 0:
        reason = "the estimate is zero"
    nan = math.nan
    if norm == 0 or not math.isfinite(norm):
        return Similarity(nan, nan, nan, nan, norm, reason)
    return Similarity(
        cosine=nan if reason else dot / (norm * size),
        norm_ratio=size / norm,
        rel_error=math.sqrt(dd) / norm,
        sign_agreement=agree / heard if heard else nan,
        reference_norm=norm,
        reason=reason,
    )
