"""Plugins: files and modules that give systems and rules of a user their names, for a command or for a session.

A plugin is Python that runs from its first line to its last. It registers what it calls `register` with, and every
system from functions and every rule from a function that stands among its names, but for names that begin with an
underscore. Its digest is that of all that it registers: a comment changes nothing, and a helper module that is used
counts. Classes from outside of the package that no plugin registered, as those of entry points, are digested as such.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import pkgutil
import sys
import uuid
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePath
from types import CodeType, ModuleType, TracebackType, new_class
from typing import Any, Literal, TypedDict, TypeVar

from gradbench.data import origins
from gradbench.data.fingerprints import fingerprint, undigested
from gradbench.data.given import article
from gradbench.errors import UserError, near_miss, public
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import registry
from gradbench.planning.registry import Base
from gradbench.planning.values import shown
from gradbench.systems.base import AbstractSystem

Item = TypeVar("Item", bound=AbstractSystem | AbstractEstimator | Base)
Names = str | PurePath | Iterable[str | PurePath]
Kind = Literal["system", "estimator"]


class Record(TypedDict):
    """What `env.json` says of a plugin."""

    path: str
    digest: str
    items: dict[str, str]


@dataclass(frozen=True)
class Plugin:
    """What a file or a module registered, or which of its classes are used."""

    path: str  # of a file, absolute; of a module its dotted name
    items: Mapping[str, str]  # the digest of everything that it registered, by kind and name
    unseen: Mapping[str, str] = field(default_factory=dict)  # what no digest sees of these, and why

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that the plugin registered."""
        return hashlib.sha256(repr(sorted(self.items.items())).encode()).hexdigest()[:16]

    @property
    def record(self) -> Record:
        """Path and digests as plain data."""
        return {"path": self.path, "digest": self.digest, "items": dict(self.items)}


@dataclass
class _Source:
    """Where a plugin is loaded from, and what it registered so far."""

    path: str
    shown: str  # the path as messages have it
    file: str | None  # of the code, for the line of a mistake
    stamp: str  # equal where loading again would do nothing new
    classes: dict[str, Base] = field(default_factory=dict)  # by kind and name
    renamed: list[Base] = field(default_factory=list)  # classes that have a name of their choice

    def add(self, cls: Base) -> None:
        """Note a class. Raises UserError where another one has its name already."""
        key = title(_kind(cls), cls.name)
        if self.classes.setdefault(key, cls) is not cls:
            raise UserError(f"the {key} is defined twice; one needs another name")


@dataclass(frozen=True)
class _Loaded:
    plugin: Plugin
    source: _Source


_loading: list[_Source] = []  # the plugin that is being loaded, last; a plugin may import another one
_loaded: dict[str, _Loaded] = {}  # by path
_drawn: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()  # in place of a digest, by class


def title(kind: Kind, name: str) -> str:
    """A system or an estimator as records and messages call it: system 'my deq'."""
    return f"{kind} {name!r}"


@public()
def register(item: Item, name: str | None = None) -> Item:
    """Give a system or a rule a name that suites, `gradbench.measure` and the command line know; the item itself.

    `item` is what `gradbench.system` or `gradbench.estimator` made, or a class of a system or of a rule; this decorates
    such a class, too. `name` is another name for it; then what is returned has that name. The name holds for the
    session, or for the command that loads the plugin with the call. Raises UserError where the name is taken.
    """
    cls: Any = item if inspect.isclass(item) else type(item)
    if not issubclass(cls, AbstractSystem | AbstractEstimator):
        raise UserError(f"register: got {article(item)}, expected a system or an estimator")
    if item is not cls and (changed := _changed(item)):
        raise UserError(f"register: {cls.name} has the options {changed}; a name has none: register the class")
    if name is not None and name != cls.name:
        original, cls = cls, _renamed(cls, name)
        if _loading:
            _loading[-1].renamed.append(original)
        item = cls if inspect.isclass(item) else cls()
    _enter(cls)
    return item


def load(names: Names) -> tuple[Plugin, ...]:
    """Load plugins by file or by the name of a module, and give what they register its names.

    A file whose bytes are those of the last time is not loaded again, nor is a module that was imported before. What a
    plugin prints goes to stderr. Raises UserError with the file, the line and the mistake.
    """
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if not all(isinstance(name, str | PurePath) for name in given):
        raise UserError(f"plugins: got {shown(names)}, expected files, NAME.py, or names of modules")
    return united([_load(str(name)) for name in given])


