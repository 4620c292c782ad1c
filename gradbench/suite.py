"""Suite files: what to measure, over which grids, and what must hold. TOML, strictly checked.

Every mistake is a `UserError` that names the file, the key and the nearest known word.
"""

from __future__ import annotations

import math
import os.path
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from gradbench.errors import UserError, near_miss
from gradbench.notation import METRICS
from gradbench.status import Status, Thresholds

SUITES = Path("suites")
LARGEST = 2**63 - 1  # of a whole number: what a table can hold


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    if not abs(value) < math.inf:
        raise ValueError(f"{value!r} is not finite")
    if abs(value) > sys.float_info.max:  # whole numbers of TOML have no end
        raise ValueError("a number of more than 300 digits")
    return float(value)


def _whole(value: Any) -> int:
    if not _number(value).is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value!r} is above {LARGEST}")
    return int(value)


def _expand(value: Any) -> list[Any]:
    """A scalar, a list, {linspace = [start, stop, n]} or {logspace = [exponent, exponent, n]}."""
    if not isinstance(value, dict):
        values = value if isinstance(value, list) else [value]
    else:
        if len(value) != 1 or (kind := next(iter(value))) not in ("linspace", "logspace"):
            raise ValueError(f"a range is {{linspace = [start, stop, n]}} or {{logspace = ...}}, not {value!r}")
        if not isinstance(value[kind], list) or len(value[kind]) != 3:
            raise ValueError(f"{kind} takes [start, stop, n]")
        start, stop, n = _number(value[kind][0]), _number(value[kind][1]), _whole(value[kind][2])
        if not 2 <= n <= 100_000:
            raise ValueError(f"{kind} takes 2 to 100,000 points, not {n:,}")
        if kind == "logspace" and max(abs(start), abs(stop)) > 300:
            raise ValueError("logspace takes exponents of ten from -300 to 300")
        values = [start + (stop - start) * i / (n - 1) for i in range(n)]
        if kind == "logspace":
            values = [float(f"{10.0**v:.12g}") for v in values]
        values = [int(v) if v == int(v) else v for v in values]  # so that a range also serves options that count
    if not values:
        raise ValueError("the list is empty: nothing would run")
    return values


def _once(values: list[Any]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} stands there twice")
    return tuple(values)


def _floats(value: Any) -> tuple[float, ...]:
    return _once([_number(v) for v in _expand(value)])


def _ints(value: Any) -> tuple[int, ...]:
    return _once([_whole(v) for v in _expand(value)])


def _strings(value: Any) -> tuple[Any, ...]:
    return _once(_expand(value))


