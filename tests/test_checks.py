"""Checks and verdicts: what passes, what fails, and what cannot be said, on tables small enough to read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gradbench.errors import UserError
from gradbench.planning.cells import Cell
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import Check, Table, parse
from gradbench.tables.checks import evaluate
from gradbench.tables.schema import CELLS
from gradbench.tables.store import Run
from gradbench.tables.text import show_table
from gradbench.tables.verdict import judge
from gradbench.vocabulary.coordinates import LATE
from gradbench.vocabulary.exit import Exit

pytestmark = pytest.mark.fast

POINT = {"s": 1.0, "damp": 0.0, "T1": 10, "T2": 4, "beta": 0.1, "eps": 0.2, "seed": 0, "dtype": "float32", "batch": 2}
POINT |= LATE


def cell(estimator: str = "ep", cosine: float | None = 0.9, **other: Any) -> dict[str, Any]:
    label = other.pop("label", estimator)
    options = {"system_options": '{"N": 2}', "estimator_options": '{"nudge": "centred"}'}
    names = {"system": "toy", "system_label": "toy", "estimator": estimator, "estimator_label": label}
    row = {**POINT, **options, **names, "status": "settled", "cosine": cosine, **other}
    return {"cell": Cell.of(row).key, **row}


def frame(*cells: dict[str, Any]) -> pd.DataFrame:
    return CELLS.empty_table().from_pylist(list(cells), schema=CELLS).to_pandas()


def result(cells: pd.DataFrame, **check: Any) -> str:
    return evaluate(
        Check(**{"name": "c", **({} if "status" in check else {"metric": "cosine"}), **check}), cells
    ).result


def test_an_option_with_the_name_of_a_result_chooses_by_the_option() -> None:
    """Else a rule with an option gamma is not looked at, and one with a perfect gamma is in its place."""
    mine = cell(cosine=0.2, estimator_options='{"gamma": 1.0}', gamma=0.3)
    other = cell("aep", cosine=1.0, estimator_options='{"gamma": 0.5}', gamma=1.0)
    exact = cell("bptt", cosine=0.1, estimator_options="{}", gamma=1.0)
    assert result(frame(mine, other, exact), where={"gamma": 1.0}, min=0.5) == "fail"
    assert result(frame(mine, other, exact), where={"gamma": 0.5}, min=0.5) == "pass"
    against = {"where": {"gamma": 1.0}, "against": "bptt"}
    assert result(frame(mine, other, exact), **against, min=0.05) == "pass"
    assert result(frame(mine, other, exact), **against, min=0.15) == "fail"


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"min": 0.5}, "pass"),
        ({"min": 0.6}, "fail"),
        ({"max": 0.9}, "pass"),
        ({"max": 0.8}, "fail"),
        ({"min": 0.5, "max": 0.9}, "pass"),
        ({"min": 0.6, "max": 0.9}, "fail"),
        ({"min": 0.5, "max": 0.8}, "fail"),
    ],
)
def test_bounds_hold_for_every_cell_and_include_their_ends(bounds: dict[str, float], expected: str) -> None:
    assert result(frame(cell(cosine=0.5), cell(cosine=0.9, seed=1)), **bounds) == expected


def test_a_finding_names_the_number_the_place_and_the_worst_cell() -> None:
    cells = frame(cell(cosine=0.9), cell(cosine=0.3, seed=1), cell(cosine=0.4, seed=2))
    found = evaluate(Check(name="c", metric="cosine", min=0.5), cells)
    assert (found.cells, found.cell) == (3, cells["cell"][1])
    for word in ("cosine 0.3 < 0.5", "toy / ep", "seed=1"):
        assert word in found.detail


@pytest.mark.parametrize(
    ("where", "n"),
    [
        ({}, 3),
        ({"estimator": "ep"}, 2),
        ({"estimator": ["ep", "aep"]}, 3),
        ({"beta": 0.1}, 2),
        ({"beta": 0.1 * (1 + 1e-12)}, 2),
        ({"T2": 4.0}, 3),
        ({"N": 2}, 3),
        ({"seed": [0, 10**400]}, 3),  # no float holds it
        ({"nudge": "centred"}, 3),
        ({"status": "unsettled"}, 1),
        ({"seed": [0, 1], "status": "settled"}, 2),
    ],
)
def test_where_selects_by_column_option_and_status(where: dict[str, Any], n: int) -> None:
    cells = frame(cell(), cell(beta=0.2, status="unsettled"), cell("aep"))
    seen = evaluate(Check(name="c", metric="cosine", min=0.0, where={"status": "any"} | where), cells)
    assert (seen.result, seen.cells) == ("pass", n)


@pytest.mark.parametrize(
    ("status", "n", "told"),
    [
        (None, 1, "left out: 2 unsettled, 1 diverged"),
        ("settled", 1, "left out: 2 unsettled, 1 diverged"),
        ("unsettled", 2, "left out: 1 settled, 1 diverged"),
        (["settled", "unsettled"], 3, "left out: 1 diverged"),
        ("any", 4, ""),
    ],
)
def test_a_metric_is_that_of_settled_cells_unless_statuses_are_named_and_what_is_left_out_is_told(
    status: Any, n: int, told: str
) -> None:
    others = (cell(seed=i, status="unsettled") for i in (1, 2))
    cells = frame(cell(), *others, cell(seed=3, status="diverged"), cell(seed=4, status="skipped", cosine=None))
    where = {} if status is None else {"status": status}
    seen = evaluate(Check(name="c", metric="cosine", min=0.5, where=where), cells)
    assert (seen.result, seen.cells, seen.left_out) == ("pass", n, 4 - n)
    assert seen.detail.partition("; ")[2] == told


def test_without_a_settled_cell_there_is_no_verdict() -> None:
    seen = evaluate(
        Check(name="c", metric="cosine", min=0.5), frame(cell(status="unsettled"), cell("aep", status="unstable"))
    )
    assert (seen.result, seen.cells, seen.left_out) == ("none", 0, 2)
    assert seen.detail == "no cell is settled: 1 unsettled, 1 unstable"


def test_a_partner_that_is_not_settled_is_none() -> None:
    cells = frame(cell("aep"), cell("ep", status="nudge_diverged"))
    assert result(cells, where={"estimator": "aep"}, against="ep", min=-1.0) == "none"
    assert result(cells, where={"estimator": "aep", "status": "any"}, against="ep", min=-1.0) == "pass"


@pytest.mark.parametrize("value", [math.nan, None])
@pytest.mark.parametrize("reduce", [{}, {"seed": "max"}, {"seed": "mean"}])
def test_an_undefined_value_is_no_verdict_even_where_a_reduction_would_hide_it(value: Any, reduce: Any) -> None:
    cells = frame(cell(), cell(cosine=value, seed=1))
    assert result(cells, min=0.5, reduce=reduce) == "none"
    assert result(cells, max=1.0, reduce=reduce) == "none"


@pytest.mark.parametrize(
    "check",
    [{"min": 0.0}, {"status": "settled"}, {"min": 0, "at": {"T2": "max"}}, {"min": 0, "reduce": {"seed": "max"}}],
)
def test_no_matching_cell_is_no_verdict(check: dict[str, Any]) -> None:
    assert result(frame(), **check) == "none"
    assert result(frame(cell("aep")), **check, where={"estimator": "ep"}) == "none"
    assert result(frame(cell(status="skipped", cosine=None)), **check) == "none"


def test_skipped_cells_do_not_spoil_a_check() -> None:
    assert result(frame(cell(), cell(seed=1, status="skipped", cosine=None)), min=0.5) == "pass"
    assert result(frame(cell(), cell(seed=1, status="skipped", cosine=None)), status="settled") == "pass"


@pytest.mark.parametrize("status", ["error", "oom"])
@pytest.mark.parametrize("where", [{}, {"status": "settled"}, {"status": ["settled", "unsettled"]}, {"status": "any"}])
def test_a_cell_that_was_not_measured_is_never_left_out_and_is_no_verdict(status: str, where: dict[str, Any]) -> None:
    assert result(frame(cell(), cell(seed=1, status=status, cosine=None)), min=0.5, where=where) == "none"


def test_what_overflowed_passes_no_bound() -> None:
    cells = frame(cell(norm_ratio=1.0), cell(norm_ratio=math.inf, seed=1))
    assert result(cells, metric="norm_ratio", min=0.5) == "none"
    assert result(cells, metric="norm_ratio", min=0.5, reduce={"seed": "min"}) == "none"


def test_a_rule_is_no_partner_of_itself() -> None:
    assert result(frame(cell("aep"), cell("ep")), where={"estimator": "aep"}, against="aep", min=-1.0) == "none"
    both = frame(cell("aep", 0.5), cell("ep"))
    assert result(both, against="ep", min=-0.5) == "pass"
    assert result(both, against="ep", min=-0.1) == "fail"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"where": {"estimator": ["ep", "app"]}}, "where.estimator has a value that no cell has: .*'?app"),
        ({"where": {"T1": [200, 300]}}, "where.T1 has a value that no cell has: no planned cell has T1 = 300; T1 is"),
        ({"where": {"estimator": "ep"}, "against": "ep"}, "against = 'ep': where matches cells of that rule"),
    ],
)
def test_a_value_of_a_list_that_no_cell_has_and_a_rule_against_itself_are_mistakes(
    check: dict[str, Any], message: str
) -> None:
    grid = {"system": "toy_cons", "estimator": ["ep", "aep"], "T1": [100, 200], "T2": 4, "beta": 0.1}
    claim = {"name": "c", "metric": "cosine", "min": 0.5} | check
    suite = parse({"name": "t", "about": "", "grid": [grid], "check": [claim]}, "t")
    with pytest.raises(UserError, match=message):
        plan(suite, "t").verify(suite.checks(), "t")


def test_a_finding_and_a_verdict_are_true_where_they_pass(tmp_path: Path) -> None:
    assert [bool(evaluate(Check(**check), frame(cell()))) for check in (PASS, FAIL, NONE)] == [True, False, False]
    assert [bool(judge(stored(tmp_path / c["name"], [cell()], [c]))) for c in (PASS, FAIL)] == [True, False]


def test_a_status_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"'anny' is not a status.*'any'"):
        Check(name="c", metric="cosine", min=0.5, where={"status": "anny"})
    with pytest.raises(ValueError, match="'any' is not a status"):
        Check(name="c", metric="cosine", min=0.5, where={"status": ["settled", "any"]})


def test_a_status_check_wants_every_matching_cell_in_it() -> None:
    cells = frame(cell(), cell("aep", status="diverged"))
    assert result(cells, status="settled") == "fail"
    assert result(cells, status="settled", where={"estimator": "ep"}) == "pass"
    assert result(cells, status="diverged", where={"estimator": "aep"}) == "pass"


def test_at_keeps_the_rows_at_the_end_of_a_coordinate_in_every_group() -> None:
    cells = frame(cell(T2=2, cosine=0.1), cell(T2=4), cell("aep", T2=2, cosine=0.2), cell("aep", T2=8))
    assert result(cells, min=0.9, at={"T2": "max"}) == "pass"
    assert result(cells, max=0.2, at={"T2": "min"}) == "pass"
    assert result(cells, min=0.9) == "fail"


def test_at_is_the_extreme_of_all_matching_cells_whatever_became_of_them() -> None:
    """Where every cell at the largest T2 has diverged, those at a smaller one are no answer."""
    cells = frame(cell(T2=4), cell(T2=60, status="nudge_diverged", cosine=0.1), cell(seed=1, T2=60))
    seen = evaluate(Check(name="c", metric="cosine", min=0.5, at={"T2": "max"}), cells)
    assert (seen.result, seen.cells, seen.detail.partition("; ")[2]) == ("pass", 1, "left out: 1 nudge_diverged")
    seen = evaluate(Check(name="c", metric="cosine", min=0.5, at={"T2": "max"}), cells[:2])
    assert (seen.result, seen.detail) == ("none", "no cell is settled: 1 nudge_diverged")
    partners = frame(cell("aep", T2=4), cell("aep", T2=60), cell("ep", T2=4), cell("ep", T2=60, status="unstable"))
    assert result(partners, where={"estimator": "aep"}, against="ep", min=-1.0, at={"T2": "max"}) == "none"


def test_at_two_coordinates_is_the_corner() -> None:
    cells = frame(*(cell(T1=a, T2=b, cosine=a * b / 100) for a in (5, 10) for b in (2, 4)))
    assert result(cells, min=0.4, max=0.4, at={"T1": "max", "T2": "max"}) == "pass"
    assert result(cells, min=0.2, max=0.2, at={"T1": "max", "T2": "min"}) == "pass"


def test_at_keeps_cells_that_have_no_such_coordinate() -> None:
    cells = frame(cell(T2=2, cosine=0.1), cell(T2=4), cell("bptt", T2=None, beta=None, cosine=0.2))
    assert result(cells, min=0.5, at={"T2": "max"}) == "fail"
    assert result(cells, min=0.1, at={"T2": "max"}, where={"estimator": "bptt"}) == "pass"


def test_a_null_coordinate_is_a_group_of_its_own() -> None:
    null = {"T2": None, "beta": None}
    cells = frame(*(cell("bptt", T1 / 100 + seed, T1=T1, seed=seed, **null) for T1 in (5, 10) for seed in (0, 1)))
    assert result(cells, min=0.1, max=1.1, at={"T1": "max"}) == "pass"
    assert result(cells, min=0.1, at={"T1": "max"}, reduce={"seed": "min"}) == "pass"
    assert result(cells, min=0.61, at={"T1": "max"}, reduce={"seed": "mean"}) == "fail"


@pytest.mark.parametrize(
    ("how", "value"), [("min", 0.2), ("max", 0.9), ("mean", pytest.approx(0.5)), ("median", pytest.approx(0.4))]
)
def test_a_reduction_is_what_it_says(how: str, value: float) -> None:
    cells = frame(*(cell(seed=i, cosine=c) for i, c in enumerate((0.9, 0.2, 0.4))))
    found = evaluate(Check(name="c", metric="cosine", min=-1.0, reduce={"seed": how}), cells)
    assert float(found.detail.split()[1]) == value


def test_reductions_follow_one_another_and_what_is_reduced_no_longer_splits() -> None:
    # the best beta is another one for each seed: 0.9 and 0.7, whose mean is 0.8
    values = {(0, 0.1): 0.9, (0, 0.2): 0.1, (1, 0.1): 0.2, (1, 0.2): 0.7}
    cells = frame(*(cell(seed=seed, beta=beta, cosine=c) for (seed, beta), c in values.items()))
    assert result(cells, min=0.79, max=0.81, reduce={"beta": "max", "seed": "mean"}) == "pass"
    assert result(cells, min=0.54, max=0.56, reduce={"seed": "mean", "beta": "max"}) == "pass"  # (0.9 + 0.2) / 2


def test_a_reduction_does_not_mix_estimators() -> None:
    cells = frame(cell(cosine=0.9), cell("aep", cosine=0.1))
    assert result(cells, min=0.5, reduce={"seed": "max", "beta": "max"}) == "fail"


def test_against_is_the_difference_to_the_partner_at_equal_coordinates() -> None:
    cells = frame(cell("aep"), cell("ep", 0.6), cell("aep", 0.8, beta=0.2), cell("ep", 0.7, beta=0.2))
    where = {"estimator": "aep"}
    assert result(cells, where=where, against="ep", min=0.0999, max=0.301) == "pass"
    assert result(cells, where=where, against="ep", min=0.2) == "fail"
    assert result(cells, where=where, against="ep", min=0.2999, reduce={"beta": "max"}) == "pass"


def test_against_uses_the_same_where_and_at_for_both() -> None:
    cells = frame(cell("aep"), cell("ep", 0.6), cell("aep", 0.1, T2=2), cell("ep", 0.6, T2=2))
    assert result(cells, where={"estimator": "aep"}, against="ep", min=0.29, at={"T2": "max"}) == "pass"


@pytest.mark.parametrize("other", ["ep nudge=positive", "ep"])
def test_against_a_label_is_that_rule_and_no_other_of_its_name(other: str) -> None:
    cells = frame(cell("aep"), cell("ep", 0.1), cell("ep", 0.8, label="ep nudge=positive"))
    expected = {"ep": 0.8, "ep nudge=positive": 0.1}[other]
    bounds = {"min": expected - 1e-9, "max": expected + 1e-9}
    assert result(cells, where={"estimator": "aep"}, against=other, **bounds) == "pass"
    assert result(cells, where={"estimator_label": "aep"}, against=other, **bounds) == "pass"


def test_a_partner_that_is_not_unique_is_no_verdict() -> None:
    cells = frame(cell("aep"), cell("ep", 0.1, label="ep nudge=positive"), cell("ep", 0.8, label="ep nudge=negative"))
    assert result(cells, where={"estimator": "aep"}, against="ep", min=-1.0) == "none"


GOOD = frame(
    *(cell("aep", 0.99, seed=seed, T2=T2) for seed in (0, 1) for T2 in (2, 4)),
    *(cell("ep", 0.5, seed=seed, T2=T2) for seed in (0, 1) for T2 in (2, 4)),
)
CLAIM: dict[str, Any] = {"where": {"estimator": "aep", "status": "settled"}, "min": 0.1, "against": "ep"}
MUTATIONS = {
    "a value that became NaN": lambda df: df.assign(cosine=df["cosine"].where(df.index != 3, math.nan)),
    "a renamed estimator": lambda df: df.replace({"estimator": {"aep": "eap"}}),
    "an emptied table": lambda df: df.iloc[:0],
    "a flipped sign": lambda df: df.assign(cosine=df["cosine"].where(df.index != 2, -df["cosine"])),
    "a missing partner": lambda df: df.drop(index=5),
    "all partners missing": lambda df: df[df["estimator"] == "aep"],
    "a partner elsewhere": lambda df: df.assign(beta=df["beta"].where(df.index != 6, 0.3)),
    "partners that swapped values": lambda df: df.assign(cosine=df["cosine"].to_numpy()[::-1]),
    "a status that changed": lambda df: df.assign(status="unsettled"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("more", [{}, {"at": {"T2": "min"}, "reduce": {"seed": "min"}}, {"reduce": {"T2": "min"}}])
def test_no_mutation_of_the_table_passes(mutation: str, more: dict[str, Any]) -> None:
    if "at" in more and mutation in ("a value that became NaN", "a missing partner"):
        more = more | {"at": {"T2": "max"}}  # look where the mutation is
    assert result(GOOD, **CLAIM, **more) == "pass"
    assert result(MUTATIONS[mutation](GOOD.copy()), **CLAIM, **more) != "pass"


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the evidence that its status needs, and with a parameter."""
    if row["cosine"] is None:
        return row | {"reason": "no", "params": []}
    reading = {"cosine": row["cosine"], "norm_ratio": 1.0, "rel_error": math.sqrt(2 - 2 * row["cosine"])}
    whole = dict.fromkeys(("cosine_min", "cosine_mean"), row["cosine"]) | {"worst": "W", "params_live": 1}
    free = {"settled_share": 1.0, "rho": 0.5, "residual": 0.0, "n_force": 1}
    counts = {"params_zero": 0, "params_undefined": 0, "reference_norm": 1.0, "reason": ""}
    return (
        row
        | reading
        | whole
        | free
        | counts
        | {"params": [{"param": "W", "reference_norm": 1.0, "reason": ""} | reading]}
    )


