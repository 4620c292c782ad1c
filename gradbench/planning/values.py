"""Values as people write them, in TOML and on the command line: numbers, lists, ranges, KEY=VALUE."""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Iterable, Sequence

from gradbench.errors import UserError
from gradbench.vocabulary.coordinates import Coordinate

LARGEST = 2**63 - 1  # whole number that a table can hold
POINTS = 100_000  # of a range, at most
Options = dict[str, tuple[object, ...]]  # of a system or an estimator: values by name


def number(value: object) -> float:
    """A finite float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    if not abs(value) < math.inf:
        raise ValueError(f"{value!r} is not finite")
    if abs(value) > sys.float_info.max:  # whole numbers of TOML have any number of digits
        raise ValueError("a number of more than 300 digits")
    return float(value)


def whole(value: object) -> int:
    """An int that a table can hold; 3.0 counts as 3."""
    if not number(value).is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    assert isinstance(value, int | float)
    if abs(value) > LARGEST:
        raise ValueError(f"{value!r} is above {LARGEST}")
    return int(value)


def expanded(value: object) -> list[object]:
    """The values of a scalar, a list, {linspace = [start, stop, n]} or {logspace = [exponent, exponent, n]}."""
    if isinstance(value, dict):
        return list(_range(value))
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("the list is empty: nothing would run")
    return values


def _range(table: dict[str, object]) -> Sequence[float]:
    if len(table) != 1 or (kind := next(iter(table))) not in ("linspace", "logspace"):
        raise ValueError(f"a range is {{linspace = [start, stop, n]}} or {{logspace = ...}}, not {table!r}")
    ends = table[kind]
    if not isinstance(ends, list) or len(ends) != 3:
        raise ValueError(f"{kind} takes [start, stop, n]")
    start, stop, n = number(ends[0]), number(ends[1]), whole(ends[2])
    if not 2 <= n <= POINTS:
        raise ValueError(f"{kind} takes 2 to {POINTS:,} points, not {n:,}")
    if kind == "logspace" and max(abs(start), abs(stop)) > 300:
        raise ValueError("logspace takes exponents of ten from -300 to 300")
    values = [start + (stop - start) * i / (n - 1) for i in range(n)]
    if kind == "logspace":
        values = [float(f"{10.0**v:.12g}") for v in values]
    return [int(v) if v == int(v) else v for v in values]  # so that a range may give whole numbers


def once(values: Sequence[object]) -> tuple[object, ...]:
    """The values. Raises ValueError where two are equal."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} stands there twice")
    return tuple(values)


def words(value: object) -> tuple[object, ...]:
    """A word or a list of words, none twice."""
    return once(expanded(value))


def one(coordinate: Coordinate, value: object) -> float | int | str:
    """A single value of a coordinate."""
    parsed = value if coordinate.type is str else whole(value) if coordinate.type is int else number(value)
    coordinate.check(parsed)  # type: ignore[arg-type]  # a word is checked against the choices
    return parsed  # type: ignore[return-value]


def many(coordinate: Coordinate, value: object) -> tuple[object, ...]:
    """The values of a coordinate along a grid: a scalar, a list or a range, none twice."""
    return once([one(coordinate, v) for v in expanded(value)])


def name_and_options(entry: object) -> tuple[str, dict[str, object]]:
    """Name and options of a system or an estimator, given as a name or as a table with a name."""
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(f"{entry!r} is neither a name nor a table with a name")
    return table["name"], {k: v for k, v in table.items() if k != "name"}


def choices(value: object) -> tuple[object, ...]:
    """Names, or tables of a name and options. An option may be a list or a range of values."""
    chosen = []
    for entry in expanded(value) if not isinstance(value, dict) else [value]:
        name, options = name_and_options(entry)
        chosen.append((name, {k: once(expanded(v)) for k, v in options.items()}))
    return once(chosen)


def settings(pairs: Iterable[str], where: str) -> dict[str, object]:
    """KEY=VALUE of a command line or a label, by key.

    A value is TOML; several values with commas are a list; any other text is a string. Raises UserError, since every
    caller is a command; `where` begins its message.
    """
    read: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise UserError(f"{where} {pair!r}: expected KEY=VALUE")
        if key in read:
            raise UserError(f"{where} {pair!r}: {key} is set twice")
        for attempt in (f"v = {text}", f"v = [{text}]"):
            try:
                read[key] = tomllib.loads(attempt)["v"]
                break
            except tomllib.TOMLDecodeError:
                continue
        else:
            read[key] = text.split(",") if "," in text else text
    return read
