"""The environment of a run: device, versions, code and data, which decide whether a run may be resumed."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from gradbench.commands.progress import say
from gradbench.data import datasets, origins
from gradbench.data.fingerprints import fingerprint, undigested
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import registry
from gradbench.systems.base import AbstractSystem

Part = type[AbstractSystem] | type[AbstractEstimator]
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
    plugins: dict[str, str | None]  # digests of systems and rules that are not of gradbench; None: no digest sees all
    data: dict[str, str]  # digests of data sets that are read from files
    undigested: str | None  # why this run is never gone on with, whatever is asked for later
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


def describe_environment(
    key: str, device: str, parts: Iterable[AbstractSystem | AbstractEstimator], test: bool = False
) -> Environment:
    """The environment in which these systems and rules are measured or trained.

    `key` is the content key of the plan or training; `test` says that images to test on are read. Raises UserError for
    images that cannot be had.
    """
    import numpy
    import torch

    from gradbench.engine import device as devices
    from gradbench.engine.precision import FLAGS

    parts = list(parts)
    source, plugins, data = source_digest(), _plugins({type(part) for part in parts}), _data(parts, test)
    fixed = [key, device.partition(":")[0], devices.describe(device), torch.__version__, source]
    reasons = [f"plugin {cls.name!r}: {reason}" for cls, (_, reason) in plugins.items() if reason]
    digests = {f"{cls.__module__}:{cls.__qualname__}": digest for cls, (digest, _) in plugins.items()}
    content = json.dumps([*fixed, digests, data], sort_keys=True)
    return {
        "identity": secrets.token_hex(8) if reasons else hashlib.sha256(content.encode()).hexdigest()[:16],
        "source": source,
        "plugins": digests,
        "data": data,
        "undigested": "; ".join(reasons) or None,
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
    """Digest of all code and data of the package that decide a number."""
    digest = hashlib.sha256()
    for path in _deciding_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def warn_of_undigested(env: Environment) -> None:
    """Say on stderr why a run is never gone on with, where it is not."""
    if env["undigested"]:
        say(f"gradbench: every run begins anew, since no digest sees all that decides its numbers: {env['undigested']}")


def _deciding_files() -> Iterator[Path]:
    for room in DECIDING_ROOMS:
        yield from (p for p in sorted((PACKAGE / room).rglob("*")) if p.suffix in (".py", ".npz"))


def _plugins(classes: Collection[Part]) -> dict[Part, tuple[str | None, str | None]]:
    """The digest of every class that is not of gradbench, or the reason why it has none.

    It covers what the class reaches in its package and in other code of its author, and all of its own file, since what
    that does when it is loaded may decide a number.
    """
    digests: dict[Part, tuple[str | None, str | None]] = {}
    for cls in sorted(classes, key=lambda cls: cls.name):
        top = cls.__module__.partition(".")[0]
        if top != origins.PACKAGE and registry.digest_of(cls) is None:  # a digest stands in the cells
            module = sys.modules.get(cls.__module__)
            file = Path((module and origins.file_of(module)) or "")
            content = [cls, file.read_bytes() if file.is_file() else b""]
            digest = fingerprint(*content, within=[top])
            digests[cls] = digest, undigested(*content, within=[top]) if digest is None else None
    return digests


def _data(parts: Iterable[AbstractSystem | AbstractEstimator], test: bool) -> dict[str, str]:
    """The digest of every data set that these systems read from files, by name."""
    asked = sorted({str(getattr(part, "dataset", "")) for part in parts})
    return {name: digest for name in asked if (digest := datasets.content(name, test))}


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