def behind(parts: Iterable[AbstractSystem | AbstractEstimator]) -> tuple[Plugin, ...]:
    """The plugins that made these systems and rules, by their paths.

    A class from outside of the package that no loaded plugin registered stands for a plugin of its own: its module.
    Items from functions that no plugin made are left out: their digests are options.
    """
    used: dict[str, Plugin] = {}
    others: dict[str, list[Base]] = {}
    for cls in sorted({type(part) for part in parts}, key=lambda cls: cls.name):
        if plugin := _maker(cls):
            used[plugin.path] = plugin
        elif not origins.is_of_package(cls) and registry.digest_of(cls) is None:
            others.setdefault(cls.__module__, []).append(cls)
    plugins = used | {path: _plugin(path, classes) for path, classes in others.items()}
    return tuple(plugins[path] for path in sorted(plugins))


def _maker(cls: Base) -> Plugin | None:
    """The loaded plugin that registered a class, or one that is made of the same functions."""
    key, digest = title(_kind(cls), cls.name), registry.digest_of(cls)
    for one in _loaded.values():
        made = one.source.classes.get(key)
        if made is not None and (made is cls or digest == registry.digest_of(made) is not None):
            return one.plugin
    return None


def united(*groups: Iterable[Plugin]) -> tuple[Plugin, ...]:
    """The plugins of all groups, each once."""
    return tuple({plugin.path: plugin for group in groups for plugin in group}.values())


def recall(kind: Kind, name: str, digest: str | None, records: Collection[Record], run: str) -> None:
    """Make sure that a system or an estimator of a run means what it meant there; its plugin is loaded where needed.

    `digest` is the option of that name: None for what is not made of functions. `records` are the plugins in the
    environment of the run, which messages call `run`. Raises UserError that names --plugin where the code cannot be
    had, or is another one now.
    """
    key = title(kind, name)
    record = next((r for r in records if key in r["items"]), None)
    known: Mapping[str, Base] = registry.known_systems() if kind == "system" else registry.known_estimators()
    if registry.is_handed(kind, name, str(digest)) or (name in known and _is_same(known[name], digest, record, key)):
        return
    if record is not None and record["path"] == "__main__":
        record = None  # of a session, or of a script that ran by itself
    if record is None and name in known:
        raise UserError(
            f"the {key} of {run} is another one than {name!r} is now: code, data or parameters have changed, or are "
            f"drawn without a seed. Name a file that makes it as it was with --plugin FILE.py"
        )
    if record is None:
        raise UserError(
            f"the {key} of {run} was made in a Python session, which is over, and its code is in no plugin: "
            f"write it into a file that makes the same, and name the file with --plugin FILE.py"
        )
    path, wanted = record["path"], record["items"][key]
    if _has(key, wanted):
        return
    named = next((one.plugin.path for one in _loaded.values() if key in one.plugin.items), None)
    if named is None:
        if _is_file(path) and not os.path.isfile(path):
            raise UserError(f"plugin {path} of {run} is not there; say with --plugin FILE.py where it is")
        try:
            (plugin,) = load(path)
        except UserError as error:
            raise UserError(f"{error} ({run} was made with it; --plugin FILE.py names another one)") from None
        if _has(key, wanted):
            return
        if key in plugin.unseen:
            raise UserError(
                f"the {key} of {run} can be explained only in the session that made it: no digest sees all of it "
                f"({plugin.unseen[key]}), so that nothing tells whether plugin {_shown(path)} makes the same"
                + ("" if digest is None else ". key= can stand for that part, and then --plugin finds it")
            )
    raise UserError(
        f"the {key} of {run} is not what plugin {_shown(named or path)} makes of it now: code, data or parameters have "
        f"changed, or are drawn without a seed. Name the plugin as it was with --plugin FILE.py, or run the suite anew"
    )


def _is_same(cls: Base, digest: str | None, record: Record | None, key: str) -> bool:
    """Whether a class that has the name now is that of a run: by its option, else by the record of its plugin."""
    if digest is None and record is not None:
        return _identified(cls)[0] == record["items"][key]
    return registry.digest_of(cls) == digest


