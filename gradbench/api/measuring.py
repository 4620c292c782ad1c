"""One cell from Python: `gradbench.measure(system, estimator, ...)`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from html import escape
from inspect import Parameter, Signature, isclass, signature
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.data.given import article, table, tensors
from gradbench.dynamics.stack import Tried
from gradbench.engine.device import resolve
from gradbench.engine.draws import build
from gradbench.engine.packs import refused_where_too_large, states_at_once
from gradbench.engine.precision import isolated
from gradbench.engine.solving import solve
from gradbench.errors import RuleFaultError, UserError, near_miss, public
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import registry, values
from gradbench.planning.cells import PARAMS_FROM, trained
from gradbench.planning.plans import plan, refuse_reference, refuse_unheld
from gradbench.planning.suites import parse
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.coordinates import COORDINATES, Value
from gradbench.vocabulary.solver import Solver
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from gradbench.api.explained import Explained
    from gradbench.dynamics.field import Field
    from gradbench.engine.outcome import Outcome
    from gradbench.planning.problems import Problem
    from gradbench.systems.base import Data, Params

KEY = "{where}[{option!r}]"  # how a message calls an option
SHOWN = ("status", "cosine", "cosine_min", "worst", "rel_error", "residual", "cause")  # of a row, as evidence


@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """An estimate and its reference, with the evidence that their comparison means something.

    `row` holds every column of the table `cells`; the attributes are the columns that are read most. A number that is
    undefined is NaN, and `reason` says why. A measurement is equal to itself alone.
    """

    status: Status
    reason: str
    cosine: float  # of the whole gradient
    cosines: dict[str, float]  # by parameter
    blocks: dict[str, dict[str, float]]  # by block of the state: its credit against that of the reference
    budget: dict[str, dict[str, float]]  # by parameter, "" the whole: its error by cause; {} where none is looked for
    norm_ratio: float
    rel_error: float
    residual: float  # |G(s*) - s*| / |s*|
    antisymmetry: float  # |A|_F / |J|_F at s*
    estimate: Params | None  # None where the free phase diverged
    reference: Params | None
    row: dict[str, Any]
    field: Callable[[], Field] = dataclasses.field(repr=False)  # that of the problem, built again on the CPU
    nested: dict[str, list[dict[str, Any]]] = dataclasses.field(repr=False)  # rows of the other tables, by table

    @public()
    def explain(self) -> Explained:
        """The error taken apart: certificate, ladder, cause and remedy. It prints as `gradbench explain` does."""
        from gradbench.api.explained import Explained

        return Explained.of(self.row, self.field())

    @public()
    def plot(self, *names: str, folder: str | Path | None = None) -> dict[str, Figure]:
        """Figures of a run by name, of this cell alone; `params` where none is named.

        They are written as SVG and PNG where a folder is named. Raises UserError for a name that no figure has.
        """
        from gradbench.plots import of_cell, written

        return written(of_cell(self.row, self.nested, names or ("params",)), folder)

    def _evidence(self) -> dict[str, str]:
        """The columns that say what a cosine is worth, as text."""
        told = {name: self.row[name] for name in SHOWN}
        return {n: f"{v:.4g}" if isinstance(v, float) and "cosine" not in n else _text(v) for n, v in told.items()}

    def __repr__(self) -> str:
        evidence = "  ".join(f"{name} {text}" for name, text in self._evidence().items())
        return f"{self.row['system_label']} {self.row['estimator_label']}: {evidence}"

    def _repr_html_(self) -> str:
        named = {"system": self.row["system_label"], "estimator": self.row["estimator_label"]} | self._evidence()
        lines = [
            f"<tr><th style='text-align: left'>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in (named | {"reason": self.reason}).items()
        ]
        return f"<table>{''.join(lines)}</table>"


def _text(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value or "none")


@public()
def measure(
    system: str | AbstractSystem,
    estimator: str | AbstractEstimator,
    *,
    device: str | torch.device = "cpu",
    params: Mapping[str, object] | None = None,
    data: Mapping[str, object] | None = None,
    system_options: Mapping[str, object] | str | None = None,
    estimator_options: Mapping[str, object] | str | None = None,
    **coordinates: Value,
) -> Measurement:
    """Compare one estimate with backpropagation through time.

    A system is a name, or what `gradbench.system` made; an estimator is a name, or what `gradbench.estimator` made. The
    signature has a keyword for every coordinate; a knob of the system is a keyword as well. A coordinate that is None
    or left out takes the default of the system. One that the system does not use is refused where it has a value; T2
    and beta may be named for every rule. `params` and `data` replace what `seed` would draw, and sizes and batch are
    read from them: tensors, arrays or lists of numbers by name, which are copied. Options are a table, or JSON as in
    the table `cells`. Raises UserError for unknown names and options, for what is no number or has a wrong shape, for
    an estimator that does not apply to the system, and for functions that raise or return what they may not. Numerical
    trouble is no exception but the status of the measurement.
    """
    for_system = _options("system_options", system_options)
    for_rule = _options("estimator_options", estimator_options)
    kind, of_system = _asked("system", system, for_system)
    of_rule, of_estimator = _asked("estimator", estimator, for_rule)
    for name in coordinates:
        if name not in COORDINATES and name not in kind.knobs:
            for place, item in (("system_options", kind), ("estimator_options", of_rule)):
                if name in {f.name for f in fields(item)}:
                    raise UserError(f"measure: {name!r} is an option of {item.name!r}: {place}={{{name!r}: ...}}")
            known = [*kind.knobs, *(p.name for p in signature(measure).parameters.values())]
            raise UserError(f"measure: there is no argument {name!r}{near_miss(name, known)}")
    # before numbers close to 0 count as 0
    knobs = {name: values.scalar(coordinates.pop(name)) for name in kind.knobs if name in coordinates}
    plain = {name: values.scalar(value) for name, value in coordinates.items()}
    with isolated():
        theta, x = tensors(params, "params"), tensors(data, "data")
        rule = registry.estimator(of_rule.name, of_estimator | for_rule, "estimator_options", KEY)
        options = of_system | for_system | knobs
        source = _source(options.pop(PARAMS_FROM)) if PARAMS_FROM in options else ""
        made = _sized(kind, options, theta, x)
        named = _coordinates(plain, made, rule)
        named |= _batch(made, x, named.get("batch"))
        made.check(int(named.get("batch", made.defaults["batch"])), x)
        grid = {
            "system": {"name": made.name, **json.loads(registry.options(made))},
            "estimator": {"name": rule.name, **json.loads(registry.options(rule))},
            **named,
            **({PARAMS_FROM: source} if source else {}),
        }
        _refuse_unheld(named, {"system_options": made, "estimator_options": rule})
        problem, where = _problem(grid, x), resolve(device)
        with refused_where_too_large(problem):
            field = build(problem, where, theta, x)
            (outcome,) = solve([problem], Tried.over(field), Thresholds(), states_at_once([problem], where))
        if outcome.status is Status.ERROR:
            raise RuleFaultError(outcome.reason)
        return _measurement(outcome, lambda: build(problem, "cpu", theta, x))


@public()
def explain(system: str | AbstractSystem, estimator: str | AbstractEstimator, **named: Any) -> Explained:
    """Measure one cell, and take its error apart. The arguments and the exceptions are those of `measure`."""
    return measure(system, estimator, **named).explain()


def _signed() -> Signature:
    """The signature of `measure` with a keyword for every coordinate."""
    written = signature(measure)
    *others, _ = written.parameters.values()
    keywords = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=c.default, annotation=f"{c.type.__name__} | None")
        for name, c in COORDINATES.items()
    ]
    return written.replace(parameters=[*others, *keywords])


measure.__signature__ = _signed()  # type: ignore[attr-defined]
explain.__signature__ = measure.__signature__.replace(return_annotation="Explained")  # type: ignore[attr-defined]


def _asked(argument: str, item: object, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of a name, or of a system or an estimator itself, whose options come with it.

    A digest among the options tells which class of that name is meant. Raises UserError for anything else, and for a
    name that is not known.
    """
    base, known = _KINDS[argument]
    registry.refuse_other_kind(argument, item)
    cls: Any = item if isclass(item) else type(item)
    if issubclass(cls, base):
        entry = registry.written(item)
        assert isinstance(entry, dict)
        return cls, {n: v for n, v in entry.items() if n != "name"}
    if not isinstance(item, str):
        hint = f"; gradbench.{argument}(...) makes one from functions"
        raise UserError(f"{argument}: got {article(item)}, expected a name: {', '.join(known())}{hint}")
    named = registry.meant(f"{argument}s", item, options.get(registry.DIGEST))
    if named is None:
        told = f"{argument} = {str.__str__(item)!r}"
        first, *more = item.split()[:2] or [""]
        if more and first in known():
            raise UserError(f"{told} is no name; the options of {first!r} go into {argument}_options={{...}}")
        if what := registry.what_is(item):
            raise UserError(f"{told} is {what}; {registry.ORDER}")
        raise UserError(f"{told} is not registered{registry.near_name(item, known())}")
    return named, {}


