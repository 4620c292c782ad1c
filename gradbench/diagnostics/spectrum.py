"""Does a perturbation of the free state grow?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def growth(product: Callable[[Tensor], Tensor], v: Float[Tensor, "*r b n"], steps: int) -> Float[Tensor, "*r"]:
    """Geometric-mean growth of |J_G^k v| over the last half of `steps` products v -> J_G v, of the worst sample.

    Tends to the spectral radius rho of J_G, also where the leading eigenvalues are complex or J_G is far
    from normal; the Rayleigh quotient of the same iteration does not (it sees the symmetric part only).
    Samples are independent, so each has its own growth.
    """
    tiny = torch.finfo(v.dtype).tiny
    total = torch.zeros_like(v[..., 0], dtype=torch.float64)
    for k in range(steps):
        v = product(v)
        norm = v.norm(dim=-1, keepdim=True).clamp_min(tiny)
        v = v / norm
        if k >= steps // 2:
            total += norm[..., 0].double().log()
    return (total / (steps - steps // 2)).exp().amax(-1)
