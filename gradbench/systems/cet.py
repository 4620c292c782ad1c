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
from collections.abc import Collection, Mapping, Sequence
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
    outer,
    side_by_side,
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

ALIGNED = 32  # what the length of a row should be a multiple of: measured a seventh less for a compiled free step


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

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, Any]:
        """ch and img of a dataset that the default sizes cannot show, and the patch closest to the default."""
        dataset = named.get("dataset", cls.dataset)
        if dataset not in data.SHAPES or data.fits(dataset, cls.ch, cls.img):
            return {}
        ch, img, _ = data.SHAPES[dataset]
        side = named.get("img", img)
        # 1 divides every img, so that no patch has to be farther from the default than 1 is
        patches = [patch for patch in range(1, 2 * cls.patch) if side % patch == 0]
        return {"ch": ch, "img": img, "patch": min(patches, key=lambda patch: abs(patch - cls.patch))}

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
        return {"input": self._seen(x) @ theta["Wenc"].flatten(1).mT + theta["benc"] + theta["bpos"]} | self._fused(
            theta
        )

    def _fused(self, theta: Params) -> Params:
        """Weights that meet the same operand, side by side: one product where there would be five.

        `ahead` takes tokens to pixels, memories and heads, and what came of these back to tokens; `back` is its
        transpose. Spare rows of zeros give the way back a width that products are fast at.
        """
        import torch

        rest = [theta["Wdec"].flatten(1), theta["Wmem"]]
        returned = [rest[0].mT, 2 * rest[1].mT]
        ahead, back = self._head_weights(theta)
        spare = -sum(W.shape[0] for W in (*returned, *ahead)) % ALIGNED
        return {
            "ahead_in": torch.cat([*rest, *(W.mT for W in back)], -1),
            "ahead_out": torch.cat([*returned, *ahead, theta["Wmem"].new_zeros((spare, self.D))], -2),
            "back_in": torch.cat([*rest, *(W.mT for W in ahead)], -1),
            "back_out": torch.cat([*returned, *back], -2),
        }

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (x["mask"] * (self.split(s)["y"] - x["x"]).square()).sum((-3, -2, -1))

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        part = self.split(s)
        return self._join(part["z"].new_zeros(part["z"].shape), x["mask"] * (part["y"] - x["x"]))

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(s)
        decoded, memory, *projected = self._into(z, context["ahead_in"])
        attended = self._attended(self._attend(projected), knobs.sigma)
        tokens = context["input"] + self._out((self._patches(y), memory.relu()), attended, context["ahead_out"])
        return self._join(self._pulled_back(tokens, z, knobs), self._image(decoded) + theta["bdec"][:, None, None] - y)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        z, y = self._parts(s)
        # F is linear in the pixels, so no product needs what the tokens decode to
        memory, *projected = self._into(z, context["ahead_in"], skip=self.ch * self.patch**2)
        return self._attend(projected) | {"z": z, "y": y, "memory": memory.relu()}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        decoded, memory, *projected = self._into(z, context["ahead_in"])
        attended = self._attended_jvp(saved, projected, knobs.sigma)
        flat = (self._patches(y), memory * (saved["memory"] > 0))
        tokens = self._pulled_back(self._out(flat, attended, context["ahead_out"]), z, knobs)
        return self._join(tokens, self._image(decoded) - y)

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        moved, decoded = self._moved(context, saved, z, y, knobs)
        return self._returned(context, z, y, moved, decoded, knobs)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        z, y = self._parts(a)
        return self._pulled(theta, x, saved, z, y, self._moved(context, saved, z, y, knobs)[0], knobs)

    def backward(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Params]:
        z, y = self._parts(a)
        moved, decoded = self._moved(context, saved, z, y, knobs)
        grads = self._pulled(theta, x, saved, z, y, moved, knobs)
        return self._returned(context, z, y, moved, decoded, knobs), grads

    def _moved(
        self, context: Params, saved: Saved, z: Tensor, y: Tensor, knobs: Knobs
    ) -> tuple[Float[Tensor, "*r b N K"], Tensor]:
        """Credits of pixels, memories and heads, side by side, and of the image."""
        decoded, memory, *projected = self._into(z, context["back_in"])
        by_head = self._attended_vjp(saved, projected, knobs.sigma)
        return side_by_side((self._patches(y), memory * (saved["memory"] > 0)), by_head), decoded

    def _returned(
        self, context: Params, z: Tensor, y: Tensor, moved: Tensor, decoded: Tensor, knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        tokens = self._pulled_back(moved @ context["back_out"], z, knobs)
        return self._join(tokens, self._image(decoded) - y)

    def _pulled_back(self, tokens: Tensor, z: Float[Tensor, "*b N D"], knobs: Knobs) -> Float[Tensor, "*b N D"]:
        """With the pull of the well, tokens - (2 w + c) z."""
        return tokens.addcmul(z, 2 * self.well + knobs.damp, value=-1)

    def _pulled(
        self, theta: Params, x: Data, saved: Saved, z: Tensor, y: Tensor, moved: Tensor, knobs: Knobs
    ) -> Params:
        """<a, W f(W' z)>: W' meets the tokens and what moved, W the credits and what was handed on."""
        flat = (self._patches(saved["y"]), saved["memory"], self._seen(x))
        handed_on = side_by_side(flat, self._attended(saved, knobs.sigma))
        inner, outside = outer(saved["z"], moved), outer(z, handed_on)
        width, pixels = self.heads * self.dh, self.ch * self.patch**2
        by_z, by_a = (
            g.split([*sizes, *[width] * ((g.shape[-1] - sum(sizes)) // width)], -1)
            for g, sizes in ((inner, [pixels, self.mem]), (outside, [pixels, self.mem, pixels]))
        )
        token, kernel = z.sum(-3), theta["Wenc"].shape  # everything that enters as a bias is a sum of tokens
        return self._head_grads(by_z[2:], by_a[3:]) | {
            "Wenc": by_a[2].unflatten(-1, kernel[1:]),
            "benc": token.sum(-2),
            "bpos": token,
            "Wdec": (by_z[0] + by_a[0]).unflatten(-1, kernel[1:]),
            "bdec": y.sum((-4, -2, -1)),
            "Wmem": 2 * (by_z[1] + by_a[1]),
        }

    def _into(self, z: Float[Tensor, "*b N D"], W: Float[Tensor, "D K"], skip: int = 0) -> list[Tensor]:
        """Tokens before pixels, memories and each kind of head, the first columns skipped."""
        width, pixels = self.heads * self.dh, self.ch * self.patch**2
        kinds = (W.shape[-1] - pixels - self.mem) // width
        sizes = [pixels - skip, self.mem, *[width] * kinds]
        return list((z @ W[:, skip:]).split(sizes if skip < pixels else sizes[1:], -1))

    def _out(
        self, flat: tuple[Tensor, ...], by_head: tuple[Tensor, ...], W: Float[Tensor, "K D"]
    ) -> Float[Tensor, "*b N D"]:
        spare = W.shape[-2] - sum(x.shape[-1] for x in flat) - self.heads * self.dh * len(by_head)
        return side_by_side(flat, by_head, spare) @ W

    @abstractmethod
    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        """Weights (Hh, D) of what attention hands to the tokens, and of what its transpose does."""

    @abstractmethod
    def _head_grads(self, by_z: Sequence[Tensor], by_a: Sequence[Tensor]) -> Params:
        """Gradients of the head weights, from the outer products (D, Hh) with tokens and with credits."""

    @abstractmethod
    def _attend(self, projected: Sequence[Float[Tensor, "*b N Hh"]]) -> Saved:
        """What attention and its derivatives need of the projected tokens."""

    @abstractmethod
    def _attended(self, at: Saved, sigma: Tensor) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """sigma times what attention hands to each of its `ahead` weights."""

    @abstractmethod
    def _attended_jvp(
        self, at: Saved, projected: Sequence[Float[Tensor, "*b N Hh"]], sigma: Tensor
    ) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """Its change with the projected tokens."""

    @abstractmethod
    def _attended_vjp(
        self, at: Saved, projected: Sequence[Float[Tensor, "*b N Hh"]], sigma: Tensor
    ) -> tuple[Float[Tensor, "*b H N h"], ...]:
        """The same for the transpose, from credits projected by `back_in`."""

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

    def _by_head(self, projected: Sequence[Tensor]) -> list[Tensor]:
        return [heads(p, self.heads) for p in projected]

    def _kernel(self, g: Float[Tensor, "*r D Hh"]) -> Float[Tensor, "*r H h D"]:
        return g.mT.unflatten(-2, (self.heads, self.dh))


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
        q, k = self._by_head([z @ theta[w].flatten(0, 1).mT for w in ("WQ", "WK")])
        attention = (self.gamma * (q @ k.mT)).logsumexp(-1).sum((-2, -1)) / self.gamma
        return self._rest_energy(theta, context, z, y, knobs) - knobs.sigma * attention

    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        both = [theta[w].flatten(0, 1) for w in ("WQ", "WK")]
        return both, both

    def _head_grads(self, by_z: Sequence[Tensor], by_a: Sequence[Tensor]) -> Params:
        return {w: self._kernel(z + a) for w, z, a in zip(("WQ", "WK"), by_z, by_a, strict=True)}

    def _attend(self, projected: Sequence[Float[Tensor, "*b N Hh"]]) -> Saved:
        q, k = self._by_head(projected)
        return energy_attention(q, k, self.gamma)

    def _attended(self, at: Saved, sigma: Tensor) -> tuple[Tensor, ...]:
        return tuple(sigma * slope for slope in energy_slope(at))

    def _attended_jvp(self, at: Saved, projected: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        dq, dk = self._by_head(projected)
        return tuple(sigma * moved for moved in energy_slope_jvp(at, self.gamma, dq, dk))

    def _attended_vjp(self, at: Saved, projected: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        return self._attended_jvp(at, projected, sigma)  # a Hessian


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
        attended = self._attended(self._attend(self._projected(part["z"], context["ahead_in"])), knobs.sigma)
        return self._from_heads(attended, context["ahead_out"], part["y"])

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        attended = self._attended_jvp(saved, self._projected(z, context["ahead_in"]), knobs.sigma)
        return self._from_heads(attended, context["ahead_out"], y)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(a)
        attended = self._attended_vjp(saved, self._projected(z, context["back_in"]), knobs.sigma)
        return self._from_heads(attended, context["back_out"], y)

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        z, y = self._parts(v)
        *ahead, back = (z @ context["skew_in"]).split(self.heads * self.dh, -1)
        moved = self._attended_jvp(saved, ahead, knobs.sigma), self._attended_vjp(saved, [back], knobs.sigma)
        return self._join(self._out((), (*moved[0], *moved[1]), context["skew_out"]), y.new_zeros(y.shape))

    def _fused(self, theta: Params) -> Params:
        import torch

        ahead, back = self._head_weights(theta)
        return super()._fused(theta) | {
            "skew_in": torch.cat([W.mT for W in (*back, *ahead)], -1),
            "skew_out": 0.5 * torch.cat([*ahead, *(-W for W in back)], -2),
        }

    def _projected(self, z: Tensor, W: Float[Tensor, "D K"]) -> Sequence[Tensor]:
        """Tokens before each kind of head alone."""
        return (z @ W[:, self.mem + self.ch * self.patch**2 :]).split(self.heads * self.dh, -1)

    def _from_heads(self, attended: tuple[Tensor, ...], W: Float[Tensor, "K D"], y: Tensor) -> Tensor:
        """A force on the tokens alone."""
        return self._join(self._out((), attended, W[self.mem + self.ch * self.patch**2 :]), y.new_zeros(y.shape))

    def _head_weights(self, theta: Params) -> tuple[list[Tensor], list[Tensor]]:
        return [theta["WO"].mT], [theta[w].flatten(0, 1) for w in ("WQ", "WK", "WV")]

    def _head_grads(self, by_z: Sequence[Tensor], by_a: Sequence[Tensor]) -> Params:
        (WO,) = by_a
        return {w: self._kernel(g) for w, g in zip(("WQ", "WK", "WV"), by_z, strict=True)} | {"WO": WO}

    def _attend(self, projected: Sequence[Float[Tensor, "*b N Hh"]]) -> Saved:
        return attention(*self._by_head(projected))

    def _attended(self, at: Saved, sigma: Tensor) -> tuple[Tensor, ...]:
        return (sigma * attend(at),)

    def _attended_jvp(self, at: Saved, projected: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        return (sigma * attend_jvp(at, *self._by_head(projected)),)

    def _attended_vjp(self, at: Saved, projected: Sequence[Tensor], sigma: Tensor) -> tuple[Tensor, ...]:
        (credit,) = self._by_head(projected)
        return tuple(sigma * part for part in attend_vjp(at, credit))


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
