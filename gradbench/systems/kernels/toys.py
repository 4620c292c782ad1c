"""Steps of the toys as Triton kernels, and the way back through them.

A program takes eight examples of 8 tokens: 64 tokens of 32 numbers. A product of tensor cores adds up at least 16
numbers, so two examples attend together, as 16 tokens whose weights from one example to the other are 0, and zeros
fill a head of 8 numbers up to 16. What is not finite in one of the two reaches the other, since 0 times infinity is
NaN: the gradients of the cell, which are sums over examples, are then no numbers in any case. What the kernels call
features are queries, keys and values of 4 heads of 16 numbers, or the 32 numbers t = tanh(z S) of the conservative
toy.

Letters: s (row, cell, example, number), with rows of T1 (i) and of nudges (m), cells c, examples b; q, k, v and the
weights P of attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from gradbench.systems.kernels.parts import FEW, MANY, OPTIONS, add_pulls, dot, half_dot, heads, launch, merge, turned

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs

TOKENS, WIDTH, EXAMPLES = 8, 32, 8  # of an example, of a token, of a program
SCALE = 8**-0.5  # of q k^T
UNCOMPILED = [*MANY, "wide", "of_cell"]


@triton.jit
def to_features(matrix, first, FEATURES: tl.constexpr):
    """The matrix from 32 numbers of a token to features; `matrix` has a row for every feature."""
    return tl.load(matrix + (first + tl.arange(0, FEATURES))[None, :] * 32 + tl.arange(0, 32)[:, None])


@triton.jit
def to_tokens(matrix, first, width: tl.constexpr, FEATURES: tl.constexpr):
    """The matrix from features to tokens; `matrix` has a row of `width` features for each number of a token."""
    return tl.load(matrix + first + tl.arange(0, 32)[None, :] * width + tl.arange(0, FEATURES)[:, None])


@triton.jit
def places_of(i):
    """Where the numbers of tokens lie."""
    return i[:, None] * 32 + tl.arange(0, 32)[None, :]


@triton.jit
def by_head(first, left):
    """One of q, k and v of eight examples, (two examples and head, token, number)."""
    group, token, number = tl.arange(0, 16)[:, None, None], tl.arange(0, 16)[None, :, None], tl.arange(0, 16)
    example = group // 4 * 2 + token // 8
    place = ((example * 4 + group % 4) * 8 + token % 8) * 8 + number[None, None, :]
    return tl.load(first + place, mask=(example < left) & (number < 8)[None, None, :], other=0.0)


@triton.jit
def weights_by_head(first, left):
    """P of eight examples, (two examples and head, token, token)."""
    group, token, other = tl.arange(0, 16)[:, None, None], tl.arange(0, 16)[None, :, None], tl.arange(0, 16)
    example = group // 4 * 2 + token // 8
    place = ((example * 4 + group % 4) * 8 + token % 8) * 8 + (other % 8)[None, None, :]
    return tl.load(first + place, mask=(example < left) & (token // 8 == (other // 8)[None, None, :]), other=0.0)


@triton.jit
def attention_weights(q, k, scale):
    """P of two examples at a time: 0 from one to the other."""
    token = tl.arange(0, 16)
    scores = scale * half_dot(q, turned(k))
    scores = tl.where((token[:, None] // 8 == token[None, :] // 8)[None, :, :], scores, float("-inf"))
    raised = tl.exp(scores - tl.max(scores, 2)[:, :, None])
    return raised / tl.sum(raised, 2)[:, :, None]


@triton.jit
def tanh(x):
    """By a continued fraction near 0, where 1 - exp(-2|x|) would lose digits."""
    square, raised = x * x, tl.exp(-2 * tl.abs(x))
    near = x * tl.div_rn(945 + square * (105 + square), 945 + square * (420 + 15 * square))
    far = tl.div_rn(1 - raised, 1 + raised)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far))


@triton.jit
def coupling(z, ahead_in, ahead_out, scale, ENERGY: tl.constexpr):
    """The force of the coupling on tokens, without its scale."""
    if ENERGY:
        back = dot(tanh(dot(z, to_features(ahead_in, 0, 32))), to_tokens(ahead_out, 0, 32, 32))
    else:
        q = heads(dot(z, to_features(ahead_in, 0, 64)))
        k = heads(dot(z, to_features(ahead_in, 64, 64)))
        P = attention_weights(q, k, scale)
        v = heads(dot(z, to_features(ahead_in, 128, 64)))
        back = half_dot(merge(half_dot(P, v)), to_tokens(ahead_out, 0, 64, 64))
    return back


@triton.jit
def cost_slope(s, readout, target, left):
    """(s R - target) R^T of eight examples, as tokens."""
    e, n, o = tl.arange(0, 8), tl.arange(0, 256), tl.arange(0, 16)
    there = (e < left)[:, None]
    flat = tl.load(s + e[:, None] * 256 + n[None, :], mask=there, other=0.0)
    off = dot(flat, tl.load(readout + n[:, None] * 16 + o[None, :]))
    off -= tl.load(target + e[:, None] * 16 + o[None, :], mask=there, other=0.0)
    return tl.reshape(dot(off, tl.load(readout + n[None, :] * 16 + o[:, None])), (64, 32))


@triton.jit(do_not_specialize=UNCOMPILED)
def _step_kernel(
    s, out, ahead_in, ahead_out, clamped, readout, target, nudge, bent, sigma, damp, eps,
    cells, columns, b, wide, of_cell, scale,
    ENERGY: tl.constexpr, NUDGED: tl.constexpr, BENDS: tl.constexpr,
):  # fmt: skip
    """out = s + eps (F(s) - nudge dC/ds - bent)."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    ahead_in += c * 32 * (32 if ENERGY else 192)
    ahead_out += c * 32 * (32 if ENERGY else 64)
    s += (row * b + part * 8) * 256
    i, left = tl.arange(0, 64), b - part * 8  # examples from the first one of this program on
    there = (i // 8 < left)[:, None]
    push = tl.zeros((64, 32), tl.float32)
    if NUDGED:
        slope = cost_slope(s, readout + c * 256 * 16, target + (c * b + part * 8) * 16, left)
        push -= tl.load(nudge + row % (columns * cells)) * slope / b
    z = tl.load(s + places_of(i), mask=there, other=0.0)
    push += tl.load(sigma + c) * coupling(z, ahead_in, ahead_out, scale, ENERGY)
    clamped += c * of_cell + part * 64 * wide
    push += tl.load(clamped + i[:, None] * wide + tl.arange(0, 32)[None, :], mask=there, other=0.0)
    if BENDS:
        push -= tl.load(bent + (row * b + part * 8) * 256 + places_of(i), mask=there, other=0.0)
    z += tl.load(eps + c) * (push - (1 + tl.load(damp + c)) * z)
    tl.store(out + (row * b + part * 8) * 256 + places_of(i), z, mask=there)


@triton.jit(do_not_specialize=MANY)
def _bent_kernel(s, start, attention, skew_in, skew_out, out, sigma, cells, columns, b, zero, scale):
    """out = 2 A (s - s*), A the antisymmetric part of the Jacobian of the attention at s*, from q, k, v, P there."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    end = row // (cells * columns) * cells + c  # the row of T1, and the cell
    i, left = tl.arange(0, 64), b - part * 8
    there = (i // 8 < left)[:, None]
    moved = tl.load(s + (row * b + part * 8) * 256 + places_of(i), mask=there, other=0.0)
    moved -= tl.load(start + (end * b + part * 8) * 256 + places_of(i), mask=there, other=0.0)
    attention += (end * 4 * b + part * 8) * 256
    skew_in += c * 32 * 256
    skew_out += c * 32 * 256
    dP = half_dot(heads(dot(moved, to_features(skew_in, 0, 64))), turned(by_head(attention + b * 256, left)))
    dP += half_dot(by_head(attention, left), turned(heads(dot(moved, to_features(skew_in, 64, 64)))))
    P = weights_by_head(attention + 3 * b * 256, left)
    dP = P * (scale * dP)
    dP -= P * tl.sum(dP, 2)[:, :, None]
    o = half_dot(dP, by_head(attention + 2 * b * 256, left))
    o += half_dot(P, heads(dot(moved, to_features(skew_in, 128, 64))))
    bent = half_dot(merge(o), to_tokens(skew_out, 0, 256, 64))
    a = heads(dot(moved, to_features(skew_in, 192, 64)))
    attention += zero  # what is loaded again waits in no register
    P = weights_by_head(attention + 3 * b * 256, left)
    bent += half_dot(merge(half_dot(turned(P), a)), to_tokens(skew_out, 192, 256, 64))
    dP = P * half_dot(a, turned(by_head(attention + 2 * b * 256, left)))
    dP = scale * (dP - P * tl.sum(dP, 2)[:, :, None])
    bent += half_dot(merge(half_dot(dP, by_head(attention + b * 256, left))), to_tokens(skew_out, 64, 256, 64))
    bent += half_dot(merge(half_dot(turned(dP), by_head(attention, left))), to_tokens(skew_out, 128, 256, 64))
    i += zero
    there = (i // 8 < left)[:, None]
    tl.store(out + (row * b + part * 8) * 256 + places_of(i), tl.load(sigma + c) * bent, mask=there)


@triton.jit(do_not_specialize=MANY)
def _product_kernel(
    v, out, saved, ahead_in, ahead_out, sigma, damp, eps, cells, b, scale, ENERGY: tl.constexpr
):  # fmt: skip
    """out = v + eps J v, J at a state, from the q, k, v, P or from the t there."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    ahead_in += c * 32 * (32 if ENERGY else 192)
    ahead_out += c * 32 * (32 if ENERGY else 64)
    i, left = tl.arange(0, 64), b - part * 8
    there = (i // 8 < left)[:, None]
    z = tl.load(v + (row * b + part * 8) * 256 + places_of(i), mask=there, other=0.0)
    if ENERGY:
        t = tl.load(saved + (row * b + part * 8) * 256 + places_of(i), mask=there, other=0.0)
        moved = (1 - t * t) * dot(z, to_features(ahead_in, 0, 32))
        back = dot(moved, to_tokens(ahead_out, 0, 32, 32))
    else:
        saved += (row * 4 * b + part * 8) * 256
        P = weights_by_head(saved + 3 * b * 256, left)
        dP = half_dot(heads(dot(z, to_features(ahead_in, 0, 64))), turned(by_head(saved + b * 256, left)))
        dP += half_dot(by_head(saved, left), turned(heads(dot(z, to_features(ahead_in, 64, 64)))))
        dP = P * (scale * dP)
        dP -= P * tl.sum(dP, 2)[:, :, None]
        o = half_dot(dP, by_head(saved + 2 * b * 256, left))
        o += half_dot(P, heads(dot(z, to_features(ahead_in, 128, 64))))
        back = half_dot(merge(o), to_tokens(ahead_out, 0, 64, 64))
    z += tl.load(eps + c) * (tl.load(sigma + c) * back - (1 + tl.load(damp + c)) * z)
    tl.store(out + (row * b + part * 8) * 256 + places_of(i), z, mask=there)


@triton.jit(do_not_specialize=MANY)
def _back_kernel(
    s, a, summed, moved, credits, features, ahead_in, ahead_out, skew_in, skew_out, sigma, damp, eps,
    cells, b, zero, scale, ENERGY: tl.constexpr,
):  # fmt: skip
    """a <- p + eps J^T p and summed += p with p = a; p itself, the credits of the features, and the features.

    Credits and features hold the scale of the coupling. Features are written by the programs of the first T1 alone.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    IN: tl.constexpr = 32 if ENERGY else 192
    OUT: tl.constexpr = 32 if ENERGY else 64
    ahead_in += c * 32 * IN
    ahead_out += c * 32 * OUT
    skew_in += c * 32 * 256
    skew_out += c * 32 * 256
    i, left = tl.arange(0, 64), b - part * 8
    there = (i // 8 < left)[:, None]
    once = (i // 8 < tl.where(row < cells, left, 0))[:, None]  # all rows of T1 have the same features
    s += (c * b + part * 8) * 256
    z = tl.load(s + places_of(i), mask=there, other=0.0)
    a += (row * b + part * 8) * 256
    summed += (row * b + part * 8) * 256
    p = tl.load(a + places_of(i), mask=there, other=0.0)
    tl.store(moved + (row * b + part * 8) * 256 + places_of(i), p, mask=there)
    credits += (row * b + part * 8) * 8 * IN + i[:, None] * IN
    features += (c * b + part * 8) * 8 * OUT + i[:, None] * OUT
    strength = tl.load(sigma + c)
    if ENERGY:
        n = tl.arange(0, 32)[None, :]
        t = tanh(dot(z, to_features(ahead_in, 0, 32)))
        tl.store(features + n, strength * t, mask=once)
        credit = strength * (1 - t * t) * dot(p, to_features(ahead_in, 0, 32))
        tl.store(credits + n, credit, mask=there)
        back = dot(credit, to_tokens(ahead_out, 0, 32, 32))
    else:
        n = tl.arange(0, 64)[None, :]
        q = heads(dot(z, to_features(ahead_in, 0, 64)))
        k = heads(dot(z, to_features(ahead_in, 64, 64)))
        P = attention_weights(q, k, scale)
        v = heads(dot(z, to_features(ahead_in, 128, 64)))
        tl.store(features + n, strength * merge(half_dot(P, v)), mask=once)
        o = heads(dot(p, to_features(skew_in, 192, 64)))
        credit = strength * merge(half_dot(turned(P), o))
        tl.store(credits + 128 + n, credit, mask=there)
        back = -half_dot(credit, to_tokens(skew_out, 192, 256, 64))
        dP = P * half_dot(o, turned(v))
        dP = scale * (dP - P * tl.sum(dP, 2)[:, :, None])
        credit = strength * merge(half_dot(dP, k))
        tl.store(credits + n, credit, mask=there)
        back -= half_dot(credit, to_tokens(skew_out, 64, 256, 64))
        z = tl.load(s + zero + places_of(i), mask=there, other=0.0)
        q = heads(dot(z, to_features(ahead_in + zero, 0, 64)))  # anew, so that the first one waits in no register
        credit = strength * merge(half_dot(turned(dP), q))
        tl.store(credits + 64 + n, credit, mask=there)
        back -= half_dot(credit, to_tokens(skew_out, 128, 256, 64))
    i += zero
    there = (i // 8 < left)[:, None]
    p = tl.load(a + places_of(i), mask=there, other=0.0)
    total = tl.load(summed + places_of(i), mask=there, other=0.0) + p
    p += tl.load(eps + c) * (back - (1 + tl.load(damp + c)) * p)
    tl.debug_barrier()  # the threads of a program write numbers that others of them read
    tl.store(summed + places_of(i), total, mask=there)
    tl.store(a + places_of(i), p, mask=there)


def step(
    read: KernelInputs,
    s: Float[Tensor, "*r c b n"],
    eps: Float[Tensor, "c"],
    nudge: Float[Tensor, "m c"] | None,
    bent: Float[Tensor, "i m c b n"] | None,
) -> Float[Tensor, "*r c b n"]:
    """s + eps (F(s) - nudge dC/ds - bent); with a nudge the rows of s are (T1, nudge)."""
    packed, x, knobs = read.packed, read.x, read.knobs
    cells, b, length = s.shape[-3:]
    s, clamped = s.contiguous(), read.context["input"].contiguous()
    out, driven = torch.empty_like(s), clamped.ndim > 2
    launch(
        _step_kernel, (s.numel() // (b * length), triton.cdiv(b, EXAMPLES)),
        s, out, packed["ahead_in"], packed["ahead_out"], clamped, x["R"].contiguous(), x["target"].contiguous(),
        clamped if nudge is None else nudge.contiguous(), clamped if bent is None else bent,
        knobs.sigma.contiguous(), knobs.damp.contiguous(), eps.contiguous(),
        cells, 1 if nudge is None else len(nudge), b, WIDTH if driven else 0, b * length if driven else WIDTH, SCALE,
        ENERGY=_energy(read), NUDGED=nudge is not None, BENDS=bent is not None, num_warps=FEW, **OPTIONS,
    )  # fmt: skip
    return out


def bent(
    read: KernelInputs,
    s: Float[Tensor, "i m c b n"],
    start: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c 4 b H N h"],
) -> Float[Tensor, "i m c b n"]:
    """2 A (s - s*) at the state s* of `start`, from q, k, v and P there."""
    packed, s, (i, m, cells, b, _) = read.packed, s.contiguous(), s.shape
    out = torch.empty_like(s)
    launch(
        _bent_kernel, (i * m * cells, triton.cdiv(b, EXAMPLES)),
        s, start.contiguous(), attention, packed["skew_in"], packed["skew_out"], out,
        read.knobs.sigma.contiguous(), cells, m, b, 0, SCALE, num_warps=FEW, **OPTIONS,
    )  # fmt: skip
    return out


def product(read: KernelInputs, v: Float[Tensor, "i c b n"], saved: Tensor) -> Float[Tensor, "i c b n"]:
    """v + eps J v, from q, k, v and P at a state, (i, c, 4, b, H, N, h), or from t there, (i, c, b, N, D)."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = v.shape[-3:]
    v = v.contiguous()
    out = torch.empty_like(v)
    launch(
        _product_kernel, (v.numel() // (b * length), triton.cdiv(b, EXAMPLES)),
        v, out, saved, packed["ahead_in"], packed["ahead_out"],
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(), cells, b, SCALE,
        ENERGY=_energy(read), num_warps=FEW, **OPTIONS,
    )  # fmt: skip
    return out


def back(
    read: KernelInputs,
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
    energy, s = _energy(read), s.contiguous()
    skew_in, skew_out = (packed["ahead_in"],) * 2 if energy else (packed["skew_in"], packed["skew_out"])
    features = a.new_empty((cells, b * TOKENS, writing.shape[-1]))
    moved, credits = (a.new_empty((rows, cells, b * TOKENS, n)) for n in (WIDTH, reading.shape[-1]))
    launch(
        _back_kernel, (rows * cells, triton.cdiv(b, EXAMPLES)),
        s, a, summed, moved, credits, features, packed["ahead_in"], packed["ahead_out"], skew_in, skew_out,
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(), cells, b, 0, SCALE,
        ENERGY=energy, num_warps=FEW, **OPTIONS,
    )  # fmt: skip
    add_pulls(reading, writing, s.view(cells, b * TOKENS, WIDTH), moved, credits, features)


def _energy(read: KernelInputs) -> bool:
    """Whether the toy is the conservative one."""
    return "S" in read.theta
