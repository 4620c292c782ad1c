"""Softmax attention over tokens, shared by the systems that have one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def heads(x: Float[Tensor, "*b N Hh"], H: int) -> Float[Tensor, "*b H N h"]:
    """Split the width of every token into H heads."""
    return x.unflatten(-1, (H, -1)).transpose(-3, -2)


def merge(x: Float[Tensor, "*b H N h"]) -> Float[Tensor, "*b N Hh"]:
    """Undo `heads`."""
    return x.transpose(-3, -2).flatten(-2)


def attend(
    q: Float[Tensor, "*b H N h"], k: Float[Tensor, "*b H N h"], v: Float[Tensor, "*b H N h"]
) -> Float[Tensor, "*b H N h"]:
    """softmax(q k^T / sqrt(h)) v, written out: fused attention has no second derivative."""
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
