"""Recordings that serve again: a later pack of the same shapes writes its numbers to where a recording reads them.

A function that is given to `Field.repeated` reads tensors that are not its arguments: parameters, data, activations at
s*. `parted` finds these tensors in its closure. A recording is made of a copy of the function that reads copies of the
tensors, its *sources*. For a function of the same structure the sources take other numbers, and the recording is
replayed. So a recording serves every pack of one shape, one after the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradbench.data import origins
from gradbench.dynamics.capture import Captured
from gradbench.dynamics.field import Closed, Field, StepMap

if TYPE_CHECKING:
    from gradbench.dynamics.field import Step

SHARE = 0.03  # of the memory of a GPU that recordings may hold while no pack uses them
LARGEST = 0.01  # the same of a single one: of a larger pack the recording costs little beside its steps
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, slice, type, ModuleType)


class UnsharedError(Exception):
    """A function that reads something whose tensors cannot be told."""


@dataclass(frozen=True)
class _Parts:
    """What a value is made of: its kind, the values inside, and how it is made of such values."""

    kind: Hashable
    inside: Sequence[Any] = ()
    made: Callable[[list[Any]], Any] | None = None  # None: the value has nothing inside, and stands for itself


def _parts(value: Any) -> _Parts:
    """Raises UnsharedError for a value of an unknown kind."""
    kind = type(value)
    if isinstance(value, PLAIN):
        return _Parts((kind, value))
    if kind in (list, tuple):
        return _Parts((kind, len(value)), value, kind)
    if isinstance(value, tuple):  # a named tuple
        return _Parts((kind, len(value)), value, lambda inside: kind(*inside))
    if kind is dict:
        return _Parts((kind, *value), list(value.values()), lambda inside: dict(zip(value, inside, strict=True)))
    if kind is FunctionType:
        return _of_function(value)
    if kind is MethodType:
        return _Parts((kind, value.__func__), [value.__self__], lambda inside: MethodType(value.__func__, *inside))
    if kind is partial:
        return _Parts(
            (kind, tuple(value.keywords)),
            [value.func, list(value.args), list(value.keywords.values())],
            lambda inside: partial(inside[0], *inside[1], **dict(zip(value.keywords, inside[2], strict=True))),
        )
    if kind is BuiltinFunctionType:
        return _Parts((kind, value))
    if isinstance(value, Field):
        return _of_field(value)
    if kind in (Closed, StepMap):
        return _Parts((kind, *vars(value)), list(vars(value).values()), partial(_object_like, value))
    if is_dataclass(kind) and kind.__hash__ != object.__hash__:
        return _Parts((kind, value))  # systems and phases, which are equal where they do the same
    raise UnsharedError(f"{kind.__module__}.{kind.__qualname__}")


def _of_function(function: FunctionType) -> _Parts:
    if function.__closure__ is None:
        return _Parts((FunctionType, function))
    if function.__defaults__ or function.__kwdefaults__ or function.__module__.partition(".")[0] != origins.PACKAGE:
        raise UnsharedError(function.__qualname__)

    def made(inside: list[Any]) -> FunctionType:
        return FunctionType(
            function.__code__, function.__globals__, function.__name__, None, tuple(map(CellType, inside))
        )

    inside = [cell.cell_contents for cell in function.__closure__]
    return _Parts((FunctionType, function.__code__), inside, made)


def _of_field(field: Field) -> _Parts:
    """Not the seeds: what a function draws, it draws before."""
    head = type(field), field.system, field.solver, getattr(field, "compiled", False)

    def made(inside: list[Any]) -> Field:
        theta, x, knobs, context = inside
        same = replace(field, theta=theta, x=x, knobs=knobs, seeds=())
        vars(same)["context"] = context
        return same

    return _Parts(head, [field.theta, field.x, field.knobs, field.context], made)


def _object_like(value: object, inside: list[Any]) -> object:
    same = object.__new__(type(value))
    vars(same).update(zip(vars(value), inside, strict=True))
    return same


def parted(function: Callable[..., Any]) -> tuple[Hashable, list[Tensor]]:
    """The structure of a function, and the tensors that it reads besides its arguments, each once.

    Functions of equal structure do the same with their tensors. Raises UnsharedError where that cannot be told.
    """
    key: list[Hashable] = []
    tensors: list[Tensor] = []
    seen: dict[int, tuple[int, Any]] = {}  # by identity: the number of a value, and the value, which stays alive

    def see(value: Any) -> None:
        if id(value) in seen:
            key.append(("again", seen[id(value)][0]))
            return
        if not isinstance(value, PLAIN):
            seen[id(value)] = len(seen), value
        if isinstance(value, Tensor):
            key.append(_form(value))
            tensors.append(value)
            return
        parts = _parts(value)
        key.append(parts.kind)
        for part in parts.inside:
            see(part)

    see(function)
    return tuple(key), tensors


def with_tensors(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The same function with other tensors, in the order of `parted`."""
    made: dict[int, tuple[Any, Any]] = {}  # by identity: a value and the one like it
    others = iter(tensors)

    def like(value: Any) -> Any:
        if id(value) not in made:
            made[id(value)] = value, next(others) if isinstance(value, Tensor) else rebuilt(value)
        return made[id(value)][1]

    def rebuilt(value: Any) -> Any:
        parts = _parts(value)
        return value if parts.made is None else parts.made([like(part) for part in parts.inside])

    same: Callable[..., Any] = like(function)
    return same


