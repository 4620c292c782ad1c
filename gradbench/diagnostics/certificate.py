"""The certificate of a free phase: what its end states are, T1 by T1, and the status that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradbench.diagnostics.antisymmetry import antisymmetry
from gradbench.diagnostics.spectrum import growth
from gradbench.status import Status, Thresholds
from gradbench.streams import Streams, normal
from gradbench.systems.base import AbstractDrivenSystem, AbstractEnergySystem

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.trajectory import Trajectory


@dataclass(frozen=True)
class Certificate:
    """Evidence about s* at one T1. NaN: not measured, because the phase diverged or the notion does not apply."""

    residual: float  # |G(s*) - s*| / |s*|
    settled_share: float  # of samples whose own residual is below the threshold
    force_norm: float  # |F(s*)|
    state_norm: float  # |s*|
    scale: float  # |s_0|, or |s_1| of a relaxation that starts at 0
    shrink: float  # |s*| / scale
    escape: float  # largest |s_t| / scale up to T1
    rho: float  # growth of perturbations, the spectral radius of J_G
    antisymmetry: float
    antisymmetry_se: float
    antisymmetry_swirl: float
    antisymmetry_swirl_se: float
    energy_monotone: bool | None  # None: no energy

    def status(self, at: Thresholds) -> Status:
        """What the free phase came to; SETTLED leaves the word to the second phase."""
        if not self.escape <= at.divergence:
            return Status.DIVERGED
        shrinking = self.shrink < at.collapse and self.residual > at.collapse_residual
        if self.shrink <= at.vanish or shrinking:
            return Status.COLLAPSED
        if self.settled_share < at.settled_share:
            return Status.UNSETTLED
        if not self.rho <= 1 + at.growth:
            return Status.UNSTABLE
        return Status.SETTLED


def certify(free: Trajectory, thresholds: Thresholds, seed: int) -> list[Certificate]:
    """One certificate a T1. The expensive parts are taken at states that have not diverged, in one batch."""
    norms = free.states.flatten(1).double().norm(dim=-1)
    scale = norms[0] if norms[0] > 0 else norms[1]
    ratio = (norms / scale).nan_to_num(nan=0.0) if scale == 0 else norms / scale
    escape = [float(ratio[: T1 + 1].nan_to_num(nan=math.inf).max()) for T1 in free.T1s]
    with torch.no_grad():
        moved = free.field.step(free.ends) - free.ends
        force = free.field.force(free.ends)
    residual = _ratio(moved.flatten(1), free.ends.flatten(1))
    by_sample = _ratio(moved, free.ends)
    settled = (by_sample <= thresholds.residual).double().mean(-1)
    monotone = _monotone(free, thresholds)
    live = tuple(T1 for T1, e in zip(free.T1s, escape, strict=True) if e <= thresholds.divergence)
    linear = dict(zip(live, _linear(free.at(live), thresholds, seed), strict=True)) if live else {}
    return [
        Certificate(
            residual=float(residual[i]),
            settled_share=float(settled[i]),
            force_norm=float(force[i].double().norm()),
            state_norm=float(norms[T1]),
            scale=float(scale),
            shrink=float(ratio[T1]),
            escape=escape[i],
            energy_monotone=monotone[i],
            **linear.get(T1, _UNMEASURED),
        )
        for i, T1 in enumerate(free.T1s)
    ]


_UNMEASURED = dict.fromkeys(
    ("rho", "antisymmetry", "antisymmetry_se", "antisymmetry_swirl", "antisymmetry_swirl_se"), math.nan
)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part.double().norm(dim=-1) / whole.double().norm(dim=-1)


def _linear(free: Trajectory, thresholds: Thresholds, seed: int) -> list[dict[str, float]]:
    field, ends = free.field, free.ends
    draw = normal(Streams(seed)["probes"], (thresholds.probes + 1, *ends.shape[1:]))
    probes = draw.to(ends)[:, None].expand(-1, *ends.shape)
    measured = {"rho": growth(field.step_at(ends), probes[-1], thresholds.growth_steps)}
    repeated = ends.expand(thresholds.probes, *ends.shape)
    # where there is no swirl the whole force stands for it, and a column of its own would say nothing new
    parts = {"antisymmetry": field.at}
    if isinstance(field.system, AbstractDrivenSystem):
        parts["antisymmetry_swirl"] = field.swirl_at
    for name, at in parts.items():
        measured[name], measured[f"{name}_se"] = antisymmetry(at(repeated), probes[:-1])
    return [_UNMEASURED | {name: float(value[i]) for name, value in measured.items()} for i in range(len(ends))]


def _monotone(free: Trajectory, thresholds: Thresholds) -> list[bool | None]:
    """Whether the summed energy never rises by more than the threshold on the way to each T1."""
    if not isinstance(free.field.system, AbstractEnergySystem):
        return [None] * len(free.T1s)
    with torch.no_grad():
        energy = torch.stack([free.field.energy(s).double().sum() for s in free.states])
    allowed = thresholds.energy_rise * energy[:-1].abs()
    falls = (energy.diff() <= allowed).tolist()  # a NaN is no fall
    return [all(falls[:T1]) for T1 in free.T1s]
