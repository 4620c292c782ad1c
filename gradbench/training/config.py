"""Training files: what to train, by which rule, how. TOML, strictly checked; no torch.

Every mistake is a `UserError` that names the file, the key and the nearest known word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from gradbench import data, registry
from gradbench import suite as suites
from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator
from gradbench.selection import CONTROL
from gradbench.suite import Dtype, Ints, Number, Strict, Whole
from gradbench.systems.base import AbstractSystem

CONFIGS = Path("configs")


def _at_least(least: float, strict: bool = False) -> AfterValidator:
    def check(value: float) -> float:
        if value < least or (strict and value == least):
            raise ValueError(f"{value!r} is {'not above' if strict else 'below'} {least}")
        return value

    return AfterValidator(check)


Choice = Annotated[tuple[str, dict[str, Any]], BeforeValidator(suites.chosen_one)]
Positive = Annotated[Number, _at_least(0, strict=True)]
Size = Annotated[Number, _at_least(0)]
Count = Annotated[Whole, _at_least(1)]


class Optimiser(Strict):
    """AdamW, its learning rate on half a cosine from `lr` to `lr_min`."""

    lr: Positive
    lr_min: Size = 0.0
    weight_decay: Size = 0.01  # decoupled, per unit of learning rate
    clip: Positive | None = None  # largest norm of the whole gradient of a seed; the cost is summed over a batch


class Config(Strict):
    """A training file. What is left out of system, dynamics and rule takes the system's default."""

    name: str
    about: str
    system: Choice
    estimator: Choice
    s: Number | None = None  # coupling scale sigma
    damp: Number | None = None  # damping c
    T1: Count | None = None  # free steps
    T2: Count | None = None  # depth of the second phase
    beta: Positive | None = None  # nudge
    eps: Positive | None = None  # step size
    batch: Count | None = None
    steps: Count | None = None
    epochs: Count | None = None  # passes over the training images, instead of steps
    seeds: Ints = (0,)  # trained together, each with parameters, batches and masks of its own
    dtype: Dtype = "float32"
    random_targets: StrictBool = False  # labels drawn anew in every step: the control that has nothing to learn
    norm_cap: Mapping[str, Positive] = Field({})  # parameter = largest norm, in units of its initial one
    optimiser: Optimiser
    log_every: Count = 50
    eval_every: Count = 100
    eval_batches: Count = 15  # of the test images, at most
    fidelity_every: Count | None = None  # left out: never

    @field_validator("seeds")
    @classmethod
    def _natural(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if seed < 0:
                raise ValueError(f"{seed!r} is below 0")
        return seeds

    @model_validator(mode="after")
    def _one_length(self) -> Config:
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
        """Where the images come from."""
        return str(getattr(self.build_system(), "dataset", ""))

    @property
    def length(self) -> int:
        """Steps in all; an epoch is as many whole batches as the training images make."""
        assert self.batch is not None
        return self.steps or (self.epochs or 0) * (data.PARTS[self.dataset][0] // self.batch)

    @property
    def test_batches(self) -> int:
        """Batches of an evaluation: as many as are asked for and the test images make."""
        assert self.batch is not None
        return min(self.eval_batches, data.PARTS[self.dataset][1] // self.batch)

    def build_system(self, where: str = "system") -> AbstractSystem:
        """The system with its options."""
        return registry.system(*self.system, where)

    def build_rule(self, where: str = "estimator") -> AbstractEstimator:
        """The estimator with its options."""
        return registry.estimator(*self.estimator, where)


def load(name: str, overrides: dict[str, Any] | None = None) -> Config:
    """Read and check a training file given as a path or as the name of a shipped one, with some keys replaced."""
    path = suites.find(name, CONFIGS, "training")
    content = {"name": path.stem} | suites.read(path) | (overrides or {})
    if {"steps", "epochs"} & set(overrides or ()):  # either of them replaces the other
        content = {k: v for k, v in content.items() if k not in ("steps", "epochs") or k in (overrides or ())}
    return parse(content, str(path))


def parse(content: dict[str, Any], where: str) -> Config:
    """Check the content of a training file and fill in the defaults; `where` names its file in errors."""
    try:
        config = Config(**content)
    except ValidationError as error:
        told = [suites.explain(e, Config, {"optimiser": Optimiser}) for e in error.errors()]
        raise UserError("\n".join(f"{where}: {line.removeprefix(': ')}" for line in told)) from None
    system, rule = config.build_system(f"{where}: system"), config.build_rule(f"{where}: estimator")
    keys = ("s", "damp", "T1", "T2", "beta", "eps", "batch")
    defaults = {key: system.defaults[key] for key in keys if getattr(config, key) is None and key in system.defaults}
    filled: dict[str, Any] = {"system": (system.name, asdict(system)), "estimator": (rule.name, asdict(rule))}  # type: ignore[call-overload]
    config = config.model_copy(update=defaults | filled)
    with placed(where):
        _check(config, system, rule)
    return config


def _check(config: Config, system: AbstractSystem, rule: AbstractEstimator) -> None:
    assert config.batch is not None
    shapes = system.data_shapes(config.batch)
    if config.dataset not in data.PARTS:
        known = ", ".join(data.PARTS)
        what = f"dataset = {config.dataset!r}" if config.dataset else f"{system.name} looks at no images"
        raise UserError(f"system: {what}: there is nothing to train on; data sets with a training part: {known}")
    with placed("system"):
        system.check(config.batch)
    if config.batch > (least := min(data.PARTS[config.dataset])):
        raise UserError(f"batch = {config.batch}: a part of {config.dataset!r} has {least} images only")
    if config.random_targets and "label" not in shapes:
        raise UserError(f"random_targets: {system.name} has no labels")
    for name in config.norm_cap:
        if name not in system.shapes:
            raise UserError(f"norm_cap.{name}: {system.name} has no such parameter{near_miss(name, system.shapes)}")
    if config.optimiser.lr_min > config.optimiser.lr:
        raise UserError(f"optimiser.lr_min = {config.optimiser.lr_min:g} is above lr = {config.optimiser.lr:g}")
    if rule.name == CONTROL:
        raise UserError(f"estimator = {rule.name!r}: it is made from the reference, and no rule to train by")
    steps = rule.skip_cell(config.T1, config.T2) if config.T1 and config.T2 else None
    if reason := rule.skip(type(system)) or steps:
        raise UserError(f"estimator = {rule.name!r}: {reason}")
