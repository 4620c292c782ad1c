"""The deep certificate: what the Jacobian at s* says of one problem, for one explanation and not for every cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradbench.diagnostics.arnoldi import leading, singular
from gradbench.diagnostics.certificate import Certificate, certify
from gradbench.streams import Streams, normal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.field import Linear
    from gradbench.status import Thresholds
    from gradbench.trajectory import Trajectory

DENSE = 2**24  # entries of the Jacobians of all samples up to which they are taken as matrices
KRYLOV = 2**23  # entries that a Krylov basis may have: a large batch gets a smaller space, and `open` says so
SAME = 1e-3  # |s - s'| / |s| of two end states that count as one


@dataclass(frozen=True)
class DeepCertificate:
    """Evidence about s* of one problem at one T1. Eigenvalues and singular values are those of the worst sample."""

    free: Certificate  # what every cell is given
    residual_rate: float  # factor of |s_{t+1} - s_t| a step, over the last quarter of T1: 1 is a plateau; NaN: no steps
    rho: float  # largest |lambda(J_G)|
    rightmost: float  # largest Re lambda(J)
    open: float  # residual of the two eigenvalues, relative: small where the Krylov space has found them
    sigma_max: float  # largest singular value of J_G: above 1, perturbations may grow before they fall
    condition: float  # of I - J_G
    condition_exact: bool  # from dense matrices; else a lower bound from a Krylov space
    end_states: int  # how many differ, over the samples
    distance: float  # |s* - fixed point| / |s*| at most, residual / (1 - rho) for a normal J_G; inf where rho >= 1

    @property
    def stable(self) -> bool:
        """Whether perturbations of s* fall."""
        return self.rho < 1


def dense(linear: Linear, like: Float[Tensor, "b n"]) -> Float[Tensor, "b n n"]:
    """The matrix of a linear map of each sample, from n products M^T e_i, which are its rows."""
    rows = []
    for i in range(like.shape[-1]):
        unit = torch.zeros_like(like)
        unit[:, i] = 1
        rows.append(linear.vjp(unit[None])[0])
    return torch.stack(rows, -2)


def certify_deep(free: Trajectory, thresholds: Thresholds, seed: int) -> DeepCertificate:
    """The deep certificate of a trajectory of one T1, of one problem in float64; `seed` draws the starts.

    Raises ValueError for several T1. A diverged phase has NaN for all that needs the Jacobian.
    """
    if len(free.T1s) != 1:
        raise ValueError(f"a deep certificate is of one T1, not of {free.T1s}")
    ((shallow,),) = certify(free, thresholds, [seed])
    s = free.ends[0]
    rate, distinct = _rate(free), _distinct(s)
    if not (shallow.escape <= thresholds.divergence and bool(s.isfinite().all())):
        nan = math.nan
        return DeepCertificate(shallow, rate, nan, nan, nan, nan, nan, False, distinct, math.inf)
    step, force = free.field.step_at(s[None]), free.field.at(s[None])
    v = normal(Streams(seed)["krylov"], tuple(s.shape)).to(s)
    most = max(2, min(160, KRYLOV // s.numel()))

    def jvp(v: Tensor) -> Tensor:
        return step.jvp(v[None])[0]

    def vjp(a: Tensor) -> Tensor:
        return step.vjp(a[None])[0]

    modulus = leading(jvp, v, most=most)
    right = leading(lambda v: force.jvp(v[None])[0], v, torch.real, most)
    rho = float(modulus.values.abs().max())
    exact = s.numel() * s.shape[-1] <= DENSE
    if exact:
        values = torch.linalg.svdvals(torch.eye(s.shape[-1]).to(s) - dense(step, s))
        largest, smallest = values[:, 0], values[:, -1]
    else:
        largest, smallest = singular(lambda v: v - jvp(v), lambda a: a - vjp(a), v, most)
    return DeepCertificate(
        free=shallow,
        residual_rate=rate,
        rho=rho,
        rightmost=float(right.values.real.max()),
        open=max(modulus.residual, right.residual),
        sigma_max=float(singular(jvp, vjp, v, most)[0].max()),
        condition=float((largest / smallest).max()),
        condition_exact=exact,
        end_states=distinct,
        distance=shallow.residual / (1 - rho) if rho < 1 else math.inf,
    )


def _rate(free: Trajectory) -> float:
    """Geometric mean of the factors, from about three quarters of T1 on; a state that stands still has rate 0."""
    T = free.T1s[0]
    if T < 2:
        return math.nan
    start = min(3 * T // 4, T - 1) // free.every  # of the states that are kept
    with torch.no_grad():
        pair = (free.kept[start], free.ends[0])
        first, last = (float((free.field.step(s) - s).norm()) for s in pair)
    return (last / first) ** (1 / (T - start * free.every)) if first > 0 else 0.0


def _distinct(s: Float[Tensor, "b n"]) -> int:
    """Samples whose end state is not that of one before them."""
    gaps = torch.cdist(s, s) <= SAME * s.norm(dim=-1)
    return int(sum(not bool(gaps[i, :i].any()) for i in range(len(s))))
