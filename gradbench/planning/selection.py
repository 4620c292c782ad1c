"""Choosing rows by column or by option: the `where` of checks and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from gradbench.vocabulary.coordinates import COORDINATES

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
    both_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (actual, wanted))
    return math.isclose(actual, wanted, rel_tol=1e-9) if both_numbers else bool(actual == wanted)
