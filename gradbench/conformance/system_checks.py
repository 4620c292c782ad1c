"""What every system promises: pure functions, independent examples, forces that fit energies, true derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradbench.conformance.comparing import apart, gap, likeness, off_slope, slope_of, worst
from gradbench.conformance.findings import Check, Finding, NotTriedError, Number, all_tried
from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.arbiter import arbitrate
from gradbench.diagnostics.ladder import estimate
from gradbench.dynamics.field import Field
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import relax
from gradbench.errors import UserError
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.bptt import Bptt
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    ClosedForms,
    descent,
)
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from gradbench.systems.base import AbstractSystem, Data, Params

EXACT = 1e-10  # relative: what round-off of float64 explains where sums are taken in another order
FAITHFUL = 1e-4  # relative: up to which a reference is the slope of the cost
SHORT, LONG, TERMS = 12, 600, 300  # free steps far from a fixed point, free steps to one, terms of the adjoint there
FINE = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # of |theta|: steps of differences of the cost
WALKED = 10  # free steps to the state at which derivatives are tried
AWAY = 0.3  # of the size of that state: how far it is moved
MOVED = 1e-2  # of a parameter: how far it is moved, so that no zero of a start hides a fault
STILL = 1e-10  # relative step below which a state is a fixed point


class OpenField(Field):
    """A field that leaves every derivative to autograd, as for a system that only says what its force is."""

    closed = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A system at a state, and random directions there."""

    field: Field
    s: Tensor  # (b, n)
    seed: int

    @staticmethod
    def of(field: Field, seed: int = 0) -> Subject:
        """A state on the way to the fixed point, moved by noise."""
        with torch.no_grad():
            s = field.init_state()
            for _ in range(WALKED):
                s = s if isinstance(field.system, AbstractForwardSystem) else field.step(s)
            size = float(s.square().mean().sqrt())
        noise = normal(Streams(seed)["conformance state"], tuple(s.shape))
        return Subject(field, s + AWAY * (size if 0 < size < math.inf else 1.0) * noise, seed)

    def noise(self, name: str, like: Tensor | None = None) -> Tensor:
        """N(0, 1) of the shape of the state, or of another tensor."""
        like = self.s if like is None else like
        return normal(Streams(self.seed)[f"conformance {name}"], tuple(like.shape)).to(like)

    def step(self, name: str, like: Tensor | None = None) -> Tensor:
        """A random direction of a state, of about its size."""
        size = float(self.s.square().mean().sqrt())
        return (size or 1.0) * self.noise(name, like)

    @property
    def rows(self) -> Tensor:
        """States with two row axes: (2, 3, b, n)."""
        size = float(self.s.square().mean().sqrt())
        return self.s + AWAY * size * self.noise("rows", self.s.expand(2, 3, *self.s.shape))

    @property
    def eps(self) -> float:
        """The step size."""
        return float(self.field.knobs.eps)

    def moved(self, name: str, d: Tensor, h: float) -> Field:
        """The field with a parameter moved by h d."""
        return replace(self.field, theta=self.field.theta | {name: self.field.theta[name] + h * d})

    def scaled(self, name: str) -> Tensor:
        """A random direction of a parameter, of about its size."""
        p = self.field.theta[name]
        size = float(p.square().mean().sqrt()) if p.numel() else 0.0
        return (size or 1.0) * self.noise(f"theta {name}", p)


def drawn(system: AbstractSystem, batch: int, seed: int) -> Field:
    """The field of a system in float64 at its default coordinates, its parameters moved a little."""
    streams = Streams(seed)
    theta, x = system.init_params(streams["params"]), system.sample(streams, batch)
    for name, p in theta.items():
        size = float(p.square().mean().sqrt()) if p.numel() else 0.0
        noise = normal(streams[f"conformance theta {name}"], tuple(p.shape))
        theta[name] = p + MOVED * (size or 1.0) * noise
    numbers = (system.defaults.get(name, other) for name, other in (("s", 1.0), ("damp", 0.0), ("eps", None)))
    named = [None if v is None else float(v) for v in numbers]
    if named[-1] is None:
        raise KeyError("defaults: eps is missing, the step size of the system")
    return Field(system, theta, x, Knobs(*(torch.tensor(v, dtype=torch.float64) for v in named)))


