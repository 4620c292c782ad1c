"""Numbers that a caller hands over, taken by value: the tensors of the caller are never changed and never shared.

A message names the entry, what it is, and what is expected: `data['x']: got shape (3,), expected (8, 32)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

from gradbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

EXPECTED = "expected an array of numbers"
DEEPEST = 64  # axes of an array of numpy
VOWEL = re.compile(r"(?i)[aeio]|nd|u(?!int|ser|ni[^nm]|uid)")  # how a word begins that takes "an"


def tensors(given: object, where: str) -> dict[str, Tensor]:
    """The entries of a table as tensors of finite numbers, each a copy. Raises UserError; `where` names the table."""
    hint = "; of a module: dict(module.named_parameters())" if hasattr(given, "named_parameters") else ""
    taken: dict[str, Tensor] = {}
    for name, value in table(given, where, f"a table of arrays by name{hint}").items():
        if not isinstance(name, str):
            raise UserError(f"{where}: got the key {name!r}, expected a name")
        word = str.__str__(name)  # of an enum of words too
        taken[word] = tensor(value, f"{where}[{word!r}]")
    return taken


def table(given: object, where: str, expected: str) -> dict[Any, Any]:
    """The entries of a mapping, of a pandas row, or of None, which is an empty one. Raises UserError otherwise."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) and not (hasattr(given, "items") and hasattr(given, "keys")):
        raise UserError(f"{where}: got {article(given)}, expected {expected}")
    try:
        return dict(given.items())
    except Exception as error:  # what an object that is no table raises is its choice
        raise UserError(
            f"{where}: got {article(given)} that cannot be read ({_told(error)}), expected {expected}"
        ) from None


def tensor(value: object, where: str) -> Tensor:
    """A tensor of finite numbers with the values of a tensor, an array, a number or a list of numbers."""
    import torch

    taken = _of_tensor(value, where) if isinstance(value, torch.Tensor) else _of_array(value, where)
    if taken.is_complex():
        raise UserError(f"{where}: got complex numbers, {EXPECTED} that are real")
    if not taken.numel():
        raise UserError(f"{where}: got shape {tuple(taken.shape)}, which holds no number, {EXPECTED}")
    check_finite(taken, where)
    return taken


def check_finite(value: Tensor, where: str) -> None:
    """Raise UserError where a tensor holds NaN or inf."""
    import torch

    if value.is_floating_point() and not torch.isfinite(value).all():
        what = "NaN" if torch.isnan(value).any() else "inf"
        raise UserError(f"{where}: got {what}, expected finite numbers")


