"""A transformer block as a deep equilibrium model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gradbench.data.streams import normal
from gradbench.errors import UserError
from gradbench.systems.attention import outer
from gradbench.systems.base import POSITIVE, Data, Params, Saved
from gradbench.systems.leaky import AbstractLeaky
from gradbench.systems.pictures import AbstractClassifier, AbstractPatches
from gradbench.systems.tokens import patches
from gradbench.systems.transformer_block import block_jvp, block_pull, block_saved, block_vjp
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class TransformerDeq(AbstractClassifier, AbstractPatches, AbstractLeaky):
    """Deep equilibrium model: one transformer block, applied to its own output until it no longer changes.

    F = block(z, u) - z,   u = enc(x) + bpos: a token for every patch of the image
    post   block = LN_2(h + mlp(h)),   h = LN_1(z + u + attn(z + u))
    pre    block = h + mlp(LN_2(h)),   h = u + attn(LN_1(z))
    attn(v) = WO concat_h softmax(q k^T / sqrt(h)) v' with WQ v, WK v, WV v;   mlp(h) = W2 gelu(W1 h + b1) + b2
    C = cross-entropy of V mean_N(z) + c. z begins at 0. WO and W2 begin scaled by `gain`. At 1, post-norm came to no
    fixed point in 400 steps with two of three seeds.
    The original code adds the input to q, k and v. Here it enters with z, so that the residual carries it too, and in
    pre-norm in place of z: a residual of z would leave -z out of F, and nothing would pull the state back.
    """

    name: ClassVar[str] = "transformer_deq"
    source: ClassVar[str] = "Bai, Kolter & Koltun 2019, arXiv:1909.01377 (DEQ-Transformer)"
    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    defaults: ClassVar[Mapping[str, float]] = {"T1": 100, "T2": 50, "beta": 0.02, "eps": 0.8, "batch": 16}

    D: int = 32  # width of a token
    heads: int = 4  # H
    hidden: int = 64  # width of the MLP
    norm: Literal["post", "pre"] = "post"
    gain: float = field(default=0.3, metadata=POSITIVE)  # of WO and W2 at the start

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.D % self.heads:
            raise UserError(f"{self.name}: D = {self.D} is not a multiple of heads = {self.heads}")

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"z": (self.side**2, self.D)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        D, hidden = self.D, self.hidden
        block = {"WQ": (D, D), "WK": (D, D), "WV": (D, D), "WO": (D, D), "W1": (hidden, D), "W2": (D, hidden)}
        norms = {f"{ln}.{part}": (D,) for ln in ("ln1", "ln2") for part in ("weight", "bias")}
        kernel = {"Wenc": (D, self.ch, self.patch, self.patch), "bpos": (self.side**2, D)}
        head = {"V": (self.classes, D), "c": (self.classes,)}
        return kernel | block | {"b1": (hidden,), "b2": (D,)} | norms | head

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        return super().sizes(params, given) | ({"hidden": params["W1"].shape[0]} if "W1" in params else {})

    def init_params(self, rng: Generator) -> Params:
        """N(0, 1 / length of a row) for matrices, N(0, 1) for bpos, 0 for other biases, 1 for the weights of norms."""
        theta = {}
        for name, shape in self.shapes.items():
            row = self.pixels if name == "Wenc" else shape[-1]
            scale = (self.gain if name in ("WO", "W2") else 1) / math.sqrt(row)
            std = 1.0 if name == "bpos" else scale if len(shape) > 1 else 0.0
            theta[name] = normal(rng, shape, std) + name.endswith(".weight")
        return theta

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x"].new_zeros((x["x"].shape[0], self.side**2 * self.D))

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": self.encoded(theta, x["x"]) + theta["bpos"]}

    def well(self, context: Params, knobs: Knobs) -> tuple[Tensor | float, Tensor | float]:
        return 1.0, 0.0

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return block_saved(theta, self.split(s)["z"], context["input"], self.heads, self._post)[0].flatten(-2)

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        return block_saved(theta, self.split(s)["z"], context["input"], self.heads, self._post)[1]

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return block_jvp(theta, saved, self.split(v)["z"], self.heads, self._post).flatten(-2)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return block_vjp(theta, saved, self.split(a)["z"], self.heads, self._post)[0].flatten(-2)

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        return self.backward(theta, x, context, saved, a, knobs)[1]

    def backward(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Params]:
        back, credit = block_vjp(theta, saved, self.split(a)["z"], self.heads, self._post)
        kernel = outer(credit["u"], patches(x["x"], self.patch)).unflatten(-1, theta["Wenc"].shape[1:])
        grads = block_pull(saved, credit) | {"Wenc": kernel, "bpos": credit["u"].sum(-3)}
        return back.flatten(-2) - a, grads | self.head_pull(theta, a)

    def features(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b D"]:
        return self.split(s)["z"].mean(-2)

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        N = self.side**2
        of_token = self.logit_slope(theta, x, s) @ theta["V"] / N
        return of_token[..., None, :].expand(*s.shape[:-1], N, self.D).flatten(-2)

    @property
    def _post(self) -> bool:
        return self.norm == "post"
