"""The projection of a convergent energy transformer: token_norm on the tokens, the identity on the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.systems.base import AbstractSystem
from gradbench.systems.tokens import join, token_norm, token_norm_jvp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AbstractProjectedTokens(AbstractSystem):
    """s <- Pi(s + eps F(s)): tokens keep mean 0 and standard deviation 1. Pi' is symmetric.

    Pi undoes every force along a token, so w and the damping decide the length of a step, not the fixed point.
    Beyond eps (2 w + c) = 1 a step turns the old token around.
    """

    def project(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        return join(token_norm(part["z"]), part["y"])

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(v)
        return join(token_norm_jvp(self.split(u)["z"], part["z"]), part["y"])

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self.project_jvp(u, a)  # symmetric
