"""Cells as a table of text: the numbers of a suite, printed with what is known of them; and words of a sentence.

A width is a number of characters; None is as wide as the text is. What does not fit is folded, and nothing is cut off.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.planning.suites import Table

WIDTH = 120  # of paragraphs, where the text may be as wide as it is
WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
LEAST = 20  # width of a column of words that is folded within itself


def show_table(table: Table, cells: DataFrame, width: int | None = None) -> str:
    """Title, what is known, and a line for every cell: the coordinates that differ, its status and `table.columns`.

    All seeds share one line: the median of their numbers, and the number of seeds of every status.
    """
    from gradbench.tables.selecting import selected

    rows = selected(cells, table.where)
    varied = [c for c in COORDINATES if c != "seed" and rows[c].nunique() > 1]
    keys = ["system_label", "estimator_label", *varied]
    lines = []
    for values, group in rows.groupby(keys, dropna=False, sort=False):
        counts = group["status"].value_counts()
        status = ", ".join(s if len(group) == 1 else f"{n} {s}" for s, n in counts.items())
        numbers = {c: group[c].astype(float).median() for c in table.columns}
        lines.append(dict(zip(keys, values, strict=True)) | {"status": status} | numbers)
    narrow = min(width or WIDTH, WIDTH)
    known = textwrap.wrap(f"known: {table.known}", narrow, initial_indent="  ", subsequent_indent="  ")
    text = _text(lines, width) if lines else ["no cell"]
    head = [*wrapped(table.name, width), *(known if table.known else [])]
    return "\n".join([*head, *(f"  {line}" for line in text)])


def show_causes(cells: DataFrame, width: int | None = None) -> str:
    """The number of settled cells of every rule and cause of an error; empty where no cell has a cause."""
    import pandas as pd

    measured = cells[(cells["status"] == Status.SETTLED) & (cells["estimator"].map(registry.role) == Role.RULE)]
    wanting = measured[measured["cause"].notna()]
    if wanting.empty:
        return ""
    counts = pd.crosstab([wanting["system_label"], wanting["estimator_label"]], wanting["cause"])
    counts = counts[[str(cause) for cause in Cause if cause in counts]]
    table = counts.reset_index().rename(columns={"system_label": "system", "estimator_label": "estimator"})
    table = table.rename_axis(None, axis=1).replace(0, "-")
    head = f"causes: {len(wanting):,} of {len(measured):,} settled estimates err beyond what is faithful"
    return "\n".join([*wrapped(head, width, 2), *(f"  {line}" for line in _fitted(table, width))])


def wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """The lines of a text, broken between words; what is broken off a line is indented as far as the line and more."""
    lines = []
    for line in text.splitlines():
        if width is None or len(line) <= width:
            lines.append(line)
            continue
        margin = " " * (len(line) - len(line.lstrip()))
        further = margin + " " * indent
        lines += textwrap.wrap(line.lstrip(), width, initial_indent=margin, subsequent_indent=further, **WHOLE_WORDS)
    return lines


def columns(
    rows: Sequence[Mapping[str, str]],
    width: int | None = None,
    *,
    head: bool = True,
    widths: Mapping[str, int] | None = None,
) -> list[str]:
    """Rows of words as a table. The last column is folded within itself where it is wide enough.

    Else the columns that do not fit stand below their row, with their names. `widths` are those of the columns where
    these are not to depend on the rows.
    """
    if widths is None:
        widths = {key: max(len(key) if head else 0, *(len(row[key]) for row in rows)) for key in rows[0]}
    fitting = list(widths)
    if width is not None:
        while len(fitting) > 1 and _least(fitting, widths, last=fitting[-1] == list(widths)[-1]) > width - 2:
            fitting.pop()
    lines = ["  ".join(key.ljust(widths[key]) for key in fitting).rstrip()] if head else []
    for row in rows:
        *before, last = fitting
        start = "".join(row[key].ljust(widths[key]) + "  " for key in before)
        room = None if width is None else max(width - 2 - len(start), 1)
        first, *more = wrapped(row[last], room) or [""]
        lines += [f"{start}{first}".rstrip(), *(" " * len(start) + line for line in more)]
        below = ", ".join(f"{key} {row[key]}" for key in widths if key not in fitting and row[key])
        lines += wrapped(f"  {below}", None if width is None else width - 2, 2) if below else []
    return [f"  {line}" for line in lines]


def _least(fitting: Sequence[str], widths: Mapping[str, int], *, last: bool) -> int:
    """The width that columns need at least; the last one of a table may be folded."""
    sizes = [widths[key] for key in fitting]
    if last:
        sizes[-1] = min(sizes[-1], LEAST)
    return sum(sizes) + 2 * (len(sizes) - 1)


def _text(lines: list[dict[str, object]], width: int | None) -> list[str]:
    import pandas as pd

    frame = pd.DataFrame(lines).rename(columns={"system_label": "system", "estimator_label": "estimator"})
    return _fitted(frame, width)


def _fitted(frame: DataFrame, width: int | None) -> list[str]:
    """The lines of a frame. Where these do not fit, labels stand above the numbers of their row."""
    lines = frame.to_string(index=False, na_rep="-", float_format=_short).splitlines()
    if width is None or max(map(len, lines)) <= width - 2:
        return [str(line) for line in lines]
    told: list[str] = []
    for row in frame.to_dict("records"):
        label = f"{row.pop('system')} / {row.pop('estimator')}"
        numbers = ", ".join(f"{key} {_cell(value)}" for key, value in row.items() if _cell(value) != "-")
        told += [*wrapped(label, width - 2, 4), *wrapped(f"  {numbers}", width - 2, 2)]
    return told


def _cell(value: object) -> str:
    if isinstance(value, float):
        return _short(value) if value == value else "-"
    return "-" if value is None else str(value)


def _short(value: float) -> str:
    return f"{value:.4g}"


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *before, last = [*words] or [""]
    return f"{', '.join(before)} and {last}" if before else last


def capital(sentence: str) -> str:
    """A sentence with a large first letter."""
    return sentence[:1].upper() + sentence[1:]