def _has(key: str, digest: str) -> bool:
    return any(one.plugin.items.get(key) == digest for one in _loaded.values())


def _kind(cls: Base) -> Kind:
    return "system" if issubclass(cls, AbstractSystem) else "estimator"


def _changed(item: Any) -> str:
    """The options of an item that are not those of its class, as text."""
    values = ((f, getattr(item, f.name)) for f in fields(item)) if is_dataclass(item) else ()
    return ", ".join(f"{f.name}={value!r}" for f, value in values if value != f.default)


def _renamed(cls: Base, name: str) -> Base:
    """The class under another name."""
    registry.check_name(name, "register: ")
    more = {"name": name, "__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__}
    renamed: Base = new_class(cls.__name__, (cls,), exec_body=lambda names: names.update(more))
    return renamed


def _enter(cls: Base) -> None:
    """Register a class as one of the plugin that is being loaded, or of the session."""
    if not _loading:
        registry.register(cls)
        return
    _loading[-1].add(cls)
    registry.register(cls, _loading[-1].path)


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name or os.path.isfile(name)


def _shown(path: str) -> str:
    """A path as a person in the working folder writes it."""
    with_folder = os.path.join(os.getcwd(), "")
    return path.removeprefix(with_folder) if path.startswith(with_folder) else path


def _load(name: str) -> Plugin:
    return _load_file(name) if _is_file(name) else _load_module(name)


def _load_file(name: str) -> Plugin:
    path = Path(name)
    if path.suffix != ".py" and os.path.exists(name):
        raise UserError(f"plugin {name}: expected a Python file, NAME.py, or the name of a module")
    try:
        content = path.read_bytes()
    except OSError as error:
        others = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = near_miss(name, others) if difflib.get_close_matches(name, others, 1) else ""
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"plugin {name} {what}{hint}") from None
    file = str(path.resolve())
    source = _Source(file, _shown(file), file, hashlib.sha256(content).hexdigest())
    if (before := _loaded.get(file)) and before.source.stamp == source.stamp:
        return before.plugin
    module = ModuleType(f"gradbench_plugin_{path.stem}_{hashlib.sha256(file.encode()).hexdigest()[:8]}")
    module.__file__ = file
    with _being_loaded(source):
        linecache.checkcache(file)
        code: CodeType = compile(content, file, "exec", dont_inherit=True)
        sys.modules[module.__name__] = module  # where dataclasses and annotations look names up
        if (folder := os.path.dirname(file)) not in sys.path:
            sys.path.insert(0, folder)  # as for a script: a plugin may import what lies in its folder, at any time
        exec(code, vars(module))
        _register_names(module, source)
    return _finished(source)


def _load_module(name: str) -> Plugin:
    if before := _loaded.get(name):
        return before.plugin
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"plugin {name!r} is neither a file, NAME.py, nor the name of a module")
    source = _Source(name, name, None, "")
    try:
        with _being_loaded(source):
            module = importlib.import_module(name)
            _register_names(module, source)
    except _MissingError:
        raise UserError(f"plugin {name!r}: there is no such module{_near_module(name)}") from None
    return _finished(source)


class _MissingError(Exception):
    """The module that is to be loaded is not there."""


@contextmanager
def _being_loaded(source: _Source) -> Iterator[None]:
    """What is registered inside belongs to a plugin. Nothing of it stays where it fails, and all is a UserError."""
    registry.withdraw(source.path)  # of a file that has changed since it was loaded
    _loaded.pop(source.path, None)
    _loading.append(source)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        registry.withdraw(source.path)
        if source.file is None and isinstance(error, ModuleNotFoundError) and _is_part(error.name, source.path):
            raise _MissingError from None
        told = str(error).partition("\n")[0] if not isinstance(error, UserError) else str(error)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"plugin {source.shown}{_line(error, source.file)}: {kind}{told}") from error
    finally:
        _loading.pop()


def _is_part(package: str | None, name: str) -> bool:
    """Whether a module is the one of that name, or a package above it."""
    return bool(package) and f"{name}.".startswith(f"{package}.")


