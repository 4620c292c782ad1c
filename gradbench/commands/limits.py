"""What bounds a run: seconds for a problem, failures, time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradbench.errors import UserError, near_miss, spoken
from gradbench.planning.values import number, shown
from gradbench.vocabulary.status import Status

RETRIES = ("failed",)  # what `retry` may name
_UNITS = (3600, 60, 1)  # seconds of an hour, a minute, a second


@dataclass
class Limits:
    """The bounds of a run, and how much of them is used."""

    timeout: float | None = None  # seconds for a problem, of a pack their sum
    retry: bool = False  # whether cells that failed are measured again
    max_failures: int | None = None  # cells
    stop_after: float | None = None  # seconds
    began: float = field(default_factory=time.monotonic)
    failures: int = 0  # cells that failed since the run began

    @classmethod
    def of(cls, timeout: object, retry: object, max_failures: object, stop_after: object) -> Limits:
        """The bounds as a caller gives them. Raises UserError for what is no bound."""
        if retry is not None and retry not in RETRIES:
            raise UserError(f"retry = {shown(retry)} is not known{near_miss(retry, RETRIES)}")
        return cls(
            timeout=None if timeout is None else _seconds("timeout", timeout),
            retry=retry is not None,
            max_failures=None if max_failures is None else _count("max_failures", max_failures),
            stop_after=None if stop_after is None else _seconds("stop_after", stop_after),
        )

    def count(self, statuses: Iterable[str]) -> None:
        """Count the cells of a measured problem."""
        self.failures += sum(Status(status).incomplete for status in statuses)

    def reached(self) -> str:
        """Which bound is reached, in words; empty: none is, and packs may begin."""
        if self.max_failures is not None and self.failures >= self.max_failures:
            return f"{self.failures} cells failed ({_named('max_failures')} {self.max_failures})"
        if self.stop_after is not None and time.monotonic() - self.began >= self.stop_after:
            return f"{self.stop_after:g} seconds are over ({_named('stop_after')})"
        return ""


def _named(key: str) -> str:
    return spoken(python=key, shell="--" + key.replace("_", "-"))


def _of_words(text: str) -> float:
    parts = re.fullmatch(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s?)?", text)
    if parts is None:
        raise ValueError(text)
    return sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True))


def _count(key: str, value: object) -> int:
    try:
        count = number(value)
    except ValueError:
        count = math.nan
    if not (count >= 1 and count == int(count)):
        raise UserError(f"{_named(key)} = {shown(value)}: expected a number of cells, 1 or more")
    return int(count)


def _seconds(key: str, value: object) -> float:
    """Seconds from a number, or from words as 90s, 8m, 1h30m."""
    try:
        seconds = _of_words(value) if isinstance(value, str) else float(number(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{_named(key)} = {shown(value)}: expected a time as 90s, 8m or 1h30m, or a number of seconds")
    return seconds
