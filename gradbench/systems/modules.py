"""A module, or a table of tensors, called with parameters of one's choice for the time of a call.

The module that was handed over is copied once and never called or changed. `torch.func.functional_call` does the same
for one function; here the functions of a system get the module itself, and call any part of it.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from gradbench.data.given import tensors
from gradbench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COMPILED = "_orig_mod"  # under which torch.compile keeps the module that it wraps
Place = tuple[dict[str, Any], str, str, Any]  # the parameters of a part, the name there, its first name, its copy


class AbstractSlots(ABC):
    """The places of parameters in what the functions of a system get as their first argument."""

    theta: dict[str, Tensor]  # a copy of every parameter; tied ones are one, under their first name

    @abstractmethod
    def bound(self, theta: Mapping[str, Tensor], like: Tensor) -> AbstractContextManager[Any]:
        """The first argument, in the dtype and on the device of `like`, with `theta` for its parameters."""


class Table(AbstractSlots):
    """The places of the entries of a dict. An `nn.Parameter` that needs no gradient is a constant."""

    def __init__(self, given: Mapping[str, object], where: str) -> None:
        """Copy the tensors. Raises UserError for what is no tensor of floating-point numbers."""
        from torch import nn

        taken = tensors(given, where)
        for name, value in taken.items():
            if not value.is_floating_point():
                raise UserError(f"{where}[{name!r}]: got whole numbers, expected floating-point ones")
        first: dict[int, str] = {}
        self.tied = {str(name): first.setdefault(id(value), str(name)) for name, value in given.items()}
        frozen = {str(n) for n, v in given.items() if isinstance(v, nn.Parameter) and not v.requires_grad}
        self._constants = {name: taken[name] for name in taken if name in frozen}
        self.theta = {n: v for n, v in taken.items() if n not in frozen and self.tied[n] == n}

    @contextmanager
    def bound(self, theta: Mapping[str, Tensor], like: Tensor) -> Iterator[Any]:
        """A dict with a tensor under every name that the caller gave."""
        constants = {name: value.to(like.device, like.dtype) for name, value in self._constants.items()}
        yield {name: constants[name] if name in constants else theta[first] for name, first in self.tied.items()}


class Slots(AbstractSlots):
    """The places of the parameters of a module, in a copy for every thread, dtype and device.

    Frozen parameters and buffers are constants of the copies. Tied parameters are one, under their first name.
    """

    def __init__(self, module: nn.Module, where: str) -> None:
        """Copy the module. Raises UserError where it cannot be copied, or has no parameter to measure at."""
        try:
            self._module = _uncompiled(copy.deepcopy(module))
        except Exception as error:  # what an object raises that cannot be copied is its choice
            told = str(error).partition("\n")[0]
            advice = "the old torch.nn.utils.weight_norm cannot, torch.nn.utils.parametrizations.weight_norm can"
            raise UserError(f"{where}: the module cannot be copied ({told}); {advice}") from None
        self.theta = {n: p.detach().clone() for n, p in self._module.named_parameters() if p.requires_grad}
        for name, value in self.theta.items():
            if value.is_complex():
                raise UserError(f"{where}[{name!r}]: got complex numbers, expected real parameters: two for each")
        self._without_copies()

    def _without_copies(self) -> None:
        self._copies: dict[tuple[int, torch.dtype, torch.device], tuple[nn.Module, list[Place], list[nn.Module]]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module, "theta": self.theta}  # copies are of the threads of one process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._without_copies()

    @contextmanager
    def bound(self, theta: Mapping[str, Tensor], like: Tensor) -> Iterator[Any]:
        """The module of this thread."""
        module, places, recurrent = self._copy(like.dtype, like.device)
        try:
            for parameters, name, first, _ in places:
                parameters[name] = theta[first]  # may be a tensor that is no leaf
            _refresh(recurrent)
            yield module
        finally:
            for parameters, name, _, copied in places:
                parameters[name] = copied

    def _copy(self, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, list[Place], list[nn.Module]]:
        key = threading.get_ident(), dtype, device
        with self._lock:
            if key not in self._copies:
                module = copy.deepcopy(self._module)
                _cast(module, dtype, device)
                recurrent = [part for part in module.modules() if hasattr(part, "_flat_weights_names")]
                self._copies[key] = module, _places(module, self.theta), recurrent
            return self._copies[key]


def _places(module: nn.Module, names: Mapping[str, Tensor]) -> list[Place]:
    """Where every parameter of these names lives: a tied one in several places."""
    by_identity = {id(p): name for name, p in module.named_parameters() if name in names}
    return [
        (owner._parameters, name, by_identity[id(value)], value)
        for owner in module.modules()
        for name, value in owner._parameters.items()
        if value is not None and id(value) in by_identity
    ]


def _cast(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Move parameters and buffers; complex ones stay complex."""
    import torch

    def moved(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return value.to(device, dtype)
        return value.to(device, dtype.to_complex()) if value.is_complex() else value.to(device)

    with torch.no_grad():
        module._apply(moved)


def _refresh(recurrent: Iterable[nn.Module]) -> None:
    """Tell recurrent modules of their parameters, of which they keep a list."""
    for part in recurrent:
        part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]  # type: ignore[assignment, union-attr]


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module with compiled parts replaced by what was compiled: a compiled function has no second derivative."""
    while hasattr(module, COMPILED):
        module = getattr(module, COMPILED)
    for part in module.modules():
        for name, child in list(part._modules.items()):
            while child is not None and hasattr(child, COMPILED):
                child = getattr(child, COMPILED)
            part._modules[name] = child
    return module
