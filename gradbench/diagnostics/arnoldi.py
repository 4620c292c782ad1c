"""Leading eigenvalues and linear solves of a map M that is known by its products v -> M v only, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Complex, Float, Int
    from torch import Tensor

    Product = Callable[[Tensor], Tensor]
    Order = Callable[[Tensor], Tensor]  # of eigenvalues, a real number each: the largest is wanted

CLOSED = 500  # times the round-off of |M v|: if orthogonalisation leaves less of M v, the space is invariant
PATIENCE = 10  # products between two looks at the eigenvalues


@dataclass(frozen=True, eq=False)
class Krylov:
    """An orthonormal basis of span{v, M v, M^2 v ...} and M in it: M V_m = V_{m+1} H, sample by sample."""

    basis: Float[Tensor, "m+1 *r b n"]
    H: Float[Tensor, "*r b m+1 m"]
    dims: Int[Tensor, "*r b"]  # of the space of each sample: below m where the space is invariant under M

    def parts(self) -> Iterator[tuple[Int[Tensor, "k"], Float[Tensor, "k d+1 d"]]]:
        """For every d: the places of the samples whose spaces have d dimensions, and their H in float64 on the CPU.

        A sample whose H is not finite is left out.
        """
        H, dims = self.H.flatten(0, -3).double().cpu(), self.dims.flatten().cpu()
        dims = torch.where(H.isfinite().all(-1).all(-1), dims, torch.zeros_like(dims))
        for d in dims.unique().tolist():
            if d:
                rows = (dims == d).nonzero()[:, 0]
                yield rows, H[rows, : d + 1, :d]

    def sample(self, index: Int[Tensor, "*r"]) -> Krylov:
        """The space of one sample of every row."""
        at = index.to(self.H.device)[..., None]
        H = self.H.take_along_dim(at[..., None, None], -3)
        basis = self.basis.take_along_dim(at[None, ..., None], -2)
        return Krylov(basis, H, self.dims.take_along_dim(at, -1))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One eigenvalue a sample, with the share of its modulus that the Krylov space leaves open."""

    values: Complex[Tensor, "*b"]
    residual: Float[Tensor, "*b"]  # |M y - value y| / |value|, |y| = 1


def krylov(product: Product, v: Float[Tensor, "*r b n"], m: int, known: Krylov | None = None) -> Krylov:
    """m steps of Arnoldi from v, orthogonalised twice, in the dtype of v; those of a `known` space are not repeated.

    v must not be zero.
    """
    basis, H = v.new_zeros(m + 1, *v.shape), v.new_zeros(*v.shape[:-1], m + 1, m)
    dims = torch.full(v.shape[:-1], m, device=v.device)
    tiny, first = torch.finfo(v.dtype).tiny, 0
    basis[0] = v / v.norm(dim=-1, keepdim=True)
    if known is not None:
        first = known.H.shape[-1]
        basis[: first + 1], H[..., : first + 1, :first] = known.basis, known.H
        dims = torch.where(known.dims < first, known.dims, dims)
    for k in range(first, m):
        w = product(basis[k])
        size = w.norm(dim=-1)
        for _ in range(2):  # a single time leaves round-off of the size of |M v| / |w| along the basis
            h = torch.einsum("k...n,...n->...k", basis[: k + 1], w)
            w = w - torch.einsum("k...n,...k->...n", basis[: k + 1], h)
            H[..., : k + 1, k] += h
        left = w.norm(dim=-1)
        closed = left <= CLOSED * torch.finfo(v.dtype).eps * size
        dims = torch.where(closed, dims.clamp(max=k + 1), dims)
        H[..., k + 1, k] = torch.where(closed, torch.zeros_like(left), left)
        basis[k + 1] = torch.where(closed[..., None], torch.zeros_like(w), w / left.clamp_min(tiny)[..., None])
    return Krylov(basis, H, dims)


def leading(
    product: Product,
    v: Float[Tensor, "*r b n"],
    orders: Sequence[Order] = (torch.abs,),
    most: int = 160,
    tol: float = 1e-8,
) -> tuple[list[Spectrum], Krylov]:
    """For every order the eigenvalue of M with the largest order, of each sample, by Arnoldi from v; and the space.

    `v` is a random start. The order |.| gives the spectral radius, the real part the rightmost eigenvalue. The space
    doubles until all residuals are below `tol`, or until it has `most` dimensions, or n, where it is exact. A start
    without a component along an eigenvector does not see this eigenvector.
    Arnoldi 1951; Saad, Numerical Methods for Large Eigenvalue Problems, ch. 6.
    """
    n, m, space = v.shape[-1], 2 * PATIENCE, None
    while True:
        m = min(m, n, most)
        space = krylov(product, v, m, space)
        spectra = [ritz(space, order) for order in orders]
        if all(bool((s.residual <= tol).all()) for s in spectra) or m in (n, most):
            return spectra, space
        m *= 2


