"""The field of one cell: everything an estimator may see of a system.

A `Field` binds a system to its parameters, data and knobs and offers the derivatives that gradient
rules are written in. States carry leading row axes that share theta: the end states of several T1,
several nudge strengths, both signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import grad

from gradbench.capture import Captured
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    AbstractSystem,
    ClosedForms,
    Data,
    Knobs,
    Params,
    Saved,
)

if TYPE_CHECKING:
    from jaxtyping import Float


Step = Callable[..., tuple[Tensor, ...]]


class Linear:
    """The Jacobian J of a map at a state, from one recorded evaluation.

    J v is taken by reverse mode twice, so that one recording serves both products:
    v -> J v is the gradient of a -> <J^T a, v>, which is linear in a.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], s: Float[Tensor, "*r b n"]) -> None:
        with torch.enable_grad():
            self._s = s.detach().clone().requires_grad_()
            self._f = function(self._s)

    @cached_property
    def _dual(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            a = torch.zeros_like(self._f, requires_grad=True)
            (pulled,) = grad(self._f, self._s, a, create_graph=True)
        return a, pulled

    def vjp(self, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J^T a."""
        return grad(self._f, self._s, a.expand_as(self._f), retain_graph=True)[0]

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v."""
        a, pulled = self._dual
        if not pulled.requires_grad:  # J^T a is constant in a: the map does not depend on s
            return torch.zeros_like(v)
        return grad(pulled, a, v.expand_as(pulled), retain_graph=True)[0]

    def antisym(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """A v = 1/2 (J v - J^T v)."""
        return 0.5 * (self.jvp(v) - self.vjp(v))


class Closed(Linear):
    """The same from a system's closed forms: activations at a state, kept for every product.

    v and a may have more rows than the state.
    """

    def __init__(self, field: Field, s: Float[Tensor, "*r b n"], *, swirl: bool = False) -> None:
        system = field.closed
        assert system is not None
        self._field = field
        self._products = (system.swirl_jvp, system.swirl_vjp) if swirl else (system.jvp, system.vjp)
        self._antisym = system.swirl_antisym if swirl else None
        with torch.no_grad():
            self._saved = field.activate(s)

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v."""
        return self._field.product(self._products[0], self._saved, v)

    def vjp(self, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J^T a."""
        return self._field.product(self._products[1], self._saved, a)

    def antisym(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """A v."""
        return self._field.product(self._antisym, self._saved, v) if self._antisym else super().antisym(v)


class StepMap(Linear):
    """J_G = Pi'(u) (1 + eps J) at u = s + eps F(s), from J."""

    def __init__(self, field: Field, s: Float[Tensor, "*r b n"]) -> None:
        self._field, self._force = field, field.at(s)
        with torch.no_grad():
            self._u = torch.addcmul(s, field.step_size, field.force(s)) if field.system.projects else s

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J_G v."""
        return self._field.project_jvp(self._u, torch.addcmul(v, self._field.step_size, self._force.jvp(v)))

    def vjp(self, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J_G^T a."""
        p = self._field.project_vjp(self._u, a)
        return torch.addcmul(p, self._field.step_size, self._force.vjp(p))


@dataclass(frozen=True, eq=False)
class Field:
    """System, theta, data and knobs of a cell.

    Shapes: s, u, v, a are `(*r, b, n)`; gradients are summed over the examples and keep the rows: `(*r, ...)`.
    """

    system: AbstractSystem
    theta: Params
    x: Data
    knobs: Knobs

    def _over(self, function: Callable[..., Any], *states: Tensor | Saved) -> Any:
        """function(theta, x, knobs, *states), which is written for one cell."""
        return function(self.theta, self.x, self.knobs, *states)

    @property
    def closed(self) -> ClosedForms | None:
        """The system, where it has its derivatives in closed form."""
        return self.system if isinstance(self.system, ClosedForms) else None

    @cached_property
    def context(self) -> Params:
        """What stays constant along a relaxation."""
        with torch.no_grad():
            return self._over(lambda theta, x, knobs: self.system.context(theta, x))

    @property
    def step_size(self) -> Tensor:
        """eps, against states."""
        return self.knobs.eps

    @cached_property
    def wide(self) -> Field:
        """The same field in float64: the same numbers, whatever they were rounded to."""

        def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: v.double() if v.is_floating_point() else v for n, v in tensors.items()}

        knobs = Knobs(*(k.double() for k in self.knobs))
        return replace(self, theta=double(self.theta), x=double(self.x), knobs=knobs)

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """The same function, made for being called many times on tensors of these shapes.

        What it returns may be overwritten by the next call, and may be given to it again. A function may write
        into its arguments; whether the caller's are then written to is left open.
        """
        return function

    def frozen(self, at: Callable[[Tensor], Linear], s: Tensor) -> Callable[[], Linear]:
        """A linearisation at a fixed state, for use inside of a `repeated` function."""
        linear = at(s)
        return lambda: linear

    def init_state(self) -> Float[Tensor, "b n"]:
        """s_0."""
        with torch.no_grad():
            s: Tensor = self._over(lambda theta, x, knobs: self.system.init_state(theta, x))
            return s

    def _of_state(self, function: Callable[..., Tensor], s: Tensor) -> Tensor:
        """function(theta, x, context, s, knobs) at a state."""
        value: Tensor = self._over(lambda theta, x, knobs, c, s: function(theta, x, c, s, knobs), self.context, s)
        return value

    def force(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """F(s)."""
        return self._of_state(self.system.force, s)

    def swirl(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """The part of F that may be no gradient: all of it where the system declares no energy."""
        if isinstance(self.system, AbstractDrivenSystem):
            return self._of_state(self.system.swirl, s)
        return self.force(s)

    def step(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """G(s) = Pi(s + eps F(s))."""
        return self.project(torch.addcmul(s, self.step_size, self.force(s)))

    def project(self, u: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi(u)."""
        return self.system.project(u)

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u) v."""
        return self.system.project_jvp(*torch.broadcast_tensors(u, v)) if self.system.projects else v

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u)^T a."""
        return self.system.project_vjp(*torch.broadcast_tensors(u, a)) if self.system.projects else a

    def at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J of the force at s."""
        return Closed(self, s) if self.closed else Linear(self.force, s)

    def swirl_at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J of the swirl at s: it has the antisymmetric part of the whole Jacobian."""
        return Closed(self, s, swirl=True) if self.closed else Linear(self.swirl, s)

    def step_at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J_G of the step map at s."""
        return StepMap(self, s)

    def activate(self, s: Float[Tensor, "*r b n"]) -> Saved:
        """What closed forms need of a state. Only systems that have them."""
        system = self.closed
        assert system is not None
        saved: Saved = self._over(lambda theta, x, knobs, c, s: system.activate(theta, x, c, s, knobs), self.context, s)
        return saved

    def product(self, product: Callable[..., Tensor], saved: Saved, v: Float[Tensor, "*r b n"]) -> Tensor:
        """A closed form (theta, context, saved, v, knobs) -> J v."""
        Jv: Tensor = self._over(
            lambda theta, x, knobs, c, saved, v: product(theta, c, saved, v, knobs), self.context, saved, v
        )
        return Jv

    def energy(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """E of each example. Only conservative systems have one."""
        if not isinstance(self.system, AbstractEnergySystem):
            raise TypeError(f"{self.system.name} has no energy")
        return self._of_state(self.system.energy, s)

    def cost(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """C of each example."""
        value: Tensor = self._over(lambda theta, x, knobs, s: self.system.cost(theta, x, s), s)
        return value

    def cost_slope(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""
        closed = self.closed
        if closed:
            g: Tensor = self._over(lambda theta, x, knobs, s: closed.cost_slope(theta, x, s), s)
            return g

        def slope(theta: Params, x: Data, knobs: Knobs, s: Tensor) -> Tensor:
            g: Tensor = torch.func.grad(lambda s: self.system.cost(theta, x, s).sum())(s)
            return g

        value: Tensor = self._over(slope, s)
        return value

    def cost_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dC/dtheta at fixed s: what a cost with parameters adds to every estimate."""
        return self._grads(lambda theta, x, knobs, s: self.system.cost(theta, x, s), s)

    def energy_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dE/dtheta at fixed s."""
        system = self.system
        if not isinstance(system, AbstractEnergySystem):
            raise TypeError(f"{system.name} has no energy")
        return self._grads(lambda theta, x, knobs, s: system.energy(theta, x, system.context(theta, x), s, knobs), s)

    def errors(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Prediction errors e(s) of a forward system."""
        system = self._forward_system
        return self._of_state(lambda theta, x, context, s, knobs: system.errors(theta, x, context, s), s)

    def forward(self, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        """All layers of a forward system, each moved by its offset."""
        system = self._forward_system
        layers: Tensor = self._over(lambda theta, x, knobs, offset: system.forward(theta, x, offset), offset)
        return layers

    def equilibrium_grads(self, a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, s*>/dtheta of a forward system, whose free state is a function of theta."""
        system = self._forward_system
        return self._grads(lambda theta, x, knobs, a: a * system.equilibrium(theta, x), a)

    @cached_property
    def layer_slopes(self) -> Float[Tensor, "b m"]:
        """dC/dh of every layer of a forward system, through all that lies above: what backpropagation carries."""
        system = self._forward_system
        m, n = (sum(map(math.prod, blocks.values())) for blocks in (system.layers, system.layout))

        def slope(theta: Params, x: Data, knobs: Knobs, offset: Tensor) -> Tensor:
            def moved(offset: Tensor) -> Tensor:
                return system.cost(theta, x, system.forward(theta, x, offset)[..., m - n :]).sum()

            g: Tensor = torch.func.grad(moved)(offset)
            return g

        s = self.init_state()
        value: Tensor = self._over(slope, s.new_zeros((*s.shape[:-1], m)))
        return value

    @property
    def _forward_system(self) -> AbstractForwardSystem:
        if not isinstance(self.system, AbstractForwardSystem):
            raise TypeError(f"{self.system.name} is no forward pass")
        return self.system

    def pull(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, F(s)>/dtheta at fixed s and a."""
        closed = self.closed
        if closed:
            pulled: Params = self._by_credit(closed.pull, s, a)
            return pulled
        force, context = self.system.force, self.system.context
        return self._grads(lambda theta, x, knobs, s, a: a * force(theta, x, context(theta, x), s, knobs), s, a)

    def backward(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> tuple[Tensor, Params]:
        """J(s)^T a and the pull of a: one step of a reverse sweep."""
        closed = self.closed
        if closed:
            both: tuple[Tensor, Params] = self._by_credit(closed.backward, s, a)
            return both
        return self.at(s.expand_as(a)).vjp(a), self.pull(s, a)

    def _by_credit(self, function: Callable[..., Any], s: Tensor, a: Tensor) -> Any:
        """A closed form (theta, x, context, saved, a, knobs) with the activations at s."""
        with torch.no_grad():
            return self._over(
                lambda theta, x, knobs, c, saved, a: function(theta, x, c, saved, a, knobs),
                self.context,
                self.activate(s),
                a,
            )

    def _grads(self, scalar: Callable[..., Tensor], *states: Tensor) -> Params:
        """Gradient of a sum over theta, by row: states of one row share it with nobody."""

        def by_row(theta: Params, x: Data, knobs: Knobs, *states: Tensor) -> Params:
            rows = torch.func.grad(lambda theta, *row: scalar(theta, x, knobs, *row).sum())
            for _ in states[0].shape[:-2]:
                rows = torch.func.vmap(rows, in_dims=(None, *[0] * len(states)))
            grads: Params = rows(theta, *states)
            return grads

        grads: Params = self._over(by_row, *torch.broadcast_tensors(*states))
        return grads


@dataclass(frozen=True, eq=False)
class Stack(Field):
    """Fields of one shape as one: theta, data and knobs carry a leading cell axis c.

    States are `(*r, c, b, n)` and gradients `(*r, c, ...)`: what a rule does with the rows of one cell it does
    with the rows of all, and no cell sees another.
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

    def _over(self, function: Callable[..., Any], *states: Tensor | Saved) -> Any:
        """The same by vmap over the cells.

        A state goes in with its cells first, so that a product with their weights reads each one's rows in a run;
        what was saved at a state stays so. What comes out of a state has its rows before its cells again.
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
        """On CUDA a recorded graph: launches, not arithmetic, are what a step of a stack costs."""
        return Captured(function, *examples, compiled=self.compiled) if examples[0].is_cuda else function

    def frozen(self, at: Callable[[Tensor], Linear], s: Tensor) -> Callable[[], Linear]:
        """On CUDA autograd records anew in every call: a graph cannot hold a backward pass of another stream."""
        return (lambda: at(s)) if s.is_cuda and not self.closed else super().frozen(at, s)

    @property
    def step_size(self) -> Float[Tensor, "c 1 1"]:
        """eps of every cell, against states."""
        return self.knobs.eps[:, None, None]
