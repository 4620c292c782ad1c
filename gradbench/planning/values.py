"""Values as people write them, in TOML and on the command line: numbers, lists, ranges, KEY=VALUE."""

from __future__ import annotations

import json
import math
import re
import struct
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from numbers import Real

from gradbench.data.given import article
from gradbench.errors import UserError, near_miss
from gradbench.vocabulary.coordinates import Coordinate

LARGEST = 2**63 - 1  # whole number that a table can hold
POINTS = 100_000  # of a range, at most
SHORT = 60  # letters of a value that a message repeats
SHOWN = 200  # letters of a mistake that a message repeats
# numbers as people and other programs write them; TOML wants a digit on both sides of the point, and no 0 before others
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
UNQUOTED = re.compile(r"[A-Za-z0-9_-]+")  # a key that needs no quotes
LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
TOKEN = re.compile(r"""\"(?:\\.|[^"\\])*"|'[^']*'|.""", re.DOTALL)  # a string of TOML, or a character
KEY = re.compile(r"\s*[^\W\d][\w-]*\s*=")
# magnitude of the smallest and the largest number that a dtype holds; smaller ones count as 0 in what is measured
RANGES = {"float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127), "float64": (2.0**-1022, (2 - 2.0**-52) * 2.0**1023)}
Options = dict[str, tuple[object, ...]]  # of a system or an estimator: values by name
UNSEEN = {"Cf", "Zl", "Zp"}  # categories of Unicode: format, such as a change of direction, and separators of lines


def scalar(value: object) -> object:
    """The Python value of a scalar of numpy, or of an array or a tensor without axes; anything else as it is."""
    if isinstance(value, str):
        return str.__str__(value)  # what an enum of words holds, not its name
    if isinstance(value, bool | int | float) and type(value) in (bool, int, float):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        if getattr(value, "mask", False):  # of numpy; its item is 0.0
            return value
        try:
            return value.item()
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # such as a tensor that holds no number
            return value
    return value


def shown(value: object) -> str:
    """A value as a message repeats it; of what has no text of its own, as a function or a module, the kind."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too long to be told"
    if " at 0x" in text or text.startswith("<module ") or (text.count("\n") and hasattr(value, "__dict__")):
        return article(value)
    text = " ".join(text.split())
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def toml(value: object) -> str:
    """A value as a TOML file has it in a line."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{k if UNQUOTED.fullmatch(str(k)) else json.dumps(k)} = {toml(v)}" for k, v in value.items())
            + " }"
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else shown(value)


def misnamed(name: object) -> str:
    """What keeps a value from being the name of a system, a rule or a suite; "" where it is one."""
    if not isinstance(name, str):
        return f"it is {article(name)}, and no text"
    if not name.strip():
        return "it is empty"
    if re.search(r"[/\\]", name):
        return "it holds a slash"
    return untypable(name)


def untypable(text: str) -> str:
    """What in a name a shell or a terminal takes for something else; "" where there is nothing."""
    if text.startswith("-"):
        return "it begins with -, as an option of a command does"
    if text.startswith("~"):
        return "it begins with ~, which a shell takes for the folder of a user"
    categories = {unicodedata.category(letter) for letter in text}
    if "Cc" in categories:
        return "it holds a line break or another control character"
    return "it holds a character that is not seen and changes how text is shown" if categories & UNSEEN else ""


