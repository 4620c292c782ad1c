"""Products of float32 on a CPU, by the quicker of two libraries where both give the same bits.

torch multiplies by oneMKL. On processors that are not made by Intel oneMKL uses vectors of 256 bits. oneDNN, by which
torch takes convolutions, uses the widest vectors of a processor: with AVX-512 a product takes half the time. Both
libraries add up the terms of an entry one after the other, oneMKL in runs of at most `RUN` terms. Where oneDNN takes a
run a call, its bits are those of oneMKL. A trial shows for every shape whether this holds and saves time. Where not,
oneMKL multiplies, so that no number depends on the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

from gradbench.systems.shapes import joint_shape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RUN = 192  # terms
LEAST = 2**21  # multiplications of a product, from which on oneDNN takes at most two thirds of the time: measured
MOST = 2**23  # numbers that a trial may hold, in both matrices and their product


def matmul(x: Float[Tensor, "*r m k"], W: Float[Tensor, "*q k n"]) -> Float[Tensor, "*r m n"]:
    """x W. Axes before the matrices are broadcast, as by torch."""
    if x.ndim < 2 or W.ndim < 2:
        return x @ W
    rows = x.numel() if W.ndim == 2 else x.shape[-2] * x.shape[-1]
    if rows * W.shape[-1] < LEAST or not (_plain(x) and _plain(W)) or _transformed():
        return x @ W
    transposed = x.mT.is_contiguous(), W.mT.is_contiguous()
    return _by_runs(x, W) if _pays(tuple(x.shape), tuple(W.shape), transposed) else x @ W


def _plain(v: Tensor) -> bool:
    """Whether a tensor holds float32 numbers of the CPU without a derivative: oneDNN takes no other."""
    import torch

    needs_grad = v.requires_grad and torch.is_grad_enabled()
    return v.is_cpu and v.dtype is torch.float32 and type(v) is torch.Tensor and not needs_grad


def _transformed() -> bool:
    """Whether torch lifts, differentiates or rounds what is computed here. oneDNN would not notice."""
    import torch

    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


def _by_runs(x: Float[Tensor, "*r m k"], W: Float[Tensor, "*q k n"]) -> Float[Tensor, "*r m n"]:
    """x W by oneDNN: a call for every run of terms, of every pair of matrices."""
    import torch

    if W.ndim > 2:
        axes = joint_shape(x.shape[:-2], W.shape[:-2])
        pairs = zip(*(v.expand(*axes, *v.shape[-2:]).flatten(0, -3) for v in (x, W)), strict=True)
        return torch.stack([_by_runs(*pair) for pair in pairs]).unflatten(0, axes)
    ends = _ends(len(W))
    if len(ends) > 2 or not W.mT.is_contiguous():
        W = W.contiguous()  # with any other W, such as rows of a transposed one, oneDNN takes a hundred times as long
    multiply, total = torch.ops.mkldnn._linear_pointwise, None
    for start, stop in pairwise(ends):
        run, columns = x[..., start:stop], W[start:stop].mT
        if total is None:
            total = multiply(run, columns, None, "none", [], "")
        else:
            total = multiply.binary(run, total, columns, None, "add")
    assert total is not None
    return total


@cache
def _ends(terms: int) -> list[int]:
    """Where the runs of oneMKL end: whole runs, or two halves and one term more where two runs hold all terms."""
    run = RUN if terms <= RUN or terms > 2 * RUN else terms // 2
    return [*range(0, terms, run), terms]


@cache
def _pays(x: tuple[int, ...], W: tuple[int, ...], transposed: tuple[bool, bool]) -> bool:
    """Whether oneDNN gives the same bits in less time for matrices of these shapes, transposed in memory or not."""
    import torch

    axes = joint_shape(x[:-2], W[:-2])
    size = math.prod(axes) * (x[-2] * x[-1] + W[-2] * W[-1] + x[-2] * W[-1])
    if size > MOST or x[-1] == 1:
        return False
    source = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...], turned: bool) -> Tensor:
        stored = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
        v = torch.randn(stored, generator=source, dtype=torch.float32, device="cpu")
        return v.mT if turned else v

    first, second = map(drawn, (x, W), transposed)
    if math.prod(x[:-1]) > 1:
        first[(0,) * (len(x) - 1)] = 0  # a row: the sign of a zero is a bit too
    ways = partial(torch.matmul, first, second), partial(_by_runs, first, second)
    try:
        pair = [way().view(torch.int32) for way in ways]
    except (AttributeError, RuntimeError):  # torch without oneDNN
        return False
    return torch.equal(*pair) and _seconds(ways[1]) < _seconds(ways[0])


def _seconds(way: Callable[[], object]) -> float:
    """The shortest time of three calls."""
    times = []
    for _ in range(3):
        start = perf_counter()
        way()
        times.append(perf_counter() - start)
    return min(times)
