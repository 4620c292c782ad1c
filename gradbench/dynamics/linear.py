"""The Jacobian of a map at a state, known by its products, and as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import grad

if TYPE_CHECKING:
    from jaxtyping import Float


class Linear:
    """The Jacobian J of a map at a state, from one recorded evaluation.

    J v is taken by reverse mode twice, so that one recording serves both products:
    v -> J v is the gradient of a -> <J^T a, v>, which is linear in a.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], s: Float[Tensor, "*r b n"]) -> None:
        with torch.enable_grad():
            self._s = s.detach().clone().requires_grad_()
            self._f = function(self._s)

    @cached_property
    def _dual(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            a = torch.zeros_like(self._f, requires_grad=True)
            (pulled,) = grad(self._f, self._s, a, create_graph=True)
        return a, pulled

    def vjp(self, a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J^T a."""
        return grad(self._f, self._s, a.expand_as(self._f), retain_graph=True)[0]

    def jvp(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """J v."""
        a, pulled = self._dual
        if not pulled.requires_grad:  # J^T a is constant in a: the map does not depend on s
            return torch.zeros_like(v)
        return grad(pulled, a, v.expand_as(pulled), retain_graph=True)[0]

    @property
    def product(self) -> Callable[[Float[Tensor, "*r b n"]], Float[Tensor, "*r b n"]]:
        """v -> J v for v of the shape of the state. It may read less than the whole map does."""
        return self.jvp

    def antisym(self, v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """A v = 1/2 (J v - J^T v)."""
        return 0.5 * (self.jvp(v) - self.vjp(v))


DENSE = 2**24  # entries of the matrices of all samples up to which a linear map is taken as matrices


def dense(linear: Linear, like: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n n"]:
    """The matrix of a linear map of each sample, from n products M^T e_i, which are its rows."""
    rows = []
    for i in range(like.shape[-1]):
        unit = torch.zeros_like(like)
        unit[..., i] = 1
        rows.append(linear.vjp(unit))
    return torch.stack(rows, -2)


def by_lu(M: Float[Tensor, "*r b n n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
    """x with M x = v of each sample; not finite where M is singular."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # oneMKL's LU on several fails or never returns on some processors (torch 2.15, AMD Zen 5)
    try:
        return torch.linalg.solve_ex(M, v[..., None])[0][..., 0]
    finally:
        torch.set_num_threads(cores)
