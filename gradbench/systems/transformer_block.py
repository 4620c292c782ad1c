"""A transformer block with its derivatives written out: self-attention and an MLP, norms behind or in front of them.

post   block = LN_2(h + mlp(h)),   h = LN_1(v + attn(v)),   v = z + u
pre    block = h + mlp(LN_2(h)),   h = u + attn(LN_1(z))
attn(v) = WO concat_h softmax(q k^T / sqrt(h)) v' with q = WQ v, k = WK v, v' = WV v;   mlp(h) = W2 gelu(W1 h + b1) + b2
A norm is layer_norm with a weight and a bias. Saved are what a weight reads, by the name of the weight, and what the
derivatives of norms, attention and gelu need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.systems.activations import gelu, gelu_slope
from gradbench.systems.attention import attend, attend_jvp, attend_saved, attend_vjp, heads, merge, outer
from gradbench.systems.base import Params, Saved
from gradbench.systems.tokens import layer_norm_jvp, layer_norm_saved

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

READING = ("WQ", "WK", "WV")


def block_saved(
    theta: Params, z: Float[Tensor, "*b N D"], u: Float[Tensor, "*b N D"], H: int, post: bool
) -> tuple[Float[Tensor, "*b N D"], Saved]:
    """The block of z, and what its derivatives need."""
    saved: Saved = {}
    v = z + u if post else _norm(theta, "ln1", z, saved)
    saved |= attend_saved(*(heads(v @ theta[w].mT, H) for w in READING))
    saved |= {"read": v, "WO": merge(attend(saved))}
    h = (v if post else u) + saved["WO"] @ theta["WO"].mT
    h = _norm(theta, "ln1", h, saved) if post else h
    saved["W1"] = h if post else _norm(theta, "ln2", h, saved)
    saved["inner"] = saved["W1"] @ theta["W1"].mT + theta["b1"]
    saved["W2"] = gelu(saved["inner"])
    h = h + saved["W2"] @ theta["W2"].mT + theta["b2"]
    return (_norm(theta, "ln2", h, saved) if post else h), saved


def block_jvp(theta: Params, saved: Saved, dz: Float[Tensor, "*b N D"], H: int, post: bool) -> Float[Tensor, "*b N D"]:
    """Change of the block along dz."""
    dv = dz if post else _norm_jvp(theta, "ln1", saved, dz)
    moved = merge(attend_jvp(saved, *(heads(dv @ theta[w].mT, H) for w in READING))) @ theta["WO"].mT
    dh = _norm_jvp(theta, "ln1", saved, dv + moved) if post else moved
    inner = (dh if post else _norm_jvp(theta, "ln2", saved, dh)) @ theta["W1"].mT
    dh = dh + (gelu_slope(saved["inner"]) * inner) @ theta["W2"].mT
    return _norm_jvp(theta, "ln2", saved, dh) if post else dh


def block_vjp(
    theta: Params, saved: Saved, a: Float[Tensor, "*b N D"], H: int, post: bool
) -> tuple[Float[Tensor, "*b N D"], Saved]:
    """J^T a, and the credits of what every weight writes, of both norms and of u, by name."""
    credit: Saved = {}
    if post:
        credit["ln2"] = a
        a = _norm_vjp(theta, "ln2", saved, a)
    credit["W2"] = a
    credit["W1"] = gelu_slope(saved["inner"]) * (a @ theta["W2"])
    back = credit["W1"] @ theta["W1"]
    if post:
        credit["ln1"] = a + back
        a = _norm_vjp(theta, "ln1", saved, credit["ln1"])
    else:
        credit["ln2"] = back
        credit["u"] = a = a + _norm_vjp(theta, "ln2", saved, back)
    credit["WO"] = a
    parts = attend_vjp(saved, heads(a @ theta["WO"], H))
    credit |= {w: merge(part) for w, part in zip(READING, parts, strict=True)}
    back = credit["WQ"] @ theta["WQ"] + credit["WK"] @ theta["WK"] + credit["WV"] @ theta["WV"]
    if post:
        credit["u"] = a + back
        return credit["u"], credit
    credit["ln1"] = back
    return _norm_vjp(theta, "ln1", saved, back), credit


def block_pull(saved: Saved, credit: Saved) -> Params:
    """d<a, block>/dtheta of every row, from the credits of a."""
    grads = {w: outer(credit[w], saved["read"]) for w in READING}
    grads |= {w: outer(credit[w], saved[w]) for w in ("WO", "W1", "W2")}
    grads |= {f"b{i}": credit[f"W{i}"].sum((-3, -2)) for i in (1, 2)}
    grads |= {f"{ln}.weight": (credit[ln] * saved[ln]).sum((-3, -2)) for ln in ("ln1", "ln2")}
    return grads | {f"{ln}.bias": credit[ln].sum((-3, -2)) for ln in ("ln1", "ln2")}


def _norm(theta: Params, ln: str, h: Float[Tensor, "*b N D"], saved: Saved) -> Float[Tensor, "*b N D"]:
    """The norm of h; what its derivatives need goes to `saved`."""
    saved[ln], saved[f"{ln} deviation"] = layer_norm_saved(h)
    return saved[ln] * theta[f"{ln}.weight"] + theta[f"{ln}.bias"]


def _norm_jvp(theta: Params, ln: str, saved: Saved, v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    return theta[f"{ln}.weight"] * layer_norm_jvp(saved[ln], saved[f"{ln} deviation"], v)


def _norm_vjp(theta: Params, ln: str, saved: Saved, a: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    return layer_norm_jvp(saved[ln], saved[f"{ln} deviation"], theta[f"{ln}.weight"] * a)
