"""Seals as the store makes them, for files that a test has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradbench.tables import store


def reseal(path: Path, content: bytes) -> bool:
    """Write a table whose bytes were changed, with the seal that they need; False where its seal is gone."""
    start = content.rfind(store.BLANK[:7])
    if start < 0 or start + len(store.BLANK) > len(content):
        return False
    blank = content[:start] + store.BLANK + content[start + len(store.BLANK) :]
    path.write_bytes(store._sealed(blank))
    return True


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table with its seal."""
    store.write_table(path, table, store.SHORT if path.parent.name == "records" else store.LONG)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, which need not be an object."""
    if isinstance(content, dict):
        try:
            store.write_json(path, content)
            return
        except TypeError:
            pass
    path.write_text(json.dumps(content))


def reseal_checkpoint(path: Path) -> bool:
    """Whether a checkpoint whose bytes were changed could be sealed again: it has no seal yet."""
    return path.exists()


def unfinish(folder: Path) -> None:
    """Take from a finished run what says that it is finished."""
    (folder / store.DIGESTS).unlink()
