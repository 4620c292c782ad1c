"""Suite files: grids to measure, thresholds of statuses, checks and tables. TOML, strictly checked.

Every mistake is a `UserError` that names the file, the key and the nearest known word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from gradbench.errors import UserError, near_miss, spoken
from gradbench.planning import files, registry, values
from gradbench.planning.overrides import Overrides, wrong_value
from gradbench.planning.values import Options
from gradbench.vocabulary.coordinates import COORDINATES, Coordinate, Value
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status, Thresholds

Choices = Annotated[tuple[tuple[str, Options], ...], BeforeValidator(values.choices)]
Number = Annotated[float, BeforeValidator(values.number)]
Whole = Annotated[int, BeforeValidator(values.whole)]
Words = Annotated[tuple[StrictStr, ...], BeforeValidator(values.words)]


def _names_folder(name: str) -> str:
    fault = values.misnamed(name)
    if not fault and name.startswith("."):
        fault = "it begins with a point"
    if not fault and name == "latest":
        fault = "the word means the run of any suite that was worked on last"
    if fault:
        raise ValueError(f"{name!r} cannot name a folder of runs: {fault}")
    return name


FolderName = Annotated[str, AfterValidator(_names_folder)]


def _along(coordinate: Coordinate) -> Any:
    """The field of a grid for a coordinate: its values, or None for the default of the system."""
    read = values.many if coordinate.listed else lambda c, value: (values.one(c, value),)
    return Annotated[tuple[coordinate.type, ...] | None, BeforeValidator(partial(read, coordinate))]


class Strict(BaseModel):
    """A table of a TOML file in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AbstractGrid(Strict):
    """A product of lists of values. `Grid` adds a list for every coordinate."""

    system: Choices
    estimator: Choices
    # folders or checkpoints of trainings, which hold the theta of every seed; None: theta is drawn
    params_from: Words | None = None

    def named(self, coordinate: Coordinate) -> tuple[Any, ...] | None:
        """The values of a coordinate that the grid names; None: it leaves the coordinate out."""
        values: tuple[Any, ...] | None = getattr(self, coordinate.name)
        return values

    def along(self, coordinate: Coordinate, defaults: Mapping[str, Value]) -> tuple[Any, ...]:
        """The values of a coordinate: the named ones, else the default of the coordinate, else that of the system."""
        default = defaults.get(coordinate.name) if coordinate.default is None else coordinate.default
        return self.named(coordinate) or (default,)


if TYPE_CHECKING:
    Grid = AbstractGrid
else:
    Grid = create_model("Grid", __base__=AbstractGrid, **{name: (_along(c), None) for name, c in COORDINATES.items()})

ANY = "any"  # as the status of a selection: every one but skipped
Extreme = Literal["min", "max"]
# slope: of log(metric) against log(coordinate), an order in beta; rate: the factor by which the metric changes when the
# coordinate grows by 1, as an error does by rho for every step of T2. Both by least squares.
Fit = Literal["slope", "rate"]
Reduction = Literal["min", "max", "mean", "median"] | Fit


def _metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"{name!r} is not a metric{near_miss(name, METRICS)}")
    return name


class _Selection(Strict):
    name: str
    where: dict[str, object] = {}  # column or option = value, or a list of values

    @field_validator("where")
    @classmethod
    def _statuses(cls, where: dict[str, object]) -> dict[str, object]:
        wanted = where.get("status", [])
        for status in wanted if isinstance(wanted, list) else [wanted]:
            if status not in list(Status) and wanted != ANY:
                raise ValueError(f"status = {status!r} is not a status{near_miss(str(status), (*Status, ANY))}")
        if wanted == [] and "status" in where:
            raise ValueError("status: the list is empty: nothing would match")
        return where


class Table(_Selection):
    """Cells of a run that are printed with its checks, with what is known of them."""

    columns: Words
    known: str = ""

    @field_validator("columns")
    @classmethod
    def _measured(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_metric, columns))