def system_findings(system: AbstractSystem, batch: int, seed: int) -> Iterator[Finding]:
    """The findings of all checks of a system at its default coordinates."""
    subjects: list[Subject] = []

    def begun() -> Number:
        subjects.append(Subject.of(drawn(system, batch, seed), seed))
        return Number(0, 0)

    checks: dict[str, Check] = {
        "parameters and data are drawn, the same from a seed": partial(_same_draws, system, batch, seed),
        "a free phase can be begun": begun,
    }
    yield from all_tried(checks.items(), needed=True)
    for subject in subjects:
        yield from field_findings(subject)


def field_findings(subject: Subject) -> Iterator[Finding]:
    """The findings of all checks at a state. What others rely on comes first, and a failure there ends the list."""
    for finding in all_tried(_checks(NEEDED, subject), needed=True):
        yield finding
    if finding.failed:
        yield Finding("all other checks", "none", math.nan, math.nan, f"mend this first: {finding.name}")
        return
    yield from all_tried(_checks(FURTHER, subject))


def _checks(table: Mapping[str, Callable[[Subject], Number]], subject: Subject) -> Iterator[tuple[str, Check]]:
    yield from ((name, partial(check, subject)) for name, check in table.items())


def _same_draws(system: AbstractSystem, batch: int, seed: int) -> Number:
    try:
        system.check(batch)
    except UserError as error:
        raise NotTriedError(str(error)) from None
    first = [system.init_params(Streams(seed)["params"]), system.sample(Streams(seed), batch)]
    torch.rand(3)  # the global generator plays no part
    again = [system.init_params(Streams(seed)["params"]), system.sample(Streams(seed), batch)]
    wrong = [
        name
        for one, other in zip(first, again, strict=True)
        for name in one
        if not torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
    ]
    return Number(
        len(wrong),
        0,
        f"two draws from one seed differ in {', '.join(wrong)}: draw from the generators that are handed over",
    )


def _shapes(t: Subject) -> Number:
    field, system = t.field, t.field.system
    b, s = t.s.shape[0], field.init_state()
    n = sum(map(math.prod, system.layout.values()))
    f = field.force(s)
    wrong = [
        f"{what} has shape {tuple(value.shape)}, expected {shape}"
        for what, value, shape in (("s_0", s, (b, n)), ("F(s_0)", f, (b, n)), ("C", field.cost(s), (b,)))
        if tuple(value.shape) != shape
    ]
    wrong += [f"{what} is {v.dtype}, expected {s.dtype}" for what, v in (("F(s_0)", f),) if v.dtype != s.dtype]
    shapes = system.data_shapes(b)
    for name, p in field.theta.items():
        if tuple(p.shape) != tuple(system.shapes.get(name, ())) or name not in system.shapes:
            wrong.append(f"parameter {name} has shape {tuple(p.shape)}, declared is {system.shapes.get(name)}")
    for name, v in field.x.items():
        if tuple(v.shape) != tuple(shapes.get(name, ())) or name not in shapes:
            wrong.append(f"data {name} have shape {tuple(v.shape)}, declared is {shapes.get(name)}")
    wrong += [f"{what} is not finite" for what, v in (("s_0", s), ("F(s_0)", f)) if not bool(v.isfinite().all())]
    return Number(len(wrong), 0, "; ".join(wrong))


def _start(t: Subject) -> Number:
    """Two calls agree, also for one that begins with another global generator."""
    first, again = t.field.init_state(), t.field.init_state()
    advice = (
        "two calls of init_state differ: s_0 is random. Draw it in `sample` from the streams, as a part of the data"
    )
    return Number(_moved([first], [again]), 0, advice)


