"""The certificate of a free phase: what its end states are, T1 by T1, and the status that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gradbench.data.draw_memory import DrawMemory
from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.asymmetry import antisymmetry, squares
from gradbench.diagnostics.judgement import Judgement, bounded, collapsed, most, of_free_state
from gradbench.diagnostics.spectrum import growth, unit
from gradbench.systems.base import AbstractDrivenSystem
from gradbench.vocabulary.status import Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Float64
    from torch import Tensor

    from gradbench.dynamics.linear import Linear
    from gradbench.dynamics.trajectory import Trajectory


PROBES = DrawMemory(2**26)  # they are the same for all states of one shape
# Relative residual of a leading eigenvalue up to which the eigenvalue decides. On cet_real and cet_energy 0.4e-2 to
# 1.1e-2 meant an error of 2e-4 to 2e-3, where the growth over 60 products was off by 1e-2.
PINNED = 2e-2


@dataclass(frozen=True)
class Deep:
    """Evidence about s* at one T1 from Krylov spaces of a bounded size, beyond that of a certificate.

    Eigenvalues and singular values are those of the worst sample.
    """

    residual_rate: float  # factor of |s_{t+1} - s_t| a step, over the last quarter of T1; NaN: fewer than two steps
    rho_arnoldi: float  # largest |lambda(J_G)|
    spectrum_open: float  # residual of the eigenvalues, relative: small where the Krylov space has found them
    sigma_max: float  # largest singular value of J_G, at least: above 1, perturbations may grow before they fall
    condition: float  # condition number of 1 - J_G, at least
    end_states: int  # how many different end states the samples have
    distance: float  # |s* - fixed point| / |s*|, residual / (1 - rho); inf where rho >= 1
    angle: float  # degrees between J^-1 g and J^-T g, g = dC/ds; NaN where a solve failed
    rightmost: float | None = None  # largest Re lambda(J); None: the system projects, and J alone gives no flow


@dataclass(frozen=True)
class Certificate:
    """Evidence about s* at one T1. NaN: not measured, because the phase diverged or the notion does not apply."""

    residual: float  # |G(s*) - s*| / |s*|
    collapsed_share: float  # of samples that decay to 0
    settled_share: float  # of samples whose residual is below the threshold
    force_norm: float  # |F(s*)|
    state_norm: float  # |s*|
    scale: float  # |s_0|, or |s_1| of a relaxation that starts at 0
    shrink: float  # |s*| / scale
    escape: float  # largest |s_t| / scale up to T1
    energy_monotone: bool | None  # None: no energy, or no step to take
    judgement: Judgement  # of the free phase; after SETTLED the second phase decides
    rho: float = math.nan  # growth of perturbations, the spectral radius of J_G
    antisymmetry: float = math.nan
    antisymmetry_se: float = math.nan
    antisymmetry_swirl: float = math.nan
    antisymmetry_swirl_se: float = math.nan
    deep: Deep | None = None  # None: not asked for

    def deepened(self, deep: Deep, at: Thresholds) -> Certificate:
        """This certificate with a deep one, judged anew: the deep rho decides where the Krylov space pins it down."""
        evidence = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("judgement", "deep")}
        return judged(evidence, at, deep)


def judged(evidence: dict[str, Any], at: Thresholds, deep: Deep | None = None) -> Certificate:
    """The certificate with this evidence, and the judgement that follows from it."""
    pinned = deep is not None and deep.spectrum_open <= PINNED
    numbers = {name: evidence[name] for name in ("escape", "shrink", "residual", "collapsed_share", "settled_share")}
    rho = deep.rho_arnoldi if deep is not None and pinned else evidence.get("rho", math.nan)
    return Certificate(**evidence, judgement=of_free_state(**numbers, rho=rho, at=at), deep=deep)


def certify(free: Trajectory, thresholds: Thresholds, seeds: Sequence[int]) -> list[list[Certificate]]:
    """A certificate for every T1 and every cell of a stack, whose `seeds` draw the probes.

    Numbers that need the Jacobian are taken only at T1 where at least one cell has not diverged.
    """
    # drawn while the device still relaxes, before it is waited for
    probes = _probes(free.ends, thresholds.probes + 1, seeds)
    norms = free.norms
    scale = torch.where(norms[0] > 0, norms[0], norms[:2][-1])
    ratio = torch.where(scale > 0, norms / scale, norms)
    escape = torch.stack([ratio[: T1 + 1].nan_to_num(nan=math.inf).amax(0) for T1 in free.T1s])
    with torch.no_grad():  # by the plain step: no kernel judges how settled its state is
        force = free.field.force(free.ends)
        moved = free.field.project(torch.addcmul(free.ends, free.field.step_size, force)) - free.ends
    by_sample = moved.double().norm(dim=-1) / free.ends.double().norm(dim=-1)
    ends = list(free.T1s)
    gone = collapsed(_shrink_by_sample(free), by_sample, torch.finfo(free.ends.dtype).eps, thresholds)
    collapsed_share = gone.double().mean(-1)
    settled = by_sample <= thresholds.residual
    evidence = {
        "residual": _norm(moved) / norms[ends],
        "collapsed_share": collapsed_share,
        "settled_share": torch.where(
            most(collapsed_share), settled.double().mean(-1), (settled & ~gone).double().mean(-1)
        ),
        "force_norm": _norm(force),
        "state_norm": norms[ends],
        "scale": scale.expand_as(norms[ends]),
        "shrink": ratio[ends],
        "escape": escape,
    }
    if free.energies is not None and len(norms) > 1:
        falls = free.energies.diff(dim=0) <= thresholds.energy_rise * free.energies[:-1].abs()  # a NaN does not fall
        evidence["energy_monotone"] = torch.stack([falls[:T1].all(0) for T1 in free.T1s])
    rows = [
        i
        for i, any_bounded in enumerate(bounded(escape, thresholds).reshape(len(ends), -1).any(-1).tolist())
        if any_bounded
    ]
    if rows:
        for name, value in _linear(free.at(tuple(ends[i] for i in rows)), thresholds, probes).items():
            evidence[name] = torch.full_like(norms[ends], math.nan).index_copy(0, _index(rows, value), value)
    columns = {name: value.reshape(len(ends), -1).tolist() for name, value in evidence.items()}
    defaults = {"energy_monotone": None}
    unknown = dict.fromkeys(_LINEAR, math.nan)  # of a diverged cell in a stack where another cell did not diverge
    certificates = []
    for i in range(len(ends)):
        row = [defaults | {name: column[i][c] for name, column in columns.items()} for c in range(len(seeds))]
        certificates.append([judged(v if bounded(v["escape"], thresholds) else v | unknown, thresholds) for v in row])
    return certificates


def _shrink_by_sample(free: Trajectory) -> Float64[Tensor, "i *c b"]:
    """|s*| / |s_0| of every sample; |s*| / |s_1| of a sample that starts at 0, and |s*| where |s_1| is 0 too."""
    first = free.states[0]
    if free.T1s[-1] == 0:
        second = first
    elif free.every == 1:
        second = free.states[1]
    else:
        with torch.no_grad():
            second = free.field.step(first)
    start, after, end = (s.double().norm(dim=-1) for s in (first, second, free.ends))
    scale = torch.where(start > 0, start, after)
    return torch.where(scale > 0, end / scale, end)


_LINEAR = ("rho", "antisymmetry", "antisymmetry_se", "antisymmetry_swirl", "antisymmetry_swirl_se")


def _norm(s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r"]:
    return s.flatten(-2).double().norm(dim=-1)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)


def _probes(ends: Float[Tensor, "i *c b n"], number: int, seeds: Sequence[int]) -> Float[Tensor, "p *c b n"]:
    shape = number, *ends.shape[-2:]

    def draw(seed: int) -> tuple[dict[str, Tensor]]:
        return ({"v": normal(Streams(seed)["probes"], shape).to(ends)},)

    drawn = {
        seed: PROBES.of((seed, shape, ends.dtype, ends.device), partial(draw, seed))[0]["v"] for seed in set(seeds)
    }
    draws = torch.stack([drawn[seed] for seed in seeds], 1)
    return draws if ends.ndim == 4 else draws[:, 0]


def _squares_at(linear: Callable[[], Linear], v: Tensor) -> tuple[Tensor, Tensor]:
    return squares(linear(), v)


def _linear(free: Trajectory, thresholds: Thresholds, probes: Float[Tensor, "p *c b n"]) -> dict[str, Tensor]:
    field, ends = free.field, free.ends
    probes = probes[:, None].expand(-1, *ends.shape)
    # the product alone: a recording copies what it reads, and the whole map reads more
    frozen = field.frozen(lambda s: field.step_at(s).product, ends)
    product: Any = field.repeated(lambda v: unit(frozen()(v)), probes[-1])
    measured = {"rho": growth(product, probes[-1], thresholds.growth_steps)}
    # of a system that names no swirl, the column of the swirl would repeat that of the whole force
    parts = {"antisymmetry": field.at}
    if isinstance(field.system, AbstractDrivenSystem):
        parts["antisymmetry_swirl"] = field.swirl_at
    for name, at in parts.items():
        measure = field.repeated(partial(_squares_at, field.frozen(at, ends)), probes[0], few=True)
        measured[name], measured[f"{name}_se"] = antisymmetry(measure, probes[:-1])
    return {name: value.double() for name, value in measured.items()}
