"""One training step of all seeds: gradient by the rule, clip, AdamW, norm caps, as one program.

Everything lives in buffers that are updated in place, and what a choice depends on is data, so that on
CUDA the whole step is one recorded graph. On a CPU the same code runs as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from gradbench.capture import Captured
from gradbench.estimators.reverse import ReversePhase
from gradbench.field import Field, Stack, Step

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import Params
    from gradbench.training.config import Optimiser
    from gradbench.trajectory import Trajectory

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of AdamW


class Plain(Stack):
    """A stack whose loops are plain calls, for a caller that records all of them as one graph."""

    def repeated(self, function: Step, *examples: Tensor) -> Step:
        """The function itself."""
        return function

    frozen = Field.frozen


@dataclass
class State:
    """What a step changes, in place. P counts the entries of all parameters, in the order of theta."""

    theta: Params  # (c, ...)
    m: Float[Tensor, "c P"]  # first moment of AdamW
    v: Float[Tensor, "c P"]  # second moment
    taken: Int[Tensor, "c"]  # steps taken
    skipped: Int[Tensor, "c"]  # steps whose gradient was not finite
    score: Float[Tensor, "c"]  # sums over the steps taken since the last row of the log
    norm: Float[Tensor, "c"]  # of gradients, before the clip
    counted: Float[Tensor, "c"]  # steps in these sums

    @classmethod
    def start(cls, theta: Params) -> State:
        """At initial parameters, stacked."""
        flat = _flat(theta)
        sums = flat.new_zeros(3, len(flat), dtype=torch.float64)
        counts = sums.new_zeros(2, len(flat), dtype=torch.int64)
        return cls(theta, torch.zeros_like(flat), torch.zeros_like(flat), *counts, *sums)

    def tensors(self) -> dict[str, Tensor]:
        """All buffers by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "theta"}
        return named | {f"theta.{n}": p for n, p in self.theta.items()}

    def copy_(self, values: Mapping[str, Tensor]) -> None:
        """Set every buffer."""
        for name, own in self.tensors().items():
            own.copy_(values[name])

    def clear(self) -> None:
        """Begin new sums."""
        for total in (self.score, self.norm, self.counted):
            total.zero_()


def gradient(rule: AbstractEstimator, free: Trajectory, T2: int, betas: Float[Tensor, "1 c"]) -> Params:
    """The estimate of a rule at the end of a free trajectory of one T1, without the evidence."""
    depth = T2 if "T2" in rule.uses else None
    if depth is not None and rule.phase == ReversePhase():  # the sweep goes to its end, and this is it
        free = replace(free, T1s=(depth,), kept=free.kept[-1 - depth :], norms=free.norms[-1 - depth :], _views={})
    snapshots = rule.phase.bare.run(free, () if depth is None else (depth,), betas)
    snapshot = next(s for s in snapshots if s.depth == depth)
    return {name: g[0, 0] for name, g in rule.read(free, snapshot, betas).gradient.items()}


def descend(state: State, gradient: Params, lr: Float[Tensor, ""], how: Optimiser, caps: Params) -> None:
    """One step of AdamW for every seed whose gradient is finite; the others stand still.

    As torch.optim.AdamW after clip_grad_norm_. A parameter whose norm exceeds its cap `(c,)` is scaled back to it.
    """
    g, p = _flat({name: gradient[name] for name in state.theta}), _flat(state.theta)
    finite = g.isfinite().all(-1)
    norm = g.double().norm(dim=-1)
    if how.clip is not None:
        g = g * (how.clip / (norm + 1e-6)).clamp(max=1.0).to(g)[:, None]
    m = state.m.lerp(g, 1 - BETA1)
    v = BETA2 * state.v + (1 - BETA2) * g.square()
    t = (state.taken + 1).double()[:, None]
    rate = (lr / (1 - BETA1**t)).to(p)
    moved = p * (1 - lr * how.weight_decay).to(p) - rate * m / (v.sqrt() / (1 - BETA2**t).sqrt().to(p) + EPS)
    for own, new in ((state.m, m), (state.v, v)):
        own.copy_(torch.where(finite[:, None], new, own))
    for (name, own), new in zip(state.theta.items(), moved.split(_sizes(state.theta), -1), strict=True):
        if name in caps:
            new = new * (caps[name] / new.double().norm(dim=-1)).clamp(max=1.0).to(new)[:, None]
        own.copy_(torch.where(finite[:, None], new, own.flatten(1)).view_as(own))
    state.taken += finite
    state.skipped += ~finite
    state.norm += norm.masked_fill(~finite, 0.0)  # no scalar is copied to the device in a recording
    state.counted += finite


def recorded(function: Callable[..., tuple[Tensor, ...]], state: State, *examples: Tensor) -> Step:
    """The function as one CUDA graph where the buffers lie on CUDA; recording it leaves the buffers as they were."""
    if not state.m.is_cuda:
        return function
    before = {name: value.clone() for name, value in state.tensors().items()}
    graph = Captured(function, *examples)
    state.copy_(before)
    return graph


def _flat(params: Params) -> Float[Tensor, "c P"]:
    return torch.cat([p.flatten(1) for p in params.values()], -1)


def _sizes(params: Params) -> list[int]:
    return [p[0].numel() for p in params.values()]
