"""Tables as compressed columns, for a page that carries its data.

A pack is a header of JSON, with the columns and their words, and behind it the bytes of all columns; both are
compressed as one zlib stream and written in base64. The bytes of a column stand in planes, first the lowest byte of
every number, so that equal bytes stand side by side. There are three kinds of columns:

- `words`: a number for every row, the place of its value in a list of the header; 0 is null. These are words, and
  numbers of which few differ, which are kept exactly.
- `digits`: numbers rounded to so many significant digits, as a whole number and a power of ten. What a page shows of
  them is what it would show of the table.
- `hex`: keys of 16 hexadecimal digits, as 8 bytes each.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame, Series

NULL, INF, MINUS_INF = 127, 126, 125  # powers of ten that stand for what is no number
KEY = 16  # hexadecimal digits of a cell
FEW = 0.05  # of the rows: so many different numbers are kept in a list
SHORT = 2**12  # the longest list of numbers
DOUBT = 1e-6  # how near to a tie a number has to be for its rounding to be in doubt; its error is far below


def packed(tables: Mapping[str, DataFrame], digits: Mapping[str, Mapping[str, int]], meta: Mapping[str, Any]) -> str:
    """Tables and what else a page knows, as base64 of a zlib stream.

    `digits` says by table how many significant digits a column keeps; a column of numbers that it does not name is
    kept exactly. `meta` is plain data.
    """
    planes: list[bytes] = []
    header: dict[str, Any] = {"meta": meta, "tables": {}}
    for name, table in tables.items():
        columns = {}
        for column in table.columns:
            told, content = _column(table[column], digits.get(name, {}).get(str(column)))
            columns[str(column)] = told
            planes.append(content)
        header["tables"][name] = {"rows": len(table), "columns": columns}
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    content = len(head).to_bytes(4, "little") + head + b"".join(planes)
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _column(column: Series[Any], digits: int | None) -> tuple[dict[str, Any], bytes]:
    if column.name == "cell":
        return {"kind": "hex"}, _planes(_bytes_of(column))
    numeric = column.dtype.kind in "fiu"
    if digits is None or not numeric:
        return _words(column)
    different = column.nunique()
    if different <= min(SHORT, FEW * len(column)):
        return _words(column.map(lambda v: float(f"{v:.{digits - 1}e}")))
    exponents, numbers = _decimal(column.to_numpy(float), digits)
    width = (10**digits).bit_length() // 8 + 1
    wide = _planes(numbers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width])
    return {"kind": "digits", "width": width}, exponents.astype("<i1").tobytes() + wide


def _words(column: Series[Any]) -> tuple[dict[str, Any], bytes]:
    """The places of the values in a list of them, in the order in which they come; 0 is null."""
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    places: dict[Any, int] = {}
    codes = np.zeros(len(column), np.uint32)
    for i, value in enumerate(column.tolist()):
        if value is not None and value == value:
            codes[i] = places.setdefault(value, len(places) + 1)
    plain = [special.get(str(v), v) if isinstance(v, float) and not math.isfinite(v) else v for v in places]
    whole = [int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**53 else v for v in plain]
    width = max(1, (len(places).bit_length() + 7) // 8)
    shown = codes.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width]
    return {"kind": "words", "width": width, "words": whole}, _planes(shown)


def _decimal(values: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of ten and whole numbers, rounded as `format` rounds, so that the page shows what a table would show."""
    exponents, numbers = np.zeros(len(values), int), np.zeros(len(values), int)
    exponents[np.isnan(values)] = NULL
    exponents[values == np.inf], exponents[values == -np.inf] = INF, MINUS_INF
    rows = np.flatnonzero(np.isfinite(values) & (values != 0))
    wide = values[rows].astype(np.longdouble)
    power = np.floor(np.log10(np.abs(wide))).astype(int) - digits + 1
    scaled = wide * np.power(np.longdouble(10), -power)
    whole = np.rint(scaled)
    exponents[rows], numbers[rows] = power, whole.astype(int)
    for i in rows[np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) < DOUBT]:  # `format` knows which way a tie goes
        mantissa, _, shown = f"{values[i]:.{digits - 1}e}".partition("e")
        exponents[i], numbers[i] = int(shown) - digits + 1, int(mantissa.replace(".", ""))
    return exponents, numbers


def _bytes_of(keys: Series[Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, KEY // 2)


def _planes(content: np.ndarray) -> bytes:
    return np.ascontiguousarray(content.T).tobytes()
