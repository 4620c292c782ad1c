"""Reverse mode through the relaxation: one sweep for the reference and its truncations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field, Step
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import Params


@final
@dataclass(frozen=True)
class ReversePhase(AbstractPhase):
    """a_t = p_t + eps J(s_t)^T p_t,  p_t = Pi'(u_t)^T a_{t+1},  from a_T1 = dC/ds

    One sweep serves every T1: going backwards in time, the row of a T1 joins at its own end. The
    gradient eps sum_t <p_t, dF/dtheta(s_t)> is pulled on the way, from what J^T p needs anyway, and its
    partial sums over the last steps are the truncations at every depth. s_0 is detached from theta, except
    where it is a forward pass: there <a_0, ds_0/dtheta> is added, and with no steps this is plain backpropagation.
    """

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        sums = free.field.pull_sums(free.cost_grads)
        carried, truncated = _sweep(free, depths, sums)

        def of(depth: int | None, summed: Tensor, *read: Tensor) -> Snapshot:
            pulled = free.field.pulled(summed, dict(zip(sums, read, strict=True)))
            return of_sums(free, depth, [summed, *(pulled[name] for name in free.cost_grads)])

        for depth in depths:
            yield of(depth, *truncated[depth])
        whole = of(None, *carried[1:])
        yield _through_start(free, whole, carried[0]) if isinstance(free.field.system, AbstractForwardSystem) else whole

    def trained(self, free: Trajectory, depth: int | None) -> Trajectory:
        """Of a depth the last steps alone: the sweep always goes to the start of its trajectory."""
        if depth is None:
            return free
        states, norms = free.states[-1 - depth :], free.norms[-1 - depth :]
        return replace(free, T1s=(depth,), states=states, norms=norms, _views={})

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(vjp=max(1, T1) if depth is None else depth)


def _sweep(free: Trajectory, depths: tuple[int, ...], sums: Params) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
    """Go back from the largest T1 to the start.

    What is carried back, one row for every T1: a, the sum of p, and `sums`, where its pulls are added up. And the same
    without a, after the first steps back of every depth.
    """
    import torch

    a = free.cost_slope.clone(memory_format=torch.contiguous_format)  # kernels take no other
    carried = [a, torch.zeros_like(a), *sums.values()]
    truncated = {depth: [v.clone() for v in carried[1:]] for depth in depths}
    reads: dict[int, list[tuple[int, int]]] = {}  # time -> depths that end there, each with the row of its T1
    for depth in depths:
        for i, T1 in enumerate(free.T1s):
            reads.setdefault(max(T1 - depth, 0), []).append((depth, i))
    back = step_back(free.field, tuple(sums))
    stops = {0, *free.T1s, *reads}  # times at which a row joins, or sums are read
    rows, step, first = carried, None, 0  # rows from `first` on belong to the T1 that the sweep has reached
    for start, states in free.backwards():
        high = start + len(states)
        while high > start:
            low = max(start, high - free.field.together, *(t for t in stops if t < high))
            taken = states[low - start : high - start]
            if (joined := sum(low >= T1 for T1 in free.T1s)) != first or step is None:
                _put(carried, rows, first)
                first, rows = joined, [v[joined:] for v in carried]
                step = free.field.repeated(back, taken, *(v.clone() for v in rows))
            rows = list(step(taken, *rows))
            launched(products=(high - low) * (len(free.T1s) - first))
            for depth, i in reads.get(low, ()):
                for partial, total in zip(truncated[depth], rows[1:], strict=True):
                    partial[i] = total[i - first]
            high = low
    _put(carried, rows, first)
    return carried, truncated


def step_back(field: Field, names: Sequence[str]) -> Step:
    """From a behind some states, the sum of p and the sums of its pulls to the same before these states, in place."""

    def back(states: Tensor, a: Tensor, summed: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
        field.add_back(states, a, summed, dict(zip(names, totals, strict=True)))
        return a, summed, *totals

    return back


def _put(whole: list[Tensor], rows: list[Tensor], first: int) -> None:
    for v, part in zip(whole, rows, strict=True):
        v[first:] = part


def of_sums(free: Trajectory, depth: int | None, sums: list[Tensor]) -> Snapshot:
    """Gradient and credit from the sum of p and the sums of its pulls, with dC/dtheta at the end states."""
    eps, (summed, *totals) = free.field.step_size, sums
    scale = eps.reshape(-1)  # of a cell, before its parameters
    gradient = {
        name: direct + scale.reshape(-1, *[1] * (direct.ndim - 2)) * total
        for (name, direct), total in zip(free.cost_grads.items(), totals, strict=True)
    }
    return Snapshot(depth, gradient=gradient, credit=eps * summed)


def _through_start(free: Trajectory, whole: Snapshot, a: Tensor) -> Snapshot:
    """With <a_0, ds_0/dtheta>, where s_0 is a forward pass: the gradient and the credit of backpropagation."""
    assert whole.gradient is not None
    gradient = {name: whole.gradient[name] + g for name, g in free.field.equilibrium_grads(a).items()}
    return replace(whole, gradient=gradient, credit=free.field.layer_slopes[..., -a.shape[-1] :].expand_as(a))
