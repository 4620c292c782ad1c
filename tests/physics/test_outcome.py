"""The records of outcomes: of cells that were measured, of those that were not, and of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradbench.diagnostics.judgement import Judgement
from gradbench.engine.draws import build
from gradbench.engine.outcome import Outcome, by_problem, record_of, records_of
from gradbench.engine.precision import isolated
from gradbench.engine.solving import solve
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.tables.schema import RECORD
from gradbench.vocabulary.status import Status

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Six cells of two problems, of which the last one is of a rule that failed."""
    grid = {"system": {"name": "toy_cons", "drive_std": 1.0}, "estimator": ["bptt", "ep", "adjoint"], "seed": [0, 1]}
    planned = plan(parse({"name": "x", "about": "", "grid": [grid | {"T1": 40, "T2": 5, "batch": 2}]}, "x"))
    with isolated():
        measured = [o for p in planned.problems for o in solve([p], build(p, "cpu"), planned.thresholds)]
    return [*measured[:-1], failed(measured[-1])]


def failed(outcome: Outcome) -> Outcome:
    return replace(outcome, judgement=Judgement(Status.ERROR, "it failed"), comparison=None, evidence={}, budget=None)


def test_a_record_has_a_row_for_every_cell_in_their_order(outcomes: list[Outcome]) -> None:
    table = record_of(outcomes)
    assert table.schema.equals(RECORD)
    assert table["cell"].to_pylist() == [o.cell.key for o in outcomes]
    assert table["status"].to_pylist() == [str(o.status) for o in outcomes]
    assert table["reason"][-1].as_py() == "it failed"
    assert table["cosine"].null_count == 1
    assert record_of(outcomes[::-1])["cell"].to_pylist() == [o.cell.key for o in outcomes[::-1]]


def test_rows_that_are_made_together_are_those_that_are_made_alone(outcomes: list[Outcome]) -> None:
    together = [repr(row) for row in record_of(outcomes).to_pylist()]
    assert together == [repr(row) for o in outcomes for row in record_of([o]).to_pylist()]
    parts = records_of(outcomes)
    assert [len(part) for part in parts] == [len(of_problem) for of_problem in by_problem(outcomes)] == [3, 3]
    assert [repr(row) for part in parts for row in part.to_pylist()] == together


def test_where_nothing_was_measured_rows_say_why(outcomes: list[Outcome]) -> None:
    lost = list(map(failed, outcomes[:2]))
    assert record_of(lost)["reason"].to_pylist() == ["it failed"] * 2
    row = lost[0].row()
    assert (row["status"], row["cosine"], row["params"], row["budget"]) == ("error", None, [], [])
    empty = record_of([])
    assert (len(empty), empty.schema.equals(RECORD)) == (0, True)
    assert records_of([]) == []