def _detached(t: Subject) -> Number:
    system = t.field.system
    if isinstance(system, AbstractForwardSystem):
        raise NotTriedError("the start is the forward pass itself, and the reference goes through it")
    with torch.enable_grad():
        s = system.init_state({n: p.clone().requires_grad_() for n, p in t.field.theta.items()}, t.field.x)
    advice = (
        "init_state carries a graph to the parameters, and no gradient goes through the start: end it with .detach()"
    )
    return Number(float(s.requires_grad), 0, advice)


def _functions(field: Field) -> Iterator[tuple[str, Callable[[Field, Tensor], Any]]]:
    """What a system computes, by name: functions of a field and a state."""
    system = field.system
    yield "init_state", lambda f, s: f.init_state()
    yield "context", lambda f, s: f.system.context(f.theta, f.x)
    yield "force", lambda f, s: f.force(s)
    yield "cost", lambda f, s: f.cost(s)
    if isinstance(system, AbstractEnergySystem | AbstractDrivenSystem):
        yield "energy", lambda f, s: _energy(f, s)
    if isinstance(system, AbstractDrivenSystem):
        yield "swirl", lambda f, s: f.swirl(s)
    if system.projects:
        yield "project", lambda f, s: f.project(s)
    if isinstance(system, ClosedForms):
        yield "jvp", lambda f, s: f.at(s).jvp(s)
        yield "vjp", lambda f, s: f.at(s).vjp(s)
        yield "pull", lambda f, s: f.pull(s, s)
        yield "cost_slope", lambda f, s: f.cost_slope(s)


def _energy(field: Field, s: Tensor) -> Tensor:
    system = field.system
    assert isinstance(system, AbstractEnergySystem | AbstractDrivenSystem)
    return system.energy(field.theta, field.x, field.context, s, field.knobs)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        return list(result.values())
    return [result]


def _moved(first: list[Tensor], second: list[Tensor]) -> float:
    """How many of the tensors differ in any bit; NaN is equal to NaN."""
    return float(
        sum(
            a.shape != b.shape or not torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())
            for a, b in zip(first, second, strict=True)
        )
    )


def _unchanged(t: Subject) -> Number:
    """Every function is called on copies, which are then compared."""
    wrong = []
    for name, function in _functions(t.field):
        field = replace(t.field, theta=_copies(t.field.theta), x=_copies(t.field.x))
        with torch.no_grad():
            seen = {"the state": t.s.clone()} | {f"the context {n!r}": v for n, v in field.context.items()}
        seen |= {f"the parameter {n!r}": p for n, p in field.theta.items()}
        seen |= {f"the data {n!r}": v for n, v in field.x.items()}
        before = {n: v.clone() for n, v in seen.items()}
        with torch.no_grad():
            function(field, seen["the state"])
        wrong += [f"{name} writes to {what}" for what, v in seen.items() if _moved([v], [before[what]])]
    return Number(len(wrong), 0, f"{'; '.join(wrong)}: write to a copy, as x.clone()")


def _copies(tensors: Params | Data) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in tensors.items()}


def _repeatable(t: Subject) -> Number:
    """Calls with equal arguments agree, with a call at another state between them."""
    wrong, random = [], False
    for name, function in _functions(t.field):
        with torch.no_grad():
            first = _copied(function(t.field, t.s))
            function(t.field, 1.5 * t.s)
            if _moved(first, _copied(function(t.field, t.s))):
                wrong.append(name)
                torch.manual_seed(0)
                first = _copied(function(t.field, t.s))
                torch.manual_seed(0)
                random = random or not _moved(first, _copied(function(t.field, t.s)))
    why = "random numbers are drawn" if random else "something is kept between calls"
    return Number(len(wrong), 0, f"two calls of {', '.join(wrong)} with equal arguments differ: {why}")


