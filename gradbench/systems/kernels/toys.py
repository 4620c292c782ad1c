"""Steps of the toys by the kernels of `toys_*.cu`, and the way back through them.

What the kernels call features are queries, keys and values of 4 heads of 8 numbers, or the 32 numbers t = tanh(z S)
of the conservative toy. Pulls are added up as those of the transformers, see `tokens.py`.

Letters: s (row, cell, example, number), with rows of T1 (i) and of nudges (m), cells c, examples b; q, k, v and the
weights P of attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradbench.systems.kernels.programs import Launch
from gradbench.systems.kernels.tokens import add_pulls

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs, Program

TOKENS, WIDTH = 8, 32  # of an example, of a token
SCALE = 8**-0.5  # of q k^T


def step(
    read: KernelInputs,
    program: Program,
    s: Float[Tensor, "*r c b n"],
    out: Float[Tensor, "*r c b n"],
    eps: Float[Tensor, "c"],
    nudge: Float[Tensor, "m c"] | None,
    bent: Float[Tensor, "i m c b n"] | None,
) -> Launch:
    """s + eps (F(s) - nudge dC/ds - bent), into `out`; with a nudge the rows of s are (T1, nudge).

    `out` may be s. The launch may take another s and another `out`.
    """
    packed, x, knobs = read.packed, read.x, read.knobs
    cells, b, length = s.shape[-3:]
    rows = s.numel() // (b * length)
    clamped = read.context["input"].contiguous()
    driven = clamped.ndim > 2
    return Launch(
        program, "step", rows * _pairs(b),
        s, out, packed["ahead_in"], packed["ahead_out"], clamped, x["R"].contiguous(), x["target"].contiguous(),
        None if nudge is None else nudge.contiguous(), bent,
        knobs.sigma.contiguous(), knobs.damp.contiguous(), eps.contiguous(),
        rows, cells, 1 if nudge is None else len(nudge), b,
        WIDTH if driven else 0, b * length if driven else WIDTH, SCALE,
    )  # fmt: skip


def bent(
    read: KernelInputs,
    program: Program,
    s: Float[Tensor, "i m c b n"],
    start: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c 4 b H N h"],
) -> Float[Tensor, "i m c b n"]:
    """2 A (s - s*) at the state s* of `start`, from q, k, v and P there."""
    packed, s, (i, m, cells, b, _) = read.packed, s.contiguous(), s.shape
    out = torch.empty_like(s)
    Launch(
        program, "bend", i * m * cells * _pairs(b),
        s, start.contiguous(), attention, packed["skew_in"], packed["skew_out"], out,
        read.knobs.sigma.contiguous(), i * m * cells, cells, m, b, SCALE,
    )()  # fmt: skip
    return out


def product(
    read: KernelInputs, program: Program, v: Float[Tensor, "i c b n"], saved: Tensor
) -> Float[Tensor, "i c b n"]:
    """v + eps J v, from q, k, v and P at a state, (i, c, 4, b, H, N, h), or from t there, (i, c, b, N, D)."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = v.shape[-3:]
    rows = v.numel() // (b * length)
    v = v.contiguous()
    out = torch.empty_like(v)
    Launch(
        program, "jacobian", rows * _pairs(b),
        v, out, saved, packed["ahead_in"], packed["ahead_out"],
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(), rows, cells, b, SCALE,
    )()  # fmt: skip
    return out


def back(
    read: KernelInputs,
    program: Program,
    s: Float[Tensor, "c b n"],
    a: Float[Tensor, "i c b n"],
    summed: Float[Tensor, "i c b n"],
    reading: Float[Tensor, "i c D K"],
    writing: Float[Tensor, "i c D L"],
) -> None:
    """Take a through the step at s, and add to the sum of p and to the two sums of pulls: all in place.

    All of these are contiguous.
    """
    packed, knobs, (rows, cells, b, _) = read.packed, read.knobs, a.shape
    s = s.contiguous()
    features = a.new_empty((cells, b * TOKENS, writing.shape[-1]))
    moved, credits = (a.new_empty((rows, cells, b * TOKENS, n)) for n in (WIDTH, reading.shape[-1]))
    Launch(
        program, "back", rows * cells * _pairs(b),
        s, a, summed, moved, credits, features, packed["ahead_in"], packed["ahead_out"],
        packed.get("skew_in"), packed.get("skew_out"),
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(),
        rows * cells, cells, b, SCALE,
    )()  # fmt: skip
    add_pulls(reading, writing, s.view(cells, b * TOKENS, WIDTH), moved, credits, features)


def _pairs(b: int) -> int:
    """A warp computes two examples."""
    return -(-b // 2)
