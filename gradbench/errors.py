"""Mistakes of the caller. Numerical trouble is never an exception: it is a status in a row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something asked for does not exist or makes no sense; the message names it and a way out."""


class SystemFaultError(UserError):
    """A system computes what no system may. In a run this is the status of its cells."""


class RuleFaultError(SystemFaultError):
    """The function of a rule raises, or returns what no estimate is. In a run this is the status of its cells."""


class StoreError(Exception):
    """A result folder is damaged or cannot be written."""


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put the file and the key before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def near_miss(word: object, known: Iterable[str]) -> str:
    """`. Did you mean 'x'?` where something close is known, else the known words."""
    words = sorted(map(str, known))
    lower = {w.lower(): w for w in words}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1)
    return f". Did you mean {lower[close[0]]!r}?" if close else f"; known: {', '.join(words)}"
