"""How far a Jacobian is from symmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Float64
    from torch import Tensor

    from gradbench.dynamics.linear import Linear


def squares(linear: Linear, v: Float[Tensor, "*r b n"]) -> tuple[Float64[Tensor, "*r"], Float64[Tensor, "*r"]]:
    """|A v|^2 and |J v|^2, A = (J - J^T) / 2, over the batch."""
    Jv, Jtv = linear.jvp(v), linear.vjp(v)
    return (0.5 * (Jv - Jtv)).double().square().sum((-2, -1)), Jv.double().square().sum((-2, -1))


def antisymmetry(
    measure: Callable[[Tensor], tuple[Tensor, ...]], probes: Float[Tensor, "p *r b n"]
) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
    """|A|_F / |J|_F with its standard error, by Hutchinson: |M|_F^2 = E |M v|^2 over v ~ N(0, I).

    `measure` gives the `squares` of a probe v. 0 for a gradient force, 1 for a skew force. The standard error is the
    jackknife's over the probes. A single probe varies by +-20 %.
    """
    measured = [tuple(value.clone() for value in measure(v)) for v in probes]  # the next call may overwrite these
    skew, full = map(torch.stack, zip(*measured, strict=True))
    p = len(probes)
    ratio = (skew.sum(0) / full.sum(0)).sqrt()
    leave_one_out = ((skew.sum(0) - skew) / (full.sum(0) - full)).sqrt()
    error = ((p - 1) / p * (leave_one_out - leave_one_out.mean(0)).square().sum(0)).sqrt()
    return ratio, torch.where(ratio == 0, torch.zeros_like(ratio), error)
