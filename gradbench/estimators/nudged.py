"""The nudged phase that equilibrium propagation reads, in all its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from gradbench.estimators.base import AbstractPhase, Count, Snapshot

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem

Nudge = Literal["centred", "positive", "negative"]
Clip = Literal["none", "batch", "sample"]
Reduction = Literal["sum", "mean"]
SIGNS: Mapping[Nudge, tuple[int, ...]] = {"centred": (1, -1), "positive": (1,), "negative": (-1,)}
# axes of a state over which a clip takes the norms of force and correction; None: there is no clip
CLIPPED_OVER: Mapping[Clip, tuple[int, ...] | None] = {"none": None, "batch": (-2, -1), "sample": (-1,)}


class Nudged(NamedTuple):
    """A nudged batch after some steps: axes i over T1 and m over nudges, then those of a state."""

    s: Float[Tensor, "i m *c b n"]
    largest: Float[Tensor, "i m *c"]  # |s| of the largest state so far
    clipped: Float[Tensor, "i m *c"]  # sum over the steps of the share of samples that were clipped


@final
@dataclass(frozen=True)
class NudgedPhase(AbstractPhase):
    """s <- Pi(s + eps (F(s) - b dC/ds - correction)) from s*, b = +-beta and 0, for every beta at once.

    With `asymmetric`, correction = gain 2 A (s - s*), A = (J - J^T)/2 frozen at s*: near s* the
    nudged state then moves with J^T in place of J. `clip` caps the correction at the norm of the
    force before the nudge (gain <= 1), by row over the whole batch or by sample. `reduction = "mean"`
    descends the batch's mean of E + beta C where the sum is meant: eps / b in place of eps, and nothing else.
    The row b = 0 is the *rest*: what it moves by is drift of a free state that had not settled, or round-off.
    Only evidence reads the rest, and only a phase that is `observed` has it.
    """

    signs: tuple[int, ...]
    asymmetric: bool = False
    clip: Clip = "none"
    reduction: Reduction = "sum"
    observed: bool = True

    @property
    def unobserved(self) -> AbstractPhase:
        return replace(self, observed=False)

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        from gradbench.dynamics.pieces import Pieces

        signed = torch.cat([sign * betas[:, None] for sign in self.signs], 1).flatten(0, 1)
        nudge = torch.cat([signed, torch.zeros_like(signed[: int(self.observed)])])[..., None, None]

        def begun(rows: slice, columns: slice) -> tuple[Callable[..., Nudged], Nudged]:
            start = free.ends[rows, None]
            s = start.repeat_interleave(len(nudge[columns]), 1)
            state = Nudged(s, *s.new_zeros(2, *s.shape[:-2]))
            return self._step(free, start, nudge[columns], s), state

        pieces = Pieces(free.field, free.ends, len(nudge), begun)
        for depth in range(1, max(depths) + 1):
            before = [state.s.clone() for state in pieces.states] if depth in depths else []
            pieces.advance()
            if depth in depths:
                yield self._snapshot(depth, free.ends, pieces.joined(before), Nudged(*pieces.whole()))

    def _step(self, free: Trajectory, start: Tensor, nudge: Tensor, like: Tensor) -> Callable[..., Nudged]:
        """One step of rows that start alike."""
        import torch

        field, eps, over = free.field, self.step_size(free), CLIPPED_OVER[self.clip]
        skew = field.frozen(field.swirl_at, start.expand_as(like)) if self.asymmetric else None

        def step(s: Tensor, largest: Tensor, clipped: Tensor) -> Nudged:
            with torch.no_grad():
                force = field.force(s)
                push = torch.addcmul(force, nudge, field.cost_slope(s), value=-1)
                if skew is not None:
                    half = skew().antisym(s - start)
                    if over is None:
                        push = push.sub(half, alpha=2)
                    else:
                        gain = _gain(field.system, force, 2 * half, over)
                        push = torch.addcmul(push, gain, half, value=-2)
                        clipped += (gain < 1).to(s).mean((-2, -1))
                ahead = field.project(torch.addcmul(s, eps, push))
                torch.maximum(largest, ahead.flatten(-2).norm(dim=-1), out=largest)
            return Nudged(ahead, largest, clipped)

        return step

    def _snapshot(self, depth: int, start: Tensor, before: Tensor, after: Nudged) -> Snapshot:
        """What a nudged batch is after its last step, by beta and sign; `before` are its states before that step."""
        s = after.s
        moved, gone = ((s - other).flatten(-2).norm(dim=-1) for other in (before, start[:, None]))
        rest = s[:, -1].clone() if self.observed else None

        def by_sign(rows: Tensor) -> Float[Tensor, "i j k *c"]:
            return (rows[:, :-1] if self.observed else rows).unflatten(1, (-1, len(self.signs)))

        nudged = by_sign(s).clone()
        evidence = {"nudge_residual": by_sign(moved / gone).amax(2), "nudge_norm": by_sign(after.largest).amax(2)}
        if CLIPPED_OVER[self.clip] is not None:
            evidence["clip_share"] = by_sign(after.clipped).mean(2) / depth
        if rest is not None:
            evidence |= _against_rest(nudged, rest, start)
        return Snapshot(depth, evidence, nudged=nudged, rest=rest)

    def step_size(self, free: Trajectory) -> Tensor:
        """eps of this phase, against states."""
        eps = free.field.step_size
        return eps / free.ends.shape[-2] if self.reduction == "mean" else eps

    def count(self, T1: int, depth: int | None) -> Count:
        return self.evidence_count(depth) * len(self.signs)

    def evidence_count(self, depth: int | None) -> Count:
        """The row at rest."""
        assert depth is not None
        products = 1 if self.asymmetric else 0
        return Count(force=1, jvp=products, vjp=products) * depth


def _gain(system: AbstractSystem, force: Tensor, correction: Tensor, over: tuple[int, ...]) -> Tensor:
    # the correction lives on the tokens; other blocks would only loosen the cap
    force_z, correction_z = (_tokens(system, v) for v in (force, correction))
    limit = force_z.norm(dim=over, keepdim=True) + 1e-8
    return (limit / correction_z.norm(dim=over, keepdim=True)).clamp(max=1.0)


def _tokens(system: AbstractSystem, v: Float[Tensor, "*r b n"]) -> Tensor:
    """The block z of a state, or all of it where there are no tokens."""
    blocks = system.split(v)
    return blocks["z"].flatten(-2) if "z" in blocks else v


def _against_rest(
    nudged: Float[Tensor, "i j k *c b n"], rest: Float[Tensor, "i *c b n"], start: Float[Tensor, "i *c b n"]
) -> dict[str, Float[Tensor, "i j *c"]]:
    """drift = |s_0 - s*| / signal, curvature = |s_+ + s_- - 2 s_0| / |s_+ - s_-|, s_0 the state at rest.

    The signal is |s_+ - s_-| / 2, or |s_+- - s_0| of a one-sided rule. The floor is what rounding s* to its dtype
    comes to, over the signal.
    """
    import torch

    moved = nudged - rest[:, None, None]
    drift, size = ((v.flatten(-2).norm(dim=-1))[:, None] for v in (rest - start, start))
    evidence: dict[str, Tensor] = {}
    if moved.shape[2] == 1:
        signal = moved[:, :, 0].flatten(-2).norm(dim=-1)
    else:
        signal = 0.5 * (moved[:, :, 0] - moved[:, :, 1]).flatten(-2).norm(dim=-1)
        evidence["curvature"] = (moved[:, :, 0] + moved[:, :, 1]).flatten(-2).norm(dim=-1) / (2 * signal)
    return evidence | {"drift": drift / signal, "noise_floor": torch.finfo(start.dtype).eps * size / signal}


def displacement(
    nudge: Nudge, s_star: Float[Tensor, "i *c b n"], nudged: Float[Tensor, "i j k *c b n"], betas: Float[Tensor, "j *c"]
) -> Float[Tensor, "i j *c b n"]:
    """Credit a of a nudged phase, with the sign of the backprop gradient.

    centred (s_- - s_+) / 2 beta,  positive (s* - s_+) / beta,  negative (s_- - s*) / beta
    """
    beta = betas[..., None, None]
    if nudge == "centred":
        return (nudged[:, :, 1] - nudged[:, :, 0]) / (2 * beta)
    moved = nudged[:, :, 0] - s_star[:, None]
    return -moved / beta if nudge == "positive" else moved / beta
