"""Eigenvalues and singular values of a map M that is known by its products v -> M v only, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradbench.dynamics.krylov import krylov_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Complex, Float
    from torch import Tensor

    from gradbench.dynamics.krylov import Krylov, Product

    Order = Callable[[Tensor], Tensor]  # of eigenvalues, a real number each: the largest is wanted

PATIENCE = 10  # products between two looks at the eigenvalues


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One eigenvalue a sample, with the share of its modulus that the Krylov space leaves open."""

    values: Complex[Tensor, "*b"]
    residual: Float[Tensor, "*b"]  # |M y - value y| / |value|, |y| = 1


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
        space = krylov_space(product, v, m, space)
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
    space = krylov_space(lambda v: vjp(jvp(v)), v, min(v.shape[-1], most))
    ends = torch.full((space.dims.numel(), 2), torch.nan, dtype=torch.float64)
    for rows, H in space.parts():
        squares = torch.linalg.eigvalsh(0.5 * (H[:, :-1] + H[:, :-1].mT))
        ends[rows] = squares[:, [-1, 0]].clamp_min(0).sqrt()
    largest, smallest = ends.mT.reshape(2, *space.dims.shape)
    return largest, smallest
