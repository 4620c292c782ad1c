"""One training step of all seeds: gradient by the rule, clip, AdamW, norm caps, as one program.

All state lies in buffers that are updated in place, and every choice is a selection between tensors, so that on CUDA
the whole step is one recorded graph. On a CPU the same code runs without a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from gradbench.dynamics.capture import Captured
from gradbench.dynamics.field import Step

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import Params
    from gradbench.training.config import Optimiser

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of AdamW


@dataclass
class State:
    """The buffers that a step changes in place. P counts the entries of all parameters, in the order of theta."""

    theta: Params  # (c, ...)
    m: Float[Tensor, "c P"]  # first moment of AdamW
    v: Float[Tensor, "c P"]  # second moment
    taken: Int[Tensor, "c"]  # steps taken
    skipped: Int[Tensor, "c"]  # steps whose gradient was not finite
    score: Float[Tensor, "c"]  # sum over the steps taken since the last row of the log
    norm: Float[Tensor, "c"]  # sum of the norms of gradients, before the clip
    counted: Float[Tensor, "c"]  # number of steps in the two sums

    @classmethod
    def start(cls, theta: Params) -> State:
        """The state before the first step, at initial parameters with a seed axis."""
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
        for name, buffer in self.tensors().items():
            buffer.copy_(values[name])

    def clear(self) -> None:
        """Begin new sums."""
        for total in (self.score, self.norm, self.counted):
            total.zero_()


def gradient(rule: AbstractEstimator, free: Trajectory, T2: int, betas: Float[Tensor, "1 c"]) -> Params:
    """The estimate of a rule at the end of a free trajectory of one T1. No evidence is taken."""
    depth = T2 if "T2" in rule.uses else None
    free = rule.phase.trained(free, depth)
    snapshots = rule.phase.unobserved.run(free, () if depth is None else (depth,), betas)
    snapshot = next(s for s in snapshots if s.depth == depth)
    return {name: g[0, 0] for name, g in rule.read(free, snapshot, betas).gradient.items()}


def descend(state: State, gradient: Params, lr: Float[Tensor, ""], how: Optimiser, caps: Params) -> None:
    """One step of AdamW for every seed whose gradient is finite; no other seed moves.

    The step is that of torch.optim.AdamW after clip_grad_norm_. A parameter whose norm exceeds its cap `(c,)` is scaled
    back to the cap.
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
    for buffer, new in ((state.m, m), (state.v, v)):
        buffer.copy_(torch.where(finite[:, None], new, buffer))
    for (name, buffer), new in zip(state.theta.items(), moved.split(_sizes(state.theta), -1), strict=True):
        if name in caps:
            new = new * (caps[name] / new.double().norm(dim=-1)).clamp(max=1.0).to(new)[:, None]
        buffer.copy_(torch.where(finite[:, None], new, buffer.flatten(1)).view_as(buffer))
    state.taken += finite
    state.skipped += ~finite
    state.norm += norm.masked_fill(~finite, 0.0)  # a recording must not copy a scalar to the device
    state.counted += finite


def recorded(function: Callable[..., tuple[Tensor, ...]], state: State, *examples: Tensor) -> Step:
    """The function, as one CUDA graph where the buffers lie on CUDA. The recording leaves the buffers unchanged."""
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
