"""How a page writes numbers, coordinates and the words of the tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from unicodedata import lookup

from gradbench.estimators.base import Role
from gradbench.pages.definitions import DEFINITIONS
from gradbench.tables.schema import COLUMNS
from gradbench.tables.text import listed
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GREEK = {  # the symbols of coordinates that are one letter
    rf"\{name}": lookup(f"GREEK SMALL LETTER {name.removeprefix('var').upper()}")
    for name in ("alpha", "beta", "gamma", "delta", "varepsilon", "eta", "kappa", "rho", "sigma", "tau", "omega")
}
LEAST = 0.001  # per cent: smaller errors are told as such
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def letter(name: str) -> str:
    """A coordinate as a page writes it: the Greek letter that its symbol is, else its name in the tables."""
    symbol = COORDINATES[name].symbol.strip("$") if name in COORDINATES else ""
    return GREEK.get(symbol, name)


def value(given: object) -> str:
    """A value of a coordinate."""
    if isinstance(given, float):
        return f"{given:g}".replace("-", MINUS) if given == given else DASH
    return DASH if given is None else str(given)


def at(values: Mapping[str, object]) -> str:
    """Values of coordinates: T2 = 60, β = 0.02."""
    return ", ".join(f"{letter(name)} = {value(v)}" for name, v in values.items())


def cosine(given: float) -> str:
    """Four decimals, or six where four would read 1."""
    if not math.isfinite(given):
        return DASH
    text = f"{given:.4f}"
    return (f"{given:.6f}" if text == "1.0000" else text).replace("-", MINUS)


def percent(share: float) -> str:
    """A relative error in percent, with three digits, where it is not too small to matter."""
    if not math.isfinite(share):
        return "not finite"
    digits = 100 * share
    if 0 < digits < LEAST:
        return f"<{LEAST} %"
    return f"{digits:,.0f} %" if digits >= 1000 else f"{digits:.3g} %"


def count(number: float) -> str:
    """A whole number with commas."""
    return f"{number:,.0f}"


def many(number: int, one: str, more: str = "") -> str:
    """A number of things: 1 cell, 2 cells."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def span(low: float, high: float, digits: int | None = None) -> str:
    """Two numbers as a range, or one where they read the same."""
    a, b = (count(v) if digits is None else f"{v:.{digits}g}" for v in (low, high))
    return a if a == b else f"{a} to {b}"


def some(values: Iterable[object], most: int = 4) -> str:
    """A few values, or the first and the last where there are many."""
    given = [*values]
    return listed(map(value, given)) if len(given) <= most else f"{value(given[0])} to {value(given[-1])}"


ADVICE = {  # what may be done where a cell has this status; nothing is to be done where it is settled or skipped
    Status.ERROR: "read its reason and run it again",
    Status.OOM: "take fewer examples or a larger device",
    Status.DIVERGED: "a longer T1 does not help; a smaller step eps, a smaller s or more damp may",
    Status.COLLAPSED: "the state decays to 0 and a longer T1 does not help; a larger s or a stronger input may",
    Status.UNSETTLED: "a longer T1 may help, or another solver",
    Status.UNSTABLE: "a longer T1 does not help; a smaller s or more damp may",
    Status.NUDGE_DIVERGED: "a smaller beta or a shorter T2 may help",
    Status.UNDEFINED: "other data or another cost are needed, since the reference has nothing to compare with",
}
PAGE = {
    "faithful": "an estimate whose error is at most the threshold of this name, of the whole gradient and of every "
    "parameter that has a reference, in every seed",
    "place": "values of all coordinates but the seed and those that the rule brings; it is settled where every seed is",
    "setting": "values of the coordinates that a rule brings, such as T2 and β",
    "work": "evaluations of the force that the cell needs alone, the free phase included; a product with the Jacobian "
    "or its transpose counts as three",
    "error": "the largest relative error of the whole gradient and of its live parameters",
    "global cosine": "the cosine of the whole gradient, in which the parameters with the largest norm decide",
    "without a cause": "the run did not take this error apart",
    str(Role.CONTROL): "the reference, changed so that every reading of it is known: it tests the ruler and not a rule",
}


def glossary() -> dict[str, dict[str, str]]:
    """What every word of a page means: by kind, then by word."""
    coordinates = {
        name: c.words + (f", {c.unit}" if c.unit else "") + (f"; symbol {letter(name)}" if letter(name) != name else "")
        for name, c in COORDINATES.items()
    }
    return {
        "words of this page": PAGE,
        "statuses": {
            str(s): s.prose + (f". What may be done: {told}" if (told := ADVICE.get(s)) else "") for s in Status
        },
        "causes": {str(cause): cause.prose for cause in Cause},
        "coordinates": coordinates,
        "metrics": {name: DEFINITIONS[name] for name in COLUMNS["cells"] if name in DEFINITIONS},
    }
