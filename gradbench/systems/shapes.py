"""The shape to which shapes broadcast, without `torch.broadcast_shapes`, whose first call imports sympy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def joint_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape to which shapes broadcast that fit each other."""
    axes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in axes)[::-1]
