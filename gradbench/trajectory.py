"""The free phase and what all estimators share at its end states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gradbench.field import Field
from gradbench.systems.base import Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One free relaxation from s_0, read after T1 steps for every T1 asked for.

    The i-th row of everything below belongs to `T1s[i]`; T1s ascend.
    """

    field: Field
    states: Float[Tensor, "T+1 *c b n"]  # s_0 ... s_T
    T1s: tuple[int, ...]
    _views: dict[tuple[int, ...], Trajectory] = dataclasses.field(default_factory=dict)

    def at(self, T1s: tuple[int, ...]) -> Trajectory:
        """The same relaxation read at some of its T1."""
        if T1s == self.T1s:
            return self
        if T1s not in self._views:
            self._views[T1s] = Trajectory(self.field, self.states, T1s)
        return self._views[T1s]

    @cached_property
    def ends(self) -> Float[Tensor, "i *c b n"]:
        """s* of every T1."""
        return self.states[list(self.T1s)]

    @cached_property
    def cost_slope(self) -> Float[Tensor, "i *c b n"]:
        """g = dC/ds at s*."""
        return self.field.cost_slope(self.ends)

    @cached_property
    def cost_grads(self) -> list[Params]:
        """dC/dtheta at s*: added once to every estimate."""
        return [self.field.cost_grads(s) for s in self.ends]

    @cached_property
    def pulls(self) -> list[Callable[[Tensor], Params]]:
        """a -> d<a, F(s*)>/dtheta, recorded once for all depths, nudges and estimators."""
        return [self.field.pull_at(s) for s in self.ends]


def relax(field: Field, T1s: tuple[int, ...]) -> Trajectory:
    """Free relaxation s <- Pi(s + eps F(s)) to the largest T1, every state kept."""
    s = field.init_state()
    states = s.new_empty((max(T1s) + 1, *s.shape))
    states[0] = s
    with torch.no_grad():
        step = field.repeated(lambda s: (field.step(s),), s)
        for t in range(max(T1s)):
            (states[t + 1],) = step(states[t])
    return Trajectory(field, states, tuple(sorted(T1s)))
