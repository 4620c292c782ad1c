"""A system from functions, from Python: `gradbench.system(step=..., cost=..., ...)`."""

from __future__ import annotations

import inspect
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING, Any

from gradbench.data.fingerprints import fingerprint, uncompiled, undigested
from gradbench.data.given import article, table, tensors
from gradbench.errors import UserError, near_miss, public
from gradbench.planning import registry, values
from gradbench.vocabulary.coordinates import COORDINATES, Knobs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradbench.systems.base import AbstractSystem, Data
    from gradbench.systems.forms import Form
    from gradbench.systems.functions import AbstractFunctionSystem, Definition, Function
    from gradbench.systems.modules import AbstractSlots

# positional arguments of a function, at least and at most
TAKES = {"state": (2, 2), "state_at": (2, 2), "project": (1, 1)}
OTHERS = (3, 4)  # net, x, z and, in the second form, the knobs k
WAYS = ({"step"}, {"force"}, {"energy"}, {"energy", "swirl"})  # functions that say how a state moves
MEANS = ("sum", "mean")


def _lacking(given: Collection[str]) -> str:
    """What a call lacks in which nothing says how a state moves, or where it begins."""
    wanted = {"state or state_at": {"state", "state_at"}, "one of step, force, energy": {"step", "force", "energy"}}
    return ", ".join(words for words, names in wanted.items() if not names & set(given))


@public(lacking=_lacking)
def system(
    *,
    cost: Function,
    params: nn.Module | Mapping[str, object],
    data: Mapping[str, object],
    state: Function | None = None,
    state_at: object = None,
    step: Function | None = None,
    force: Function | None = None,
    energy: Function | None = None,
    swirl: Function | None = None,
    project: Function | None = None,
    knobs: Mapping[str, float] | None = None,
    eps: float | None = None,
    defaults: Mapping[str, Any] | None = None,
    shared: Collection[str] = (),
    cost_of: str | None = None,
    key: object = None,
    name: str,
) -> AbstractSystem:
    """A system made from functions, which may stand wherever the name of a system may.

    Functions are f(net, x, z), or f(net, x, z, k) with the knobs as attributes of k. `net` is a copy of the module
    `params`, or a dict of tensors. `x` is `data`: tensors whose first axis is that of the examples, but for the
    entries named in `shared`. `z` is the state: a tensor, or a dict or a tuple of tensors, of shapes (b, ...).
    Functions treat examples independently.

    state(net, x)  s_0
    state_at       the free state, in place of `state` and of a free phase: a value of all examples, or a function of
                   (net, x). T1 plays no part, the reference is `implicit`, and the residual says whether it rests
    step           z <- step(z): F(z) = step(z) - z, and eps = 1 unless another one is named
    force          z <- z + eps F(z)
    energy         (b,): F = -dE/dz; with `swirl`, of the form of z: F = -dE/dz + swirl
    cost           (b,): C of every example; with cost_of = "sum" or "mean" one scalar of all its examples
    project(z)     z <- project(z + eps F(z)), beside force or energy

    `knobs` are numbers by name over which a grid may run. `defaults` are coordinates where a call names none, such as
    T1, T2 and beta. `key` stands for what no digest sees, such as a file that a function reads. Parameters of a module
    that need no gradient are constants, as buffers are. Everything is copied now: later changes are not seen.
    Source: docs/design.md, the definition of a relaxing system. Raises UserError for functions that cannot be
    measured, with the reason: they are tried on the data before this returns.
    """
    from torch.nn import Module

    from gradbench.engine.precision import isolated
    from gradbench.systems.functions import Definition, knob_defaults
    from gradbench.systems.trial import try_functions

    registry.check_name(name)
    given = {"state": state, "state_at": state_at if callable(state_at) else None}
    calls = _functions(step=step, force=force, energy=energy, swirl=swirl, project=project, cost=cost, **given)
    if (state is None) is (state_at is None):
        told = "missing: state or state_at" if state is None else "got state and state_at, expected one of them"
        raise UserError(f"system: {told}: where a free phase begins, or the free state itself")
    if cost_of is not None and cost_of not in MEANS:
        raise UserError(f"cost_of = {cost_of!r} is not a choice{near_miss(str(cost_of), MEANS)}")
    options, common = knob_defaults(_numbers(knobs))
    with isolated():
        slots = _places(params)
        x = tensors(data, "data")
        b = _examples(x, shared)
        at = _coordinates(defaults, eps, step is not None) | common | {"batch": b}
        if state is None and "T1" in at:
            raise UserError("defaults['T1']: with state_at there is no free phase; leave it out")
        form, free_state = _form(
            calls.get("state", state_at), slots, x, b, name, "state" if state_at is None else "state_at"
        )
        made = _class(
            Definition(
                name=name,
                functions=calls,
                slots=slots,
                theta=slots.theta,
                data=x,
                shared=frozenset(shared),
                form=form,
                cost_of=cost_of,
                with_knobs=frozenset(n for n, f in calls.items() if n not in TAKES and _positional(f) == OTHERS[1]),
                free_state=free_state,
            ),
            _identity(
                (
                    *calls.items(),
                    *([("state_at", state_at)] if free_state is not None else []),
                    *(params, sorted(slots.theta), x, sorted(shared), cost_of),
                ),
                key,
            ),
            options,
            at,
        )
        outer = list(params.parameters()) if isinstance(params, Module) else []
        registry.hand_over(made)
        item = made()
        try_functions(item, _knobs(at), outer)
    return item


