"""Convergent energy transformers: tokens z and a reconstruction y that relax together.

E_rest = w |z|^2 - <enc(xbar) + benc + bpos, z> - sum relu(z Wmem)^2
         + 1/2 |y|^2 - <dec(y), z> - <bdec, y>  + 1/2 c |z|^2
with xbar the image outside its mask, enc and dec convolutions whose stride is the patch, and w = 2, or 1/2
where a projection holds the tokens of `cet`. Two attentions, a gradient and the usual one, each with and
without the projection Pi = token_norm on z and the identity on y.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from gradbench import data
from gradbench.errors import UserError
from gradbench.streams import normal
from gradbench.systems.attention import (
    attend,
    attend_jvp,
    attend_vjp,
    attention,
    energy_attention,
    energy_slope,
    energy_slope_jvp,
    heads,
    merge,
    outer,
)
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractSystem,
    ClosedForms,
    Data,
    Knobs,
    Params,
    Saved,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.streams import Streams


@dataclass(frozen=True)
class _Cet(ClosedForms, AbstractSystem):
    """Shapes, data, start, cost and the attention-free part of all four transformers.

    C = 1/2 sum mask (y - x)^2: the reconstruction error of what was hidden.
    """

    per_example: ClassVar[frozenset[str]] = frozenset({"x", "mask"})
    defaults: ClassVar[Mapping[str, Any]] = {
        "s": 1.0, "damp": 0.0, "T1": 100, "T2": 15, "beta": 0.02, "eps": 0.2, "batch": 64
    }  # fmt: skip
    well: ClassVar[float] = 2.0  # w, the weight of |z|^2
    mem_std: ClassVar[float] = 0.3  # of Wmem, in units of 1/sqrt(D); small: keeps the energy bounded below

    img: int = 28  # pixels of a side
    ch: int = 1  # colours
    patch: int = 7  # pixels of a patch's side, and the stride
    D: int = 64  # width of a token
    heads: int = 4  # H
    dh: int = 16  # h, width of a head
    mem: int = 128  # M, memories
    gamma: float = 0.25  # inverse temperature of the energy attention
    mask_ratio: float = 0.5  # share of patches that is hidden
    dataset: str = "fashion_mnist_sample"
    benc_std: float = 0.0
    bpos_std: float = 0.0
    bdec_std: float = 0.0

    def __post_init__(self) -> None:
        if self.img % self.patch:
            raise UserError(f"{self.name}: img = {self.img} is not a multiple of patch = {self.patch}")
        if not 0 <= self.mask_ratio <= 1:
            raise UserError(f"{self.name}: mask_ratio = {self.mask_ratio} is not between 0 and 1")

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        if "x" not in given:
            data.check(self.dataset, self.ch, self.img, batch)

    @property
    def side(self) -> int:
        """Patches along a side; N = side^2."""
        return self.img // self.patch

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"z": (self.side**2, self.D), "y": (self.ch, self.img, self.img)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        kernel = (self.D, self.ch, self.patch, self.patch)
        return {
            "Wenc": kernel,
            "benc": (self.D,),
            "bpos": (self.side**2, self.D),
            "Wdec": kernel,
            "bdec": (self.ch,),
            "Wmem": (self.D, self.mem),
            "WQ": (self.heads, self.dh, self.D),
            "WK": (self.heads, self.dh, self.D),
        }

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, self.ch, self.img, self.img), "mask": (batch, self.ch, self.img, self.img)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "x" in given:
            found |= {"ch": given["x"].shape[-3], "img": given["x"].shape[-1], "dataset": data.GIVEN}
        if "Wenc" in params:
            found |= {"D": params["Wenc"].shape[0], "patch": params["Wenc"].shape[-1]}
        if "WQ" in params:
            found |= {"heads": params["WQ"].shape[0], "dh": params["WQ"].shape[1]}
        if "Wmem" in params:
            found |= {"mem": params["Wmem"].shape[-1]}
        return found

    def init_params(self, rng: Generator) -> Params:
        token = 1 / math.sqrt(self.D)
        std = {
            "Wenc": 0.5 * math.sqrt(2 / (self.ch * self.patch**2)),  # half of Kaiming's
            "Wdec": 0.5 * math.sqrt(2 / (self.ch * self.patch**2)),
            "benc": self.benc_std,
            "bpos": self.bpos_std,
            "bdec": self.bdec_std,
            "Wmem": self.mem_std * token,
            "WQ": token,
            "WK": token,
            "WV": token,
            "WO": 1 / math.sqrt(self.heads * self.dh),
        }
        return {name: normal(rng, shape, std[name]) for name, shape in self.shapes.items()}

    def sample(self, streams: Streams, batch: int) -> Data:
        import torch

        patches = self.side**2
        hidden = torch.rand((batch, patches), generator=streams["mask"], dtype=torch.float64).argsort(-1)
        mask = torch.zeros((batch, patches), dtype=torch.float64)
        mask.scatter_(-1, hidden[:, : round(self.mask_ratio * patches)], 1.0)
        mask = mask.unflatten(-1, (1, self.side, self.side)).expand(-1, self.ch, -1, -1)
        x = (
            {}
            if self.dataset == data.GIVEN
            else {"x": data.images(self.dataset, self.ch, self.img, batch, streams["data"])}
        )
        return x | {"mask": mask.repeat_interleave(self.patch, -1).repeat_interleave(self.patch, -2)}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        seen = x["x"] * (1 - x["mask"])
        z = token_norm(self._patches(seen) @ theta["Wenc"].flatten(1).mT)
        return self._join(z, seen)

    def context(self, theta: Params, x: Data) -> Params:
        seen = self._seen(x)
        return {"input": seen @ theta["Wenc"].flatten(1).mT + theta["benc"] + theta["bpos"]}

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (x["mask"] * (self.split(s)["y"] - x["x"]).square()).sum((-3, -2, -1))

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(s)
        Wdec = theta["Wdec"].flatten(1)
        memory = (z @ theta["Wmem"]).relu() @ theta["Wmem"].mT
        rest = context["input"] + self._patches(y) @ Wdec.mT + 2 * memory - (2 * self.well + knobs.damp) * z
        force_y = self._image(z @ Wdec) + theta["bdec"][:, None, None] - y
        return self._join(rest + knobs.sigma * self._attention(theta, self._attend(theta, z)), force_y)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z, y = self._parts(s)
        return self._attend(theta, z) | {"z": z, "y": self._patches(y), "memory": (z @ theta["Wmem"]).relu()}

    def jvp(self, theta: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs) -> Float[Tensor, "*r b n"]:
        return self._product(theta, saved, v, knobs, self._attention_jvp)

    def vjp(self, theta: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs) -> Float[Tensor, "*r b n"]:
        return self._product(theta, saved, a, knobs, self._attention_vjp)

    def _product(
        self, theta: Params, saved: Saved, v: Tensor, knobs: Knobs, attention: Callable[[Params, Saved, Tensor], Tensor]
    ) -> Tensor:
        """Product with the Hessian of the rest, which is symmetric, and with one side of the attention's Jacobian."""
        z, y = self._parts(v)
        Wdec, Wmem = theta["Wdec"].flatten(1), theta["Wmem"]
        memory = ((z @ Wmem) * (saved["memory"] > 0)) @ Wmem.mT
        rest = self._patches(y) @ Wdec.mT + 2 * memory - (2 * self.well + knobs.damp) * z
        return self._join(rest + knobs.sigma * attention(theta, saved, z), self._image(z @ Wdec) - y)

    def pull(self, theta: Params, x: Data, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs) -> Params:
        z, y = self._parts(a)
        at, memory = saved["z"], saved["memory"]
        token = z.sum(-3)  # everything that enters as a bias, or through the clamped image
        decoder = outer(z, saved["y"]) + outer(at, self._patches(y))
        through = outer(at, (z @ theta["Wmem"]) * (memory > 0)) + outer(z, memory)
        kernel = theta["Wenc"].shape
        attention = self._attention_pull(theta, saved, z)
        return {name: knobs.sigma * g for name, g in attention.items()} | {
            "Wenc": outer(z, self._seen(x)).unflatten(-1, kernel[1:]),
            "benc": token.sum(-2),
            "bpos": token,
            "Wdec": decoder.unflatten(-1, kernel[1:]),
            "bdec": y.sum((-4, -2, -1)),
            "Wmem": 2 * through,
        }

    @abstractmethod
    def _attend(self, theta: Params, z: Float[Tensor, "*b N D"]) -> Saved:
        """What attention and its derivatives need of the tokens."""

    @abstractmethod
    def _attention(self, theta: Params, at: Saved) -> Float[Tensor, "*b N D"]:
        """Its force on the tokens, at sigma = 1."""

    @abstractmethod
    def _attention_jvp(self, theta: Params, at: Saved, v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        """Its Jacobian on a change of the tokens."""

    @abstractmethod
    def _attention_vjp(self, theta: Params, at: Saved, a: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        """Its transposed Jacobian."""

    @abstractmethod
    def _attention_pull(self, theta: Params, at: Saved, a: Float[Tensor, "*r b N D"]) -> Params:
        """d<a, attention>/dtheta by row."""

    def _parts(self, s: Float[Tensor, "*r b n"]) -> tuple[Tensor, Tensor]:
        """Tokens, copied once for the products that all read them, and pixels."""
        part = self.split(s)
        return part["z"].contiguous(), part["y"]

    def _seen(self, x: Data) -> Float[Tensor, "b N P"]:
        return self._patches(x["x"] * (1 - x["mask"]))

    def _patches(self, y: Float[Tensor, "*b ch img img"]) -> Float[Tensor, "*b N P"]:
        cut = y.unflatten(-1, (self.side, self.patch)).unflatten(-3, (self.side, self.patch))
        return cut.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)

    def _image(self, p: Float[Tensor, "*b N P"]) -> Float[Tensor, "*b ch img img"]:
        cut = p.unflatten(-1, (self.ch, self.patch, self.patch)).unflatten(-4, (self.side, self.side))
        return cut.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)

    def _join(self, z: Tensor, y: Tensor) -> Tensor:
        import torch

        return torch.cat((z.flatten(-2), y.flatten(-3)), -1)

    def _rest_energy(self, theta: Params, context: Params, z: Tensor, y: Tensor, knobs: Knobs) -> Tensor:
        decoded = self._patches(y) @ theta["Wdec"].flatten(1).mT
        tokens = (self.well + 0.5 * knobs.damp) * z.square() - (context["input"] + decoded) * z
        memory = (z @ theta["Wmem"]).relu().square()
        pixels = 0.5 * y.square() - theta["bdec"][:, None, None] * y
        return tokens.sum((-2, -1)) - memory.sum((-2, -1)) + pixels.sum((-3, -2, -1))

    def _heads(self, z: Tensor, W: Tensor) -> Tensor:
        return heads(z @ W.flatten(0, 1).mT, self.heads)


