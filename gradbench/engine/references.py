"""The references of a pack: what estimates are compared with at every T1, and how far two references are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.profiler import record_function

from gradbench.diagnostics.credit import Credits
from gradbench.dynamics.trajectory import chosen
from gradbench.estimators.implicit import gradient_of, solution
from gradbench.estimators.reference import IMPLICIT, REFERENCE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.meter import Meter
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import Snapshot
    from gradbench.planning.problems import Problem
    from gradbench.systems.base import Params


class OneReference(NamedTuple):
    """One reference at every T1."""

    gradient: Params  # (i, *c, ...)
    credits: Credits  # of all T1 of the pack

    def at(self, rows: Sequence[int]) -> OneReference:
        """The same at some T1."""
        return self._replace(gradient={n: chosen(g, rows) for n, g in self.gradient.items()})


class Apart(NamedTuple):
    """How far the references of a cell are apart; None: it does not apply, or nobody has asked."""

    reference_open: float | None = None  # |g - (1 - J_G^T) a| / |g| of the credit a of backpropagation
    reference_gap: float | None = None  # |bptt - implicit| / |bptt|
    implicit_open: float | None = None  # what the implicit solve leaves of its right side


@dataclass(frozen=True, eq=False)
class References:
    """The references by name, at the T1 that did not diverge in every problem."""

    free: Trajectory  # read at these T1
    known: Mapping[str, OneReference]
    snapshots: Sequence[Snapshot]  # of the reverse sweep: the gradients of its last steps
    apart: Mapping[str, Float[Tensor, "i *c"]]  # the numbers of `Apart` that there are

    def told(self) -> dict[int, list[Apart]]:
        """By T1, one for every stacked problem. The device is waited for."""
        columns = {name: value.reshape(len(value), -1).tolist() for name, value in self.apart.items()}
        cells = self.free.ends[0, ..., 0, 0].numel()
        return {
            T1: [Apart(**{name: column[i][c] for name, column in columns.items()}) for c in range(cells)]
            for i, T1 in enumerate(self.free.T1s)
        }


def gather_references(problems: Sequence[Problem], free: Trajectory, meter: Meter, *, both: bool) -> References:
    """The references of all T1 of `free`; if `both`, the implicit one also where no cell is compared with it.

    Where no steps lead to the free state, the implicit one alone.
    """
    first, seeds = problems[0], [p.point.seed for p in problems]
    known: dict[str, OneReference] = {}
    apart: dict[str, Tensor] = {}
    snapshots: list[Snapshot] = []
    if first.reverse.T1s:
        with meter.counting(), record_function("gradbench: reverse sweep"):
            depths = sorted({d for p in (first.reverse, *first.passes) for d in p.depths})
            snapshots = list(first.reverse.phase.run(free, tuple(depths), free.ends.new_empty(0)))
        whole = next(s for s in snapshots if s.depth is None)
        assert whole.gradient is not None
        assert whole.credit is not None
        known[REFERENCE.name] = OneReference(whole.gradient, Credits(free, whole.credit, seeds))
        if not free.field.predicts:
            apart["reference_open"] = _open(free, whole.credit)
    if both or any(cell.reference == IMPLICIT for problem in problems for cell in problem.cells):
        with record_function("gradbench: implicit reference"):
            answer = solution(free)
            gradient = gradient_of(free, answer)
        known[IMPLICIT] = OneReference(gradient, Credits(free, answer.credit.to(free.ends), seeds))
        apart["implicit_open"] = answer.open
        if REFERENCE.name in known:
            apart["reference_gap"] = _gap(known[REFERENCE.name].gradient, gradient, free.ends.ndim - 2)
    return References(free, known, snapshots, apart)


def _open(free: Trajectory, credit: Float[Tensor, "i *c b n"]) -> Float[Tensor, "i *c"]:
    """|g - (1 - J_G^T) a| / |g|, with a = `credit` / eps, behind the projection where the system projects.

    The credit of a state at rest solves (1 - J_G^T) a = g. By one product.
    """
    field, s, g = free.field, free.ends, free.cost_slope
    with torch.no_grad():
        u = field.ahead(s) if field.system.projects else s
    a = credit / field.step_size
    back = torch.addcmul(a + g, field.step_size, field.at(s).vjp(a))
    left, right = field.project_vjp(u, back) - a, field.project_vjp(u, g)
    return left.double().flatten(-2).norm(dim=-1) / right.double().flatten(-2).norm(dim=-1)


def _gap(bptt: Params, implicit: Params, lead: int) -> Float[Tensor, "i *c"]:
    """|bptt - implicit| / |bptt| over all parameters, whose first `lead` axes are not summed over."""

    def square(gradient: Params) -> Tensor:
        parts = [g.double().reshape(*g.shape[:lead], -1).square().sum(-1) for g in gradient.values()]
        return torch.stack(parts).sum(0)

    return (square({n: g - implicit[n] for n, g in bptt.items()}) / square(bptt)).sqrt()