def stored(
    folder: Path, rows: list[dict[str, Any]], checks: list[dict[str, Any]], planned: int = 0, **more: Any
) -> Run:
    run = Run(folder / "run")
    cells = [Cell.of(row) for row in (*rows, *(cell(seed=100 + i) for i in range(planned - len(rows))))]
    suite = Plan("s", tuple(cells), (), len(cells), 0, 0)
    run.start(suite.to_json(), {})
    run.claim({"check": checks, "allow_incomplete": False, **more})
    for problem in suite.problems:
        keys = {c.key for c in problem.cells}
        if there := [measured(row) | {"problem": problem.key} for row in rows if row["cell"] in keys]:
            run.keep(problem.key, there)
    run.compact(())
    return run


PASS = {"name": "a", "metric": "cosine", "min": 0.5}
FAIL = {"name": "b", "metric": "cosine", "min": 0.95}
NONE = {"name": "c", "metric": "cosine", "min": 0.5, "where": {"estimator": "nobody"}}
ERROR = cell(seed=1, status="error", cosine=None)


@pytest.mark.parametrize(
    ("rows", "checks", "more", "code"),
    [
        ([cell()], [PASS], {}, Exit.OK),
        ([cell()], [PASS, FAIL], {}, Exit.CHECK_FAILED),
        ([cell()], [PASS, NONE], {}, Exit.CHECK_FAILED),
        ([cell()], [], {}, Exit.NOTHING),
        ([cell()], [PASS], {"planned": 2}, Exit.INCOMPLETE),
        ([cell()], [FAIL], {"planned": 2}, Exit.INCOMPLETE),
        ([cell()], [], {"planned": 2}, Exit.INCOMPLETE),
        ([cell(), ERROR], [PASS | {"where": {"seed": 0}}], {}, Exit.INCOMPLETE),
        ([cell(), ERROR], [PASS | {"where": {"seed": 0}}], {"allow_incomplete": True}, Exit.OK),
        ([cell(), ERROR], [PASS], {"allow_incomplete": True}, Exit.CHECK_FAILED),
    ],
)
def test_the_exit_code_follows_the_precedence(tmp_path: Path, rows: Any, checks: Any, more: Any, code: Exit) -> None:
    assert judge(stored(tmp_path, rows, checks, **more)).code == code


