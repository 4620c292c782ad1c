"""Systems and estimators by name: from this package, from installed plugins, and from the session.

A session brings classes in two ways. `hand_over` keeps a class that is made of functions under its name and the digest
of what it is made of, so that cells which name both find it. `register` gives a class a name like that of any other.

Nothing here imports torch: a module of a system or an estimator declares name, options, claims and shapes as plain
data, and imports torch only in the functions that compute.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
import pkgutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from gradbench.data.given import article
from gradbench.errors import UserError, near_miss, placed, spoken
from gradbench.estimators.base import AbstractEstimator, Role
from gradbench.planning import values
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.ranges import no_size, outside

Base = type[AbstractSystem] | type[AbstractEstimator]
Registered = TypeVar("Registered", bound=Base)
Function = TypeVar("Function", bound=Callable[..., Any])
DIGEST = "digest"  # the option that holds the digest of a class made of functions; no label shows it
SESSION = "session"  # the origin of what is registered by no file
DECLARED = {"systems": ("name", "defaults", "per_example", "source"), "estimators": ("name", "uses", "source")}
ORDER = "the system comes first, and then the estimator"  # of the arguments of a call


class _Named(NamedTuple):
    """A class that the session gave a name."""

    cls: Any
    origin: str


_handed: dict[tuple[str, str, str], Any] = {}  # classes by kind, name and digest
_of_session: dict[str, dict[str, _Named]] = {"systems": {}, "estimators": {}}
_brought: dict[Base, dict[str, Any]] = {}  # types of options of classes that came from another process
_pointed: list[EntryPoint] = []  # entry points that are being loaded: their modules may make systems and rules
_remembered: list[Any] = []  # caches of functions whose results depend on what a name means


def remembered(function: Function) -> Function:
    """`functools.cache` for a function of names: it forgets when a name comes to mean something else."""
    caching = cache(function)
    _remembered.append(caching)
    return caching  # type: ignore[return-value]  # called as `function` is


def known_systems() -> dict[str, type[AbstractSystem]]:
    """Systems that have a name, sorted by it."""
    return _known("systems", AbstractSystem)


def known_estimators() -> dict[str, type[AbstractEstimator]]:
    """Estimators that have a name, sorted by it."""
    return _known("estimators", AbstractEstimator)


def hand_over(cls: Base) -> None:
    """Keep a class that is made of functions, so that a cell with its name and digest finds it.

    Its option `digest` has the digest as its default. Raises UserError where the name is that of an item of the package
    or of an installed plugin.
    """
    kind, digest = _kind(cls), digest_of(cls)
    if digest is None:
        raise TypeError(f"{cls.__name__} has no digest: it is registered by name")
    _refuse_taken(kind, cls, "")
    if _handed.get((kind, cls.name, digest)) is not cls:
        _handed[kind, cls.name, digest] = cls
        _forget()


def register(cls: Registered, origin: str = SESSION) -> Registered:
    """Give a class its name for the rest of the session. `origin` is the file that defines it.

    Returns the class, so that it decorates one. What comes from the same origin may be defined anew. Raises UserError
    where the name is that of anything else.
    """
    kind = _kind(cls)
    if inspect.isabstract(cls):
        raise UserError(f"register: {cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}")
    if not is_dataclass(cls):
        raise UserError(f"register: {cls.__name__} is no dataclass: write @dataclass(frozen=True) above it")
    if missing := [name for name in DECLARED[kind] if not hasattr(cls, name)]:
        raise UserError(f"register: {cls.__name__} does not define {', '.join(missing)}")
    check_name(cls.name, "register: ")
    _refuse_taken(kind, cls, "register: ")
    older = _of_session[kind].get(cls.name)
    if older is not None and older.origin != origin and older.cls is not cls:
        raise UserError(f"register: {cls.name!r} is defined by {older.origin} and by {origin}; one needs another name")
    if digest_of(cls) is not None:
        hand_over(cls)
    _of_session[kind][cls.name] = _Named(cls, origin)
    _forget()
    return cls


def check_name(name: object, where: str = "") -> None:
    """Raise UserError where something can be no name of a system or of an estimator. `where` begins the message."""
    if fault := values.misnamed(name):
        raise UserError(f"{where}name = {values.shown(name)}: {fault}")


def withdraw(origin: str) -> None:
    """Take the names from all that `origin` registered. Cells with a digest find their class as before."""
    for named in _of_session.values():
        for name in [name for name, entry in named.items() if entry.origin == origin]:
            del named[name]
    _forget()


def is_named(cls: Base) -> bool:
    """Whether the name of a class leads to it."""
    return _names(_kind(cls)).get(cls.name) is cls


@contextmanager
def scope() -> Iterator[None]:
    """Inside, the session has handed over and registered nothing; what it does there is forgotten at the end."""
    before = dict(_handed), {kind: dict(named) for kind, named in _of_session.items()}
    _restore({}, {kind: {} for kind in _of_session})
    try:
        yield
    finally:
        _restore(*before)


def types_of(cls: Base) -> dict[str, Any]:
    """The types of the options of a class, by name."""
    hints = typing.get_type_hints(cls) if cls not in _brought else _brought[cls]
    return {f.name: hints[f.name] for f in fields(cls)}  # type: ignore[arg-type]


def bring(classes: Mapping[Base, dict[str, Any]]) -> None:
    """Know these classes of another session by name and digest, and nothing else that a session brings.

    With each come the types of its options: the names in its annotations mean nothing here.
    """
    _brought.clear()
    _brought.update(classes)
    handed: dict[tuple[str, str, str], Any] = {}
    named: dict[str, dict[str, _Named]] = {kind: {} for kind in _of_session}
    for cls in classes:
        if (digest := digest_of(cls)) is not None:
            handed[_kind(cls), cls.name, digest] = cls
        else:
            named[_kind(cls)][cls.name] = _Named(cls, SESSION)
    _restore(handed, named)


def _restore(handed: Mapping[tuple[str, str, str], Any], named: Mapping[str, Mapping[str, _Named]]) -> None:
    _handed.clear()
    _handed.update(handed)
    for kind, classes in _of_session.items():
        classes.clear()
        classes.update(named[kind])
    _forget()


def is_handed(kind: Literal["system", "estimator"], name: str, digest: str) -> bool:
    """Whether a class of this name and digest is known."""
    return (f"{kind}s", name, digest) in _handed


def digest_of(cls: Base) -> str | None:
    """The digest of what a class is made of; None for a class that is not made of functions."""
    return next((str(f.default) for f in fields(cls) if f.name == DIGEST and f.default is not MISSING), None)  # type: ignore[arg-type]


def written(item: object) -> object:
    """What a grid holds in place of a class, or of a system or an estimator with options: a table of name and options.

    Every class that is made of functions is handed over on the way. Entries of a list and the name in a table are
    replaced too; anything else stays as it is. Raises UserError for a class that has neither a digest nor a name.
    """
    if isinstance(item, list | tuple):
        return [written(entry) for entry in item]
    if isinstance(item, Mapping):
        named = written(item.get("name"))
        return {**item, **named} if isinstance(named, dict) else item
    if isinstance(item, AbstractSystem | AbstractEstimator):
        defaults = {f.name: f.default for f in fields(_entered(type(item)))}  # type: ignore[arg-type]
        named = {k: v for k, v in json.loads(options(item)).items() if k == DIGEST or v != defaults[k]}
        return {"name": item.name, **named}
    if inspect.isclass(item) and issubclass(item, AbstractSystem | AbstractEstimator):
        digest = digest_of(_entered(item))
        return {"name": item.name} | ({} if digest is None else {DIGEST: digest})
    return item


def _entered(cls: Base) -> Base:
    """A class that is known from now on."""
    if digest_of(cls) is not None:
        hand_over(cls)
    elif not is_named(cls):
        raise UserError(f"the class {cls.__name__} has no name here; give it one with gradbench.register")
    return cls


def system(
    name: str, options: Mapping[str, Any] | None = None, where: str = "system", key: str = "{where}.{option}"
) -> AbstractSystem:
    """The system of that name with some of its options set; other options may follow from these.

    `where` and `key` say how a message calls the system and one of its options.
    """
    cls, named = _asked("systems", name, options or {}, where, key)
    with placed(where):
        return cls(**{**cls.implied(named), **named})


def estimator(
    name: str, options: Mapping[str, Any] | None = None, where: str = "estimator", key: str = "{where}.{option}"
) -> AbstractEstimator:
    """The estimator of that name with some of its options set. `where` and `key` are as for a system."""
    cls, named = _asked("estimators", name, options or {}, where, key)
    with placed(where):
        return cls(**named)


def options(item: AbstractSystem | AbstractEstimator) -> str:
    """All options of a system or estimator, defaults included, as canonical JSON."""
    return json.dumps({f.name: getattr(item, f.name) for f in fields(item)}, sort_keys=True)  # type: ignore[arg-type]


def options_of(kind: str, name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that a system or an estimator has, by its name and options; none where there is no such one."""
    cls = meant(f"{kind}s", name, options.get(DIGEST))
    return tuple(f.name for f in fields(cls) if f.name != DIGEST) if cls is not None else ()


