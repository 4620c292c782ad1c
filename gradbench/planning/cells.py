"""A cell: one point at which one estimator is measured on one system, with its key and its labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from gradbench.errors import UserError, spoken
from gradbench.planning import registry
from gradbench.planning.regular_files import CHECKPOINT, regular
from gradbench.vocabulary.coordinates import COORDINATES, LATE, Point, Value

PARAMS_FROM = "params_from"  # among the options of a system: the checkpoint of its parameters
TRAININGS = Path("results/training")  # of `gradbench train` without --out: a folder for every training file
_KINDS: tuple[Literal["system", "estimator"], ...] = ("system", "estimator")
NAMES = ("system", "system_options", "estimator", "estimator_options")
_UNSHARED: dict[str, Any] = {c.attribute: None for c in COORDINATES.values() if c.shared}
# of a cell: the values that decide the free trajectory, which are equal in all cells of one problem
common: attrgetter[Any] = attrgetter(
    "system", "system_options", *(c.attribute for c in COORDINATES.values() if not c.shared)
)

# the values of a cell that few others are equal to, and those that many have in common
_COUNTED = sorted((c for c in COORDINATES.values() if c.type is not str and not c.late), key=lambda c: c.name)
_NAMED = [c for c in COORDINATES.values() if c not in _COUNTED]
_NUMBERS: attrgetter[Any] = attrgetter(*(c.attribute for c in _COUNTED))
_WORDS: attrgetter[Any] = attrgetter(*NAMES, *(c.attribute for c in _NAMED))
# all values of a cell, and the columns of the tables in which they stand
_COLUMNS = (*NAMES, *COORDINATES)
_VALUES: attrgetter[Any] = attrgetter(*NAMES, *(c.attribute for c in COORDINATES.values()))


@dataclass(frozen=True, kw_only=True)
class Cell(Point):
    """A system and an estimator at one point."""

    system: str
    system_options: str  # canonical JSON, defaults included
    estimator: str
    estimator_options: str

    @classmethod
    def of(cls, coordinates: Mapping[str, Any]) -> Cell:
        """The cell with these `coordinates`, as the property gives them."""
        named = {name: coordinates[name] for name in NAMES}
        known = {**LATE, **coordinates}
        return cls(**named, **{c.attribute: known[name] for name, c in COORDINATES.items()})

    @cached_property
    def key(self) -> str:
        """Content key: equal cells have equal keys in every run of every suite."""
        text = _around(_WORDS(self)) % tuple(map(_json, _NUMBERS(self)))  # as `key_at`, in a quarter of the time
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(_VALUES(self))  # once, since a pack looks up its cells again and again

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent, in which equal texts have another hash."""
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    @property
    def coordinates(self) -> dict[str, Value]:
        """All that tells cells apart: system, estimator, options and coordinates, under the names of the tables."""
        return dict(zip(_COLUMNS, _VALUES(self), strict=True))

    @property
    def labels(self) -> dict[str, str]:
        """System and estimator as people read them."""
        return {f"{kind}_label": _label(getattr(self, kind), getattr(self, f"{kind}_options"), kind) for kind in _KINDS}

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that say which cell a row of the tables is of."""
        return self.coordinates | {"cell": self.key, **self.labels, "dataset": _dataset(self.system_options)}

    @property
    def knobs(self) -> dict[str, float]:
        """The values of the knobs that the system brings, which are options of it."""
        return _knobs(self.system, self.system_options)

    @property
    def steps(self) -> int:
        """Steps of the free phase: T1, or 0 where the free state is a forward pass."""
        return self.T1 or 0

    @property
    def problem(self) -> Cell:
        """The coordinates that decide the free trajectory; all other coordinates are blank."""
        return replace(self, estimator="", estimator_options="", **_UNSHARED)


def identities(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """The columns that say which cells the rows of a table are of, as `identity` says it of one."""
    named = [*((name, name) for name in NAMES), *((name, c.attribute) for name, c in COORDINATES.items())]
    columns: dict[str, list[Any]] = {name: list(map(attrgetter(attribute), cells)) for name, attribute in named}
    columns["cell"] = [cell.key for cell in cells]
    for kind in _KINDS:
        pairs = zip(columns[kind], columns[f"{kind}_options"], strict=True)
        columns[f"{kind}_label"] = [_label(*pair, kind) for pair in pairs]
    columns["dataset"] = list(map(_dataset, columns["system_options"]))
    return columns


@registry.remembered
def _label(name: str, options: str, kind: Literal["system", "estimator"]) -> str:
    """A name with the options that differ from the defaults; trained parameters show as training and digest."""
    known = json.loads(options)
    if PARAMS_FROM in known:
        path, _, content = known[PARAMS_FROM].rpartition("@")
        checkpoint = Path(path)  # <training>/<id>/checkpoint.pt, or any file
        known[PARAMS_FROM] = f"{checkpoint.parent.parent.name or checkpoint.stem}@{content[:8]}"
    return registry.label(name, json.dumps(known), kind)


@registry.remembered
def _knobs(system: str, options: str) -> dict[str, float]:
    named = json.loads(options)
    return {name: named[name] for name in sorted(registry.knobs(system, named))}


@cache
def _dataset(options: str) -> str | None:
    name: str | None = json.loads(options).get("dataset")
    return name


def trained(path: Path, where: str = PARAMS_FROM) -> str:
    """A checkpoint as path@digest, so that the name of a cell holds the parameters that it is measured at.

    `path` is a checkpoint, the folder of a training, or the folder of all trainings of a file: the last one counts.
    Raises UserError for anything else; `where` begins the message.
    """
    if "\0" in str(path):
        raise UserError(f"{where} = {str(path)!r} cannot be a path: it holds a zero byte")
    trainings = sorted(path.glob("*/checkpoint.pt"))  # in the order of time, with which ids begin
    file = path / "checkpoint.pt" if path.is_dir() else path
    file = trainings[-1] if trainings and not file.exists() else file
    try:
        return f"{file}@{hashlib.sha256(regular(file, CHECKPOINT)).hexdigest()[:16]}"
    except OSError as error:
        call = spoken(python=f"gradbench.train({path.name!r})", shell=f"gradbench train {path.name}")
        way_out = f". To make one: {call}" if path.parent == TRAININGS else ""
        told = "it is a folder without a checkpoint.pt" if path.is_dir() else error.strerror
        raise UserError(f"{where} = {str(path)!r} is no training or checkpoint: {told}{way_out}") from None


def key_at(coordinates: Mapping[str, Value]) -> str:
    """The content key of the cell at these coordinates, which a late coordinate enters where it is not the default."""
    return digest({name: value for name, value in coordinates.items() if name not in LATE or value != LATE[name]})


@cache
def _around(words: tuple[Value, ...]) -> str:
    """The text that the key of a cell is the digest of, with %s for each of its numbers; `words` are its other values.

    The numbers come in the order of the text, which is that of their names.
    """
    named = dict(zip((*NAMES, *(c.name for c in _NAMED)), words, strict=True))
    known = {name: json.dumps(value) for name, value in named.items() if name not in LATE or value != LATE[name]}
    parts = {name: text.replace("%", "%%") for name, text in known.items()} | {c.name: "%s" for c in _COUNTED}
    return "{" + ", ".join(f'"{name}": {parts[name]}' for name in sorted(parts)) + "}"


def _json(value: Value) -> str:
    """A value as JSON."""
    if value is None:
        return "null"
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return json.dumps(value)


def digest(content: object) -> str:
    """16 hexadecimal digits that are equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
