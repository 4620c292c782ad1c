"""Recordings that serve again: a later pack of the same shapes writes its numbers to where a recording reads them.

A function that is given to `Field.repeated` reads tensors that are not its arguments: parameters, data, activations at
s*. `parted` finds these tensors in its closure. A recording is made of a copy of the function that reads copies of the
tensors, its *sources*. For a function of the same structure the sources take other numbers, and the recording is
replayed. So a recording serves every pack of one shape, one after the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradbench.data import origins
from gradbench.dynamics.capture import Captured, unused
from gradbench.dynamics.field import Closed, Field, StepMap

if TYPE_CHECKING:
    from gradbench.dynamics.field import Step

SHARE = 0.03  # of the memory of a GPU that recordings may hold while no pack uses them
LARGEST = 0.002  # of this memory, what a recording that serves again may read
SPARE = 0.2  # of this memory: what must be free for that
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
    if is_dataclass(kind) and kind.__hash__ != object.__hash__ and origins.is_of_package(kind):
        return _Parts((kind, value))  # systems and phases, which are equal where they do the same
    raise UnsharedError(f"{kind.__module__}.{kind.__qualname__}")


def _of_function(function: FunctionType) -> _Parts:
    """Raises UnsharedError for a closure of a caller. A test shows that those of the package read nothing else."""
    if function.__closure__ is None:
        return _Parts((FunctionType, function))
    if function.__defaults__ or function.__kwdefaults__ or not origins.is_of_package(function):
        raise UnsharedError(function.__qualname__)

    def made(inside: list[Any]) -> FunctionType:
        return FunctionType(
            function.__code__, function.__globals__, function.__name__, None, tuple(map(CellType, inside))
        )

    inside = [cell.cell_contents for cell in function.__closure__]
    return _Parts((FunctionType, function.__code__), inside, made)


def _of_field(field: Field) -> _Parts:
    """Not the seeds: what a function draws, it draws before. Raises UnsharedError for a system of a caller."""
    if not (field.system.lifted and origins.is_of_package(type(field.system))):
        raise UnsharedError(field.system.name)
    head = type(field), field.system, field.solver, getattr(field, "compiled", False)

    def made(inside: list[Any]) -> Field:
        theta, x, knobs, context, packed = inside
        same = replace(field, theta=theta, x=x, knobs=knobs, seeds=())
        vars(same).update(context=context, packed=packed)
        return same

    return _Parts(head, [field.theta, field.x, field.knobs, field.context, field.packed], made)


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


class Recording:
    """A function as a CUDA graph, and the tensors that it reads besides its arguments."""

    def __init__(
        self, function: Step, tensors: Sequence[Tensor], examples: Sequence[Tensor], *, compiled: bool = False
    ) -> None:
        held = torch.cuda.memory_reserved()
        self._sources = [_written_out(v).detach().clone().expand(v.shape) for v in tensors]
        versions = [v._version for v in self._sources]
        self.captured = Captured(with_tensors(function, self._sources), *examples, compiled=compiled)
        # a function that writes into what it reads serves once
        self.serves_again = versions == [v._version for v in self._sources]
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


def recorded(function: Step, *examples: Tensor, compiled: bool = False, few: bool = False) -> Step:
    """The function as a CUDA graph. Inside of `lent` it is an idle one, where a function of equal structure has one.

    With `few` calls a recording that serves once does not pay: where it would, this is the function itself.
    """
    taken = getattr(_of_thread, "taken", None)
    shared = None if taken is None else _shared(function, examples)
    if taken is None or shared is None:
        return function if few else Captured(function, *examples, compiled=compiled)
    structure, tensors = shared
    key = structure, tuple(map(_form, examples)), compiled, *_settings()
    recording = _idle_one(key)
    if recording is None:
        recording = Recording(function, tensors, examples, compiled=compiled)
    else:
        recording.take(tensors)
    taken.append((key, recording))
    return recording.captured


def _shared(function: Step, examples: Sequence[Tensor]) -> tuple[Hashable, list[Tensor]] | None:
    """What `parted` says of a function whose recording can serve again: one that is small, while memory is not short.

    A large recording costs little beside its steps, and its copies would cost memory.
    """
    try:
        structure, tensors = parted(function)
    except UnsharedError:
        return None
    free, whole = torch.cuda.mem_get_info()
    size = sum(_written_out(v).nbytes for v in (*tensors, *examples))
    return (structure, tensors) if size <= LARGEST * whole and free + unused() >= SPARE * whole else None


def _settings() -> tuple[Hashable, ...]:
    """What decides the kernels of a recording besides shapes, and the stream that it is made for."""
    precision = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return precision, torch.is_grad_enabled(), torch.cuda.current_stream().cuda_stream


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
            if recording.serves_again:
                _idle.setdefault(key, []).append(recording)
                _idle.move_to_end(key)
        while sum(recording.nbytes for idle in _idle.values() for recording in idle) > SHARE * memory:
            _idle.popitem(last=False)


def forget() -> None:
    """Give back the memory of all idle recordings."""
    with _lock:
        _idle.clear()
