"""Images for the systems that take images.

`fashion_mnist_sample` ships with the package: 1,024 images of Fashion-MNIST, the first 512 of the
training set and the first 512 of the test set, in that order. `fashion_mnist` and `cifar10` are the whole
training sets, through torchvision. A data set that is missing is an error: no other one takes its place.

A system that asks for 1 x 28 x 28 gets grey images unchanged. A system that asks for ch x 32 x 32 gets them
*in a frame*: two pixels of background (-1, black) on every side, and the same picture in each of ch colours.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.data.fingerprints import fingerprint
from gradbench.errors import UserError, near_miss

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor

FOLDER_VARIABLE = "GRADBENCH_DATA"
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


SHAPES = {  # colours, pixels of a side, number of images
    "fashion_mnist_sample": (1, 28, 1024),
    "fashion_mnist": (1, 28, 60_000),
    "cifar10": (3, 32, 50_000),
}
CLASSES = 10  # of every dataset
PARTS = {  # images to train on, to test on
    "fashion_mnist_sample": (512, 512),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
}
FRAME = 2  # pixels of background on each side of a framed image
GIVEN = "given"  # the images come with the call, in `data`


def check(dataset: str, ch: int, img: int, batch: int) -> None:
    """Raise UserError where a batch cannot be drawn: dataset unknown, of other sizes, or too small."""
    if dataset == GIVEN:
        raise UserError("dataset = 'given' draws no images: they come with the call, in data")
    if dataset not in SHAPES:
        raise UserError(f"dataset = {dataset!r} is not known{near_miss(dataset, SHAPES)}")
    colours, size, number = SHAPES[dataset]
    if not fits(dataset, ch, img):
        framed = f", shown also as ch x {size + 2 * FRAME} x {size + 2 * FRAME}" if colours == 1 else ""
        raise UserError(
            f"dataset {dataset!r} has images of {colours} x {size} x {size}{framed}, not {ch} x {img} x {img}"
        )
    if batch > number:
        raise UserError(f"dataset {dataset!r} has {number} images, fewer than batch = {batch}")


def fits(dataset: str, ch: int, img: int) -> bool:
    """Whether the images of a known dataset can be shown as ch x img x img: unchanged, or grey ones in a frame."""
    colours, size, _ = SHAPES[dataset]
    return (ch, img) == (colours, size) or (colours == 1 and img == size + 2 * FRAME)


def other_size(dataset: str, ch: int, img: int) -> tuple[int, int] | None:
    """Colours and pixels of a side of a known dataset that cannot be shown as ch x img x img; None: it can."""
    return None if dataset not in SHAPES or fits(dataset, ch, img) else SHAPES[dataset][:2]


def sides(d_in: int, name: str) -> tuple[int, int]:
    """Colours and pixels of a side of an image with `d_in` values. Raises UserError of a system, by its name."""
    side = 28 if d_in == 28**2 else 32
    if d_in % side**2:
        raise UserError(f"{name}: d_in = {d_in} is neither 28 x 28 nor colours x 32 x 32")
    return d_in // side**2, side


def images(dataset: str, ch: int, img: int, batch: int, rng: Generator) -> Tensor:
    """A batch drawn without replacement: (batch, ch, img, img) in [-1, 1], float64; framed where img says so."""
    return labelled(dataset, ch, img, batch, rng)[0]


def labelled(dataset: str, ch: int, img: int, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """The batch that `images` draws, with its labels (batch,), int64."""
    import torch

    pixels, labels = load(dataset)
    chosen = torch.randperm(len(pixels), generator=rng, device="cpu")[:batch]
    return shown(torch.from_numpy(pixels)[chosen], ch, img), torch.from_numpy(labels)[chosen].long()


def shown(pixels: Tensor, ch: int, img: int) -> Tensor:
    """Pixels (*, colours, h, w), uint8, as (*, ch, img, img) in [-1, 1], float64; framed where img says so."""
    import torch

    x = (pixels.double() / 255 - 0.5).div(0.5)
    frame = (img - x.shape[-1]) // 2
    x = torch.nn.functional.pad(x, (frame,) * 4, value=-1.0)
    return x.repeat(*[1] * (x.ndim - 3), ch // x.shape[-3], 1, 1)


@lru_cache
def load(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, colours, h, w) and labels (n,) of a dataset, uint8."""
    return part(dataset, True) if dataset in _FULL else _sample()