def chosen_one(entry: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a system or an estimator. Raises ValueError for what is no name and no table with one."""
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(f"{entry!r} is neither a name nor a table with a name")
    return table["name"], {k: v for k, v in table.items() if k != "name"}


def settings(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """KEY=VALUE of a command line or a label: values are TOML, several of them a list, bare words strings."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise UserError(f"{where} {pair!r}: expected KEY=VALUE")
        if key in found:
            raise UserError(f"{where} {pair!r}: {key} is set twice")
        for attempt in (f"v = {text}", f"v = [{text}]"):
            try:
                found[key] = tomllib.loads(attempt)["v"]
                break
            except tomllib.TOMLDecodeError:
                continue
        else:
            found[key] = text.split(",") if "," in text else text
    return found


def _choices(value: Any) -> tuple[tuple[str, dict[str, tuple[Any, ...]]], ...]:
    """Names, or tables of a name and options; a list or a range as an option makes a grid of it."""
    chosen = []
    for entry in _expand(value) if not isinstance(value, dict) else [value]:
        name, options = chosen_one(entry)
        chosen.append((name, {k: _once(_expand(v)) for k, v in options.items()}))
    return _once(chosen)


Floats = Annotated[tuple[float, ...], BeforeValidator(_floats)]
Ints = Annotated[tuple[int, ...], BeforeValidator(_ints)]
Choices = Annotated[tuple[tuple[str, dict[str, tuple[Any, ...]]], ...], BeforeValidator(_choices)]
Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
Dtype = Literal["float32", "float64"]


class Strict(BaseModel):
    """A table of a TOML file in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Grid(Strict):
    """A product of lists. What is left out takes the system's default."""

    system: Choices
    estimator: Choices
    s: Floats | None = None  # coupling scale sigma
    damp: Floats | None = None  # damping c
    T1: Ints | None = None  # free steps
    T2: Ints | None = None  # depth of the second phase
    beta: Floats | None = None  # nudge, > 0
    eps: Floats | None = None  # step size, > 0
    seed: Ints = (0,)
    dtype: Annotated[tuple[Dtype, ...], BeforeValidator(_strings)] = ("float32",)
    batch: int | None = Field(None, ge=1, le=LARGEST, strict=True)
    # folders or checkpoints of trainings: theta of each seed is what was trained; left out, it is drawn
    params_from: Annotated[tuple[StrictStr, ...], BeforeValidator(_strings)] | None = None

    @field_validator("T1", "T2", "beta", "eps", "seed")
    @classmethod
    def _positive(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        least = {"T1": 1, "T2": 1, "seed": 0}.get(str(info.field_name))
        for value in values or ():
            if least is None and value <= 0:
                raise ValueError(f"{value!r} is not positive")
            if least is not None and value < least:
                raise ValueError(f"{value!r} is below {least}")
        return values


Coordinate = Literal["s", "damp", "T1", "T2", "beta", "eps", "seed", "dtype", "batch"]
Extreme = Literal["min", "max"]
Reduction = Literal["min", "max", "mean", "median"]


class _Selection(Strict):
    name: str
    where: dict[str, Any] = {}  # column or option = value, or a list of values

    @field_validator("where")
    @classmethod
    def _statuses(cls, where: dict[str, Any]) -> dict[str, Any]:
        wanted = where.get("status", [])
        for status in wanted if isinstance(wanted, list) else [wanted]:
            if status not in list(Status):
                raise ValueError(f"status = {status!r} is not a status{near_miss(str(status), Status)}")
        if wanted == [] and "status" in where:
            raise ValueError("status: the list is empty: nothing would match")
        return where


class Table(_Selection):
    """Cells of a run to print with its checks, beside what is known of them."""

    columns: Annotated[tuple[str, ...], BeforeValidator(_strings)]
    known: str = ""

    @field_validator("columns")
    @classmethod
    def _measured(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            if column not in METRICS:
                raise ValueError(f"{column!r} is not a metric{near_miss(str(column), METRICS)}")
        return columns


class Check(_Selection):
    """A claim about cells of a run. No matching cell, or a NaN among them, is no verdict: a failure."""

    metric: str | None = None
    min: Number | None = None
    max: Number | None = None
    at: dict[Coordinate, Extreme] = {}  # keep the rows at the smallest or largest value of a coordinate
    reduce: dict[Coordinate, Reduction] = {}  # then reduce the metric over coordinates, in this order
    against: str | None = None  # the metric becomes its difference to this estimator at equal coordinates
    status: Status | None = None  # every matching cell has it

    @field_validator("metric")
    @classmethod
    def _measured(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS:
            raise ValueError(f"{metric!r} is not a metric{near_miss(metric, METRICS)}")
        return metric

    @model_validator(mode="after")
    def _says_something(self) -> Check:
        if self.status is None and (self.metric is None or (self.min is None and self.max is None)):
            raise ValueError("a check needs a metric with min or max, or a status")
        if self.status is not None and (self.metric or self.at or self.reduce or self.against):
            raise ValueError("a check of a status takes no metric, at, reduce or against")
        if self.status is not None and "status" in self.where:
            raise ValueError("a check of a status that selects by status cannot fail")
        return self


class Suite(Strict):
    """A suite file."""

    name: str
    about: str
    grid: tuple[Grid, ...]
    check: tuple[Check, ...] = ()
    table: tuple[Table, ...] = ()
    thresholds: dict[str, Any] = {}
    allow_incomplete: StrictBool = False  # error and oom rows do not make the run incomplete

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        if re.search(r"[/\\\x00-\x1f]|^\.|^latest$|^$", name):
            raise ValueError(f"{name!r} cannot name a folder of runs")
        return name

    @field_validator("check", "table", mode="before")
    @classmethod
    def _listed(cls, items: Any, info: ValidationInfo) -> Any:
        if not isinstance(items, list | tuple):
            raise ValueError(f"{info.field_name}s are written [[{info.field_name}]]")
        return items

    @field_validator("grid", mode="before")
    @classmethod
    def _some(cls, grids: Any) -> Any:
        if not isinstance(grids, list) or not grids:
            raise ValueError("a suite needs at least one [[grid]]")
        return grids

    @field_validator("thresholds")
    @classmethod
    def _known(cls, values: dict[str, Any]) -> dict[str, Any]:
        defaults = {f.name: getattr(Thresholds(), f.name) for f in fields(Thresholds)}
        for key in values:
            if key not in defaults:
                raise ValueError(f"{key!r} is not a threshold{near_miss(key, defaults)}")
        return {key: _threshold(key, value, defaults[key]) for key, value in values.items()}

    def decide(self) -> Thresholds:
        """The thresholds: the suite's own over the defaults."""
        own = dict(self.thresholds)
        if "live" in own:
            own["live"] = Thresholds().live | own["live"]
        return Thresholds(**own)


def _threshold(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, dict):
        if not isinstance(value, dict) or set(value) - set(default):
            raise ValueError(f"{key} takes a table of {', '.join(default)}")
        return {part: _threshold(f"{key}.{part}", v, default[part]) for part, v in value.items()}
    try:
        number = _whole(value) if isinstance(default, int) else _number(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    least = 1 if isinstance(default, int) else 0
    if number < least:
        raise ValueError(f"{key}: {value!r} is below {least}")
    return number


def find(suite: str, folder: Path = SUITES, what: str = "suite") -> Path:
    """The file of a suite, or of what else ships in a folder, given as a path or by name."""
    path = Path(suite)
    there = os.path.isfile(path)  # unlike Path.is_file, False for a name too long for a file
    if path.suffix == ".toml" or there:
        if not there:
            others = [str(p) for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
            raise UserError(f"{what} {suite!r} does not exist{near_miss(suite, others) if others else ''}")
        return path
    shipped = {p.stem: p for p in folder.glob("*.toml")}
    if suite not in shipped:
        hint = near_miss(suite, shipped) if shipped else f"; there is no folder {folder}/ here"
        raise UserError(f"{what} {suite!r} does not exist{hint}")
    return shipped[suite]


def about(path: Path) -> str:
    """The one sentence that a suite file says of itself."""
    try:
        return str(tomllib.loads(path.read_text("utf-8")).get("about", ""))
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"


def load(path: Path, overrides: dict[str, Any] | None = None) -> Suite:
    """Read and check a suite file, with some keys of every grid replaced."""
    content = read(path)
    grids = content.get("grid")
    if overrides and isinstance(grids, list):
        content["grid"] = [grid | overrides if isinstance(grid, dict) else grid for grid in grids]
    return parse({"name": path.stem} | content, str(path))


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError where it is none."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except ValueError as error:  # of tomllib, of utf-8, of a number without end
        raise UserError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse(content: dict[str, Any], where: str) -> Suite:
    """Check the content of a suite; `where` names its file in errors."""
    try:
        return Suite(**content)
    except ValidationError as error:
        # what is set for every grid is wrong in every grid, and is said once
        told = {re.sub(r"^grid\[\d+\]", "grid", line): line for line in map(explain, reversed(error.errors()))}
        raise UserError("\n".join(f"{where}: {line}" for line in reversed(told.values()))) from None


_MODELS: dict[str, type[BaseModel]] = {"grid": Grid, "check": Check, "table": Table}


def explain(error: ErrorDetails, root: type[BaseModel] = Suite, models: Mapping[str, type[BaseModel]] = _MODELS) -> str:
    """One line: the key as a user would look it up, what is wrong, the near miss."""
    unknown = error["type"] == "extra_forbidden"
    # a path ends at the last name the user wrote: what follows are pydantic's own branch names
    place = [part for part in error["loc"] if unknown or isinstance(part, int) or part.isidentifier()]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
    if unknown:
        model = models.get(str(place[0]), root) if len(place) > 1 else root
        return f"{key}: unknown key{near_miss(str(place[-1]), model.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{key} = {error['input']!r} is not a choice{near_miss(str(error['input']), known)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}"
