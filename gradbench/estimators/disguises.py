"""Changes of a gradient whose comparison with it is known before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from gradbench.data.streams import Streams, normal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Kind = Literal["scaled", "flipped", "shuffled", "random"]
DRAWS = Streams(0)  # the same in every cell: a control differs between cells by their references alone


def _scaled(name: str, g: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    return 2 * g


def _flipped(name: str, g: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    return -g


def _shuffled(name: str, g: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    import torch

    order = torch.randperm(g.shape[-1], generator=DRAWS[f"shuffled {name}"], device="cpu")
    return g[..., order.to(g.device)]


def _random(name: str, g: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    draw = normal(DRAWS[f"random {name}"], (g.shape[-1],))
    return (draw / draw.norm()).to(g) * g.norm(dim=-1, keepdim=True)


DISGUISES: Mapping[Kind, Callable[[str, Tensor], Tensor]] = {  # by (name, entries) of a parameter
    "scaled": _scaled,
    "flipped": _flipped,
    "shuffled": _shuffled,
    "random": _random,
}
