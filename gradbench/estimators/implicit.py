"""The implicit reference: the gradient of the fixed point of the step map, linearised at the end of the free phase."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from gradbench.estimators.base import Snapshot, along

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import Params


SOLVED = 1e-8  # |g - (1 - J_G^T) a| / |g| of the worst sample: above, a is no solution
TIGHT = 1e-12  # what GMRES stops at
LOOSE = 1e-10  # above, matrices are tried where they fit


class Solution(NamedTuple):
    """The credit of the implicit reference, in float64, and what its solve leaves."""

    credit: Float[Tensor, "i *c b n"]
    open: Float[Tensor, "i *c"]  # |g - (1 - J_G^T) a| / |g| of the worst sample; inf where the solve is not finite

    @property
    def solved(self) -> Tensor:
        """Where it is a solution."""
        return self.open <= SOLVED


def solution(free: Trajectory) -> Solution:
    """Credit eps Pi'^T a with (1 - J_G^T) a = dC/ds, at the end states of a trajectory as they are, at rest or not.

    Where rho(J_G) < 1 it is the limit of the adjoint series; elsewhere that series has no limit, and this is a solution
    all the same. In float64: by GMRES, and by LU where GMRES leaves more than `LOOSE` and the matrices of all samples
    have at most `DENSE` entries. Almeida 1987; Pineda 1987; Bai, Kolter & Koltun 2019.
    """
    import torch

    from gradbench.dynamics.krylov import gmres
    from gradbench.dynamics.linear import DENSE, by_lu, dense

    field, ends = free.field.wide, free.ends.double()
    finite = ends.isfinite().all(-1, keepdim=True)
    s = torch.where(finite, ends, torch.zeros_like(ends))  # a sample that left every float is solved by nothing
    g = torch.where(finite, field.cost_slope(s), torch.zeros_like(s))
    frozen = field.frozen(field.step_at, s)
    back = field.repeated(lambda a: (frozen().vjp(a),), g)

    def residual_map(a: Tensor) -> Tensor:
        return a - back(a)[0]

    def left(a: Tensor) -> Tensor:
        rest = (g - residual_map(a)).norm(dim=-1) / g.norm(dim=-1).clamp_min(1e-300)
        return rest.nan_to_num(nan=math.inf)

    a = gmres(residual_map, g, TIGHT)
    share = left(a)
    if s.numel() * s.shape[-1] <= DENSE and bool((share > LOOSE).any()):
        transposed = torch.eye(s.shape[-1]).to(s) - dense(field.step_at(s), s).mT
        b = by_lu(transposed, g)
        better = left(b) < share
        a = torch.where(better[..., None], b, a)
        share = torch.where(better, left(b), share)
    with torch.no_grad():
        u = field.ahead(s)
    credit = field.step_size * field.project_vjp(u, a)
    share = torch.where(finite[..., 0], share, math.inf)
    return Solution(torch.where(finite, credit, math.nan), share.amax(-1))


def gradient_of(free: Trajectory, answer: Solution) -> Params:
    """The gradient of the implicit reference, `(i, *c, ...)`; not finite where its solve has failed."""
    import torch

    known = answer.solved & answer.credit.flatten(-2).isfinite().all(-1)
    credit = torch.where(known[..., None, None], answer.credit, math.nan).to(free.ends)
    gradient = along(free, Snapshot(None), credit[:, None]).gradient
    return {name: gradient[name][:, 0] for name in free.field.theta}
