"""The operations of torch that a function of tensors runs on a CPU, as a dispatch mode of torch sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BLANK = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})  # make what is not set
FILLED = frozenset(name for kind in ("zeros", "ones", "full") for name in (kind, f"{kind}_like", f"new_{kind}"))
# draws, changes of the form of a tensor, and results whose form depends on numbers
UNFIT = frozenset(
    getattr(torch.Tag, name)
    for name in ("nondeterministic_seeded", "inplace_view", "dynamic_output_shape", "data_dependent_output")
)


class UnfitError(Exception):
    """A function that a list of its operations cannot stand for: it draws, branches on numbers, takes derivatives."""


class View(NamedTuple):
    """A tensor, by the number of the storage that it lies in."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of an operation of torch, with views in place of tensors."""

    overload: Any  # as torch.ops.aten.add.Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: tuple[View, ...]  # results in new storages
    written: frozenset[int]  # storages of arguments that it writes into

    @property
    def name(self) -> str:
        """As add."""
        name: str = self.overload.overloadpacket.__name__
        return name

    @property
    def views(self) -> Iterator[View]:
        """The tensors among its arguments."""
        return _of_kind(View, (*self.args, *self.kwargs.values()))

    @cached_property
    def reads(self) -> set[int]:
        """The storages of its arguments, unless it needs their form alone."""
        return set() if self.name in BLANK else {view.storage for view in self.views}

    @cached_property
    def touched(self) -> set[int]:
        """The storages that it reads, writes into or makes."""
        return self.reads | {view.storage for view in self.made}


class Watch(TorchDispatchMode):
    """Notes the operations that run inside of it, except views."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.tensors: list[Tensor] = []  # one in every storage, by number; while it lives, no address is used again
        self.outer: set[int] = set()  # storages of inputs, and of what the function reads besides
        self._numbers: dict[int, int] = {}
        self.inputs = [self.view(v) for v in inputs]

    def view(self, v: Tensor, *, outer: bool = True) -> View:
        """The view of a tensor. Raises UnfitError for a tensor that is more than numbers of a CPU."""
        special = v.requires_grad or v.is_conj() or v.is_neg() or v.layout is not torch.strided
        if type(v) is not Tensor or v.device.type != "cpu" or special:
            raise UnfitError("a tensor with a derivative, or of another kind")
        storage = v.untyped_storage()._cdata
        number = self._numbers.setdefault(storage, len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(v)
            if outer:
                self.outer.add(number)
        return View(number, tuple(v.shape), v.stride(), int(v.storage_offset()), v.dtype)

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note it.

        Raises UnfitError where it draws, tells a number to Python, changes the form of a tensor, or writes into a
        tensor that the function neither has as an argument nor made.
        """
        kwargs = kwargs or {}
        if _looks(overload):
            return overload(*args, **kwargs)
        seen = tuple(map(self._seen, args)), {name: self._seen(value) for name, value in kwargs.items()}
        places = [seen[0][at] if at < len(args) else seen[1].get(name) for at, name in written_by(overload)]
        written = frozenset(view.storage for view in _of_kind(View, places))
        if UNFIT.intersection(overload.tags) or written & self.outer - {view.storage for view in self.inputs}:
            raise UnfitError(str(overload))
        known = len(self.tensors)
        out = overload(*args, **kwargs)
        results = out if isinstance(out, tuple | list) else [out]
        if not all(isinstance(v, Tensor) for v in results):
            raise UnfitError(str(overload))
        made = [view for view in (self.view(v, outer=False) for v in results) if view.storage >= known]
        if made and (isinstance(out, list) or len({view.storage for view in made}) != len(results)):
            raise UnfitError(f"{overload}: a list of results, or some that are views")
        if made or written:
            self.operations.append(Operation(overload, *seen, tuple(made), written))
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the default imports torch._dynamo, 900 modules."""
        return False

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.view(value)
        if isinstance(value, tuple | list):
            return type(value)(map(self._seen, value))
        return value

    def filled(self, outputs: Sequence[View]) -> set[int]:
        """The storages that are filled with a number, and neither written into afterwards nor handed out."""
        changing = {view.storage for view in outputs}.union(*(op.written for op in self.operations))
        return {view.storage for op in self.operations if op.name in FILLED for view in op.made} - changing

    def needed(self, outputs: Sequence[View]) -> list[Operation]:
        """The operations on which these outputs and the storages outside of the function depend."""
        wanted, needed = {view.storage for view in outputs}, []
        for op in reversed(self.operations):
            if op.written & self.outer or wanted & (op.written | {view.storage for view in op.made}):
                needed.append(op)
                wanted |= op.reads
        return needed[::-1]


def _of_kind(kind: type, values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, tuple | list):
            yield from _of_kind(kind, value)


@cache
def _looks(overload: Any) -> bool:
    """Whether an operation computes nothing: its results are views of its arguments."""
    results = [result.alias_info for result in overload._schema.returns]
    return bool(results) and all(alias is not None and not alias.is_write for alias in results)


@cache
def written_by(overload: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operation writes into, by place and name."""
    arguments = enumerate(overload._schema.arguments)
    return tuple((at, a.name) for at, a in arguments if a.alias_info is not None and a.alias_info.is_write)
