"""The field of one cell: everything an estimator may see of a system.

A `Field` binds a system to its parameters, data and knobs and offers the derivatives that gradient
rules are written in. States carry leading row axes that share theta: the end states of several T1,
several nudge strengths, both signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import grad

from gradbench.capture import Captured
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    AbstractSystem,
    Data,
    Knobs,
    Params,
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
        return grad(self._f, self._s, a, retain_graph=True)[0]

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v."""
        a, pulled = self._dual
        if not pulled.requires_grad:  # J^T a is constant in a: the map does not depend on s
            return torch.zeros_like(v)
        return grad(pulled, a, v, retain_graph=True)[0]

    def antisym(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """A v = 1/2 (J v - J^T v)."""
        return 0.5 * (self.jvp(v) - self.vjp(v))


@dataclass(frozen=True, eq=False)
class Field:
    """System, theta, data and knobs of a cell.

    Shapes: s, u, v, a are `(*r, b, n)`; gradients have the shapes of theta and are summed over every
    leading axis of what they are taken of.
    """

    system: AbstractSystem
    theta: Params
    x: Data
    knobs: Knobs

    def _lifted(self, function: Callable[..., Tensor], theta: Params, context: Params, s: Tensor) -> Tensor:
        return function(theta, self.x, context, s, self.knobs)

    def _context(self, theta: Params) -> Params:
        return self.system.context(theta, self.x)

    @cached_property
    def context(self) -> Params:
        """What stays constant along a relaxation."""
        with torch.no_grad():
            return self._context(self.theta)

    @property
    def step_size(self) -> Tensor:
        """eps, against states."""
        return self.knobs.eps

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """The same function, made for being called many times on tensors of these shapes.

        What it returns may be overwritten by the next call.
        """
        return function

    def frozen(self, at: Callable[[Tensor], Linear], s: Tensor) -> Callable[[], Linear]:
        """A linearisation at a fixed state, for use inside of a `repeated` function."""
        linear = at(s)
        return lambda: linear

    def init_state(self) -> Float[Tensor, "b n"]:
        """s_0."""
        with torch.no_grad():
            return self.system.init_state(self.theta, self.x)

    def force(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """F(s)."""
        return self._lifted(self.system.force, self.theta, self.context, s)

    def swirl(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """The part of F that may be no gradient: all of it where the system declares no energy."""
        if isinstance(self.system, AbstractDrivenSystem):
            return self._lifted(self.system.swirl, self.theta, self.context, s)
        return self.force(s)

    def step(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """G(s) = Pi(s + eps F(s))."""
        return self.project(s + self.step_size * self.force(s))

    def project(self, u: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi(u)."""
        return self.system.project(u)

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u)^T a."""
        return Linear(self.project, u).vjp(a) if self.system.projects else a

    def at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J of the force at s."""
        return Linear(self.force, s)

    def swirl_at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J of the swirl at s: it has the antisymmetric part of the whole Jacobian."""
        return Linear(self.swirl, s)

    def step_at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J_G of the step map at s."""
        return Linear(self.step, s)

    def energy(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """E of each example. Only conservative systems have one."""
        if not isinstance(self.system, AbstractEnergySystem):
            raise TypeError(f"{self.system.name} has no energy")
        return self._lifted(self.system.energy, self.theta, self.context, s)

    def cost(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """C of each example."""
        return self._lifted(self._cost, self.theta, self.context, s)

    def _cost(self, theta: Params, x: Data, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return self.system.cost(theta, x, s)

    def cost_slope(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""
        with torch.enable_grad():
            at = s.detach().requires_grad_()
            return grad(self.cost(at).sum(), at)[0]

    def cost_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dC/dtheta at fixed s: what a cost with parameters adds to every estimate."""
        return self._grads(lambda theta, context: self._lifted(self._cost, theta, context, s))

    def energy_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dE/dtheta at fixed s."""
        system = self.system
        if not isinstance(system, AbstractEnergySystem):
            raise TypeError(f"{system.name} has no energy")
        return self._grads(lambda theta, context: self._lifted(system.energy, theta, context, s))

    def errors(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Prediction errors e(s) of a forward system."""
        system = self._forward_system
        return self._lifted(lambda theta, x, context, s, _: system.errors(theta, x, context, s), *self._own, s)

    def forward(self, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        """All layers of a forward system, each moved by its offset."""
        system = self._forward_system
        return self._lifted(lambda theta, x, _, offset, __: system.forward(theta, x, offset), *self._own, offset)

    def equilibrium_grads(self, a: Float[Tensor, "b n"]) -> Params:
        """d<a, s*>/dtheta of a forward system, whose free state is a function of theta."""
        system = self._forward_system

        def response(theta: Params, x: Data, context: Params, a: Tensor, knobs: Knobs) -> Tensor:
            return a * system.equilibrium(theta, x)

        return self._grads(lambda theta, context: self._lifted(response, theta, context, a))

    @cached_property
    def layer_slopes(self) -> Float[Tensor, "b m"]:
        """dC/dh of every layer of a forward system, through all that lies above: what backpropagation carries."""
        sizes = [sum(map(math.prod, blocks.values())) for blocks in (self._forward_system.layers, self.system.layout)]
        s = self.init_state()
        with torch.enable_grad():
            offset = s.new_zeros((*s.shape[:-1], sizes[0]), requires_grad=True)
            return grad(self.cost(self.forward(offset)[..., -sizes[1] :]).sum(), offset)[0]

    @property
    def _own(self) -> tuple[Params, Params]:
        return self.theta, self.context

    @property
    def _forward_system(self) -> AbstractForwardSystem:
        if not isinstance(self.system, AbstractForwardSystem):
            raise TypeError(f"{self.system.name} is no forward pass")
        return self.system

    def pull(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, F(s)>/dtheta at fixed s and a."""
        return self._grads(lambda theta, context: a * self._lifted(self.system.force, theta, context, s))

    def pull_at(self, s: Float[Tensor, "*r b n"]) -> Callable[[Tensor], Params]:
        """a -> d<a, F(s)>/dtheta from one recorded evaluation, for many credits at one state."""
        with torch.enable_grad():
            theta = _leaves(self.theta)
            force = self._lifted(self.system.force, theta, self._context(theta), s)
        return lambda a: _named(theta, grad(force, list(theta.values()), a, retain_graph=True, allow_unused=True))

    def _grads(self, scalar: Callable[[Params, Params], Tensor]) -> Params:
        with torch.enable_grad():
            theta = _leaves(self.theta)
            total = scalar(theta, self._context(theta)).sum()
            if not total.requires_grad:  # no parameter enters
                return {name: torch.zeros_like(p) for name, p in self.theta.items()}
            return _named(theta, grad(total, list(theta.values()), allow_unused=True))


@dataclass(frozen=True, eq=False)
class Stack(Field):
    """Fields of one shape as one: theta, data and knobs carry a leading cell axis c.

    States are `(*r, c, b, n)` and gradients `(c, ...)`: what a rule does with the rows of one cell it does
    with the rows of all, and no cell sees another.
    """

    @classmethod
    def of(cls, fields: Sequence[Field]) -> Stack:
        """Stack fields whose systems differ in float options only. Raises ValueError for other systems."""
        systems = {f.system for f in fields}
        if len(systems) != 1:
            raise ValueError(f"a stack holds cells of one system, not {systems}")
        first = fields[0]
        theta = {n: torch.stack([f.theta[n] for f in fields]) for n in first.theta}
        x = {n: torch.stack([f.x[n] for f in fields]) for n in first.x}
        columns = zip(*(vars(f.knobs).values() for f in fields), strict=True)
        return cls(first.system, theta, x, Knobs(*(torch.stack(column) for column in columns)))

    def _lifted(self, function: Callable[..., Tensor], theta: Params, context: Params, s: Tensor) -> Tensor:
        """A function of (theta, x, context, s, knobs) of one cell, over all of them.

        The row axes go first under vmap, so that each cell sees the `(*r, b, n)` that its system is written for.
        """
        knobs = vars(self.knobs)

        def one(theta: Params, x: Data, context: Params, s: Tensor, knobs: dict[str, Tensor]) -> Tensor:
            return function(theta, x, context, s, Knobs(**knobs))

        rows = s.ndim - 3  # axes before the cells'
        return torch.func.vmap(one, in_dims=(0, 0, 0, rows, 0), out_dims=rows)(theta, self.x, context, s, knobs)

    def _context(self, theta: Params) -> Params:
        return torch.func.vmap(self.system.context)(theta, self.x)

    def init_state(self) -> Float[Tensor, "c b n"]:
        """s_0 of every cell."""
        with torch.no_grad():
            return torch.func.vmap(self.system.init_state)(self.theta, self.x)

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """On CUDA a recorded graph: launches, not arithmetic, are what a step of a stack costs."""
        return Captured(function, *examples) if examples[0].is_cuda else function

    def frozen(self, at: Callable[[Tensor], Linear], s: Tensor) -> Callable[[], Linear]:
        """On CUDA recorded anew in every call, since a graph cannot hold a backward pass of another."""
        return (lambda: at(s)) if s.is_cuda else super().frozen(at, s)

    @property
    def step_size(self) -> Float[Tensor, "c 1 1"]:
        """eps of every cell, against states."""
        return self.knobs.eps[:, None, None]


def _leaves(theta: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in theta.items()}


def _named(theta: Params, grads: tuple[Tensor | None, ...]) -> Params:
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(theta.items(), grads, strict=True)}
