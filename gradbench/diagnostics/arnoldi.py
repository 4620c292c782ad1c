"""Leading eigenvalues and linear solves of a map that is given by its product alone, each sample by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Complex, Float
    from torch import Tensor

    Product = Callable[[Tensor], Tensor]

CLOSED = 1e-13  # of |M v|: what is left after orthogonalisation below this is round-off, and the space invariant
PATIENCE = 10  # products between two looks at the eigenvalues


@dataclass(frozen=True, eq=False)
class Krylov:
    """An orthonormal basis of span{v, M v, M^2 v ...} and M in it: M V_m = V_{m+1} H, sample by sample."""

    basis: Float[Tensor, "m+1 b n"]
    H: Float[Tensor, "b m+1 m"]
    dims: tuple[int, ...]  # of each sample's space: below m where it is invariant under M


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One eigenvalue a sample, with the share of its modulus that the Krylov space leaves open."""

    values: Complex[Tensor, "b"]
    residual: float  # largest |M y - value y| / |value| over samples, |y| = 1
    products: int


def krylov(product: Product, v: Float[Tensor, "b n"], m: int) -> Krylov:
    """m steps of Arnoldi from v, orthogonalised twice. v must be float64 and not zero."""
    b, n = v.shape
    basis, H, dims = v.new_zeros(m + 1, b, n), v.new_zeros(b, m + 1, m), [m] * b
    basis[0] = v / v.norm(dim=-1, keepdim=True)
    for k in range(m):
        w = product(basis[k])
        size = w.norm(dim=-1)
        for _ in range(2):  # once leaves round-off of the size of |M v| / |w| along the basis
            h = torch.einsum("kbn,bn->bk", basis[: k + 1], w)
            w = w - torch.einsum("kbn,bk->bn", basis[: k + 1], h)
            H[:, : k + 1, k] += h
        left = w.norm(dim=-1)
        closed = left <= CLOSED * size
        dims = [min(d, k + 1) if end else d for d, end in zip(dims, closed.tolist(), strict=True)]
        H[:, k + 1, k] = torch.where(closed, torch.zeros_like(left), left)
        basis[k + 1] = torch.where(closed[:, None], torch.zeros_like(w), w / left.clamp_min(1e-300)[:, None])
    return Krylov(basis, H, tuple(dims))


def leading(
    product: Product,
    v: Float[Tensor, "b n"],
    order: Callable[[Tensor], Tensor] = torch.abs,
    most: int = 160,
    tol: float = 1e-8,
) -> Spectrum:
    """The eigenvalue of v -> M v with the largest `order`, of each sample, by Arnoldi from v.

    Shapes: v `(b, n)`, a random start in float64. `order` is |.| for the spectral radius or the real part for the
    rightmost. The space grows, and is taken anew at twice its size, until the residual is below `tol` or it has
    `most` or n dimensions, when it is exact. A start without a component along an eigenvector does not see it.
    Arnoldi 1951; Saad, Numerical Methods for Large Eigenvalue Problems, ch. 6.
    """
    n, m, products = v.shape[-1], 2 * PATIENCE, 0
    while True:
        m = min(m, n, most)
        space, products = krylov(product, v, m), products + m
        values, open_ = _ritz(space, order)
        if open_ <= tol or m in (n, most):
            return Spectrum(values, open_, products)
        m *= 2


def _ritz(space: Krylov, order: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    values, residuals = [], []
    for H, d in zip(space.H.cpu(), space.dims, strict=True):
        lambdas, vectors = torch.linalg.eig(H[:d, :d])
        k = int(order(lambdas).argmax())
        values.append(lambdas[k])
        open_ = H[d, d - 1] * vectors[d - 1, k].abs()
        residuals.append(float(open_ / lambdas[k].abs().clamp_min(1e-300)))
    return torch.stack(values), max(residuals)


def singular(
    jvp: Product, vjp: Product, v: Float[Tensor, "b n"], most: int = 160
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Largest and smallest singular value of M, of each sample, from the Krylov space of M^T M.

    Exact where n <= `most`. Otherwise the largest is a lower bound that converges fast, and the smallest an upper
    bound that may not: their ratio is then a lower bound of the condition number.
    """
    space = krylov(lambda v: vjp(jvp(v)), v, min(v.shape[-1], most))
    squares = [torch.linalg.eigvalsh(_symmetric(H[:d, :d])) for H, d in zip(space.H.cpu(), space.dims, strict=True)]
    ends = torch.stack([torch.stack([s[-1], s[0]]) for s in squares]).clamp_min(0).sqrt()
    return ends[:, 0], ends[:, 1]


def _symmetric(H: Tensor) -> Tensor:
    return 0.5 * (H + H.mT)


def gmres(
    product: Product, g: Float[Tensor, "b n"], tol: float = 1e-12, m: int = 60, restarts: int = 20
) -> Float[Tensor, "b n"]:
    """x with M x = g of each sample: least |g - M x| over a Krylov space of m, restarted.

    Stops at |g - M x| <= tol |g|, or after the last restart: the caller checks what is left. A sample whose g is
    zero has x = 0. Saad & Schultz 1986.
    """
    x, size = torch.zeros_like(g), g.norm(dim=-1)
    for _ in range(restarts):
        r = g - product(x)
        left = r.norm(dim=-1)
        rows = (left > tol * size).nonzero()[:, 0]
        if not len(rows):
            break
        safe = torch.where((left > 0)[:, None], r, torch.ones_like(r))  # a solved sample's space is not used
        space = krylov(product, safe, min(m, g.shape[-1]))
        for i in rows.tolist():
            d = space.dims[i]
            e = g.new_zeros(d + 1, 1)
            e[0] = left[i]
            y = torch.linalg.lstsq(space.H[i, : d + 1, :d], e).solution[:, 0]
            x[i] += y @ space.basis[:d, i]
    return x
