"""A linear system whose spectrum is chosen: every gradient rule has a value in closed form on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from gradbench.data import datasets
from gradbench.data.streams import normal
from gradbench.errors import UserError
from gradbench.systems.base import POSITIVE, SPREAD, AbstractDrivenSystem, ClosedForms, Data, Params, Saved
from gradbench.systems.labelled_images import AbstractPixels
from gradbench.vocabulary.coordinates import Knobs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class Linear(AbstractPixels, ClosedForms, AbstractDrivenSystem):
    """Linear system with a chosen spectrum and a quadratic cost: every rule has a closed form, beta included.

    F = W s + h + B x,   C = 1/2 |P s - y|^2,   x an image, y the one-hot vector of its label
    W = Q T Q^T, a real Schur form with a random rotation Q. On the diagonal of T stand blocks [[-r, -a r], [a r, -r]],
    above them N(0, 1) times `nonnormality` / sqrt(n). The eigenvalues of W are -r (1 +- i a), with rates r in equal
    ratios from `slowest` to `fastest` and a = `asymmetry`. Without `nonnormality` W is normal, and the angle between
    J^-1 g and J^-T g is 2 arctan a, if n is even; with both at 0 it is symmetric.
    """

    name: ClassVar[str] = "linear"
    source: ClassVar[str] = "linear algebra"
    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    real_only: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, float]] = {"T1": 200, "T2": 60, "beta": 0.02, "eps": 0.2, "batch": 16}

    n: int = 128  # coordinates of the state
    slowest: float = field(default=0.5, metadata=POSITIVE)  # smallest decay rate, per unit of time
    fastest: float = field(default=2.0, metadata=POSITIVE)  # largest decay rate
    asymmetry: float = field(default=0.5, metadata=SPREAD)  # a: |Im| / |Re| of every eigenvalue
    nonnormality: float = field(default=0.0, metadata=SPREAD)  # spread of what is above the blocks of T

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fastest < self.slowest:
            raise UserError(f"{self.name}: fastest = {self.fastest:g} is below slowest = {self.slowest:g}")

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"s": (self.n,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.n, self.n), "h": (self.n,), "B": (self.n, self.d_in), "P": (self.classes, self.n)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        options: dict[str, Any] = {"d_in": given["x"].shape[-1], "dataset": datasets.GIVEN} if "x" in given else {}
        for name, sized in {"W": ("n", "n"), "B": ("n", "d_in"), "P": ("classes", "n")}.items():
            options |= dict(zip(sized, params[name].shape, strict=True)) if name in params else {}
        return options

    def init_params(self, rng: Generator) -> Params:
        import torch

        n, ratio = self.n, self.fastest / self.slowest
        rates = self.slowest * torch.logspace(0, 1, (n + 1) // 2, base=ratio, dtype=torch.float64, device="cpu")
        rates = rates.repeat_interleave(2)[:n]
        block, up = torch.arange(n, device="cpu") // 2, torch.arange(0, n - 1, 2, device="cpu")
        T = normal(rng, (n, n), self.nonnormality / n**0.5) * (block[:, None] < block) - rates.diag()
        T[up, up + 1], T[up + 1, up] = -self.asymmetry * rates[up], self.asymmetry * rates[up]
        Q = torch.linalg.qr(normal(rng, (n, n)))[0]
        others = {name: normal(rng, shape, shape[-1] ** -0.5) for name, shape in self.shapes.items() if name != "W"}
        return {"W": Q @ T @ Q.mT, **others}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["x"].new_zeros((*x["x"].shape[:-1], self.n))

    def context(self, theta: Params, x: Data) -> Params:
        return {"input": theta["h"] + x["x"] @ theta["B"].mT}

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return -(context["input"] * s).sum(-1)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return s @ theta["W"].mT

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return s @ theta["W"].mT + context["input"]

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        read = s @ theta["P"].mT
        label = x["label"].expand(read.shape[:-1])[..., None]
        return 0.5 * (read.square().sum(-1) + 1) - read.gather(-1, label)[..., 0]

    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return s @ theta["P"].mT @ theta["P"] - theta["P"][x["label"]]

    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        return {"s": s}

    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return v @ theta["W"].mT

    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return a @ theta["W"]

    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        none = a.new_zeros((*a.shape[:-2], *theta["P"].shape))
        return {"W": a.mT @ saved["s"], "h": a.sum(-2), "B": a.mT @ x["x"], "P": none}
