"""The deep certificate: what the Jacobian at s* says, as exactly as can be of one problem, or cheaply of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.arnoldi import condition, leading, outermost, singular
from gradbench.diagnostics.certificate import Certificate, Deep, certify
from gradbench.dynamics.krylov import gmres, krylov_space
from gradbench.dynamics.linear import DENSE, by_lu, dense

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from gradbench.dynamics.krylov import Krylov, Product
    from gradbench.dynamics.linear import Linear
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.vocabulary.status import Thresholds

KRYLOV = 2**23  # entries that a Krylov basis may have: a large batch gets a smaller space, and a larger `open`
SAME = 1e-3  # |s - s'| / |s| of two end states that count as one
SPACE = 32  # dimensions of the Krylov spaces of a batch: up to this size small matrices are cheap, on a CPU too
PAIRS = 16  # products with J_G^T J_G, whose largest eigenvalue converges first
FEW = 40  # the same for a single problem, at most
SYMMETRIC = 1e-12  # |A|_F / |J|_F in float64 up to which J^-1 g is J^-T g, and needs no second solve
SOLVED = 1e-2  # |g - M a| / |g| that the solves of a batch may leave: above, there is no angle


class LeadingEigenvalues(NamedTuple):
    """The eigenvalues of the worst sample, and the Krylov space of all samples."""

    rho: float  # largest |lambda(J_G)|
    rightmost: float  # largest Re lambda(J)
    open: float  # residual of the two eigenvalues, relative
    space: Krylov  # of J_G


class Solutions(NamedTuple):
    """Solutions of the linear systems of `_angle`, and the condition of their matrix 1 - J_G, sample by sample."""

    condition: Float[Tensor, "b"]
    response: Float[Tensor, "b n"]
    credit: Float[Tensor, "b n"]  # before the projection


@dataclass(frozen=True)
class DeepCertificate:
    """Evidence about s* of one problem at one T1. Eigenvalues and singular values are those of the worst sample."""

    free: Certificate  # the one that every cell has
    residual_rate: float  # factor of |s_{t+1} - s_t| a step, over the last quarter of T1: 1 is a plateau; NaN: no steps
    rho: float  # largest |lambda(J_G)|
    rightmost: float  # largest Re lambda(J)
    open: float  # residual of the two eigenvalues, relative: small where the Krylov space has found them
    sigma_max: float  # largest singular value of J_G: above 1, perturbations may grow before they fall
    condition: float  # of I - J_G
    condition_exact: bool  # from dense matrices; else a lower bound from a Krylov space
    end_states: int  # how many different end states the samples have
    distance: float  # |s* - fixed point| / |s*| at most, residual / (1 - rho) for a normal J_G; inf where rho >= 1
    angle: float  # degrees between J^-1 g and J^-T g, g = dC/ds: the asymmetry that credit feels

    @property
    def stable(self) -> bool:
        """Whether perturbations of s* fall."""
        return self.rho < 1


def certify_deep(free: Trajectory, thresholds: Thresholds, seed: int) -> DeepCertificate:
    """The deep certificate of a trajectory of one T1, of one problem in float64; `seed` draws the starts.

    Raises ValueError for several T1. A diverged phase has NaN for all that needs the Jacobian.
    """
    if len(free.T1s) != 1:
        raise ValueError(f"a deep certificate is of one T1, not of {free.T1s}")
    ((shallow,),) = certify(free, thresholds, [seed])
    s = free.ends[0]
    rate, distinct = float(_rate(free)[0]), int(_distinct(s))
    if shallow.judgement.diverged or not bool(s.isfinite().all()):
        nan = math.nan
        return DeepCertificate(shallow, rate, nan, nan, nan, nan, nan, False, distinct, math.inf, nan)
    step, exact = free.field.step_at(s[None]), s.numel() * s.shape[-1] <= DENSE
    v = normal(Streams(seed)["krylov"], tuple(s.shape)).to(s)
    most = max(2, min(160, KRYLOV // s.numel()))
    eigenvalues = _eigenvalues(free, step, v, most)
    if exact:
        solutions = _by_matrices(free, step)
    else:
        symmetric = shallow.antisymmetry <= SYMMETRIC and not free.field.system.projects
        solutions = _by_products(free, step, v, most, eigenvalues.space, symmetric=symmetric)
    return DeepCertificate(
        free=shallow,
        residual_rate=rate,
        rho=eigenvalues.rho,
        rightmost=eigenvalues.rightmost,
        open=eigenvalues.open,
        sigma_max=float(singular(*_products(step), v, min(most, FEW))[0].max()),
        condition=float(solutions.condition.max()),
        condition_exact=exact,
        end_states=distinct,
        distance=_distance(shallow.residual, eigenvalues.rho),
        angle=float(_angle(free, solutions.response[None], solutions.credit[None])[0]),
    )


def _products(linear: Linear) -> tuple[Product, Product]:
    """M v and M^T a of states (b, n), for a linearisation at states (1, b, n)."""
    return lambda v: linear.jvp(v[None])[0], lambda a: linear.vjp(a[None])[0]


def _eigenvalues(free: Trajectory, step: Linear, v: Float[Tensor, "b n"], most: int) -> LeadingEigenvalues:
    """By Arnoldi from v in at most `most` dimensions; `step` is J_G."""
    field = free.field
    (modulus, right), space = leading(_products(step)[0], v, (torch.abs, torch.real), most)
    rightmost = (right.values.real - 1) / field.knobs.eps
    left = right.residual * (right.values / (right.values - 1)).abs()  # of lambda(J), which is smaller
    if field.system.projects:  # then J_G is not 1 + eps J, and the eigenvalues of J do not follow from those of J_G
        (right,), _ = leading(_products(field.at(free.ends))[0], v, (torch.real,), most)
        rightmost, left = right.values.real, right.residual
    rho, open_ = modulus.values.abs().max(), torch.maximum(modulus.residual, left).max()
    return LeadingEigenvalues(float(rho), float(rightmost.max()), float(open_), space)


def _by_matrices(free: Trajectory, step: Linear) -> Solutions:
    """Exact, from the matrix of every sample."""
    s, g = free.ends[0], free.cost_slope[0]
    nudge = free.field.project_jvp(_ahead(free)[0], g)
    M = torch.eye(s.shape[-1]).to(s) - dense(step, s[None])[0]
    return Solutions(torch.linalg.cond(M), by_lu(M, nudge), by_lu(M.mT, g))


def _by_products(
    free: Trajectory, step: Linear, v: Float[Tensor, "b n"], most: int, space: Krylov, *, symmetric: bool
) -> Solutions:
    """From Krylov spaces: a lower bound of the condition, and two solutions, which are equal for a symmetric J_G."""
    (jvp, vjp), g = _products(step), free.cost_slope[0]
    largest, smallest = singular(lambda v: v - jvp(v), lambda a: a - vjp(a), v, min(most, FEW))
    number = torch.maximum(condition(space), largest / smallest)  # either is a lower bound
    credit = _solution(vjp, g, 1e-6)
    response = credit if symmetric else _solution(jvp, free.field.project_jvp(_ahead(free)[0], g), 1e-6)
    return Solutions(number, response, credit)


def deepen(
    certificates: list[list[Certificate]], free: Trajectory, thresholds: Thresholds, seeds: Sequence[int]
) -> list[list[Certificate]]:
    """The certificates of every T1 and cell of a stack, each with a deep one: all samples of all T1 and cells at once.

    In the dtype of the run, that of the Krylov bases, too; only the small matrices are float64. One Krylov space of J_G
    gives the condition and, where the system does not project, both eigenvalues.
    """
    rows = [i for i, row in enumerate(certificates) if not all(c.judgement.diverged for c in row)]
    if not rows:
        return certificates
    free = free.at(tuple(free.T1s[i] for i in rows))
    columns = {name: value.reshape(len(rows), -1).tolist() for name, value in _evidence(free, seeds).items()}
    deepened = list(certificates)
    for row, i in enumerate(rows):
        spectra = [{name: column[row][c] for name, column in columns.items()} for c in range(len(seeds))]
        pairs = zip(certificates[i], spectra, strict=True)
        deepened[i] = [c if c.judgement.diverged else _deepened(c, v, thresholds) for c, v in pairs]
    return deepened


def _deepened(certificate: Certificate, spectrum: dict[str, Any], thresholds: Thresholds) -> Certificate:
    distance = _distance(certificate.residual, spectrum["rho_arnoldi"])
    return certificate.deepened(Deep(distance=distance, **spectrum), thresholds)


def _distance(residual: float, rho: float) -> float:
    return residual / (1 - rho) if rho < 1 else math.inf


def _evidence(free: Trajectory, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The fields of `Deep` but the distance, each by T1 and cell."""
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
    space = krylov_space(lambda v: forward(v)[0], v, min(SPACE, ends.shape[-1]))
    modulus, right = outermost(space, (torch.abs, torch.real))
    evidence = {
        "residual_rate": _rate(free),
        "rho_arnoldi": modulus.values.abs(),
        "spectrum_open": torch.maximum(modulus.residual, right.residual),
        "sigma_max": singular(lambda v: v, lambda v: both(v)[0], v, PAIRS)[0].amax(-1),
        "condition": condition(space).amax(-1),
        "end_states": _distinct(ends),
        "angle": _angle(
            free,
            _solution(lambda v: forward(v)[0], field.project_jvp(_ahead(free), g), SOLVED, SPACE, 1),
            _solution(lambda a: backward(a)[0], g, SOLVED, SPACE, 1),
        ),
    }
    if not field.system.projects:
        evidence["rightmost"] = (right.values.real.to(ends.device) - 1) / field.knobs.eps.double()
    return evidence


