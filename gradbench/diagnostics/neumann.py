"""The adjoint series at s*, term by term."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from gradbench.dynamics.field import FEW

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


def adjoint_credit(free: Trajectory, terms: int, eps: Tensor | None = None) -> Float[Tensor, "i *c b n"]:
    """Credit eps sum_{j<terms} (Pi'^T (1 + eps J^T))^j Pi'^T dC/ds at s*, with the projection where there is one."""
    (credit,) = deque(adjoints(free, terms, eps), maxlen=1)
    return credit


def adjoints(free: Trajectory, terms: int, eps: Tensor | None = None) -> Iterator[Float[Tensor, "i *c b n"]]:
    """The credits of `adjoint_credit` with 0, 1, 2 ... terms. Each may be overwritten by the next one."""
    field, s, g = free.field, free.ends, free.cost_slope
    eps = field.step_size if eps is None else eps
    with torch.no_grad():
        u = s + eps * field.force(s)
    linear, a = field.frozen(field.at, s), torch.zeros_like(s)
    step = field.repeated(lambda a: (field.project_vjp(u, a + eps * (linear().vjp(a) + g)),), a, few=terms <= FEW)
    yield a
    for _ in range(terms):
        (a,) = step(a)
        yield a
