"""A function run in float64 throughout, whatever it casts its numbers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from torch import Tensor

NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({"half", "bfloat16", "float", "to", "type", "type_as"})
_MAKES = frozenset({"zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "tensor"})


class Widened(TorchFunctionMode):
    """A cast of float64 leaves it as it is, and an operation on numbers of several precisions is done in float64.

    What is written into a narrower tensor in place is rounded still, and random numbers are drawn as they would be.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function, with wider numbers."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _MAKES and kwargs.get("dtype") in NARROW:
            kwargs["dtype"] = torch.float64
        if name in _CASTS:
            cast, first = func(*args, **kwargs), args[0]
            narrowed = isinstance(cast, torch.Tensor) and cast.dtype in NARROW and first.dtype == torch.float64
            return first.to(cast.device, copy=True) if narrowed else cast
        in_place = name.endswith("_") and not name.endswith("__")
        kinds = {v.dtype for v in args if isinstance(v, torch.Tensor)}
        if len(kinds) > 1 and not in_place and torch.float64 in kinds:
            args, kwargs = tree_map(_wide, (args, kwargs))
        return func(*args, **kwargs)


def _wide(v: Any) -> Any | Tensor:
    return v.double() if isinstance(v, torch.Tensor) and v.dtype in NARROW else v
