"""The way back through a step of the transformers as Triton kernels: a reverse sweep with its pulls.

A credit goes through a step, a <- p + eps J^T p with p = Pi'(u)^T a, in two launches, or in three with a projection:

1. where there is a projection, p at u = s + eps F(s);
2. the credits of the features of the heads;
3. the credits of the other features, and J^T p from the credits of all.

They write out what the gradient of the weights reads, so that two products of a library for every T1 add up the pulls:

    reading += z^T credits,   writing += p^T features        (z and p: the tokens of the state and of p)

One launch for all of this needs more registers than there are. It took 17 us a cell-step on an H100.

Letters: s (cell, example, number) is a state; a and the sum of p are (row of T1, cell, example, number). The features
of a token are the pixels of its patch, its memories and those of the heads; a row of them has a whole multiple of 64
numbers. The other letters are as in `parts`. The last kernel writes a and the sum of p in place. The threads of a
program write numbers that others of them read, so there is a barrier between reading and writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from gradbench.systems.kernels.parts import (
    EXAMPLES,
    FEW,
    MANY,
    TOKENS,
    WARPS,
    WIDTH,
    Kind,
    add_pulls,
    compiled_for,
    dot,
    feature_places,
    from_pixels,
    heads,
    launch,
    merge,
    pixel_places,
    project_product,
    seen,
    softmax,
    to_features,
    to_tokens,
    token_places,
    turned,
    with_others,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs


@triton.jit(do_not_specialize=MANY)
def _project_back_kernel(
    s, a, moved, ahead_in, ahead_out, clamped, sigma, damp, eps, cells, b, well, scale,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """moved = the tokens of Pi'(u)^T a at u = s + eps F(s)."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    LENGTH: tl.constexpr = 16 * 64 + CH * IMG * IMG
    ahead_in += c * 64 * (64 + M + (128 if ENERGY else 192))
    ahead_out += c * OUT * 64
    s += (c * b + part * 4) * LENGTH
    i = tl.arange(0, 64)
    left = b - part * 4  # examples from the first one of this program on
    there = (i // 16 < left)[:, None]
    z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
    u = from_pixels(s, i, left, ahead_out, LENGTH, OUT, AREA, IMG, PATCH)
    u = with_others(u, z, ahead_in, ahead_out, scale, tl.load(sigma + c), OUT, M, ENERGY)
    u += tl.load(clamped + (c * b + part * 4) * 16 * 64 + token_places(i, 16 * 64), mask=there, other=0.0)
    u = z + tl.load(eps + c) * (u - (2 * well + tl.load(damp + c)) * z)
    p = tl.load(a + (row * b + part * 4) * LENGTH + token_places(i, LENGTH), mask=there, other=0.0)
    moved += (row * b + part * 4) * 16 * 64
    tl.store(moved + token_places(i, 16 * 64), project_product(u, p), mask=there)


@triton.jit(do_not_specialize=MANY)
def _heads_back_kernel(
    s, a, tokens, moved, credits, features, ahead_in, skew_in, sigma, cells, b, length, zero, scale,
    M: tl.constexpr, ENERGY: tl.constexpr, PROJECTS: tl.constexpr,
):  # fmt: skip
    """Credits and features of the heads; and the tokens of s and of p without what else is in a state."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    IN: tl.constexpr = 64 + M + (128 if ENERGY else 192)
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    ahead_in += c * 64 * IN
    tokens += (c * b + part * 4) * 16 * 64
    moved += (row * b + part * 4) * 16 * 64
    credits += (row * b + part * 4) * 16 * IN
    features += (c * b + part * 4) * 16 * OUT
    i = tl.arange(0, 64)
    left = b - part * 4
    there = (i // 16 < left)[:, None]
    once = (i // 16 < tl.where(row < cells, left, 0))[:, None]  # all rows of T1 have the same features
    z = tl.load(s + (c * b + part * 4) * length + token_places(i, length), mask=there, other=0.0)
    tl.store(tokens + token_places(i, 16 * 64), z, mask=once)
    if PROJECTS:
        p = tl.load(moved + token_places(i, 16 * 64), mask=there, other=0.0)
    else:
        p = tl.load(a + (row * b + part * 4) * length + token_places(i, length), mask=there, other=0.0)
        tl.store(moved + token_places(i, 16 * 64), p, mask=there)
    strength = tl.load(sigma + c)
    q = heads(dot(z, to_features(ahead_in, 64 + M)))
    k = heads(dot(z, to_features(ahead_in, 128 + M)))
    P = softmax(scale * dot(q, turned(k)))
    if ENERGY:
        tl.store(features + feature_places(64 + M, i, OUT), strength * merge(dot(P, k)), mask=once)
        tl.store(features + feature_places(128 + M, i, OUT), strength * merge(dot(turned(P), q)), mask=once)
        dP = dot(heads(dot(p, to_features(ahead_in, 64 + M))), turned(k))
        dP += dot(q, turned(heads(dot(p, to_features(ahead_in, 128 + M)))))
        dP = P * (scale * dP)
        dP -= P * tl.sum(dP, 2)[:, :, None]
        of_q, of_k = dot(dP, k), dot(turned(dP), q)
        of_q += dot(P, heads(dot(p, to_features(ahead_in + zero, 128 + M))))
        tl.store(credits + feature_places(64 + M, i, IN), strength * merge(of_q), mask=there)
        of_k += dot(turned(P), heads(dot(p, to_features(ahead_in + zero, 64 + M))))
        tl.store(credits + feature_places(128 + M, i, IN), strength * merge(of_k), mask=there)
    else:
        v = heads(dot(z, to_features(ahead_in, 192 + M)))
        tl.store(features + feature_places(64 + M, i, OUT), strength * merge(dot(P, v)), mask=once)
        o = heads(dot(p, to_features(skew_in + c * 64 * 256, 192)))
        tl.store(credits + feature_places(192 + M, i, IN), strength * merge(dot(turned(P), o)), mask=there)
        dP = P * dot(o, turned(v))
        dP = scale * (dP - P * tl.sum(dP, 2)[:, :, None])
        tl.store(credits + feature_places(64 + M, i, IN), strength * merge(dot(dP, k)), mask=there)
        tl.store(credits + feature_places(128 + M, i, IN), strength * merge(dot(turned(dP), q)), mask=there)


@triton.jit(do_not_specialize=MANY)
def _others_back_kernel(
    s, a, summed, moved, credits, features, ahead_in, ahead_out, skew_out, damp, eps, cells, b, zero, well,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """Credits and features of memories and pixels, a <- p + eps J^T p, and summed += p."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    IN: tl.constexpr = 64 + M + (128 if ENERGY else 192)
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    LENGTH: tl.constexpr = 16 * 64 + CH * IMG * IMG
    ahead_in += c * 64 * IN
    ahead_out += c * OUT * 64
    s += (c * b + part * 4) * LENGTH
    a += (row * b + part * 4) * LENGTH
    summed += (row * b + part * 4) * LENGTH
    credits += (row * b + part * 4) * 16 * IN
    features += (c * b + part * 4) * 16 * OUT
    i, j = tl.arange(0, 64), tl.arange(0, 64)
    left = b - part * 4
    there = (i // 16 < left)[:, None]
    once = (i // 16 < tl.where(row < cells, left, 0))[:, None]
    shown = seen(i, j, left, AREA)
    y = tl.load(s + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0)
    tl.store(features + feature_places(0, i, OUT), y, mask=once)
    y = tl.load(a + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0)
    tl.store(credits + feature_places(0, i, IN), y, mask=there)
    pixels = tl.load(summed + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0) + y
    tl.debug_barrier()
    tl.store(summed + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), pixels, mask=shown)
    back = dot(y, to_tokens(ahead_out, 0, OUT))
    length = tl.load(eps + c)
    moved += (row * b + part * 4) * 16 * 64
    p = tl.load(moved + token_places(i, 16 * 64), mask=there, other=0.0)
    y += length * (dot(p, to_features(ahead_in, 0)) - y)
    tl.store(a + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), y, mask=shown)
    z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
    for chunk in tl.static_range(0, M, 64):
        memory = tl.maximum(dot(z, to_features(ahead_in, 64 + chunk)), 0.0)
        tl.store(features + feature_places(64 + chunk, i, OUT), memory, mask=once)
        p = tl.load(moved + (chunk + 1) * zero + token_places(i, 16 * 64), mask=there, other=0.0)
        credit = tl.where(memory > 0, dot(p, to_features(ahead_in, 64 + chunk)), 0.0)
        tl.store(credits + feature_places(64 + chunk, i, IN), credit, mask=there)
        back += dot(credit, to_tokens(ahead_out, 64 + chunk, OUT))
    for kind in tl.static_range(64 + M, IN, 64):
        credit = tl.load(credits + feature_places(kind, i, IN), mask=there, other=0.0)
        if ENERGY:
            back += dot(credit, to_tokens(ahead_out, kind, OUT))
        else:
            back -= dot(credit, to_tokens(skew_out + c * 256 * 64, kind - M, 256))
    i += zero
    there = (i // 16 < left)[:, None]
    p = tl.load(moved + token_places(i, 16 * 64), mask=there, other=0.0)
    total = tl.load(summed + token_places(i, LENGTH), mask=there, other=0.0) + p
    p += length * (back - (2 * well + tl.load(damp + c)) * p)
    tl.debug_barrier()
    tl.store(summed + token_places(i, LENGTH), total, mask=there)
    tl.store(a + token_places(i, LENGTH), p, mask=there)


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
    packed, context, knobs = read.packed, read.context, read.knobs
    rows, cells, b, length = a.shape
    sizes, common = kind.sizes(read), compiled_for(read)
    energy, s = common["ENERGY"], s.contiguous()
    skew_in, skew_out = (packed["ahead_in"],) * 2 if energy else (packed["skew_in"], packed["skew_out"])
    tokens, features = (a.new_empty((cells, b * TOKENS, n)) for n in (WIDTH, writing.shape[-1]))
    moved, credits = (a.new_empty((rows, cells, b * TOKENS, n)) for n in (WIDTH, reading.shape[-1]))
    sigma, damp, eps = (v.contiguous() for v in (knobs.sigma, knobs.damp, knobs.eps))
    programs = rows * cells, triton.cdiv(b, EXAMPLES)
    if kind.projects:
        launch(
            _project_back_kernel, programs,
            s, a, moved, packed["ahead_in"], packed["ahead_out"], context["input"].contiguous(), sigma, damp, eps,
            cells, b, kind.well, kind.scale, num_warps=FEW, **sizes, **common,
        )  # fmt: skip
    launch(
        _heads_back_kernel, programs,
        s, a, tokens, moved, credits, features, packed["ahead_in"], skew_in, sigma,
        cells, b, length, 0, kind.scale, PROJECTS=kind.projects,
        num_warps=WARPS if energy else FEW, **common,
    )  # fmt: skip
    launch(
        _others_back_kernel, programs,
        s, a, summed, moved, credits, features, packed["ahead_in"], packed["ahead_out"], skew_out, damp, eps,
        cells, b, 0, kind.well, num_warps=FEW, **sizes, **common,
    )  # fmt: skip
    add_pulls(reading, writing, tokens, moved, credits, features)
