"""Reverse mode through the relaxation: the reference, and its truncations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    gradient eps sum_t <p_t, dF/dtheta(s_t)> is pulled afterwards, over many steps in one product, and
    its partial sums over the last steps are the truncations at every depth. s_0 is detached from theta, except
    where it is a forward pass: there <a_0, ds_0/dtheta> is added, and with no steps this is plain backpropagation.
    """

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        field, eps = free.field, free.field.step_size
        a = free.cost_slope.clone()
        total = {name: direct.clone() for name, direct in free.cost_grads.items()}
        felt = torch.zeros_like(a)  # eps sum_t p_t, the state credit

        def back(s: Tensor, a: Tensor) -> tuple[Tensor, ...]:
            s = s.expand_as(a)
            with torch.no_grad():
                u = s + eps * field.force(s) if field.system.projects else s
            p = field.project_vjp(u, a)
            return p, p + eps * field.at(s).vjp(p)

        steps = {first: field.repeated(back, a[0], a[first:]) for first in range(len(free.T1s))}
        # a run is cut where another T1 joins and where a depth is read, so that its rows are those of one product
        read = {(depth, i): T1 - depth for depth in depths for i, T1 in enumerate(free.T1s) if depth < T1}
        marks = {*free.T1s, *read.values()}
        truncated = {depth: {name: g.clone() for name, g in total.items()} for depth in depths}
        part_felt = {depth: felt.clone() for depth in depths}
        for start, states in free.backwards():
            credits = a.new_empty((len(states), *a.shape))  # p_t, by step and T1
            end = start + len(states)
            for cut in sorted({start, *(t for t in marks if start <= t < end)}, reverse=True):
                first = sum(cut >= T1 for T1 in free.T1s)
                for t in reversed(range(cut - start, end - start)):
                    credits[t, first:], a[first:] = steps[first](states[t], a[first:])
                here = slice(cut - start, end - start)
                scaled = eps * credits[here, first:]
                felt[first:] += scaled.sum(0)
                for name, part in field.pull(states[here, None], scaled).items():
                    total[name][first:] += part.sum(0)
                for (depth, i), t in read.items():
                    if t == cut:
                        part_felt[depth][i] = felt[i]
                        for name, g in total.items():
                            truncated[depth][name][i] = g[i]
                end = cut
        if isinstance(field.system, AbstractForwardSystem):
            felt = field.layer_slopes[..., -a.shape[-1] :].expand_as(a)
            total = {name: total[name] + g for name, g in field.equilibrium_grads(a).items()}
        for depth in depths:
            for i, T1 in enumerate(free.T1s):
                if depth >= T1:  # the whole sweep: there are no more steps
                    part_felt[depth][i] = felt[i]
                    for name, g in total.items():
                        truncated[depth][name][i] = g[i]
            yield Snapshot(depth, gradient=truncated[depth], credit=part_felt[depth])
        yield Snapshot(None, gradient=total, credit=felt)

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


def _swept(snapshot: Snapshot) -> Reading:
    assert snapshot.gradient is not None
    assert snapshot.credit is not None
    gradient = {n: g[:, None] for n, g in snapshot.gradient.items()}
    return Reading(snapshot.depth, gradient, snapshot.credit[:, None], snapshot.evidence)
