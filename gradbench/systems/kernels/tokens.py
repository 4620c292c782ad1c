"""Steps of the transformers as Triton kernels that keep intermediate results on chip.

A free step is one launch, and so is a nudged step; the correction of AEP, 2 A (s - s*), is a launch before it, here
called *bent*. A program takes four examples of 16 tokens: 64 tokens of 64 numbers, in 4 heads of 16. A product takes
three passes of TF32 for one of float32 (`tf32x3`), whose noise is that of float32. Nothing is added up with atomic
operations, so that two runs give equal bits. Where the number of examples is no multiple of four, the missing ones
are masked, and so are numbers beyond the pixels of a patch.

Letters: s (row, cell, example, number), with rows of T1 (i) and of nudges (m), cells c, examples b; N = 16 tokens, D
= 64 numbers of a token, H = 4 heads of h = 16, M memories, AREA pixels of a patch; q, k, v and the weights P of
attention. `zero` is 0. It is added where an index is computed a second time: otherwise the compiler would keep the
first one, and an index of a state takes as many registers as a state.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs

TOKENS, WIDTH, EXAMPLES = 16, 64, 4  # of an example, of a token, of a program
WARPS = 8  # of a program; with 4 all steps but the free one of cet_real took longer, measured on an H100
_launching = threading.Lock()  # packs of two threads may compile the same kernel


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _heads(f):
    """(64, 64) -> (example and head, token, h)."""
    return tl.reshape(tl.permute(tl.reshape(f, (4, 16, 4, 16)), (0, 2, 1, 3)), (16, 16, 16))


@triton.jit
def _merge(f):
    """Undo `_heads`."""
    return tl.reshape(tl.permute(tl.reshape(f, (4, 4, 16, 16)), (0, 2, 1, 3)), (64, 64))


@triton.jit
def _turned(f):
    return tl.permute(f, (0, 2, 1))


@triton.jit
def _softmax(scores):
    raised = tl.exp(scores - tl.max(scores, 2)[:, :, None])
    return raised / tl.sum(raised, 2)[:, :, None]


@triton.jit
def _weight(matrix, first, width: tl.constexpr):
    """A (64, 64) part of a matrix with rows of `width` numbers, from the number `first` on."""
    i = tl.arange(0, 64)
    return tl.load(matrix + first + i[:, None] * width + i[None, :])


@triton.jit
def _token_places(i, length):
    """Where the tokens of four examples lie that are `length` numbers apart."""
    return (i // 16 * length + i % 16 * 64)[:, None] + tl.arange(0, 64)[None, :]


@triton.jit
def _pixel_places(i, length, IMG: tl.constexpr, PATCH: tl.constexpr):
    """Where the pixels of the patches of these tokens lie, from the first pixel of the first example on."""
    token, j = i % 16, tl.arange(0, 64)
    corner = i // 16 * length + token // (IMG // PATCH) * PATCH * IMG + token % (IMG // PATCH) * PATCH
    within = j // (PATCH * PATCH) * IMG * IMG + j % (PATCH * PATCH) // PATCH * IMG + j % PATCH
    return corner[:, None] + within[None, :]


@triton.jit
def _seen(i, left, AREA: tl.constexpr):
    return (i // 16 < left)[:, None] & (tl.arange(0, 64) < AREA)[None, :]


@triton.jit
def _by_head(first, left):
    """One of q, k, v and P of four examples, (example and head, 16, 16)."""
    i = tl.arange(0, 16)
    place = i[:, None, None] * 256 + i[None, :, None] * 16 + i[None, None, :]
    return tl.load(first + place, mask=(i < left * 4)[:, None, None], other=0.0)


@triton.jit(do_not_specialize=["zero"])
def _step_kernel(
    s, out, ahead_in, ahead_out, clamped, bias, mask, target, nudge, bent, sigma, damp, eps,
    cells, columns, b, zero, well, scale,
    AREA: tl.constexpr, CH: tl.constexpr, IMG: tl.constexpr, PATCH: tl.constexpr, M: tl.constexpr,
    ENERGY: tl.constexpr, PROJECT: tl.constexpr, NUDGE: tl.constexpr, BENT: tl.constexpr,
):  # fmt: skip
    """out = Pi(s + eps (F(s) - nudge mask (y - x) - bent))."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = row % cells
    IN: tl.constexpr = 64 + M + (128 if ENERGY else 192)
    OUT: tl.constexpr = 64 + M + (128 if ENERGY else 64)
    PIXELS: tl.constexpr = CH * IMG * IMG
    LENGTH: tl.constexpr = 16 * 64 + PIXELS
    ahead_in += c * 64 * IN
    ahead_out += c * OUT * 64
    s += (row * b + part * 4) * LENGTH
    out += (row * b + part * 4) * LENGTH
    clamped += (c * b + part * 4) * 16 * 64
    i = tl.arange(0, 64)
    left = b - part * 4  # examples from the first one of this program on
    z = tl.load(s + _token_places(i, LENGTH), mask=(i // 16 < left)[:, None], other=0.0)
    y = tl.load(s + 16 * 64 + _pixel_places(i, LENGTH, IMG, PATCH), mask=_seen(i, left, AREA), other=0.0)
    back = _dot(y, _weight(ahead_out, 0, 64))
    for chunk in tl.static_range(0, M, 64):
        memory = tl.maximum(_dot(z, _weight(ahead_in, 64 + chunk, IN)), 0.0)
        back += _dot(memory, _weight(ahead_out, (64 + chunk) * 64, 64))
    q = _heads(_dot(z, _weight(ahead_in, 64 + M, IN)))
    k = _heads(_dot(z, _weight(ahead_in, 128 + M, IN)))
    weights = _softmax(scale * _dot(q, _turned(k)))
    strength = tl.load(sigma + c)
    if ENERGY:
        back += strength * _dot(_merge(_dot(weights, k)), _weight(ahead_out, (64 + M) * 64, 64))
        back += strength * _dot(_merge(_dot(_turned(weights), q)), _weight(ahead_out, (128 + M) * 64, 64))
    else:
        v = _heads(_dot(z, _weight(ahead_in, 192 + M, IN)))
        back += strength * _dot(_merge(_dot(weights, v)), _weight(ahead_out, (64 + M) * 64, 64))
    i = tl.arange(0, 64) + zero
    length = tl.load(eps + c)
    decoded = _dot(z, _weight(ahead_in, 0, IN))
    # the large terms are added behind the products, whose sums on tensor cores are cut off
    back += tl.load(clamped + _token_places(i, 16 * 64), mask=(i // 16 < left)[:, None], other=0.0)
    back -= (2 * well + tl.load(damp + c)) * z
    if BENT:
        bent += (row * b + part * 4) * 16 * 64
        back -= tl.load(bent + _token_places(i, 16 * 64), mask=(i // 16 < left)[:, None], other=0.0)
    z += length * back
    if PROJECT:
        z -= (tl.sum(z, 1) / 64)[:, None]
        # rounded to nearest: the quick division and root lean to one side, and this side adds up over the steps
        z = tl.div_rn(z, (tl.sqrt_rn(tl.sum(z * z, 1) / 64) + 1e-5)[:, None])
    tl.store(out + _token_places(i, LENGTH), z, mask=(i // 16 < left)[:, None])
    seen = _seen(i, left, AREA)
    y = tl.load(s + 16 * 64 + _pixel_places(i, LENGTH, IMG, PATCH), mask=seen, other=0.0)
    colour = tl.arange(0, 64) // (PATCH * PATCH)
    pull = decoded + tl.load(bias + c * CH + colour, mask=tl.arange(0, 64) < AREA, other=0.0)[None, :] - y
    if NUDGE:
        mask += (c * b + part * 4) * PIXELS
        target += (c * b + part * 4) * PIXELS
        place = _pixel_places(i, PIXELS, IMG, PATCH)
        hidden = tl.load(mask + place, mask=seen, other=0.0)
        beta = tl.load(nudge + row % (columns * cells))
        pull -= beta * hidden * (y - tl.load(target + place, mask=seen, other=0.0))
    tl.store(out + 16 * 64 + _pixel_places(i, LENGTH, IMG, PATCH), y + length * pull, mask=seen)


@triton.jit(do_not_specialize=["zero"])
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
    moved = tl.load(s + _token_places(i, length), mask=there, other=0.0)
    moved -= tl.load(start + _token_places(i, length), mask=there, other=0.0)
    attention += (end * 16 * b + part * 16) * 256
    skew_in += c * 64 * 256
    skew_out += c * 256 * 64
    k = _by_head(attention + b * 1024, left)
    P = _by_head(attention + 3 * b * 1024, left)
    dS = _dot(_heads(_dot(moved, _weight(skew_in, 0, 256))), _turned(k))
    dk = _heads(_dot(moved, _weight(skew_in, 64, 256)))
    dS += _dot(_by_head(attention, left), _turned(dk))
    dS = P * (scale * dS)
    dS -= P * tl.sum(dS, 2)[:, :, None]
    v = _by_head(attention + 2 * b * 1024, left)
    dv = _heads(_dot(moved, _weight(skew_in, 128, 256)))
    bent = _dot(_merge(_dot(dS, v) + _dot(P, dv)), _weight(skew_out, 0, 64))
    a = _heads(_dot(moved, _weight(skew_in, 192, 256)))
    bent += _dot(_merge(_dot(_turned(P), a)), _weight(skew_out, 192 * 64, 64))
    dP = P * _dot(a, _turned(v))
    dP = scale * (dP - P * tl.sum(dP, 2)[:, :, None])
    bent += _dot(_merge(_dot(dP, k)), _weight(skew_out, 64 * 64, 64))
    bent += _dot(_merge(_dot(_turned(dP), _by_head(attention + zero, left))), _weight(skew_out, 128 * 64, 64))
    i = tl.arange(0, 64) + zero
    out += (row * b + part * 4) * 16 * 64
    tl.store(out + _token_places(i, 16 * 64), tl.load(sigma + c) * bent, mask=(i // 16 < left)[:, None])


class Kind(NamedTuple):
    """Constants of a step that differ between systems."""

    patch: int
    well: float  # w, the weight of |z|^2 in the energy
    scale: float  # of q k^T
    projects: bool


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
    channels, img = x["x"].shape[-3], x["x"].shape[-1]
    unread = theta["bdec"]
    with _launching, torch.cuda.device_of(s):
        _step_kernel[s.numel() // (b * length), triton.cdiv(b, EXAMPLES)](
            s, out, packed["ahead_in"], packed["ahead_out"], context["input"].contiguous(), theta["bdec"].contiguous(),
            x["mask"].contiguous(), x["x"].contiguous(), unread if nudge is None else nudge.contiguous(),
            unread if bent is None else bent, knobs.sigma.contiguous(), knobs.damp.contiguous(), eps.contiguous(),
            cells, 1 if nudge is None else len(nudge), b, 0, kind.well, kind.scale,
            AREA=channels * kind.patch**2, CH=channels, IMG=img, PATCH=kind.patch, M=theta["Wmem"].shape[-1],
            ENERGY="WV" not in theta, PROJECT=kind.projects, NUDGE=nudge is not None, BENT=bent is not None,
            num_warps=WARPS, num_stages=1,
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
    with _launching, torch.cuda.device_of(s):
        _bent_kernel[i * m * cells, triton.cdiv(b, EXAMPLES)](
            s.contiguous(), start.contiguous(), attention, packed["skew_in"], packed["skew_out"], out,
            read.knobs.sigma.contiguous(), cells, m, b, length, 0, scale, num_warps=WARPS, num_stages=1,
        )  # fmt: skip
    return out
