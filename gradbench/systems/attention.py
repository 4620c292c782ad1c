"""Softmax attention over tokens with its derivatives written out: an ordinary one, and one that is a gradient.

Letters: q, k, v (*b, H, N, h); P = softmax(scale q k^T) (*b, H, N, N). Rows of P sum to 1, so a change dS of
the scores changes P by P o (dS - sum(P o dS)). This is symmetric in dS.
A function `x_saved` computes from a state what `x` and its derivatives need.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradbench.systems.products import matmul

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import Saved


def heads(x: Float[Tensor, "*b N Hh"], H: int) -> Float[Tensor, "*b H N h"]:
    """Split the width of every token into H heads. The copy is contiguous for the products that read it."""
    return x.unflatten(-1, (H, -1)).transpose(-3, -2).contiguous()


def merge(x: Float[Tensor, "*b H N h"]) -> Float[Tensor, "*b N Hh"]:
    """Undo `heads`."""
    return x.transpose(-3, -2).flatten(-2)


def weights(q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], scale: float) -> Float[Tensor, "*b H N N"]:
    """P = softmax(scale q k^T); of complex numbers exp(x - c) / sum, with a c of every row that stays constant."""
    scores = scale * (q @ k.mT)
    if not scores.is_complex():
        return scores.softmax(-1)
    raised = (scores - scores.real.amax(-1, keepdim=True).detach()).exp()
    return raised / raised.sum(-1, keepdim=True)


def weights_jvp(P: Float[Tensor, "*b H N N"], dS: Float[Tensor, "*b H N N"]) -> Float[Tensor, "*b H N N"]:
    """Change of P with its scores. The map is its own transpose."""
    moved = P * dS
    return moved - P * moved.sum(-1, keepdim=True)


def attend_saved(q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], v: Float[Tensor, "*b H N h"]) -> Saved:
    """P and its operands, for ordinary attention: scale = 1 / sqrt(h)."""
    return {"q": q, "k": k, "v": v, "P": weights(q, k, 1 / math.sqrt(q.shape[-1]))}


def attend(saved: Saved) -> Float[Tensor, "*b H N h"]:
    """o = P v, written out: fused attention has no second derivative."""
    return saved["P"] @ saved["v"]


def attend_jvp(saved: Saved, dq: Tensor, dk: Tensor, dv: Tensor) -> Float[Tensor, "*b H N h"]:
    """Change of o with q, k and v."""
    dP = weights_jvp(saved["P"], (dq @ saved["k"].mT + saved["q"] @ dk.mT) / math.sqrt(dq.shape[-1]))
    return dP @ saved["v"] + saved["P"] @ dv


def attend_vjp(saved: Saved, a: Float[Tensor, "*b H N h"]) -> tuple[Tensor, Tensor, Tensor]:
    """d<a, o> with q, k and v."""
    dS = weights_jvp(saved["P"], a @ saved["v"].mT) / math.sqrt(a.shape[-1])
    return dS @ saved["k"], dS.mT @ saved["q"], saved["P"].mT @ a


def energy(q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], gamma: float) -> Float[Tensor, "*b"]:
    """L = 1/gamma sum_{h,m} logsumexp_n(gamma q_m . k_n)."""
    return (gamma * (q @ k.mT)).logsumexp(-1).sum((-2, -1)) / gamma


def energy_slope_saved(q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], gamma: float) -> Saved:
    """P and its operands, for the gradient of L: scale = gamma."""
    return {"q": q, "k": k, "P": weights(q, k, gamma)}


def energy_slope(saved: Saved) -> tuple[Tensor, Tensor]:
    """dL/dq = P k and dL/dk = P^T q.

    A query moves to the keys that it attends to. A key moves to the queries that attend to it.
    """
    return saved["P"] @ saved["k"], saved["P"].mT @ saved["q"]


def energy_slope_jvp(saved: Saved, dq: Tensor, dk: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Change of both slopes with q and k. The map is a Hessian, so it is its own transpose."""
    q, k, P = saved["q"], saved["k"], saved["P"]
    dP = weights_jvp(P, gamma * (dq @ k.mT + q @ dk.mT))
    return dP @ k + P @ dk, dP.mT @ q + P.mT @ dq


def outer(a: Float[Tensor, "*r b N D"], z: Float[Tensor, "*r b N K"]) -> Float[Tensor, "*r D K"]:
    """Sum over examples and tokens of a z^T: the gradient of <a, W z> with the weight W."""
    return matmul(a.flatten(-3, -2).mT, z.flatten(-3, -2))