@dataclass(frozen=True)
class _Projected(_Cet):
    """s <- Pi(s + eps F(s)): tokens keep mean 0 and standard deviation 1. Pi' is symmetric.

    What pulls a token along itself is taken back by Pi, so w and damping decide the length of a step, not
    the fixed point; beyond eps (2 w + c) = 1 a step turns what is left of a token around.
    """

    def project(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        return self._join(token_norm(part["z"]), part["y"])

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(v)
        return self._join(token_norm_jvp(self.split(u)["z"], part["z"]), part["y"])

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return self.project_jvp(u, a)  # symmetric


@dataclass(frozen=True)
class _EnergyAttention(_Cet, AbstractEnergySystem):
    """E = E_rest - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        z, y = part["z"], part["y"]
        q, k = self._heads(z, theta["WQ"]), self._heads(z, theta["WK"])
        attention = (self.gamma * (q @ k.mT)).logsumexp(-1).sum((-2, -1)) / self.gamma
        return self._rest_energy(theta, context, z, y, knobs) - knobs.sigma * attention

    def _attend(self, theta: Params, z: Float[Tensor, "*b N D"]) -> Saved:
        return energy_attention(self._heads(z, theta["WQ"]), self._heads(z, theta["WK"]), self.gamma)

    def _attention(self, theta: Params, at: Saved) -> Float[Tensor, "*b N D"]:
        return self._tokens(theta, energy_slope(at))

    def _attention_jvp(self, theta: Params, at: Saved, v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        return self._tokens(theta, self._slope_jvp(theta, at, v))

    def _attention_vjp(self, theta: Params, at: Saved, a: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        return self._attention_jvp(theta, at, a)  # a Hessian

    def _attention_pull(self, theta: Params, at: Saved, a: Float[Tensor, "*r b N D"]) -> Params:
        slopes = zip(("WQ", "WK"), self._slope_jvp(theta, at, a), energy_slope(at), strict=True)
        by_width = {w: outer(merge(moved), at["z"]) + outer(merge(slope), a) for w, moved, slope in slopes}
        return {w: g.unflatten(-2, (self.heads, self.dh)) for w, g in by_width.items()}

    def _slope_jvp(self, theta: Params, at: Saved, v: Tensor) -> tuple[Tensor, Tensor]:
        return energy_slope_jvp(at, self.gamma, self._heads(v, theta["WQ"]), self._heads(v, theta["WK"]))

    def _tokens(self, theta: Params, slopes: tuple[Tensor, Tensor]) -> Tensor:
        of_q, of_k = (merge(slope) for slope in slopes)
        return of_q @ theta["WQ"].flatten(0, 1) + of_k @ theta["WK"].flatten(0, 1)


@dataclass(frozen=True)
class _RealAttention(_Cet, AbstractDrivenSystem):
    """F_z = -dE_rest/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_rest/dy."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return super().shapes | {"WV": (self.heads, self.dh, self.D), "WO": (self.D, self.heads * self.dh)}

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        part = self.split(s)
        return self._rest_energy(theta, context, part["z"], part["y"], knobs)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        attention = knobs.sigma * self._attention(theta, self._attend(theta, part["z"]))
        return self._join(attention, part["y"].new_zeros(part["y"].shape))

    def swirl_jvp(
        self, theta: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        return self._join(knobs.sigma * self._attention_jvp(theta, saved, z), y.new_zeros(y.shape))

    def swirl_vjp(
        self, theta: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        return self._join(knobs.sigma * self._attention_vjp(theta, saved, z), y.new_zeros(y.shape))

    def _attend(self, theta: Params, z: Float[Tensor, "*b N D"]) -> Saved:
        return attention(*(self._heads(z, theta[w]) for w in ("WQ", "WK", "WV")))

    def _attention(self, theta: Params, at: Saved) -> Float[Tensor, "*b N D"]:
        return merge(attend(at)) @ theta["WO"].mT

    def _attention_jvp(self, theta: Params, at: Saved, v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        return merge(attend_jvp(at, *(self._heads(v, theta[w]) for w in ("WQ", "WK", "WV")))) @ theta["WO"].mT

    def _attention_vjp(self, theta: Params, at: Saved, a: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
        q, k, v = (part @ theta[w].flatten(0, 1) for w, part in self._back(theta, at, a).items())
        return q + k + v

    def _attention_pull(self, theta: Params, at: Saved, a: Float[Tensor, "*r b N D"]) -> Params:
        by_width = {w: outer(part, at["z"]) for w, part in self._back(theta, at, a).items()}
        pulled = {w: g.unflatten(-2, (self.heads, self.dh)) for w, g in by_width.items()}
        return pulled | {"WO": outer(a, merge(attend(at)))}

    def _back(self, theta: Params, at: Saved, a: Tensor) -> Saved:
        """d<a, attention> with q, k and v, heads merged."""
        parts = attend_vjp(at, heads(a @ theta["WO"], self.heads))
        return {w: merge(part) for w, part in zip(("WQ", "WK", "WV"), parts, strict=True)}


@final
@dataclass(frozen=True)
class Cet(_Projected, _EnergyAttention):
    """Convergent energy transformer: energy attention, tokens projected after every step.

    E = E_rest - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds,   w = 1/2
    Pi = token_norm on z. With zero biases the hidden tokens are all alike and may rest on a saddle;
    bpos_std > 0 tells them apart.
    """

    name: ClassVar[str] = "cet"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET)"
    defaults: ClassVar[Mapping[str, Any]] = {
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
class CetEnergy(_EnergyAttention):
    """Transformer whose attention is a gradient: the conservative control.

    E = E_rest - (sigma / gamma) sum_{h,m} logsumexp_n(gamma q_m . k_n),   F = -dE/ds
    """

    name: ClassVar[str] = "cet_energy"
    source: ClassVar[str] = "Hoier, Kerjan & Scellier 2026 (CET); Hoover et al. 2023 (energy attention)"


@final
@dataclass(frozen=True)
class CetReal(_RealAttention):
    """Transformer with ordinary attention, whose free value and output matrices no energy generates.

    F_z = -dE_rest/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_rest/dy
    """

    name: ClassVar[str] = "cet_real"
    source: ClassVar[str] = "CET with transformer attention; Scurria et al. 2026, arXiv:2602.03670"


@final
@dataclass(frozen=True)
class CetProjected(_Projected, _RealAttention):
    """Transformer with ordinary attention, tokens projected after every step.

    F_z = -dE_rest/dz + sigma WO concat_h softmax(q k^T / sqrt(h)) v,   F_y = -dE_rest/dy
    Pi = token_norm on z. Large sigma leaves no fixed point.
    """

    name: ClassVar[str] = "cet_projected"
    source: ClassVar[str] = "CET with transformer attention under the token norm"
    defaults: ClassVar[Mapping[str, Any]] = {**_Cet.defaults, "T1": 120, "batch": 32}


def token_norm(z: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    """(z - mean) / (std + 1e-5) of each token over its width, with the population's std."""
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, correction=0, keepdim=True) + 1e-5)


def token_norm_jvp(z: Float[Tensor, "*b N D"], v: Float[Tensor, "*b N D"]) -> Float[Tensor, "*b N D"]:
    """Change of token_norm(z) along v, which is its own transpose.

    With p = z - mean and d = std + 1e-5: (v - mean v - p (p . v) / (D std d)) / d.
    """
    p, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    std = z.std(-1, correction=0, keepdim=True)
    d = std + 1e-5
    return (v - p * ((p * v).mean(-1, keepdim=True) / (std * d))) / d
