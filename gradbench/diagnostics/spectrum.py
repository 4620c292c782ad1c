"""Does a perturbation of the free state grow?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Float64
    from torch import Tensor


def unit(v: Float[Tensor, "*r b n"]) -> tuple[Float[Tensor, "*r b n"], Float64[Tensor, "*r b"]]:
    """v / |v| and log |v| of each sample."""
    norm = v.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return v / norm, norm[..., 0].double().log()


def growth(
    product: Callable[[Tensor], tuple[Tensor, Tensor]], v: Float[Tensor, "*r b n"], steps: int
) -> Float[Tensor, "*r"]:
    """Geometric-mean growth of |J_G^k v| over the last half of `steps` products, of the worst sample.

    `product` gives the `unit` of J_G v. The growth tends to the spectral radius rho of J_G, also where the leading
    eigenvalues are complex or J_G is far from normal; the Rayleigh quotient of the same iteration does not (it sees the
    symmetric part only). Samples are independent, so each has its own growth.
    """
    total = torch.zeros_like(v[..., 0], dtype=torch.float64)
    for k in range(steps):
        v, grown = product(v)
        if k >= steps // 2:
            total += grown
    return (total / (steps - steps // 2)).exp().amax(-1)
