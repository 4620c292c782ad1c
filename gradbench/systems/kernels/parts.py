"""What kernels share: launches, products, heads; and of the transformers attention and where numbers of a state lie.

A program of the transformers takes four examples of 16 tokens: 64 tokens of 64 numbers, in 4 heads of 16. A product
takes three passes of TF32 for one of float32 (`tf32x3`), whose noise is nearly that of float32. Where the number of
examples is no multiple of four, the missing ones are masked, and so are numbers beyond the pixels of a patch.

Letters: N = 16 tokens, D = 64 numbers of a token, H = 4 heads of h = 16, M memories, AREA pixels of a patch; q, k, v
and the weights P of attention.

`zero` is 0. It is added where something is loaded, or an index computed, a second time: otherwise the compiler would
keep the first one in registers, and those are short. An index of a state takes as many of them as a state.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import KernelInputs

TOKENS, WIDTH, EXAMPLES = 16, 64, 4  # of an example, of a token, of a program
FEW = 4  # warps of most programs: two of these share a multiprocessor
WARPS = 8  # of those that would spill too many registers with 4, measured on an H100
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}  # of every kernel: a version of Triton may have other defaults
LOST = 2.0**-23 / 6  # see `dot`
# other tensor cores were not measured, and an interpreter cuts nothing off
CUTS = not triton.knobs.runtime.interpret and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
CUT_OFF: tl.constexpr = tl.constexpr(LOST if CUTS else 0.0)
MANY = ["cells", "columns", "b", "zero"]  # numbers that differ between packs: no kernel is compiled for their values
_launching = threading.Lock()  # packs of two threads may compile the same kernel
_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


class Kind(NamedTuple):
    """Constants of a step that differ between systems."""

    patch: int
    well: float  # w, the weight of |z|^2 in the energy
    scale: float  # of q k^T
    projects: bool

    def sizes(self, read: KernelInputs) -> dict[str, Any]:
        """The sizes of pixels that a kernel is compiled for."""
        channels, img = read.x["x"].shape[-3], read.x["x"].shape[-1]
        return {"AREA": channels * self.patch**2, "CH": channels, "IMG": img, "PATCH": self.patch}


def launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: Any) -> None:
    """Launch a kernel on the device of its first argument, a tensor; inside of `compile_side_by_side` compile it."""
    with _launching, torch.cuda.device_of(arguments[0]):
        if _compiling.get():
            kernel.warmup(*arguments, grid=grid, **options)
        else:
            kernel[grid](*arguments, **options)


def compile_side_by_side(launches: Callable[[], object]) -> None:
    """Compile the kernels that `launches` would launch, on all cores. Raises what Triton raises."""

    def noted() -> None:
        _compiling.set(True)
        with ThreadPoolExecutor(os.cpu_count()) as workers, triton.AsyncCompileMode(workers):
            launches()

    copy_context().run(noted)  # where a kernel does not compile, Triton 3.6 stays in its mode


def compiled_for(read: KernelInputs) -> dict[str, Any]:
    """What every kernel of the whole force is compiled for: its memories, its attention, and the options."""
    return {"M": read.theta["Wmem"].shape[-1], "ENERGY": "WV" not in read.theta, **OPTIONS}


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


@triton.jit
def dot(a, b):
    """A product, or one of every example and head, and on top what tensor cores cut off of it on average.

    They add up eight products at a time and cut the sum off, towards zero. A sum of 8 n products loses (n + 1) / 6 of
    2^-23 of itself, whatever the numbers are: `tests/emulated.py` emulates it.
    """
    product = tl.dot(a, b, input_precision="tf32x3")
    return product + product * ((a.shape[-1] // 8 + 1) * CUT_OFF)


@triton.jit
def half_dot(a, b):
    """As `dot`, where every second group of 8 products is 0, of which tensor cores cut nothing off."""
    product = tl.dot(a, b, input_precision="tf32x3")
    return product + product * ((a.shape[-1] // 16 + 1) * CUT_OFF)


@triton.jit
def heads(f):
    """(64, 64) -> (group of 16 tokens and head, token, number of the head)."""
    return tl.reshape(tl.permute(tl.reshape(f, (4, 16, 4, 16)), (0, 2, 1, 3)), (16, 16, 16))


@triton.jit
def merge(f):
    """Undo `heads`."""
    return tl.reshape(tl.permute(tl.reshape(f, (4, 4, 16, 16)), (0, 2, 1, 3)), (64, 64))


@triton.jit
def turned(f):
    """The transpose for every example and head."""
    return tl.permute(f, (0, 2, 1))


@triton.jit
def softmax(scores):
    """Over the last axis."""
    raised = tl.exp(scores - tl.max(scores, 2)[:, :, None])
    return raised / tl.sum(raised, 2)[:, :, None]


@triton.jit
def to_features(matrix, first):
    """The (64, 64) matrix from tokens to 64 features; `matrix` has a row for every feature."""
    i = tl.arange(0, 64)
    return tl.load(matrix + (first + i)[None, :] * 64 + i[:, None])


@triton.jit
def to_tokens(matrix, first, width: tl.constexpr):
    """The (64, 64) matrix from 64 features to tokens; `matrix` has a row of `width` features for each number."""
    i = tl.arange(0, 64)
    return tl.load(matrix + first + i[None, :] * width + i[:, None])


@triton.jit
def token_places(i, length):
    """Where the tokens of four examples lie that are `length` numbers apart."""
    return (i // 16 * length + i % 16 * 64)[:, None] + tl.arange(0, 64)[None, :]


@triton.jit
def feature_places(first, i, width):
    """Where 64 features of these tokens lie in rows of `width` features, from the feature `first` on."""
    return (i * width + first)[:, None] + tl.arange(0, 64)[None, :]


@triton.jit
def pixel_places(i, j, length, IMG: tl.constexpr, PATCH: tl.constexpr):
    """Where the pixels j of the patches of these tokens lie, from the first pixel of the first example on."""
    token = i % 16
    corner = i // 16 * length + token // (IMG // PATCH) * PATCH * IMG + token % (IMG // PATCH) * PATCH
    within = j // (PATCH * PATCH) * IMG * IMG + j % (PATCH * PATCH) // PATCH * IMG + j % PATCH
    return corner[:, None] + within[None, :]


@triton.jit
def seen(i, j, left, AREA: tl.constexpr):
    """Which of the numbers j of these tokens are pixels of examples that are there; `left` examples are."""
    return (i // 16 < left)[:, None] & (j < AREA)[None, :]


@triton.jit
def from_pixels(
    s, i, left, ahead_out, LENGTH: tl.constexpr, OUT: tl.constexpr, AREA: tl.constexpr, IMG: tl.constexpr,
    PATCH: tl.constexpr,
):  # fmt: skip
    """The force on tokens from the pixels of a state, in two products of half of the pixels.

    Tensor cores cut off their sums, all to one side, and so less where a sum is shorter. Errors of pixels and of tokens
    reach each other in every step, and a projection keeps them.
    """
    total = tl.zeros((64, 64), tl.float32)
    for first in tl.static_range(0, 64, 32):
        j, n = first + tl.arange(0, 32), tl.arange(0, 64)
        places = 16 * 64 + pixel_places(i, j, LENGTH, IMG, PATCH)
        y = tl.load(s + places, mask=seen(i, j, left, AREA), other=0.0)
        total += dot(y, tl.load(ahead_out + n[None, :] * OUT + j[:, None]))
    return total


@triton.jit
def decoded_from(s, i, left, ahead_in, LENGTH: tl.constexpr):
    """The pixels that the tokens of a state decode to, in two products of half of the numbers of a token."""
    total = tl.zeros((64, 64), tl.float32)
    for first in tl.static_range(0, 64, 32):
        j, n = first + tl.arange(0, 32), tl.arange(0, 64)
        places = (i // 16 * LENGTH + i % 16 * 64)[:, None] + j[None, :]
        z = tl.load(s + places, mask=(i // 16 < left)[:, None], other=0.0)
        total += dot(z, tl.load(ahead_in + n[None, :] * 64 + j[:, None]))
    return total


@triton.jit
def by_head(first, left):
    """One of q, k, v and P of four examples, (example and head, 16, 16)."""
    i = tl.arange(0, 16)
    place = i[:, None, None] * 256 + i[None, :, None] * 16 + i[None, None, :]
    return tl.load(first + place, mask=(i < left * 4)[:, None, None], other=0.0)


@triton.jit
def with_others(
    back, z, ahead_in, ahead_out, scale, strength, OUT: tl.constexpr, M: tl.constexpr, ENERGY: tl.constexpr
):  # fmt: skip
    """The force on tokens `back` with that of memories and attention."""
    for chunk in tl.static_range(0, M, 64):
        memory = tl.maximum(dot(z, to_features(ahead_in, 64 + chunk)), 0.0)
        back += dot(memory, to_tokens(ahead_out, 64 + chunk, OUT))
    q = heads(dot(z, to_features(ahead_in, 64 + M)))
    k = heads(dot(z, to_features(ahead_in, 128 + M)))
    P = softmax(scale * dot(q, turned(k)))
    v = k if ENERGY else heads(dot(z, to_features(ahead_in, 192 + M)))
    back += strength * dot(merge(dot(P, v)), to_tokens(ahead_out, 64 + M, OUT))
    if ENERGY:
        back += strength * dot(merge(dot(turned(P), q)), to_tokens(ahead_out, 128 + M, OUT))
    return back


@triton.jit
def project_product(u, p):
    """Pi'(u) p of the tokens u, with Pi the division by the deviation: the map is its own transpose."""
    u -= (tl.sum(u, 1) / 64)[:, None]
    std = tl.sqrt_rn(tl.sum(u * u, 1) / 64)
    p -= (tl.sum(p, 1) / 64)[:, None]
    p -= u * tl.div_rn(tl.sum(u * p, 1) / 64, std * (std + 1e-5))[:, None]
    return tl.div_rn(p, (std + 1e-5)[:, None])