def _copied(result: Any) -> list[Tensor]:
    return [v.clone() for v in _tensors(result)]


def _alone(field: Field, i: int) -> Field:
    """The field of one example."""
    x = {n: v[i : i + 1] if n in field.system.per_example else v for n, v in field.x.items()}
    return replace(field, x=x)


def _others(t: Subject) -> Number:
    """What the first function that couples examples changes at the others, where the state of one is moved."""
    b = len(t.s)
    if b < 2:
        raise NotTriedError("it takes two examples: batch = 2 or more")
    moved = t.s.clone()
    moved[1] += 1 + moved[1].abs()
    others = [i for i in range(b) if i != 1]
    changes = {}
    for name, function in _functions(t.field):
        if name in ("force", "cost", "energy", "swirl", "project", "jvp", "vjp", "cost_slope"):
            with torch.no_grad():
                before, after = (_copied(function(t.field, s))[0] for s in (t.s, moved))
            changes[name] = apart(after[others], before[others])
    name, number = worst(changes.items())
    return Number(number, 1e-13, f"{name}: the result of an example changes with the state of another example")


def _batch(t: Subject) -> Number:
    """An example gives alone what it gives in its batch."""
    b, differences, told = len(t.s), {}, {}
    system = t.field.system
    for name, function in _functions(t.field):
        if name not in ("init_state", "force", "cost", "energy", "swirl", "project"):
            continue
        if name == "init_state" and system.state_given:  # the end of a solver, which may look at the whole batch
            continue
        with torch.no_grad():
            whole = _copied(function(t.field, t.s))[0]
            alone = torch.cat([_copied(function(_alone(t.field, i), t.s[i : i + 1]))[0] for i in range(b)])
        expected = alone / b if name == "cost" and system.mean_cost else alone
        differences[name] = apart(whole, expected)
        told[name] = likeness(whole, expected, t.eps, b)
    name, number = worst(differences.items())
    if name == "cost" and "examples" in told[name]:
        way = "declare mean_cost = True in the class" if not system.mean_cost else "declare mean_cost = False"
        return Number(number, EXACT, f"cost {told[name]}. Take the factor out, or {way}")
    how = told[name] or "is another one"
    return Number(number, EXACT, f"{name} of an example {how} in a batch of {b} than alone: examples are coupled")


def _rows(t: Subject) -> Number:
    """Every function takes states with row axes in front, and treats rows by themselves."""
    rows, differences = t.rows, {}
    for name, function in _functions(t.field):
        if name in ("init_state", "context"):
            continue
        together = _copied(function(t.field, rows))
        single = [[_copied(function(t.field, s)) for s in row] for row in rows]
        for k, value in enumerate(together):
            one_by_one = torch.stack([torch.stack([parts[k] for parts in row]) for row in single])
            differences[f"{name} {k}" if k else name] = apart(value, one_by_one)
    grads = t.field.cost_grads(rows)
    for name, g in t.field.cost_grads(rows[1, 2]).items():
        differences[f"dC/d{name}"] = apart(grads[name][1, 2], g)
    credits = t.noise("credits", rows)  # of every T1 and beta, at a state of every T1
    back, pulled = t.field.backward(rows[:, :1], credits)
    for i, j in ((0, 1), (1, 0), (1, 2)):
        one, of_theta = t.field.backward(rows[i, 0], credits[i, j])
        differences[f"J^T a at row {i}, column {j}"] = apart(back[i, j], one)
        differences |= {f"the pull of {n} at {i}, {j}": apart(pulled[n][i, j], g) for n, g in of_theta.items()}
    name, number = worst(differences.items())
    advice = "states come as (*, b, n) with any number of axes in front, and data broadcast from the right"
    return Number(number, EXACT, f"{name} of several rows is not that of each row: {advice}")


