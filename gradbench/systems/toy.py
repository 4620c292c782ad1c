"""The two toys: tokens in a well around a bias, coupled by a conservative or by a non-conservative force."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.data.streams import normal
from gradbench.errors import UserError
from gradbench.systems.attention import attend, attend_jvp, attend_saved, attend_vjp, heads, merge, outer
from gradbench.systems.base import (
    SPREAD,
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractSystem,
    ClosedForms,
    Data,
    Params,
    Saved,
)
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams


@dataclass(frozen=True)
class _Toy(AbstractSystem):
    """Start, data and cost of both toys.

    C = 1/2 |flat(s) R - target|^2 / b with a fixed random readout R.
    """

    swirl_block: ClassVar[str | None] = "z"
    mean_cost: ClassVar[bool] = True
    real_only: ClassVar[str | None] = None
    per_example: ClassVar[frozenset[str]] = frozenset({"x0", "target", "drive"})
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 120, "T2": 30, "beta": 0.02, "eps": 0.2, "batch": 8
    }  # fmt: skip

    N: int = 8  # tokens
    D: int = 32  # width of a token
    out: int = 16  # width of the readout
    bias_std: float = field(default=0.0, metadata=SPREAD)  # of b; without both the state collapses or leaves a saddle
    drive_std: float = field(default=0.0, metadata=SPREAD)  # of the input to tokens; > 0 gives WQ and WK a gradient

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"z": (self.N, self.D)}

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        tokens = (batch, self.N, self.D)
        return {"x0": tokens, "R": (self.N * self.D, self.out), "target": (batch, self.out), "drive": tokens}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int]:
        options: dict[str, int] = {}
        if "x0" in given:
            options |= {"N": given["x0"].shape[-2], "D": given["x0"].shape[-1]}
        elif "b" in params:
            options |= {"D": params["b"].shape[-1]}
        if "R" in given:
            options |= {"out": given["R"].shape[-1]}
        return options

    def init_params(self, rng: Generator) -> Params:
        scale = 1 / math.sqrt(self.D)
        return {n: normal(rng, shape, self.bias_std if n == "b" else scale) for n, shape in self.shapes.items()}

    def sample(self, streams: Streams, batch: int) -> Data:
        rng, n = streams["data"], self.N * self.D
        data = {
            "x0": normal(rng, (batch, self.N, self.D), 0.1),
            "R": normal(rng, (n, self.out), 1 / math.sqrt(n)),
            "target": normal(rng, (batch, self.out)),
        }
        if self.drive_std > 0:
            data["drive"] = normal(rng, (batch, self.N, self.D), self.drive_std)
        return data

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x0"].flatten(-2)

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": theta["b"] + x["drive"] if "drive" in x else theta["b"]}

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (s @ x["R"] - x["target"]).square().sum(-1) / s.shape[-2]

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return (s @ x["R"] - x["target"]) @ x["R"].mT / s.shape[-2]

    def _well(self, context: Params, z: Tensor, knobs: Knobs) -> Tensor:
        """Energy of the well around the input, with damping: 1/2 (1 + c) |z|^2 - <input, z>."""
        return (0.5 * (1 + knobs.damp) * z.square() - context["input"] * z).sum((-2, -1))


@final
@dataclass(frozen=True)
class ToyCons(_Toy, ClosedForms, AbstractEnergySystem):
    """Conservative toy: the control on which naive and asymmetric EP must agree.

    F = -z + b + sigma tanh(z S) S^T - c z,   E = 1/2 (1 + c) |z|^2 - <b, z> - sigma sum log cosh(z S)
    """

    name: ClassVar[str] = "toy_cons"
    source: ClassVar[str] = "Hopfield-type energy with tied weights"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"S": (self.D, self.D), "b": (self.D,)}

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        z = self.split(s)["z"]
        h = z @ theta["S"]
        log_cosh = h.logaddexp(-h) - math.log(2)
        return self._well(context, z, knobs) - knobs.sigma * log_cosh.sum((-2, -1))

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z = self.split(s)["z"]
        coupling = (z @ theta["S"]).tanh() @ theta["S"].mT
        return (context["input"] - (1 + knobs.damp) * z + knobs.sigma * coupling).flatten(-2)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z = self.split(s)["z"].contiguous()
        return {"z": z, "t": (z @ theta["S"]).tanh()}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        dz = self.split(v)["z"]
        moved = (1 - saved["t"].square()) * (dz @ theta["S"])
        return (knobs.sigma * (moved @ theta["S"].mT) - (1 + knobs.damp) * dz).flatten(-2)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return self.jvp(theta, context, saved, a, knobs)  # a Hessian

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        z, t, a = saved["z"], saved["t"], self.split(a)["z"]
        S = outer(z, (1 - t.square()) * (a @ theta["S"])) + outer(a, t)
        return {"S": knobs.sigma * S, "b": a.sum((-3, -2))}


@final
@dataclass(frozen=True)
class ToyNoncons(_Toy, ClosedForms, AbstractDrivenSystem):
    """Non-conservative toy: attention with a free value matrix, a force that has no energy.

    F = -z + b + sigma attn(z) WO - c z,   attn = softmax(q k^T / sqrt(h)) v in H heads
    """

    name: ClassVar[str] = "toy_noncons"
    source: ClassVar[str] = "transformer attention as a force; Scurria et al. 2026, arXiv:2602.03670"

    heads: int = 4  # H

    def __post_init__(self) -> None:
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
