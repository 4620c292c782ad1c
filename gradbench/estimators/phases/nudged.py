"""The nudged phase that equilibrium propagation reads, in all its forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Change, Count, Snapshot
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import AbstractSystem, Advance

Nudge = Literal["centred", "positive", "negative"]
Clip = Literal["none", "batch", "sample"]
Reduction = Literal["sum", "mean"]
SIGNS: Mapping[Nudge, tuple[int, ...]] = {"centred": (1, -1), "positive": (1,), "negative": (-1,)}
ORDER: Mapping[Nudge, int] = {"centred": 2, "positive": 1, "negative": 1}  # of the error in beta, where a rule is exact
# the same nudges and half of them, for an extrapolation to beta = 0
HALVED: Mapping[Nudge, tuple[float, ...]] = {n: (*signs, *(s / 2 for s in signs)) for n, signs in SIGNS.items()}
SMALL = 1e-5  # of |s*|: how far a nudge that stands for beta -> 0 moves the state
HEARD = 1e4  # units of round-off of |s*|: how far the first step of this nudge moves the state, at least
# axes of a state over which a clip takes the norms of force and correction; None: there is no clip
CLIPPED_OVER: Mapping[Clip, tuple[int, ...] | None] = {"none": None, "batch": (-2, -1), "sample": (-1,)}


class Nudged(NamedTuple):
    """A nudged batch after some steps: axes i over T1 and m over nudges, then those of a state."""

    s: Float[Tensor, "i m *c b n"]
    largest: Float[Tensor, "i m *c"]  # |s| of the largest state so far
    clipped: Float[Tensor, "i m *c"]  # sum over the steps of the share of samples that were clipped
    turned: Float[Tensor, "i m *c b n"]  # where the correction takes A; empty where that is s* throughout


@final
@dataclass(frozen=True)
class NudgedPhase(AbstractPhase):
    """s <- Pi(s + eps (F(s) - b dC/ds - correction)) from s*, b = +-beta and 0, for every beta at once.

    With `asymmetric`, correction = gain 2 A (s - s*), A = (J - J^T)/2 frozen at s*: near s* the
    nudged state then moves with J^T in place of J. With `every`, A is taken anew at the nudged state after so many
    steps. `clip` caps the correction at the norm of the
    force before the nudge (gain <= 1), by row over the whole batch or by sample. `reduction = "mean"`
    descends the batch's mean of E + beta C where the sum is meant: eps / b in place of eps, and nothing else.
    The row b = 0 is the *rest*: what it moves by is drift of a free state that had not settled, or round-off.
    Only evidence reads the rest, and only a phase that is `observed` has it.
    """

    signs: tuple[float, ...]  # the nudges, as multiples of beta
    asymmetric: bool = False
    clip: Clip = "none"
    reduction: Reduction = "sum"
    every: int | None = None
    observed: bool = True

    linearises = True

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
            largest, clipped = s.new_zeros(2, *s.shape[:-2])
            turned = s if self.every else s[..., :0]
            return self._step(free, start, nudge[columns], s), Nudged(s, largest, clipped, turned)

        pieces, rows = Pieces(free.field, free.ends, len(nudge), begun), len(free.ends) * len(nudge)
        for depth in range(1, max(depths) + 1):
            if self._turns(depth):
                pieces.states = [state._replace(turned=state.s) for state in pieces.states]
            before = [state.s.clone() for state in pieces.states] if depth in depths else []
            pieces.advance()
            launched(force=rows, products=2 * rows if self.asymmetric else 0)
            if depth in depths:
                yield self._snapshot(depth, free.ends, pieces.joined(before), Nudged(*pieces.whole()))

    def _step(self, free: Trajectory, start: Tensor, nudge: Tensor, like: Tensor) -> Callable[..., Nudged]:
        """One step of rows that start alike."""
        import torch

        field, eps, over = free.field, self.step_size(free), CLIPPED_OVER[self.clip]
        by_kernel = None
        if over is None and not self.every:
            by_kernel = field.nudged_step(start[:, 0], nudge[..., 0, 0], eps, asymmetric=self.asymmetric)
        if by_kernel is not None:
            return _in_place(by_kernel)
        frozen = field.frozen(field.swirl_at, start.expand_as(like)) if self.asymmetric and not self.every else None

        def step(s: Tensor, largest: Tensor, clipped: Tensor, turned: Tensor) -> Nudged:
            skew = frozen() if frozen else field.swirl_at(turned) if self.asymmetric else None
            with torch.no_grad():
                force = field.force(s)
                push = torch.addcmul(force, nudge, field.cost_slope(s), value=-1)
                if skew is not None:
                    half = skew.antisym(s - start)
                    if over is None:
                        push = push.sub(half, alpha=2)
                    else:
                        gain = _gain(field.system, force, 2 * half, over)
                        push = torch.addcmul(push, gain, half, value=-2)
                        clipped += (gain < 1).to(s).mean((-2, -1))
                ahead = field.project(torch.addcmul(s, eps, push))
                torch.maximum(largest, ahead.flatten(-2).norm(dim=-1), out=largest)
            return Nudged(ahead, largest, clipped, turned)

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
            evidence |= _against_rest(nudged, rest, start, centred=self._centred)
        return Snapshot(depth, evidence, nudged=nudged, rest=rest)

    def step_size(self, free: Trajectory) -> Tensor:
        eps = free.field.step_size
        return eps / free.ends.shape[-2] if self.reduction == "mean" else eps

    @property
    def step_size_key(self) -> object:
        return self.reduction if self.reduction != "sum" else None

    def linear_key(self, system: AbstractSystem) -> object:
        # the correction puts J^T in place of J: without a projection the linearised phase is then the adjoint
        return None if self.asymmetric and not system.projects else replace(self, signs=(), clip="none", every=None)

    def terms(self, depth: int | None) -> int | None:
        return depth

    @property
    def beta_tells(self) -> frozenset[Cause]:  # type: ignore[override]
        """Nonlinearity, unless a clip may be what grows with beta; precision, unless drift may grow as beta shrinks."""
        if self.clip != "none":
            return frozenset()
        return frozenset({Cause.NONLINEARITY, Cause.PRECISION} if self._centred else {Cause.NONLINEARITY})

    def _turns(self, step: int) -> bool:
        """Whether A is taken anew before a step, counted from 1; before the first step it is that of s*."""
        return bool(self.every and step > 1 and (step - 1) % self.every == 0)

    @property
    def _centred(self) -> bool:
        return not sum(self.signs)

    def linearised(
        self, free: Trajectory, depths: Collection[int], *, drifting: bool
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        """-ds/dbeta at beta = 0: a <- Pi'(a + eps (K a + dC/ds)), K = J, or J^T = J - 2 A with the correction, at s*.

        If `drifting`, J and dC/ds are taken at the states through which the phase goes from s* without a nudge, and A
        at s*, or at those of these states at which it is taken anew.
        """
        import torch

        from gradbench.dynamics.field import FEW

        if drifting:
            yield from self._linearised_along(free, depths)
            return
        field, s, eps, g = free.field, free.ends, self.step_size(free), free.cost_slope
        a, frozen, transposed = torch.zeros_like(s), field.frozen(field.at, s), self.asymmetric
        with torch.no_grad():
            u = s + eps * field.force(s)

        def ahead(a: Tensor) -> tuple[Tensor]:
            Ka = frozen().vjp(a) if transposed else frozen().jvp(a)
            return (field.project_jvp(u, a + eps * (Ka + g)),)

        step = field.repeated(ahead, a, few=max(depths) <= FEW)
        for depth in range(1, max(depths) + 1):
            (a,) = step(a)
            if depth in depths:
                yield depth, a.clone()

    def _linearised_along(
        self, free: Trajectory, depths: Collection[int]
    ) -> Iterator[tuple[int, Float[Tensor, "i *c b n"]]]:
        """The linearised phase at the states through which the phase goes from s* without a nudge."""
        import torch

        field, s, eps = free.field, free.ends, self.step_size(free)
        skew = field.swirl_at(s) if self.asymmetric else None
        a = torch.zeros_like(s)
        for step in range(1, max(depths) + 1):
            if skew is not None and self._turns(step):
                skew = field.swirl_at(s)
            linear, g = field.at(s), field.cost_slope(s)
            with torch.no_grad():
                bent = 2 * skew.antisym(s - free.ends) if skew is not None else 0
                u = s + eps * (field.force(s) - bent)
            Ka = linear.jvp(a) - 2 * skew.antisym(a) if skew is not None else linear.jvp(a)
            a = field.project_jvp(u, a + eps * (Ka + g))
            s = field.project(u)
            if step in depths:
                yield step, a

    def changes(
        self,
        free: Trajectory,
        depths: tuple[int, ...],
        betas: Float[Tensor, "j *c"],
        no_limit: Cause,
        *,
        drifting: bool = True,
    ) -> Iterator[Change]:
        """Along the drift, beta -> 0, a finite beta, of a one-sided rule with the drift, with the clip."""
        import torch

        nudge = next(name for name, signs in SIGNS.items() if signs == self.signs[: len(signs)])
        centred = self._centred
        tangents = dict(self.linearised(free, depths, drifting=drifting))
        both = torch.cat([self._small(free, tangents.values(), betas)[None], betas])
        unclipped = replace(self, clip="none")
        runs = [(unclipped.unobserved if centred else unclipped).run(free, depths, both)]
        if self.clip != "none":
            runs.append(self.unobserved.run(free, depths, betas))
        for depth, *snapshots in zip(sorted(depths), *runs, strict=True):
            bent = snapshots[0]
            assert bent.nudged is not None
            plain = Snapshot(depth, nudged=bent.nudged[:, 1:], rest=bent.rest)
            if drifting:
                yield Change("along the drift", no_limit, plain, tangents[depth][:, None])
            moved = displacement(nudge, free.ends if bent.rest is None else bent.rest, bent.nudged, both)
            yield Change("beta -> 0", Cause.RULE, plain, moved[:, :1])
            yield Change("beta", Cause.NONLINEARITY, plain, moved[:, 1:])
            if not centred:
                moved = displacement(nudge, free.ends, bent.nudged, both)
                yield Change("with the drift", no_limit, plain, moved[:, 1:])
            for clipped in snapshots[1:]:
                assert clipped.nudged is not None
                yield Change("clip", Cause.CLIP, clipped, displacement(nudge, free.ends, clipped.nudged, betas))

    def _small(
        self, free: Trajectory, tangents: Collection[Float[Tensor, "i *c b n"]], betas: Float[Tensor, "j *c"]
    ) -> Float[Tensor, "*c"]:
        """A nudge for beta -> 0: it moves the state by SMALL of |s*| at the depths of the `tangents`.

        So it bends the response by no more than that, and is far above round-off, which from the first step on grows
        as the nudge does.
        """
        import torch

        size, first, *grown = (
            v.flatten(-2).norm(dim=-1) for v in (free.ends, self.step_size(free) * free.cost_slope, *tangents)
        )
        least = (SMALL * (size / torch.stack(grown)).nan_to_num(nan=math.inf)).amin((0, 1))
        least = torch.maximum(least, (HEARD * torch.finfo(size.dtype).eps * size / first).nan_to_num(nan=0.0).amax(0))
        return torch.minimum(torch.where(least.isfinite() & (least > 0), least, betas[0]), betas.amin(0))

    def count(self, T1: int, depth: int | None) -> Count:
        return self.evidence_count(depth) * len(self.signs)

    def evidence_count(self, depth: int | None) -> Count:
        """The row at rest."""
        assert depth is not None
        products = 1 if self.asymmetric else 0
        return Count(force=1, jvp=products, vjp=products) * depth


def _in_place(advance: Advance) -> Callable[..., Nudged]:
    """The step of a nudged batch whose states kernels move in place: a recording of it copies no states."""
    import torch

    def step(s: Tensor, largest: Tensor, clipped: Tensor, turned: Tensor) -> Nudged:
        advance(s, s)
        torch.maximum(largest, s.flatten(-2).norm(dim=-1), out=largest)
        return Nudged(s, largest, clipped, turned)

    return step


def _gain(system: AbstractSystem, force: Tensor, correction: Tensor, over: tuple[int, ...]) -> Tensor:
    # the correction lives on one block; the other blocks would only loosen the cap
    force_z, correction_z = (_capped(system, v) for v in (force, correction))
    limit = force_z.norm(dim=over, keepdim=True) + 1e-8
    return (limit / correction_z.norm(dim=over, keepdim=True)).clamp(max=1.0)


def _capped(system: AbstractSystem, v: Float[Tensor, "*r b n"]) -> Tensor:
    """The block of a state that a clip looks at, or all of it where the system names none."""
    return v if system.swirl_block is None else system.split(v)[system.swirl_block].flatten(v.ndim - 1)


def _against_rest(
    nudged: Float[Tensor, "i j k *c b n"],
    rest: Float[Tensor, "i *c b n"],
    start: Float[Tensor, "i *c b n"],
    *,
    centred: bool,
) -> dict[str, Float[Tensor, "i j *c"]]:
    """drift = |s_0 - s*| / signal, curvature = |s_+ + s_- - 2 s_0| / |s_+ - s_-|, s_0 the state at rest.

    The signal is |s_+ - s_-| / 2, or |s_+- - s_0| of a one-sided rule; of several nudges, with the first of each sign.
    The floor is what rounding s* to its dtype comes to, over the signal.
    """
    import torch

    moved = nudged - rest[:, None, None]
    drift, size = ((v.flatten(-2).norm(dim=-1))[:, None] for v in (rest - start, start))
    evidence: dict[str, Tensor] = {}
    if not centred:
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
    With half of every nudge as well, these at beta and beta / 2 are extrapolated to 0 (Richardson 1911): the terms of
    order beta^2 cancel if centred, else those of order beta.
    """
    half = len(SIGNS[nudge])
    if nudged.shape[2] > half:
        whole = displacement(nudge, s_star, nudged[:, :, :half], betas)
        closer = displacement(nudge, s_star, nudged[:, :, half:], betas / 2)
        return closer + (closer - whole) / (3 if nudge == "centred" else 1)
    beta = betas[..., None, None]
    if nudge == "centred":
        return (nudged[:, :, 1] - nudged[:, :, 0]) / (2 * beta)
    moved = nudged[:, :, 0] - s_star[:, None]
    return -moved / beta if nudge == "positive" else moved / beta
