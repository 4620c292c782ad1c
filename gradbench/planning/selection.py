"""Choosing rows by column or by option: the `where` of checks and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from gradbench.vocabulary.coordinates import COORDINATES

NAMED = 12  # values that a message lists
IDENTITY = ("system_label", "estimator_label", *COORDINATES)  # columns that tell one cell from another


@cache
def _options(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    return content


def keys(row: Mapping[str, Any]) -> set[str]:
    """The keys that a `where` may name: the columns of a row, and the options of its system and estimator."""
    return {*row, *_options(row["system_options"]), *_options(row["estimator_options"])}


def value(row: Mapping[str, Any], key: str) -> Any:
    """A column of the row, or else an option of its system or estimator; None where there is neither."""
    if key in row:
        return row[key]
    return (_options(row["system_options"]) | _options(row["estimator_options"])).get(key)


def matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether the row has a wanted value at every key of `where`. Numbers are compared to 9 digits."""
    return all(_among(value(row, key), wanted) for key, wanted in where.items())


def _among(actual: Any, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(actual, choice) for choice in choices)


def _equal(actual: Any, wanted: Any) -> bool:
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in (actual, wanted)):
        return bool(actual == wanted)
    try:
        return math.isclose(actual, wanted, rel_tol=1e-9)
    except OverflowError:  # a whole number that no float holds
        return bool(actual == wanted)


def why_none(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any], kind: str) -> str:
    """Why no row matches: a value that no row has, with those that there are, or values that no row has together.

    The message calls the rows cells of a `kind`, such as planned.
    """
    for key, wanted in where.items():
        if not any(matches(row, {key: wanted}) for row in rows):
            return f"no {kind} cell has {key} = {_toml(wanted)}; {key} is {_named(value(row, key) for row in rows)}"
    together = " and ".join(f"{key} = {_toml(wanted)}" for key, wanted in where.items())
    return f"no {kind} cell has {together} together"


def _named(values: Iterable[Any]) -> str:
    """Different values, numbers by size."""

    def place(text: str) -> tuple[bool, float, str]:
        number = isinstance(different[text], int | float)
        return not number, different[text] if number else 0.0, text

    different = {_toml(v): v for v in values if v is not None and v == v}
    told = sorted(different, key=place)
    more = f" ... ({len(told):,} values)" if len(told) > NAMED else ""
    return (", ".join(told[:NAMED]) or "null in all of them") + more


def _toml(wanted: Any) -> str:
    return json.dumps(wanted, default=str, ensure_ascii=False)
