"""The field of one cell: everything an estimator may see of a system.

A `Field` binds a system to its parameters, data and knobs and offers the derivatives that gradient
rules are written in. States carry leading row axes that share theta: the end states of several T1,
several nudge strengths, both signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from gradbench.data import origins
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.replay import LARGEST, Replayed
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    AbstractSystem,
    ClosedForms,
    Data,
    Params,
    RecordedSteps,
    Saved,
)
from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from jaxtyping import Float

    from gradbench.systems.base import Advance


TOGETHER = 8  # steps in one backward pass: of a small system 5 to 10 take about a third of the time of single ones
FEW = 12  # calls that take about as long as to record a function that serves once
Step = Callable[..., tuple[Tensor, ...]]
Result = TypeVar("Result")


class Closed(Linear):
    """The Jacobian of the force, or of the swirl, from the closed forms of a system.

    The activations at the state are taken once and serve every product. v and a may have more rows than the state.
    """

    def __init__(self, field: Field, s: Float[Tensor, "*r b n"], *, swirl: bool = False) -> None:
        system = field.closed
        assert system is not None
        self._field = field
        self._products = (system.swirl_jvp, system.swirl_vjp) if swirl else (system.jvp, system.vjp)
        self._antisym = system.swirl_antisym if swirl else None
        with torch.no_grad():
            self.saved = field.activate(s)

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v."""
        return self._field.product(self._products[0], self.saved, v)

    def vjp(self, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J^T a."""
        return self._field.product(self._products[1], self.saved, a)

    def antisym(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """A v."""
        return self._field.product(self._antisym, self.saved, v) if self._antisym else super().antisym(v)


class StepMap(Linear):
    """J_G = Pi'(u) (1 + eps J) at u = s + eps F(s), from J."""

    def __init__(self, field: Field, s: Float[Tensor, "*r b n"]) -> None:
        self._field, self._force = field, field.at(s)
        with torch.no_grad():
            self._u = field.ahead(s) if field.system.projects else s
        self._by_kernel = field.step_product(self._force, self._u)

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J_G v."""
        if self._by_kernel and v.shape == self._u.shape:
            return self._by_kernel(v)
        return self._field.project_jvp(self._u, torch.addcmul(v, self._field.step_size, self._force.jvp(v)))

    @property
    def product(self) -> Callable[[Float[Tensor, "*r b n"]], Float[Tensor, "*r b n"]]:
        """v -> J_G v for v of the shape of the state: the kernel alone, where there is one."""
        return self._by_kernel or self.jvp

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
    seeds: tuple[int, ...] = field(default=(), kw_only=True)  # of its cells, for rules that draw; made by hand: none
    solver: Solver = field(default=Solver.EULER, kw_only=True)  # of its free phase

    def _over(self, function: Callable[..., Result], *states: Tensor | Saved) -> Result:
        """function(theta, x, knobs, *states); `function` is written for one cell."""
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
    def packed(self) -> Params:
        """theta in the form that kernels of the system read; empty where none are used."""
        return {}

    @property
    def step_size(self) -> Tensor:
        """eps, shaped to multiply states."""
        return self.knobs.eps

    @cached_property
    def wide(self) -> Field:
        """This field in float64: its numbers, rounded as they are."""
        return self._converted(torch.Tensor.double)

    @cached_property
    def complex(self) -> Field:
        """This field over the complex numbers, for states off the real axis. Only where the system is not `real_only`.

        Closed forms give J v, J^T a and dC/ds there: products with the holomorphic derivative and its transpose,
        without a conjugate.
        """
        return self._converted(lambda v: v.to(v.dtype.to_complex()))

    def _converted(self, number: Callable[[Tensor], Tensor]) -> Field:
        """This field with other floating-point numbers; whole numbers stay."""

        def converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: number(v) if v.is_floating_point() else v for n, v in tensors.items()}

        knobs = Knobs(*map(number, self.knobs))
        return replace(self, theta=converted(self.theta), x=converted(self.x), knobs=knobs)

    @property
    def cell_seeds(self) -> tuple[int, ...]:
        """The seed of every cell; 0 where the field was made by hand."""
        return self.seeds or (0,) * self.knobs.eps.numel()

    def cell(self, c: int) -> Field:
        """The field of one cell of a stack; a field that is none is its only cell."""
        return self

    def repeated(self, function: Step, *examples: Tensor, few: bool = False) -> Step:
        """`function`, made ready for many calls on tensors of these shapes; with `few`, for at most `FEW` of them.

        The result of a call may be overwritten by the next call, and may be an argument of the next call. `function`
        may write into its arguments; whether the tensors of the caller then change is left open. Calls may be recorded,
        so besides its arguments `function` reads nothing that changes but the numbers of tensors that stay in place.
        """
        recordable = self.closed and self.system.lifted and origins.is_of_package(type(self.system))
        if few or not recordable or examples[0].is_cuda or sum(v.numel() for v in examples) > LARGEST:
            return function
        return Replayed(function)

    def frozen(self, at: Callable[[Tensor], Result], s: Tensor) -> Callable[[], Result]:
        """The linearisation `at` a state that stays the same, for use inside of a function given to `repeated`."""
        linear = at(s)
        return lambda: linear

    def init_state(self) -> Float[Tensor, "b n"]:
        """s_0."""
        with torch.no_grad():
            return self._over(lambda theta, x, knobs: self.system.init_state(theta, x))

    def _of_state(self, function: Callable[..., Tensor], s: Tensor) -> Tensor:
        """function(theta, x, context, s, knobs) at a state."""
        return self._over(lambda theta, x, knobs, c, s: function(theta, x, c, s, knobs), self.context, s)

    def force(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """F(s)."""
        return self._of_state(self.system.force, s)

    def swirl(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """The part of F that may be no gradient; the whole of F where the system has no swirl of that name."""
        if isinstance(self.system, AbstractDrivenSystem):
            return self._of_state(self.system.swirl, s)
        return self.force(s)

    def ahead(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """u = s + eps F(s), at which the projection of a step is taken and linearised."""
        return torch.addcmul(s, self.step_size, self.force(s))

    def step(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """G(s) = Pi(s + eps F(s))."""
        return self.project(self.ahead(s))

    def prepared_step(self, s: Float[Tensor, "*r b n"]) -> Advance:
        """G from a state of this shape into another tensor, made ready for many calls."""
        step = self.repeated(lambda s: (self.step(s),), s)

        def advance(s: Tensor, out: Tensor) -> None:
            out.copy_(step(s)[0])

        return advance

    def nudged_step(
        self, start: Float[Tensor, "i *c b n"], nudge: Float[Tensor, "m *c"], eps: Tensor, *, asymmetric: bool
    ) -> Advance | None:
        """Pi(s + eps (F(s) - nudge dC/ds - 2 A (s - s*))) by a kernel, A at s* = `start`; None where there is none.

        The states, of shape (i, m, *c, b, n), are contiguous.
        """
        return None

    def step_product(self, force: Linear, u: Float[Tensor, "*r b n"]) -> Callable[[Tensor], Tensor] | None:
        """J_G v by a kernel, for v of the shape of u, where `force` is J and u = s + eps F(s); None: there is none."""
        return None

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
        """J of the swirl at s. Its antisymmetric part is that of the J of the whole force."""
        return Closed(self, s, swirl=True) if self.closed else Linear(self.swirl, s)

    def step_at(self, s: Float[Tensor, "*r b n"]) -> Linear:
        """J_G of the step map at s."""
        return StepMap(self, s)

    def activate(self, s: Float[Tensor, "*r b n"]) -> Saved:
        """The activations at s that closed forms need. Only for systems with closed forms."""
        system = self.closed
        assert system is not None
        return self._over(lambda theta, x, knobs, c, s: system.activate(theta, x, c, s, knobs), self.context, s)

    def product(self, product: Callable[..., Tensor], saved: Saved, v: Float[Tensor, "*r b n"]) -> Tensor:
        """J v by a closed form (theta, context, saved, v, knobs) -> J v; `saved` are the activations at a state."""
        return self._over(
            lambda theta, x, knobs, c, saved, v: product(theta, c, saved, v, knobs), self.context, saved, v
        )

    def energy(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """E of each example. Only conservative systems have one."""
        if not isinstance(self.system, AbstractEnergySystem):
            raise TypeError(f"{self.system.name} has no energy")
        return self._of_state(self.system.energy, s)

    def cost(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """C of each example."""
        return self._over(lambda theta, x, knobs, s: self.system.cost(theta, x, s), s)

    def cost_slope(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""
        closed = self.closed
        if closed:
            return self._over(lambda theta, x, knobs, s: closed.cost_slope(theta, x, s), s)

        def slope(theta: Params, x: Data, knobs: Knobs, s: Tensor) -> Tensor:
            g: Tensor = torch.func.grad(lambda s: self.system.cost(theta, x, s).sum())(s)
            return g

        return self._over(slope, s)

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

    def prediction_grads(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, p>/dtheta at fixed s, with the predictions p = s - e(s) of a forward system."""
        system = self._forward_system
        return self._grads(
            lambda theta, x, knobs, s, a: -a * system.errors(theta, x, system.context(theta, x), s), s, a
        )

    def forward(self, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        """All layers of a forward system, each moved by its offset."""
        system = self._forward_system
        return self._over(lambda theta, x, knobs, offset: system.forward(theta, x, offset), offset)

    def equilibrium_grads(self, a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, s*>/dtheta of a forward system, whose free state is a function of theta."""
        system = self._forward_system
        return self._grads(lambda theta, x, knobs, a: a * system.equilibrium(theta, x), a)

    @cached_property
    def layer_slopes(self) -> Float[Tensor, "b m"]:
        """dC/dh of every layer of a forward system, through all layers above: what backpropagation carries."""
        system = self._forward_system
        m, n = (sum(map(math.prod, blocks.values())) for blocks in (system.layers, system.layout))

        def slope(theta: Params, x: Data, knobs: Knobs, offset: Tensor) -> Tensor:
            def moved(offset: Tensor) -> Tensor:
                return system.cost(theta, x, system.forward(theta, x, offset)[..., m - n :]).sum()

            g: Tensor = torch.func.grad(moved)(offset)
            return g

        s = self.init_state()
        return self._over(slope, s.new_zeros((*s.shape[:-1], m)))

    @property
    def has_way_back(self) -> bool:
        """Whether steps of the relaxation, or a forward pass, lead to the free state: a gradient can go back there."""
        return self.solver is Solver.EULER and not self.system.state_given

    @property
    def predicts(self) -> bool:
        """Whether the system has prediction errors: its free state is a forward pass."""
        return isinstance(self.system, AbstractForwardSystem)

    @property
    def _forward_system(self) -> AbstractForwardSystem:
        if not isinstance(self.system, AbstractForwardSystem):
            raise TypeError(f"{self.system.name} is no forward pass")
        return self.system

    def pull(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, F(s)>/dtheta at fixed s and a."""
        closed = self.closed
        if closed:
            return self._by_credit(closed.pull, s, a)
        force, context = self.system.force, self.system.context
        return self._grads(lambda theta, x, knobs, s, a: a * force(theta, x, context(theta, x), s, knobs), s, a)

    def backward(self, s: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> tuple[Tensor, Params]:
        """J(s)^T a and the pull of a: one step of a reverse sweep."""
        closed = self.closed
        if closed:
            return self._by_credit(closed.backward, s, a)
        return self.at(s.expand_as(a)).vjp(a), self.pull(s, a)

    @property
    def together(self) -> int:
        """How many steps of a reverse sweep one pass takes: several, of a system that records them together."""
        return TOGETHER if isinstance(self.system, RecordedSteps) else 1

    def back(self, states: Float[Tensor, "t *c b n"], a: Float[Tensor, "*r *c b n"]) -> tuple[Tensor, Tensor, Params]:
        """Go back through at most `together` successive states, as `RecordedSteps.back` says."""
        system = self.system
        if isinstance(system, RecordedSteps):
            return self._over(lambda theta, x, knobs, s, a: system.back(theta, x, s, a, knobs), states, a)
        (s,) = states
        with torch.no_grad():
            u = self.ahead(s) if system.projects else s
        p = self.project_vjp(u, a)
        Jp, pulled = self.backward(s, p)
        return torch.addcmul(p, self.step_size, Jp), p, pulled

    def pull_sums(self, like: Params) -> Params:
        """Zeros for what `add_back` adds up of the pulls of a credit whose gradients have the shapes of `like`."""
        return {name: torch.zeros_like(g) for name, g in like.items()}

    def add_back(
        self, states: Float[Tensor, "t *c b n"], a: Float[Tensor, "*r *c b n"], summed: Tensor, sums: Params
    ) -> None:
        """Go back through at most `together` states, in place: a, the sum of p, and the sums of the pulls of p."""
        before, moved, pulled = self.back(states, a)
        summed += moved
        for name, total in sums.items():
            total += pulled[name]
        a.copy_(before)

    def pulled(self, summed: Float[Tensor, "*r *c b n"], sums: Params) -> Params:
        """The sum of the pulls, by parameter, from what `add_back` added up."""
        return sums

    def _by_credit(self, function: Callable[..., Result], s: Tensor, a: Tensor) -> Result:
        """function(theta, x, context, saved, a, knobs), a closed form, with the activations at s as `saved`."""
        with torch.no_grad():
            return self._over(
                lambda theta, x, knobs, c, saved, a: function(theta, x, c, saved, a, knobs),
                self.context,
                self.activate(s),
                a,
            )

    def _grads(self, scalar: Callable[..., Tensor], *states: Tensor) -> Params:
        """Gradient over theta of the sum of `scalar`, for every row of the states by itself."""

        def by_row(theta: Params, x: Data, knobs: Knobs, *states: Tensor) -> Params:
            return self.system.by_row(lambda theta, *row: scalar(theta, x, knobs, *row), theta, *states)

        return self._over(by_row, *torch.broadcast_tensors(*states))
