"""Choosing rows by column or by option: the `where` of checks and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

IDENTITY = ("system_label", "estimator_label", "s", "damp", "T1", "T2", "beta", "eps", "seed", "dtype", "batch")
REFERENCE, CONTROL = "bptt", "control"  # estimators that are no rule to compare: the ruler, and its test
POINT = ("s", "damp", "T1", "T2", "beta", "eps", "seed", "dtype", "batch")


@cache
def _options(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    return content


def keys(row: Mapping[str, Any]) -> set[str]:
    """Everything that a `where` may name: columns, and options of the row's system and estimator."""
    return {*row, *_options(row["system_options"]), *_options(row["estimator_options"])}


def value(row: Mapping[str, Any], key: str) -> Any:
    """A column of the row, or else an option of its system or estimator; None where it has neither."""
    if key in row:
        return row[key]
    return (_options(row["system_options"]) | _options(row["estimator_options"])).get(key)


def matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether every key has one of its wanted values; numbers are equal to 9 digits."""
    return all(_among(value(row, key), wanted) for key, wanted in where.items())


def _among(found: Any, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(found, choice) for choice in choices)


def _equal(found: Any, wanted: Any) -> bool:
    both_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (found, wanted))
    return math.isclose(found, wanted, rel_tol=1e-9) if both_numbers else bool(found == wanted)
