"""Digests of content: of functions, classes, modules of torch, tensors, and all that these reach.

Equal digests mean equal content, wherever it lies in files and memory and in whatever process it is digested. The
content of a function is its byte code and constants, its defaults, the values of its closure, and the globals that it
names: in turn their content, as far as they are code of their author. Of what is installed (`origins`) the name and
the version of the distribution are its content. Names of files and numbers of lines are no content, nor are docstrings.

What a digest does not see: what code looks up by a computed name, what it reads from files and the environment while
it runs, and changes that are made inside of an installed package.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import struct
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from gradbench.data import origins
from gradbench.data.given import article

if TYPE_CHECKING:
    import torch


def fingerprint(*items: object, within: Collection[str] = ()) -> str | None:
    """16 hexadecimal digits of the content of `items`; None where no digest sees all of it (see `undigested`).

    Packages named in `within` count as code of their author, also where they are installed.
    """
    try:
        return _digest(items, within)
    except UndigestedError:
        return None


def undigested(*items: object, within: Collection[str] = ()) -> str | None:
    """What cannot be digested in `items`, as "closure variable 'file' of step: a TextIOWrapper"; None if nothing."""
    try:
        _digest(items, within)
    except UndigestedError as error:
        return str(error)
    return None


class UndigestedError(Exception):
    """Something has content that no digest sees. The message says where it is, and what it is."""


def _digest(items: tuple[object, ...], within: Collection[str]) -> str:
    modules = [module for name in within if (module := sys.modules.get(name))]
    walk = _Walk(tuple(folder for module in modules for folder in _folders(module)), {})
    for i, item in enumerate(items):
        walk.visit(item, f"item {i}" if len(items) > 1 else "the item")
    return walk.finish()[:16]


def _folders(module: types.ModuleType) -> list[str]:
    """The folders of a package, or the file of a module."""
    folders = list(vars(module).get("__path__") or ())
    return [f"{Path(folder)}/" for folder in folders] or [file for file in (origins.file_of(module),) if file]


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"",
    type(...): lambda value: b"",
    type(NotImplemented): lambda value: b"",
    bool: lambda value: str(value).encode(),
    int: lambda value: hex(value).encode(),
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
    str: lambda value: value.encode(errors="surrogatepass"),
    bytes: bytes,
    bytearray: bytes,
}
_FLAGS = (  # of code: what decides how it is called. The others tell where it stands
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
_PLACE = frozenset({"__name__", "__file__", "__doc__", "__spec__", "__loader__", "__package__", "__path__"}) | {
    "__builtins__",
    "__cached__",
}  # of a module
# of a class: where it stands, what it is annotated with, and what Python and torch note there about its use
_NO_CONTENT = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"}) | {
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__firstlineno__",
    "__static_attributes__",
    "__slotnames__",
    "__orig_bases__",
    "__parameters__",
    "__abstractmethods__",
    "_abc_impl",
    "_backward_cls",
}
_COMPILED = ("_compiled_call_impl", "_is_torch_compile")  # attributes that torch.compile gives to what it compiles
# they decide no number; what is read from the environment is no content of code
_WITHOUT_CONTENT = (type(threading.Lock()), type(threading.RLock()), logging.Logger, type(os.environ))
_DESCRIPTORS = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
_HEAP_TYPE = 1 << 9


@dataclass(frozen=True)
class _Names:
    """What code refers to by name: nested code included."""

    globals: tuple[str, ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]  # module, level, names that are taken from it
    words: frozenset[str]  # attributes, and strings that `getattr` may be called with


class _Walk:
    """A digest in the making. What has an identity stands by its number, and its content follows in that order.

    So what refers to itself has an end, and long chains of functions need no deep recursion.
    """

    def __init__(self, opened: tuple[str, ...], numbers: dict[int, tuple[int, object]]) -> None:
        self.hash = hashlib.sha256()
        self.opened = opened  # folders whose code counts as code of the author
        self.numbers = numbers  # by id; the item is held, so that no other one gets its id
        self.waiting: deque[tuple[Any, str]] = (
            deque()
        )  # items with a number whose content is to come, with their places

    def write(self, kind: str, content: str | Any = b"") -> None:
        """Digest a piece of content, a string or a buffer of bytes; its kind and length keep neighbours apart."""
        content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        self.hash.update(f"{kind} {len(content)} ".encode())
        self.hash.update(content)

    def visit(self, item: Any, place: str) -> None:
        """Digest an item, or its number where its content comes later. `place` says in messages where it is."""
        item = uncompiled(item)
        kind = type(item)
        if kind in _PLAIN:
            self.write(kind.__name__, _PLAIN[kind](item))
        elif kind is tuple:
            self._sequence(item, place)
        elif kind is types.CodeType:
            self._code(item, place)
        elif kind in (set, frozenset):
            self._set(item, place)
        else:
            if id(item) not in self.numbers:
                self.numbers[id(item)] = (len(self.numbers), item)
                self.waiting.append((item, place))
            self.write("number", str(self.numbers[id(item)][0]))

    def finish(self) -> str:
        """The digest of all that was visited, and of all that it reaches."""
        while self.waiting:
            item, place = self.waiting.popleft()
            try:
                self._content(item, place)
            except UndigestedError:
                raise
            except RecursionError:
                raise UndigestedError(f"{place}: {article(item)} that nests too deep") from None
            except Exception as error:  # what an object raises when it is asked for its content is its choice
                told = str(error).partition("\n")[0]
                why = "" if "pickle" in told else f" ({told})"
                raise UndigestedError(f"{place}: {article(item)}{why}") from None
        return self.hash.hexdigest()

    def _content(self, item: Any, place: str) -> None:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if isinstance(item, types.FunctionType):
            self._function(item, place)
        elif isinstance(item, type):
            self._class(item, place)
        elif isinstance(item, types.ModuleType):
            self._module(item, place)
        elif isinstance(item, types.MethodType):
            self._parts("method", place, item.__func__, item.__self__)
        elif isinstance(item, types.BuiltinFunctionType | types.MethodWrapperType):
            self._builtin(item, place)
        elif isinstance(item, _DESCRIPTORS):
            self._parts("descriptor", place, item.__objclass__, item.__name__)
        elif type(item) in (staticmethod, classmethod):
            self._parts(type(item).__name__, place, item.__func__)
        elif type(item) is property:
            self._parts("property", place, item.fget, item.fset, item.fdel)
        elif isinstance(item, functools.cached_property):
            self._parts("cached property", place, item.func)
        elif type(item) is functools.partial:
            self._parts("partial", place, item.func, item.args, item.keywords)
        elif isinstance(item, Field):
            self._parts("field", place, item.name, item.default, item.default_factory, item.init, item.kw_only)
        elif isinstance(item, weakref.ref):
            self._parts("reference", place, item())
        elif type(item) in (dict, types.MappingProxyType):
            self._mapping(item, place)
        elif type(item) is list:
            self._sequence(item, place)
        elif isinstance(item, PurePath):
            self.write("path", str(item))
        elif isinstance(item, _WITHOUT_CONTENT) or item is sys.stdout or item is sys.stderr:
            self.write("no content")
        elif torch and isinstance(item, torch.Tensor):
            self._tensor(item, place)
        elif torch and isinstance(item, torch.nn.Module):
            self._torch_module(item, place)
        elif torch and isinstance(item, torch.Generator):
            self._parts("generator", place, str(item.device), item.get_state())
        elif torch and isinstance(item, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            self._operator(item, place)
        elif numpy and type(item) is numpy.ndarray:
            self._array(item, place)
        else:
            self._object(item, place)

    def _parts(self, kind: str, place: str, *parts: object) -> None:
        self.write(kind)
        for part in parts:
            self.visit(part, place)

    def _sequence(self, items: Collection[object], place: str) -> None:
        self.write(type(items).__name__, str(len(items)))
        for i, item in enumerate(items):
            self.visit(item, f"{place}[{i}]")

    def _mapping(self, table: Mapping[object, object], place: str) -> None:
        """A table in its order, which may decide the order of parameters and blocks."""
        self.write("table", str(len(table)))
        for key, value in table.items():
            self.visit(key, place)
            self.visit(value, f"{place}[{key!r}]" if type(key) in _PLAIN else place)

    def _set(self, items: Collection[object], place: str) -> None:
        """A set, whose order is one of memory: every entry for itself, sorted by digest."""
        self.write("set", "".join(sorted(self._digest_alone(item, place) for item in items)))

    def _digest_alone(self, item: object, place: str) -> str:
        walk = _Walk(self.opened, {} if type(item) in _PLAIN else dict(self.numbers))
        walk.visit(item, place)
        return walk.finish()

    # code

    def _code(self, code: types.CodeType, place: str) -> None:
        self.write("code", code.co_code)
        self.write("handlers", code.co_exceptiontable)
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        consts = code.co_consts
        if consts and isinstance(consts[0], str) and code.co_flags & inspect.CO_NEWLOCALS and code.co_name[0] != "<":
            consts = (None, *consts[1:])  # a docstring; the first constant of other functions is None
        self.visit((counts, names, consts), place)

    def _function(self, function: types.FunctionType, place: str) -> None:
        if self._is_installed_function(function):
            if self._is_installed(function) and origins.is_importable(function):
                self.write("installed", origins.named(function.__module__, function.__qualname__))
                return
            module = function.__globals__.get("__name__")
            self.write("installed", origins.named(module, function.__code__.co_qualname))
            names = None
        else:
            names = _names(function.__code__)
            self.write("function")
            self.visit(function.__code__, place)
        title = function.__name__
        for name, default in _defaults(function):
            self.write("default", name)
            self.visit(default, f"default of {name!r} of {title}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.write("closure", name)
            self._cell(cell, names.words if names else frozenset(), f"closure variable {name!r} of {title}")
        for name, value in sorted(vars(function).items()):
            if not name.startswith("_torchdynamo"):
                self.write("attribute", name)
                self.visit(value, f"attribute {name!r} of {title}")
        if names:
            self._globals(function, names)

    def _is_installed_function(self, function: types.FunctionType) -> bool:
        """Whether the code of a function is installed. `functools.wraps` gives a wrapper the module of its content."""
        file = function.__code__.co_filename
        if file.startswith("<") and not file.startswith("<frozen "):  # made by `eval`
            return self._is_installed(function) and origins.is_importable(function)
        return origins.is_installed_file(file) and not file.startswith(self.opened)

    def _is_installed(self, item: object) -> bool:
        """Whether the module that an item names is installed."""
        module = origins.module_of(getattr(item, "__module__", None))
        return module is not None and self._is_installed_module(module)

    def _is_installed_module(self, module: types.ModuleType) -> bool:
        return origins.is_installed(module) and not (origins.file_of(module) or "").startswith(self.opened)

    def _cell(self, cell: types.CellType, words: frozenset[str], place: str) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            self.write("empty")
        else:
            self._named(value, words, place, set())

    def _globals(self, function: types.FunctionType, names: _Names) -> None:
        """The content behind the globals and the imports that a function names."""
        known = function.__globals__
        for name in names.globals:
            self.write("global", name)
            if name in known and name not in _PLACE:
                self._named(known[name], names.words, f"global {name!r} of {function.__name__}", set())
        for name, level, taken in names.imports:
            self.write("import", name)
            place = f"import of {name!r} in {function.__name__}"
            module = self._imported(name, level, known)
            if module is not None:
                self._named(module, names.words | set(taken), place, set())

    def _named(self, value: object, words: frozenset[str], place: str, seen: set[int]) -> None:
        """The content behind a name: of a module of the author that of the attributes that `words` name."""
        if not isinstance(value, types.ModuleType) or self._is_installed_module(value) or _is_extension(value):
            self.visit(value, place)
        elif id(value) not in seen:
            seen.add(id(value))
            for name in sorted(words & vars(value).keys() - _PLACE):
                self.write("attribute", name)
                self._named(vars(value)[name], words, f"{value.__name__}.{name}", seen)

    def _imported(self, name: str, level: int, known: dict[str, Any]) -> types.ModuleType | None:
        """The module that an import inside of a function means; None where it is not there.

        A module of the author is loaded, as the function would do it.
        """
        package = known.get("__package__") or str(known.get("__name__", "")).rpartition(".")[0]
        try:
            name = importlib.util.resolve_name("." * level + name, package or None)
            top = sys.modules.get(name.partition(".")[0])
            if self._is_installed_module(top) if top else origins.is_installed_name(name):
                self.write("installed", origins.named(name, ""))
                return None
            return importlib.import_module(name)
        except Exception:  # a module may raise anything, and the function may handle it
            self.write("missing", name)
            return None

    def _builtin(self, function: Any, place: str) -> None:
        """A function of C: its name, and what it is bound to."""
        holder = function.__self__
        if holder is None or isinstance(holder, types.ModuleType) or type(holder).__name__ == "PyCapsule":
            module = function.__module__ or getattr(holder, "__name__", None)
            self._named_in_c(module, function.__qualname__)
        else:
            self._parts("bound", place, function.__name__, holder)

    def _named_in_c(self, module: str | None, name: str) -> None:
        self.write("installed", origins.named(module, name))
        file = origins.module_of(module)
        if file is not None and _is_extension(file) and not self._is_installed_module(file):
            self._file(file)

    def _file(self, module: types.ModuleType) -> None:
        """The bytes of a compiled module that its author made."""
        self.write("file", Path(str(module.__file__)).read_bytes())

    def _class(self, cls: type, place: str) -> None:
        if self._is_installed(cls) and origins.is_importable(cls):
            self.write("installed", origins.named(cls.__module__, cls.__qualname__))
            return
        module = origins.module_of(cls.__module__)
        if not cls.__flags__ & _HEAP_TYPE or (module is not None and _is_extension(module)):
            self._named_in_c(cls.__module__, cls.__qualname__)
            return
        self._parts("class", place, *cls.__bases__)
        if type(cls) is not type:
            self._parts("metaclass", place, type(cls))
        for name, value in sorted(vars(cls).items()):
            if name not in _NO_CONTENT and not isinstance(value, types.GetSetDescriptorType):
                self.write("attribute", name)
                self.visit(value, f"{cls.__name__}.{name}")

    def _module(self, module: types.ModuleType, place: str) -> None:
        """A module that is handed about as a value: all of it."""
        if self._is_installed_module(module):
            self.write("installed", origins.named(module.__name__, ""))
        elif _is_extension(module):
            self._file(module)
        else:
            self.write("module")
            for name, value in sorted(vars(module).items()):
                if name not in _PLACE:
                    self.write("attribute", name)
                    self.visit(value, f"{module.__name__}.{name}")

    # values

    def _tensor(self, tensor: torch.Tensor, place: str) -> None:
        import torch

        self._parts("tensor", place, type(tensor))
        if tensor.is_meta or tensor.is_quantized:
            raise UndigestedError(
                f"{place}: a tensor {'on the device meta' if tensor.is_meta else 'with quantized entries'}"
            )
        self.write("form", f"{tensor.dtype} {tensor.layout} {tuple(tensor.shape)} {tensor.requires_grad}")
        dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
        flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        self.write("bytes", flat.view(torch.uint8).numpy())
        self._attributes(
            {name: value for name, value in vars(tensor).items() if not name.startswith("_dynamo")}, tensor
        )

    def _array(self, array: Any, place: str) -> None:
        self._parts("array", place, array.dtype, array.shape)
        if array.dtype.hasobject:
            self.visit(array.tolist(), place)
        else:
            import numpy

            self.write("bytes", numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8))

    def _torch_module(self, module: torch.nn.Module, place: str) -> None:
        """A module of torch. Its hooks stand under numbers that count all hooks of a process, which are no content."""
        self._parts("torch module", place, type(module))
        content = {name: value for name, value in vars(module).items() if name not in _COMPILED}
        for name, value in content.items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
                content[name] = list(value.values())
        self._attributes(content, module)

    def _attributes(self, content: Mapping[str, object], holder: object) -> None:
        for name, value in sorted(content.items()):
            self.write("attribute", name)
            self.visit(value, f"attribute {name!r} of {article(holder)}")

    def _object(self, item: Any, place: str) -> None:
        """Any other object: its class, its attributes, and what it would be pickled as."""
        cls = type(item)
        if any(base.__module__ in ("ctypes", "_ctypes") for base in cls.__mro__):
            raise UndigestedError(f"{place}: {article(item)} of ctypes")
        installed = self._is_installed(cls)
        if installed and callable(item) and origins.is_importable(item):
            self.write("installed", origins.named(item.__module__, item.__qualname__))
            return
        self._parts("object", place, cls)
        pickled = copyreg.dispatch_table.get(cls, lambda value: value.__reduce_ex__(4))(item)
        if isinstance(pickled, str):  # the name of a global
            self._name(item, pickled, place)
            return
        make, made_of, state, entries, pairs = (tuple(pickled) + (None,) * 5)[:5]
        special = cls in copyreg.dispatch_table or any(
            getattr(cls, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__", "__getstate__")
        )
        if not (installed and special):  # an installed class that says what its content is has caches, too
            self._attributes(_attributes(item), item)
        self._parts("made", place, make, made_of, state if special else None)
        self._sequence(list(entries or ()), place)
        self._sequence(list(pairs or ()), place)

    def _name(self, item: Any, name: str, place: str) -> None:
        """An object that is pickled as the name of a global: functools.cache and its like have content behind it."""
        if hasattr(item, "__wrapped__"):
            self.visit(item.__wrapped__, place)
            return
        modules = [origins.module_of(getattr(holder, "__module__", None)) for holder in (item, type(item))]
        if all(getattr(module, name.rpartition(".")[2], None) is not item for module in modules):
            raise UndigestedError(f"{place}: {article(item)}")
        self.write("name", name)

    def _operator(self, operator: Any, place: str) -> None:
        """An operator of torch: its name, where torch defines it."""
        if not str(operator).startswith(("aten.", "prim.", "prims.")):
            raise UndigestedError(f"{place}: the operator {operator}")
        self.write("operator", str(operator))


def uncompiled(item: Any) -> Any:
    """What `torch.compile` was called with, where this is what it made; else the item itself."""
    while True:
        if isinstance(item, types.FunctionType) and "_torchdynamo_orig_callable" in vars(item):
            item = vars(item)["_torchdynamo_orig_callable"]
        elif isinstance(item, types.FunctionType) and item.__code__.co_qualname == "wrap_inline.<locals>.inner":
            item = vars(item)["__wrapped__"]  # older ones wrap what they keep
        elif type(item).__name__ == "OptimizedModule" and "_orig_mod" in (vars(item).get("_modules") or ()):
            item = vars(item)["_modules"]["_orig_mod"]
        else:
            return item


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """The defaults of arguments by name."""
    values = function.__defaults__ or ()
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(positional[len(positional) - len(values) :], values, strict=True)
    yield from sorted((function.__kwdefaults__ or {}).items())


def _attributes(item: object) -> dict[str, object]:
    """The attributes that an object has itself. Values that a cached property stored there are left out."""
    content = {n: getattr(item, n) for n in copyreg._slotnames(type(item)) if hasattr(item, n)}  # type: ignore[attr-defined]
    content |= getattr(item, "__dict__", {})
    cls = type(item)
    cached = {n for n in content if isinstance(inspect.getattr_static(cls, n, None), functools.cached_property)}
    return {name: value for name, value in content.items() if name not in cached}


def _is_extension(module: types.ModuleType) -> bool:
    """Whether a module is compiled, so that its file is all that there is to digest."""
    return str(vars(module).get("__file__")).endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> _Names:
    """What code refers to by name."""
    instructions = list(dis.get_instructions(code))
    globals_ = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")}
    imports = {(i.argval, *_import_arguments(instructions[:k])) for k, i in enumerate(instructions) if _imports(i)}
    words = {*code.co_names, *_strings(code.co_consts)}
    for nested in (c for c in code.co_consts if isinstance(c, types.CodeType)):
        inner = _names(nested)
        globals_ |= set(inner.globals)
        imports |= set(inner.imports)
        words |= inner.words
    return _Names(tuple(sorted(globals_)), tuple(sorted(imports)), frozenset(words))


def _imports(instruction: dis.Instruction) -> bool:
    return instruction.opname == "IMPORT_NAME"


def _import_arguments(before: list[dis.Instruction]) -> tuple[int, tuple[str, ...]]:
    """The level of an import and the names that are taken from the module: the two constants loaded before it."""
    loaded = [i.argval for i in before if i.opname in ("LOAD_CONST", "LOAD_SMALL_INT")]
    level, taken = loaded[-2:]
    return level, tuple(taken or ())


def _strings(constants: Iterable[object]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from _strings(constant)
