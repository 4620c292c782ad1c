"""Whether statements of the literature hold in a run: tried as published, under a condition, where they break, and
by controls of another rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradbench.planning.suites import Check, Outcome, Statement
from gradbench.tables.checks import evaluate
from gradbench.tables.findings import Finding

if TYPE_CHECKING:
    from pandas import DataFrame


def claimed(claims: Mapping[str, Any], cells: DataFrame) -> tuple[Finding, ...]:
    """A finding for every check and every statement of a suite."""
    checks = tuple(evaluate(Check(**check), cells) for check in claims["check"])
    return checks + tuple(tried(Statement(**statement), cells) for statement in claims.get("statement", ()))


def tried(statement: Statement, cells: DataFrame) -> Finding:
    """The outcome of a statement. It passes where that is the expected one, and where breaks and controls pass."""
    published, conditioned, breaks, controls = (
        [evaluate(check, cells) for check in checks]
        for checks in (statement.published, statement.conditioned, statement.breaks, statement.controls)
    )
    all_tried = [*published, *conditioned, *breaks, *controls]
    outcome: Outcome = "does not hold"
    if all(published):
        outcome = "holds"
    elif conditioned and all(conditioned):
        outcome = "holds under"
    told = [f"{outcome} {statement.under}" if outcome == "holds under" else outcome]
    if outcome != statement.expected:
        told.append(f"expected: {statement.expected}")
    parts = {"as published": published, statement.under: conditioned, "elsewhere": breaks, "as a control": controls}
    told += [text for words, findings in parts.items() if (text := _part(words, findings))]
    unseen = any(finding.result == "none" for finding in all_tried)
    as_expected = outcome == statement.expected and all(breaks) and all(controls)
    worst = next((f for f in all_tried if not f and f.cell), all_tried[0])
    return Finding(
        statement.name,
        "none" if unseen else "pass" if as_expected else "fail",
        sum(finding.cells for finding in all_tried),
        "; ".join(told),
        worst.cell,
        kind="statement",
        left_out=sum(finding.left_out for finding in all_tried),
    )


def _part(words: str, findings: Sequence[Finding]) -> str:
    """What the checks of one part of a statement say; empty where there are none."""
    return f"{words}: {', and '.join(finding.detail for finding in findings)}" if findings else ""
