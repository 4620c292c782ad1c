"""The deep certificate: what the Jacobian at s* says, as exactly as can be of one problem, or cheaply of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from gradbench.diagnostics.arnoldi import condition, gmres, krylov, leading, outermost, singular
from gradbench.diagnostics.certificate import Certificate, Deep, certify
from gradbench.streams import Streams, normal

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.diagnostics.arnoldi import Product
    from gradbench.field import Linear
    from gradbench.status import Thresholds
    from gradbench.trajectory import Trajectory

DENSE = 2**24  # entries of the Jacobians of all samples up to which they are taken as matrices
KRYLOV = 2**23  # entries that a Krylov basis may have: a large batch gets a smaller space, and `open` says so
SAME = 1e-3  # |s - s'| / |s| of two end states that count as one
SPACE = 32  # dimensions of the Krylov spaces of a batch: up to this size small matrices are cheap, on a CPU too
PAIRS = 16  # products with J_G^T J_G, whose largest eigenvalue is found first; of one problem up to FEW
FEW = 40
SYMMETRIC = 1e-12  # |A|_F / |J|_F in float64 up to which J^-1 g needs no solve of its own beside J^-T g
SOLVED = 1e-2  # |g - M a| / |g| that a batch's solves may leave: above, there is no angle


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
    angle: float  # degrees between J^-1 g and J^-T g, g = dC/ds: the asymmetry that credit feels

    @property
    def stable(self) -> bool:
        """Whether perturbations of s* fall."""
        return self.rho < 1


def by_lu(M: Float[Tensor, "*r b n n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
    """x with M x = v of each sample; not finite where M is singular."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # oneMKL's LU on several fails or never returns on some processors (torch 2.15, AMD Zen 5)
    try:
        return torch.linalg.solve_ex(M, v[..., None])[0][..., 0]
    finally:
        torch.set_num_threads(cores)


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
    rate, distinct = float(_rate(free)[0]), int(_distinct(s))
    if not (shallow.escape <= thresholds.divergence and bool(s.isfinite().all())):
        nan = math.nan
        return DeepCertificate(shallow, rate, nan, nan, nan, nan, nan, False, distinct, math.inf, nan)
    field, g = free.field, free.cost_slope[0]
    step = field.step_at(s[None])
    v = normal(Streams(seed)["krylov"], tuple(s.shape)).to(s)
    most = max(2, min(160, KRYLOV // s.numel()))

    def jvp(v: Tensor) -> Tensor:
        return step.jvp(v[None])[0]

    def vjp(a: Tensor) -> Tensor:
        return step.vjp(a[None])[0]

    (modulus, right), space = leading(jvp, v, (torch.abs, torch.real), most)
    rightmost = (right.values.real - 1) / field.knobs.eps
    left = right.residual * (right.values / (right.values - 1)).abs()  # of lambda(J), which is smaller
    if field.system.projects:  # then J_G is not 1 + eps J, and J has eigenvalues of its own
        force = field.at(s[None])
        (right,), _ = leading(lambda v: force.jvp(v[None])[0], v, (torch.real,), most)
        rightmost, left = right.values.real, right.residual
    rho = float(modulus.values.abs().max())
    nudge, exact = field.project_jvp(_ahead(free)[0], g), s.numel() * s.shape[-1] <= DENSE
    if exact:
        M = torch.eye(s.shape[-1]).to(s) - dense(step, s)
        number = torch.linalg.cond(M)
        response, credit = by_lu(M, nudge), by_lu(M.mT, g)
    else:
        largest, smallest = singular(lambda v: v - jvp(v), lambda a: a - vjp(a), v, min(most, FEW))
        number = torch.maximum(condition(space), largest / smallest)  # either is a lower bound
        credit = _solved(vjp, g, 60, 20, 1e-6)
        symmetric = shallow.antisymmetry <= SYMMETRIC and not field.system.projects
        response = credit if symmetric else _solved(jvp, nudge, 60, 20, 1e-6)
    return DeepCertificate(
        free=shallow,
        residual_rate=rate,
        rho=rho,
        rightmost=float(rightmost.max()),
        open=float(torch.maximum(modulus.residual, left).max()),
        sigma_max=float(singular(jvp, vjp, v, min(most, FEW))[0].max()),
        condition=float(number.max()),
        condition_exact=exact,
        end_states=distinct,
        distance=_distance(shallow.residual, rho),
        angle=float(_angle(free, response[None], credit[None])[0]),
    )


def deepen(
    certificates: list[list[Certificate]], free: Trajectory, thresholds: Thresholds, seeds: Sequence[int]
) -> list[list[Certificate]]:
    """The certificates of every T1 and cell of a stack, with a deep one each: every sample of all T1 and cells at once.

    In the dtype of the run: the bases too, and only the small matrices in float64. One Krylov space of J_G has both
    eigenvalues, where the system does not project, and the condition.
    """
    live = [i for i, row in enumerate(certificates) if any(c.escape <= thresholds.divergence for c in row)]
    if not live:
        return certificates
    free = free.at(tuple(free.T1s[i] for i in live))
    columns = {name: value.reshape(len(live), -1).tolist() for name, value in _krylov(free, seeds).items()}
    deepened = list(certificates)
    for row, i in enumerate(live):
        found = [{name: column[row][c] for name, column in columns.items()} for c in range(len(seeds))]
        pairs = zip(certificates[i], found, strict=True)
        deepened[i] = [_deepened(c, v) if c.escape <= thresholds.divergence else c for c, v in pairs]
    return deepened


def _deepened(certificate: Certificate, found: dict[str, Any]) -> Certificate:
    distance = _distance(certificate.residual, found["rho_arnoldi"])
    return replace(certificate, deep=Deep(distance=distance, **found))


def _distance(residual: float, rho: float) -> float:
    return residual / (1 - rho) if rho < 1 else math.inf


def _krylov(free: Trajectory, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Everything by T1 and cell."""
    field, ends, g = free.field, free.ends, free.cost_slope
    drawn = {seed: normal(Streams(seed)["krylov"], tuple(ends.shape[-2:])).to(ends) for seed in set(seeds)}
    starts = torch.stack([drawn[seed] for seed in seeds])
    v = (starts if ends.ndim == 4 else starts[0]).expand_as(ends)
    frozen = field.frozen(field.step_at, ends)

    def squared(v: Tensor) -> tuple[Tensor, ...]:
        step = frozen()
        return (step.vjp(step.jvp(v)),)

    forward = field.repeated(lambda v: (frozen().jvp(v),), v)
    backward = field.repeated(lambda a: (frozen().vjp(a),), v)
    both = field.repeated(squared, v)
    space = krylov(lambda v: forward(v)[0], v, min(SPACE, ends.shape[-1]))
    modulus, right = outermost(space, (torch.abs, torch.real))
    found = {
        "residual_rate": _rate(free),
        "rho_arnoldi": modulus.values.abs(),
        "spectrum_open": torch.maximum(modulus.residual, right.residual),
        "sigma_max": singular(lambda v: v, lambda v: both(v)[0], v, PAIRS)[0].amax(-1),
        "condition": condition(space).amax(-1),
        "end_states": _distinct(ends),
        "angle": _angle(
            free,
            _solved(lambda v: forward(v)[0], field.project_jvp(_ahead(free), g), SPACE, 1, SOLVED),
            _solved(lambda a: backward(a)[0], g, SPACE, 1, SOLVED),
        ),
    }
    if not field.system.projects:
        found["rightmost"] = (right.values.real.to(ends.device) - 1) / field.knobs.eps.double()
    return found


def _angle(free: Trajectory, response: Float[Tensor, "*r b n"], credit: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r"]:
    """Between r and Pi'^T a, (1 - J_G) r = Pi' g and (1 - J_G^T) a = g, over all samples, in degrees.

    The response of s* to a nudge, and the credit that the reference goes by. Where the system does not project these
    are J^-1 g and J^-T g, and the angle is how wrong a rule is that goes by J in place of J^T.
    """
    pair = torch.stack((response.double(), free.field.project_vjp(_ahead(free), credit).double())).flatten(-2)
    a, b = pair / pair.norm(dim=-1, keepdim=True)
    return (2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))).rad2deg()  # Kahan: exact near 0, unlike acos


def _ahead(free: Trajectory) -> Float[Tensor, "i *c b n"]:
    with torch.no_grad():
        return free.ends + free.field.step_size * free.field.force(free.ends)


def _solved(
    product: Product, right: Float[Tensor, "*r b n"], m: int, restarts: int, tol: float
) -> Float[Tensor, "*r b n"]:
    """x with (1 - M) x = right; all of a row NaN where a sample of it leaves more than `tol` of its right side."""
    found = gmres(lambda v: v - product(v), right, tol / 10, m, restarts)
    left = (right - found + product(found)).norm(dim=-1)
    wrong = ~(left <= tol * right.norm(dim=-1)).all(-1)
    return found.masked_fill(wrong[..., None, None], math.nan)


def _rate(free: Trajectory) -> Float[Tensor, "i *c"]:
    """Geometric mean of the factors, from about three quarters of T1 on; a state that stands still has rate 0."""
    kept = [min(3 * T1 // 4, max(T1 - 1, 0)) // free.every for T1 in free.T1s]
    steps = torch.tensor([T1 - start * free.every for T1, start in zip(free.T1s, kept, strict=True)])
    with torch.no_grad():
        pair = torch.stack((free.kept[kept], free.ends))
        first, last = (free.field.step(pair) - pair).flatten(-2).double().norm(dim=-1)
    exponent = (1 / steps.to(first)).reshape(-1, *[1] * (first.ndim - 1))
    rate = torch.where(first > 0, (last / first) ** exponent, torch.zeros_like(first))
    enough = (torch.tensor(free.T1s) >= 2).to(rate.device).reshape(exponent.shape)
    return torch.where(enough, rate, math.nan)


def _distinct(s: Float[Tensor, "*r b n"]) -> Int[Tensor, "*r"]:
    """Samples whose end state is not that of one before them."""
    gaps = torch.cdist(s, s, compute_mode="donot_use_mm_for_euclid_dist")
    same = gaps <= SAME * s.norm(dim=-1, keepdim=True)
    return (~same.tril(-1).any(-1)).sum(-1)