def _form(v: Tensor) -> Hashable:
    return v.shape, v.stride(), v.dtype, v.device


def _written_out(v: Tensor) -> Tensor:
    """The part of a tensor that lies in memory: an axis along which it repeats itself has one entry."""
    for axis, (size, stride) in enumerate(zip(v.shape, v.stride(), strict=True)):
        if size > 1 and stride == 0:
            v = v.narrow(axis, 0, 1)
    return v


class _Strangers(TorchDispatchMode):
    """Counts reads of tensors that are neither given nor made inside."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive = list(known)  # a tensor that was freed would leave its place to another one
        self._known = {v.untyped_storage()._cdata for v in self._alive}
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for v in tree_leaves((args, kwargs)):
            if isinstance(v, Tensor) and v.numel() and v.untyped_storage()._cdata not in self._known:
                self.number += 1
        out = func(*args, **(kwargs or {}))
        new = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        self._alive += new
        self._known.update(v.untyped_storage()._cdata for v in new)
        return out


class Recording:
    """A function as a CUDA graph, and the tensors that it reads besides its arguments."""

    def __init__(
        self, function: Step, tensors: Sequence[Tensor], examples: Sequence[Tensor], *, compiled: bool = False
    ) -> None:
        held = torch.cuda.memory_reserved()
        self._sources = [_written_out(v).detach().clone().expand(v.shape) for v in tensors]
        same, self._watched = with_tensors(function, self._sources), False
        versions = [v._version for v in self._sources]

        def watched(*state: Tensor) -> tuple[Tensor, ...]:
            if self._watched:
                return same(*state)
            self._watched = True
            with _Strangers([*self._sources, *state]) as strangers:
                result = same(*state)
            self._strangers = strangers.number
            return result

        self.captured = Captured(watched, *examples, compiled=compiled)
        # a function that writes into what it reads, or reads what nobody saw, serves once
        self.serves_again = not self._strangers and versions == [v._version for v in self._sources]
        sizes = sum(_written_out(v).nbytes for v in self._sources) + sum(v.nbytes for v in examples)
        self.nbytes = sizes + max(0, torch.cuda.memory_reserved() - held)

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Read the numbers of other tensors from now on."""
        for source, v in zip(self._sources, tensors, strict=True):
            _written_out(source).copy_(_written_out(v))


_idle: OrderedDict[Hashable, list[Recording]] = OrderedDict()
_lock = threading.Lock()
_of_thread = threading.local()


@contextmanager
def lent() -> Iterator[None]:
    """Inside, recordings of this thread serve again after the block, and those of blocks before serve inside.

    After the block their outputs may be overwritten.
    """
    outer = getattr(_of_thread, "taken", None)
    _of_thread.taken = []
    try:
        yield
        _give_back(_of_thread.taken)
    finally:
        _of_thread.taken = outer


def recorded(function: Step, *examples: Tensor, compiled: bool = False) -> Step:
    """The function as a CUDA graph. Inside of `lent` it is an idle one, where a function of equal structure has one."""
    taken = getattr(_of_thread, "taken", None)
    if taken is None:
        return Captured(function, *examples, compiled=compiled)
    try:
        structure, tensors = parted(function)
    except UnsharedError:
        return Captured(function, *examples, compiled=compiled)
    forms = tuple(map(_form, examples))
    key = structure, forms, compiled, torch.is_grad_enabled(), torch.cuda.current_stream().cuda_stream
    recording = _idle_one(key)
    if recording is None:
        recording = Recording(function, tensors, examples, compiled=compiled)
    else:
        recording.take(tensors)
    taken.append((key, recording))
    return recording.captured


def _idle_one(key: Hashable) -> Recording | None:
    with _lock:
        idle = _idle.get(key)
        recording = idle.pop() if idle else None
        if idle == []:
            del _idle[key]
    return recording


def _give_back(taken: Sequence[tuple[Hashable, Recording]]) -> None:
    if not taken:
        return
    memory = torch.cuda.get_device_properties().total_memory
    with _lock:
        for key, recording in taken:
            if recording.serves_again and recording.nbytes <= LARGEST * memory:
                _idle.setdefault(key, []).append(recording)
                _idle.move_to_end(key)
        while sum(recording.nbytes for idle in _idle.values() for recording in idle) > SHARE * memory:
            _idle.popitem(last=False)


def forget() -> None:
    """Give back the memory of all idle recordings."""
    with _lock:
        _idle.clear()
