"""How far a Jacobian is from symmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.linear import Linear


def antisymmetry(linear: Linear, probes: Float[Tensor, "p *r b n"]) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
    """|A|_F / |J|_F with its standard error, by Hutchinson: |M|_F^2 = E |M v|^2 over v ~ N(0, I).

    0 for a gradient force, 1 for a skew force. The standard error is the jackknife's over the probes. A single
    probe varies by +-20 %.
    """
    products = [(linear.jvp(v), linear.vjp(v)) for v in probes]
    skew = torch.stack([(0.5 * (Jv - Jtv)).double().square().sum((-2, -1)) for Jv, Jtv in products])
    full = torch.stack([Jv.double().square().sum((-2, -1)) for Jv, _ in products])
    p = len(probes)
    ratio = (skew.sum(0) / full.sum(0)).sqrt()
    leave_one_out = ((skew.sum(0) - skew) / (full.sum(0) - full)).sqrt()
    error = ((p - 1) / p * (leave_one_out - leave_one_out.mean(0)).square().sum(0)).sqrt()
    return ratio, torch.where(ratio == 0, torch.zeros_like(ratio), error)
