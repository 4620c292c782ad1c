"""Functions of a caller, tried on the data that came with them before anything is measured.

What is tried is what every estimate relies on: a result of the right form, no randomness, nothing kept between calls,
nothing written to, examples that do not see each other, the module that is handed over and no other, and derivatives
of first and second order. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradbench.data.given import check_finite
from gradbench.data.streams import Streams, normal
from gradbench.errors import UserError
from gradbench.systems.forms import entries
from gradbench.systems.functions import DYNAMICS, Recording
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.systems.base import Data, Params
    from gradbench.systems.functions import AbstractFunctionSystem

CLOSE = 1e-8  # relative: what round-off of float64 explains, and no coupling that changes a gradient
SLOPES = (1e-5, 1e-6)  # steps of central differences
STEEP = 1e-2  # relative: far above the error of central differences, and below what a cut graph leaves out
TRIED = 2**18  # state numbers of the examples that are tried: of a large system the first ones
FEWEST = 2  # examples that are tried, at least: a single one sees no other
MOVED = 1e-2  # relative: how far state and parameters are moved, so that no symmetry of a start hides a fault
MODES = "dropout and batch normalisation belong in eval mode: call .eval() on the module first"


@dataclass(frozen=True, eq=False)
class _Trial:
    """A system, and the point at which it is tried."""

    system: AbstractFunctionSystem
    theta: Params
    x: Data
    s: Tensor
    knobs: Knobs

    def force(self, s: Tensor | None = None, x: Data | None = None) -> Tensor:
        return self.system.force(self.theta, self.x if x is None else x, {}, self.s if s is None else s, self.knobs)

    def cost(self, s: Tensor | None = None, x: Data | None = None) -> Tensor:
        return self.system.cost(self.theta, self.x if x is None else x, self.s if s is None else s)

    @property
    def moving(self) -> str:
        """The functions that make the force, for messages."""
        return " and ".join(name for name in DYNAMICS if name in self.system.definition().functions)

    def one(self, i: int) -> Data:
        """The data of one example."""
        shared = self.system.definition().shared
        return {name: v if name in shared else v[i : i + 1] for name, v in self.x.items()}


def try_functions(system: AbstractFunctionSystem, knobs: Knobs, outer: Collection[Tensor]) -> None:
    """Raise UserError for functions that cannot be measured; `outer` are the parameters of the caller's module."""
    import torch

    _check_module(system, knobs, outer)
    streams = Streams(0)
    theta = {
        name: p * (1 + MOVED * normal(streams[f"theta {name}"], tuple(p.shape)))
        for name, p in system.init_params(streams["params"]).items()
    }
    numbers = sum(map(math.prod, system.layout.values()))
    x = system.sample(streams, min(system.definition().batch, max(FEWEST, TRIED // numbers)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        s = system.init_state(theta, x)
        check_finite(s, f"{system.name}: {system.definition().start}")
        start = _Trial(system, theta, x, s, knobs)
        f = start.force()
        check_finite(f, f"{system.name}: {start.moving}")
        noise = normal(streams["state"], tuple(s.shape))
        s = s + knobs.eps * f
        trial = _Trial(system, theta, x, s + MOVED * (s.square().mean().sqrt() + MOVED) * noise, knobs)
        _check_start(trial)
        _check_cost_of(trial)
        check_finite(trial.cost(), f"{system.name}: cost")
        tried: dict[str, Callable[..., Tensor]] = {trial.moving: trial.force, "cost": trial.cost}
        if system.projects:
            tried["project"] = lambda s=trial.s, x=None: system.project(s)
        for what, function in tried.items():
            _check_writes(trial, what, function)
            _check_repeats(system.name, what, function)
            _check_examples(trial, what, function)
    _check_knobs(trial)
    _check_derivatives(trial)
    _check_slopes(trial)


def _check_cost_of(trial: _Trial) -> None:
    """A cost that is one scalar says whether it is the sum or the mean of its examples; it must be what it says."""
    import torch

    made = trial.system.definition()
    whole = trial.system._evaluate("cost", trial.theta, trial.x, trial.s, None)
    if not isinstance(whole, torch.Tensor) or whole.ndim:
        if made.cost_of is not None:
            told = f"got shape {tuple(whole.shape)}" if isinstance(whole, torch.Tensor) else f"got {whole!r}"
            raise UserError(
                f"{trial.system.name}: cost: {told}, expected one scalar, as cost_of = {made.cost_of!r} says"
            )
        return
    singles = [
        float(trial.system._evaluate("cost", trial.theta, trial.one(i), trial.s[i : i + 1], None))
        for i in range(len(trial.s))
    ]
    ways = {"sum": sum(singles), "mean": sum(singles) / len(singles)}
    fitting = [way for way, value in ways.items() if abs(float(whole) - value) <= CLOSE * max(map(abs, singles))]
    where = f"{trial.system.name}: cost"
    if not fitting:
        raise UserError(
            f"{where}: got one scalar, {float(whole):g}, which is neither the sum nor the mean of the costs of its "
            f"examples ({ways['sum']:g}, {ways['mean']:g}): it couples examples. Expected a number for every example"
        )
    if made.cost_of is None:
        way = " or ".join(f"cost_of={way!r}" for way in fitting)
        raise UserError(
            f"{where}: got one scalar, expected a number for every example, ({len(trial.s)},). Leave out the sum or "
            f"the mean over examples (reduction='none'), or say {way}: then the examples are taken one by one"
        )
    if made.cost_of not in fitting:
        raise UserError(f"{where}: cost_of = {made.cost_of!r}, but it is the {fitting[0]} over its examples")


def _check_repeats(name: str, what: str, function: Callable[[], Tensor]) -> None:
    """Equal arguments give equal results."""
    import torch

    first, second = function(), function()
    if torch.equal(first, second):
        return
    torch.manual_seed(0)
    first = function()
    torch.manual_seed(0)
    second = function()
    random = torch.equal(first, second)
    why = f"it draws random numbers; {MODES}" if random else f"something is kept between calls; {MODES}"
    raise UserError(f"{name}: {what}: two calls with equal arguments differ: {why}")


def _check_writes(trial: _Trial, what: str, function: Callable[[], Tensor]) -> None:
    """No argument is written to, and no buffer of the module."""
    import torch

    def seen() -> Iterator[tuple[str, Tensor]]:
        yield "the state z", trial.s
        yield from ((f"x[{name!r}]", v) for name, v in trial.x.items())
        yield from ((f"the parameter {name!r}", v) for name, v in trial.theta.items())
        with trial.system.definition().slots.bound(trial.theta, trial.s) as net:
            yield from ((f"the buffer {name!r}", v) for name, v in getattr(net, "named_buffers", tuple)())

    before = [(name, v, v.clone()) for name, v in seen()]
    function()
    for name, now, then in before:
        if not torch.equal(now, then) and not bool((now.isnan() & then.isnan()).any()):
            advice = MODES if name.startswith("the buffer") else f"write to a copy, as {name.split()[-1]}.clone()"
            raise UserError(f"{trial.system.name}: {what}: writes to {name}; {advice}")


def _check_examples(trial: _Trial, what: str, function: Callable[..., Tensor]) -> None:
    """The result of an example does not depend on the other examples: alone, and beside a batch at another state."""
    import torch

    whole, b = function(), len(trial.s)
    other = trial.s.flip(0) + MOVED
    among = function(torch.stack([trial.s, other]))[0]
    share = b if what == "cost" and trial.system.definition().cost_of == "mean" else 1  # of one example in a mean
    alone = {i: function(trial.s[i : i + 1], trial.one(i))[0] / share for i in sorted({0, b // 2, b - 1})}
    pairs = [(among, whole), *((single, whole[i]) for i, single in alone.items())]
    worst = max(float((got - expected).norm() / expected.norm().clamp(min=1e-300)) for got, expected in pairs)
    if not worst <= CLOSE:
        shares = [float((whole[i] / single).mean()) * b for i, single in alone.items()]
        if what == "cost" and b > 1 and all(abs(share - 1) <= CLOSE for share in shares):
            raise UserError(
                f"{trial.system.name}: cost: is divided by the number of examples, {b}; give the cost of every example "
                f"undivided, or one scalar with cost_of='mean'"
            )
        raise UserError(
            f"{trial.system.name}: {what}: the result of an example changes by {worst:.2g} (relative) with the other "
            f"examples of its batch; {MODES}. An entry of data that has no example axis is named in shared="
        )


def _check_start(trial: _Trial) -> None:
    """s_0 is the same twice, and of an example that of the batch: no number of examples is written into `state`.

    What `state_at` gives may depend on the batch within the tolerance of a solver: its residual is told.
    """
    made, name = trial.system.definition(), trial.system.name
    if made.free_state is not None:
        return
    _check_repeats(name, made.start, lambda: trial.system.init_state(trial.theta, trial.x))
    with trial.system._calling(made.start, trial.theta, trial.s) as net:
        alone = made.functions[made.start](net, trial.one(0))
    for _, part in entries(alone, f"{name}: {made.start}"):
        if len(part) != 1:
            names = [n for n in made.data if n not in made.shared]
            raise UserError(
                f"{name}: {made.start}: gives {len(part)} examples where the data have 1; take their number from the "
                f"data, as len(x[{names[0]!r}])"
            )
    if trial.system.state_given:
        return
    whole, single = (trial.system.init_state(trial.theta, x) for x in (trial.x, trial.one(0)))
    if not float((whole[:1] - single).norm()) <= CLOSE * (1 + float(whole[:1].norm())):
        raise UserError(f"{name}: state: s_0 of an example depends on the other examples of its batch")


def _check_knobs(trial: _Trial) -> None:
    """Every knob is read by a function."""
    made = trial.system.definition()
    trial.force()
    for name in sorted(trial.system.knobs - made.knobs_read):
        raise UserError(
            f"knobs[{name!r}]: no function reads k.{name}; a function that takes the knobs is f(net, x, z, k)"
        )


def _check_module(system: AbstractFunctionSystem, knobs: Knobs, outer: Collection[Tensor]) -> None:
    """The functions use the parameters that they are given, and no parameter of the module outside.

    They are called in the dtype of that module: in another one its use would raise before it is seen.
    """
    import torch

    made = system.definition()
    like = next(iter(made.theta.values()))
    theta = {name: p.clone() for name, p in made.theta.items()}
    x = {name: v.to(like.dtype) if v.is_floating_point() else v for name, v in made.data.items()}
    s = system.init_state(theta, x)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        leaves = {name: p.requires_grad_() for name, p in theta.items()}
        f = system.force(leaves, x, {}, s, Knobs(*(k.to(like.dtype) for k in knobs)))
        cost = system._evaluate("cost", leaves, x, s, None)
    moving = " and ".join(name for name in DYNAMICS if name in made.functions)
    known = {id(p) for p in outer}
    for what, value in ((moving, f), ("cost", cost)):
        if isinstance(value, torch.Tensor) and any(id(variable) in known for variable in _variables(value)):
            raise UserError(
                f"{system.name}: {what}: uses a parameter of the module outside; "
                f"take it from the first argument, as in lambda net, x, z: net(z)"
            )
    recorded = [v.sum() for v in (f, cost) if isinstance(v, torch.Tensor) and v.requires_grad]
    with system._told(f"the derivative of {moving}"):
        grads = torch.autograd.grad(recorded, list(leaves.values()), allow_unused=True) if recorded else ()
    if all(g is None for g in grads):
        with torch.no_grad():
            at = s + MOVED * normal(Streams(0)["state"], tuple(s.shape)).to(s)
            thetas = ({n: p.detach() + more for n, p in theta.items()} for more in (0.0, MOVED))
            one, other = ((system.force(p, x, {}, at, knobs), system.cost(p, x, at)) for p in thetas)
        cut = any(not torch.equal(v, w) for v, w in zip(one, other, strict=True))
        why = "take the parameters from the first argument, as in lambda net, x, z: net(z)"
        if cut:
            why = "they change with params, but no_grad, detach, .item() or torch.tensor(...) cuts the graph"
        raise UserError(f"{system.name}: neither {moving} nor cost has a derivative by params; {why}")


def _variables(value: Tensor) -> Iterator[Tensor]:
    """The leaves that a recorded value depends on."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)


def _check_derivatives(trial: _Trial) -> None:
    """First and second derivatives exist, J and its transpose agree, and no evaluation is repeated later."""
    import torch

    system, streams = trial.system, Streams(1)
    a, v = (normal(streams[name], tuple(trial.s.shape)) for name in ("a", "v"))
    saved = system.activate(trial.theta, trial.x, {}, trial.s, trial.knobs)
    assert isinstance(saved, Recording)
    left, right = (a * saved.jvp("force", v)).sum(), (saved.vjp("force", a) * v).sum()
    if not float((left - right).abs()) <= CLOSE * float(a.norm() * v.norm()):
        raise UserError(
            f"{system.name}: {trial.moving}: <a, J v> = {float(left):.9g} and <J^T a, v> = {float(right):.9g} differ: "
            f"the backward of a custom autograd function is not differentiable, or is not linear"
        )
    slots = system.definition().slots
    pulled = saved.backward(a)[1]
    with torch.enable_grad():
        leaves = {name: p.detach().clone().requires_grad_() for name, p in trial.theta.items()}
        f = system.force(leaves, trial.x, {}, trial.s, trial.knobs)
        with slots.bound(leaves, trial.s):  # a repeated evaluation finds these parameters
            within = system.graded("force", f, list(leaves.values()), a)
    for g, (name, expected) in zip(within, pulled.items(), strict=True):
        if not float((g - expected).norm()) <= CLOSE * float(g.norm() + expected.norm()):
            raise UserError(
                f"{system.name}: {trial.moving}: the gradient of {name!r} depends on when it is taken: "
                f"activation checkpointing calls the module again, when its parameters are others; switch it off"
            )


def _check_slopes(trial: _Trial) -> None:
    """Derivatives are the slopes that central differences see, along a random direction of the state and of theta."""
    import torch

    streams, system = Streams(2), trial.system
    along = normal(streams["state"], tuple(trial.s.shape)) * trial.s.square().mean().sqrt()
    directions = {n: p * normal(streams[f"theta {n}"], tuple(p.shape)) for n, p in trial.theta.items()}
    a = normal(streams["a"], tuple(trial.s.shape))
    saved = system.activate(trial.theta, trial.x, {}, trial.s, trial.knobs)
    assert isinstance(saved, Recording)
    back, pulled = saved.backward(a)
    pushed = system.by_row(lambda theta, s: system.cost(theta, trial.x, s), trial.theta, trial.s)
    claims: dict[tuple[str, str], Tensor | float] = {
        (trial.moving, "the state"): (back * along).sum(),
        ("cost", "the state"): (system.cost_slope(trial.theta, trial.x, trial.s) * along).sum(),
        (trial.moving, "the parameters"): sum((pulled[n] * d).sum() for n, d in directions.items()),
        ("cost", "the parameters"): sum((pushed[n] * d).sum() for n, d in directions.items()),
    }

    if system.projects:
        claims["project", "the state"] = (system.project_vjp(trial.s, a) * along).sum()

    def value(what: str, over: str, h: float) -> float:
        theta = {n: p + h * directions[n] for n, p in trial.theta.items()} if over == "the parameters" else trial.theta
        moved = replace(trial, theta=theta)
        s = trial.s + h * along if over == "the state" else trial.s
        with torch.no_grad():
            if what == "project":
                return float((a * system.project(s)).sum())
            return float(moved.cost(s).sum() if what == "cost" else (a * moved.force(s)).sum())

    for (what, over), claim in claims.items():
        claimed = float(claim)
        slopes = [(value(what, over, h) - value(what, over, -h)) / (2 * h) for h in SLOPES]
        apart = [abs(slope - claimed) / max(abs(slope), abs(claimed), 1e-9) for slope in slopes]
        if min(apart) > STEEP and abs(slopes[0] - slopes[1]) <= STEEP * abs(slopes[0]):
            raise UserError(
                f"{system.name}: {what}: its derivative over {over} is {claimed:.6g} along a direction in which it "
                f"changes by {slopes[0]:.6g}: no_grad, detach, .item() or a custom backward cuts the graph"
            )
