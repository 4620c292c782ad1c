"""What all tests share: one thread for tiny tensors, and suites of toy problems that take milliseconds."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from tiny import GATED, TINY

from gradbench.data import datasets
from gradbench.planning import plugins, registry
from gradbench.tables.store import Run

# before torch is imported, here or in a process that a test starts: on tiny tensors threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# an example that takes 200 ms says that the machine is busy
hypothesis.settings.register_profile("gradbench", deadline=None)
hypothesis.settings.load_profile("gradbench")


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Sets how many cores torch may use."""
    import torch

    found = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(found)


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Write a suite file: `text` after the tiny suite, or in its place."""

    def write(text: str = "", name: str = "tiny", base: str = TINY) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(base + text)
        return path

    return write


@pytest.fixture
def faulty_plugin() -> Iterator[None]:
    """The plugin faulty.py is loaded, and nothing else of the session."""
    path = Path(__file__).parent / "faulty.py"
    with registry.scope():
        plugins._loaded.pop(str(path), None)  # a scope forgets names, and not what was loaded
        plugins.load(path)
        yield


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for full data sets that holds none; what is read from it is forgotten."""
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path))
    for images in (datasets.load, datasets.part, datasets.content):
        images.cache_clear()
    yield tmp_path
    for images in (datasets.load, datasets.part, datasets.content):
        images.cache_clear()


@pytest.fixture
def colour_images(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """20 images to train on and 4 to test on, in the files that CIFAR-10 comes in: (24, 3, 32, 32)."""
    cifar = pytest.importorskip("torchvision.datasets.cifar")
    folder = empty_folder / cifar.CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[i], "labels": [i, 1, 2, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # it knows the digests of the real files only
    monkeypatch.setitem(datasets.SHAPES, "cifar10", (3, 32, 20))
    monkeypatch.setitem(datasets.PARTS, "cifar10", (20, 4))
    return pixels.reshape(24, 3, 32, 32)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which no test changes."""
    import gradbench

    folder = tmp_path_factory.mktemp("gate")
    (folder / "gated.toml").write_text(GATED)
    done = gradbench.run(str(folder / "gated.toml"), out=folder, device="cpu")
    return done.folder


@pytest.fixture
def gated(finished: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    return Run(Path(shutil.copytree(finished, tmp_path / finished.name)))