def shaped(value: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """The tensor. Raises UserError where it has another shape."""
    if tuple(value.shape) != tuple(shape):
        raise UserError(f"{where}: got shape {tuple(value.shape)}, expected {tuple(shape)}")
    return value


def real(value: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """The tensor in a dtype of floating-point numbers. Raises UserError where it is a mask or is too large for it."""
    import torch

    if value.dtype is torch.bool:
        raise UserError(f"{where}: got true and false (bool), expected numbers such as 1.0 and 0.0")
    cast = value.to(dtype)
    if not torch.isfinite(cast).all():
        words = str(dtype).removeprefix("torch.")
        raise UserError(f"{where}: got {float(value.abs().max()):g}, expected numbers that {words} can hold")
    return cast


def whole(value: Tensor, number: int | None, where: str) -> Tensor:
    """The tensor as whole numbers, int64; from 0 and below `number`, where there is one. Raises UserError otherwise."""
    import torch

    expected = "expected whole numbers" + ("" if number is None else f" from 0 to {number - 1}")
    if value.dtype is torch.bool:
        raise UserError(f"{where}: got true and false (bool), {expected}")
    if value.is_floating_point() and not torch.equal(value, value.round()):
        raise UserError(f"{where}: got {float(value[value != value.round()][0]):g}, {expected}")
    wrong = value[(value < 0) | (value >= number)] if number is not None else value[:0]
    if wrong.numel():
        raise UserError(f"{where}: got {float(wrong[0]):g}, {expected}")
    return value.to(torch.int64)


def _of_tensor(value: Tensor, where: str) -> Tensor:
    import torch

    if value.is_nested:
        raise UserError(f"{where}: got a nested tensor, {EXPECTED}")
    if value.is_meta:
        raise UserError(f"{where}: got a tensor on the device meta, which holds no numbers, {EXPECTED}")
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise UserError(f"{where}: got a tensor of a transform of torch.func, {EXPECTED}; measure outside of it")
    if value.is_quantized:
        raise UserError(f"{where}: got a quantized tensor, {EXPECTED}; to make one: dequantize()")
    try:
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        if type(dense) is not torch.Tensor:
            dense = dense.as_subclass(torch.Tensor)
        # a copy, since the caller may change the tensor later, and a tensor of inference mode cannot be differentiated
        return dense.resolve_neg().clone(memory_format=torch.contiguous_format)
    except Exception as error:  # what a class of tensors raises is its choice
        raise UserError(f"{where}: got {article(value)} that cannot be read ({_told(error)}), {EXPECTED}") from None


def _of_array(value: object, where: str) -> Tensor:
    import numpy as np
    import torch

    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise UserError(f"{where}: got an array with masked entries, {EXPECTED}")
    if isinstance(value, str | bytes | Mapping) or callable(value):
        raise UserError(f"{where}: got {article(value)}, {EXPECTED}")
    try:
        array = np.asarray(_listed(value, where))
    except UserError:
        raise
    except Exception as error:  # what an object that is no array raises is its choice
        raise UserError(f"{where}: got {article(value)} that is no array ({_told(error)}), {EXPECTED}") from None
    if array.dtype.kind in "iufc" and isinstance(value, list | tuple) and _holds_truth(value):
        raise UserError(f"{where}: got {article(value)} with true or false among numbers, {EXPECTED}")
    if array.dtype.kind == "O":
        array = _numbers(array, value, where)
    if array.dtype.kind not in "biufc":
        raise UserError(f"{where}: got {article(value)} of {array.dtype}, {EXPECTED}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64 if array.dtype == np.uint64 else np.int64)
    elif array.dtype.kind == "f":
        single = array.dtype.itemsize <= 4
        array = array.astype(np.float32 if single else np.float64)
    elif array.dtype.kind == "c":
        array = array.astype(np.complex128)
    return torch.from_numpy(np.array(array, order="C"))  # copied: writable, and never shared


def _listed(value: Any, where: str, depth: int = 0) -> Any:
    """Tensors in a list as lists."""
    import torch

    if depth > DEEPEST:
        raise UserError(f"{where}: got lists more than {DEEPEST} deep in each other, {EXPECTED}")
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    return [_listed(v, where, depth + 1) for v in value] if isinstance(value, list | tuple) else value


def _holds_truth(value: Any) -> bool:
    """Whether true or false stands somewhere in a list of lists; an array counts by its dtype."""
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"


def _numbers(array: np.ndarray, value: object, where: str) -> np.ndarray:
    """An array of Python objects as float64: fractions, decimals and whole numbers of any size."""
    import numpy as np

    for entry in array.flat:
        if isinstance(entry, bool | np.bool_) or not isinstance(entry, Real | Decimal):
            inside = "" if array.ndim == 0 else f" with {article(entry)} in it"
            raise UserError(f"{where}: got {article(value)}{inside}, {EXPECTED}")
    try:
        return array.astype(np.float64)
    except (OverflowError, ValueError):
        raise UserError(f"{where}: got a number that float64 cannot hold, expected finite numbers") from None


def article(value: object) -> str:
    """The kind of an object with its article, for a message."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if VOWEL.match(name) else 'a'} {name}"


def _told(error: Exception) -> str:
    """The first sentence of what an exception says, with its kind where that is too little."""
    words = str(error).partition("\n")[0].partition(". ")[0]
    return words if " " in words else f"{type(error).__name__}: {words}" if words else type(error).__name__
