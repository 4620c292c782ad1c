"""Systems and estimators by name, from this package and from installed plugins.

Nothing here imports torch: a module of a system or an estimator declares name, options, claims and shapes as plain
data, and imports torch only in the functions that compute.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from decimal import Decimal
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from numbers import Real
from typing import Any, ClassVar, Literal, get_args, get_origin

from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import values
from gradbench.systems.base import AbstractSystem

Base = type[AbstractSystem] | type[AbstractEstimator]


def known_systems() -> dict[str, type[AbstractSystem]]:
    """Systems by name, sorted."""
    return _registered("systems", AbstractSystem)


def known_estimators() -> dict[str, type[AbstractEstimator]]:
    """Estimators by name, sorted."""
    return _registered("estimators", AbstractEstimator)


def system(
    name: str, options: Mapping[str, Any] | None = None, where: str = "system", key: str = "{where}.{option}"
) -> AbstractSystem:
    """The system of that name with some of its options set; other options may follow from these.

    `where` and `key` say how a message calls the system and one of its options.
    """
    cls, named = _asked("system", name, known_systems(), options or {}, where, key)
    with placed(where):
        return cls(**{**cls.implied(named), **named})


def estimator(
    name: str, options: Mapping[str, Any] | None = None, where: str = "estimator", key: str = "{where}.{option}"
) -> AbstractEstimator:
    """The estimator of that name with some of its options set. `where` and `key` are as for a system."""
    cls, named = _asked("estimator", name, known_estimators(), options or {}, where, key)
    with placed(where):
        return cls(**named)


def options(item: AbstractSystem | AbstractEstimator) -> str:
    """All options of a system or estimator, defaults included, as canonical JSON."""
    return json.dumps({f.name: getattr(item, f.name) for f in fields(item)}, sort_keys=True)  # type: ignore[arg-type]


def label(name: str, options: str, kind: Literal["system", "estimator"]) -> str:
    """A name with the options that differ from the defaults, for people to read."""
    known = (known_systems() if kind == "system" else known_estimators()).get(name)
    defaults = {f.name: f.default for f in fields(known)} if known else {}  # type: ignore[arg-type]
    changed = [f"{k}={v}" for k, v in json.loads(options).items() if k not in defaults or v != defaults[k]]
    return " ".join([name, *changed])


def definition(cls: type) -> str:
    """The definition of a system or an estimator: its docstring. Empty where there is none.

    `python -OO` has no docstrings, and a dataclass then shows its signature in their place: the source is read.
    """
    text = inspect.getdoc(cls) or ""
    if text and not text.startswith(f"{cls.__name__}("):
        return text
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return ""
    return (ast.get_docstring(tree) or "") if isinstance(tree, ast.ClassDef) else ""


def summary(cls: type) -> str:
    """The first line of a definition."""
    return definition(cls).partition("\n")[0]


@cache
def _registered(kind: str, base: Base) -> dict[str, Any]:
    """The final classes of a kind by name, sorted: the classes of the package and of plugins."""
    package = importlib.import_module(f"gradbench.{kind}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__]
    final = [c for c in classes if issubclass(c, base) and not inspect.isabstract(c)]
    named: dict[str, Any] = {c.name: c for c in final if not c.__name__.startswith("_")}  # a private class is a part
    for point in entry_points(group=package.__name__):
        plugin = _plugin(point, base)
        if plugin.name in named:
            taken = named[plugin.name]
            raise UserError(
                f"plugin {point.value!r} of {point.group} has the name {plugin.name!r}, "
                f"which {taken.__module__}.{taken.__name__} has already; give the plugin another name"
            )
        named[plugin.name] = plugin
    return dict(sorted(named.items()))


def _plugin(point: EntryPoint, base: Base) -> Any:
    """The class that an entry point names. Raises UserError where it names anything but a final class of `base`."""
    try:
        item = point.load()
    except Exception as error:  # a plugin may raise anything
        raise UserError(f"plugin {point.value!r} of {point.group} cannot be loaded: {error}") from error
    if not (inspect.isclass(item) and issubclass(item, base)):
        what = f"the class {item.__name__}" if inspect.isclass(item) else f"{item!r}"
        raise UserError(
            f"plugin {point.value!r} of {point.group} is {what}; expected: a class derived from {base.__name__}"
        )
    if inspect.isabstract(item):
        missing = ", ".join(sorted(item.__abstractmethods__))
        raise UserError(f"plugin {point.value!r} of {point.group} does not define {missing}")
    return item


def _asked(
    kind: str, name: str, known: Mapping[str, Any], options: Mapping[str, Any], where: str, key: str
) -> tuple[Any, dict[str, Any]]:
    """The class of that name and its named options, checked and as Python values."""
    if name not in known:
        raise UserError(f"{where} = {name!r} is not registered{near_miss(name, known)}")
    cls = known[name]
    hints = typing.get_type_hints(cls)
    allowed = {f.name: hints[f.name] for f in fields(cls)}
    named = {}
    for option, value in options.items():
        place = key.format(where=where, option=option)
        if option not in allowed:
            raise UserError(f"{place}: {kind} {name!r} has no such option{near_miss(str(option), allowed)}")
        named[str(option)] = _taken(place, values.scalar(value), allowed[option])
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if missing:
        raise UserError(f"{where}: {kind} {name!r} needs {', '.join(missing)}")
    return cls, named


def _taken(where: str, value: Any, wanted: Any) -> Any:
    """The value of an option in the `wanted` type. Raises UserError where it is of another type, or out of its range.

    1 and 1.0 are the same value of an option, and must give the same cell.
    """
    if get_origin(wanted) is Literal:
        if not isinstance(value, str | int) or value not in get_args(wanted):
            raise UserError(f"{where} = {value!r} is not a choice{near_miss(str(value), get_args(wanted))}")
        return value
    if isinstance(wanted, types.GenericAlias | type(ClassVar)):
        raise TypeError(f"option {where} has a type that no suite can write: {wanted}")
    numeric = wanted in (int, float) and isinstance(value, Real | Decimal)
    if isinstance(value, bool) is not (wanted is bool) or not (numeric or isinstance(value, wanted)):
        raise UserError(f"{where} = {value!r} is a {type(value).__name__}; expected: {wanted.__name__}")
    if not numeric:
        return value
    try:
        number = values.number(value)
    except ValueError as error:
        raise UserError(f"{where} = {error}") from None
    if wanted is float:
        return number
    if not number.is_integer():
        raise UserError(f"{where} = {value!r} is a {type(value).__name__}; expected: int")
    if not 1 <= number < 2**31:  # all whole numbers are counts or sizes
        raise UserError(f"{where} = {value!r} is no size: it is not between 1 and 2**31 - 1")
    return int(value)
