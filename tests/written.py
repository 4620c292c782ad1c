"""Systems as a user writes them from plain torch: six models, each from functions of its module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class TanhLayer(nn.Module):
    """A tanh layer whose input and output maps are tied, with a frozen parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.up = nn.Linear(12, 12), nn.Linear(5, 12, bias=False)
        self.down = nn.Linear(12, 5, bias=False)
        self.down.weight = nn.Parameter(self.up.weight.detach().mT.clone())
        self.again = nn.Linear(5, 12, bias=False)
        self.again.weight = self.up.weight  # tied
        self.scale = nn.Parameter(torch.full((12,), 0.7), requires_grad=False)
        self.register_buffer("shift", torch.linspace(-0.2, 0.2, 12))
        nn.init.orthogonal_(self.inner.weight, 0.5)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.inner(z) + self.up(x) + self.again(x.square())) + self.shift


class Convolution(nn.Module):
    """Two maps that see each other through convolution and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.enter = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(1, 3), nn.Linear(12, 4)
        with torch.no_grad():
            self.inner.weight.mul_(0.4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return 0.6 * torch.tanh(self.norm(self.inner(z) + self.enter(x)))

    def read(self, z: Tensor) -> Tensor:
        return self.head(functional.avg_pool2d(z, 2).flatten(1))


class ResidualMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 10), nn.Linear(10, 3)
        self.layers = nn.Sequential(nn.Linear(10, 14), nn.GELU(), nn.Linear(14, 10))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.enter(x) - z + 0.3 * self.layers(z)


def seeded(kind: Any, *arguments: Any, **named: Any) -> nn.Module:
    torch.manual_seed(7)
    made: nn.Module = kind(*arguments, **named)
    return made.eval()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tanh_layer() -> dict[str, Any]:
    return {
        "step": lambda net, x, z: net(x["x"], z),
        "cost": lambda net, x, z: (net.down(z) - x["y"]).square().sum(-1),
        "state": lambda net, x: torch.zeros(len(x["x"]), 12),
        "params": seeded(TanhLayer),
        "data": {"x": normal(6, 5), "y": normal(6, 5) + 1},
    }


def transformer() -> dict[str, Any]:
    def step(net: nn.Module, x: dict[str, Tensor], z: Tensor) -> Tensor:
        return 0.5 * net(z + x["x"])

    return {
        "step": step,
        "cost": lambda net, x, z: (z.mean(1) - x["y"]).square().sum(-1),
        "state": lambda net, x: torch.zeros_like(x["x"]),
        "params": seeded(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True, activation="gelu"),
        "data": {"x": normal(3, 5, 8), "y": normal(3, 8)},
    }


def hopfield() -> dict[str, Any]:
    def energy(net: dict[str, Tensor], x: dict[str, Tensor], z: dict[str, Tensor], k: Any) -> Tensor:
        v, h = z["visible"], z["hidden"]
        well = 0.5 * (v.square().sum(-1) + h.square().sum(-1))
        return well - k.gain * torch.einsum("bi,ij,bj->b", v.tanh(), net["W"], h.tanh()) - (x["x"] * v).sum(-1)

    return {
        "energy": energy,
        "cost": lambda net, x, z: (z["hidden"] - x["y"]).square().sum(-1),
        "state": lambda net, x: {"visible": torch.zeros(len(x["x"]), 7), "hidden": torch.zeros(len(x["x"]), 4)},
        "params": {"W": 0.5 * normal(7, 4)},
        "data": {"x": normal(5, 7), "y": normal(5, 4)},
        "knobs": {"gain": 0.8},
        "eps": 0.3,
    }


def convolution() -> dict[str, Any]:
    return {
        "step": lambda net, x, z: net(x["image"], z),
        "cost": lambda net, x, z: functional.cross_entropy(net.read(z), x["label"], reduction="none"),
        "state": lambda net, x: torch.zeros(len(x["image"]), 3, 4, 4),
        "params": seeded(Convolution),
        "data": {"image": normal(4, 1, 4, 4), "label": torch.tensor([0, 3, 1, 2])},
    }


def rate_network() -> dict[str, Any]:
    return {
        "force": lambda net, x, z: -z + z.tanh() @ net["W"].mT + x["x"] @ net["U"].mT,
        "cost": lambda net, x, z: (z[:, :2] - x["y"]).square().sum(-1),
        "state": lambda net, x: torch.zeros(len(x["x"]), 9),
        "params": {"W": 0.2 * normal(9, 9), "U": normal(9, 3)},
        "data": {"x": normal(4, 3), "y": normal(4, 2)},
        "eps": 0.2,
    }


def residual_mlp() -> dict[str, Any]:
    return {
        "force": lambda net, x, z: net(x["x"], z),
        "cost": lambda net, x, z: functional.cross_entropy(net.head(z), x["label"], reduction="none"),
        "state": lambda net, x: torch.zeros(len(x["x"]), 10),
        "params": seeded(ResidualMlp),
        "data": {"x": normal(5, 6), "label": torch.tensor([2, 0, 1, 1, 0])},
        "eps": 0.4,
    }


WRITTEN = [tanh_layer, transformer, hopfield, convolution, rate_network, residual_mlp]
