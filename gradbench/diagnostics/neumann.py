"""The adjoint series at s*, term by term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


def adjoint_credit(free: Trajectory, terms: int, eps: Tensor | None = None) -> Float[Tensor, "i *c b n"]:
    """Credit eps sum_{j<terms} (Pi'^T (1 + eps J^T))^j Pi'^T dC/ds at s*, with the projection where there is one."""
    *_, credit = adjoints(free, terms, eps)
    return credit


def adjoints(free: Trajectory, terms: int, eps: Tensor | None = None) -> Iterator[Float[Tensor, "i *c b n"]]:
    """The credits of `adjoint_credit` with 0, 1, 2 ... terms."""
    field, s = free.field, free.ends
    eps = field.step_size if eps is None else eps
    with torch.no_grad():
        u = s + eps * field.force(s)
    linear, a = field.at(s), torch.zeros_like(s)
    yield a
    for _ in range(terms):
        a = field.project_vjp(u, a + eps * (linear.vjp(a) + free.cost_slope))
        yield a
