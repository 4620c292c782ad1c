"""Rows of cells that have no measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradbench.planning.cells import Cell
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Mapping


def unmeasured(cell: Cell, status: Status, reason: str, problem: str | None = None) -> dict[str, Any]:
    """The row of a cell that has no measurement: skipped, error, oom."""
    return cell.identity | {
        "problem": problem,
        "status": str(status),
        "reason": reason,
        "params": [],
        "blocks": [],
        "budget": [],
        "extra": extra(cell.knobs),
    }


def extra(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """The entry `extra` of a row: columns that only some systems or rules have."""
    return [{"column": name, "value": value} for name, value in values.items()]


def skipped_rows(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the cells that a plan skips. Content of plan.json."""
    return [unmeasured(Cell.of(entry), Status.SKIPPED, entry["reason"]) for entry in plan["skipped"]]
