"""Convergent energy transformers: tokens z and a reconstruction y that relax together.

There are two attentions, a gradient and the usual one. Each comes with and without the projection
Pi = token_norm on z and the identity on y. E_0, the energy without attention, is written out in `cet_force`.
Its w is 2, and 1/2 in `cet`, whose tokens the projection holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.systems import attention
from gradbench.systems.base import AbstractDrivenSystem, AbstractEnergySystem, AbstractSystem, Data, Params, Saved
from gradbench.systems.cet_attention import AbstractEnergyAttention, AbstractSoftmaxAttention
from gradbench.systems.cet_derivatives import AbstractCet
from gradbench.systems.tokens import join, token_norm, token_norm_jvp
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class _Projected(AbstractSystem):
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


class _EnergyCet(AbstractEnergyAttention, AbstractCet, AbstractEnergySystem):
    """E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        z, y = part["z"], part["y"]
        q, k = self._by_head([z @ theta[w].flatten(0, 1).mT for w in ("WQ", "WK")])
        attended = attention.energy(q, k, self.gamma)
        return self._energy_without_attention(theta, context, z, y, knobs) - knobs.sigma * attended


class _SoftmaxCet(AbstractSoftmaxAttention, AbstractCet, AbstractDrivenSystem):
    """F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy.

    The attention is the swirl: a force on the tokens alone.
    """

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        return self._energy_without_attention(theta, context, part["z"], part["y"], knobs)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        features = self._head_features(context["ahead_in"], part["z"])
        attended = self._attended(self._attend(features), knobs.sigma)
        return self._on_tokens(context["ahead_out"][self._first_head :], attended, part["y"])

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        attended = self._attended_jvp(saved, self._head_features(context["ahead_in"], z), knobs.sigma)
        return self._on_tokens(context["ahead_out"][self._first_head :], attended, y)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        attended = self._attended_vjp(saved, self._head_features(context["back_in"], z), knobs.sigma)
        return self._on_tokens(context["back_out"][self._first_head :], attended, y)

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        *ahead, back = self._cut(z @ context["skew_in"])
        attended = self._attended_jvp(saved, ahead, knobs.sigma), self._attended_vjp(saved, [back], knobs.sigma)
        return self._on_tokens(context["skew_out"], (*attended[0], *attended[1]), y)

    def _fused(self, theta: Params) -> Params:
        """With the matrices of the antisymmetric part: both products read the same direction."""
        import torch

        reading, writing = self._head_weights(theta)
        return super()._fused(theta) | {
            "skew_in": torch.cat([W.mT for W in (*reading, *writing)], -1),
            "skew_out": 0.5 * torch.cat([*writing, *(-W for W in reading)], -2),
        }

    @property
    def _first_head(self) -> int:
        """Features of a token before those of the heads."""
        return self.pixels + self.mem

    def _head_features(self, W: Float[Tensor, "D K"], z: Float[Tensor, "*b N D"]) -> tuple[Tensor, ...]:
        """Features of each kind of head alone."""
        return self._cut(z @ W[:, self._first_head :])

    def _on_tokens(self, W: Float[Tensor, "K D"], attended: tuple[Tensor, ...], y: Tensor) -> Float[Tensor, "*b n"]:
        """A force on the tokens, and none on the pixels."""
        return join(self._returned(W, (), attended), y.new_zeros(y.shape))


@final
@dataclass(frozen=True)
class Cet(_Projected, _EnergyCet):
    """Convergent energy transformer: energy attention, tokens projected after every step.

    E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds,   w = 1/2
    Pi = token_norm on z. With zero biases the hidden tokens are all alike and may settle on a saddle;
    bpos_std > 0 tells them apart.
    """

    name: ClassVar[str] = "cet"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET)"
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 30, "T2": 5, "beta": 0.1, "eps": 0.5, "batch": 128
    }  # fmt: skip
    well: ClassVar[float] = 0.5
    mem_std: ClassVar[float] = 1.0

    img: int = 32
    ch: int = 3
    patch: int = 8
    D: int = 128
    dh: int = 32
    mem: int = 256


@final
@dataclass(frozen=True)
class CetEnergy(_EnergyCet):
    """Transformer whose attention is a gradient: the conservative control.

    E = E_0 - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds
    """

    name: ClassVar[str] = "cet_energy"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET); Hoover et al. 2023 (energy attention)"


@final
@dataclass(frozen=True)
class CetReal(_SoftmaxCet):
    """Transformer with ordinary attention, whose free value and output matrices no energy generates.

    F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy
    """

    name: ClassVar[str] = "cet_real"
    source: ClassVar[str] = "CET with transformer attention; Scurria et al. 2026, arXiv:2602.03670"


@final
@dataclass(frozen=True)
class CetProjected(_Projected, _SoftmaxCet):
    """Transformer with ordinary attention, tokens projected after every step.

    F_z = -dE_0/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_0/dy
    Pi = token_norm on z. Large sigma leaves no fixed point.
    """

    name: ClassVar[str] = "cet_projected"
    source: ClassVar[str] = "CET with transformer attention under the token norm"
    defaults: ClassVar[Mapping[str, float]] = {**AbstractCet.defaults, "T1": 120, "batch": 32}
