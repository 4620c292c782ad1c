"""Images as the data of a system: whole, cut into patches, or with a label that the end state is to give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gradbench.data import datasets
from gradbench.errors import UserError
from gradbench.systems.base import AbstractSystem, Data, Params
from gradbench.systems.labelled_images import AbstractLabelled
from gradbench.systems.tokens import patches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class AbstractPictures(AbstractSystem):
    """The data hold images x, (b, ch, img, img) in [-1, 1]."""

    img: int = 28  # pixels of a side
    ch: int = 1  # colours
    dataset: str = "fashion_mnist_sample"

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, int]:
        """ch and img of a dataset that the default sizes cannot show."""
        size = datasets.other_size(named.get("dataset", cls.dataset), cls.ch, cls.img)
        return {"ch": size[0], "img": size[1]} if size else {}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        if "x" not in given:
            return {}
        return {"ch": given["x"].shape[-3], "img": given["x"].shape[-1], "dataset": datasets.GIVEN}

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        if "x" not in given:
            datasets.check(self.dataset, self.ch, self.img, batch)


@dataclass(frozen=True)
class AbstractPatches(AbstractPictures):
    """An image is read as N = side^2 patches of P pixels. The kernel Wenc, (D, ch, patch, patch), makes tokens."""

    patch: int = 7  # pixels of a patch's side, and the stride

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.img % self.patch:
            raise UserError(f"{self.name}: img = {self.img} is not a multiple of patch = {self.patch}")

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, int]:
        """With the patch that is closest to the default."""
        options = super().implied(named)
        if not options:
            return {}
        side = named.get("img", options["img"])
        # 1 divides every img, so the closest patch is at most as far from the default as 1 is
        divisors = [patch for patch in range(1, 2 * cls.patch) if side % patch == 0]
        return options | {"patch": min(divisors, key=lambda patch: abs(patch - cls.patch))}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options = super().sizes(params, given)
        if "Wenc" in params:
            options |= {"D": params["Wenc"].shape[0], "patch": params["Wenc"].shape[-1]}
        return options

    @property
    def side(self) -> int:
        """Patches along a side; N = side^2."""
        return self.img // self.patch

    @property
    def pixels(self) -> int:
        """P, values of a patch."""
        return self.ch * self.patch**2

    def encoded(self, theta: Params, y: Float[Tensor, "b ch img img"]) -> Float[Tensor, "b N D"]:
        """A token for every patch of an image: the convolution with Wenc whose stride is the patch."""
        return patches(y, self.patch) @ theta["Wenc"].flatten(1).mT


@dataclass(frozen=True)
class AbstractClassifier(AbstractLabelled, AbstractPictures):
    """The end state gives the label of its image: `logits` are V r + c, a linear head on the features r of the state.

    C = cross-entropy of the logits, or 1/2 |logits - onehot(label)|^2. V and c are parameters of the cost alone.
    """

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"

    @property
    def image(self) -> tuple[int, int]:
        return self.ch, self.img

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, self.ch, self.img, self.img), "label": (batch,)}

    @classmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, int | str]:
        options = super().sizes(params, given)
        return options | ({"classes": params["c"].shape[0]} if "c" in params else {})

    def features(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b K"]:
        """r, what the head reads: the state, where a system says nothing else."""
        return s

    def logits(self, theta: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b Y"]:
        """V r + c."""
        return self.features(theta, s) @ theta["V"].mT + theta["c"]

    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        logits, target = self.logits(theta, s), self.onehot(x, s)
        if self.loss == "squared_error":
            return 0.5 * (logits - target).square().sum(-1)
        return logits.logsumexp(-1) - (logits * target).sum(-1)

    def logit_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b Y"]:
        """dC/dlogits."""
        logits = self.logits(theta, s)
        return (logits if self.loss == "squared_error" else logits.softmax(-1)) - self.onehot(x, s)

    def head_pull(self, theta: Params, a: Float[Tensor, "*r b n"]) -> Params:
        """d<a, F>/dV and d<a, F>/dc for a pull: 0, since only the cost reads the head."""
        return {name: theta[name].new_zeros((*a.shape[:-2], *theta[name].shape)) for name in ("V", "c")}
