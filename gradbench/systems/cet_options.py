"""What the transformers of `cet` declare: options, parameters, data, start and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gradbench.data import datasets
from gradbench.data.streams import normal
from gradbench.errors import UserError
from gradbench.systems.base import POSITIVE, SPREAD, Data, Params
from gradbench.systems.pictures import AbstractPatches
from gradbench.systems.tokens import join, token_norm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams


@dataclass(frozen=True)
class AbstractCetOptions(AbstractPatches):
    """Tokens z and pixels y complete an image of which some patches are hidden.

    C = 1/2 sum mask (y - x)^2: the reconstruction error of the hidden patches.
    """

    swirl_block: ClassVar[str | None] = "z"
    real_only: ClassVar[str | None] = "the relu of its memories is not holomorphic"
    per_example: ClassVar[frozenset[str]] = frozenset({"x", "mask"})
    defaults: ClassVar[Mapping[str, float]] = {
        "s": 1.0, "damp": 0.0, "T1": 100, "T2": 15, "beta": 0.02, "eps": 0.2, "batch": 64
    }  # fmt: skip
    mem_std: ClassVar[float] = 0.3  # of Wmem, in units of 1/sqrt(D); small: the energy stays bounded below

    D: int = 64  # width of a token
    heads: int = 4  # H
    dh: int = 16  # h, width of a head
    mem: int = 128  # M, memories
    gamma: float = field(default=0.25, metadata=POSITIVE)  # inverse temperature of the energy attention
    mask_ratio: float = 0.5  # share of patches that is hidden
    benc_std: float = field(default=0.0, metadata=SPREAD)
    bpos_std: float = field(default=0.0, metadata=SPREAD)
    bdec_std: float = field(default=0.0, metadata=SPREAD)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_ratio <= 1:
            raise UserError(f"{self.name}: mask_ratio = {self.mask_ratio} is not between 0 and 1")

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options = super().sizes(params, given)
        if "WQ" in params:
            options |= {"heads": params["WQ"].shape[0], "dh": params["WQ"].shape[1]}
        if "Wmem" in params:
            options |= {"mem": params["Wmem"].shape[-1]}
        return options

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

    def init_params(self, rng: Generator) -> Params:
        token = 1 / math.sqrt(self.D)
        std = {
            "Wenc": 0.5 * math.sqrt(2 / self.pixels),  # half of Kaiming's
            "Wdec": 0.5 * math.sqrt(2 / self.pixels),
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
        mask = self._mask(streams["mask"], batch)
        if self.dataset == datasets.GIVEN:
            return {"mask": mask}
        return {"x": datasets.images(self.dataset, self.ch, self.img, batch, streams["data"]), "mask": mask}

    def _mask(self, rng: Generator, batch: int) -> Float[Tensor, "b ch img img"]:
        """1 on the pixels of hidden patches, 0 elsewhere; as many hidden patches in every example."""
        import torch

        N = self.side**2
        order = torch.rand((batch, N), generator=rng, dtype=torch.float64, device="cpu").argsort(-1)
        hidden = torch.zeros((batch, N), dtype=torch.float64, device="cpu")
        hidden.scatter_(-1, order[:, : round(self.mask_ratio * N)], 1.0)
        hidden = hidden.unflatten(-1, (1, self.side, self.side)).expand(-1, self.ch, -1, -1)
        return hidden.repeat_interleave(self.patch, -1).repeat_interleave(self.patch, -2)

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        seen = visible(x)
        return join(token_norm(self.encoded(theta, seen)), seen).detach()

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        return 0.5 * (x["mask"] * (self.split(s)["y"] - x["x"]).square()).sum((-3, -2, -1))


def visible(x: Data) -> Float[Tensor, "b ch img img"]:
    """xbar: the image outside its mask."""
    return x["x"] * (1 - x["mask"])
