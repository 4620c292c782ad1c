"""The environment of a run: device, versions and code, which decide whether a run may be resumed."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from gradbench.planning import registry

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


class Environment(TypedDict):
    """The content of `env.json`."""

    identity: str  # equal for runs whose records may be mixed
    source: str
    commit: str | None
    dirty: bool | None
    device: str
    processor: str
    python: str
    torch: str
    cuda: str | None
    numpy: str
    platform: str
    flags: dict[str, object]
    started: str
    command: list[str]


def describe_environment(key: str, device: str) -> Environment:
    """The environment of this process. `key` is the content key of the plan or training that is asked for."""
    import numpy
    import torch

    from gradbench.engine import device as devices
    from gradbench.engine.precision import FLAGS

    source = source_digest()
    fixed = [key, device.partition(":")[0], devices.describe(device), torch.__version__, source]
    return {
        "identity": hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16],
        "source": source,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git("status", "--porcelain")) is None else bool(changed),
        "device": device,
        "processor": devices.describe(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "flags": FLAGS,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }


def source_digest() -> str:
    """Digest of all code and data that decide a number: rooms of the package, and the modules of plugins."""
    digest = hashlib.sha256()
    for path in (*_deciding_files(), *_plugin_files()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _deciding_files() -> Iterator[Path]:
    for room in DECIDING_ROOMS:
        yield from (p for p in sorted((PACKAGE / room).rglob("*")) if p.suffix in (".py", ".npz"))


def _plugin_files() -> Iterator[Path]:
    classes: tuple[registry.Base, ...] = (*registry.known_systems().values(), *registry.known_estimators().values())
    registered = {c.__module__ for c in classes if registry.digest_of(c) is None}  # a digest stands in the cells
    for module in sorted(registered):
        # an interactive session has no file
        file = None if module.startswith("gradbench.") else getattr(importlib.import_module(module), "__file__", None)
        if file:
            yield Path(file)


def _git(*arguments: str) -> str | None:
    """The answer of git about the checkout that holds the package; None where no checkout holds it."""
    git = ["git", "-C", str(PACKAGE)]
    tracked = [
        "ls-files",
        "--error-unmatch",
        "__init__.py",
    ]  # fails in the checkout of another project
    try:
        for command in (tracked, arguments):
            answer = subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip()
