"""Keys of a suite or of a training file that a caller replaces, under the names that messages call them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradbench.data.given import table
from gradbench.errors import UserError, placed
from gradbench.planning import registry, values
from gradbench.vocabulary.coordinates import COORDINATES

# what the keys of a grid take that are no coordinates
_TAKEN = {
    "system": "a name, a table of a name and options, or a list of these",
    "estimator": "a name, a table of a name and options, or a list of these",
    "params_from": "the folder or the checkpoint of a training, or a list of these",
}


ITEMS = ("system", "estimator")  # keys that take what the session made


class Overrides(dict[str, Any]):
    """The values that replace those of a file, by key. `called` says how a message calls a key."""

    def __init__(self, given: Mapping[str, Any], called: str) -> None:
        super().__init__(given)
        self._called = called

    @classmethod
    def of(cls, given: object, argument: str = "overrides") -> Overrides:
        """What a caller hands over: a table, or None for none. Raises UserError for anything else."""
        if isinstance(given, Overrides):
            return given
        by_key = table(given, argument, "a table of values by key")
        for key in by_key:
            if not isinstance(key, str):
                raise UserError(f"{argument}: got the key {key!r}, expected a name")
        written = {str(key): _written(argument, str(key), value) for key, value in by_key.items()}
        return cls(written, f"{argument}[{{key!r}}]")

    @property
    def places(self) -> dict[str, str]:
        """How a message calls every key."""
        return {key: self._called.format(key=key) for key in self}


def _written(argument: str, key: str, value: object) -> object:
    """A value as a file has it: a system or a rule of the session stands there by its name and options."""
    if key not in ITEMS:
        return value
    with placed(f"{argument}[{key!r}]"):
        return registry.written(value)


def of_overrides(name: str) -> str:
    """Where a key of a grid belongs in a call that has `overrides`."""
    return f"{name!r} goes into overrides={{{name!r}: ...}}" if name in (*ITEMS, *COORDINATES) else ""


def wrong_value(place: str, key: str, value: object, reason: str) -> str:
    """What a message says of a value of a grid: what it is, what is expected, and why it is none of that."""
    coordinate = COORDINATES.get(key)
    expected = _TAKEN.get(key) if coordinate is None else coordinate.prose
    got = f"got {values.shown(value)}, expected {expected}: " if expected else ""
    return f"{place}: {got}{reason}"
