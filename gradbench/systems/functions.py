"""Systems made from functions of a module, data and a state, as `gradbench.system` makes them.

A function is called with the shapes that its author wrote it for: rows of a nudged batch are folded into the example
axis. Derivatives are plain backward passes of a recorded evaluation, so that any code that autograd can differentiate
twice may stand in a function.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from gradbench.errors import SystemFaultError, UserError, near_miss
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractSystem,
    ClosedForms,
    Data,
    Params,
    RecordedSteps,
    Saved,
)
from gradbench.systems.shapes import joint_shape
from gradbench.vocabulary.coordinates import COORDINATES, Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams
    from gradbench.systems.forms import Form
    from gradbench.systems.modules import AbstractSlots

Function = Callable[..., Any]  # f(net, x, z) or f(net, x, z, k)
DYNAMICS = ("step", "force", "energy", "swirl")  # functions that say how a state moves
HINTS = {  # what to do, by the name of an exception or a word of its message
    "must match the": "; take data from x and sizes from z: functions are called with other numbers of examples, too",
    "CheckpointError": "; activation checkpointing calls the module again later, with other parameters: switch it off",
    "inplace operation": "; write to a copy, as z.clone(), and not to what autograd still needs",
    "should be the same": "; take data from x and parameters from net: functions are called in float64, too",
    "dtype": "; functions are called in float64, too: make new tensors in the dtype of z, as torch.zeros_like(z) does",
}
SHARED_KNOBS = ("s", "damp")  # knobs that are coordinates of the built-in systems


class Folded(threading.local):
    """The data of the last call of a thread, repeated. In another process it begins empty."""

    held: tuple[object, list[Tensor], Data] | None = None  # what the data are for, the data, and the data repeated

    def __reduce__(self) -> tuple[type[Folded], tuple[()]]:
        return Folded, ()


@dataclass(frozen=True, eq=False)
class Definition:
    """What a call of `gradbench.system` handed over: functions, and copies of parameters and data."""

    name: str
    functions: Mapping[str, Function]  # by argument: step, force, energy, swirl, cost, state, state_at, project
    slots: AbstractSlots  # where the parameters stand in the first argument of the functions
    theta: Params
    data: Data
    shared: frozenset[str]  # data without an example axis
    form: Form
    cost_of: str | None  # "sum" or "mean": `cost` is a scalar of its examples; None: it gives a number for each
    with_knobs: frozenset[str]  # functions that take the knobs
    free_state: Tensor | None = None  # one that was given as a value, (B, n); None: a function makes it, or s_0
    folded: Folded = field(default_factory=Folded)
    knobs_read: set[str] = field(default_factory=set)  # knobs that a function has asked for

    @property
    def batch(self) -> int:
        """The number of examples of the data."""
        return next(len(v) for name, v in self.data.items() if name not in self.shared)

    @property
    def start(self) -> str:
        """The argument that the state comes from at which a measurement begins."""
        return "state" if "state" in self.functions else "state_at"


class KnobValues:
    """The knobs that a function gets: each is an attribute."""

    def __init__(self, values: Mapping[str, Any], read: set[str]) -> None:
        self._values, self._read = values, read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"there is no knob {name!r}{near_miss(name, self._values)}")
        self._read.add(name)
        return self._values[name]


class Recording(Saved):
    """Evaluations at one state, recorded when a product asks for them.

    A recording over all rows serves the Jacobian. For gradients of parameters every row is recorded by itself, since
    all rows of a recording share the parameters.
    """

    def __init__(self, system: AbstractFunctionSystem, theta: Params, x: Data, s: Tensor, knobs: Knobs) -> None:
        super().__init__(s=s)
        self._system, self._theta, self._x, self._knobs = system, theta, x, knobs
        self._wide: dict[tuple[str, tuple[int, ...]], tuple[Tensor, Tensor, list[Tensor]]] = {}
        self._rows: dict[int, tuple[Tensor, Tensor, Params]] = {}

    def vjp(self, what: str, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J^T a of the force or of the swirl."""
        s, f, _ = self._over(what, a)
        return self._graded(f, [s], a)[0]

    def jvp(self, what: str, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v, by reverse mode twice: v -> J v is the gradient of a -> <J^T a, v>."""
        import torch

        s, f, dual = self._over(what, v)
        if not dual:
            with torch.enable_grad():
                a = torch.zeros_like(f, requires_grad=True)
                dual.extend((a, self._graded(f, [s], a, create=True)[0]))
        a, pulled = dual
        return self._graded(pulled, [a], v.expand_as(pulled))[0]

    def backward(self, a: Float[Tensor, "*r b n"]) -> tuple[Tensor, Params]:
        """J^T a of the force, and d<a, F>/dtheta of every row."""
        import torch

        base = self["s"]
        shape = joint_shape(a.shape, base.shape)
        states, credits = base.reshape(-1, *base.shape[-2:]), a.expand(shape).reshape(-1, *shape[-2:])
        # which state a credit belongs to: rows align as in any broadcast, also where a state has an axis of 1
        places = torch.arange(len(states)).reshape(base.shape[:-2]).expand(shape[:-2]).flatten()
        back = torch.empty_like(credits)
        grads = {n: p.new_empty((len(credits), *p.shape)) for n, p in self._theta.items()}
        for k, (i, credit) in enumerate(zip(places.tolist(), credits, strict=True)):
            s, f, leaves = self._row(i, states[i])
            back[k], *of_theta = self._graded(f, [s, *leaves.values()], credit)
            for name, g in zip(leaves, of_theta, strict=True):
                grads[name][k] = g
        rows = shape[:-2]
        return back.reshape(shape), {n: g.reshape(*rows, *g.shape[1:]) for n, g in grads.items()}

    def _over(self, what: str, like: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """s and F(s), recorded over all rows of `like`, and what `jvp` keeps beside them."""
        import torch

        shape = joint_shape(like.shape, self["s"].shape)
        if (what, shape) not in self._wide:
            with torch.enable_grad():
                s = self["s"].detach().expand(shape).clone().requires_grad_()
                function = self._system.force if what == "force" else self._system.swirl_force
                f = function(self._theta, self._x, {}, s, self._knobs)
            self._wide[what, shape] = s, f, []
        return self._wide[what, shape]

    def _row(self, i: int, state: Tensor) -> tuple[Tensor, Tensor, Params]:
        """s, F(s) and the parameters as leaves, recorded for one row."""
        import torch

        if i not in self._rows:
            with torch.enable_grad():
                s = state.detach().clone().requires_grad_()
                leaves = _leaves(self._theta)
                f = self._system.force(leaves, self._x, {}, s, self._knobs)
            self._rows[i] = s, f, leaves
        return self._rows[i]

    def _graded(self, f: Tensor, of: list[Tensor], a: Tensor, *, create: bool = False) -> list[Tensor]:
        return self._system.graded("force", f, of, a.expand_as(f), retain=True, create=create)


class AbstractFunctionSystem(ClosedForms, RecordedSteps, AbstractSystem):
    """A system made from functions. Its options are the digest of what was handed over, and a float for every knob."""

    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    source: ClassVar[str] = "functions of the caller"
    lifted: ClassVar[bool] = False

    digest: str

    @classmethod
    @abstractmethod
    def definition(cls) -> Definition:
        """What was handed over."""

    def __repr__(self) -> str:
        made = self.definition()
        n, p = (sum(map(math.prod, shapes.values())) for shapes in (self.layout, self.shapes))
        return (
            f"{self.name}: {n} coordinates, {p:,} parameters, {made.batch} examples, "
            f"from {', '.join(dict.fromkeys((*made.functions, made.start)))}"
        )

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return self.definition().form.layout

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.definition().theta.items()}

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        made = self.definition()
        return {name: tuple(v.shape) if name in made.shared else (batch, *v.shape[1:]) for name, v in made.data.items()}

    @property
    def held(self) -> int:
        return self.definition().batch

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        return {}

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        made = self.definition()
        if batch > made.batch and set(made.data) - made.shared - set(given):
            raise UserError(f"batch = {batch}: the data of {self.name!r} have {made.batch} examples")
        if made.free_state is not None and batch != made.batch and (set(made.data) - made.shared) & set(given):
            raise UserError(
                f"data: got {batch} examples, and state_at of {self.name!r} is the free state of {made.batch}; "
                f"give it as a function of the data, state_at(net, x)"
            )

    def init_params(self, rng: Generator) -> Params:
        return {name: p.double() for name, p in self.definition().theta.items()}

    def sample(self, streams: Streams, batch: int) -> Data:
        made = self.definition()
        first = {name: v if name in made.shared else v[:batch] for name, v in made.data.items()}
        return {name: v.double() if v.is_floating_point() else v for name, v in first.items()}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        like = next(iter(theta.values()))
        made = self.definition()
        batch = next(len(v) for name, v in x.items() if name not in made.shared)
        if made.free_state is not None:
            return made.free_state[:batch].to(like)
        with self._calling(made.start, theta, like) as net:
            z = made.functions[made.start](net, _typed(x, like))
        return made.form.flat(z, (batch,), f"{self.name}: {made.start}", like.dtype).detach().to(like.device)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        made = self.definition()
        if "step" in made.functions:
            return self._moved("step", theta, x, s, knobs) - s
        return self._moved("force", theta, x, s, knobs)

    def swirl_force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """The part of the force that may be no gradient: all of it, unless an energy is given beside a swirl."""
        return self.force(theta, x, context, s, knobs)

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        made = self.definition()
        if made.cost_of is None:
            return self._number("cost", theta, x, s, None)
        rows, b = s.shape[:-2], s.shape[-2]
        over = 1 if made.cost_of == "sum" else b
        costs = []
        for row in s.reshape(-1, *s.shape[-2:]):
            for i in range(b):
                one = {name: v if name in made.shared else v[i : i + 1] for name, v in x.items()}
                costs.append(self._number("cost", theta, one, row[i : i + 1], None, scalar=True) / over)
        import torch

        return torch.stack(costs).reshape(*rows, b)

    def project(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        made = self.definition()
        if "project" not in made.functions:
            return s
        flat = s.reshape(-1, s.shape[-1])
        with self._calling("project", {}, s):
            z = made.functions["project"](made.form.shown(flat))
        return made.form.flat(z, flat.shape[:1], f"{self.name}: project").reshape(s.shape)

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        u, projected = self._projected(u)
        return self.graded("project", projected, [u], a.expand_as(projected))[0]

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        import torch

        u, projected = self._projected(u)
        with torch.enable_grad():
            a = torch.zeros_like(projected, requires_grad=True)
            (pulled,) = self.graded("project", projected, [u], a, create=True)
        return self.graded("project", pulled, [a], v.expand_as(pulled))[0]

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.enable_grad():
            u = u.detach().clone().requires_grad_()
            return u, self.project(u)

    @property
    def projects(self) -> bool:
        return "project" in self.definition().functions

    def shown(self, s: Float[Tensor, "*r b n"]) -> Any:
        return self.definition().form.shown(s)

    def flat(self, z: Any) -> Float[Tensor, "*r b n"]:
        return self.definition().form.flat(z, None, f"{self.name}: a state")

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        return Recording(self, theta, x, s, knobs)

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return _recorded(saved).jvp("force", v)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return _recorded(saved).vjp("force", a)

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return _recorded(saved).jvp("swirl", v)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return _recorded(saved).vjp("swirl", a)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        return _recorded(saved).backward(a)[1]

    def backward(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Params]:
        return _recorded(saved).backward(a)

    def back(
        self, theta: Params, x: Data, states: Float[Tensor, "t b n"], a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Tensor, Params]:
        import torch

        with torch.enable_grad():
            s = first = states[0].detach().clone().requires_grad_()
            leaves = _leaves(theta)
            moved: list[Tensor] = []
            for _ in states:
                moved.append(torch.addcmul(s, knobs.eps, self.force(leaves, x, {}, s, knobs)))
                s = self.project(moved[-1])
        of, rows = [first, *moved, *leaves.values()], a.reshape(-1, *a.shape[-2:])
        passes = [self.graded("force", s, of, credit, retain=i + 1 < len(rows)) for i, credit in enumerate(rows)]
        before, *by_part = (
            torch.stack(parts).reshape(*a.shape[:-2], *parts[0].shape) for parts in zip(*passes, strict=True)
        )
        of_theta = zip(leaves, by_part[len(moved) :], strict=True)
        return before, torch.stack(by_part[: len(moved)]).sum(0), {name: g / knobs.eps for name, g in of_theta}

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self._slope("cost", s, lambda s: self.cost(theta, x, s))

    def by_row(self, scalar: Callable[..., Tensor], theta: Params, *states: Float[Tensor, "*r b n"]) -> Params:
        import torch

        rows = states[0].shape[:-2]
        grads: dict[str, list[Tensor]] = {name: [] for name in theta}
        for row in zip(*(s.reshape(-1, *s.shape[-2:]) for s in states), strict=True):
            with torch.enable_grad():
                leaves = _leaves(theta)
                value = scalar(leaves, *row).sum()
            for name, g in zip(leaves, self.graded("cost", value, list(leaves.values())), strict=True):
                grads[name].append(g)
        return {name: torch.stack(g).reshape(*rows, *theta[name].shape) for name, g in grads.items()}

    def _slope(self, what: str, s: Tensor, function: Callable[[Tensor], Tensor], *, create: bool = False) -> Tensor:
        """Gradient over the state of the sum of `function`; differentiable again if `create`."""
        import torch

        with torch.enable_grad():
            at = s if create and s.requires_grad else s.detach().clone().requires_grad_()
            return self.graded(what, function(at).sum(), [at], create=create)[0]

    def graded(
        self,
        what: str,
        f: Tensor,
        of: list[Tensor],
        a: Tensor | None = None,
        *,
        retain: bool = False,
        create: bool = False,
    ) -> list[Tensor]:
        """The backward pass of a recorded evaluation; zeros where f does not depend on something."""
        import torch

        if not f.requires_grad:
            return [torch.zeros_like(v) for v in of]
        with self._told(f"the derivative of {what}"):
            grads = torch.autograd.grad(f, of, a, retain_graph=retain or create, create_graph=create, allow_unused=True)
        return [torch.zeros_like(v) if g is None else g for v, g in zip(of, grads, strict=True)]

    def _moved(self, what: str, theta: Params, x: Data, s: Tensor, knobs: Knobs) -> Tensor:
        """A function whose result is a state, at states with any rows."""
        made = self.definition()
        flat = s.reshape(-1, s.shape[-1])
        z = self._evaluate(what, theta, x, s, knobs)
        moved = made.form.flat(z, flat.shape[:1], f"{self.name}: {what}")
        return self._in_dtype(what, moved, s).reshape(s.shape)

    def _in_dtype(self, what: str, value: Tensor, like: Tensor) -> Tensor:
        """A result. Raises SystemFaultError where its dtype is not that of the state."""
        if value.dtype != like.dtype:
            got, expected = (str(v.dtype).removeprefix("torch.") for v in (value, like))
            raise SystemFaultError(f"{self.name}: {what}: got {got}, expected {expected}, the dtype of z")
        return value

    def _number(
        self, what: str, theta: Params, x: Data, s: Tensor, knobs: Knobs | None, *, scalar: bool = False
    ) -> Tensor:
        """A function whose result is a number for every example, at states with any rows; or one scalar."""
        import torch

        value, expected = self._evaluate(what, theta, x, s, knobs), () if scalar else (s[..., 0].numel(),)
        if not isinstance(value, torch.Tensor):
            raise SystemFaultError(f"{self.name}: {what}: got a {type(value).__name__}, expected a tensor")
        value = self._in_dtype(what, value, s)
        if scalar and value.numel() == 1:
            return value.reshape(())
        if tuple(value.shape) != expected:
            hint = ": drop the last axis" if tuple(value.shape) == (*expected, 1) else ": a number for every example"
            if value.ndim == 1 and len(value) == self.definition().batch:
                hint += ", and z may hold more examples than the data: take their number from z"
            raise SystemFaultError(f"{self.name}: {what}: got shape {tuple(value.shape)}, expected {expected}{hint}")
        return value.reshape(s.shape[:-1])

    def _evaluate(self, what: str, theta: Params, x: Data, s: Tensor, knobs: Knobs | None) -> Any:
        """The result of a function at states whose rows are folded into the example axis."""
        made, rows = self.definition(), math.prod(s.shape[:-2])
        more = (self._knobs(knobs),) if what in made.with_knobs else ()
        with self._calling(what, theta, s) as net:
            return made.functions[what](
                net, self._folded(x, rows, s), made.form.shown(s.reshape(-1, s.shape[-1])), *more
            )

    def _knobs(self, knobs: Knobs | None) -> KnobValues:
        """The knobs by attribute: numbers, and tensors without axes for `s` and `damp`."""
        shared = {} if knobs is None else {"s": knobs.sigma, "damp": knobs.damp}
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "digest"}  # type: ignore[arg-type]
        return KnobValues(
            named | {name: v for name, v in shared.items() if name in self.uses}, self.definition().knobs_read
        )

    def _folded(self, x: Data, rows: int, like: Tensor) -> Data:
        """The data with a copy of the examples for every row. Those of the last call are held for the next one."""
        made, key = self.definition(), (rows, like.dtype, *map(id, x.values()))
        held = made.folded.held
        if held is None or held[0] != key:
            repeated = {
                name: v if rows == 1 or name in made.shared else v.expand(rows, *v.shape).flatten(0, 1)
                for name, v in _typed(x, like).items()
            }
            held = made.folded.held = key, list(x.values()), repeated
        return dict(held[2])

    @contextmanager
    def _calling(self, what: str, theta: Params, like: Tensor) -> Iterator[Any]:
        """The first argument of a function, for one call. New tensors are made on the device of `like`."""
        made = self.definition()
        with self._told(what), like.device if like.is_cuda else nullcontext():
            if what == "project":
                yield None
                return
            with made.slots.bound(theta, like) as net:
                yield net

    def _told(self, what: str) -> _Told:
        """Inside, an exception of a function says which function raised it."""
        return _Told(self.name, what)


class _Told:
    """A context that names the function of a system in whose place an exception is raised.

    It is entered for every evaluation, which a context made of a generator would make slower by a twentieth.
    """

    def __init__(self, system: str, what: str) -> None:
        self._system, self._what = system, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        import torch

        told = str(error).partition("\n")[0]
        if isinstance(error, UserError | torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            return
        hint = next((hint for word, hint in HINTS.items() if word in told or word == type(error).__name__), "")
        raise SystemFaultError(f"{self._system}: {self._what} raised {type(error).__name__}: {told}{hint}") from error


class AbstractFunctionEnergySystem(AbstractFunctionSystem, AbstractEnergySystem):
    """F = -dE/ds of an energy that is a function of the caller."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return self._number("energy", theta, x, s, knobs)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return -_descent(self, theta, x, s, knobs)


class AbstractFunctionDrivenSystem(AbstractFunctionSystem, AbstractDrivenSystem):
    """F = -dE/ds + swirl, both functions of the caller."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return self._number("energy", theta, x, s, knobs)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self._moved("swirl", theta, x, s, knobs)

    def swirl_force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl(theta, x, context, s, knobs)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl(theta, x, context, s, knobs) - _descent(self, theta, x, s, knobs)


def _descent(
    system: AbstractFunctionEnergySystem | AbstractFunctionDrivenSystem,
    theta: Params,
    x: Data,
    s: Tensor,
    knobs: Knobs,
) -> Tensor:
    """dE/ds, which can be differentiated again where s or theta can."""
    import torch

    again = torch.is_grad_enabled() and (s.requires_grad or any(p.requires_grad for p in theta.values()))
    return system._slope("energy", s, lambda s: system.energy(theta, x, {}, s, knobs), create=again)


def _leaves(theta: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in theta.items()}


def _recorded(saved: Saved) -> Recording:
    assert isinstance(saved, Recording)
    return saved


def _typed(x: Data, like: Tensor) -> Data:
    """Complex data in the precision of the state; the engine has cast real ones."""
    return {name: v.to(like.dtype.to_complex()) if v.is_complex() else v for name, v in x.items()}


def knob_defaults(knobs: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Knobs that are options of the system, and knobs that are coordinates. Raises UserError for a taken name."""
    shared = {name: value for name, value in knobs.items() if name in SHARED_KNOBS}
    for name in knobs:
        if not name.isidentifier() or name in ("digest", "name") or (name in COORDINATES and name not in shared):
            raise UserError(f"knobs[{name!r}]: the name is taken or cannot be written as k.{name}")
    return {name: value for name, value in knobs.items() if name not in shared}, shared
