"""Finding and reading TOML files, given by path or by the name of a shipped one."""

from __future__ import annotations

import codecs
import difflib
import os.path
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from gradbench.data.given import article
from gradbench.errors import UserError, spoken
from gradbench.planning import registry

# folders of shipped files, each in the working folder and in the package; a file of the working folder wins
SUITES = Path("suites")
CONFIGS = Path("configs")  # of trainings
# by folder: what it holds, the verb that takes it, and a key that the other kind has not
OTHER = {SUITES: ("suite", "run", "grid"), CONFIGS: ("training", "train", "optimiser")}
PACKAGED = Path(__file__).parent / "shipped"  # in a checkout these are links to its own folders

SHOWN = 80  # letters of a line that a message repeats
DEEPEST = 100  # tables and lists in each other


def shipped(folder: Path) -> dict[str, Path]:
    """The shipped files by name: those of the working folder, and all others of the package."""
    places = [sorted(place.glob("*.toml")) for place in (PACKAGED / folder, folder)]
    return dict(sorted((path.stem, path) for paths in places for path in paths if path.is_file()))


def find(name: object, folder: Path, kind: str) -> Path:
    """The file of a path, or of the name of a shipped file; messages call it a `kind`."""
    if not isinstance(name, str | os.PathLike) or isinstance(os.fspath(name), bytes):
        made = ", or what gradbench.suite makes of a table" if kind == "suite" else ""
        raise UserError(f"{kind}: got {article(name)}, expected a path or a name{made}")
    name = str.__str__(os.fspath(name))
    path = Path(name)
    if os.path.isfile(name):  # unlike Path.is_file, False for a name too long for a file
        return path
    known = shipped(folder)
    if path.suffix != ".toml" and name in known:
        return known[name]
    if os.path.lexists(name):
        raise UserError(f"{kind} {name!r}: expected a TOML file, and this is {_nature(name)}")
    for place, (other, verb, _) in OTHER.items():
        if place != folder and name in shipped(place):
            raise UserError(f"{kind} {name!r} does not exist, but a {other} of this name does: {_call(verb, name)}")
    if what := registry.what_is(name):
        told = spoken(python=f"it stands among the keys of a {kind}", shell=f"gradbench show {name}")
        raise UserError(f"{kind} {name!r} does not exist, but {what} of this name does: {told}")
    raise UserError(f"{kind} {name!r} does not exist{_nearest(path, known)}")


def _call(verb: str, name: str) -> str:
    """What takes a file of the other kind, as a command or as a call."""
    return spoken(python=f"gradbench.{verb}({name!r})", shell=f"gradbench {verb} {name}")


def _nature(name: str) -> str:
    """What stands at a path that is no regular file."""
    if os.path.isdir(name):
        return "a folder"
    return "a device or a pipe" if os.path.exists(name) else "a symbolic link that leads to nothing"


def _nearest(path: Path, known: Mapping[str, Path]) -> str:
    """The near miss among shipped files and the files of a folder, which are compared without their endings."""
    try:
        around = sorted(filter(os.path.isfile, path.parent.glob("*.toml")))
    except (OSError, ValueError):  # no folder can have this name
        around = []
    words = {p.stem: str(p) for p in around} | {name: name for name in known}
    by_letters = {stem.lower(): word for stem, word in words.items()}
    close = difflib.get_close_matches(path.stem.lower(), by_letters, n=1)
    if close:
        return f". Did you mean {by_letters[close[0]]!r}?"
    return "" if path.suffix == ".toml" else f"; known: {', '.join(known)}"


def about(path: Path) -> str:
    """The sentence `about` of a file."""
    try:
        return str(read(path).get("about", ""))
    except UserError as error:
        return f"unreadable: {str(error).removeprefix(f'{path}: ')}"


def read_kind(path: Path, folder: Path) -> dict[str, object]:
    """The content of a file of the kind that a folder holds. Raises UserError for a file of the other kind."""
    content = read(path)
    for place, (other, verb, key) in OTHER.items():
        if place != folder and key in content and OTHER[folder][2] not in content:
            raise UserError(f"{path} is a {other}, and no {OTHER[folder][0]}: {_call(verb, str(path))}")
    return content


def read(path: Path) -> dict[str, object]:
    """The content of a TOML file. Raises UserError where the file is no TOML."""
    text = ""
    try:
        text = _text(path.read_bytes())
        content = tomllib.loads(text)
    except ValueError as error:  # from tomllib, from utf-8, or from a number of too many digits
        raise UserError(f"{path}: not TOML: {_located(str(error), text)}") from None
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
    try:
        return content.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(f"line {line} holds the byte 0x{byte:02x}, which is not UTF-8, and TOML is UTF-8") from None


def _located(mistake: str, text: str) -> str:
    """What tomllib says of a text, with the line or the key that it means."""
    place = re.search(r"\(at line (\d+), column (\d+)\)", mistake)
    if place is None:
        return mistake
    written = text.split("\n")[int(place[1]) - 1].strip()[:SHOWN]
    if "\ufeff" in written:
        return f"line {place[1]} holds a byte order mark, which only the start of a file may: were two files joined?"
    if mistake.startswith("Cannot overwrite a value"):
        return f"line {place[1]} sets a key that has a value already: {written}"
    return f"{mistake}: {written}" if written else mistake


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
