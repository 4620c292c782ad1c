"""What there is: systems and estimators by name, found in this package and in installed plugins.

Nothing here imports torch: a module of a system or an estimator declares its name, options, claims
and shapes as plain data and imports torch where it computes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, get_args, get_origin

from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator
from gradbench.systems.base import AbstractSystem


def systems() -> dict[str, type[AbstractSystem]]:
    """Systems by name, sorted."""
    return _found("systems", AbstractSystem)


def estimators() -> dict[str, type[AbstractEstimator]]:
    """Estimators by name, sorted."""
    return _found("estimators", AbstractEstimator)


def system(name: str, options: Mapping[str, Any] | None = None, where: str = "system") -> AbstractSystem:
    """The system of that name with some of its options set; others may follow from these."""
    cls, named = _asked("system", name, systems(), options or {}, where)
    with placed(where):
        return cls(**{**cls.implied(named), **named})


def estimator(name: str, options: Mapping[str, Any] | None = None, where: str = "estimator") -> AbstractEstimator:
    """The estimator of that name with some of its options set."""
    cls, named = _asked("estimator", name, estimators(), options or {}, where)
    with placed(where):
        return cls(**named)


def options(item: AbstractSystem | AbstractEstimator) -> str:
    """All options of a system or estimator, defaults included, as canonical JSON."""
    return json.dumps({f.name: getattr(item, f.name) for f in fields(item)}, sort_keys=True)  # type: ignore[arg-type]


def label(name: str, options: str, kind: Literal["system", "estimator"]) -> str:
    """A name with those of its options that differ from the defaults, for people to read."""
    known = (systems() if kind == "system" else estimators()).get(name)
    defaults = {f.name: f.default for f in fields(known)} if known else {}  # type: ignore[arg-type]
    changed = [f"{k}={v}" for k, v in json.loads(options).items() if k not in defaults or v != defaults[k]]
    return " ".join([name, *changed])


@cache
def _found(kind: str, base: type) -> dict[str, Any]:
    package = importlib.import_module(f"gradbench.{kind}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__]
    plugins = [_loaded(point) for point in entry_points(group=f"gradbench.{kind}")]
    final = [c for c in [*plugins, *classes] if issubclass(c, base) and not inspect.isabstract(c)]
    named = {c.name: c for c in final if not c.__name__.startswith("_")}  # a private one is a part of others
    return dict(sorted(named.items()))


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever somebody else's package raises
        raise UserError(f"plugin {point.value!r} of {point.group} cannot be loaded: {error}") from error


def _asked(
    kind: str, name: str, known: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    """The class of that name and its named options, checked."""
    if name not in known:
        raise UserError(f"{where} = {name!r} is not registered{near_miss(name, known)}")
    cls = known[name]
    hints = typing.get_type_hints(cls)
    allowed = {f.name: hints[f.name] for f in fields(cls)}
    for key, value in options.items():
        if key not in allowed:
            raise UserError(f"{where}.{key}: {kind} {name!r} has no such option{near_miss(key, allowed)}")
        _check_type(f"{where}.{key}", value, allowed[key])
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if missing:
        raise UserError(f"{where}: {kind} {name!r} needs {', '.join(missing)}")
    # 1 and 1.0 are one option value, and must be one cell
    return cls, {k: float(v) if allowed[k] is float else v for k, v in options.items()}


def _check_type(where: str, value: Any, wanted: Any) -> None:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise UserError(f"{where} = {value!r} is not a choice{near_miss(str(value), get_args(wanted))}")
        return
    accepted: Any = (int, float) if wanted is float else wanted
    if isinstance(accepted, types.GenericAlias | type(ClassVar)):
        raise TypeError(f"option {where} has a type that no suite can write: {wanted}")
    if isinstance(value, bool) is not (wanted is bool) or not isinstance(value, accepted):
        raise UserError(f"{where} = {value!r} is a {type(value).__name__}; expected: {wanted.__name__}")
    if wanted is int and not 1 <= value < 2**31:  # counts and sizes, all of them
        raise UserError(f"{where} = {value!r} is no size: it is not between 1 and 2**31 - 1")
    if wanted is float and not abs(value) < math.inf:
        raise UserError(f"{where} = {value!r} is not finite")
