"""What numbers depend on besides the plan: versions, the device and the code, as this process has them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

PACKAGE = Path(__file__).parents[1]
# the other rooms ask, wire, store or show, and change no number
DECIDING_ROOMS = (
    "vocabulary",
    "data",
    "systems",
    "dynamics",
    "estimators",
    "planning",
    "diagnostics",
    "engine",
    "training",
)


class Versions(TypedDict):
    """What is installed that numbers depend on."""

    python: str
    torch: str
    cuda: str | None
    triton: str | None
    nvrtc: str | None
    numpy: str


class Facts(TypedDict):
    """A process that measures, as far as numbers depend on it, and what it may use."""

    device: str  # as torch knows it
    processor: str
    versions: Versions
    rooms: dict[str, str]  # the digest of every room that decides a number
    data: dict[str, str]  # the digest of every data set that is read from files
    budget: int  # bytes for all packs in flight


def facts_here(device: object, memory: str | None, data: Iterable[str]) -> Facts:
    """What this process is, for a device and data sets by name. Raises UserError for what cannot be had here."""
    from gradbench.data import datasets
    from gradbench.engine import device as devices
    from gradbench.engine.packs import available

    name = devices.resolve(device)
    return {
        "device": name,
        "processor": devices.describe(name),
        "versions": versions_here(name),
        "rooms": room_digests(),
        "data": {asked: content for asked in data if (content := datasets.content(asked))},
        "budget": available(name, memory),
    }


def versions_here(device: str) -> Versions:
    """What is installed that numbers on a device depend on."""
    import numpy
    import torch

    from gradbench.engine.device import triton_version
    from gradbench.systems.kernels.programs import nvrtc_version

    cuda = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "triton": triton_version() if cuda else None,
        "nvrtc": nvrtc_version() if cuda else None,
        "numpy": numpy.__version__,
    }


@cache
def room_digests() -> dict[str, str]:
    """The digest of the code and the data of every room that decides a number, as they were when this was first asked.

    A process goes on with the code that it has read, whatever happens to the files afterwards.
    """
    return {room: _digest_of(room) for room in DECIDING_ROOMS}


def rooms_apart(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """The rooms of `here` whose digest is another one `there`, or none."""
    return [room for room, digest in here.items() if there.get(room) != digest]


def _digest_of(room: str) -> str:
    content = hashlib.sha256()
    for path in sorted((PACKAGE / room).rglob("*")):
        if path.suffix in (".py", ".npz", ".cu", ".cuh"):
            content.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]
