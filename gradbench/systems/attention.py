"""Softmax attention over tokens, with its derivatives written out: an ordinary one and one that has an energy.

Letters: q, k, v (*b, H, N, h); P = softmax(scale q k^T) (*b, H, N, N). Rows of P sum to 1, so a change dS of
the scores moves it by P o (dS - sum(P o dS)), which is symmetric in dS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import Saved


def heads(x: Float[Tensor, "*b N Hh"], H: int) -> Float[Tensor, "*b H N h"]:
    """Split the width of every token into H heads, copied once for the products that each read it."""
    return x.unflatten(-1, (H, -1)).transpose(-3, -2).contiguous()


def merge(x: Float[Tensor, "*b H N h"]) -> Float[Tensor, "*b N Hh"]:
    """Undo `heads`."""
    return x.transpose(-3, -2).flatten(-2)


def side_by_side(
    flat: Sequence[Float[Tensor, "*b N _"]], by_head: Sequence[Float[Tensor, "*b H N h"]], spare: int = 0
) -> Float[Tensor, "*b N K"]:
    """Features of every token as one row, those of its heads behind the others, then `spare` zeros.

    What is copied here is copied once, where undoing `heads` and then a cat would copy it twice.
    """
    import torch

    merged = [x.transpose(-3, -2) for x in by_head]
    features = [(x, x.shape[-1:]) for x in flat] + [(x, x.shape[-2:]) for x in merged]
    sizes = [math.prod(shape) for _, shape in features]
    tokens = torch.broadcast_shapes(*(x.shape[: x.ndim - len(shape)] for x, shape in features))
    row, start = features[0][0].new_empty((*tokens, sum(sizes) + spare)), 0
    for (x, shape), size in zip(features, sizes, strict=True):
        row[..., start : start + size].unflatten(-1, shape).copy_(x)
        start += size
    row[..., start:].zero_()
    return row


def small(a: Float[Tensor, "*b N K"], b: Float[Tensor, "*b K M"]) -> Float[Tensor, "*b N M"]:
    """The product within one head."""
    return a @ b


def weights(q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], scale: float) -> Float[Tensor, "*b H N N"]:
    """P = softmax(scale q k^T)."""
    return (scale * small(q, k.mT)).softmax(-1)


def reweighted(P: Float[Tensor, "*b H N N"], dS: Float[Tensor, "*b H N N"]) -> Float[Tensor, "*b H N N"]:
    """Change of P with its scores, which is its own transpose."""
    moved = P * dS
    return moved - P * moved.sum(-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Saved:
    """What o = P v needs of a state, scale = 1 / sqrt(h)."""
    return {"q": q, "k": k, "v": v, "P": weights(q, k, 1 / math.sqrt(q.shape[-1]))}


def attend(at: Saved) -> Float[Tensor, "*b H N h"]:
    """o = P v, written out: fused attention has no second derivative."""
    return small(at["P"], at["v"])


def attend_jvp(at: Saved, dq: Tensor, dk: Tensor, dv: Tensor) -> Float[Tensor, "*b H N h"]:
    """Change of o with q, k and v."""
    dP = reweighted(at["P"], (small(dq, at["k"].mT) + small(at["q"], dk.mT)) / math.sqrt(dq.shape[-1]))
    return small(dP, at["v"]) + small(at["P"], dv)


def attend_vjp(at: Saved, a: Float[Tensor, "*b H N h"]) -> tuple[Tensor, Tensor, Tensor]:
    """d<a, o> with q, k and v."""
    dS = reweighted(at["P"], small(a, at["v"].mT)) / math.sqrt(a.shape[-1])
    return small(dS, at["k"]), small(dS.mT, at["q"]), small(at["P"].mT, a)


def energy_attention(q: Tensor, k: Tensor, gamma: float) -> Saved:
    """What the gradient of L = 1/gamma sum logsumexp_n(gamma q_m . k_n) needs of a state, scale = gamma.

    dL/dq = P k and dL/dk = P^T q: every token is pulled as a query, to the keys that it attends to, and as a
    key, by its queries.
    """
    return {"q": q, "k": k, "P": weights(q, k, gamma)}


def energy_slope(at: Saved) -> tuple[Tensor, Tensor]:
    """dL/dq, dL/dk."""
    return small(at["P"], at["k"]), small(at["P"].mT, at["q"])


def energy_slope_jvp(at: Saved, gamma: float, dq: Tensor, dk: Tensor) -> tuple[Tensor, Tensor]:
    """Change of both slopes with q and k: a Hessian, so its own transpose."""
    q, k, P = at["q"], at["k"], at["P"]
    dP = reweighted(P, gamma * (small(dq, k.mT) + small(q, dk.mT)))
    return small(dP, k) + small(P, dk), small(dP.mT, q) + small(P.mT, dq)


def outer(a: Float[Tensor, "*r b N D"], z: Float[Tensor, "*r b N K"]) -> Float[Tensor, "*r D K"]:
    """Sum over examples and tokens of a z^T: what a product z W with a weight sends back to it, transposed."""
    return a.flatten(-3, -2).mT @ z.flatten(-3, -2)
