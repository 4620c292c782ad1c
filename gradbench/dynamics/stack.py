"""A stack: fields of one shape run as a single field, and how its loops are executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from gradbench.data import origins
from gradbench.dynamics.capture import agreeing
from gradbench.dynamics.field import Closed, Field, Result, Step
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.recordings import recorded
from gradbench.systems.base import FusedSteps, KernelInputs
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float

    from gradbench.systems.base import AbstractSystem, Advance, Params, Saved


@dataclass(frozen=True, eq=False)
class Stack(Field):
    """Fields of one shape as a single field: theta, data and knobs carry a leading cell axis c.

    States are `(*r, c, b, n)` and gradients `(*r, c, ...)`. A rule does with the rows of all cells what it does with
    the rows of a single cell, and no cell sees another.
    """

    compiled: bool = False  # whether recorded loops are compiled first: seconds each, for a fifth less time

    @classmethod
    def of(cls, fields: Sequence[Field], *, compiled: bool = False) -> Stack:
        """Stack fields whose systems differ in float options only. Raises ValueError for other systems or solvers."""
        systems, solvers = {f.system for f in fields}, {f.solver for f in fields}
        if len(systems) != 1 or len(solvers) != 1:
            raise ValueError(f"a stack holds cells of one system and one solver, not {systems} and {solvers}")
        first = fields[0]
        theta = {n: torch.stack([f.theta[n] for f in fields]) for n in first.theta}
        x = {n: torch.stack([f.x[n] for f in fields]) for n in first.x}
        columns = zip(*(f.knobs for f in fields), strict=True)
        knobs = Knobs(*(torch.stack(column) for column in columns))
        seeds = tuple(seed for f in fields for seed in f.seeds)
        if not first.system.lifted:
            cls = Looped if issubclass(cls, Plain) else TriedLooped
        return cls(first.system, theta, x, knobs, compiled, seeds=seeds, solver=first.solver)

    def cell(self, c: int) -> Field:
        """The field of cell `c`."""
        theta, x = ({n: v[c] for n, v in tensors.items()} for tensors in (self.theta, self.x))
        knobs = Knobs(*(knob[c] for knob in self.knobs))
        return Field(self.system, theta, x, knobs, seeds=self.seeds[c : c + 1], solver=self.solver)

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

    def repeated(self, function: Step, *examples: Tensor, few: bool = False) -> Step:
        """On CUDA a recorded graph, since launches, not arithmetic, are what a step of a stack costs.

        Only loops of systems with closed forms are compiled first: torch.compile traces no backward pass of others.
        """
        compiled = self.compiled and self.closed is not None
        if examples[0].is_cuda:
            return recorded(function, *examples, compiled=compiled, few=few)
        return super().repeated(function, *examples, few=few)

    def frozen(self, at: Callable[[Tensor], Result], s: Tensor) -> Callable[[], Result]:
        """On CUDA autograd linearises anew in every call: a graph cannot hold a backward pass of another stream."""
        return (lambda: at(s)) if s.is_cuda and not self.closed else super().frozen(at, s)

    @property
    def step_size(self) -> Float[Tensor, "c 1 1"]:
        """eps of every cell, shaped to multiply states."""
        return self.knobs.eps[:, None, None]


class Fused(Stack):
    """A stack with kernels of its system for its steps, free, nudged and back, and for J_G v (`FusedSteps`)."""

    @cached_property
    def kernels(self) -> FusedSteps | None:
        """The system, where its kernels apply: to float32, to its sizes, and to the force that the package gave it."""
        system = self.system
        return system if self.serves(system) and self.knobs.eps.dtype is torch.float32 else None

    @staticmethod
    def serves(system: AbstractSystem) -> TypeGuard[FusedSteps]:
        """Whether kernels apply to a system of float32: to its sizes, and to the force that the package gave it."""
        return isinstance(system, FusedSteps) and system.fused and origins.is_of_package(type(system))

    @cached_property
    def packed(self) -> Params:
        """theta in the form that the kernels read."""
        return self.kernels.packed(self.theta) if self.kernels else {}

    @property
    def _read(self) -> KernelInputs:
        return KernelInputs(self.packed, self.theta, self.x, self.context, self.knobs)

    def compile_kernels(self) -> None:
        """Compile the kernels that the stack launches. This takes seconds, unless a process has stored them before."""
        if self.kernels is not None:
            from gradbench.systems.kernels.programs import loaded

            loaded(self.kernels.program, self.knobs.eps.device)

    def step(self, s: Float[Tensor, "*r c b n"]) -> Float[Tensor, "*r c b n"]:
        """G(s) in one launch."""
        if self.kernels is None:
            return super().step(s)
        s = s.contiguous()
        out = torch.empty_like(s)
        self.kernels.fused_step(self._read, s, out, self.knobs.eps)()
        return out

    def prepared_step(self, s: Float[Tensor, "c b n"]) -> Advance:
        """G by a launch that is prepared once: it writes to where a state is stored, and nothing is copied."""
        kernels = self.kernels
        if kernels is None:
            return super().prepared_step(s)
        s = s.contiguous()
        return kernels.fused_step(self._read, s, s, self.knobs.eps)

    def energy(self, s: Float[Tensor, "*r c b n"]) -> Float[Tensor, "*r c b"]:
        """E of every example, in one launch where there is a kernel for it."""
        by_kernel = self.kernels.fused_energy(self._read, s) if self.kernels else None
        return super().energy(s) if by_kernel is None else by_kernel

    def nudged_step(
        self, start: Float[Tensor, "i c b n"], nudge: Float[Tensor, "m c"], eps: Tensor, *, asymmetric: bool
    ) -> Advance | None:
        """A nudged step in one launch, or in two with the correction."""
        kernels = self.kernels
        if kernels is None:
            return None
        inputs, eps = kernels.correction_inputs(self.activate(start)) if asymmetric else None, eps.flatten()

        def advance(s: Tensor, out: Tensor) -> None:
            bent = None if inputs is None else kernels.fused_bent(self._read, s, start, inputs)
            kernels.fused_step(self._read, s, out, eps, nudge, bent)()

        return advance

    def step_product(
        self, force: Linear, u: Float[Tensor, "*r c b n"]
    ) -> Callable[[Float[Tensor, "i c b n"]], Float[Tensor, "i c b n"]] | None:
        """J_G v in one launch, at the states of several T1."""
        kernels = self.kernels
        if kernels is None or u.ndim != 4 or not isinstance(force, Closed):
            return None
        with torch.no_grad():
            inputs = kernels.product_inputs(force.saved, u)
        return lambda v: kernels.fused_product(self._read, inputs, v)

    def pull_sums(self, like: Params) -> Params:
        """What kernels add up of the pulls."""
        first = next(iter(like.values()))
        return self.kernels.pull_sums(len(first), len(first[0]), first) if self.kernels else super().pull_sums(like)

    def add_back(self, states: Tensor, a: Float[Tensor, "i c b n"], summed: Tensor, sums: Params) -> None:
        """Go back through one state by kernels. Raises ValueError for a credit or a sum that they cannot write into."""
        if self.kernels:
            if not all(v.is_contiguous() for v in (a, summed, *sums.values())):
                raise ValueError("a kernel writes into a contiguous credit and into contiguous sums")
            self.kernels.fused_back(self._read, states[0], a, summed, sums)
        else:
            super().add_back(states, a, summed, sums)

    def pulled(self, summed: Float[Tensor, "i c b n"], sums: Params) -> Params:
        """The sum of the pulls, from what kernels added up."""
        return self.kernels.pulled(self._read, summed, sums) if self.kernels else super().pulled(summed, sums)


class Plain(Stack):
    """A stack whose loops are plain calls, for a caller that records all of them as one graph."""

    def repeated(self, function: Step, *examples: Tensor, few: bool = False) -> Step:
        """The function itself."""
        return function

    frozen = Field.frozen


class Looped(Plain):
    """A stack of a system whose functions no vmap may lift: the cells are taken one after the other."""

    @cached_property
    def _cells(self) -> list[Field]:
        return [self.cell(c) for c in range(len(self.knobs.eps))]

    @cached_property
    def context(self) -> Any:
        """What stays constant along a relaxation of every cell, by its number."""
        with torch.no_grad():
            by_cell = self._by_cell(lambda theta, x, knobs: self.system.context(theta, x))
        return {str(c): context for c, context in enumerate(by_cell)}

    def _by_cell(self, function: Callable[..., Result], *states: Tensor | Saved) -> list[Result]:
        return [
            function(f.theta, f.x, f.knobs, *(s.select(-3, c) if isinstance(s, Tensor) else s[str(c)] for s in states))
            for c, f in enumerate(self._cells)
        ]

    def _over(self, function: Callable[..., Result], *states: Tensor | Saved) -> Result:
        """function(theta, x, knobs, *states) of every cell. The cell axis of a result stands behind the rows."""
        rows = max((s.ndim - 3 for s in states if isinstance(s, Tensor)), default=0)
        joined: Result = _joined(self._by_cell(function, *states), rows)
        return joined

    def activate(self, s: Float[Tensor, "*r c b n"]) -> Saved:
        """The activations of every cell, by its number."""
        system = self.closed
        assert system is not None
        by_cell: Any = self._by_cell(
            lambda theta, x, knobs, k, s: system.activate(theta, x, k, s, knobs), self.context, s
        )
        return {str(c): saved for c, saved in enumerate(by_cell)}


class Tried(Field):
    """A field of a system made of code of a caller. Its loops are recorded on CUDA where a trial agrees.

    Where the step of the free phase cannot be recorded, nothing is. `loops` says of every loop whether it was recorded.
    """

    @cached_property
    def loops(self) -> list[bool]:
        """Whether each loop so far was recorded, in their order; empty on a CPU."""
        return []

    @property
    def recorded(self) -> float | None:
        """The share of loops that were recorded; None: none was tried."""
        return sum(self.loops) / len(self.loops) if self.loops else None

    def repeated(self, function: Step, *examples: Tensor, few: bool = False) -> Step:
        """On CUDA a recorded graph where a trial agrees with a plain call, else the function."""
        if few or not examples[0].is_cuda or self.loops[:1] == [False]:
            return function
        step = agreeing(function, *examples)
        self.loops.append(step is not None)
        return step or function

    def frozen(self, at: Callable[[Tensor], Result], s: Tensor) -> Callable[[], Result]:
        """Anew in every call where loops are recorded: a graph cannot hold a backward pass of another stream."""
        return (lambda: at(s)) if s.is_cuda and self.loops[:1] == [True] else Field.frozen(self, at, s)

    @property
    def together(self) -> int:
        """One step where loops are recorded, since a recording has arguments of one shape."""
        return 1 if self.loops[:1] == [True] else super().together

    @classmethod
    def over(cls, field: Field) -> Field:
        """The field with loops that are tried, where its system is made of code of a caller."""
        if field.system.lifted:
            return field
        return cls(field.system, field.theta, field.x, field.knobs, seeds=field.seeds, solver=field.solver)


class TriedLooped(Tried, Looped):
    """A stack of a system whose functions no vmap may lift, with loops that are tried."""


def _joined(results: Sequence[Any], rows: int) -> Any:
    """The results of all cells as one, with the cell axis behind the rows."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(list(results), rows)
    if isinstance(first, dict):
        return {name: _joined([result[name] for result in results], rows) for name in first}
    return tuple(_joined(parts, rows) for parts in zip(*results, strict=True))