def _force_fits(t: Subject) -> Number:
    """F = -dE/ds, plus the swirl."""
    system, field, s = t.field.system, t.field, t.rows[0]
    if not isinstance(system, AbstractEnergySystem | AbstractDrivenSystem):
        raise NotTriedError("the system has no energy")
    slope = descent(system.energy, field.theta, field.x, field.context, s, field.knobs).detach()
    swirl = field.swirl(s) if isinstance(system, AbstractDrivenSystem) else torch.zeros_like(s)
    got, expected = field.force(s) - swirl, slope
    told = likeness(got, expected, t.eps, len(t.s))
    what = "the force" if not isinstance(system, AbstractDrivenSystem) else "the force without the swirl"
    how = f"{what} {told}" if told else f"{what} is not minus the gradient of the energy"
    return Number(
        apart(field.force(s), slope + swirl), EXACT, f"{how}: F = -dE/ds" + (" + swirl" if swirl.any() else "")
    )


def _energy_slope(t: Subject) -> Number:
    """The same by central differences of the energy, without autograd."""
    system, field = t.field.system, t.field
    if not isinstance(system, AbstractEnergySystem | AbstractDrivenSystem):
        raise NotTriedError("the system has no energy")
    swirl = field.swirl(t.s) if isinstance(system, AbstractDrivenSystem) else torch.zeros_like(t.s)
    got, v = field.force(t.s) - swirl, t.step("v")

    def along(h: float) -> Tensor:
        return _energy(field, t.s + h * v)

    off = off_slope(-(got * v).sum(-1), along, float(got.norm() * v.norm()))
    return Number(off, 1e-6, "the force is not minus the slope of the energy, which central differences give")


def _transposes(t: Subject) -> Number:
    a, v, field = t.noise("a"), t.noise("v"), t.field
    differences = {}
    for name, linear in (("J", field.at(t.s)), ("J of the swirl", field.swirl_at(t.s)), ("J_G", field.step_at(t.s))):
        Jv, Ja = linear.jvp(v), linear.vjp(a)
        left, right = float((a * Jv).sum()), float((Ja * v).sum())
        size = max(abs(left), abs(right), 1e-2 * float(a.norm() * Jv.norm()))
        differences[name] = abs(left - right) / size if size else 0.0
    name, number = worst(differences.items())
    why = "project_jvp and project_vjp" if name == "J_G" else "jvp and vjp"
    return Number(number, EXACT, f"<a, {name} v> and <{name}^T a, v> differ: {why} are not transposes of each other")


def _jacobian(t: Subject) -> Number:
    field, v = t.field, t.step("v")
    linear = field.at(t.s)
    got = linear.jvp(v)

    def along(h: float) -> Tensor:
        return field.force(t.s + h * v)

    off = off_slope(got, along, float(field.force(t.s).norm()))
    advice = "J v is not the slope of the force along v, which central differences give"
    if off > 1e-6:
        numeric = slope_of(along)
        if apart(linear.vjp(v), numeric) < 1e-5:
            advice = "jvp gives J^T v, and vjp gives J a: the Jacobian is transposed. Exchange the two"
        elif told := likeness(got, numeric, t.eps, len(t.s)):
            advice = f"J v {told}; it must be the slope of the force along v"
    return Number(off, 1e-6, advice)


def _of_parameters(t: Subject, claimed: Params, scalar: Callable[[Field], Tensor], size: float) -> dict[str, float]:
    """How far a gradient is from the slope of a scalar, by parameter."""
    differences = {}
    for name in t.field.theta:
        d = t.scaled(name)
        slope = (claimed[name] * d).sum()
        differences[name] = off_slope(slope, lambda h, name=name, d=d: scalar(t.moved(name, d, h)), size)  # type: ignore[misc]
    return differences


