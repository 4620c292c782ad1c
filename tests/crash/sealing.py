"""Seals as the store makes them, for files that a test has changed."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradbench.tables import disk, manifest


def reseal(path: Path, content: bytes) -> bool:
    """Write a table whose bytes were changed, with the seal that they need; False where its place is gone."""
    start = disk._place(content)
    if start < 0:
        return False
    path.write_bytes(disk._sealed(content, start))
    return True


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table with its seal."""
    disk.write_table(path, table, disk.SHORT if path.parent.name == "records" else disk.LONG)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with its seal; only an object can have one."""
    path.write_bytes(disk.sealed_json(content) if isinstance(content, dict) else json.dumps(content).encode())


def reseal_checkpoint(path: Path, content: bytes, rng: random.Random) -> bool:
    """Write a checkpoint with a number of one buffer changed, and the digest that it needs then."""
    import torch

    from gradbench.engine import checkpoint

    held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    buffer = held["state"][rng.choice(sorted(held["state"]))].reshape(-1)
    buffer[rng.randrange(len(buffer))] += 1
    held["digest"] = checkpoint.digest_of(held)
    torch.save(held, path)
    return True


def unfinish(folder: Path) -> None:
    """Take from a finished run what says that it is finished."""
    (folder / manifest.NAME).unlink()