def ritz(space: Krylov, order: Order) -> Spectrum:
    """The eigenvalue of H with the largest `order`, of each sample; NaN where H is not finite."""
    values = torch.full((space.dims.numel(),), torch.nan, dtype=torch.complex128)
    residual = values.real.clone()
    for rows, H in space.parts():
        lambdas, vectors = torch.linalg.eig(H[:, :-1])
        k = order(lambdas).argmax(-1, keepdim=True)
        values[rows] = lambdas.take_along_dim(k, -1)[:, 0]
        left = H[:, -1, -1] * vectors[:, -1].take_along_dim(k, -1)[:, 0].abs()
        residual[rows] = left / values[rows].abs().clamp_min(1e-300)
    return Spectrum(values.reshape(space.dims.shape), residual.reshape(space.dims.shape))


def outermost(space: Krylov, orders: Sequence[Order]) -> list[Spectrum]:
    """For every order the eigenvalue of the worst sample of each row, with its residual.

    Eigenvectors, which the residual needs, are taken of the worst sample only.
    """
    values = space.H.new_full(space.H.shape[:-2] + space.H.shape[-1:], torch.nan, dtype=torch.complex128, device="cpu")
    flat = values.view(-1, values.shape[-1])
    for rows, H in space.parts():
        flat[rows, : H.shape[-1]] = torch.linalg.eigvals(H[:, :-1])
    spectra = []
    for order in orders:
        worst = order(values).nan_to_num(nan=-math.inf).amax(-1).argmax(-1)
        of_worst = ritz(space.sample(worst), order)
        spectra.append(Spectrum(of_worst.values[..., 0], of_worst.residual[..., 0]))
    return spectra


def condition(space: Krylov) -> Float[Tensor, "*r b"]:
    """A lower bound of the condition number of 1 - M, of each sample: the condition number on the Krylov space.

    The extreme singular values of (1 - M) V_m, which H holds, lie between those of 1 - M.
    """
    bound = torch.full((space.dims.numel(),), torch.nan, dtype=torch.float64)
    for rows, H in space.parts():
        values = torch.linalg.svdvals(torch.eye(*H.shape[-2:], dtype=H.dtype) - H)
        bound[rows] = values[:, 0] / values[:, -1]
    return bound.reshape(space.dims.shape)


def singular(
    jvp: Product, vjp: Product, v: Float[Tensor, "*r b n"], most: int = 160
) -> tuple[Float[Tensor, "*r b"], Float[Tensor, "*r b"]]:
    """Largest and smallest singular value of M, of each sample, from the Krylov space of M^T M.

    Exact where n <= `most`. Otherwise the largest is a lower bound that converges fast, and the smallest an upper
    bound that may not converge: their ratio is then a lower bound of the condition number.
    """
    space = krylov(lambda v: vjp(jvp(v)), v, min(v.shape[-1], most))
    ends = torch.full((space.dims.numel(), 2), torch.nan, dtype=torch.float64)
    for rows, H in space.parts():
        squares = torch.linalg.eigvalsh(0.5 * (H[:, :-1] + H[:, :-1].mT))
        ends[rows] = squares[:, [-1, 0]].clamp_min(0).sqrt()
    largest, smallest = ends.mT.reshape(2, *space.dims.shape)
    return largest, smallest


def gmres(
    product: Product, g: Float[Tensor, "*r b n"], tol: float = 1e-12, m: int = 60, restarts: int = 20
) -> Float[Tensor, "*r b n"]:
    """x with M x = g of each sample: least |g - M x| over a Krylov space of m, restarted.

    Stops at |g - M x| <= tol |g|, or after the last restart: the caller checks the residual. A sample whose g is
    zero has x = 0. Saad & Schultz 1986.
    """
    x, size = torch.zeros_like(g), g.norm(dim=-1)
    for _ in range(restarts):
        r = g - product(x)
        left = r.norm(dim=-1)
        done = left <= tol * size
        if bool(done.all()):
            break
        safe = torch.where((left > 0)[..., None], r, torch.ones_like(r))  # the space of a solved sample is not used
        space = krylov(product, safe, min(m, g.shape[-1]))
        y = torch.zeros(g.shape[:-1].numel(), space.H.shape[-1], dtype=torch.float64)
        for rows, H in space.parts():
            e = H.new_zeros(len(H), H.shape[-2], 1)
            e[:, 0, 0] = left.flatten().cpu()[rows].double()
            y[rows, : H.shape[-1]] = torch.linalg.lstsq(H, e).solution[..., 0]
        moved = torch.einsum("k...n,...k->...n", space.basis[:-1], y.reshape(*g.shape[:-1], -1).to(g))
        x = torch.where(done[..., None], x, x + moved)
    return x