def knobs(name: str, options: Mapping[str, Any]) -> frozenset[str]:
    """The knobs of a system, by its name and options; none where there is no such system."""
    cls = meant("systems", name, options.get(DIGEST))
    return cls.knobs if cls is not None else frozenset()


def label(name: str, options: str, kind: Literal["system", "estimator"]) -> str:
    """A name with the options that differ from the defaults, for people to read. No label shows a digest."""
    shown = json.loads(options)
    cls = meant(f"{kind}s", name, shown.pop(DIGEST, None))
    defaults = {f.name: f.default for f in fields(cls)} if cls else {}
    changed = [f"{k}={v}" for k, v in shown.items() if k not in defaults or v != defaults[k]]
    return " ".join([name, *changed])


def labelled(text: str, known: Iterable[str]) -> tuple[str, list[str]]:
    """The name that begins a label, and the words behind it. A name may have spaces: the longest known one is meant."""
    words = str.__str__(text).split()
    begins = [name for name in known if words[: len(name.split())] == name.split()]
    name = max(begins, key=len, default="")
    count = len(name.split()) or next((i for i, word in enumerate(words) if i and "=" in word), len(words))
    return name or " ".join(words[:count]), words[count:]


def of_rules() -> frozenset[str]:
    """The coordinates that some rule uses."""
    return frozenset().union(*(cls.uses for cls in known_estimators().values()))


