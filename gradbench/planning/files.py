"""Finding and reading TOML files, given by path or by the name of a shipped one."""

from __future__ import annotations

import codecs
import os.path
import tomllib
from pathlib import Path

from gradbench.errors import UserError, near_miss

# folders of shipped files, each in the working folder and in the package; a file of the working folder wins
SUITES = Path("suites")
CONFIGS = Path("configs")  # of trainings
PACKAGED = Path(__file__).parent / "shipped"  # in a checkout these are links to its own folders

DEEPEST = 100  # tables and lists in each other


def shipped(folder: Path) -> dict[str, Path]:
    """The shipped files by name: those of the working folder, and all others of the package."""
    places = [sorted(place.glob("*.toml")) for place in (PACKAGED / folder, folder)]
    return dict(sorted((path.stem, path) for paths in places for path in paths if path.is_file()))


def find(name: str, folder: Path, kind: str) -> Path:
    """The file of a path, or of the name of a shipped file; messages call it a `kind`."""
    path = Path(name)
    there = os.path.isfile(path)  # unlike Path.is_file, False for a name too long for a file
    if there:
        return path
    known = shipped(folder)
    if path.suffix != ".toml":
        if name not in known:
            raise UserError(f"{kind} {name!r} does not exist{near_miss(name, known)}")
        return known[name]
    others = [str(p) for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    hints = [near_miss(name, others), near_miss(path.stem, known)]
    raise UserError(f"{kind} {name!r} does not exist{next((h for h in hints if h.startswith('.')), '')}")


def about(path: Path) -> str:
    """The sentence `about` of a file."""
    try:
        return str(read(path).get("about", ""))
    except UserError as error:
        return f"unreadable: {str(error).removeprefix(f'{path}: ')}"


def read(path: Path) -> dict[str, object]:
    """The content of a TOML file. Raises UserError where the file is no TOML."""
    try:
        content = tomllib.loads(_text(path.read_bytes()))
    except ValueError as error:  # from tomllib, from utf-8, or from a number of too many digits
        raise UserError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not TOML: it is nested too deep") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if _deeper(content, DEEPEST):
        raise UserError(f"{path}: tables and lists stand more than {DEEPEST} deep in each other")
    return content


def _text(content: bytes) -> str:
    """The text of a file without its byte order marks, which editors on Windows write."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16, and TOML is UTF-8")
    if b"\0" in content:
        raise ValueError("it holds zero bytes, as UTF-16 does, and TOML is UTF-8")
    return content.decode().lstrip("\ufeff")


def _deeper(content: object, most: int) -> bool:
    """Whether tables and lists stand deeper than `most` in each other."""
    level: list[object] = [content]
    for _ in range(most + 1):
        level = [v for c in level for v in _inside(c)]
    return bool(level)


def _inside(content: object) -> list[object]:
    if isinstance(content, dict):
        return list(content.values())
    return content if isinstance(content, list) else []