def _pull(t: Subject) -> Number:
    a, field = t.noise("a"), t.field
    pulled = field.pull(t.s, a)
    off = _of_parameters(t, pulled, lambda f: (a * f.force(t.s)).sum(), float(a.norm() * field.force(t.s).norm()))
    name, number = worst(off.items())
    return Number(
        number, 1e-6, f"d<a, F>/d{name} is not what central differences give: look at {name} in the force and its pull"
    )


def _cost_grads(t: Subject) -> Number:
    off = _of_parameters(t, t.field.cost_grads(t.s), lambda f: f.cost(t.s).sum(), float(t.field.cost(t.s).sum().abs()))
    name, number = worst(off.items())
    return Number(number, 1e-6, f"dC/d{name} at a fixed state is not what central differences of the cost give")


def _cost_slope(t: Subject) -> Number:
    field, v = t.field, t.step("v")
    g = field.cost_slope(t.s)

    def along(h: float) -> Tensor:
        return field.cost(t.s + h * v)

    got = (g * v).sum(-1)
    off = off_slope(got, along, float(field.cost(t.s).norm()))
    told = likeness(got, slope_of(along), t.eps, len(t.s)) if off > 1e-6 else ""
    return Number(off, 1e-6, f"dC/ds {told or 'is not what central differences of the cost give'}: see cost_slope")


def _closed(t: Subject) -> Number:
    """Products of force and swirl and the pull, also for more rows of credits than of states."""
    field, system = t.field, t.field.system
    if not isinstance(system, ClosedForms):
        raise NotTriedError("the system has no closed forms: autograd differentiates it")
    if not system.lifted:
        raise NotTriedError("the derivatives of the system are recorded by autograd")
    s = t.rows[0]
    credits = t.noise("credits", s.expand(2, *s.shape))
    numbers: dict[str, float] = {}
    told: dict[str, str] = {}
    for prefix, at, function in (("", field.at, field.force), ("swirl_", field.swirl_at, field.swirl)):
        closed, recorded = at(s), Linear(function, s)
        for name in ("jvp", "vjp"):
            single = torch.stack([getattr(recorded, name)(a) for a in credits])
            got = torch.stack([getattr(closed, name)(a) for a in credits])
            numbers[prefix + name], told[prefix + name] = apart(got, single), likeness(got, single, t.eps, s.shape[-2])
        numbers[f"{prefix}vjp of more rows"] = apart(closed.vjp(credits), torch.stack([closed.vjp(a) for a in credits]))
    plain = OpenField(system, field.theta, field.x, field.knobs)
    pairs = {"cost_slope": (field.cost_slope(s), plain.cost_slope(s))}
    expected = plain.pull(s, credits)
    pairs |= {f"pull of {n}": (g, expected[n]) for n, g in field.pull(s, credits).items()}
    back, pulled = field.backward(s[0], credits[0, 0])
    at_one = plain.pull(s[0], credits[0, 0])
    pairs |= {"backward": (back, Linear(field.force, s[0]).vjp(credits[0, 0]))}
    pairs |= {f"backward, of {n}": (g, at_one[n]) for n, g in pulled.items()}
    numbers |= {name: apart(*pair) for name, pair in pairs.items()}
    told |= {name: likeness(*pair, t.eps, s.shape[-2]) for name, pair in pairs.items()}
    name, number = worst(numbers.items())
    how = told.get(name) or "is not what autograd gives"
    return Number(number, EXACT, f"the closed form {name} {how}")


def _projection(t: Subject) -> Number:
    field, u, v = t.field, t.rows[0], t.noise("v", t.rows[0])
    if not field.system.projects:
        if float(apart(field.project(u), u)):
            return Number(math.inf, 0, "project changes a state, and `projects` says that it does not")
        raise NotTriedError("the system does not project")
    recorded = Linear(field.project, u)
    numbers = {
        "project_jvp": apart(field.project_jvp(u, v), recorded.jvp(v)),
        "project_vjp": apart(field.project_vjp(u, v), recorded.vjp(v)),
    }
    name, number = worst(numbers.items())
    return Number(number, EXACT, f"{name} is not the derivative of project that autograd gives")