def what_is(name: object) -> str:
    """`a system` or `an estimator` where something is the name of one, else ""."""
    if not isinstance(name, str):
        return ""
    return "a system" if name in known_systems() else "an estimator" if name in known_estimators() else ""


def refuse_other_kind(argument: str, item: object) -> None:
    """Raise UserError for a system in the place of an estimator, or an estimator in that of a system; not for names."""
    cls: Any = item if inspect.isclass(item) else type(item)
    kinds = {"system": AbstractSystem, "estimator": AbstractEstimator}
    for kind, base in kinds.items():
        if kind != argument and issubclass(cls, base):
            what = "a system" if kind == "system" else "an estimator"
            raise UserError(f"{argument}: got {cls.__name__}, which is {what}; {ORDER}")


def near_name(name: str, known: Iterable[str]) -> str:
    """The near miss among names of systems and rules, else the known names and how others come to have one."""
    told = near_miss(name, known)
    if told.startswith("."):
        return told
    return told + spoken(
        python="; gradbench.register gives a name to another one",
        shell="; --plugin FILE.py gives a name to another one",
    )


def role(name: str) -> Role:
    """The role of an estimator by its name; a table may name a plugin that is not installed here, which is a rule."""
    known = known_estimators().get(name)
    return Role.RULE if known is None else known.role


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


def _kind(cls: Base) -> str:
    """`systems` or `estimators`. Raises UserError for anything but a class of one of them."""
    for kind, base in (("systems", AbstractSystem), ("estimators", AbstractEstimator)):
        if inspect.isclass(cls) and issubclass(cls, base):
            return kind
    raise UserError(f"{values.shown(cls)} is neither a system nor an estimator")


def _known(kind: str, base: Base) -> dict[str, Any]:
    """The classes of a kind that have a name, sorted by it."""
    named = {name: cls for name, (cls, _) in _of_session[kind].items()}
    return dict(sorted((_registered(kind, base) | named).items()))


def _names(kind: str) -> Mapping[str, Any]:
    return known_systems() if kind == "systems" else known_estimators()


def meant(kind: str, name: str, digest: object) -> Any | None:
    """The class of a name and a digest, or of a name alone, among `systems` or `estimators`; None: there is none."""
    return _handed.get((kind, name, str(digest))) or _names(kind).get(name)


def _refuse_taken(kind: str, cls: Base, where: str) -> None:
    """Raise UserError where the name of a class is that of an item of the package or of an installed plugin.

    A name that is one of the other kind is taken as well, since commands take either kind by its name alone.
    """
    base: Base = AbstractSystem if kind == "systems" else AbstractEstimator
    taken = (_of_package if _pointed else _registered)(kind, base)
    if cls.name in taken and taken[cls.name] is not cls:
        there = taken[cls.name]
        others = ", ".join(map(repr, difflib.get_close_matches(cls.name, [n for n in taken if n != cls.name])))
        raise UserError(
            f"{where}the name {cls.name!r} is taken by {there.__module__}.{there.__name__}; choose another one"
            + (f" (taken too: {others})" if others else "")
        )
    other, its_base = ("estimators", AbstractEstimator) if kind == "systems" else ("systems", AbstractSystem)
    of_other = (_of_package if _pointed else _registered)(other, its_base)
    if cls.name in of_other or cls.name in _of_session[other]:
        what = "an estimator" if kind == "systems" else "a system"
        raise UserError(f"{where}the name {cls.name!r} is that of {what}; choose another one")


def _forget() -> None:
    for caching in _remembered:
        caching.cache_clear()


