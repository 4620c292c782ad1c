"""A linear system, whose every gradient is a matter of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradbench.dynamics.field import Field
from gradbench.systems.base import AbstractDrivenSystem, Params
from gradbench.vocabulary.coordinates import Knobs

N, B = 5, 3


@dataclass(frozen=True)
class Line(AbstractDrivenSystem):
    """F = W s + h + x, C = <c, s> + 1/2 q |s - y|^2, Pi(u) = P u where x holds a P."""

    name: ClassVar[str] = "line"
    defaults: ClassVar[dict[str, Any]] = {}
    source: ClassVar[str] = "linear algebra"
    per_example: ClassVar[frozenset[str]] = frozenset({"x", "y", "c"})

    curved: float = 0.0  # q
    P: Tensor | None = None

    layout = {"s": (N,)}  # type: ignore[assignment]  # noqa: RUF012
    shapes = {"W": (N, N), "h": (N,)}  # type: ignore[assignment]  # noqa: RUF012

    def data_shapes(self, batch: int) -> Any:
        raise NotImplementedError

    def sizes(self, *_: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError

    def init_params(self, rng: Any) -> Any:
        raise NotImplementedError

    def sample(self, *_: Any) -> Any:
        raise NotImplementedError

    def init_state(self, theta: Params, x: Params) -> Tensor:
        return x["s0"]

    def energy(self, theta: Params, x: Params, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return 0 * s.sum(-1)

    def swirl(self, theta: Params, x: Params, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return s @ theta["W"].mT + theta["h"] + x["x"]

    def force(self, theta: Params, x: Params, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return self.swirl(theta, x, context, s, knobs)

    def cost(self, theta: Params, x: Params, s: Tensor) -> Tensor:
        return (x["c"] * s).sum(-1) + 0.5 * self.curved * (s - x["y"]).square().sum(-1)

    def project(self, s: Tensor) -> Tensor:
        return s if self.P is None else s @ self.P.mT

    @property
    def projects(self) -> bool:
        return self.P is not None


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def line(
    *,
    skew: float = 0.3,
    pull: float = 1.0,
    drive: float = 1.0,
    curved: float = 0.0,
    P: Tensor | None = None,
    at: float = 0.0,
    eps: float = 0.2,
) -> Field:
    """W = -pull + symmetric + skew; s_0 lies between the fixed point (at = 1) and a random state (at = 0)."""
    M = noise(N, N, seed=0) / N
    W = -pull * torch.eye(N, dtype=torch.float64) + 0.5 * (M + M.mT) + skew * (M - M.mT)
    h, x, start = drive * noise(N, seed=1), drive * noise(B, N, seed=2), noise(B, N, seed=3)
    eye = torch.eye(N, dtype=torch.float64)
    G = (eye if P is None else P) @ (eye + eps * W)
    rest = torch.linalg.solve(eye - G, (eps * (h + x) @ (eye if P is None else P).mT).mT).mT
    data = {"x": x, "y": noise(B, N, seed=4), "c": noise(B, N, seed=5), "s0": at * rest + (1 - at) * start}
    knobs = Knobs(*(torch.tensor(v, dtype=torch.float64) for v in (1.0, 0.0, eps)))
    return Field(Line(curved=curved, P=P), {"W": W, "h": h}, data, knobs)
