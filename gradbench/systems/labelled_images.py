"""Systems that are shown images with labels: what they draw, and the options that say so."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gradbench.data import datasets
from gradbench.errors import UserError
from gradbench.systems.base import AbstractSystem, Data

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.data.streams import Streams


@dataclass(frozen=True)
class AbstractLabelled(AbstractSystem):
    """The data are images x in [-1, 1], in the shape that `data_shapes` gives them, each with a label."""

    per_example: ClassVar[frozenset[str]] = frozenset({"x", "label"})

    classes: int = datasets.CLASSES
    dataset: str = "fashion_mnist_sample"

    @property
    @abstractmethod
    def image(self) -> tuple[int, int]:
        """Colours of an image, and pixels of its side. Raises UserError for a size that no image has."""

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        if "x" in given:
            if "label" not in given:
                raise UserError(f"data of {self.name}: x comes with the label of every example")
            return
        datasets.check(self.dataset, *self.image, batch)
        if self.classes < datasets.CLASSES:
            raise UserError(
                f"{self.name}: classes = {self.classes}, and dataset {self.dataset!r} has {datasets.CLASSES} classes"
            )

    @property
    def categories(self) -> dict[str, int]:
        return {"label": self.classes}

    def onehot(self, x: Data, like: Tensor) -> Float[Tensor, "b Y"]:
        """1 at the class of every label and 0 elsewhere, in the dtype of another tensor."""
        import torch

        return (x["label"][..., None] == torch.arange(self.classes, device=like.device)).to(like)

    def sample(self, streams: Streams, batch: int) -> Data:
        if self.dataset == datasets.GIVEN:
            return {}
        images, label = datasets.labelled(self.dataset, *self.image, batch, streams["data"])
        return {"x": images.reshape(self.data_shapes(batch)["x"]), "label": label}


@dataclass(frozen=True)
class AbstractPixels(AbstractLabelled):
    """An image is a row of its pixels."""

    d_in: int = 784  # pixels of an image with all its colours

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, int]:
        """d_in of a dataset that the default size cannot show."""
        size = datasets.other_size(named.get("dataset", cls.dataset), *datasets.sides(cls.d_in, cls.name))
        return {"d_in": size[0] * size[1] ** 2} if size else {}

    @property
    def image(self) -> tuple[int, int]:
        return datasets.sides(self.d_in, self.name)

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, self.d_in), "label": (batch,)}
