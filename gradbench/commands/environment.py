"""The environment of a run: device, versions, code and data, which decide whether a run may be resumed."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from gradbench.commands.progress import say
from gradbench.data import datasets
from gradbench.engine.hosts import PACKAGE, Facts, Versions, room_digests, rooms_apart, versions_here
from gradbench.errors import UserError
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning.cells import digest
from gradbench.planning.plugins import Plugin, Record, behind, title, united
from gradbench.systems.base import AbstractSystem

# in the identity, and told by name
CHANGING = ("processor", "engine", "python", "torch", "cuda", "triton", "nvrtc", "numpy")


class Environment(Versions):
    """The content of `env.json`."""

    identity: str  # equal for runs whose records may be mixed
    whole: str  # that of the run of which this one is a shard; where it is none, the same
    shard: str | None  # which one, as 2/8
    source: str  # digest of all rooms that decide numbers
    rooms: dict[str, str]  # digests of each
    plugins: list[Record]  # files and modules whose systems and rules are used, or that were named
    data: dict[str, str]  # digests of data sets that are read from files
    undigested: str | None  # why this run is never gone on with, whatever is asked for later
    commit: str | None
    dirty: bool | None
    device: str
    processor: str
    cluster: str | None  # where the workers were; None: on this machine, without a cluster
    engine: str | None  # eager, batched, compiled or fused; None of a training
    platform: str
    flags: dict[str, object]
    started: str
    command: list[str]


def describe_environment(
    key: str,
    device: str,
    parts: Iterable[AbstractSystem | AbstractEstimator],
    named: Iterable[Plugin] = (),
    test: bool = False,
    engine: str | None = None,
    workers: Facts | None = None,
    cluster: str | None = None,
    shard: str | None = None,
) -> Environment:
    """The environment in which these systems and rules are measured or trained.

    `key` is the content key of the plan or training. Plugins that are `named` are recorded too; only those behind the
    `parts` decide the identity. `test` says that images to test on are read. `engine` is the one that measures; a
    training has none. `workers` is what the workers of a `cluster` agree on, where they measure and not this machine.
    `shard` is the share of the plan that is measured, as 2/8. Raises UserError for images that cannot be had, and for a
    shard of what no digest sees, since its run could not be told from others.
    """
    from gradbench.engine import device as devices
    from gradbench.engine.precision import FLAGS

    parts = list(parts)
    rooms, used = room_digests(), behind(parts)
    source = digest(rooms)
    if workers is None:
        data, versions, processor = _data(parts, test), versions_here(device), devices.describe(device)
    else:
        data, versions, processor = workers["data"], workers["versions"], workers["processor"]
    fixed = [key, device.partition(":")[0], processor, engine, versions, source]
    reasons = _undigested(parts, used)
    content = json.dumps([*fixed, sorted(plugin.digest for plugin in used), data], sort_keys=True)
    if reasons and shard is not None:
        raise UserError(
            f"shard: shards are put together by their identity, and no digest sees all: {'; '.join(reasons)}"
        )
    whole = secrets.token_hex(8) if reasons else hashlib.sha256(content.encode()).hexdigest()[:16]
    return {
        "identity": whole if shard is None else digest([whole, shard]),
        "whole": whole,
        "shard": shard,
        "source": source,
        "rooms": rooms,
        "plugins": [plugin.record for plugin in united(named, used)],
        "data": data,
        "undigested": "; ".join(reasons) or None,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git("status", "--porcelain")) is None else bool(changed),
        "device": device,
        "processor": processor,
        "cluster": cluster,
        "engine": engine,
        **versions,
        "platform": platform.platform(),
        "flags": FLAGS,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }


def differences(env: Environment, older: Mapping[str, Any]) -> list[str]:
    """What differs between an environment and an older one and decides numbers, in words. The plan is left out."""
    known = [key for key in CHANGING if key in older]
    told = [f"{key} was {older[key]} and is {env[key]}" for key in known if older[key] != env[key]]  # type: ignore[literal-required]
    if older.get("source") != env["source"]:
        rooms = rooms_apart(env["rooms"], older.get("rooms", {}))
        told.append(f"the code of gradbench changed in {', '.join(rooms)}" if "rooms" in older else "the code changed")
    ours, theirs = ({item: d for p in e["plugins"] for item, d in p["items"].items()} for e in (env, older))
    told += [f"the {item} changed" for item in ours if item in theirs and ours[item] != theirs[item]]
    told += [
        f"the images of {name} changed" for name, content in env["data"].items() if older["data"].get(name) != content
    ]
    return told


def warn_of_undigested(env: Environment) -> None:
    """Say on stderr why a run is never gone on with, where it is not."""
    if env["undigested"]:
        say(f"gradbench: every run begins anew, since no digest sees all that decides its numbers: {env['undigested']}")


def _undigested(parts: Iterable[AbstractSystem | AbstractEstimator], used: Iterable[Plugin]) -> list[str]:
    """What no digest sees of systems and rules from functions, and of all that the plugins behind them registered."""
    told = {key: reason for plugin in used for key, reason in plugin.unseen.items()}
    for part in parts:
        if isinstance(part, AbstractSystem) and part.unseen is not None:
            told[title("system", part.name)] = f"{part.unseen} (key= of gradbench.system can stand for it)"
        elif part.unseen is not None:
            told[title("estimator", part.name)] = part.unseen
    return [f"{key}: {reason}" for key, reason in told.items()]


def data_sets(parts: Iterable[AbstractSystem | AbstractEstimator]) -> list[str]:
    """The names of the data sets of these systems."""
    return sorted({str(getattr(part, "dataset", "")) for part in parts} - {""})


def _data(parts: Iterable[AbstractSystem | AbstractEstimator], test: bool) -> dict[str, str]:
    """The digest of every data set that these systems read from files, by name."""
    return {name: digest for name in data_sets(parts) if (digest := datasets.content(name, test))}


def _git(*arguments: str) -> str | None:
    """The answer of git about the checkout that holds the package; None where no checkout holds it."""
    git = ["git", "--no-optional-locks", "-C", str(PACKAGE)]  # a lock outlives a run that is killed
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