_KINDS: dict[str, tuple[type, Callable[[], Mapping[str, object]]]] = {
    "system": (AbstractSystem, registry.known_systems),
    "estimator": (AbstractEstimator, registry.known_estimators),
}


def _options(argument: str, given: object) -> dict[str, Any]:
    """Options as a table of Python values: given as one, or as the JSON of a table of a run."""
    if isinstance(given, str):
        try:
            given = json.loads(given, object_pairs_hook=_once)
        except json.JSONDecodeError:
            raise UserError(f"{argument}: got {given!r}, expected a table, as in {argument}={{NAME: VALUE}}") from None
        except ValueError as error:  # a name stands there twice
            raise UserError(f"{argument}: got {given!r}: {error}") from None
    return {name: values.scalar(v) for name, v in table(given, argument, "a table of options by name").items()}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A table of JSON. Raises ValueError for a key that stands there twice."""
    values.once([key for key, _ in pairs])
    return dict(pairs)


def _sized(kind: type[AbstractSystem], options: Mapping[str, Any], theta: Params, x: Data) -> AbstractSystem:
    """The system with its options, and with the sizes of what is given."""
    try:
        sizes = kind.sizes(theta, x)
    except (IndexError, KeyError, TypeError, ValueError):  # the number of axes is wrong, which `build` tells
        sizes = {}
    read = {name: value for name, value in sizes.items() if name not in options}
    try:
        return registry.system(kind.name, read | dict(options), "system_options", KEY)
    except UserError as error:
        told = ", ".join(f"{name} = {value!r}" for name, value in read.items())
        raise UserError(f"{error} (read from params and data: {told})" if read else str(error)) from None


def _coordinates(given: Mapping[str, object], system: AbstractSystem, rule: AbstractEstimator) -> dict[str, Any]:
    """The coordinates that are named, as Python values. A row of a table has NaN where nobody uses a coordinate.

    Raises UserError for one of the system that neither uses. One of rules may be named for every rule, so that a loop
    over rules has one call.
    """
    used, of_rules = system.uses | rule.uses, registry.of_rules()
    named: dict[str, Any] = {}
    for name, value in given.items():
        coordinate = COORDINATES[name]
        unused = coordinate.optional and name not in used
        if value is None or (unused and _is_blank(value)):
            continue
        if unused and name not in of_rules:
            told = "; ".join(f"{item.name} uses {_listed(item.uses)}" for item in (system, rule))
            raise UserError(f"{name} = {values.shown(value)}: nobody uses it here: {told}")
        try:
            read = values.many(coordinate, value) if coordinate.listed else (values.one(coordinate, value),)
        except ValueError as error:
            raise UserError(f"{name} = {error}") from None
        if len(read) > 1:
            raise UserError(f"{name} = {list(read)}: measure compares one cell; gradbench.suite takes lists")
        named[name] = read[0]
    refuse_reference(named.get("reference"), system, named.get("solver", Solver.EULER), "reference")
    return named


def _listed(uses: frozenset[str]) -> str:
    """Coordinates in the order of their declaration."""
    return ", ".join(name for name in COORDINATES if name in uses) or "none of them"


def _is_blank(value: object) -> bool:
    """Whether a table shows this where it has no value."""
    plain = values.scalar(value)
    return type(plain).__name__ == "NAType" or (isinstance(plain, float) and math.isnan(plain))


def _source(given: object) -> str:
    """The path that `params_from` names, with or without a digest. Raises UserError where it is no checkpoint."""
    place = KEY.format(where="system_options", option=PARAMS_FROM)
    if not isinstance(given, str | PathLike) or isinstance(fspath(given), bytes):
        raise UserError(f"{place}: got {article(given)}, expected the path of a training or a checkpoint")
    source = str.__str__(fspath(given))
    named = re.fullmatch(r"(.+)@[0-9a-f]{16}", source, re.DOTALL)  # as in a row of a table
    path = named[1] if named else source
    there = trained(Path(path), place)
    if named and source != there:
        raise UserError(f"{place}: {source} has changed since")
    return path


def _refuse_unheld(named: Mapping[str, Any], made: Mapping[str, AbstractSystem | AbstractEstimator]) -> None:
    """Raise UserError for a coordinate or an option that the dtype of the cell cannot hold."""
    dtypes = named.get("dtype", COORDINATES["dtype"].default)
    numbers = [(n, v) for n, value in named.items() for v in (value if isinstance(value, list) else [value])]
    for where, item in made.items():
        knobs = item.knobs if isinstance(item, AbstractSystem) else frozenset()
        for f in fields(item):  # type: ignore[arg-type]
            place = f.name if f.name in knobs else KEY.format(where=where, option=f.name)
            numbers.append((place, getattr(item, f.name)))
    refuse_unheld(dtypes if isinstance(dtypes, list) else [str(dtypes)], numbers)


def _batch(system: AbstractSystem, x: Data, named: int | None) -> dict[str, int]:
    """The number of examples of given data. Raises UserError where it is not one number."""
    numbers = {name: len(x[name]) for name in sorted(system.per_example) if name in x and x[name].ndim}
    if len(set(numbers.values())) > 1:
        told = ", ".join(f"{number} of {name}" for name, number in numbers.items())
        raise UserError(f"data: entries disagree on the number of examples: {told}")
    for name, number in numbers.items():
        if named is not None and named != number:
            raise UserError(f"batch = {named}: data[{name!r}] has {number} examples")
        return {"batch": number}
    return {}


def _problem(grid: Mapping[str, Any], x: Data) -> Problem:
    """The problem of the one cell of a grid."""
    planned = plan(parse({"name": "measure", "about": "one cell", "grid": [dict(grid)]}, "measure"), "measure", x)
    if planned.skipped:
        raise UserError(f"measure: {planned.skipped[0][1]}")
    return planned.problems[0]


def _measurement(outcome: Outcome, field: Callable[[], Field]) -> Measurement:
    row = outcome.row()
    row |= {entry["column"]: entry["value"] for entry in row.pop("extra")}
    nested = {name: [dict(entry) for entry in row[name]] for name in ("params", "blocks", "budget")}
    return Measurement(
        status=outcome.status,
        reason=outcome.reason,
        cosines={p["param"]: p["cosine"] for p in row.pop("params")},
        blocks={b.pop("block"): b for b in row.pop("blocks")},
        budget={b.pop("param"): b for b in row.pop("budget")},
        estimate=_copied(outcome.estimate),
        reference=_copied(outcome.reference),
        row=row,
        field=field,
        nested=nested,
        **{name: row[name] for name in ("cosine", "norm_ratio", "rel_error", "residual", "antisymmetry")},
    )


def _copied(gradient: Params | None) -> Params | None:
    """A gradient in memory that nothing shares: that of bptt is the reference."""
    return None if gradient is None else {name: g.clone() for name, g in gradient.items()}