def _angle(free: Trajectory, response: Float[Tensor, "*r b n"], credit: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r"]:
    """Degrees over all samples between r and Pi'^T a, where (1 - J_G) r = Pi' g and (1 - J_G^T) a = g.

    r is the response of s* to a nudge, Pi'^T a the credit that the reference goes by. Where the system does not project
    these are J^-1 g and J^-T g, and the angle is how wrong a rule is that goes by J in place of J^T.
    """
    pair = torch.stack((response.double(), free.field.project_vjp(_ahead(free), credit).double())).flatten(-2)
    a, b = pair / pair.norm(dim=-1, keepdim=True)
    return (2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))).rad2deg()  # Kahan: exact near 0, unlike acos


def _ahead(free: Trajectory) -> Float[Tensor, "i *c b n"]:
    """s* + eps F(s*), which the next step projects."""
    with torch.no_grad():
        return free.ends + free.field.step_size * free.field.force(free.ends)


def _solution(
    product: Product, right: Float[Tensor, "*r b n"], tol: float, m: int = 60, restarts: int = 20
) -> Float[Tensor, "*r b n"]:
    """x with (1 - M) x = right; a row is NaN where one of its samples leaves more than `tol` of its right side."""
    x = gmres(lambda v: v - product(v), right, tol / 10, m, restarts)
    left = (right - x + product(x)).norm(dim=-1)
    wrong = ~(left <= tol * right.norm(dim=-1)).all(-1)
    return x.masked_fill(wrong[..., None, None], math.nan)