class Check(_Selection):
    """A claim about cells of a run. Without a matching cell, or with a NaN, it has no verdict, which is a failure.

    A check of a metric looks at settled cells, unless `where` names a status.
    """

    metric: str | None = None
    min: Number | None = None
    max: Number | None = None
    at: dict[str, Extreme] = {}  # take only the rows at the smallest or largest value of a coordinate
    reduce: dict[str, Reduction] = {}  # then reduce the metric over coordinates, in this order
    against: str | None = None  # the metric becomes its difference to this estimator at equal coordinates
    minus: str | None = None  # after all reductions: less this other metric of the same cell
    status: Status | None = None  # of every matching cell

    @field_validator("metric", "minus")
    @classmethod
    def _measured(cls, metric: str | None) -> str | None:
        return None if metric is None else _metric(metric)

    @field_validator("at", "reduce", mode="before")
    @classmethod
    def _coordinates(cls, over: object) -> object:
        for name in over if isinstance(over, dict) else ():
            if name not in COORDINATES:
                raise ValueError(f"{name!r} is not a coordinate{near_miss(str(name), COORDINATES)}")
        return over

    @model_validator(mode="after")
    def _says_something(self) -> Check:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min!r} is above max = {self.max!r}: no value can pass")
        if self.status is None and (self.metric is None or (self.min is None and self.max is None)):
            raise ValueError("a check needs a metric with min or max, or a status")
        if self.status is not None and (self.metric or self.at or self.reduce or self.against or self.minus):
            raise ValueError("a check of a status takes no metric, at, reduce, against or minus")
        if self.status is not None and "status" in self.where:
            raise ValueError("a check of a status that selects by status cannot fail")
        for coordinate, how in self.reduce.items():
            if how in get_args(Fit) and COORDINATES[coordinate].type is str:
                raise ValueError(f"reduce.{coordinate}: a {how} needs a coordinate with numbers")
        return self

    @property
    def fitted(self) -> bool:
        """Whether what is bounded is a slope or a rate, which may be any number."""
        return any(how in get_args(Fit) for how in self.reduce.values())


Outcome = Literal["holds", "holds under", "does not hold"]


class Statement(Strict):
    """A statement of the literature, tried in both directions.

    `published` are checks of what was stated, as it was stated; `conditioned` are checks of the same under a further
    condition, which `under` puts in words. `breaks` are checks that would fail if the statement held everywhere: of
    cells of the same rule outside its condition. `controls` are checks of another rule, of which the statement is
    wrong: they show that the metric can tell, and not that the condition matters. The outcome is "holds" where all of
    `published` pass, else "holds under" where all of `conditioned` pass, else "does not hold".
    """

    name: str  # the statement, in a sentence
    source: str
    expected: Outcome  # what was measured before: another outcome fails
    under: str = ""
    published: tuple[Check, ...]
    conditioned: tuple[Check, ...] = ()
    breaks: tuple[Check, ...] = ()
    controls: tuple[Check, ...] = ()

    @field_validator("published", "conditioned", "breaks", "controls", mode="before")
    @classmethod
    def _unnamed(cls, checks: object, info: ValidationInfo) -> object:
        if not isinstance(checks, list | tuple) or not all(isinstance(check, Mapping) for check in checks):
            raise ValueError(f"checks of a statement are written [[statement.{info.field_name}]]")
        return [{"name": info.field_name} | dict(check) for check in checks]

    @model_validator(mode="after")
    def _tried(self) -> Statement:
        if not self.published:
            raise ValueError("a statement needs a check below [[statement.published]]")
        if bool(self.under) != bool(self.conditioned):
            raise ValueError("under is the condition of [[statement.conditioned]]: one needs the other")
        if self.expected == "holds under" and not self.under:
            raise ValueError('expected = "holds under" needs a condition, in under')
        if self.expected != "does not hold" and not (self.breaks or self.controls):
            raise ValueError(
                "a statement that holds needs a check below [[statement.breaks]] or [[statement.controls]]: "
                "where does it fail?"
            )
        return self


