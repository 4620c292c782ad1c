"""Reverse mode through the relaxation: the reference, and its truncations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count, Reading, Snapshot
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import AbstractSystem
    from gradbench.trajectory import Trajectory


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
        import torch

        field, eps = free.field, free.field.step_size
        names = list(free.cost_grads)

        def back(s: Tensor, a: Tensor, felt: Tensor, *total: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                u = torch.addcmul(s, eps, field.force(s)) if field.system.projects else s
            p = field.project_vjp(u, a)
            felt += p
            Jp, pulled = field.backward(s, p)
            for name, sum_ in zip(names, total, strict=True):
                sum_ += pulled[name]
            return a.copy_(torch.addcmul(p, eps, Jp)), felt, *total

        # rows of what is carried back, the T1 that have joined: a, sum p, and the sums of its pulls
        a = free.cost_slope.clone()
        carried = [a, torch.zeros_like(a), *(torch.zeros_like(free.cost_grads[name]) for name in names)]
        read: dict[int, list[tuple[int, int]]] = {}
        for depth in depths:
            for i, T1 in enumerate(free.T1s):
                read.setdefault(max(T1 - depth, 0), []).append((depth, i))
        truncated = {depth: [v.clone() for v in carried[1:]] for depth in depths}
        rows, step, first = carried, None, 0
        for start, states in free.backwards():
            for t in reversed(range(start, start + len(states))):
                if (joined := sum(t >= T1 for T1 in free.T1s)) != first or step is None:
                    _put(carried, rows, first)
                    first, rows = joined, [v[joined:] for v in carried]
                    step = field.repeated(back, states[t - start], *(v.clone() for v in rows))
                rows = list(step(states[t - start], *rows))
                for depth, i in read.get(t, ()):
                    for kept, sum_ in zip(truncated[depth], rows[1:], strict=True):
                        kept[i] = sum_[i - first]
        _put(carried, rows, first)

        def snapshot(depth: int | None, felt: Tensor, *sums: Tensor) -> Snapshot:
            scale = eps.reshape(-1)  # of a cell, before its parameters
            gradient = {
                name: direct + scale.reshape(-1, *[1] * (direct.ndim - 2)) * sum_
                for (name, direct), sum_ in zip(free.cost_grads.items(), sums, strict=True)
            }
            return Snapshot(depth, gradient=gradient, credit=eps * felt)

        for depth in depths:
            yield snapshot(depth, *truncated[depth])
        whole = snapshot(None, *carried[1:])
        if isinstance(field.system, AbstractForwardSystem):
            assert whole.gradient is not None
            through = {name: whole.gradient[name] + g for name, g in field.equilibrium_grads(carried[0]).items()}
            credit = field.layer_slopes[..., -a.shape[-1] :].expand_as(a)
            whole = replace(whole, gradient=through, credit=credit)
        yield whole

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(vjp=max(1, T1) if depth is None else depth)


@final
@dataclass(frozen=True)
class Bptt(AbstractEstimator):
    """Backpropagation through time: reverse mode through the T1 steps of the deployed relaxation.

    Exact for the cost after T1 steps, whether or not these reach a fixed point. It is the reference. Where the free
    state is a forward pass, it is backpropagation through that pass.
    """

    name: ClassVar[str] = "bptt"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Rumelhart, Hinton & Williams 1986; Werbos 1990"
    exact_when: ClassVar[str] = "always"
    bias_order = None

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return _swept(snapshot)


@final
@dataclass(frozen=True)
class Tbptt(AbstractEstimator):
    """Truncated backpropagation through time: reverse mode through the last T2 of the T1 steps.

    estimate eps sum_{T1 - T2 <= t < T1} <p_t, dF/dtheta(s_t)>, p_t as in backpropagation through time
    Exact for T2 = T1. At a fixed point it is the adjoint with T2 terms, and what is left out falls as rho^T2.
    T1 steps without and T2 more with a graph, as CET is trained, are tbptt of T1 + T2 steps.
    """

    name: ClassVar[str] = "tbptt"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "Williams & Peng 1990; Hoier, Kerjan & Scellier 2026 (last T2 steps of a relaxation)"
    exact_when: ClassVar[str] = "T2 = T1, or s* a fixed point and T2 -> inf"
    bias_order = None

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def skip(self, system: type[AbstractSystem]) -> str | None:
        reason = f"the free state of {system.name} is a forward pass: there are no steps to go back by"
        return None if "T1" in system.uses else reason

    def skip_cell(self, T1: int, T2: int) -> str | None:
        return "T2 > T1: there are fewer steps than tbptt is to go back" if T2 > T1 else None

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        return _swept(snapshot)


def _put(whole: list[Tensor], rows: list[Tensor], first: int) -> None:
    for v, own in zip(whole, rows, strict=True):
        v[first:] = own


def _swept(snapshot: Snapshot) -> Reading:
    assert snapshot.gradient is not None
    assert snapshot.credit is not None
    gradient = {n: g[:, None] for n, g in snapshot.gradient.items()}
    return Reading(snapshot.depth, gradient, snapshot.credit[:, None], snapshot.evidence)
