"""A verdict and a comparison as Markdown, for a pull request or the summary of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradbench.tables.comparing import Comparison
    from gradbench.tables.findings import Finding
    from gradbench.tables.verdict import Verdict

_ORDER = ("fail", "none", "pass")  # what has to be read stands first


def verdict_markdown(verdict: Verdict) -> str:
    """The line of the verdict, its findings with the failed ones first, and how many cells have which status.

    It holds no time and no link, so that the same run gives the same bytes.
    """
    statuses = ", ".join(f"{n:,} {as_code(status)}" for status, n in sorted(verdict.statuses.items()))
    env = {} if verdict.snapshot is None else verdict.snapshot.env
    made = [("run", verdict.run), ("suite", verdict.suite), *((k, env.get(k)) for k in ("commit", "device", "torch"))]
    return _paragraphs(
        f"**{verdict.line}**",
        _findings(verdict.findings),
        f"Cells: {statuses}" if statuses else "",
        ", ".join(f"{name} {as_code(str(value))}" for name, value in made if value),
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The line of a comparison, its findings with the failed ones first, its metrics, and what differs around it."""
    numbers = [
        [as_code(metric), cells, *(f"{change:.3g}" for change in changes), worse, as_code(cell)]
        for metric, cells, *changes, worse, cell in comparison.table.itertuples(index=False)
    ]
    environment = [[name, as_code(str(a)), as_code(str(b))] for name, (a, b) in comparison.environment.items()]
    return _paragraphs(
        f"**{comparison.line}**",
        _findings(comparison.findings),
        _table(["metric", "cells", "median change", "worst change", "noise there", "worse", "its cell"], numbers),
        _table(["environment", "first", "second"], environment),
    )


def as_code(text: str) -> str:
    """A text as it is, as code: there nothing is a link, a name of somebody, or markup.

    A pipe would end the cell of a table, and is escaped; behind a backslash it needs a space, since readers disagree on
    what two backslashes before a pipe mean.
    """
    text = " ".join(text.split())
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text[0] == "`" or text[-1] in "`\\" else ""
    inner = text.replace("\\|", "\\ |").replace("|", "\\|")
    return f"{fence}{space}{inner}{space}{fence}"


def _findings(findings: Sequence[Finding]) -> str:
    ordered = sorted(findings, key=lambda f: (_ORDER.index(f.result), f.kind != "store"))
    rows = [[f.result.upper(), f.kind, as_code(f.name), f.cells, as_code(f.detail)] for f in ordered]
    return _table(["result", "kind", "claim", "cells", "detail"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in _with_header(header, lines)) if lines else ""


def _with_header(header: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    yield " | ".join(header)
    yield " | ".join("---" for _ in header)
    yield from lines


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts)) + "\n"