def _projection_slope(t: Subject) -> Number:
    field, u, v = t.field, t.s, t.step("v")
    if not field.system.projects:
        raise NotTriedError("the system does not project")
    off = off_slope(field.project_jvp(u, v), lambda h: field.project(u + h * v), float(u.norm()))
    return Number(off, 1e-6, "project_jvp is not the slope of project, which central differences give")


def _symmetric(t: Subject) -> Number:
    linear, v = t.field.at(t.s), t.noise("v")
    number = float(linear.antisym(v).norm() / linear.jvp(v).norm().clamp(min=1e-300))
    if not t.field.system.conservative:
        return Number(number, None, "|A v| / |J v|: how far the Jacobian is from a symmetric one, which plain EP needs")
    return Number(number, EXACT, "the system says that its force has an energy, and its Jacobian is not symmetric")


def _swirl(t: Subject) -> Number:
    if not isinstance(t.field.system, AbstractDrivenSystem):
        raise NotTriedError("the system declares no swirl")
    v = t.noise("v")
    got, expected = t.field.swirl_at(t.s).antisym(v), t.field.at(t.s).antisym(v)
    return Number(apart(got, expected), EXACT, "the swirl leaves out a part of the force that has no energy")


def _stack(t: Subject) -> tuple[list[Field], Stack, Tensor]:
    """Three cells: other parameters, other data, other step sizes."""
    one = t.field
    cells = [replace(one, knobs=one.knobs._replace(eps=factor * one.knobs.eps)) for factor in (1.0, 0.5, 0.25)]
    theta = {n: p * (1 + MOVED * t.noise(f"cell {n}", p)) for n, p in one.theta.items()}
    x = {n: v.flip(0) if n in one.system.per_example else v for n, v in one.x.items()}
    cells[1] = replace(cells[1], theta=theta, x=x)
    s = torch.stack([t.s, 0.5 * t.s, t.rows[0, 0]])
    return cells, Stack.of(cells), torch.stack((s, 2 * s))


def _batched_values(t: Subject) -> Number:
    cells, stack, s = _stack(t)
    numbers = {}
    for name in ("force", "swirl", "step", "cost", "cost_slope", "project"):
        single = [torch.stack([getattr(f, name)(row[c]) for row in s]) for c, f in enumerate(cells)]
        numbers[name] = apart(getattr(stack, name)(s), torch.stack(single, 1))
    name, number = worst(numbers.items())
    return Number(
        number, EXACT, f"{name} of several cells at once is not that of each cell, as the batched engine takes it"
    )


def _batched_derivatives(t: Subject) -> Number:
    cells, stack, rows = _stack(t)
    s, a, numbers = rows[0], t.noise("cells", rows[0]), {}
    for at in ("at", "swirl_at", "step_at"):
        for product in ("jvp", "vjp"):
            each = [getattr(getattr(f, at)(s[c]), product)(a[c]) for c, f in enumerate(cells)]
            numbers[f"{product} ({at})"] = apart(getattr(getattr(stack, at)(s), product)(a), torch.stack(each))
    pulled, by_row, costs = stack.pull(s, a), stack.pull(s, torch.stack((a, 2 * a))), stack.cost_grads(s)
    for c, f in enumerate(cells):
        single, of_cost = f.pull(s[c], a[c]), f.cost_grads(s[c])
        for name, g in single.items():
            numbers[f"pull of {name}"] = max(apart(pulled[name][c], g), apart(by_row[name][1, c] / 2, g))
            numbers[f"dC/d{name}"] = apart(costs[name][c], of_cost[name])
        if isinstance(f.system, AbstractEnergySystem):
            of_energy = f.energy_grads(s[c])
            numbers |= {f"dE/d{n}": apart(g[c], of_energy[n]) for n, g in stack.energy_grads(s).items()}
    name, number = worst(numbers.items())
    return Number(
        number, EXACT, f"{name} of several cells at once is not that of each cell, as the batched engine takes it"
    )