def _line(error: BaseException, file: str | None) -> str:
    """`, line 3`: the last line of a plugin that a mistake went through; of a module `, line 3 of FILE`."""
    if isinstance(error, SyntaxError) and error.filename and error.filename == (file or error.filename):
        return f", line {error.lineno}" + ("" if file else f" of {_shown(error.filename)}")
    lines = list(_lines(error.__traceback__))
    mine = [number for name, number in lines if name == file]
    if mine:
        return f", line {mine[-1]}"
    foreign = [(name, number) for name, number in lines if not origins.is_installed_file(name)]
    return f", line {foreign[-1][1]} of {_shown(foreign[-1][0])}" if foreign else ""


def _lines(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _register_names(module: ModuleType, source: _Source) -> None:
    """Register what stands among the names of a plugin. Raises UserError where the plugin registers nothing."""
    classes = [_class(v) for name, v in vars(module).items() if not name.startswith("_")]
    final = [c for c in dict.fromkeys(classes) if c is not None]
    for cls in final:
        new = cls not in source.classes.values() and not any(cls is c for c in source.renamed)
        # a module that was imported before has registered its classes for the session
        if new and (registry.digest_of(cls) is not None or (_is_of(cls, module) and registry.is_named(cls))):
            _enter(cls)
    if not source.classes:
        mine = [c.__name__ for c in final if _is_of(c, module)]
        hint = f"; for its class {mine[0]} write gradbench.register({mine[0]})" if mine else ""
        raise UserError(
            "registers nothing: at its top is no gradbench.system(...), no rule of gradbench.estimator and no call of "
            f"gradbench.register{hint}"
        )


def _class(value: object) -> Base | None:
    """The class of a system or of a rule that may be registered, or of an instance of it."""
    cls: Any = value if inspect.isclass(value) else type(value)
    final = issubclass(cls, AbstractSystem | AbstractEstimator) and is_dataclass(cls) and not inspect.isabstract(cls)
    return cls if final else None


def _is_of(cls: Base, module: ModuleType) -> bool:
    """Whether a class is defined in a module, or in the package that the module is of."""
    return cls.__module__.partition(".")[0] == module.__name__.partition(".")[0]


def _finished(source: _Source) -> Plugin:
    """A plugin that is loaded."""
    plugin = _plugin(source.path, source.classes.values())
    _loaded[source.path] = _Loaded(plugin, source)
    return plugin


def _plugin(path: str, classes: Iterable[Base]) -> Plugin:
    items, unseen = {}, {}
    for cls in classes:
        key = title(_kind(cls), cls.name)
        items[key], why = _identified(cls)
        if why is not None:
            unseen[key] = why
    return Plugin(path, items, unseen)


def _identified(cls: Base) -> tuple[str, str | None]:
    """The digest of a class, and what no digest sees of it; then the first is drawn, once for the class.

    The digest of a class that is not made of functions covers what it reaches in its package and in other code of its
    author, and all of its own file, since what that does when it is loaded may decide a number.
    """
    if (digest := registry.digest_of(cls)) is not None:
        return digest, cls.unseen
    content, within = (cls, _code(cls)), [cls.__module__.partition(".")[0]]
    if digest := fingerprint(*content, within=within):
        return digest, None
    return _drawn.setdefault(cls, uuid.uuid4().hex[:16]), undigested(*content, within=within)


def _code(cls: type) -> str | bytes:
    """The code in the file of a class, without comments; nothing where it has no file."""
    module = sys.modules.get(cls.__module__)
    file = Path((module and origins.file_of(module)) or "")
    if not file.is_file():
        return ""
    content = file.read_bytes()
    try:
        return ast.dump(ast.parse(content))
    except (SyntaxError, ValueError, RecursionError):  # it was edited, is no Python, or nests too deep
        return content


def _near_module(name: str) -> str:
    """A hint where a file or a module of the working folder is called so, or nearly so."""
    file = f"{name.replace('.', '/')}.py"
    if os.path.isfile(file):
        return f". Did you mean {file!r}?"
    there = [f"{m.name}{'' if m.ispkg else '.py'}" for m in pkgutil.iter_modules([os.getcwd()])]
    return near_miss(name, there) if difflib.get_close_matches(name, there, 1) else ""
