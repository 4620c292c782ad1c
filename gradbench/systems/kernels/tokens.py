"""Steps of the transformers by the kernels of `tokens_*.cu`, which keep intermediate results on chip.

A free step is one launch, and so is a nudged step; the correction of AEP, 2 A (s - s*), is a launch before it, here
called *bent*. A product J_G v with the Jacobian of a step is one launch, and so is a step of a reverse sweep. This one
writes out what the gradient of the weights reads, so that two products of a library for every T1 add up the pulls:

    reading += z^T credits,   writing += p^T features        (z and p: the tokens of the state and of p)

Nothing is added up with atomic operations, so that two runs give equal bits.

Letters: s (row, cell, example, number), with rows of T1 (i) and of nudges (m), cells c, examples b; q, k, v and the
weights P of attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from gradbench.systems.kernels.programs import Launch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs, Program

TOKENS = 16  # of an example


class Kind(NamedTuple):
    """What differs between systems: the program, and numbers that its kernels take."""

    program: Program
    well: float  # w, the weight of |z|^2 in the energy
    scale: float  # of q k^T


def step(
    read: KernelInputs,
    kind: Kind,
    s: Float[Tensor, "*r c b n"],
    out: Float[Tensor, "*r c b n"],
    eps: Float[Tensor, "c"],
    nudge: Float[Tensor, "m c"] | None,
    bent: Float[Tensor, "i m c b d"] | None,
) -> Launch:
    """Pi(s + eps (F(s) - nudge dC/ds - bent)) of a stack, into `out`. With a nudge the rows of s are (T1, nudge).

    `out` may be s. The launch may take another s and another `out`.
    """
    packed, theta, x, context, knobs = read
    cells, b, length = s.shape[-3:]
    rows = s.numel() // (b * length)
    return Launch(
        kind.program, "step", rows * b,
        s, out, packed["ahead_in"], packed["ahead_out"], context["input"].contiguous(), theta["bdec"].contiguous(),
        x["mask"].contiguous(), x["x"].contiguous(), None if nudge is None else nudge.contiguous(), bent,
        knobs.sigma.contiguous(), knobs.damp.contiguous(), eps.contiguous(),
        rows, cells, 1 if nudge is None else len(nudge), b, kind.well, kind.scale,
    )  # fmt: skip


def energy(read: KernelInputs, kind: Kind, s: Float[Tensor, "*r c b n"]) -> Float[Tensor, "*r c b"]:
    """E of every example, of a system whose attention is a gradient."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = s.shape[-3:]
    rows = s.numel() // (b * length)
    s, out = s.contiguous(), s.new_empty(s.shape[:-1])
    Launch(
        kind.program, "energy", rows * b,
        s, out, packed["ahead_in"], packed["ahead_out"], read.context["input"].contiguous(),
        read.theta["bdec"].contiguous(), knobs.sigma.contiguous(), knobs.damp.contiguous(),
        rows, cells, b, kind.well, kind.scale,
    )()  # fmt: skip
    return out


def bent(
    read: KernelInputs,
    kind: Kind,
    s: Float[Tensor, "i m c b n"],
    start: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c 4 b H N h"],
) -> Float[Tensor, "i m c b d"]:
    """2 A (z - z*) of ordinary attention at the tokens z* of `start`, from q, k, v and P there."""
    packed, (i, m, cells, b, _) = read.packed, s.shape
    out = s.new_empty((i, m, cells, b, TOKENS * read.theta["Wmem"].shape[-2]))
    Launch(
        kind.program, "bend", i * m * cells * b,
        s.contiguous(), start.contiguous(), attention, packed["skew_in"], packed["skew_out"], out,
        read.knobs.sigma.contiguous(), i * m * cells, cells, m, b, kind.scale,
    )()  # fmt: skip
    return out


def product(
    read: KernelInputs,
    kind: Kind,
    v: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c k b H N h"],
    memory: Float[Tensor, "i c b N M"],
    u: Float[Tensor, "i c b N D"],
) -> Float[Tensor, "i c b n"]:
    """Pi'(u) (v + eps J v), from q, k, v (no v where the attention is a gradient), P and memories at a state."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = v.shape[-3:]
    rows = v.numel() // (b * length)
    v, out = v.contiguous(), torch.empty_like(v, memory_format=torch.contiguous_format)
    Launch(
        kind.program, "jacobian", rows * b,
        v, out, attention, memory, u, packed["ahead_in"], packed["ahead_out"],
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(),
        rows, cells, b, kind.well, kind.scale,
    )()  # fmt: skip
    return out


def back(
    read: KernelInputs,
    kind: Kind,
    s: Float[Tensor, "c b n"],
    a: Float[Tensor, "i c b n"],
    summed: Float[Tensor, "i c b n"],
    reading: Float[Tensor, "i c D K"],
    writing: Float[Tensor, "i c D L"],
) -> None:
    """Take a through the step at s, and add to the sum of p and to the two sums of pulls: all in place.

    All of these are contiguous.
    """
    packed, knobs = read.packed, read.knobs
    rows, cells, b, _ = a.shape
    tokens, features = (a.new_empty((cells, b * TOKENS, n)) for n in writing.shape[-2:])
    moved, credits = (a.new_empty((rows, cells, b * TOKENS, n)) for n in reading.shape[-2:])
    Launch(
        kind.program, "back", rows * cells * b,
        s.contiguous(), a, summed, tokens, moved, credits, features, packed["ahead_in"], packed["ahead_out"],
        packed.get("skew_in"), packed.get("skew_out"), read.context["input"].contiguous(),
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(),
        rows * cells, cells, b, kind.well, kind.scale,
    )()  # fmt: skip
    add_pulls(reading, writing, tokens, moved, credits, features)


def add_pulls(
    reading: Float[Tensor, "i c D K"],
    writing: Float[Tensor, "i c D L"],
    tokens: Float[Tensor, "c bN D"],
    moved: Float[Tensor, "i c bN D"],
    credits: Float[Tensor, "i c bN K"],
    features: Float[Tensor, "c bN L"],
) -> None:
    """reading += z^T credits and writing += p^T features for every row of T1: z are the tokens, and p is `moved`."""
    for read, written, p, credit in zip(reading, writing, moved, credits, strict=True):
        read.baddbmm_(tokens.mT, credit)
        written.baddbmm_(p.mT, features)