def _reference(t: Subject) -> Number:
    """Backpropagation through a few steps against central differences of the cost after them, at the closest step.

    A kink or a steep slope makes one step size a bad one; a wrong reference is wrong at all of them.
    """
    T1 = 0 if isinstance(t.field.system, AbstractForwardSystem) else SHORT
    reference = estimate(Bptt(), relax(t.field, (T1,)), None, None)
    numbers = []
    for slope in arbitrate(t.field, T1, reference, (t.seed, t.seed + 1), FINE):
        errors = [abs(slope.claimed - q) / max(abs(q), abs(slope.claimed), 1e-300) for q in slope.all]
        numbers.append(min((e for e in errors if math.isfinite(e)), default=math.nan))
    if any(map(math.isnan, numbers)):
        raise NotTriedError(f"the cost after {T1} steps is not finite")
    number = max(numbers)
    advice = (
        f"backpropagation through {T1} steps is not the slope of the cost after them: look at the derivatives above, "
        "and for a parameter that enters the cost or the dynamics in another way than by its argument"
    )
    return Number(number, FAITHFUL, advice)


def unrest(field: Field, s: Tensor) -> float:
    """How far a state moves in a step, relative to its size."""
    return float((field.step(s) - s).norm() / s.norm().clamp(min=1e-300))


def _adjoint(t: Subject) -> Number:
    """At a fixed point the adjoint, which only sees that state, is backpropagation through all steps."""
    field = t.field
    if isinstance(field.system, AbstractForwardSystem):
        raise NotTriedError("the free state is a forward pass")
    free = relax(field, (LONG,))
    s = free.ends[0]
    residual = unrest(field, s)
    if math.isnan(residual):
        raise NotTriedError(f"the state leaves every bound within {LONG} steps")
    if not residual <= STILL:
        raise NotTriedError(f"the system is not at rest after {LONG} steps: it still moves by {residual:.1e} a step")
    reference = estimate(Bptt(), free, None, None)
    if not any(bool(g.any()) for g in reference.values()):
        raise NotTriedError("the reference is zero at the fixed point")
    number = gap(estimate(Adjoint(), free, TERMS, None), reference)
    return Number(
        number, FAITHFUL, "at rest the adjoint is not backpropagation through all steps, though both should agree"
    )


NEEDED: Mapping[str, Callable[[Subject], Number]] = {
    "shapes and dtypes are as declared": _shapes,
    "the start is the same twice": _start,
    "no function writes to its arguments": _unchanged,
    "equal arguments give equal results": _repeatable,
}
FURTHER: Mapping[str, Callable[[Subject], Number]] = {
    "the start is detached from the parameters": _detached,
    "examples do not see each other": _others,
    "an example does not see the size of its batch": _batch,
    "rows are independent": _rows,
    "the force is minus the gradient of the energy": _force_fits,
    "the force is the slope of the energy by differences": _energy_slope,
    "J v and J^T a are transposes": _transposes,
    "J v is the slope of the force": _jacobian,
    "closed forms equal autograd": _closed,
    "the projection and its derivatives agree": _projection,
    "the projection's derivative is its slope": _projection_slope,
    "dF/dtheta is the slope of the force": _pull,
    "dC/ds is the slope of the cost": _cost_slope,
    "dC/dtheta is the slope of the cost": _cost_grads,
    "the Jacobian is symmetric where there is an energy": _symmetric,
    "only the swirl is antisymmetric": _swirl,
    "several cells at once are each cell by itself": _batched_values,
    "derivatives of several cells are those of each": _batched_derivatives,
    "backpropagation is the slope of the relaxed cost": _reference,
    "at rest the adjoint is backpropagation": _adjoint,
}
