"""Ranges of the numbers among options: `least`, `above` and `most` in the metadata of a field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gradbench.errors import UserError

SIZES = 2**31  # all whole numbers are counts or sizes: from 1 and below this


def outside(number: float, span: Mapping[str, Any]) -> str:
    """How a number is out of the range that the metadata of its field give, in words; empty where it is not."""
    if number < span.get("least", -math.inf):
        return f"is below {span['least']}"
    if not number > span.get("above", -math.inf):
        return f"is not above {span['above']}"
    if number > span.get("most", math.inf):
        return f"is above {span['most']}"
    return ""


def no_size(number: float) -> str:
    """How a whole number is no count and no size, in words; empty where it is one."""
    return "" if 1 <= number < SIZES else "is no size: it is not between 1 and 2**31 - 1"


def refuse_outside(item: Any) -> None:
    """Raise UserError where a number among the options of a system or of a rule is out of its range."""
    for f in fields(item):
        value = getattr(item, f.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        told = "" if math.isfinite(value) else "is not finite"
        told = told or outside(value, f.metadata) or (no_size(value) if f.type in ("int", int) else "")
        if told:
            raise UserError(f"{item.name}: {f.name} = {value!r} {told}")
