"""What a gate says of a run: one finding for every claim, whatever it is that was claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Result = Literal["pass", "fail", "none"]
Kind = Literal["store", "check", "statement", "baseline", "compare", "verdict"]  # verdict: of all that was claimed


@dataclass(frozen=True)
class Finding:
    """One claim about a run: that its store is whole, that a check of its suite holds, that a baseline or
    another run is reached."""

    name: str
    result: Result  # none: nothing could be said, which is a failure
    cells: int  # how many were looked at
    detail: str  # the number that decided, and its cell
    cell: str = ""  # content key of the worst cell
    kind: Kind = "check"
    left_out: int = 0  # cells that match and were not looked at, because of their status

    @property
    def heading(self) -> str:
        """Its name, with the number of cells where it is a claim of a suite about cells."""
        return f"{self.name}  [{self.cells} cells]" if self.kind in ("check", "statement") else self.name

    @property
    def passed(self) -> bool:
        """Whether the claim holds."""
        return self.result == "pass"

    def __bool__(self) -> bool:
        """As `passed`: `if` and `assert` of a finding ask whether the claim holds."""
        return self.passed


def counted(cells: Sequence[object], words: str) -> str:
    """How many cells something is said of, and the first of them."""
    return f"{len(cells):,} {'cell' if len(cells) == 1 else 'cells'} {words}: {cells[0]}{', ...' * (len(cells) > 1)}"
