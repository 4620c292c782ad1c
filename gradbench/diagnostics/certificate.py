"""The certificate of a free phase: what its end states are, T1 by T1, and the status that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from gradbench.diagnostics.antisymmetry import antisymmetry
from gradbench.diagnostics.spectrum import growth
from gradbench.status import Status, Thresholds
from gradbench.streams import Streams, normal
from gradbench.systems.base import AbstractDrivenSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.trajectory import Trajectory


# Relative residual of a leading eigenvalue up to which it decides. On cet_real and cet_energy 0.4e-2 to 1.1e-2 meant an
# error of 2e-4 to 2e-3, where the growth over 60 products was off by 1e-2.
FOUND = 2e-2


@dataclass(frozen=True)
class Deep:
    """What products with the Jacobian at s* say beyond that, at one T1, by Krylov spaces of a bounded size.

    Eigenvalues and singular values are those of the worst sample.
    """

    residual_rate: float  # factor of |s_{t+1} - s_t| a step, over the last quarter of T1; NaN: fewer than two steps
    rho_arnoldi: float  # largest |lambda(J_G)|
    spectrum_open: float  # residual of the eigenvalues, relative: small where the Krylov space has found them
    sigma_max: float  # of J_G, at least: above 1, perturbations may grow before they fall
    condition: float  # of 1 - J_G, at least
    end_states: int  # how many differ, over the samples
    distance: float  # |s* - fixed point| / |s*|, residual / (1 - rho); inf where rho >= 1
    angle: float  # degrees between J^-1 g and J^-T g, g = dC/ds; NaN where a solve failed
    rightmost: float | None = None  # largest Re lambda(J); None: the system projects, and its flow goes not by J alone


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
    energy_monotone: bool | None  # None: no energy, or no step to take
    rho: float = math.nan  # growth of perturbations, the spectral radius of J_G
    antisymmetry: float = math.nan
    antisymmetry_se: float = math.nan
    antisymmetry_swirl: float = math.nan
    antisymmetry_swirl_se: float = math.nan
    deep: Deep | None = None  # None: not asked for

    @property
    def radius(self) -> float:
        """The rho that decides: Arnoldi's where the space has found it, else the growth."""
        found = self.deep is not None and self.deep.spectrum_open <= FOUND
        return self.deep.rho_arnoldi if self.deep is not None and found else self.rho

    def status(self, at: Thresholds) -> Status:
        """What the free phase came to; SETTLED leaves the word to the second phase."""
        if not self.escape <= at.divergence:
            return Status.DIVERGED
        shrinking = self.shrink < at.collapse and self.residual > at.collapse_residual
        if self.shrink <= at.vanish or shrinking:
            return Status.COLLAPSED
        if self.settled_share < at.settled_share:
            return Status.UNSETTLED
        if not self.radius <= 1 + at.growth:
            return Status.UNSTABLE
        return Status.SETTLED


def certify(free: Trajectory, thresholds: Thresholds, seeds: Sequence[int]) -> list[list[Certificate]]:
    """A certificate for every T1 and every cell of a stack, whose `seeds` draw the probes.

    What needs the Jacobian is taken only at T1 where at least one cell has not diverged.
    """
    # drawn before the device is waited for: until then it relaxes
    probes = _probes(free.ends, thresholds.probes + 1, seeds)
    norms = free.norms
    scale = torch.where(norms[0] > 0, norms[0], norms[:2][-1])
    ratio = torch.where(scale > 0, norms / scale, norms)
    escape = torch.stack([ratio[: T1 + 1].nan_to_num(nan=math.inf).amax(0) for T1 in free.T1s])
    with torch.no_grad():
        moved = free.field.step(free.ends) - free.ends
        force = free.field.force(free.ends)
    by_sample = moved.double().norm(dim=-1) / free.ends.double().norm(dim=-1)
    ends = list(free.T1s)
    evidence = {
        "residual": _norm(moved) / norms[ends],
        "settled_share": (by_sample <= thresholds.residual).double().mean(-1),
        "force_norm": _norm(force),
        "state_norm": norms[ends],
        "scale": scale.expand_as(norms[ends]),
        "shrink": ratio[ends],
        "escape": escape,
    }
    if free.energies is not None and len(norms) > 1:
        falls = free.energies.diff(dim=0) <= thresholds.energy_rise * free.energies[:-1].abs()  # a NaN is no fall
        evidence["energy_monotone"] = torch.stack([falls[:T1].all(0) for T1 in free.T1s])
    live = (escape <= thresholds.divergence).reshape(len(ends), -1).any(-1).tolist()
    if any(live):
        rows = [i for i, alive in enumerate(live) if alive]
        for name, value in _linear(free.at(tuple(ends[i] for i in rows)), thresholds, probes).items():
            evidence[name] = torch.full_like(norms[ends], math.nan).index_copy(0, _index(rows, value), value)
    columns = {name: value.reshape(len(ends), -1).tolist() for name, value in evidence.items()}
    defaults = {"energy_monotone": None}
    diverged = {f.name: math.nan for f in fields(Certificate) if f.name in _LINEAR}
    certificates = []
    for i in range(len(ends)):
        row = [defaults | {name: column[i][c] for name, column in columns.items()} for c in range(len(seeds))]
        certificates.append(
            [Certificate(**(v | diverged if not v["escape"] <= thresholds.divergence else v)) for v in row]
        )
    return certificates


_LINEAR = ("rho", "antisymmetry", "antisymmetry_se", "antisymmetry_swirl", "antisymmetry_swirl_se")


def _norm(s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r"]:
    return s.flatten(-2).double().norm(dim=-1)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)


def _probes(ends: Float[Tensor, "i *c b n"], number: int, seeds: Sequence[int]) -> Float[Tensor, "p *c b n"]:
    drawn = {seed: normal(Streams(seed)["probes"], (number, *ends.shape[-2:])).to(ends) for seed in set(seeds)}
    draws = torch.stack([drawn[seed] for seed in seeds], 1)
    return draws if ends.ndim == 4 else draws[:, 0]


def _linear(free: Trajectory, thresholds: Thresholds, probes: Float[Tensor, "p *c b n"]) -> dict[str, Tensor]:
    field, ends = free.field, free.ends
    probes = probes[:, None].expand(-1, *ends.shape)
    frozen = field.frozen(field.step_at, ends)
    product = field.repeated(lambda v: (frozen().jvp(v),), probes[-1])
    measured = {"rho": growth(lambda v: product(v)[0], probes[-1], thresholds.growth_steps)}
    # where there is no swirl the whole force stands for it, and a column of its own would say nothing new
    parts = {"antisymmetry": field.at}
    if isinstance(field.system, AbstractDrivenSystem):
        parts["antisymmetry_swirl"] = field.swirl_at
    for name, at in parts.items():
        measured[name], measured[f"{name}_se"] = antisymmetry(at(ends), probes[:-1])
    return {name: value.double() for name, value in measured.items()}
