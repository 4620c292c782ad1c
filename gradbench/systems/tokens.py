"""Images as tokens, one a patch, and back; the norm of a token; the features of a token as one row.

Letters: N tokens, D width of a token, P = ch patch^2 pixels of a patch, H heads, h width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradbench.systems.shapes import joint_shape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LN_EPS = 1e-5  # as in torch.nn.LayerNorm


def patches(y: Float[Tensor, "*b ch img img"], patch: int) -> Float[Tensor, "*b N P"]:
    """Cut an image into patches, row by row."""
    cut = y.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    return cut.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def image(p: Float[Tensor, "*b N P"], ch: int, side: int, patch: int) -> Float[Tensor, "*b ch img img"]:
    """Undo `patches`. `side` is the number of patches along a side."""
    cut = p.unflatten(-1, (ch, patch, patch)).unflatten(-4, (side, side))
    return cut.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)


def join(z: Float[Tensor, "*b N D"], y: Float[Tensor, "*b ch img img"]) -> Float[Tensor, "*b n"]:
    """The flat state of tokens z and pixels y. `AbstractSystem.split` undoes it."""
    import torch

    return torch.cat((z.flatten(-2), y.flatten(-3)), -1)


def token_norm(z: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    """(z - mean) / (std + 1e-5) of each token over its width, with the population's std."""
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, correction=0, keepdim=True) + 1e-5)


def token_norm_jvp(z: Float[Tensor, "*b N D"], v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    """Change of token_norm(z) along v. The map is its own transpose.

    With p = z - mean and d = std + 1e-5: (v - mean v - p (p . v) / (D std d)) / d.
    """
    p, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    std = z.std(-1, correction=0, keepdim=True)
    d = std + 1e-5
    return (v - p * ((p * v).mean(-1, keepdim=True) / (std * d))) / d


def layer_norm(z: Float[Tensor, "*b D"]) -> Float[Tensor, "*b D"]:
    """(z - mean) / sqrt(var + 1e-5) over the width, with the population's variance: torch.nn.LayerNorm without weights.

    Unlike `token_norm` it has a derivative at a constant z.
    """
    centred = z - z.mean(-1, keepdim=True)  # before the deviation: reverse mode adds, and so rounds, in this order
    return centred / _deviation(z)


def layer_norm_saved(z: Float[Tensor, "*b D"]) -> tuple[Float[Tensor, "*b D"], Float[Tensor, "*b 1"]]:
    """y = layer_norm(z), and its denominator."""
    deviation = _deviation(z)
    return (z - z.mean(-1, keepdim=True)) / deviation, deviation


def _deviation(z: Tensor) -> Tensor:
    return (z.var(-1, correction=0, keepdim=True) + LN_EPS).sqrt()


def layer_norm_jvp(
    y: Float[Tensor, "*b D"], deviation: Float[Tensor, "*b 1"], v: Float[Tensor, "*b D"]
) -> Float[Tensor, "*b D"]:
    """Change of y = layer_norm(z) along v. The map is its own transpose: y is the gradient of D deviation."""
    return (v - v.mean(-1, keepdim=True) - y * (y * v).mean(-1, keepdim=True)) / deviation


def as_one_row(
    flat: Sequence[Float[Tensor, "*b N _"]], by_head: Sequence[Float[Tensor, "*b H N h"]], length: int = 0
) -> Float[Tensor, "*b N K"]:
    """Features of every token as one row: the flat ones, those of the heads, then zeros up to `length`.

    Every feature is copied once. `merge` of the heads and then a cat would copy them twice.
    """
    merged = [x.transpose(-3, -2) for x in by_head]
    features = [(x, x.shape[-1:]) for x in flat] + [(x, x.shape[-2:]) for x in merged]
    sizes = [math.prod(shape) for _, shape in features]
    tokens = joint_shape(*(x.shape[: x.ndim - len(shape)] for x, shape in features))
    row, start = features[0][0].new_empty((*tokens, max(length, sum(sizes)))), 0
    for (x, shape), size in zip(features, sizes, strict=True):
        row[..., start : start + size].unflatten(-1, shape).copy_(x)
        start += size
    row[..., start:].zero_()
    return row
