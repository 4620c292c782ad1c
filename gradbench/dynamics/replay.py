"""Functions recorded on a CPU: the operations of a call are called again, on memory that stays.

Much of the time of a step of small tensors is not arithmetic but Python, views and allocation: a quarter for 64
examples of a transformer, half and more for toys. A recording is a list of the operations that a call ran, each a line
of Python, for tensors of the same shapes, strides and dtypes.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, lru_cache
from time import perf_counter
from types import BuiltinFunctionType, CodeType
from typing import Any

import torch
from torch import Tensor

from gradbench.dynamics.capture import TRIAL
from gradbench.dynamics.operations import BLANK, Operation, UnfitError, View, Watch, written_by

Function = Callable[..., tuple[Tensor, ...]]
SPENT = 5e-3  # seconds of plain calls before a recording, which takes 2 to 10 ms: a short loop is not worth one
LARGEST = 2**19  # numbers in the arguments: above, arithmetic takes nearly all of the time, and a recording much memory
KINDS = 1000  # of recordings that are remembered
COPIES = frozenset({"clone", "_to_copy"})  # their result is their argument: it is copied to where the result stays

_of_thread = threading.local()
_agreed: set[Hashable] = set()  # kinds of recordings that have given what a plain call gave


class Replayed:
    """A function of tensors that is recorded once its plain calls have taken `SPENT` seconds.

    Tensors that the function reads without taking them as arguments are read where they lay when it was recorded. The
    function may read nothing else that changes. Calls are plain where arguments have other forms than those of the
    recording, in another thread, and inside of a mode or a transform of torch. So are all calls of a function that
    cannot be recorded, or whose recording does not agree with a plain call to the bit. Every output is a new tensor, an
    argument that was written into, or a view of either.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._thread = threading.get_ident()
        self._forms: Sequence[Hashable] = []  # of the arguments of the recording, before it of the last call
        self._spent = 0.0
        self._fit = True
        self._program: Program | None = None

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs for these arguments."""
        if not self._fit or threading.get_ident() != self._thread or _altered():
            return self._function(*values)
        forms = [_form(v) for v in values]
        if forms == self._forms and (self._program or self._spent >= SPENT):
            try:
                self._program = self._program or self._recorded(values)
            except Exception:  # where the function itself is wrong, a plain call tells
                self._fit = False
                return self._function(*values)
            return self._program.run(*values)
        if self._program:
            return self._function(*values)
        begun = perf_counter()
        outputs = self._function(*values)
        self._spent += perf_counter() - begun
        self._forms = forms
        return outputs

    def _recorded(self, values: Sequence[Tensor]) -> Program:
        """Raises UnfitError where the operations cannot be told, or where a trial gives something else.

        The trial is on other numbers than the recording, so that a number that was kept is noticed.
        """
        inputs = [v.clone() for v in values]
        if [_form(v) for v in inputs] != self._forms:
            raise UnfitError("an argument whose copy has other strides")
        watch = Watch(inputs)
        with watch:
            outputs = self._function(*inputs)
        program = Program(watch, [watch.view(v) for v in outputs])
        if program.kind not in _agreed:
            others = [v * (1 + TRIAL) if v.is_floating_point() else v.clone() for v in values]
            copies = [v.clone() for v in others]
            if not all(map(_equal, (*program.run(*others), *others), (*self._function(*copies), *copies))):
                raise UnfitError("another result than that of a plain call")
            if len(_agreed) == KINDS:
                _agreed.clear()
            _agreed.add(program.kind)
        return program


def _form(v: Tensor) -> tuple[Hashable, ...]:
    return v.shape, v.stride(), v.dtype, v.requires_grad


def _altered() -> bool:
    """Whether a mode or a transform of torch is active here, or inference mode: torch then may compute something else.

    A recording is made in a mode. So a recorded function is called plainly while a function that calls it is recorded.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.is_inference_mode_enabled()
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit."""
    return _form(a) == _form(b) and torch.equal(*(v.flatten().contiguous().view(torch.uint8) for v in (a, b)))


class Program:
    """The operations of a function, written down as a function of Python, `run`.

    Names: a0 is the first argument, t5 the tensor of the storage of number 5, which every call makes anew, v7 a view of
    an argument or of such a tensor, and k9 what stays from call to call: an operation, scratch, a tensor that is read.
    `kind` is equal for programs that do the same with tensors of the same forms.
    """

    def __init__(self, watch: Watch, outputs: Sequence[View]) -> None:
        filled, self._handed_out = watch.filled(outputs), {view.storage for view in outputs}
        if self._handed_out & watch.outer - {view.storage for view in watch.inputs}:
            raise UnfitError("a result that is read, and not made")
        operations = [op for op in watch.needed(outputs) if not {view.storage for view in op.made} & filled]
        arguments = {view.storage: f"a{i}" for i, view in enumerate(watch.inputs)}
        # storages that stay from call to call: those that are read besides the arguments, filled ones, and scratch
        self._staying = {n: watch.tensors[n].untyped_storage() for n in (watch.outer | filled) - arguments.keys()}
        self._scratch = _scratch()
        self._staying |= self._scratch.shared_out(*self._spans(operations, watch))
        self._names: dict[View, str] = dict(zip(watch.inputs, arguments.values(), strict=True))
        self._bases = {view.storage: view for view in watch.inputs}  # the whole tensor in a storage that does not stay
        self._passing: dict[int, list[str]] = defaultdict(list)  # names of tensors in storages that a call makes
        self._constants: dict[str, Any] = {}
        self._lines: list[str] = []
        last = {number: i for i, op in enumerate(operations) for number in op.touched}
        for i, op in enumerate(operations):
            self._write(op)
            gone = {number for number in op.touched if last[number] == i} - self._handed_out
            if names := [name for number in gone for name in self._passing.pop(number, ())]:
                self._lines.append(f"del {', '.join(names)}")
        returned = ", ".join(self._name(view) for view in outputs)
        body = "\n    ".join([*self._lines, f"return ({returned},)"])
        source = f"def run({', '.join(arguments.values())}):\n    {body}\n"
        self.kind: Hashable = source, *map(_kind, (*watch.inputs, *self._constants.values()))
        exec(_compiled(source), self._constants)
        # a function in its own globals would be a cycle, which only the garbage collector frees
        self.run: Function = self._constants.pop("run")

    def _spans(
        self, operations: Sequence[Operation], watch: Watch
    ) -> tuple[Mapping[int, int], Mapping[int, tuple[int, int]]]:
        """Of every storage that can be scratch: its bytes, and the first and the last operation that needs it."""
        sizes: dict[int, int] = {}
        spans: dict[int, tuple[int, int]] = {}
        for i, op in enumerate(operations):
            for number in op.touched:
                spans[number] = spans.get(number, (i, i))[0], i
            if len(op.made) == 1 and not op.written and (op.name in BLANK | COPIES or _into(op.overload)):
                number = op.made[0].storage
                if number not in self._handed_out:
                    sizes[number] = watch.tensors[number].untyped_storage().nbytes()
        return sizes, spans

    def _write(self, op: Operation) -> None:
        """Write an operation down."""
        stays = len(op.made) == 1 and op.made[0].storage in self._staying
        if op.name in BLANK:
            if not stays:
                (view,) = op.made
                form = ", ".join(map(self._text, (view.size, view.stride)))
                made = f"{self._text(torch.empty_strided)}({form}, dtype={self._text(view.dtype)}, device='cpu')"
                self._lines.append(f"{self._begin(view)} = {made}")
            return
        arguments = [*map(self._text, op.args), *(f"{name}={self._text(value)}" for name, value in op.kwargs.items())]
        if stays and op.name in COPIES:
            self._lines.append(f"{self._text(Tensor.copy_)}({self._name(op.made[0])}, {arguments[0]})")
        elif stays:
            into = self._text(_into(op.overload))
            self._lines.append(f"{into}({', '.join([*arguments, f'out={self._name(op.made[0])}'])})")
        else:
            call = f"{self._text(_function(op.overload))}({', '.join(arguments)})"
            made = ", ".join(map(self._begin, op.made))
            self._lines.append(f"{made} = {call}" if made else call)

    def _begin(self, view: View) -> str:
        """The name of a tensor that every call makes anew."""
        self._bases[view.storage], self._names[view] = view, f"t{view.storage}"
        self._passing[view.storage].append(self._names[view])
        return self._names[view]

    def _name(self, view: View) -> str:
        """The name of a tensor. A view of one that does not stay is looked at in a line before."""
        if view not in self._names:
            if view.storage in self._staying:
                blank = torch.empty(0, dtype=view.dtype, device="cpu")
                tensor = blank.set_(self._staying[view.storage], view.offset, view.size, view.stride)
                self._names[view] = self._constant(tensor)
            else:
                self._names[view] = self._look(view, self._bases[view.storage])
        return self._names[view]

    def _look(self, view: View, base: View) -> str:
        """The name of a view of a tensor that may begin at another place of its storage in every call."""
        if view.dtype is not base.dtype:
            raise UnfitError("a view of another dtype")
        of, name = self._names[base], f"v{len(self._names)}"
        offset = f"{of}.storage_offset() + {view.offset - base.offset}"
        self._lines.append(f"{name} = {of}.as_strided({view.size}, {view.stride}, {offset})")
        self._passing[view.storage].append(name)
        return name

    def _text(self, value: Any) -> str:
        """A value as Python writes it, or the name of a constant."""
        if isinstance(value, View):
            return self._name(value)
        if type(value) in (list, tuple):
            return f"[{', '.join(map(self._text, value))}]"
        return repr(value) if type(value) in (bool, int, str, type(None)) else self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"k{len(self._constants)}"
        self._constants[name] = value
        return name


class Scratch:
    """The memory of a thread for intermediate results of recordings. One recording at a time uses it."""

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []

    def shared_out(
        self, sizes: Mapping[int, int], spans: Mapping[int, tuple[int, int]]
    ) -> dict[int, torch.UntypedStorage]:
        """A storage of at least this size by number. Two numbers whose spans overlap have different storages."""
        free, given, reached = list(self._storages), {}, 0
        ends: dict[int, list[torch.UntypedStorage]] = defaultdict(list)
        for number in sorted(sizes, key=lambda number: spans[number]):
            first, last = spans[number]
            free += [storage for i in range(reached, first) for storage in ends[i]]
            reached = first
            if large := [i for i, storage in enumerate(free) if storage.nbytes() >= sizes[number]]:
                storage = free.pop(min(large, key=lambda i: free[i].nbytes()))
            else:
                storage = torch.empty(sizes[number], dtype=torch.uint8, device="cpu").untyped_storage()
                self._storages.append(storage)
            ends[last].append(storage)
            given[number] = storage
        return given


def _scratch() -> Scratch:
    """The scratch of this thread, which is freed with the last recording that uses it."""
    living: weakref.ref[Scratch] | None = getattr(_of_thread, "scratch", None)
    scratch = living() if living else None
    if scratch is None:
        scratch = Scratch()
        _of_thread.scratch = weakref.ref(scratch)
    return scratch


def _kind(value: Any) -> Hashable:
    """What decides a program, of a constant."""
    return _form(value) if isinstance(value, Tensor) else repr(value)


@lru_cache(KINDS)
def _compiled(source: str) -> CodeType:
    return compile(source, "<recording>", "exec")


@cache
def _into(overload: Any) -> Any:
    """An operation in the form that writes into a tensor; None where it has none, or a generated one, which copies."""
    packet = overload.overloadpacket

    def arguments(of: Any) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in of._schema.arguments if a.name != "out"]

    for other in (getattr(packet, name) for name in packet.overloads()):
        computes = torch.Tag.generated not in other.tags and arguments(other) == arguments(overload)
        if computes and [name for _, name in written_by(other)] == ["out"]:
            return _function(other)
    return None


@cache
def _function(overload: Any) -> Any:
    """What calls an operation: a built-in function or a method of torch has half the overhead of an overload."""
    in_place = any(place == 0 for place, _ in written_by(overload))
    called = getattr(Tensor if in_place else torch, overload.overloadpacket.__name__, None)
    return called if called and (in_place or isinstance(called, BuiltinFunctionType)) else overload._op
