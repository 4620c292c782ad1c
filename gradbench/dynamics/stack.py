"""A stack: fields of one shape run as a single field, and how its loops are executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradbench.dynamics.capture import Captured
from gradbench.dynamics.field import Field, Result, Step
from gradbench.dynamics.linear import Linear
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float

    from gradbench.systems.base import Saved


@dataclass(frozen=True, eq=False)
class Stack(Field):
    """Fields of one shape as a single field: theta, data and knobs carry a leading cell axis c.

    States are `(*r, c, b, n)` and gradients `(*r, c, ...)`. A rule does with the rows of all cells what it does with
    the rows of a single cell, and no cell sees another.
    """

    compiled: bool = False  # whether recorded loops are compiled first: seconds each, for a fifth less time

    @classmethod
    def of(cls, fields: Sequence[Field], *, compiled: bool = False) -> Stack:
        """Stack fields whose systems differ in float options only. Raises ValueError for other systems."""
        systems = {f.system for f in fields}
        if len(systems) != 1:
            raise ValueError(f"a stack holds cells of one system, not {systems}")
        first = fields[0]
        theta = {n: torch.stack([f.theta[n] for f in fields]) for n in first.theta}
        x = {n: torch.stack([f.x[n] for f in fields]) for n in first.x}
        columns = zip(*(f.knobs for f in fields), strict=True)
        return cls(first.system, theta, x, Knobs(*(torch.stack(column) for column in columns)), compiled)

    def _over(self, function: Callable[..., Result], *states: Tensor | Saved) -> Result:
        """function(theta, x, knobs, *states) of every cell, by vmap.

        A state goes in with its cell axis first, so that a product with the weights of a cell reads the rows of the
        cell in a run. Saved activations have their cell axis first already. Results have the rows of the states
        before the cell axis again.
        """
        rows = [s.ndim - 3 for s in states if isinstance(s, Tensor)]
        first = [s.movedim(-3, 0) if isinstance(s, Tensor) else s for s in states]
        out = max(rows, default=0)
        return torch.func.vmap(function, out_dims=out)(self.theta, self.x, self.knobs, *first)

    def activate(self, s: Float[Tensor, "*r c b n"]) -> Saved:
        """Activations with the cells in front: `(c, *r, b, ...)`."""
        rows = s.ndim - 3
        return {name: value.movedim(rows, 0) for name, value in super().activate(s).items()}

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """On CUDA a recorded graph, since launches, not arithmetic, are what a step of a stack costs."""
        return Captured(function, *examples, compiled=self.compiled) if examples[0].is_cuda else function

    def frozen(self, at: Callable[[Tensor], Linear], s: Tensor) -> Callable[[], Linear]:
        """On CUDA autograd linearises anew in every call: a graph cannot hold a backward pass of another stream."""
        return (lambda: at(s)) if s.is_cuda and not self.closed else super().frozen(at, s)

    @property
    def step_size(self) -> Float[Tensor, "c 1 1"]:
        """eps of every cell, shaped to multiply states."""
        return self.knobs.eps[:, None, None]


class Plain(Stack):
    """A stack whose loops are plain calls, for a caller that records all of them as one graph."""

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """The function itself."""
        return function

    frozen = Field.frozen
