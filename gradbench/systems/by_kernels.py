"""What systems of all families of kernels share: how a step is handed to the kernels of the family."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from gradbench.systems.base import Advance, FusedSteps, KernelInputs, Params

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor


class AbstractByKernels(FusedSteps):
    """Steps by the functions of a module in `systems/kernels`, `tokens` or `toys`."""

    D: int  # width of a token

    @property
    @abstractmethod
    def _family(self) -> ModuleType:
        """The module. It is imported where it is asked for, since it imports torch."""

    @property
    @abstractmethod
    def _kind(self) -> Any:
        """What the functions of the module take of the system."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """How many features are read from tokens and written to them, `reading` and `writing`."""

    def fused_step(
        self,
        read: KernelInputs,
        s: Tensor,
        out: Tensor,
        eps: Tensor,
        nudge: Tensor | None = None,
        bent: Tensor | None = None,
    ) -> Advance:
        advance: Advance = self._family.step(read, self._kind, s, out, eps, nudge, bent)
        return advance

    def fused_bent(self, read: KernelInputs, s: Tensor, start: Tensor, inputs: Tensor) -> Tensor:
        bent: Tensor = self._family.bent(read, self._kind, s, start, inputs)
        return bent

    def fused_product(self, read: KernelInputs, inputs: dict[str, Tensor], v: Tensor) -> Tensor:
        product: Tensor = self._family.product(read, self._kind, v, **inputs)
        return product

    def fused_back(self, read: KernelInputs, s: Tensor, a: Tensor, summed: Tensor, sums: Params) -> None:
        self._family.back(read, self._kind, s, a, summed, **sums)

    def pull_sums(self, rows: int, cells: int, like: Tensor) -> Params:
        """z^T credits of the features, and p^T features: both (rows of T1, c, D, features)."""
        return {name: like.new_zeros((rows, cells, self.D, width)) for name, width in self.widths.items()}
