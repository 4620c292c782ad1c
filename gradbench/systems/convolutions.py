"""Convolutions without padding and poolings, for layers with any axes in front, with their transposes and gradients.

Letters: C and K channels below and above, k pixels of a kernel's side, p pixels of a pooled side. A pooling is given by
the shares that the p x p pixels of a block have in it: 1 / p^2 each of an average, 1 of the largest one of a maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def convolved(h: Float[Tensor, "*b C H W"], w: Float[Tensor, "K C k k"]) -> Float[Tensor, "*b K h w"]:
    """w * h."""
    import torch

    return torch.nn.functional.conv2d(h.flatten(0, -4), w).unflatten(0, h.shape[:-3])


def convolved_back(a: Float[Tensor, "*b K h w"], w: Float[Tensor, "K C k k"]) -> Float[Tensor, "*b C H W"]:
    """The transpose of h -> w * h."""
    import torch

    return torch.nn.functional.conv_transpose2d(a.flatten(0, -4), w).unflatten(0, a.shape[:-3])


def of_kernel(a: Float[Tensor, "*r b K h w"], h: Float[Tensor, "*r b C H W"]) -> Float[Tensor, "*r K C k k"]:
    """d<a, w * h>/dw of every row, summed over its examples."""
    import torch

    return torch.einsum("...bKhw,...bCijhw->...KCij", a, windows(h, h.shape[-1] - a.shape[-1] + 1))


def windows(h: Float[Tensor, "*b C H W"], k: int) -> Float[Tensor, "*b C k k h w"]:
    """A view of what every pixel of a kernel sees."""
    return h.unfold(-2, k, 1).unfold(-2, k, 1).movedim((-2, -1), (-4, -3))


def blocks(v: Float[Tensor, "*b C H W"], p: int) -> Float[Tensor, "*b C h p w p"]:
    """A view of the pixels of every block."""
    return v.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))


def shares_of_largest(v: Float[Tensor, "*b C H W"], p: int) -> Float[Tensor, "*b C h p w p"]:
    """The shares of a pooling by the maximum at v. Pixels that are equally large have equal shares."""
    cut = blocks(v, p)
    largest = (cut == cut.amax((-3, -1), keepdim=True)).to(v)
    return largest / largest.sum((-3, -1), keepdim=True)


def pooled(v: Float[Tensor, "*b C H W"], p: int, shares: Tensor | None) -> Float[Tensor, "*b C h w"]:
    """P v; `shares` None is the average."""
    cut = blocks(v, p)
    return cut.mean((-3, -1)) if shares is None else (cut * shares).sum((-3, -1))


def pooled_back(a: Float[Tensor, "*b C h w"], p: int, shares: Tensor | None) -> Float[Tensor, "*b C H W"]:
    """P^T a."""
    spread = a[..., :, None, :, None]
    spread = spread.expand(*a.shape[:-1], p, a.shape[-1], p) / p**2 if shares is None else spread * shares
    return spread.flatten(-2).flatten(-3, -2)


def flat(layers: Sequence[Tensor]) -> Float[Tensor, "*r b n"]:
    """Convolutional layers and a last dense one as one row."""
    import torch

    return torch.cat([*(v.flatten(-3) for v in layers[:-1]), layers[-1]], -1)
