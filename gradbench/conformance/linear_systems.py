"""Linear systems, whose free state and gradient are a matter of matrices: the answer is known without any rule.

F = K s + h + x, C = 1/2 |s R - y|^2, and Pi takes off half of the mean of a state where the system projects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gradbench.data.streams import normal
from gradbench.systems.base import AbstractDrivenSystem, AbstractEnergySystem, AbstractSystem, Data, Params

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams
    from gradbench.dynamics.field import Field
    from gradbench.vocabulary.coordinates import Knobs

N, OUT = 5, 3  # coordinates of a state, and of what the cost reads
COUPLED, SKEWED = 0.3, 0.6  # sizes of the symmetric and of the antisymmetric part of W, beside -1


@dataclass(frozen=True)
class _Linear(AbstractSystem):
    """Shapes, draws, start and cost of both."""

    defaults: ClassVar[Mapping[str, Any]] = {"T1": 200, "T2": 100, "beta": 0.01, "eps": 0.2, "batch": 4}
    uses: ClassVar[frozenset[str]] = frozenset({"T1"})
    source: ClassVar[str] = "linear algebra"
    per_example: ClassVar[frozenset[str]] = frozenset({"x", "y", "s0"})

    halved: bool = False  # whether Pi takes off half of the mean

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"s": (N,)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (N, N), "h": (N,), "R": (N, OUT)}

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, N), "y": (batch, OUT), "s0": (batch, N)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        return {}

    def init_params(self, rng: Generator) -> Params:
        import torch

        M = normal(rng, (N, N), N**-0.5)
        W = -torch.eye(N, dtype=M.dtype) + COUPLED / 2 * (M + M.mT) + SKEWED / 2 * (M - M.mT)
        return {"W": W, "h": normal(rng, (N,)), "R": normal(rng, (N, OUT), N**-0.5)}

    def sample(self, streams: Streams, batch: int) -> Data:
        rng = streams["data"]
        return {name: normal(rng, shape) for name, shape in self.data_shapes(batch).items()}

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return x["s0"]

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (s @ theta["R"] - x["y"]).square().sum(-1)

    def project(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        return s - 0.5 * s.mean(-1, keepdim=True) if self.halved else s

    @property
    def projects(self) -> bool:
        return self.halved


@dataclass(frozen=True)
class SymmetricLinear(_Linear, AbstractEnergySystem):
    """K = (W + W^T) / 2, which has the energy -1/2 <s, K s> - <h + x, s>."""

    name: ClassVar[str] = "a linear system, symmetric"

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return -(0.5 * s * (s @ theta["W"].mT) + (theta["h"] + x["x"]) * s).sum(-1)

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return 0.5 * (s @ theta["W"].mT + s @ theta["W"]) + theta["h"] + x["x"]


@dataclass(frozen=True)
class SkewedLinear(_Linear, AbstractDrivenSystem):
    """K = W, which no energy generates."""

    name: ClassVar[str] = "a linear system, not symmetric"

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return -((theta["h"] + x["x"]) * s).sum(-1)

    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return s @ theta["W"].mT

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return s @ theta["W"].mT + theta["h"] + x["x"]


def answer(field: Field, *, transposed: bool = True) -> Params:
    """The gradient at the fixed point of a linear system, by two linear solves.

    With K in place of K^T in the second one, if not `transposed`: what a rule gives that takes the wrong Jacobian.
    """
    import torch

    system, theta, x, eps = field.system, field.theta, field.x, field.knobs.eps
    symmetric = isinstance(system, SymmetricLinear)
    K = 0.5 * (theta["W"] + theta["W"].mT) if symmetric else theta["W"]
    eye = torch.eye(N, dtype=K.dtype)
    P = system.project(eye)
    s = torch.linalg.solve(eye - P @ (eye + eps * K), eps * P @ (theta["h"] + x["x"]).mT).mT
    missed = s @ theta["R"] - x["y"]
    back = (K.mT if transposed else K) * eps + eye
    a = torch.linalg.solve(eye - P @ back, eps * P @ theta["R"] @ missed.mT).mT
    outer = a.mT @ s
    return {"W": 0.5 * (outer + outer.mT) if symmetric else outer, "h": a.sum(0), "R": s.mT @ missed}
