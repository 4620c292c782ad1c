"""Training files: the system to train, the rule, the optimiser, the log. TOML, strictly checked; no torch.

Every mistake is a `UserError` that names the file, the key and the nearest known word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from gradbench.data import datasets
from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator, Role
from gradbench.estimators.reference import IMPLICIT
from gradbench.planning import files, registry, suites, values
from gradbench.planning.overrides import Overrides
from gradbench.planning.plans import refuse_reference, skip_reason
from gradbench.planning.problems import no_way_back
from gradbench.planning.suites import FolderName, Number, Strict, Whole
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.coordinates import COORDINATES, Coordinate, Point

ROWS, MOST_BETWEEN = 20, 50  # rows of a log that names no interval, at the least, and steps between two of them


def _at_least(least: float, strict: bool = False) -> AfterValidator:
    def check(value: float) -> float:
        if value < least or (strict and value == least):
            raise ValueError(f"{value!r} is {'not above' if strict else 'below'} {least}")
        return value

    return AfterValidator(check)


Choice = Annotated[tuple[str, dict[str, Any]], BeforeValidator(values.name_and_options)]
Positive = Annotated[Number, _at_least(0, strict=True)]
Size = Annotated[Number, _at_least(0)]
Count = Annotated[Whole, _at_least(1)]
SEED = COORDINATES["seed"]
HELD = {name: c for name, c in COORDINATES.items() if c != SEED}  # coordinates with one value in a training


def _held(coordinate: Coordinate) -> Any:
    """The field of a training for a coordinate, and its default; None: the default of the system."""
    return Annotated[coordinate.type | None, BeforeValidator(partial(values.one, coordinate))], coordinate.default


class Optimiser(Strict):
    """AdamW, with a learning rate that follows half a cosine from `lr` to `lr_min`."""

    lr: Positive
    lr_min: Size = 0.0
    weight_decay: Size = 0.01  # decoupled, per unit of learning rate
    clip: Positive | None = None  # largest norm of the gradient of a seed; the cost is summed over a batch


class AbstractConfig(Strict):
    """A training file. `Config` adds a value for every coordinate but the seed.

    Coordinates and options that the file leaves out take the defaults of the system and of the rule.
    """

    name: FolderName
    about: str
    system: Choice
    estimator: Choice
    steps: Count | None = None
    epochs: Count | None = None  # passes over the examples to train on, instead of steps
    # trained together; no two share parameters, batches or masks
    seeds: Annotated[tuple[int, ...], BeforeValidator(partial(values.many, SEED))] = (0,)
    random_targets: StrictBool = False  # labels drawn anew in every step: a control, with nothing to learn
    norm_cap: Mapping[str, Positive] = Field({})  # parameter = largest norm, in units of its initial one
    optimiser: Optimiser
    log_every: Count | None = None  # left out: a twentieth of the steps, and 50 at the most
    eval_every: Count = 100
    eval_batches: Count = 15  # of the test images, at most
    fidelity_every: Count | None = None  # left out: never

    @model_validator(mode="after")
    def _one_length(self) -> AbstractConfig:
        if (self.steps is None) is (self.epochs is None):
            raise ValueError("a training has either steps or epochs")
        return self

    @property
    def key(self) -> str:
        """Content key: equal for files that train the same."""
        content = self.model_dump(mode="json", exclude={"name", "about"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def dataset(self) -> str:
        """The data set of the images, or "" where the system takes none."""
        return str(getattr(self.build_system(), "dataset", ""))

    @cached_property
    def parts(self) -> tuple[int, int]:
        """The number of examples to train on, and to test on: of a system that holds its examples none."""
        held = self.build_system().held
        return datasets.PARTS[self.dataset] if held is None else (held, 0)

    @cached_property
    def point(self) -> Point:
        """The coordinates of the training, at its first seed."""
        held: dict[str, Any] = {c.attribute: getattr(self, name) for name, c in HELD.items()}
        return Point(seed=self.seeds[0], **held)

    @property
    def length(self) -> int:
        """Number of all steps. An epoch has as many steps as the examples to train on make whole batches."""
        return self.steps or (self.epochs or 0) * (self.parts[0] // self.point.batch)

    @property
    def test_batches(self) -> int:
        """Batches of an evaluation: `eval_batches`, or fewer where the test images make fewer whole batches."""
        return min(self.eval_batches, self.parts[1] // self.point.batch)

    def build_system(self, where: str = "system") -> AbstractSystem:
        """The system with its options."""
        return registry.system(*self.system, where)

    def build_rule(self, where: str = "estimator") -> AbstractEstimator:
        """The estimator with its options."""
        return registry.estimator(*self.estimator, where)


if TYPE_CHECKING:
    Config = AbstractConfig
else:
    Config = create_model("Config", __base__=AbstractConfig, **{name: _held(c) for name, c in HELD.items()})


def load(config: str | Path | Mapping[str, object], overrides: Mapping[str, object] | None = None) -> Config:
    """Read and check a training, with some keys replaced.

    It is given as the path of a file, as the name of a shipped file, or as a table of what a file would hold.
    """
    replaced = Overrides.of(overrides)
    if isinstance(config, Mapping):
        where, content = "config", {"name": "session", "about": ""} | dict(Overrides.of(config, "config"))
    else:
        path = files.find(config, files.CONFIGS, "training")
        where, content = str(path), {"name": path.stem} | files.read_kind(path, files.CONFIGS)
    if {"steps", "epochs"} & set(replaced):  # an override of one replaces the other, too
        content = {k: v for k, v in content.items() if k not in ("steps", "epochs")}
    return parse(content | replaced, where, replaced.places)


def parse(content: Mapping[str, object], where: str, places: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Check the content of a training file and fill in the defaults.

    `where` names the file in errors, and `places` says how an error calls the keys that are not from there.
    """
    try:
        config = Config.model_validate(dict(content))
    except ValidationError as error:
        raise UserError("\n".join(_mistake(e, content, where, places) for e in error.errors())) from None
    named = {"system": f"{where}: system", "estimator": f"{where}: estimator", **places}
    system, rule = config.build_system(named["system"]), config.build_rule(named["estimator"])
    defaults = {n: system.defaults[n] for n in HELD if getattr(config, n) is None and n in system.defaults}
    filled: dict[str, Any] = {"system": (system.name, asdict(system)), "estimator": (rule.name, asdict(rule))}  # type: ignore[call-overload]
    config = config.model_copy(update=defaults | filled)
    solver = getattr(config, COORDINATES["solver"].name)
    if no_way_back(system, solver):
        refuse_reference(content.get("reference"), system, solver, places.get("reference", f"{where}: reference"))
        config = config.model_copy(update={"reference": IMPLICIT})
    with placed(" with ".join([where, *([", ".join(places.values())] if places else [])])):
        _check(config, system, rule)
    if config.log_every is None:
        config = config.model_copy(update={"log_every": max(1, min(MOST_BETWEEN, config.length // ROWS))})
    return config


def _mistake(error: ErrorDetails, content: Mapping[str, Any], where: str, places: Mapping[str, str]) -> str:
    """What a message says of an error, with its place."""
    line = suites.error_line(error, Config, {"optimiser": Optimiser}).removeprefix(": ")
    key = str((*error["loc"], "")[0])
    unknown = error["type"] == "extra_forbidden" and len(error["loc"]) == 1
    if unknown and (hint := suites.option_hint(key, error["input"], content, places)):
        return f"{places.get(key) or f'{where}: {key}'}: unknown key; {hint}"
    if key in places and key in Optimiser.model_fields:
        return f"{places[key]}: it is a key of optimiser, which is set whole: optimiser={{{key} = ..., ...}}"
    return f"{places[key]}{line.removeprefix(key)}" if key in places else f"{where}: {line}"


def _check(config: Config, system: AbstractSystem, rule: AbstractEstimator) -> None:
    """Raise UserError for keys that do not go together."""
    point = config.point
    shapes = system.data_shapes(point.batch)
    if system.held is None and config.dataset not in datasets.PARTS:
        known = ", ".join(datasets.PARTS)
        what = f"dataset = {config.dataset!r}" if config.dataset else f"{system.name} looks at no images"
        raise UserError(f"system: {what}: there is nothing to train on; data sets with a training part: {known}")
    with placed("system"):
        system.check(point.batch)
    if system.state_fixed:
        told = "state_at is a value, which does not follow the parameters; give it as a function, state_at(net, x)"
        raise UserError(f"system: {system.name}: {told}")
    if system.held is None and point.batch > (least := min(config.parts)):
        raise UserError(f"batch = {point.batch}: a part of {config.dataset!r} has {least} images only")
    if config.random_targets and system.held is not None:
        raise UserError(f"random_targets: {system.name} holds its data, and gradbench draws no labels for it")
    if config.random_targets and "label" not in shapes:
        raise UserError(f"random_targets: {system.name} has no labels")
    for name in config.norm_cap:
        if name not in system.shapes:
            raise UserError(f"norm_cap.{name}: {system.name} has no such parameter{near_miss(name, system.shapes)}")
    if config.optimiser.lr_min > config.optimiser.lr:
        raise UserError(f"optimiser.lr_min = {config.optimiser.lr_min:g} is above lr = {config.optimiser.lr:g}")
    if rule.role is Role.CONTROL:
        raise UserError(f"estimator = {rule.name!r}: it is made from the reference, and no rule to train by")
    if rule.draws:
        raise UserError(f"estimator = {rule.name!r}: it draws numbers, which a training step has none of")
    steps = rule.skip_cell(point.T1, point.T2) if point.T1 and point.T2 else None
    if reason := skip_reason(system, rule, point.solver) or steps:
        raise UserError(f"estimator = {rule.name!r}: {reason}")