def _functions(**given: Function | None) -> dict[str, Function]:
    """The functions that are given, by argument. Raises UserError for a combination that says nothing."""
    # a compiled function has no second derivative
    calls = {name: uncompiled(function) for name, function in given.items() if function is not None}
    for name, function in calls.items():
        least, most = TAKES.get(name, OTHERS)
        if not callable(function):
            raise UserError(f"{name}: got {article(function)}, expected a function")
        if (number := _positional(function)) is not None and not least <= number <= most:
            expected = {"state": "net, x", "state_at": "net, x", "project": "z"}.get(
                name, "net, x, z) or (net, x, z, k"
            )
            raise UserError(f"{name}: takes {number} arguments, expected ({expected})")
    moving = set().union(*WAYS) & set(calls)
    if moving not in WAYS:
        got = " and ".join(sorted(moving)) or "none of them"
        raise UserError(f"system: got {got}, expected one of: step, force, energy, energy and swirl")
    if "project" in calls and "step" in calls:
        raise UserError("project: a step has its projection inside; leave project out, or give force")
    return calls


def _positional(function: Function) -> int | None:
    """How many positional arguments a function takes; None: any number, or nobody can tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def _numbers(knobs: Mapping[str, float] | None) -> dict[str, float]:
    taken = {}
    for name, value in table(knobs, "knobs", "a table of numbers by name").items():
        try:
            taken[str(name)] = values.number(value)
        except ValueError as error:
            raise UserError(f"knobs[{name!r}]: {error}") from None
    return taken


def _places(params: nn.Module | Mapping[str, object]) -> AbstractSlots:
    """The places of parameters, with copies of the parameters."""
    from torch import nn

    from gradbench.systems.modules import Slots, Table

    if inspect.isclass(params) and issubclass(params, nn.Module):
        raise UserError(f"params: got the class {params.__name__}, expected a module: {params.__name__}(...)")
    slots: AbstractSlots
    if isinstance(params, nn.Module):
        slots = Slots(params, "params")
    else:
        slots = Table(table(params, "params", "a module, or a table of tensors by name"), "params")
    if not slots.theta:
        raise UserError("params: got no parameter that needs a gradient, expected one or more")
    return slots


def _examples(x: Data, shared: Collection[str]) -> int:
    """The number of examples. Raises UserError where the entries of data do not agree on one."""
    if isinstance(shared, str):
        raise UserError(f"shared = {shared!r}: expected a list of names")
    for name in shared:
        if name not in x:
            raise UserError(f"shared: {name!r} is not in data{near_miss(name, x)}")
    numbers = {name: len(v) if v.ndim else None for name, v in x.items() if name not in shared}
    if not numbers:
        raise UserError("data: no entry has an axis of examples; expected one or more that are not in shared")
    if None in numbers.values() or len(set(numbers.values())) > 1:
        told = ", ".join(f"{'none' if number is None else number} of {name}" for name, number in numbers.items())
        raise UserError(f"data: entries disagree on the number of examples: {told}; name those without in shared")
    return next(number for number in numbers.values() if number is not None)


def _coordinates(given: Mapping[str, Any] | None, eps: float | None, of_step: bool) -> dict[str, Any]:
    """The coordinates where a call names none."""
    named = table(given, "defaults", "a table of coordinates by name")
    if eps is not None:
        if "eps" in named:
            raise UserError("eps: stands in defaults as well; name it once")
        named["eps"] = eps
    elif of_step:
        named = {"eps": 1.0} | named
    taken = {}
    for name, value in named.items():
        known = [n for n, c in COORDINATES.items() if c.default is None and n != "batch"]
        if name not in known:
            raise UserError(f"defaults[{name!r}]: is not a coordinate with a default{near_miss(name, known)}")
        try:
            taken[str(name)] = values.one(COORDINATES[name], value)
        except ValueError as error:
            raise UserError(f"{'eps' if name == 'eps' else f'defaults[{name!r}]'} = {error}") from None
    if "eps" not in taken:
        raise UserError("eps: missing: with force or energy the step size belongs to the system, z <- z + eps F(z)")
    return taken


def _form(
    state: Any, slots: AbstractSlots, x: Data, batch: int, name: str, argument: str
) -> tuple[Form, Tensor | None]:
    """The form of s_0, or of a free state, and a copy of this state where it is a value: flat, (batch, n).

    Raises UserError where a function raises, or where a state is none.
    """
    import torch

    from gradbench.systems.forms import Form

    if not callable(state):
        form = Form.of(state, batch, name, argument)
        free_state = form.flat(state, (batch,), f"{name}: {argument}", torch.float64)
        return form, free_state.detach().to("cpu", copy=True)
    like = next(iter(slots.theta.values()))
    try:
        with torch.no_grad(), slots.bound(slots.theta, like) as net:
            z = state(net, {n: v.to(like.dtype) if v.is_floating_point() else v for n, v in x.items()})
    except Exception as error:  # a function may raise anything
        told = str(error).partition("\n")[0]
        raise UserError(f"{name}: {argument} raised {type(error).__name__}: {told}") from error
    return Form.of(z, batch, name, argument), None


def _identity(content: tuple[object, ...], key: object) -> tuple[str, str | None]:
    """The digest of what was handed over, and the part that it does not see, if there is one.

    A `key` stands for that part; without one the digest is random, so that no other system has it.
    """
    unseen = undigested(*content)
    if key is None and unseen is not None:
        return uuid.uuid4().hex[:16], unseen
    if key is not None and (why := undigested(key)) is not None:
        raise UserError(f"key: has no digest ({why}); expected numbers, text, tensors or lists of them")
    return str(fingerprint(key, *map(fingerprint, content))), None


def _class(
    definition: Definition,
    identity: tuple[str, str | None],
    options: Mapping[str, float],
    defaults: Mapping[str, Any],
) -> type[AbstractFunctionSystem]:
    """The class of a system, from its digest and the part that no digest sees."""
    from gradbench.systems import functions

    digest, unseen = identity

    bases = {"swirl": functions.AbstractFunctionDrivenSystem, "energy": functions.AbstractFunctionEnergySystem}
    base = next((b for name, b in bases.items() if name in definition.functions), functions.AbstractFunctionSystem)
    made: type[AbstractFunctionSystem] = make_dataclass(
        re.sub(r"\W+", " ", definition.name).title().replace(" ", "") or "System",
        [("digest", str, digest), *((name, float, field(default=value)) for name, value in options.items())],
        bases=(base,),
        frozen=True,
        repr=False,
        namespace={
            "__module__": functions.__name__,
            "__doc__": f"A system from functions: {', '.join(definition.functions)}.",
            "name": definition.name,
            "defaults": defaults,
            "uses": frozenset({"T1"} if "state" in definition.functions else ())
            | {n for n in functions.SHARED_KNOBS if n in defaults},
            "state_given": "state" not in definition.functions,
            "state_fixed": definition.free_state is not None,
            "per_example": frozenset(definition.data) - definition.shared,
            "knobs": frozenset(options),
            "unseen": unseen,
            "mean_cost": definition.cost_of == "mean",
            "definition": classmethod(lambda cls: definition),
        },
    )
    return made


def _knobs(defaults: Mapping[str, Any]) -> Knobs:
    """The knobs of the dynamics at their defaults, in float64."""
    import torch

    numbers = (defaults.get(name, 0.0) for name in ("s", "damp", "eps"))
    return Knobs(*(torch.tensor(v, dtype=torch.float64, device="cpu") for v in numbers))
