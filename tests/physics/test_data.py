"""Images: the embedded sample, the full set from a folder, and no silent stand-in."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gradbench as gb
from gradbench.data import datasets
from gradbench.data.streams import Streams
from gradbench.errors import UserError
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse


def test_the_sample_is_512_training_and_512_test_images_with_every_class() -> None:
    pixels, labels = datasets.load("fashion_mnist_sample")
    assert pixels.shape == (1024, 1, 28, 28)
    assert pixels.dtype == np.uint8
    for half in (labels[:512], labels[512:]):
        assert set(half.tolist()) == set(range(10))
    assert pixels[0].sum() > 0
    assert labels[:3].tolist() == [9, 0, 0]  # the training set begins with an ankle boot and two T-shirts
    assert labels[512:515].tolist() == [9, 2, 1]  # the test set with a boot, a pullover and trousers


def test_images_are_scaled_drawn_without_replacement_and_repeatable() -> None:
    x = datasets.images("fashion_mnist_sample", 1, 28, 1024, Streams(0)["data"])
    assert (x.shape, x.dtype) == ((1024, 1, 28, 28), torch.float64)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    pixels = torch.from_numpy(datasets.load("fashion_mnist_sample")[0]).double()
    assert float(x.sum()) == pytest.approx(float((pixels / 127.5 - 1).sum()))
    assert torch.equal(x[:5], datasets.images("fashion_mnist_sample", 1, 28, 5, Streams(0)["data"]))
    assert not torch.equal(x[:5], datasets.images("fashion_mnist_sample", 1, 28, 5, Streams(1)["data"]))


def test_images_are_framed_by_background_and_shown_in_every_colour_where_32_pixels_are_asked_for() -> None:
    plain = datasets.images("fashion_mnist_sample", 1, 28, 5, Streams(0)["data"])
    framed = datasets.images("fashion_mnist_sample", 3, 32, 5, Streams(0)["data"])
    assert framed.shape == (5, 3, 32, 32)
    assert torch.equal(framed[..., 2:30, 2:30], plain.expand(-1, 3, -1, -1))
    frame = framed.clone()
    frame[..., 2:30, 2:30] = -1
    assert torch.equal(frame, torch.full_like(frame, -1))


@pytest.mark.parametrize(("ch", "img"), [(3, 28), (1, 30), (3, 64), (1, 14)])
def test_any_other_size_is_an_error_that_names_those_there_are(ch: int, img: int) -> None:
    datasets.check("fashion_mnist_sample", 1, 28, 8)
    for colours in (1, 3):
        datasets.check("fashion_mnist_sample", colours, 32, 8)
    with pytest.raises(UserError, match=f"1 x 28 x 28, shown also as ch x 32 x 32, not {ch} x {img} x {img}"):
        datasets.check("fashion_mnist_sample", ch, img, 8)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.tobytes())


def test_without_files_or_network_the_full_set_is_an_error_that_names_the_ways_out(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = pytest.importorskip("torchvision")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    with pytest.raises(UserError) as error:
        datasets.load("fashion_mnist")
    for way_out in (str(empty_folder), datasets.FOLDER_VARIABLE, "train-images-idx3-ubyte.gz", "fashion_mnist_sample"):
        assert way_out in str(error.value)


def test_files_that_lie_in_the_data_folder_are_used_without_network(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = pytest.importorskip("torchvision")
    rng = np.random.default_rng(0)
    made = {}
    for part, number in (("train", 12), ("t10k", 4)):
        made[part] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        write_idx(empty_folder / f"{part}-images-idx3-ubyte.gz", made[part])
        write_idx(empty_folder / f"{part}-labels-idx1-ubyte.gz", np.arange(number, dtype=np.uint8) % 10)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    pixels, labels = datasets.load("fashion_mnist")
    np.testing.assert_array_equal(pixels, made["train"][:, None])
    assert labels.tolist() == [*range(10), 0, 1]


def test_a_truncated_file_is_an_error_and_leaves_nothing_behind(empty_folder: Path) -> None:
    pytest.importorskip("torchvision")
    packed = gzip.compress(b"x" * 1000)
    (empty_folder / "train-images-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="could not be fetched"):
        datasets.load("fashion_mnist")
    assert not list((empty_folder / "FashionMNIST" / "raw").iterdir())


def test_colour_images_are_read_from_files_of_their_own_format(colour_images: np.ndarray) -> None:
    loaded, labels = datasets.load("cifar10")
    np.testing.assert_array_equal(loaded, colour_images[:20])
    assert labels.tolist() == [v for i in range(5) for v in (i, 1, 2, 9)]
    x, label = datasets.labelled("cifar10", 3, 32, 20, Streams(0)["data"])
    assert (x.shape, label.dtype) == ((20, 3, 32, 32), torch.int64)
    order = torch.randperm(20, generator=Streams(0)["data"])
    torch.testing.assert_close(x, torch.from_numpy(loaded)[order].double() / 127.5 - 1)
    assert label.tolist() == [int(labels[i]) for i in order]


def test_colour_images_without_files_or_network_are_an_error_that_names_the_ways_out(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar = pytest.importorskip("torchvision.datasets.cifar")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", refuse)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz") as error:
        datasets.load("cifar10")
    for way_out in (str(empty_folder), datasets.FOLDER_VARIABLE, "no network", "fashion_mnist_sample"):
        assert way_out in str(error.value)


def test_colour_images_have_one_size() -> None:
    datasets.check("cifar10", 3, 32, 8)
    for ch, img in ((1, 32), (3, 28), (3, 36)):
        with pytest.raises(UserError, match=f"has images of 3 x 32 x 32, not {ch} x {img} x {img}"):
            datasets.check("cifar10", ch, img, 8)


IMAGE_SYSTEMS = {  # and the patch of those that have one
    name: 8 if hasattr(system, "patch") else None
    for name, system in registry.known_systems().items()
    if hasattr(system, "dataset")
}


@pytest.mark.parametrize(("name", "patch"), IMAGE_SYSTEMS.items())
def test_a_system_of_images_takes_the_size_of_a_colour_dataset(
    name: str, patch: int | None, colour_images: np.ndarray
) -> None:
    system = registry.system(name, {"dataset": "cifar10"})
    system.check(4)
    x = system.sample(Streams(0), 4)
    assert {n: tuple(v.shape) for n, v in x.items()} == system.data_shapes(4)
    chosen = torch.randperm(20, generator=Streams(0)["data"])[:4]
    pixels = torch.from_numpy(colour_images[:20])[chosen]
    assert torch.equal(x["x"].view(4, 3, 32, 32), datasets.shown(pixels, 3, 32))
    assert getattr(system, "patch", None) == patch


def test_sizes_that_a_dataset_implies_are_those_of_the_cell_and_its_label(colour_images: np.ndarray) -> None:
    small = {"D": 8, "heads": 2, "dh": 4, "mem": 6}
    system = {"name": "cet_real", "dataset": "cifar10", **small}
    grid = {"system": system, "estimator": "ep", "T1": 4, "T2": 2, "batch": 4}
    (cell,) = plan(parse({"name": "x", "about": "", "grid": [grid]}, "x.toml"), "x.toml").cells
    named = {**system, "ch": 3, "img": 32, "patch": 8}
    (same,) = plan(parse({"name": "x", "about": "", "grid": [grid | {"system": named}]}, "x.toml"), "x.toml").cells
    assert cell == same
    assert {"ch=3", "img=32", "patch=8"} <= set(cell.labels["system_label"].split())
    options = {k: v for k, v in system.items() if k != "name"}
    m = gb.measure("cet_real", "ep", T1=4, T2=2, batch=4, system_options=options)
    assert m.row["system_options"] == cell.system_options
    assert m.reference is not None
    assert m.reference["Wenc"].shape == (8, 3, 8, 8)


def test_grey_images_leave_the_sizes_of_every_system_as_they_are() -> None:
    for name in IMAGE_SYSTEMS:
        for dataset in ("fashion_mnist_sample", "fashion_mnist"):
            system = registry.system(name, {"dataset": dataset})
            assert system == replace(registry.system(name), dataset=dataset)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ch": 1}, "has images of 3 x 32 x 32, not 1 x 32 x 32"),
        ({"img": 28}, "has images of 3 x 32 x 32, not 3 x 28 x 28"),
        ({"patch": 7}, "img = 32 is not a multiple of patch = 7"),
        ({"img": 2**31 - 1}, "has images of 3 x 32 x 32, not 3 x 2147483647 x 2147483647"),
    ],
)
def test_a_named_size_that_does_not_fit_the_dataset_is_an_error(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.system("cet_real", {"dataset": "cifar10", **options}).check(4)
    assert registry.system("cet_real", {"dataset": "cifar10", "patch": 4}) == registry.system(
        "cet_real", {"dataset": "cifar10", "ch": 3, "img": 32, "patch": 4}
    )


def test_the_parts_of_the_sample_are_its_halves_and_a_picture_is_shown_alike_at_any_number_of_axes() -> None:
    pixels, labels = datasets.load("fashion_mnist_sample")
    parts = [datasets.part("fashion_mnist_sample", train) for train in (True, False)]
    assert [len(p) for p, _ in parts] == list(datasets.PARTS["fashion_mnist_sample"])
    assert np.array_equal(np.concatenate([p for p, _ in parts]), pixels)
    assert np.array_equal(np.concatenate([p for _, p in parts]), labels)
    some = torch.from_numpy(pixels[:6])
    assert torch.equal(
        datasets.shown(some.unflatten(0, (2, 3)), 3, 32), datasets.shown(some, 3, 32).unflatten(0, (2, 3))
    )


def test_streams_of_parts_are_independent_of_each_other_and_of_the_whole() -> None:
    draws = [torch.rand(3, generator=s["data"]) for s in (Streams(0), Streams(0).part("a"), Streams(0).part("b"))]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
    assert torch.equal(draws[1], torch.rand(3, generator=Streams(0).part("a")["data"]))
