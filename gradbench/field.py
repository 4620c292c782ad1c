"""The field of one cell: everything an estimator may see of a system.

A `Field` binds a system to its parameters, data and knobs and offers the derivatives that gradient
rules are written in. States carry leading row axes that share theta: the end states of several T1,
several nudge strengths, both signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.autograd import grad

from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractSystem,
    Data,
    Knobs,
    Params,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


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

    @cached_property
    def context(self) -> Params:
        """What stays constant along a relaxation."""
        with torch.no_grad():
            return self.system.context(self.theta, self.x)

    def init_state(self) -> Float[Tensor, "b n"]:
        """s_0."""
        with torch.no_grad():
            return self.system.init_state(self.theta, self.x)

    def force(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """F(s)."""
        return self.system.force(self.theta, self.x, self.context, s, self.knobs)

    def swirl(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """The part of F that may be no gradient: all of it where the system declares no energy."""
        if isinstance(self.system, AbstractDrivenSystem):
            return self.system.swirl(self.theta, self.x, self.context, s, self.knobs)
        return self.force(s)

    def step(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """G(s) = Pi(s + eps F(s))."""
        return self.project(s + self.knobs.eps * self.force(s))

    def project(self, u: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi(u)."""
        return self.system.project(u)

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u)^T a."""
        return Linear(self.project, u).vjp(a) if self.system.projects else a

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u) v."""
        return Linear(self.project, u).jvp(v) if self.system.projects else v

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
        return self.system.energy(self.theta, self.x, self.context, s, self.knobs)

    def cost(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """C of each example."""
        return self.system.cost(self.theta, self.x, s)

    def cost_slope(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""
        with torch.enable_grad():
            at = s.detach().requires_grad_()
            return grad(self.cost(at).sum(), at)[0]

    def cost_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dC/dtheta at fixed s: what a cost with parameters adds to every estimate."""
        return self._grads(lambda theta, context: self.system.cost(theta, self.x, s))

    def energy_grads(self, s: Float[Tensor, "*r b n"]) -> Params:
        """dE/dtheta at fixed s."""
        system = self.system
        if not isinstance(system, AbstractEnergySystem):
            raise TypeError(f"{system.name} has no energy")
        return self._grads(lambda theta, context: system.energy(theta, self.x, context, s, self.knobs))

    def pull(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, F(s)>/dtheta at fixed s and a."""
        return self._grads(lambda theta, context: a * self.system.force(theta, self.x, context, s, self.knobs))

    def pull_at(self, s: Float[Tensor, "*r b n"]) -> Callable[[Tensor], Params]:
        """a -> d<a, F(s)>/dtheta from one recorded evaluation, for many credits at one state."""
        with torch.enable_grad():
            theta = _leaves(self.theta)
            force = self.system.force(theta, self.x, self.system.context(theta, self.x), s, self.knobs)
        return lambda a: _named(theta, grad(force, list(theta.values()), a, retain_graph=True, allow_unused=True))

    def _grads(self, scalar: Callable[[Params, Params], Tensor]) -> Params:
        with torch.enable_grad():
            theta = _leaves(self.theta)
            total = scalar(theta, self.system.context(theta, self.x)).sum()
            if not total.requires_grad:  # no parameter enters
                return {name: torch.zeros_like(p) for name, p in self.theta.items()}
            return _named(theta, grad(total, list(theta.values()), allow_unused=True))


def _leaves(theta: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in theta.items()}


def _named(theta: Params, grads: tuple[Tensor | None, ...]) -> Params:
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(theta.items(), grads, strict=True)}