class Suite(Strict):
    """A suite file."""

    name: FolderName
    about: str
    grid: tuple[Grid, ...]
    check: tuple[Check, ...] = ()
    statement: tuple[Statement, ...] = ()
    table: tuple[Table, ...] = ()
    thresholds: dict[str, object] = {}
    allow_incomplete: StrictBool = False  # error and oom rows do not make the run incomplete

    @field_validator("check", "statement", "table", mode="before")
    @classmethod
    def _listed(cls, items: object, info: ValidationInfo) -> object:
        if not isinstance(items, list | tuple):
            raise ValueError(f"{info.field_name}s are written [[{info.field_name}]]")
        return items

    @field_validator("grid", mode="before")
    @classmethod
    def _some(cls, grids: object) -> object:
        if isinstance(grids, dict):
            raise ValueError("grids are written [[grid]]")
        if not isinstance(grids, list) or not grids:
            raise ValueError("a suite needs at least one [[grid]]")
        return [_knobs_as_options(grid) for grid in grids]

    @field_validator("thresholds")
    @classmethod
    def _known(cls, thresholds: dict[str, object]) -> dict[str, object]:
        defaults = {f.name: getattr(Thresholds(), f.name) for f in fields(Thresholds)}
        for key in thresholds:
            if key not in defaults:
                raise ValueError(f"{key!r} is not a threshold{near_miss(key, defaults)}")
        return {key: _threshold(key, value, defaults[key]) for key, value in thresholds.items()}

    def checks(self) -> Iterator[tuple[str, tuple[Check, ...]]]:
        """All checks by the key under which they stand, those of statements included."""
        yield "check", self.check
        for i, statement in enumerate(self.statement):
            for part in ("published", "conditioned", "breaks", "controls"):
                yield f"statement[{i}].{part}", getattr(statement, part)

    def decide(self) -> Thresholds:
        """The thresholds: named by the suite, else the defaults."""
        named: dict[str, Any] = dict(self.thresholds)
        if "live" in named:
            named["live"] = Thresholds().live | named["live"]
        return Thresholds(**named)


def _knobs_as_options(grid: object) -> object:
    """A grid in which knobs of its systems, which stand beside coordinates, are options of these systems."""
    if not isinstance(grid, dict) or not (more := set(grid) - set(Grid.model_fields)) or "system" not in grid:
        return grid
    listed = grid["system"] if isinstance(grid["system"], list | tuple) else [grid["system"]]
    systems, moved = [], set[str]()
    for entry in listed:
        try:
            name, options = values.name_and_options(entry)
        except ValueError:  # which the check of the system tells
            return grid
        knobs = {k: grid[k] for k in sorted(more & registry.knobs(name, options))}
        if twice := set(knobs) & set(options):
            raise ValueError(f"{min(twice)} stands in the grid and in its system {name!r}")
        systems.append({"name": name} | options | knobs)
        moved |= set(knobs)
    return {k: v for k, v in grid.items() if k not in moved} | {"system": systems}


