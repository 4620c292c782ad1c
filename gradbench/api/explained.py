"""Why a cosine is what it is, as an object of Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradbench.commands.explaining import Explanation, explain_cell, picture
from gradbench.commands.telling import tell
from gradbench.errors import public
from gradbench.planning.cells import Cell
from gradbench.vocabulary.status import Thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.dynamics.field import Field

WIDTH = 100  # characters of a line


class Explained:
    """An explanation that prints as the text of `gradbench explain`: certificate, ladder, cause and remedy."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation

    @classmethod
    def of(cls, row: Mapping[str, Any], field: Field) -> Explained:
        """The error of a measurement taken apart; `row` is its row, and `field` that of its problem on the CPU."""
        return cls(explain_cell(Cell.of(row), row, Thresholds(), field))

    @property
    def cause(self) -> str:
        """The cause of the error: of the whole gradient, or else of its worst parameter; "none" where there is none."""
        ladder = self.explanation.ladder
        return "none" if ladder is None else str(ladder.culprit[0])

    @property
    def remedy(self) -> str | None:
        """What would help; None where nothing is known to help, or nothing needs to."""
        return self.explanation.remedy

    @public()
    def plot(self) -> Figure | None:
        """The explanation as a figure; None where the free phase diverged."""
        return picture(self.explanation)

    def __str__(self) -> str:
        return tell(self.explanation, WIDTH)

    __repr__ = __str__
