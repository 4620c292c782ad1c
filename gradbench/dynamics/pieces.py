"""A loop over steps of a wide batch of states, taken in pieces that stay in the cache of a CPU.

A rule says how a piece begins and how it steps. The device decides how wide a piece is, and no result depends on the
width: rows of a batch do not see each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field

CACHED = 2**17  # entries of states that a CPU advances at a time: they fit its cache with what a force makes of them
State = TypeVar("State", bound="tuple[Tensor, ...]")  # a named tuple of tensors with axes i over T1 and m over columns


class Pieces(Generic[State]):
    """The rows of `ends`, each in `width` columns, cut into pieces that advance together."""

    def __init__(
        self,
        field: Field,
        ends: Float[Tensor, "i *c b n"],
        width: int,
        begun: Callable[[slice, slice], tuple[Callable[..., State], State]],
    ) -> None:
        """`begun(rows, columns)` gives the step and the first state of a piece."""
        self._cuts = _cuts(ends, width)
        self.states: list[State] = []
        self._steps = []
        for rows, columns in self._cuts:
            step, state = begun(rows, columns)
            self.states.append(state)
            self._steps.append(field.repeated(step, *state))

    def advance(self) -> None:
        """Take one step of every piece. The states of a step are overwritten by the next one."""
        self.states = [type(old)(*step(*old)) for step, old in zip(self._steps, self.states, strict=True)]

    def whole(self) -> list[Tensor]:
        """Every tensor of the state, of all rows and columns."""
        return [self.joined(parts) for parts in zip(*self.states, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Float[Tensor, "i m ..."]:
        """One tensor of all rows and columns, from its part in every piece."""
        if len(parts) == 1:
            return parts[0]
        across = len({columns.start for _, columns in self._cuts})
        return torch.cat([torch.cat(list(parts[k : k + across]), 1) for k in range(0, len(parts), across)])


def _cuts(ends: Float[Tensor, "i *c b n"], width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of every piece: on a CPU as many as fit the cache, elsewhere all in one piece."""
    number = len(ends) * width if ends.is_cuda else max(1, CACHED // ends[0].numel())
    tall, wide = max(1, number // width), min(number, width)
    starts = itertools.product(range(0, len(ends), tall), range(0, width, wide))
    return [(slice(i, i + tall), slice(m, m + wide)) for i, m in starts]
