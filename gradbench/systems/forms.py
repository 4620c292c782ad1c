"""The form of a state as its author wrote it: a tensor, or a dict or a tuple of tensors, against the flat state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench.errors import SystemFaultError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

WHOLE = "state"  # the block of a state that is a single tensor


@dataclass(frozen=True)
class Block:
    """One tensor of a state: its shape behind the example axis, and whether its numbers are complex."""

    shape: tuple[int, ...]
    complex: bool

    @property
    def real_shape(self) -> tuple[int, ...]:
        """The shape as real coordinates: a complex number is two."""
        return (*self.shape, 2) if self.complex else self.shape


@dataclass(frozen=True)
class Form:
    """Tensors of shape (B, ...) against flat real coordinates (B, n)."""

    kind: type  # Tensor, dict, tuple, list, or a named tuple
    blocks: Mapping[str, Block]
    argument: str = "state"  # where the form was read, as messages name it

    @classmethod
    def of(cls, state: object, batch: int, name: str, argument: str) -> Form:
        """The form of a state of `batch` examples, which an `argument` of the system `name` has.

        Raises SystemFaultError for what is no state.
        """
        import torch

        kind: type = torch.Tensor if isinstance(state, torch.Tensor) else type(state)
        blocks, where = {}, f"{name}: {argument}"
        for part, value in entries(state, where):
            place = where if kind is torch.Tensor else f"{where}[{part!r}]"
            if not isinstance(value, torch.Tensor):
                raise SystemFaultError(f"{place}: got a {type(value).__name__}, expected a tensor")
            if value.ndim < 1 or len(value) != batch:
                raise SystemFaultError(
                    f"{place}: got shape {tuple(value.shape)}, expected ({batch}, ...): examples come first"
                )
            if not (value.is_floating_point() or value.is_complex()):
                raise SystemFaultError(f"{place}: got {_word(value.dtype)}, expected floating-point numbers")
            if "/" in part:
                raise SystemFaultError(f"{place}: a name of a part of the state has no '/'")
            blocks[part] = Block(tuple(value.shape[1:]), value.is_complex())
        if not blocks or not all(math.prod(block.shape) for block in blocks.values()):
            raise SystemFaultError(f"{where}: got a state without a number, expected numbers that relax")
        return cls(kind, blocks, argument)

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Blocks of the flat state, in order."""
        return {name: block.real_shape for name, block in self.blocks.items()}

    def shown(self, s: Float[Tensor, "*r b n"]) -> Any:
        """The state as its author wrote it, each tensor (*r, b, ...): views of the flat one."""
        import torch

        if self.kind is torch.Tensor and not self.blocks[WHOLE].complex:
            return s.reshape(*s.shape[:-1], *self.blocks[WHOLE].shape)
        sizes = [math.prod(block.real_shape) for block in self.blocks.values()]
        parts = {}
        for (name, block), part in zip(self.blocks.items(), s.split(sizes, dim=-1), strict=True):
            shaped = part.unflatten(-1, block.real_shape) if block.real_shape else part.squeeze(-1)
            parts[name] = torch.view_as_complex(shaped.contiguous()) if block.complex else shaped
        if self.kind is torch.Tensor:
            return parts[WHOLE]
        made: Any = self.kind
        if hasattr(made, "_fields"):
            return made(**parts)
        return parts if issubclass(made, Mapping) else made(parts.values())

    def flat(self, state: object, rows: tuple[int, ...] | None, where: str, dtype: Any = None) -> Float[Tensor, "*r n"]:
        """The flat real coordinates of tensors (*rows, ...), in `dtype` where one is named. None: any rows.

        Raises SystemFaultError for another form, shape or kind of numbers. A real tensor stands for a complex one.
        """
        import torch

        given = dict(entries(state, where))
        if list(given) != list(self.blocks) and set(given) != set(self.blocks):
            got, expected = _listed(type(state), given), _listed(self.kind, self.blocks)
            raise SystemFaultError(f"{where}: got {got}, expected {expected} as in `{self.argument}`")
        parts = []
        for name, block in self.blocks.items():
            value, place = given[name], where if self.kind is torch.Tensor else f"{where}[{name!r}]"
            if not isinstance(value, torch.Tensor):
                raise SystemFaultError(f"{place}: got a {type(value).__name__}, expected a tensor")
            rows = value.shape[: value.ndim - len(block.shape)] if rows is None else rows
            if tuple(value.shape) != (*rows, *block.shape):
                raise SystemFaultError(
                    f"{place}: got shape {tuple(value.shape)}, expected {(*rows, *block.shape)} as in `{self.argument}`"
                )
            if value.is_complex() and not block.complex:
                raise SystemFaultError(f"{place}: got complex numbers, expected real ones as in `{self.argument}`")
            if block.complex:
                value = torch.view_as_real(
                    value if value.is_complex() else torch.complex(value, torch.zeros_like(value))
                )
            value = value.reshape(*rows, math.prod(block.real_shape))
            parts.append(value if dtype is None else value.to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def entries(state: object, where: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a state by name: keys of a dict, fields of a named tuple, places in a tuple or a list."""
    import torch

    if isinstance(state, torch.Tensor):
        yield WHOLE, state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield str(name), value
    elif isinstance(state, tuple | list):
        names = getattr(state, "_fields", range(len(state)))
        yield from ((str(name), value) for name, value in zip(names, state, strict=True))
    else:
        raise SystemFaultError(
            f"{where}: got a {type(state).__name__}, expected a tensor, or a dict or tuple of tensors"
        )


def _listed(kind: type, names: Mapping[str, object]) -> str:
    if list(names) == [WHOLE] and not issubclass(kind, Mapping):
        return "a tensor"
    what = "dict" if issubclass(kind, Mapping) else kind.__name__
    return f"a {what} of {', '.join(names)}" if issubclass(kind, Mapping) else f"a {what} of {len(names)} tensors"


def _word(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
