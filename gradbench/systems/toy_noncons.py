"""The non-conservative toy: tokens in a well around a bias, coupled by a force that has no energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.errors import UserError
from gradbench.systems.attention import attend, attend_jvp, attend_saved, attend_vjp, heads, merge, outer
from gradbench.systems.base import AbstractDrivenSystem, ClosedForms, Data, Params, Saved
from gradbench.systems.fused_toys import AbstractFusedAttention
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@final
@dataclass(frozen=True)
class ToyNoncons(AbstractFusedAttention, ClosedForms, AbstractDrivenSystem):
    """Non-conservative toy: attention with a free value matrix, a force that has no energy.

    F = -z + b + sigma attn(z) WO - c z,   attn = softmax(q k^T / sqrt(h)) v in H heads
    """

    name: ClassVar[str] = "toy_noncons"
    source: ClassVar[str] = "transformer attention as a force; Scurria et al. 2026, arXiv:2602.03670"

    heads: int = 4  # H

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.D % self.heads:
            raise UserError(f"{self.name}: D = {self.D} is not a multiple of heads = {self.heads}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        square = (self.D, self.D)
        return {"WQ": square, "WK": square, "WV": square, "WO": square, "b": (self.D,)}

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return self._well(context, self.split(s)["z"], knobs)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        saved = attend_saved(*self._heads(theta, self.split(s)["z"]))
        return (knobs.sigma * (merge(attend(saved)) @ theta["WO"])).flatten(-2)

    def _heads(self, theta: Params, z: Tensor) -> list[Tensor]:
        return [heads(z @ theta[w], self.heads) for w in ("WQ", "WK", "WV")]

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        well = context["input"] - (1 + knobs.damp) * self.split(s)["z"]
        return well.flatten(-2) + self.swirl(theta, x, context, s, knobs)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z = self.split(s)["z"].contiguous()
        return attend_saved(*self._heads(theta, z)) | {"z": z}

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        moved = attend_jvp(saved, *self._heads(theta, self.split(v)["z"]))
        return (knobs.sigma * (merge(moved) @ theta["WO"])).flatten(-2)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        back = self._back(theta, saved, self.split(a)["z"])
        q, k, v = (part @ theta[w].mT for w, part in back.items())
        return (knobs.sigma * (q + k + v)).flatten(-2)

    def _back(self, theta: Params, saved: Saved, a: Tensor) -> Saved:
        """d<a, attn(z) WO> with q, k and v, heads merged."""
        parts = attend_vjp(saved, heads(a @ theta["WO"].mT, self.heads))
        return {w: merge(part) for w, part in zip(("WQ", "WK", "WV"), parts, strict=True)}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl_jvp(theta, context, saved, v, knobs) - (1 + knobs.damp) * v

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.swirl_vjp(theta, context, saved, a, knobs) - (1 + knobs.damp) * a

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        a = self.split(a)["z"]
        grads = {w: outer(saved["z"], part) for w, part in self._back(theta, saved, a).items()}
        grads["WO"] = outer(merge(attend(saved)), a)
        return {w: knobs.sigma * g for w, g in grads.items()} | {"b": a.sum((-3, -2))}