@lru_cache
def part(dataset: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, colours, h, w) and labels (n,) to train on, or to test on, uint8."""
    if dataset in _FULL:
        return _FULL[dataset](train)
    pixels, labels = load(dataset)
    number, _ = PARTS[dataset]
    chosen = slice(number) if train else slice(number, None)
    return pixels[chosen], labels[chosen]


@lru_cache
def content(dataset: str, test: bool = False) -> str | None:
    """Digest of the images to train on that are read from files, and of those to test on where `test` says so.

    None of a data set that ships with gradbench, whose source has a digest, and of one that no file holds.
    """
    if dataset not in _FULL:
        return None
    return fingerprint(part(dataset, True), *([part(dataset, False)] if test else []))


def folder() -> Path:
    """The folder of full data sets: $GRADBENCH_DATA, else ~/.cache/gradbench."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "gradbench")


def _sample() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    with (resources.files("gradbench.data") / "fashion_mnist_sample.npz").open("rb") as file, np.load(file) as arrays:
        return arrays["images"][:, None], arrays["labels"]


def _fashion_mnist(train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The training or the test set. The four files may lie in the data folder, or in torchvision's folder below it.

    gradbench unpacks them. torchvision accepts a packed file only with the digest of the file that it downloads,
    and the same images are packed in many ways.
    """
    FashionMNIST = _reader("FashionMNIST", "fashion_mnist")
    root = folder()
    with _fetching("fashion_mnist", f"put {', '.join(f'{name}.gz' for name in IDX_FILES)} into that folder"):
        present = [_unpacked(name, root) for name in IDX_FILES]
        data = FashionMNIST(str(root), train=train, download=not all(present))
    return data.data.numpy()[:, None], data.targets.numpy()


def _cifar10(train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The training or the test set, fetched unless its unpacked files lie in the data folder. torchvision checks."""
    import numpy as np

    CIFAR10 = _reader("CIFAR10", "cifar10")
    root = folder()
    with _fetching("cifar10", f"put {CIFAR10.filename} into that folder, or its unpacked {CIFAR10.base_folder}"):
        root.mkdir(parents=True, exist_ok=True)
        data = CIFAR10(str(root), train=train, download=not (root / CIFAR10.base_folder).is_dir())
    return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, np.uint8)


def _reader(name: str, dataset: str) -> Any:
    """A class of torchvision that reads a data set. Raises UserError where torchvision cannot be imported."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        raise UserError(
            f"dataset {dataset!r} is read by torchvision, which cannot be imported ({error}). Ways out: install the "
            f"torchvision that fits your torch; or ask for dataset = 'fashion_mnist_sample', which ships with gradbench"
        ) from None
    return getattr(datasets, name)


@contextmanager
def _fetching(dataset: str, way_out: str) -> Iterator[None]:
    """Raise UserError for a data set that is missing and cannot be fetched, with the ways out."""
    try:
        yield
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        why = str(error).partition("\n")[0].rstrip(":")
        raise UserError(
            f"dataset {dataset!r} is not in {folder()} and could not be fetched ({why}). Ways out: {way_out}; "
            f"name another folder in ${FOLDER_VARIABLE}; or ask for dataset = 'fashion_mnist_sample', which ships "
            f"with gradbench"
        ) from error


_FULL = {"fashion_mnist": _fashion_mnist, "cifar10": _cifar10}  # each has a training and a test set


def _unpacked(name: str, root: Path) -> bool:
    """Put a file where torchvision reads it, if the folder holds it elsewhere. Returns whether torchvision has it."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for source in (root / name, root / f"{name}.gz", raw / f"{name}.gz"):
        if source.exists() and not (raw / name).exists():
            with (gzip.open if source.suffix == ".gz" else open)(source, "rb") as packed:
                content = packed.read()
            (raw / f".{name}").write_bytes(content)
            (raw / f".{name}").replace(raw / name)
    return (raw / name).exists()
