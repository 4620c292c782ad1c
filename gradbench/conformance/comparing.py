"""Numbers that are compared: relative differences, slopes by differences, and what a wrong vector looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.systems.base import Params

STEPS = (1e-5, 1e-4, 1e-6, 1e-3)  # of central differences, in the order in which they are tried
SLOPE = 1e-6  # relative: up to which a slope is that of central differences
ALIKE = 1e-4  # relative: up to which a wrong vector is a multiple of the right one


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest entry of both; inf for other shapes, NaN where a number is NaN."""
    if got.shape != expected.shape:
        return math.inf
    if not got.numel():
        return 0.0
    size = float(torch.maximum(got.detach().abs().amax(), expected.detach().abs().amax()))
    difference = float((got - expected).detach().abs().amax())
    return difference / size if size else difference


def gap(got: Params, expected: Params) -> float:
    """|got - expected| / |expected| of whole gradients."""
    one, other = (torch.cat([g[n].flatten() for n in expected]) for g in (got, expected))
    return float((one - other).norm() / other.norm())


def off_slope(claimed: Tensor, along: Callable[[float], Tensor], size: float) -> float:
    """How far `claimed` is from the slope of `along` at 0, over the larger of both or 1e-2 of `size`.

    The step is the first of some at which the two agree: round-off asks for a large one, a kink for a small one.
    """
    best = math.inf
    for h in STEPS:
        numeric = (along(h) - along(-h)) / (2 * h)
        scale = max(float(numeric.norm()), float(claimed.norm()), 1e-2 * size)
        error = float((claimed - numeric).norm()) / scale if scale else 0.0
        best = min(best, math.inf if math.isnan(error) else error)
        if best <= SLOPE:
            break
    return best


def slope_of(along: Callable[[float], Tensor]) -> Tensor:
    """The slope of `along` at 0 by central differences."""
    return (along(STEPS[0]) - along(-STEPS[0])) / (2 * STEPS[0])


def likeness(got: Tensor, expected: Tensor, eps: float, b: int) -> str:
    """A wrong vector in words, where it is a multiple of the right one; else empty."""
    size = float(expected.norm())
    if not size or got.shape != expected.shape:
        return ""
    ratio = float((got * expected).sum()) / size**2
    if not float((got - ratio * expected).norm()) <= ALIKE * max(1.0, abs(ratio)) * size:
        return ""
    return told_ratio(ratio, eps, b)


def told_ratio(ratio: float, eps: float, b: int) -> str:
    """What a factor in place of 1 means."""
    known = {
        -1.0: "has the opposite sign",
        0.0: "is zero",
        eps: f"has a factor eps = {eps:g} too many",
        1 / eps: f"lacks the factor eps = {eps:g}",
        1 / b: f"is divided by the number of examples, b = {b}: the cost of a batch is the sum over its examples",
        float(b): f"is multiplied by the number of examples, b = {b}",
        -eps: f"has the opposite sign, and a factor eps = {eps:g} too many",
        -1 / eps: f"has the opposite sign, and lacks the factor eps = {eps:g}",
    }
    near = [words for value, words in known.items() if value != 1 and abs(ratio - value) <= ALIKE * max(abs(value), 1)]
    return near[0] if near else f"is {ratio:.4g} times what it should be"


def worst(numbers: Iterable[tuple[str, float]]) -> tuple[str, float]:
    """The name of the largest number, and the number. A NaN is the largest."""
    pairs: Mapping[str, float] = dict(numbers)
    name = max(pairs, key=lambda n: math.inf if math.isnan(pairs[n]) else pairs[n], default="")
    return name, pairs.get(name, 0.0)
