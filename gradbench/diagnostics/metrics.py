"""How close an estimate is to the reference: by parameter and as a whole, accumulated in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from gradbench.vocabulary.notation import ATTENTION
from gradbench.vocabulary.reason import NOT_FINITE, REFERENCE, ZERO

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from gradbench.systems.base import Params


class Similarity(NamedTuple):
    """Four readings of one comparison; NaN where the reading is undefined."""

    cosine: float
    norm_ratio: float  # |estimate| / |reference|
    rel_error: float  # |estimate - reference| / |reference|
    sign_agreement: float  # share of entries above the noise floor whose signs agree
    reference_norm: float
    reason: str = ""  # why the cosine is undefined, or 0 by convention

    @property
    def defined(self) -> bool:
        """Whether there is a cosine."""
        return self.reason in ("", ZERO)

    @property
    def overflowed(self) -> bool:
        """Whether the reference is not finite."""
        return self.no_reference and not math.isfinite(self.reference_norm)

    @property
    def no_reference(self) -> bool:
        """Whether the reference gives nothing to compare with: it is zero, below the floor or not finite."""
        return self.reason.startswith(REFERENCE)


UNDEFINED = Similarity(math.nan, math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Comparison:
    """An estimate compared with its reference."""

    whole: Similarity
    params: dict[str, Similarity] = field(default_factory=dict)

    @cached_property
    def defined(self) -> dict[str, float]:
        """Cosines of the parameters that have one; of a live parameter whose estimate is zero it is 0."""
        return {n: p.cosine for n, p in self.params.items() if p.defined}

    @property
    def params_live(self) -> int:
        """How many parameters have a reference above the floor of liveness."""
        return sum(not p.no_reference for p in self.params.values())

    @property
    def params_zero(self) -> int:
        """How many live parameters have an estimate of exactly zero."""
        return sum(p.reason == ZERO for p in self.params.values())

    @property
    def params_undefined(self) -> int:
        """How many parameters have no cosine."""
        return len(self.params) - len(self.defined)

    @cached_property
    def counted(self) -> dict[str, float]:
        """Cosines of the live parameters: NaN where the estimate is not finite, which makes every summary NaN."""
        return {n: p.cosine for n, p in self.params.items() if p.defined or p.reason == NOT_FINITE}

    @property
    def cosine_mean(self) -> float:
        """Mean over the live parameters."""
        return _mean(list(self.counted.values()))

    @property
    def cosine_min(self) -> float:
        """Smallest over the live parameters."""
        return self.counted[self.worst] if self.worst else math.nan

    @property
    def cosine_attn(self) -> float:
        """Mean over those of WQ, WK, WV, WO that are present and live."""
        return _mean([c for n, c in self.counted.items() if n in ATTENTION])

    @cached_property
    def worst(self) -> str:
        """Name of the parameter with the smallest cosine, or of the first whose estimate is not finite."""
        ranked = {n: -math.inf if math.isnan(cosine) else cosine for n, cosine in self.counted.items()}
        return min(ranked, key=ranked.__getitem__, default="")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def compare(estimate: Params, reference: Params, live: float) -> Comparison:
    """Compare one estimate with its reference.

    `live`: a parameter whose reference norm is below this share of the global one has no cosine.
    """
    (compared,) = comparisons(Reference(reference, 0).tally(estimate).cpu().numpy()[None], list(reference), live)
    return compared


class Reference:
    """A gradient that estimates are compared with, and the sums over it that every comparison needs.

    The first `lead` axes stay, and broadcast against those of an estimate. Signs are compared where |reference|
    exceeds 16 units of round-off of its largest entry.
    """

    def __init__(self, gradient: Params, lead: int) -> None:
        self._lead, self._names = lead, list(gradient)
        flat = [g.reshape(*g.shape[:lead], -1) for g in gradient.values()]
        self._sizes = [r.shape[-1] for r in flat]
        noise = [16 * torch.finfo(r.dtype).eps * r.abs().amax(-1, keepdim=True) for r in flat]
        heard = [r.abs() > floor for r, floor in zip(flat, noise, strict=True)]
        self._whole = torch.cat(flat, -1)
        # a NaN agrees with nothing
        self._signs = torch.where(torch.cat(heard, -1), self._whole.sign(), math.nan)
        self._known = [self._sums(self._whole.double().square()), self._sums(torch.cat(heard, -1))]

    def tally(self, estimate: Params) -> Float64[Tensor, "*lead P 6"]:
        """<e, r>, |e|^2, |r|^2, |e - r|^2, signs that agree, signs compared: by parameter, in float64."""
        e = torch.cat([estimate[n].reshape(*estimate[n].shape[: self._lead], -1) for n in self._names], -1)
        agree, e, r = self._sums(e.sign() == self._signs), e.double(), self._whole.double()
        squares, heard = self._known
        terms = self._sums(e * r), self._sums(e.square()), squares, self._sums((e - r).square()), agree, heard
        return torch.stack(torch.broadcast_tensors(*terms), -1)

    def _sums(self, entries: Tensor) -> Float64[Tensor, "*lead P"]:
        return torch.stack([part.sum(-1) for part in entries.split(self._sizes, -1)], -1).double()


def comparisons(sums: Float64[np.ndarray, "k P 6"], names: Sequence[str], live: float) -> list[Comparison]:
    """The readings of k estimates, from their tallies by parameter."""
    whole = sums.sum(1, keepdims=True)
    every = np.concatenate([whole, sums], 1)
    floor = np.concatenate(
        [np.zeros_like(whole[..., 2]), np.broadcast_to(live * np.sqrt(whole[..., 2]), sums.shape[:2])], 1
    )
    rows, reasons = _readings(every, floor)
    subjects = [REFERENCE, *(f"{REFERENCE} of {n}" for n in names)]
    texts = np.array([[text.format(subject) for subject in subjects] for text in _REASONS], object)
    told = texts[reasons, np.arange(len(subjects))]
    # all comparisons of all estimates from columns: there may be hundreds of thousands
    columns = (*np.moveaxis(rows, -1, 0).reshape(5, -1).tolist(), told.ravel().tolist())
    flat = list(map(Similarity, *columns))
    compared = []
    for start in range(0, len(flat), len(subjects)):
        first, *by_param = flat[start : start + len(subjects)]
        compared.append(Comparison(first, dict(zip(names, by_param, strict=True))))
    return compared


# why a cosine is undefined: of those that hold, the last counts
_REASONS = (
    "",
    ZERO,
    NOT_FINITE,
    "{} is below the floor of liveness",
    "{} is zero",
    "{} is not finite",
)


def _readings(
    sums: Float64[np.ndarray, "k P 6"], floor: Float64[np.ndarray, "k P"]
) -> tuple[Float64[np.ndarray, "k P 5"], np.ndarray]:
    """The numbers of `Similarity`, and places of the reasons in `_REASONS`."""
    with np.errstate(all="ignore"):
        dot, ee, rr, dd, agree, heard = np.moveaxis(sums, -1, 0)
        norm, size = np.sqrt(rr), np.sqrt(ee)
        tests = (size == 0, ~np.isfinite(size), norm <= floor, norm == 0, ~np.isfinite(norm))
        reason = np.zeros(norm.shape, int)
        for code, holds in enumerate(tests, 1):
            reason[holds] = code
        rows = np.stack([dot / (norm * size), size / norm, np.sqrt(dd) / norm, agree / heard, norm], -1)
    rows[..., 0][reason > 0] = math.nan
    rows[..., 0][reason == 1] = 0.0  # a live parameter that the estimate leaves where it is
    rows[..., :4][(norm == 0) | ~np.isfinite(norm)] = math.nan
    return rows, reason