def test_the_stored_verdict_says_what_the_line_says(tmp_path: Path) -> None:
    run = stored(tmp_path, [cell(), cell("aep")], [PASS, FAIL], planned=3)
    verdict = judge(run)
    kept = json.loads((run.folder / "verdict.json").read_text())
    passed = sum(f["result"] == "pass" for f in kept["findings"])
    told = json.loads(json.dumps(verdict.to_json()))
    assert {key: kept[key] for key in told} == told
    assert kept.keys() - told.keys() == {"format", "seal"}
    assert verdict.line == (
        f"VERDICT {kept['verdict']} ({kept['code']})  {passed} of {len(kept['findings'])} checks, "
        f"{kept['present']} of {kept['planned']} cells"
    )
    assert verdict.line == "VERDICT incomplete (3)  1 of 2 checks, 2 of 3 cells"


def test_a_run_that_was_cut_off_is_judged_on_its_records_and_is_incomplete(tmp_path: Path) -> None:
    run = stored(tmp_path, [cell()], [PASS], planned=2)
    for name in ("manifest.json", "params.parquet", "cells.parquet"):
        (run.folder / name).unlink()
    assert judge(run).line == "VERDICT incomplete (3)  1 of 1 checks, 1 of 2 cells"


def test_a_table_shows_cells_with_what_differs_and_seeds_as_one_line() -> None:
    found = frame(cell(seed=0, cosine=0.25), cell(seed=1, cosine=0.75), cell(T2=99, cosine=None), cell("aep"))
    table = Table(name="title", where={"estimator": "ep"}, columns=["cosine"], known="what is known")
    head, known, names, *rows = show_table(table, found).splitlines()
    assert (head, known.strip()) == ("title", "known: what is known")
    assert names.split() == ["system", "estimator", "T2", "status", "cosine"]
    assert show_table(table.model_copy(update={"where": {"estimator": "nobody"}}), found).endswith("\n  no cell")
    assert [row.split()[2:] for row in rows] == [["4", "2", "settled", "0.5"], ["99", "settled", "-"]]


def test_a_table_of_nothing_or_of_no_metric_is_a_mistake() -> None:
    content = {"name": "t", "about": "", "grid": [{"system": "toy_cons", "estimator": "ep"}]}
    with pytest.raises(UserError, match=r"table\[0\].columns: 'cosin' is not a metric"):
        parse(content | {"table": [{"name": "a", "columns": ["cosin"]}]}, "t")
    suite = parse(content | {"table": [{"name": "a", "where": {"estimator": "aep"}, "columns": ["cosine"]}]}, "t")
    with pytest.raises(UserError, match=r"table\[0\] 'a': where matches none of 1 planned cells"):
        plan(suite, "t").verify([("table", suite.table)], "t")
