"""Finding and reading TOML files, given by path or by the name of a shipped one."""

from __future__ import annotations

import os.path
import tomllib
from pathlib import Path

from gradbench.errors import UserError, near_miss

SUITES = Path("suites")
CONFIGS = Path("configs")  # of trainings


def find(name: str, folder: Path, kind: str) -> Path:
    """The file of a path, or of the name of a shipped file; messages call it a `kind`."""
    path = Path(name)
    there = os.path.isfile(path)  # unlike Path.is_file, False for a name too long for a file
    if path.suffix == ".toml" or there:
        if not there:
            others = [str(p) for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
            raise UserError(f"{kind} {name!r} does not exist{near_miss(name, others) if others else ''}")
        return path
    shipped = {p.stem: p for p in folder.glob("*.toml")}
    if name not in shipped:
        hint = near_miss(name, shipped) if shipped else f"; there is no folder {folder}/ here"
        raise UserError(f"{kind} {name!r} does not exist{hint}")
    return shipped[name]


def about(path: Path) -> str:
    """The sentence `about` of a file."""
    try:
        return str(tomllib.loads(path.read_text("utf-8")).get("about", ""))
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"


def read(path: Path) -> dict[str, object]:
    """The content of a TOML file. Raises UserError where the file is no TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except ValueError as error:  # from tomllib, from utf-8, or from a number of too many digits
        raise UserError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
