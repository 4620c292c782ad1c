"""The manifest of a finished run: the seals of its files, which bind them to each other and to the run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from gradbench.errors import StoreError
from gradbench.tables.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

NAME = "manifest.json"
OLD_NAME = "tables.json"  # of runs that were made before files of JSON had seals; it holds the first three fields


class Manifest(NamedTuple):
    """The content of manifest.json. A seal is `sha256:` and 64 hexadecimal digits."""

    missing: int  # planned cells without a row
    tables: dict[str, str]  # the seal of every table
    records: dict[str, str]  # the seal of every record that they were made from
    run: str | None = None  # the id under which the run began
    plan: str | None = None  # the seal of plan.json
    env: str | None = None  # the seal of env.json

    @classmethod
    def of(cls, content: Any, path: Path) -> Manifest:
        """The content of a file. Raises StoreError where it is not what `compact` writes."""
        names = cls._fields[: 3 if path.name == OLD_NAME else None]
        if not isinstance(content, dict) or content.keys() != set(names):
            raise StoreError(f"{path}: damaged: it is no manifest: expected an object with {', '.join(names)}")
        missing, tables, records = (content[name] for name in names[:3])
        if type(missing) is not int or missing < 0:
            raise StoreError(f"{path}: damaged: missing = {missing!r} is no number of cells")
        for name, seals in (("tables", tables), ("records", records)):
            if not isinstance(seals, dict) or not all(_is_seal(seal) for seal in seals.values()):
                raise StoreError(f"{path}: damaged: {name} holds what is no digest")
        if tables.keys() != TABLES.keys():
            raise StoreError(f"{path}: damaged: it has digests of {sorted(tables)}, expected {sorted(TABLES)}")
        if "run" in names and not (isinstance(content["run"], str) and _is_seal(content["plan"], content["env"])):
            raise StoreError(f"{path}: damaged: run, plan or env is no name or no digest")
        return cls(**content)


def _is_seal(*values: object) -> bool:
    return all(isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) for value in values)