def _threshold(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, dict):
        if not isinstance(value, dict) or set(value) - set(default):
            raise ValueError(f"{key} takes a table of {', '.join(default)}")
        return {part: _threshold(f"{key}.{part}", v, default[part]) for part, v in value.items()}
    try:
        number = values.whole(value) if isinstance(default, int) else values.number(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    least = 1 if isinstance(default, int) else 0
    if number < least:
        raise ValueError(f"{key}: {value!r} is below {least}")
    return number


def load(path: Path, overrides: Mapping[str, object] | None = None) -> Suite:
    """Read and check a suite file, with some keys of every grid replaced."""
    content, replaced = files.read_kind(path, files.SUITES), Overrides.of(overrides)
    grids = content.get("grid")
    if replaced and isinstance(grids, list):
        content["grid"] = [grid | replaced if isinstance(grid, dict) else grid for grid in grids]
    return parse({"name": path.stem} | content, str(path), replaced.places)


def parse(content: Mapping[str, object], where: str, places: Mapping[str, str] = MappingProxyType({})) -> Suite:
    """Check the content of a suite.

    `where` names its file in errors, and `places` says how an error calls the keys of grids that are not from there.
    """
    try:
        return Suite.model_validate(dict(content))
    except ValidationError as error:
        told: dict[str, str] = {}
        for line in (_mistake(e, content, where, places) for e in error.errors()):
            mistake = re.sub(r"grid\[\d+\]", "grid", line).partition("; it is an option of")[0]
            told.setdefault(mistake, line)  # one in a key of every grid is told once
        raise UserError("\n".join(told.values())) from None


def _mistake(error: ErrorDetails, content: Mapping[str, Any], where: str, places: Mapping[str, str]) -> str:
    """What a message says of an error, with its place."""
    loc = error["loc"]
    key = str(loc[2]) if loc[0] == "grid" and len(loc) > 2 else ""
    if error["type"] == "extra_forbidden" and len(loc) == 3 and key:
        hint = option_hint(key, error["input"], content["grid"][loc[1]], places) or _hint_of_place(key, places)
        if hint:
            return f"{places.get(key) or f'{where}: grid[{loc[1]}].{key}'}: unknown key; {hint}"
    if key not in places:
        return f"{where}: {error_line(error)}"
    line = error_line(error | {"loc": (key,)}, Grid).removeprefix(key)
    if error["type"] != "value_error":
        return f"{places[key]}{line}"
    return wrong_value(places[key], key, error["input"], line.removeprefix(": "))


def option_hint(key: str, value: object, content: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Where a key belongs that is an option of a system or a rule of a grid or a training; "" where it is none.

    `places` are those of `parse`.
    """
    for kind in ("system", "estimator"):
        listed = content.get(kind)
        for entry in listed if isinstance(listed, list | tuple) else [listed]:
            try:
                name, options = values.name_and_options(entry)
            except ValueError:  # which is a mistake of its own
                continue
            if key in registry.options_of(kind, name, options):
                with_it = {"name": name, **options, key: value}
                written = f"{kind} = {values.toml(with_it)}"
                if key in places:
                    python = f"overrides={{{kind!r}: {with_it!r}}}"
                    written = spoken(python=python, shell=f"--set '{written}'")
                return f"it is an option of {name}: {written}"
    return ""


def _hint_of_place(key: str, places: Mapping[str, str]) -> str:
    """What to write in place of a key that replaces no key of a grid; "" where nobody can tell."""
    head, _, tail = key.partition(".")
    if key not in places or head not in Suite.model_fields:
        return ""
    if head == "grid" and tail in Grid.model_fields:
        return f"write {places[key].replace(key, tail)}, which replaces {tail} in every grid"
    return "keys of grids alone are replaced; this one is written in the file"


def parse_check(content: Mapping[str, object], where: str) -> Check:
    """Check the content of one check; `where` begins the message of a mistake."""
    try:
        return Check.model_validate(dict(content))
    except ValidationError as error:
        told = (error_line(e, Check, {}) for e in error.errors())
        raise UserError("\n".join(f"{where}: {line.removeprefix(': ')}" for line in told)) from None


# what is expected, by the type of a mistake that pydantic has words of its own for
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list",
}
_MODELS: dict[str, type[BaseModel]] = {"grid": Grid, "check": Check, "statement": Statement, "table": Table}


def error_line(
    error: ErrorDetails, root: type[BaseModel] = Suite, models: Mapping[str, type[BaseModel]] = _MODELS
) -> str:
    """One line: the key as a user would look it up, the mistake, the nearest known word."""
    unknown = error["type"] == "extra_forbidden"
    # pydantic appends the names of its branches to the path that the user wrote; these are no identifiers
    place = [part for part in error["loc"] if unknown or isinstance(part, int) or part.isidentifier()]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
    if unknown:
        model = models.get(str(place[0]), root) if len(place) > 1 else root
        word, (head, _, tail) = str(place[-1]), str(place[-1]).partition(".")
        holders = [name for name, inner in models.items() if word in inner.model_fields] if len(place) == 1 else []
        if tail and tail in getattr(models.get(head), "model_fields", ()):  # a key in quotes, or of --set
            if models is _MODELS:
                return f"{key}: unknown key; write {tail} below [[{head}]]"
            return f"{key}: unknown key; the whole table is set at once: {head} = {{{tail} = ..., ...}}"
        if holders:
            return f"{key}: unknown key; it is a key of {' or '.join(holders)}"
        return f"{key}: unknown key{near_miss(word, model.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{key} = {error['input']!r} is not a choice{near_miss(str(error['input']), known)}"
    if error["type"] in _EXPECTED:
        return f"{key}: {values.shown(error['input'])} is not {_EXPECTED[error['type']]}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}"
