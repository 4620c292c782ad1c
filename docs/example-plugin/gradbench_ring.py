"""An example of a plugin: a ring of units, each driven by its neighbours, and the adjoint cut after one term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import gradbench as gb


class Ring(nn.Module):
    """Units on a ring: every one sees the unit before it and the unit behind it."""

    def __init__(self, units: int = 12) -> None:
        super().__init__()
        self.before, self.behind = nn.Parameter(0.4 * torch.randn(units)), nn.Parameter(0.4 * torch.randn(units))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state (b, units), from the state and the drive."""
        return torch.tanh(self.before * z.roll(1, -1) + self.behind * z.roll(-1, -1) + x)


torch.manual_seed(0)  # the digest of a system is that of its parameters, too: draw the same ones every time
ring = gb.system(
    step=lambda net, x, z: net(z, x["x"]),
    cost=lambda net, x, z: (z - x["y"]).square().sum(-1),
    state=lambda net, x: torch.zeros_like(x["x"]),
    params=Ring(),
    data={"x": torch.randn(8, 12), "y": torch.randn(8, 12)},
    defaults={"T1": 100, "T2": 30, "beta": 0.02},
    name="ring",
)


@gb.estimator(source="Fung et al. 2022", terms=1)
def one_term(free: Any) -> Tensor:
    """Jacobian-free backpropagation: the adjoint with one term.

    Valid where the Jacobian is small. Source: Fung et al. 2022.
    """
    credit: Tensor = free.back(free.cost_slope)
    return credit
