"""Krylov spaces and linear solves of a map M that is known by its products v -> M v only, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    Product = Callable[[Tensor], Tensor]

CLOSED = 500  # times the round-off of |M v|: if orthogonalisation leaves less of M v, the space is invariant


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


def krylov_space(product: Product, v: Float[Tensor, "*r b n"], m: int, known: Krylov | None = None) -> Krylov:
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


def least(product: Product, r: Float[Tensor, "*r b n"], m: int) -> Float[Tensor, "*r b n"]:
    """x of the Krylov space span{r, M r ... M^(m-1) r} with the least |r - M x|, of each sample, by m products.

    A sample whose r is zero has x = 0. Saad & Schultz 1986.
    """
    (x,) = least_of_each(product, r, (m,))
    return x


def least_of_each(product: Product, r: Float[Tensor, "*r b n"], sizes: Sequence[int]) -> Iterator[Tensor]:
    """The same of the first m vectors for each of several m, from one Krylov space; none has more than n of them."""
    left, n = r.norm(dim=-1), r.shape[-1]
    safe = torch.where((left > 0)[..., None], r, torch.ones_like(r))  # the space of a zero is not used
    space = krylov_space(product, safe, min(max(sizes), n))
    parts = list(space.parts())
    for m in sizes:
        y = torch.zeros(r.shape[:-1].numel(), space.H.shape[-1], dtype=torch.float64)
        for rows, whole in parts:
            H = whole[:, : m + 1, :m]
            e = H.new_zeros(len(H), H.shape[-2], 1)
            e[:, 0, 0] = left.flatten().cpu()[rows].double()
            y[rows, : H.shape[-1]] = torch.linalg.lstsq(H, e).solution[..., 0]
        yield torch.einsum("k...n,...k->...n", space.basis[:-1], y.reshape(*r.shape[:-1], -1).to(r))


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
        done = (left <= tol * size) | ~left.isfinite()  # what has overflowed is not solved by another space
        if bool(done.all()):
            break
        x = torch.where(done[..., None], x, x + least(product, r, min(m, g.shape[-1])))
    return x


def bicgstab(product: Product, g: Float[Tensor, "*r b n"]) -> Iterator[Float[Tensor, "*r b n"]]:
    """x with M x = g of each sample after 1, 2 ... iterations from 0, by two products each. van der Vorst 1992.

    A sample whose residual is round-off stays where it is. There is no look-ahead: where the recursion breaks down, an
    iteration is a step along the residual.
    """
    x, r, p = torch.zeros_like(g), g, g
    least, rho = torch.finfo(g.dtype).eps * g.norm(dim=-1, keepdim=True), _dot(g, g)
    while True:
        v = product(p)
        alpha = _ratio(rho, _dot(g, v))
        half = r - alpha * v
        t = product(half)
        omega = _ratio(_dot(t, half), _dot(t, t))
        moving = r.norm(dim=-1, keepdim=True) > least
        x = torch.where(moving, x + alpha * p + omega * half, x)
        r = torch.where(moving, half - omega * t, r)
        before, rho = rho, _dot(g, r)
        p = torch.where(moving, r + _ratio(rho, before) * _ratio(alpha, omega) * (p - omega * v), p)
        yield x


def _dot(a: Float[Tensor, "*r b n"], b: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b 1"]:
    return (a * b).sum(-1, keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
