"""Steps of the transformers as Triton kernels that keep intermediate results on chip.

A free step is one launch, and so is a nudged step; the correction of AEP, 2 A (s - s*), is a launch before it, here
called *bent*. A product J_G v with the Jacobian of a step is one launch, too. Nothing is added up with atomic
operations, so that two runs give equal bits.

Letters: s (row, cell, example, number), with rows of T1 (i) and of nudges (m), cells c, examples b; the others as in
`parts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from gradbench.systems.kernels.parts import (
    EXAMPLES,
    FEW,
    MANY,
    OPTIONS,
    TOKENS,
    WARPS,
    WIDTH,
    Kind,
    by_head,
    compiled_for,
    decoded_from,
    dot,
    feature_places,
    from_pixels,
    heads,
    launch,
    merge,
    pixel_places,
    project_product,
    seen,
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
def _step_kernel(
    s, out, ahead_in, ahead_out, clamped, bias, mask, target, nudge, bent, sigma, damp, eps,
    cells, columns, b, zero, well, scale,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr,
    ENERGY: tl.constexpr, PROJECTS: tl.constexpr, NUDGED: tl.constexpr, BENDS: tl.constexpr,
):  # fmt: skip
    """out = Pi(s + eps (F(s) - nudge mask (y - x) - bent)). Pixels come first, so that few numbers wait for others."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    PIXELS: tl.constexpr = CH * IMG * IMG
    LENGTH: tl.constexpr = 16 * 64 + PIXELS
    ahead_in += c * 64 * (64 + M + (128 if ENERGY else 192))
    ahead_out += c * OUT * 64
    s += (row * b + part * 4) * LENGTH
    out += (row * b + part * 4) * LENGTH
    i, j = tl.arange(0, 64), tl.arange(0, 64)
    left = b - part * 4  # examples from the first one of this program on
    there, shown, length = (i // 16 < left)[:, None], seen(i, j, left, AREA), tl.load(eps + c)
    y = tl.load(s + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0)
    pull = tl.load(bias + c * CH + j // (PATCH * PATCH), mask=j < AREA, other=0.0)[None, :] - y
    if NUDGED:
        mask += (c * b + part * 4) * PIXELS
        target += (c * b + part * 4) * PIXELS
        off = y - tl.load(target + pixel_places(i, j, PIXELS, IMG, PATCH), mask=shown, other=0.0)
        off *= tl.load(mask + pixel_places(i, j, PIXELS, IMG, PATCH), mask=shown, other=0.0)
        pull -= tl.load(nudge + row % (columns * cells)) * off
    pixels = y + length * pull
    if PROJECTS:
        back = from_pixels(s, i, left, ahead_out, LENGTH, OUT, AREA, IMG, PATCH)
        pixels += length * decoded_from(s, i, left, ahead_in, LENGTH)
        z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
    else:
        back = dot(y, to_tokens(ahead_out, 0, OUT))
        z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
        pixels += length * dot(z, to_features(ahead_in, 0))
    tl.store(out + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), pixels, mask=shown)
    back = with_others(back, z, ahead_in, ahead_out, scale, tl.load(sigma + c), OUT, M, ENERGY)
    i += zero
    there = (i // 16 < left)[:, None]
    z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
    clamped += (c * b + part * 4) * 16 * 64
    back += tl.load(clamped + token_places(i, 16 * 64), mask=there, other=0.0)
    if BENDS:
        bent += (row * b + part * 4) * 16 * 64
        back -= tl.load(bent + token_places(i, 16 * 64), mask=there, other=0.0)
    z += length * (back - (2 * well + tl.load(damp + c)) * z)
    if PROJECTS:
        z -= (tl.sum(z, 1) / 64)[:, None]
        # rounded to nearest: the quick division and root lean to one side, and this side adds up over the steps
        z = tl.div_rn(z, (tl.sqrt_rn(tl.sum(z * z, 1) / 64) + 1e-5)[:, None])
    tl.store(out + token_places(i, LENGTH), z, mask=there)


@triton.jit(do_not_specialize=MANY)
def _bent_kernel(s, start, attention, skew_in, skew_out, out, sigma, cells, columns, b, length, zero, scale):
    """out = 2 A (z - z*), A the antisymmetric part of the Jacobian of the attention at z*, from q, k, v, P there."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    end = row // (cells * columns) * cells + c  # the row of T1, and the cell
    i = tl.arange(0, 64)
    left = b - part * 4
    there = (i // 16 < left)[:, None]
    s += (row * b + part * 4) * length
    start += (end * b + part * 4) * length
    moved = tl.load(s + token_places(i, length), mask=there, other=0.0)
    moved -= tl.load(start + token_places(i, length), mask=there, other=0.0)
    attention += (end * 16 * b + part * 16) * 256
    skew_in += c * 64 * 256
    skew_out += c * 256 * 64
    dS = dot(heads(dot(moved, to_features(skew_in, 0))), turned(by_head(attention + b * 1024, left)))
    dk = heads(dot(moved, to_features(skew_in, 64)))
    dS += dot(by_head(attention, left), turned(dk))
    P = by_head(attention + 3 * b * 1024, left)
    dS = P * (scale * dS)
    dS -= P * tl.sum(dS, 2)[:, :, None]
    o = dot(dS, by_head(attention + 2 * b * 1024, left))
    o += dot(P, heads(dot(moved, to_features(skew_in, 128))))
    bent = dot(merge(o), to_tokens(skew_out, 0, 256))
    a = heads(dot(moved, to_features(skew_in, 192)))
    attention += zero
    P = by_head(attention + 3 * b * 1024, left)
    bent += dot(merge(dot(turned(P), a)), to_tokens(skew_out, 192, 256))
    dP = P * dot(a, turned(by_head(attention + 2 * b * 1024, left)))
    dP = scale * (dP - P * tl.sum(dP, 2)[:, :, None])
    bent += dot(merge(dot(dP, by_head(attention + b * 1024, left))), to_tokens(skew_out, 64, 256))
    bent += dot(merge(dot(turned(dP), by_head(attention, left))), to_tokens(skew_out, 128, 256))
    i = tl.arange(0, 64) + zero
    out += (row * b + part * 4) * 16 * 64
    tl.store(out + token_places(i, 16 * 64), tl.load(sigma + c) * bent, mask=(i // 16 < left)[:, None])


@triton.jit(do_not_specialize=MANY)
def _energy_kernel(
    s, out, ahead_in, ahead_out, clamped, bias, sigma, damp, cells, b, well, scale,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """out = E of every example."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    OUT: tl.constexpr = 64 + M + 128
    LENGTH: tl.constexpr = 16 * 64 + CH * IMG * IMG
    ahead_in += c * 64 * OUT
    ahead_out += c * OUT * 64
    s += (row * b + part * 4) * LENGTH
    i, j, left = tl.arange(0, 64), tl.arange(0, 64), b - part * 4
    there, shown = (i // 16 < left)[:, None], seen(i, j, left, AREA)
    y = tl.load(s + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0)
    shift = tl.load(bias + c * CH + j // (PATCH * PATCH), mask=j < AREA, other=0.0)
    total = tl.sum((0.5 * y - shift[None, :]) * y, 1)
    moved = dot(y, to_tokens(ahead_out, 0, OUT))
    moved += tl.load(clamped + (c * b + part * 4) * 16 * 64 + token_places(i, 16 * 64), mask=there, other=0.0)
    z = tl.load(s + token_places(i, LENGTH), mask=there, other=0.0)
    total += tl.sum(((well + 0.5 * tl.load(damp + c)) * z - moved) * z, 1)
    for chunk in tl.static_range(0, M, 64):
        memory = tl.maximum(dot(z, to_features(ahead_in, 64 + chunk)), 0.0)
        total -= tl.sum(memory * memory, 1)
    q = heads(dot(z, to_features(ahead_in, 64 + M)))
    scores = scale * dot(q, turned(heads(dot(z, to_features(ahead_in, 128 + M)))))
    most = tl.max(scores, 2)
    attended = tl.sum(most + tl.log(tl.sum(tl.exp(scores - most[:, :, None]), 2)), 1)
    energy = tl.sum(tl.reshape(total, (4, 16)), 1)
    energy -= tl.load(sigma + c) / scale * tl.sum(tl.reshape(attended, (4, 4)), 1)
    e = tl.arange(0, 4)
    tl.store(out + row * b + part * 4 + e, energy, mask=e < left)


@triton.jit(do_not_specialize=MANY)
def _product_kernel(
    v, out, attention, memory, u, ahead_in, ahead_out, sigma, damp, eps, cells, b, zero, well, scale,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr,
    ENERGY: tl.constexpr, PROJECTS: tl.constexpr,
):  # fmt: skip
    """out = Pi'(u) (v + eps J v), J at a state, from the q, k, v, P and the memories there."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    LENGTH: tl.constexpr = 16 * 64 + CH * IMG * IMG
    LAST: tl.constexpr = 2 if ENERGY else 3  # P stands behind q and k, or behind q, k and v
    ahead_in += c * 64 * (64 + M + (128 if ENERGY else 192))
    ahead_out += c * OUT * 64
    v += (row * b + part * 4) * LENGTH
    out += (row * b + part * 4) * LENGTH
    memory += (row * b + part * 4) * 16 * M
    attention += (row * (LAST + 1) * b + part * 4) * 4 * 256
    i, j = tl.arange(0, 64), tl.arange(0, 64)
    left = b - part * 4
    there, shown, length = (i // 16 < left)[:, None], seen(i, j, left, AREA), tl.load(eps + c)
    z = tl.load(v + token_places(i, LENGTH), mask=there, other=0.0)
    dP = dot(heads(dot(z, to_features(ahead_in, 64 + M))), turned(by_head(attention + b * 1024, left)))
    dP += dot(by_head(attention, left), turned(heads(dot(z, to_features(ahead_in, 128 + M)))))
    P = by_head(attention + LAST * b * 1024, left)
    dP = P * (scale * dP)
    dP -= P * tl.sum(dP, 2)[:, :, None]
    if ENERGY:
        moved = dot(dP, by_head(attention + b * 1024, left))
        moved += dot(P, heads(dot(z, to_features(ahead_in + zero, 128 + M))))
        back = dot(merge(moved), to_tokens(ahead_out, 64 + M, OUT))
        attention += zero
        moved = dot(turned(dP), by_head(attention, left))
        P = by_head(attention + LAST * b * 1024, left)
        moved += dot(turned(P), heads(dot(z, to_features(ahead_in + zero, 64 + M))))
        back += dot(merge(moved), to_tokens(ahead_out, 128 + M, OUT))
    else:
        moved = dot(dP, by_head(attention + 2 * b * 1024, left))
        moved += dot(P, heads(dot(z, to_features(ahead_in, 192 + M))))
        back = dot(merge(moved), to_tokens(ahead_out, 64 + M, OUT))
    back *= tl.load(sigma + c)
    if not ENERGY:  # the tokens wait in no register; the kernel of an energy spills more registers with this
        z = tl.load(v + zero + token_places(i, LENGTH), mask=there, other=0.0)
    for chunk in tl.static_range(0, M, 64):
        moved = dot(z, to_features(ahead_in, 64 + chunk))
        opened = tl.load(memory + feature_places(chunk, i, M), mask=there, other=0.0) > 0
        back += dot(tl.where(opened, moved, 0.0), to_tokens(ahead_out, 64 + chunk, OUT))
    y = tl.load(v + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), mask=shown, other=0.0)
    back += dot(y, to_tokens(ahead_out, 0, OUT))
    y += length * (dot(z, to_features(ahead_in, 0)) - y)
    tl.store(out + 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH), y, mask=shown)
    i += zero
    there = (i // 16 < left)[:, None]
    z = tl.load(v + token_places(i, LENGTH), mask=there, other=0.0)
    z += length * (back - (2 * well + tl.load(damp + c)) * z)
    if PROJECTS:
        u += (row * b + part * 4) * 16 * 64
        z = project_product(tl.load(u + token_places(i, 16 * 64), mask=there, other=0.0), z)
    tl.store(out + token_places(i, LENGTH), z, mask=there)


def step(
    read: KernelInputs,
    kind: Kind,
    s: Float[Tensor, "*r c b n"],
    eps: Float[Tensor, "c"],
    nudge: Float[Tensor, "m c"] | None,
    bent: Float[Tensor, "i m c b d"] | None,
) -> Float[Tensor, "*r c b n"]:
    """Pi(s + eps (F(s) - nudge dC/ds - bent)) of a stack. With a nudge the rows of s are (T1, nudge)."""
    packed, theta, x, context, knobs = read
    cells, b, length = s.shape[-3:]
    s, out = s.contiguous(), torch.empty_like(s, memory_format=torch.contiguous_format)
    unread = theta["bdec"]
    launch(
        _step_kernel, (s.numel() // (b * length), triton.cdiv(b, EXAMPLES)),
        s, out, packed["ahead_in"], packed["ahead_out"], context["input"].contiguous(), theta["bdec"].contiguous(),
        x["mask"].contiguous(), x["x"].contiguous(), unread if nudge is None else nudge.contiguous(),
        unread if bent is None else bent, knobs.sigma.contiguous(), knobs.damp.contiguous(), eps.contiguous(),
        cells, 1 if nudge is None else len(nudge), b, 0, kind.well, kind.scale,
        PROJECTS=kind.projects, NUDGED=nudge is not None, BENDS=bent is not None,
        num_warps=FEW, **kind.sizes(read), **compiled_for(read),
    )  # fmt: skip
    return out


def energy(read: KernelInputs, kind: Kind, s: Float[Tensor, "*r c b n"]) -> Float[Tensor, "*r c b"]:
    """E of every example, of a system whose attention is a gradient."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = s.shape[-3:]
    s, out = s.contiguous(), s.new_empty(s.shape[:-1])
    launch(
        _energy_kernel, (s.numel() // (b * length), triton.cdiv(b, EXAMPLES)),
        s, out, packed["ahead_in"], packed["ahead_out"], read.context["input"].contiguous(),
        read.theta["bdec"].contiguous(), knobs.sigma.contiguous(), knobs.damp.contiguous(),
        cells, b, kind.well, kind.scale, num_warps=FEW, **kind.sizes(read), **compiled_for(read),
    )  # fmt: skip
    return out


def bent(
    read: KernelInputs,
    scale: float,
    s: Float[Tensor, "i m c b n"],
    start: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c 4 b H N h"],
) -> Float[Tensor, "i m c b d"]:
    """2 A (z - z*) of ordinary attention at the tokens z* of `start`, from q, k, v and P there."""
    packed, (i, m, cells, b, length) = read.packed, s.shape
    out = s.new_empty((i, m, cells, b, TOKENS * WIDTH))
    launch(
        _bent_kernel, (i * m * cells, triton.cdiv(b, EXAMPLES)),
        s.contiguous(), start.contiguous(), attention, packed["skew_in"], packed["skew_out"], out,
        read.knobs.sigma.contiguous(), cells, m, b, length, 0, scale, num_warps=WARPS, **OPTIONS,
    )  # fmt: skip
    return out


def product(
    read: KernelInputs,
    kind: Kind,
    v: Float[Tensor, "i c b n"],
    attention: Float[Tensor, "i c k b H N h"],
    memory: Float[Tensor, "i c b N M"],
    u: Float[Tensor, "i c b N D"],
) -> Float[Tensor, "i c b n"]:
    """Pi'(u) (v + eps J v), from q, k, v (none of a gradient), P and the memories at a state."""
    packed, knobs = read.packed, read.knobs
    cells, b, length = v.shape[-3:]
    v, out = v.contiguous(), torch.empty_like(v, memory_format=torch.contiguous_format)
    launch(
        _product_kernel, (v.numel() // (b * length), triton.cdiv(b, EXAMPLES)),
        v, out, attention, memory, u, packed["ahead_in"], packed["ahead_out"],
        knobs.sigma.contiguous(), knobs.damp.contiguous(), knobs.eps.contiguous(),
        cells, b, 0, kind.well, kind.scale,
        PROJECTS=kind.projects, num_warps=FEW, **kind.sizes(read), **compiled_for(read),
    )  # fmt: skip
    return out