@cache
def _of_package(kind: str, base: Base) -> dict[str, Any]:
    """The classes of a kind in the package that declare a name, by it; all others are parts of these."""
    package = importlib.import_module(f"gradbench.{kind}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__]
    return {c.name: c for c in classes if issubclass(c, base) and "name" in vars(c)}


@cache
def _registered(kind: str, base: Base) -> dict[str, Any]:
    """The final classes of a kind by name, sorted: the classes of the package and of installed plugins."""
    named = dict(_of_package(kind, base))
    for point in entry_points(group=f"gradbench.{kind}"):
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
    """The class that an entry point names, or that of a system from functions.

    Raises UserError where it names anything but that or a final class of `base`.
    """
    _pointed.append(point)
    try:
        item = point.load()
    except Exception as error:  # a plugin may raise anything
        raise UserError(f"plugin {point.value!r} of {point.group} cannot be loaded: {error}") from error
    finally:
        _pointed.pop()
    if isinstance(item, base) and digest_of(type(item)) is not None:
        return type(item)
    if not (inspect.isclass(item) and issubclass(item, base)):
        what = f"the class {item.__name__}" if inspect.isclass(item) else f"{item!r}"
        raise UserError(
            f"plugin {point.value!r} of {point.group} is {what}; expected: a class derived from {base.__name__}"
        )
    if inspect.isabstract(item):
        missing = ", ".join(sorted(item.__abstractmethods__))
        raise UserError(f"plugin {point.value!r} of {point.group} does not define {missing}")
    return item


def _asked(kind: str, name: str, options: Mapping[str, Any], where: str, key: str) -> tuple[Any, dict[str, Any]]:
    """The class of that name and its named options, checked and as Python values."""
    cls = meant(kind, name, options.get(DIGEST))
    if cls is None:
        told = f" in this session with digest {options[DIGEST]}; it has to be defined" if DIGEST in options else ""
        first, *options_of_label = str(name).split()
        if options_of_label and first in _names(kind):
            with_them = {"name": first, **values.settings(options_of_label, f"{where} = {name!r}: option")}
            told = values.toml(with_them)
            if where.startswith("--set "):
                told = f"{where.partition('[')[0]}='{told}'"
            raise UserError(f"{where} = {name!r} is no name; with options it is {told}")
        if what := what_is(name):
            raise UserError(f"{where} = {name!r} is {what}, and no {kind[:-1]}")
        raise UserError(f"{where} = {name!r} is not registered{told}{near_name(name, _names(kind))}")
    if digest_of(cls) not in (None, options.get(DIGEST, digest_of(cls))):
        raise UserError(f"{where}: {name!r} is defined otherwise now: digest {digest_of(cls)}, not {options[DIGEST]}")
    allowed = types_of(cls)
    ranges = {f.name: f.metadata for f in fields(cls)}
    named = {}
    for option, value in options.items():
        place = key.format(where=where, option=option)
        if option not in allowed and option in COORDINATES:
            raise UserError(f"{place}: {option} is a coordinate, and no option of {kind[:-1]} {name!r}")
        if option not in allowed:
            raise UserError(f"{place}: {kind[:-1]} {name!r} has no such option{near_miss(str(option), allowed)}")
        option = str.__str__(option)
        named[option] = _taken(place, values.scalar(value), allowed[option], ranges[option])
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if missing:
        raise UserError(f"{where}: {kind[:-1]} {name!r} needs {', '.join(missing)}")
    return cls, named


def _taken(where: str, value: Any, wanted: Any, span: Mapping[str, Any]) -> Any:
    """The value of an option in the `wanted` type. Raises UserError where it is of another type, or out of its range.

    `span` is what the field of the option says of its range.

    1 and 1.0 are the same value of an option, and must give the same cell.
    """
    if get_origin(wanted) is Literal:
        if not isinstance(value, str | int) or value not in get_args(wanted):
            raise UserError(f"{where} = {values.shown(value)} is not a choice{near_miss(str(value), get_args(wanted))}")
        return value
    if isinstance(wanted, types.GenericAlias | type(ClassVar)):
        raise TypeError(f"option {where} has a type that no suite can write: {wanted}")
    numeric = wanted in (int, float) and isinstance(value, Real | Decimal)
    if isinstance(value, bool) is not (wanted is bool) or not (numeric or isinstance(value, wanted)):
        told = values.shown(value)
        kind = "" if value is None or told == article(value) else f" is {article(value)}"
        raise UserError(f"{where} = {told}{kind}; expected: {wanted.__name__}")
    if not numeric:
        return value
    try:
        number = values.number(value)
    except ValueError as error:
        raise UserError(f"{where} = {error}") from None
    if told := outside(number, span):
        raise UserError(f"{where} = {value!r} {told}")
    if wanted is float:
        return number
    if not number.is_integer():
        raise UserError(f"{where} = {value!r} is {article(value)}; expected: int")
    if told := no_size(number):
        raise UserError(f"{where} = {value!r} {told}")
    return int(value)
