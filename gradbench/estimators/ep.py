"""Equilibrium propagation: the response of the fixed point to a nudge along the cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count, Reading, Snapshot, along
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.systems.base import AbstractSystem
    from gradbench.trajectory import Trajectory

Nudge = Literal["centred", "positive", "negative"]
Clip = Literal["none", "batch", "sample"]
Reduction = Literal["sum", "mean"]
CACHED = 2**17  # entries of the states that a CPU takes at a time: as they are with what a force makes of them
SIGNS: dict[Nudge, tuple[int, ...]] = {"centred": (1, -1), "positive": (1,), "negative": (-1,)}


@final
@dataclass(frozen=True)
class NudgedPhase(AbstractPhase):
    """s <- Pi(s + eps (F(s) - b dC/ds - correction)) from s*, b = +-beta and 0, for every beta at once.

    With `asymmetric`, correction = gain 2 A (s - s*), A = (J - J^T)/2 frozen at s*: near s* the
    nudged state then moves with J^T in place of J. `clip` caps the correction at the norm of the
    force before the nudge (gain <= 1), by row over the whole batch or by sample. `reduction = "mean"`
    descends the batch's mean of E + beta C where the sum is meant: eps / b in place of eps, and nothing else.
    The row b = 0 is the *rest*: what it moves by is drift of a free state that had not settled, or round-off.
    Evidence alone reads it, and only a phase that is `observed` has it.
    """

    signs: tuple[int, ...]
    asymmetric: bool = False
    clip: Clip = "none"
    reduction: Reduction = "sum"
    observed: bool = True

    @property
    def bare(self) -> AbstractPhase:
        return replace(self, observed=False)

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        import torch

        signed = torch.cat([sign * betas[:, None] for sign in self.signs], 1).flatten(0, 1)
        nudge = torch.cat([signed, torch.zeros_like(signed[: int(self.observed)])])[..., None, None]
        cuts, steps, states = _cuts(free.ends, len(nudge)), [], []
        for i, m in cuts:
            start = free.ends[i, None]
            s = start.repeat_interleave(len(nudge[m]), 1)
            states.append((s, *s.new_zeros(2, *s.shape[:-2])))
            steps.append(free.field.repeated(self._advance(free, start, nudge[m], s), *states[-1]))
        for depth in range(1, max(depths) + 1):
            before = [state[0].clone() for state in states] if depth in depths else []
            states = [step(*state) for step, state in zip(steps, states, strict=True)]
            if depth in depths:
                s, bound, clipped = (_joined(rows, cuts) for rows in zip(*states, strict=True))
                yield self._snapshot(depth, free.ends, s, _joined(before, cuts), bound, clipped)

    def _advance(
        self, free: Trajectory, start: Tensor, nudge: Tensor, like: Tensor
    ) -> Callable[..., tuple[Tensor, ...]]:
        """One step of rows that start alike: their states, the largest norm of each, and how often it was clipped."""
        import torch

        field, eps = free.field, self.step_size(free)
        skew = field.frozen(field.swirl_at, start.expand_as(like)) if self.asymmetric else None

        def advance(s: Tensor, bound: Tensor, clipped: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                force = field.force(s)
                push = torch.addcmul(force, nudge, field.cost_slope(s), value=-1)
                if skew is not None:
                    half = skew().antisym(s - start)
                    if self.clip == "none":
                        push = push.sub(half, alpha=2)
                    else:
                        gain = self._gain(field.system, force, 2 * half)
                        push = torch.addcmul(push, gain, half, value=-2)
                        clipped += (gain < 1).to(s).mean((-2, -1))  # share of samples
                ahead = field.project(torch.addcmul(s, eps, push))
                torch.maximum(bound, ahead.flatten(-2).norm(dim=-1), out=bound)
            return ahead, bound, clipped

        return advance

    def _snapshot(self, depth: int, start: Tensor, s: Tensor, last: Tensor, bound: Tensor, clipped: Tensor) -> Snapshot:
        """What the rows `(i, m, *c, ...)` of a nudged batch are after its last step, by beta and sign."""
        moved, gone = ((s - other).flatten(-2).norm(dim=-1) for other in (last, start[:, None]))
        rest = s[:, -1].clone() if self.observed else None

        def by_sign(rows: Tensor) -> Float[Tensor, "i j k *c"]:
            return (rows[:, :-1] if self.observed else rows).unflatten(1, (-1, len(self.signs)))

        nudged = by_sign(s).clone()
        evidence = {"nudge_residual": by_sign(moved / gone).amax(2), "nudge_norm": by_sign(bound).amax(2)}
        if self.clip != "none":
            evidence["clip_share"] = by_sign(clipped).mean(2) / depth
        if rest is not None:
            evidence |= _against_rest(nudged, rest, start)
        return Snapshot(depth, evidence, nudged=nudged, rest=rest)

    def step_size(self, free: Trajectory) -> Tensor:
        """eps of this phase, against states."""
        eps = free.field.step_size
        return eps / free.ends.shape[-2] if self.reduction == "mean" else eps

    def _gain(self, system: AbstractSystem, force: Tensor, correction: Tensor) -> Tensor:
        # the correction lives on the tokens; other blocks would only loosen the cap
        force_z, correction_z = (_tokens(system, v) for v in (force, correction))
        axes = (-2, -1) if self.clip == "batch" else (-1,)
        limit = force_z.norm(dim=axes, keepdim=True) + 1e-8
        return (limit / correction_z.norm(dim=axes, keepdim=True)).clamp(max=1.0)

    def count(self, T1: int, depth: int | None) -> Count:
        return self.beside(depth) * len(self.signs)

    def beside(self, depth: int | None) -> Count:
        """The row at rest."""
        assert depth is not None
        products = 1 if self.asymmetric else 0
        return Count(force=1, jvp=products, vjp=products) * depth


def _cuts(ends: Float[Tensor, "i *c b n"], width: int) -> list[tuple[slice, slice]]:
    """Rows of a nudged batch, by T1 and nudge, that are taken together: on a CPU so many as stay in its cache."""
    rows = len(ends) * width if ends.is_cuda else max(1, CACHED // ends[0].numel())
    tall, wide = max(1, rows // width), min(rows, width)
    starts = itertools.product(range(0, len(ends), tall), range(0, width, wide))
    return [(slice(i, i + tall), slice(m, m + wide)) for i, m in starts]


def _joined(parts: Sequence[Tensor], cuts: Sequence[tuple[slice, slice]]) -> Float[Tensor, "i m ..."]:
    """The rows again that were cut."""
    import torch

    if len(parts) == 1:
        return parts[0]
    across = len({m.start for _, m in cuts})
    return torch.cat([torch.cat(list(parts[k : k + across]), 1) for k in range(0, len(parts), across)])


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
    if moved.shape[2] == 1:
        signal, found = moved[:, :, 0].flatten(-2).norm(dim=-1), {}
    else:
        signal = 0.5 * (moved[:, :, 0] - moved[:, :, 1]).flatten(-2).norm(dim=-1)
        found = {"curvature": (moved[:, :, 0] + moved[:, :, 1]).flatten(-2).norm(dim=-1) / (2 * signal)}
    return found | {"drift": drift / signal, "noise_floor": torch.finfo(start.dtype).eps * size / signal}


def _tokens(system: AbstractSystem, v: Float[Tensor, "*r b n"]) -> Tensor:
    """The block z of a state, or all of it where there are no tokens."""
    blocks = system.split(v)
    return blocks["z"].flatten(-2) if "z" in blocks else v


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


def _credits(
    nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]
) -> tuple[Tensor, Tensor | None]:
    """The displacement of the state, and that of its prediction errors where the system has some."""
    assert snapshot.nudged is not None
    field, error = free.field, None
    if isinstance(field.system, AbstractForwardSystem):
        error = displacement(nudge, field.errors(free.ends), field.errors(snapshot.nudged), betas)
    return displacement(nudge, free.ends, snapshot.nudged, betas), error


def vector_field(nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
    """Estimate <a, dF/dtheta(s*)> + dC/dtheta(s*)."""
    return along(free, snapshot, *_credits(nudge, free, snapshot, betas))


def energy_contrast(nudge: Nudge, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
    """Estimate (dE/dtheta|_upper - dE/dtheta|_lower) / (b_upper - b_lower) + dC/dtheta(s*).

    centred (+beta, -beta),  positive (+beta, 0),  negative (0, -beta)
    """
    assert snapshot.nudged is not None
    nudged = free.field.energy_grads(snapshot.nudged)
    at_rest = {} if nudge == "centred" else free.field.energy_grads(free.ends)
    gradient = {}
    for n, direct in free.cost_grads.items():
        moved = list(nudged[n].unbind(2))
        rest = [at_rest[n][:, None]] if at_rest else []
        upper, lower = rest + moved if nudge == "negative" else moved + rest
        width = 2 * betas if nudge == "centred" else betas
        gradient[n] = _per_cell(upper - lower, width) + direct[:, None]
    credit, error = _credits(nudge, free, snapshot, betas)
    return Reading(snapshot.depth, gradient, credit, snapshot.evidence, error)


def _per_cell(gradient: Float[Tensor, "i j *c ..."], width: Float[Tensor, "j *c"]) -> Tensor:
    return gradient / width.reshape(*width.shape, *[1] * (gradient.ndim - 1 - width.ndim))


@final
@dataclass(frozen=True)
class Ep(AbstractEstimator):
    """Equilibrium propagation.

    nudged   s <- Pi(s + eps (F(s) - b dC/ds)), b = +beta and -beta from s*, T2 steps
    estimate vector_field     <a, dF/dtheta(s*)>, a = (s_- - s_+) / 2 beta
             energy_contrast  (dE/dtheta|s_+ - dE/dtheta|s_-) / 2 beta
    Valid where J(s*) is symmetric, and Pi' too: the displacement of a projected state contains Pi' already,
    and the plain readout is right. On a non-conservative force this is naive EP, whose bias no beta removes. Error
    O(beta^2) centred, O(beta) one-sided. The readouts differ at the same order. `reduction = "mean"` steps by
    eps / b in the nudged phase, as an average over the batch does that is descended in place of the sum: the
    fixed points are the same, and T2 steps go a b-th of the way.
    """

    name: ClassVar[str] = "ep"
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source: ClassVar[str] = (
        "Scellier & Bengio 2017; Scellier et al. 2018 (vector field); Laborieux et al. 2021 (centred)"
    )
    exact_when: ClassVar[str] = "J(s*) = J(s*)^T, T2 -> inf, beta -> 0"

    nudge: Nudge = "centred"
    readout: Literal["vector_field", "energy_contrast"] = "vector_field"
    reduction: Reduction = "sum"

    @property
    def bias_order(self) -> int:  # type: ignore[override]
        return 2 if self.nudge == "centred" else 1

    @property
    def phase(self) -> AbstractPhase:
        return NudgedPhase(SIGNS[self.nudge], reduction=self.reduction)

    def skip(self, system: type[AbstractSystem]) -> str | None:
        needs_energy = self.readout == "energy_contrast" and not system.conservative
        return f"the energy contrast needs an energy, which {system.name} has not" if needs_energy else None

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        readout = vector_field if self.readout == "vector_field" else energy_contrast
        return readout(self.nudge, free, snapshot, betas)
