"""How close an estimate is to the reference: by parameter and as a whole, accumulated in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from gradbench.vocabulary.notation import ATTENTION
from gradbench.vocabulary.reason import NOT_FINITE, REFERENCE, ZERO

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int, Shaped
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


_COSINE, _REL_ERROR, _REFERENCE_NORM = map(Similarity._fields.index, ("cosine", "rel_error", "reference_norm"))


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Estimates compared with their references, in columns: there may be a hundred thousand of them.

    `numbers` are those of `Similarity`, of the whole gradient first and then by parameter; `codes` are the places of
    their reasons in `_REASONS`.
    """

    names: tuple[str, ...]  # of the parameters
    numbers: Float64[np.ndarray, "k 1+P 5"]
    codes: Int[np.ndarray, "k 1+P"]

    @classmethod
    def of(cls, compared: Sequence[Comparison]) -> Comparisons:
        """The columns of comparisons of the same parameters, wherever they are from."""
        numbers, codes = (np.stack([getattr(c.among, n)[c.place] for c in compared]) for n in ("numbers", "codes"))
        return cls(compared[0].among.names, numbers, codes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Comparison]:
        return (Comparison(self, place) for place in range(len(self)))

    @property
    def cosines(self) -> Float64[np.ndarray, "k P"]:
        """Of the parameters."""
        return self.numbers[:, 1:, _COSINE]

    @property
    def rel_errors(self) -> Float64[np.ndarray, "k 1+P"]:
        """|estimate - reference| / |reference|, of the whole gradient first."""
        return self.numbers[..., _REL_ERROR]

    @property
    def reference_norms(self) -> Float64[np.ndarray, "k 1+P"]:
        """|reference|, of the whole gradient first."""
        return self.numbers[..., _REFERENCE_NORM]

    @cached_property
    def wholes(self) -> list[Similarity]:
        """The readings of the whole gradients."""
        reasons = self.reasons[:, 0]
        return list(map(Similarity, *self.numbers[:, 0].T.tolist(), reasons.tolist()))

    @cached_property
    def reasons(self) -> Shaped[np.ndarray, "k 1+P"]:
        """Why cosines are undefined, or 0 by convention, in words."""
        subjects = [REFERENCE, *(f"{REFERENCE} of {n}" for n in self.names)]
        told = np.array([[text.format(subject) for subject in subjects] for text in _REASONS], object)
        return np.asarray(told[self.codes, np.arange(len(subjects))])

    @cached_property
    def live(self) -> Bool[np.ndarray, "k P"]:
        """Which parameters have a reference above the floor of liveness, whatever their estimate is."""
        return self.codes[:, 1:] < _NO_REFERENCE

    @cached_property
    def params_live(self) -> Int[np.ndarray, "k"]:
        """How many parameters have a reference above the floor of liveness."""
        return self.live.sum(1)

    @cached_property
    def params_zero(self) -> Int[np.ndarray, "k"]:
        """How many live parameters have an estimate of exactly zero."""
        return (self.codes[:, 1:] == _ZERO).sum(1)

    @cached_property
    def params_undefined(self) -> Int[np.ndarray, "k"]:
        """How many parameters have no cosine."""
        return (self.codes[:, 1:] > _ZERO).sum(1)

    @cached_property
    def cosine_mean(self) -> list[float]:
        """Mean over the live parameters; NaN where the estimate of one is not finite, as the next two."""
        return self._means(range(len(self.names)))

    @cached_property
    def cosine_attn(self) -> list[float]:
        """Mean over those of WQ, WK, WV, WO that are present and live."""
        return self._means([i for i, name in enumerate(self.names) if name in ATTENTION])

    @cached_property
    def cosine_min(self) -> list[float]:
        """Smallest over the live parameters."""
        rows = zip(self.cosines.tolist(), self._worst, strict=True)
        return [math.nan if worst < 0 else row[worst] for row, worst in rows]

    @cached_property
    def worst(self) -> list[str]:
        """Name of the parameter with the smallest cosine, or of the first whose estimate is not finite."""
        return [self.names[worst] if worst >= 0 else "" for worst in self._worst]

    @cached_property
    def _worst(self) -> list[int]:
        """The place of the parameter with the smallest cosine; -1 where none is live."""
        ranked = np.where(self.live, np.where(np.isnan(self.cosines), -math.inf, self.cosines), math.inf)
        return list(np.where(self.live.any(1), ranked.argmin(1), -1).tolist()) if self.names else [-1] * len(self)

    def _means(self, places: Sequence[int]) -> list[float]:
        """The mean cosine over those of some parameters that are live. One by one: numpy adds up in another order."""
        cosines, live = self.cosines[:, places].tolist(), self.live[:, places].tolist()
        return [_mean(list(itertools.compress(*row))) for row in zip(cosines, live, strict=True)]

    def wanting(self, faithful: float) -> list[str | None]:
        """What wants a cause: "" for the whole gradient, else the worst parameter or the one with the largest error.

        None where no error is above `faithful`, or there is nothing to compare with.
        """
        if faithful not in self._wanting:
            self._wanting[faithful] = self._wanting_above(faithful)
        return self._wanting[faithful]

    @cached_property
    def _wanting(self) -> dict[float, list[str | None]]:
        return {}

    def _wanting_above(self, faithful: float) -> list[str | None]:
        wanted = np.full(len(self), None, object)
        errors = np.where(self.live, self.rel_errors[:, 1:], -math.inf)
        if self.names:
            every, worst, largest = np.arange(len(self)), np.array(self._worst), errors.argmax(1)
            names = np.array(self.names, object)
            some = self.live.any(1)
            for place, above in (
                (largest, ~(errors[every, largest] <= faithful)),
                (worst, errors[every, worst] > faithful),
            ):
                wanted = np.where(some & above, names[place], wanted)
        wanted[~(self.rel_errors[:, 0] <= faithful)] = ""
        wanted[self.codes[:, 0] >= _NO_REFERENCE] = None
        return list(wanted.tolist())


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """An estimate compared with its reference: one of many, in whose columns it is read."""

    among: Comparisons
    place: int

    def __repr__(self) -> str:
        return f"Comparison(whole={self.whole!r}, params={self.params!r})"

    @property
    def whole(self) -> Similarity:
        """The readings of the whole gradient."""
        return self.among.wholes[self.place]

    @cached_property
    def params(self) -> dict[str, Similarity]:
        """The readings by parameter."""
        numbers, reasons = self.among.numbers[self.place, 1:].tolist(), self.among.reasons[self.place, 1:].tolist()
        rows = zip(self.among.names, numbers, reasons, strict=True)
        return {name: Similarity._make((*of_param, reason)) for name, of_param, reason in rows}

    def rel_error(self, name: str) -> float:
        """|estimate - reference| / |reference| of a parameter; of the whole gradient where the name is empty."""
        place = 1 + self.among.names.index(name) if name else 0
        return float(self.among.rel_errors[self.place, place])

    @property
    def defined(self) -> dict[str, float]:
        """Cosines of the parameters that have one; of a live parameter whose estimate is zero it is 0."""
        return {n: p.cosine for n, p in self.params.items() if p.defined}

    @property
    def counted(self) -> dict[str, float]:
        """Cosines of the live parameters: NaN where the estimate is not finite, which makes every summary NaN."""
        return {n: p.cosine for n, p in self.params.items() if p.defined or p.reason == NOT_FINITE}

    @property
    def cosine_min(self) -> float:
        """Smallest over the live parameters."""
        return self.among.cosine_min[self.place]

    @property
    def worst(self) -> str:
        """Name of the parameter with the smallest cosine, or of the first whose estimate is not finite."""
        return self.among.worst[self.place]

    def wanting(self, faithful: float) -> str | None:
        """What wants a cause, as `Comparisons.wanting` says it of all."""
        return self.among.wanting(faithful)[self.place]


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


def comparisons(sums: Float64[np.ndarray, "k P 6"], names: Sequence[str], live: float) -> Comparisons:
    """The readings of k estimates, from their tallies by parameter."""
    whole = sums.sum(1, keepdims=True)
    every = np.concatenate([whole, sums], 1)
    floor = np.concatenate(
        [np.zeros_like(whole[..., 2]), np.broadcast_to(live * np.sqrt(whole[..., 2]), sums.shape[:2])], 1
    )
    return Comparisons(tuple(names), *_readings(every, floor))


# why a cosine is undefined: of those that hold, the last counts
_REASONS = (
    "",
    ZERO,
    NOT_FINITE,
    "{} is below the floor of liveness",
    "{} is zero",
    "{} is not finite",
)
_ZERO, _NO_REFERENCE = 1, 3  # the place of ZERO, and the first place of those that lie in the reference


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