def number(value: object) -> float:
    """A finite float, 0 or large enough not to count as 0 in what is measured."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        raise ValueError(f"{shown(value)} is not a number")
    try:
        taken = float(value)
    except OverflowError:  # whole numbers of TOML have any number of digits
        raise ValueError("a number of more than 300 digits is too large") from None
    except ValueError:  # a signalling NaN
        taken = math.nan
    if not abs(taken) < math.inf:
        raise ValueError(f"{value!r} is not finite")
    # by its bits: where numbers of this size count as 0 a comparison takes it for 0, and it prints as 0.0
    if 0 < int.from_bytes(struct.pack(">d", abs(taken)), "big") < 2**52:
        raise ValueError(f"a number that is not 0 and below {RANGES['float64'][0]:.1e} is too small")
    return taken


def check_truth(argument: str, value: object) -> None:
    """Raise UserError where an argument is neither true nor false: a word such as "no" would count as true."""
    if not isinstance(scalar(value), bool):
        raise UserError(f"{argument}: got {shown(value)}, expected True or False")


def check_held(value: float, dtype: str) -> None:
    """Raise ValueError for a number that a dtype cannot hold."""
    least, most = RANGES[dtype]
    if abs(value) > most:
        raise ValueError(f"{value!r} is too large for {dtype}, which holds numbers of up to {most:.1e}")
    if 0 < abs(value) < least:
        raise ValueError(f"{value!r} is too small for {dtype}, in which numbers below {least:.1e} count as 0")


def whole(value: object) -> int:
    """An int that a table can hold; 3.0 counts as 3."""
    value = scalar(value)
    if not number(value).is_integer() or int(value) != value:  # type: ignore[call-overload]  # a number is one
        raise ValueError(f"{value!r} is not a whole number")
    taken = int(value)  # type: ignore[call-overload]
    if abs(taken) > LARGEST:
        raise ValueError(f"{value!r} is above {LARGEST}")
    return taken


def word(value: object) -> object:
    """A word; a dtype of torch or numpy is its name. Anything else as it is."""
    if isinstance(value, str):
        return str.__str__(value)
    if type(value).__name__ == "dtype" or type(value).__module__ == "numpy.dtypes":
        return str(value).removeprefix("torch.")
    if isinstance(value, type) and value.__module__ == "numpy":
        return value.__name__
    return value


def expanded(value: object) -> list[object]:
    """The values of a scalar, a list, {linspace = [start, stop, n]} or {logspace = [exponent, exponent, n]}."""
    if isinstance(value, dict):
        return list(_range(value))
    values = listed(value)
    values = [value] if values is None else values
    if not values:
        raise ValueError("the list is empty: nothing would run")
    return values


def listed(value: object) -> list[object] | None:
    """The entries of a list, a tuple or a range, or of an array with one axis, by value; None: it is none of these."""
    if isinstance(value, list | tuple | range):
        return list(value)
    axes = getattr(value, "shape", None)
    if not isinstance(axes, tuple) or not axes or not hasattr(value, "tolist"):
        return None
    if len(axes) > 1:
        raise ValueError(f"an array of shape {tuple(axes)} is no list of values")
    return list(value.tolist())


def _range(table: dict[str, object]) -> Sequence[float]:
    if len(table) != 1 or (kind := next(iter(table))) not in ("linspace", "logspace"):
        raise ValueError(f"a range is {{linspace = [start, stop, n]}} or {{logspace = ...}}, not {table!r}")
    ends = listed(table[kind])
    if ends is None or len(ends) != 3:
        raise ValueError(f"{kind} takes [start, stop, n]")
    start, stop, n = number(ends[0]), number(ends[1]), whole(ends[2])
    if not 2 <= n <= POINTS:
        raise ValueError(f"{kind} takes 2 to {POINTS:,} points, not {n:,}")
    if kind == "logspace" and max(abs(start), abs(stop)) > 300:
        raise ValueError("logspace takes exponents of ten from -300 to 300")
    if not abs(stop - start) < math.inf:
        raise ValueError(f"{kind}: {start:g} and {stop:g} are too far from each other")
    points = [start + (stop - start) * i / (n - 1) for i in range(n)]
    if kind == "logspace":
        return [_int_if_whole(_short(10.0**v)) for v in points]
    between = (v if v == int(v) else _short(v) for v in points[1:-1])
    return [_int_if_whole(v) for v in (start, *between, stop)]


def _short(value: float) -> float:
    """A computed value in 12 digits, so that no label ends in round-off."""
    return float(f"{value:.12g}")


def _int_if_whole(value: float) -> float:
    """A range may give whole numbers."""
    return int(value) if value == int(value) else value


def once(values: Sequence[object]) -> tuple[object, ...]:
    """The values. Raises ValueError where two are equal."""
    seen, unhashable = set[object](), list[object]()
    for value in values:
        try:
            twice = value in seen
            seen.add(value)
        except TypeError:  # a table or a list
            twice = value in unhashable
            unhashable.append(value)
        if twice:
            raise ValueError(f"{value!r} stands there twice")
    return tuple(values)


def words(value: object) -> tuple[object, ...]:
    """A word or a list of words, none twice."""
    return once(expanded(value))


def one(coordinate: Coordinate, value: object) -> float | int | str:
    """A single value of a coordinate."""
    if value is None:
        raise ValueError("None is no value: leave it out to take the default")
    parsed = word(value) if coordinate.type is str else whole(value) if coordinate.type is int else number(value)
    if coordinate.type is str and not isinstance(parsed, str):
        raise ValueError(f"{shown(value)} is not a word{near_miss(str(value), coordinate.choices)}")
    coordinate.check(parsed)  # type: ignore[arg-type]  # a word is checked against the choices
    return parsed  # type: ignore[return-value]


def many(coordinate: Coordinate, value: object) -> tuple[object, ...]:
    """The values of a coordinate along a grid: a scalar, a list or a range, none twice."""
    return once([one(coordinate, v) for v in expanded(value)])


def name_and_options(entry: object) -> tuple[str, dict[str, object]]:
    """Name and options of a system or an estimator, given as a name or as a table with a name."""
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(f"{shown(entry)} is neither a name nor a table with a name")
    return str.__str__(table["name"]), {k: v for k, v in table.items() if k != "name"}


def choices(value: object) -> tuple[object, ...]:
    """Names, or tables of a name and options. An option may be a list or a range of values."""
    chosen: list[tuple[str, Options]] = []
    for entry in expanded(value) if not isinstance(value, dict) else [value]:
        name, options = name_and_options(entry)
        choice = name, {k: once(expanded(v)) for k, v in options.items()}
        if choice in chosen:
            raise ValueError(f"{shown(entry)} stands there twice")
        chosen.append(choice)
    return tuple(chosen)


def settings(pairs: Iterable[str], where: str) -> dict[str, object]:
    """KEY=VALUE of a command line or a label, by key.

    A value is TOML; several values with commas are a list; any other text is a string. KEY=VALUE after a comma is
    a setting of its own. Raises UserError, since every caller is a command; `where` begins its message.
    """
    read: dict[str, object] = {}
    for pair in pairs:
        shown = repr(pair if len(pair) <= SHOWN else f"{pair[:SHOWN]}...")
        for key, pieces in _by_key(pair, f"{where} {shown}"):
            if key in read:
                raise UserError(f"{where} {shown}: {key} is set twice")
            try:
                read[key] = _value(pieces)
            except ValueError as error:
                raise UserError(f"{where} {shown}: {error}") from None
    return read


def _by_key(pair: str, where: str) -> Iterator[tuple[str, list[str]]]:
    """Every key of a text with its values, as they are written."""
    first, *others = _pieces(pair) or pair.split(",")
    grouped = [[first]]
    for piece in others:
        if KEY.match(piece):
            grouped.append([piece])
        else:
            grouped[-1].append(piece)
    for setting, *more in grouped:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not (key and equals and text):
            raise UserError(f"{where}: expected KEY=VALUE")
        yield key, [text, *more]


def _pieces(text: str) -> list[str] | None:
    """A text cut at its commas, but not within quotes or brackets. None where these do not close."""
    pieces, depth = [""], 0
    for token in TOKEN.findall(text):
        depth += (token in "[{") - (token in "]}")
        if depth < 0 or token in ("'", '"'):
            return None
        if token == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += token
    return None if depth else pieces


def _value(pieces: Sequence[str]) -> object:
    """What a text between commas means; a list where there are commas. Raises ValueError for what is no value."""
    values = _toml(",".join(pieces))
    if values is None:
        values = [_word(piece.strip()) for piece in pieces]
    return values[0] if len(pieces) == 1 else values


def _word(text: str) -> object:
    """A value that TOML may not know: a number with a bare point, or a word."""
    if LEADING_ZERO.match(text) and NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number: write it without zeros in front")
    if NUMBER.fullmatch(text):
        return float(text)
    values = _toml(text)
    if not values and text.startswith(("[", "{")):
        raise ValueError("this list or table is not TOML: its brackets close, and words in it stand in quotes")
    return values[0] if values else text


def _toml(text: str) -> list[object] | None:
    """The values of a TOML array without its brackets; None where the text is none."""
    if "\n" in text or _pieces(text) is None:  # else a comment could hide a part of the text
        return None
    try:
        values: list[object] = tomllib.loads(f"v = [{text}]")["v"]
    except ValueError:
        return None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return values