def _rate(free: Trajectory) -> Float[Tensor, "i *c"]:
    """Geometric mean factor of |s_{t+1} - s_t| a step, over about the last quarter of T1.

    0 for a state that stands still, NaN where there are fewer than two steps.
    """
    stored = [min(3 * T1 // 4, max(T1 - 1, 0)) // free.every for T1 in free.T1s]
    steps = torch.tensor([T1 - start * free.every for T1, start in zip(free.T1s, stored, strict=True)])
    with torch.no_grad():
        pair = torch.stack((free.states[stored], free.ends))
        first, last = (free.field.project(free.field.ahead(pair)) - pair).flatten(-2).double().norm(dim=-1)
    exponent = (1 / steps.to(first)).reshape(-1, *[1] * (first.ndim - 1))
    rate = torch.where(first > 0, (last / first) ** exponent, torch.zeros_like(first))
    enough = (torch.tensor(free.T1s) >= 2).to(rate.device).reshape(exponent.shape)
    return torch.where(enough, rate, math.nan)


def _distinct(s: Float[Tensor, "*r b n"]) -> Int[Tensor, "*r"]:
    """How many different end states there are: samples whose end state is that of no sample before them."""
    gaps = torch.cdist(s, s, compute_mode="donot_use_mm_for_euclid_dist")
    same = gaps <= SAME * s.norm(dim=-1, keepdim=True)
    return (~same.tril(-1).any(-1)).sum(-1)
