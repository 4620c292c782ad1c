"""The plain form of every measurement: one cell at a time, a step at a time, in torch as one would write it down.

What the batched engine is timed against. No sharing, no recorded loops, no closed forms: forces are energy
gradients by autograd, Jacobian products come from torch.autograd.functional in every nudge step, and
backpropagation through time keeps the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.functional import jvp, vjp

from gradbench.diagnostics.metrics import Comparison, compare
from gradbench.dynamics.field import Field
from gradbench.planning.cells import Cell
from gradbench.systems.base import AbstractDrivenSystem, AbstractEnergySystem, Params


class Script:
    """One cell."""

    def __init__(self, field: Field) -> None:
        self.field, self.system = field, field.system
        self.context = field.context

    def force(self, s: Tensor, theta: Params | None = None, context: Params | None = None) -> Tensor:
        """-dE/ds plus the swirl, or F where there is no energy, with a graph where s or theta ask for one."""
        theta, context = theta or self.field.theta, context or self.context
        arguments = (theta, self.field.x, context, s, self.field.knobs)
        if not isinstance(self.system, AbstractEnergySystem | AbstractDrivenSystem):
            return self.system.force(*arguments)
        force = -grad(self.system.energy(*arguments).sum(), s, create_graph=True)[0]
        driven = isinstance(self.system, AbstractDrivenSystem)
        return force + self.system.swirl(*arguments) if driven else force

    def swirl(self, s: Tensor) -> Tensor:
        """The non-conservative part; the force where there is none."""
        if not isinstance(self.system, AbstractDrivenSystem):
            return self.force(s)
        return self.system.swirl(self.field.theta, self.field.x, self.context, s, self.field.knobs)

    def slope(self, s: Tensor) -> Tensor:
        """dC/ds."""
        s = s.detach().requires_grad_()
        return grad(self.system.cost(self.field.theta, self.field.x, s).sum(), s)[0]

    def relax(self, T: int) -> Tensor:
        """s*."""
        s = self.field.init_state()
        for _ in range(T):
            s = s.detach().requires_grad_()
            s = self.system.project(s + self.field.knobs.eps * self.force(s).detach()).detach()
        return s

    def bptt(self, T: int, last: int | None = None) -> Params:
        """Backpropagation through the last steps of T, by one graph."""
        theta = {n: p.detach().requires_grad_() for n, p in self.field.theta.items()}
        context = self.system.context(theta, self.field.x)
        s = (self.relax(T - last) if last else self.field.init_state()).requires_grad_()
        for _ in range(last or T):
            s = self.system.project(s + self.field.knobs.eps * self.force(s, theta, context))
        return self._named(
            theta, grad(self.system.cost(theta, self.field.x, s).sum(), list(theta.values()), allow_unused=True)
        )

    def nudged(self, start: Tensor, T2: int, b: float, asymmetric: bool) -> Tensor:
        """s <- Pi(s + eps (F(s) - b dC/ds - (J - J^T)(s - s*)))."""
        s = start
        for _ in range(T2):
            force = self.force(s.detach().requires_grad_()).detach() - b * self.slope(s)
            if asymmetric:
                v = s - start
                force = force - jvp(self.swirl, start, v)[1] + vjp(self.swirl, start, v)[1]
            s = self.system.project(s + self.field.knobs.eps * force).detach()
        return s

    def along(self, s: Tensor, a: Tensor) -> Params:
        """<a, dF/dtheta> + dC/dtheta at s."""
        theta = {n: p.detach().requires_grad_() for n, p in self.field.theta.items()}
        context = self.system.context(theta, self.field.x)
        force = self.force(s.detach().requires_grad_(), theta, context)
        cost = self.system.cost(theta, self.field.x, s.detach())
        return self._named(theta, grad((a * force).sum() + cost.sum(), list(theta.values()), allow_unused=True))

    def ep(self, T1: int, T2: int, beta: float, asymmetric: bool) -> Params:
        """Centred equilibrium propagation, naive or asymmetric."""
        s = self.relax(T1)
        plus, minus = (self.nudged(s, T2, b, asymmetric) for b in (beta, -beta))
        return self.along(s, (minus - plus) / (2 * beta))

    def adjoint(self, T1: int, terms: int) -> Params:
        """Neumann series of the adjoint at s*."""
        s, eps = self.relax(T1).requires_grad_(), self.field.knobs.eps
        u = (s + eps * self.force(s)).detach()
        a, total = self.slope(s), torch.zeros_like(s)
        for _ in range(terms):
            p = vjp(self.system.project, u, a)[1] if self.system.projects else a
            total = total + p
            a = p + eps * vjp(self.force, s, p)[1]
        return self.along(s, eps * total)

    def _named(self, theta: Params, grads: tuple[Tensor | None, ...]) -> Params:
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(theta.items(), grads, strict=True)}


def measure(cell: Cell, field: Field, live: float) -> Comparison:
    """A cell as a script measures it: its reference, its estimate, their cosines."""
    script = Script(field)
    assert cell.T1 is not None
    rules: dict[str, Callable[[], Params]] = {
        "bptt": lambda: script.bptt(cell.T1),
        "tbptt": lambda: script.bptt(cell.T1, cell.T2),
        "adjoint": lambda: script.adjoint(cell.T1, cell.T2),
        "ep": lambda: script.ep(cell.T1, cell.T2, cell.beta, asymmetric=False),
        "aep": lambda: script.ep(cell.T1, cell.T2, cell.beta, asymmetric=True),
    }
    return compare(rules[cell.estimator](), script.bptt(cell.T1), live)
