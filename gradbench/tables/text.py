"""Cells as a table of text: the numbers of a suite, printed with what is known of them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gradbench.planning.selection import CONTROL, REFERENCE, matches
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.planning.suites import Table

WIDTH = 120  # characters


def show_table(table: Table, cells: DataFrame) -> str:
    """Title, what is known, and a line for every cell: the coordinates that differ, its status and `table.columns`.

    All seeds share one line: the median of their numbers, and the number of seeds of every status.
    """
    rows = cells.loc[[matches(row, table.where) for row in cells.to_dict("records")]]
    rows = rows if "status" in table.where else rows[rows["status"] != Status.SKIPPED]
    varied = [c for c in COORDINATES if c != "seed" and rows[c].nunique() > 1]
    keys = ["system_label", "estimator_label", *varied]
    lines = []
    for values, group in rows.groupby(keys, dropna=False, sort=False):
        counts = group["status"].value_counts()
        status = ", ".join(s if len(group) == 1 else f"{n} {s}" for s, n in counts.items())
        numbers = {c: group[c].astype(float).median() for c in table.columns}
        lines.append(dict(zip(keys, values, strict=True)) | {"status": status} | numbers)
    head = textwrap.wrap(f"known: {table.known}", WIDTH, initial_indent="  ", subsequent_indent="  ")
    text = _text(lines) if lines else "no cell"
    return "\n".join([table.name, *(head if table.known else []), *(f"  {line}" for line in text.splitlines())])


def show_causes(cells: DataFrame) -> str:
    """The number of settled cells of every rule and cause of an error; empty where no cell has a cause."""
    import pandas as pd

    measured = cells[(cells["status"] == Status.SETTLED) & ~cells["estimator"].isin([REFERENCE, CONTROL])]
    wanting = measured[measured["cause"].notna()]
    if wanting.empty:
        return ""
    counts = pd.crosstab([wanting["system_label"], wanting["estimator_label"]], wanting["cause"])
    counts = counts[[str(cause) for cause in Cause if cause in counts]]
    table = counts.reset_index().rename(columns={"system_label": "system", "estimator_label": "estimator"})
    table = table.rename_axis(None, axis=1).replace(0, "-")
    head = f"causes: {len(wanting):,} of {len(measured):,} settled estimates err beyond what is faithful"
    return "\n".join([head, *(f"  {line}" for line in table.to_string(index=False).splitlines())])


def _text(lines: list[dict[str, object]]) -> str:
    import pandas as pd

    frame = pd.DataFrame(lines).rename(columns={"system_label": "system", "estimator_label": "estimator"})
    return frame.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.4g}")
