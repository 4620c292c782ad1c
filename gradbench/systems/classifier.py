"""Systems that sort images into classes: what they draw, and the options that say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gradbench.data import datasets
from gradbench.errors import UserError
from gradbench.systems.base import AbstractSystem, Data

if TYPE_CHECKING:
    from gradbench.data.streams import Streams


@dataclass(frozen=True)
class AbstractClassifier(AbstractSystem):
    """Images as rows of pixels in [-1, 1], each with a label."""

    per_example: ClassVar[frozenset[str]] = frozenset({"x", "label"})

    d_in: int = 784  # pixels of an image with all its colours
    classes: int = 10
    dataset: str = "fashion_mnist_sample"

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, int]:
        """d_in of a dataset that the default size cannot show."""
        dataset = named.get("dataset", cls.dataset)
        if dataset not in datasets.SHAPES or datasets.fits(dataset, *_shape(cls.d_in)):
            return {}
        ch, img, _ = datasets.SHAPES[dataset]
        return {"d_in": ch * img**2}

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        if "x" in given:
            if "label" not in given:
                raise UserError(f"data of {self.name}: x comes with the label of every example")
            return
        datasets.check(self.dataset, *self._shown, batch)
        if self.classes < datasets.CLASSES:
            raise UserError(
                f"{self.name}: classes = {self.classes}, and dataset {self.dataset!r} has {datasets.CLASSES} classes"
            )

    @property
    def _shown(self) -> tuple[int, int]:
        """Colours and pixels of a side of an image with d_in values."""
        colours, side = _shape(self.d_in)
        if self.d_in != colours * side**2:
            raise UserError(f"{self.name}: d_in = {self.d_in} is neither 28 x 28 nor colours x 32 x 32")
        return colours, side

    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch, self.d_in), "label": (batch,)}

    @property
    def categories(self) -> dict[str, int]:
        return {"label": self.classes}

    def sample(self, streams: Streams, batch: int) -> Data:
        if self.dataset == datasets.GIVEN:
            return {}
        images, label = datasets.labelled(self.dataset, *self._shown, batch, streams["data"])
        return {"x": images.flatten(1), "label": label}


def _shape(d_in: int) -> tuple[int, int]:
    """Colours and pixels of a side of the image that d_in values are; an image of 28 x 28 has one colour."""
    side = 28 if d_in == 28**2 else 32
    return d_in // side**2, side
