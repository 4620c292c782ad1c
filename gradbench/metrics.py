"""How close an estimate is to the reference: by parameter and as a whole, accumulated in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
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


def compare(estimates: Sequence[Params], reference: Params, live: float) -> list[Comparison]:
    """Compare several estimates with one reference.

    `live`: a parameter whose reference norm is below this share of the global one has no cosine. Signs
    are compared where |reference| exceeds 16 units of round-off of its largest entry.
    """
    sums = torch.stack([_sums([e[n] for e in estimates], r) for n, r in reference.items()]).cpu()  # (P, 6, j)
    comparisons = []
    for j in range(len(estimates)):
        whole = _similarity(sums[:, :, j].sum(0).tolist(), 0.0, "the reference")
        params = {
            name: _similarity(sums[p, :, j].tolist(), live * whole.reference_norm, f"the reference of {name}")
            for p, name in enumerate(reference)
        }
        comparisons.append(Comparison(whole, params))
    return comparisons


def _sums(estimates: list[Tensor], reference: Tensor) -> Tensor:
    """<e, r>, |e|^2, |r|^2, |e - r|^2, signs agreeing, signs compared: (6, j)."""
    e = torch.stack([x.flatten() for x in estimates]).double()
    r = reference.flatten().double()
    noise = 16 * torch.finfo(reference.dtype).eps * r.abs().max()
    heard = r.abs() > noise
    agree = (e.sign() == r.sign()) & heard
    terms = (e @ r, e.square().sum(-1), r.square().sum().expand(len(e)), (e - r).square().sum(-1))
    return torch.stack((*terms, agree.sum(-1), heard.sum().expand(len(e))))


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
