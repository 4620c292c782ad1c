"""What the report says of a run in words and numbers, against tables whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from answering import cell, source

from gradbench.pages import matrix, sentences, wording
from gradbench.pages.answers import TESTED, Answer, answered
from gradbench.pages.composing import rendered
from gradbench.pages.sources import Source
from gradbench.tables.store import Run
from gradbench.tables.verifying import trusted
from gradbench.vocabulary.coordinates import COORDINATES

pytestmark = pytest.mark.fast


def one(*rows: dict[str, Any], **more: Any) -> Answer:
    """The answer of the one rule of these rows."""
    ((answer,),) = answered(source(*rows, **more)).values()
    return answer


def told(*rows: dict[str, Any]) -> str:
    made = source(*rows)
    return "\n".join(sentences.plain(sentences.of_system(made, a)) for a in answered(made).values())


def test_a_setting_holds_where_every_seed_is_within_the_threshold() -> None:
    answer = one(cell(seed=0, rel_error=0.02), cell(seed=1, rel_error=0.1))
    assert (answer.grade, answer.holds, answer.tested) == ("all", 1, 1)
    assert answer.setting is not None
    assert answer.setting.values == {"T2": 10, "beta": 0.1}
    assert answer.setting.seeds == {2: 1}


def test_one_seed_beyond_the_threshold_makes_a_place_fail() -> None:
    rows = [cell(seed=0), cell(seed=1, rel_error=0.101, cosine_min=0.5), cell(T1=200, seed=0), cell(T1=200, seed=1)]
    answer = one(*rows)
    assert answer.setting is not None
    assert (answer.setting.holds, answer.setting.places, answer.grade) == (1, 2, "some")
    assert answer.setting.fails == ({"T1": 100},)
    assert answer.setting.worst.cell == f"{1:016x}"
    assert answer.setting.worst.error == 0.101
    assert answer.setting.worst.cosine_min == 0.5


def test_the_largest_error_of_a_parameter_decides_and_is_named() -> None:
    answer = one(cell(params={"W": (0.999, 0.03), "b": (0.6, 0.8)}))
    assert answer.grade == "none"
    assert answer.setting is not None
    assert (answer.setting.worst.error, answer.setting.worst.param) == (0.8, "b")


def test_a_parameter_without_a_reference_decides_nothing() -> None:
    reason = "the reference of b is below the floor of liveness"
    assert one(cell(params={"W": (0.999, 0.03), "b": (math.nan, 7.0, reason)})).grade == "all"


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_estimate_that_is_not_finite_is_not_within_any_threshold(error: float) -> None:
    answer = one(cell(params={"W": (math.nan, error, "the estimate is not finite")}))
    assert answer.grade == "none"
    assert answer.setting is not None
    assert answer.setting.worst.error == math.inf
    assert "not finite" in told(cell(params={"W": (math.nan, error, "the estimate is not finite")}))


@pytest.mark.parametrize("status", ["unsettled", "collapsed", "diverged", "unstable", "undefined", "error", "oom"])
def test_nothing_is_said_where_no_cell_settled_however_good_its_cosine_is(status: str) -> None:
    answer = one(cell(status=status), cell(status=status, seed=1))
    assert (answer.grade, answer.setting, answer.tested) == ("silent", None, 0)
    assert answer.untested == {status: 2}
    text = told(cell(status=status), cell(status=status, seed=1))
    assert text == f"Nothing is said of ep: nowhere is every seed settled. Its cells are {status}."


def test_a_place_where_one_seed_is_not_settled_is_not_counted() -> None:
    answer = one(cell(T1=50, seed=0), cell(T1=50, seed=1, status="unsettled"), cell(seed=0), cell(seed=1))
    assert answer.setting is not None
    assert (answer.setting.places, answer.setting.holds) == (1, 1)
    assert answer.untested == {"settled": 1, "unsettled": 1}


def test_a_second_phase_that_diverges_from_a_settled_state_is_a_failure_of_the_rule() -> None:
    gone = cell(status="nudge_diverged", rel_error=math.nan, cosine=math.nan, cosine_min=math.nan, worst=None)
    answer = one(gone)
    assert answer.grade == "none"
    assert [b.word for b in answer.breaks] == ["nudge_diverged"]


def test_reference_and_controls_are_no_rules() -> None:
    assert answered(source(cell("bptt"), cell("control"))) == {}


def test_a_skipped_cell_is_no_cell_of_a_rule() -> None:
    assert answered(source(cell(status="skipped"))) == {}


def test_the_setting_that_holds_at_most_places_beyond_its_failures_is_taken() -> None:
    wide = [cell(T2=20, T1=t, rel_error=0.02 if t > 100 else 0.3) for t in (100, 200, 300, 400)]
    narrow = [cell(T2=5, T1=t, n_force=10) for t in (100,)]
    answer = one(*wide, *narrow)
    assert answer.setting is not None
    assert answer.setting.values["T2"] == 20
    assert [(s.value, s.holds, s.tested) for s in answer.reach["T2"]] == [(5, 1, 1), (20, 3, 4)]


def test_of_equal_settings_the_cheapest_is_taken_and_then_the_most_exact() -> None:
    dear, cheap = cell(T2=20, n_force=140), cell(T2=10, n_force=120)
    answer = one(dear, cheap)
    assert answer.setting is not None
    assert answer.setting.values["T2"] == 10
    rough, fine = cell(beta=0.1, rel_error=0.05), cell(beta=0.2, rel_error=0.01)
    answer = one(rough, fine)
    assert answer.setting is not None
    assert answer.setting.values["beta"] == 0.2


def test_where_nothing_holds_the_nearest_setting_is_told() -> None:
    answer = one(cell(T2=10, rel_error=0.9), cell(T2=20, rel_error=0.3), cell(T2=40, rel_error=0.5))
    assert (answer.grade, answer.reach) == ("none", {})
    assert answer.setting is not None
    assert answer.setting.values["T2"] == 20


def test_a_product_with_the_jacobian_counts_as_three_and_costs_are_those_of_the_same_place() -> None:
    rule = [cell(T1=t, n_force=t + 20, n_jvp=10, n_vjp=10) for t in (100, 200)]
    reference = [cell("bptt", T1=t, n_force=t, n_vjp=t) for t in (100, 200)]
    answer = one(*rule, *reference)
    assert answer.setting is not None
    assert answer.setting.work == (180.0, 280.0)
    assert answer.setting.times == (280 / 800, 180 / 400)
    other = [cell("bptt", T1=t, n_force=1, n_vjp=1, system="toy_noncons") for t in (100, 200)]
    assert one(*rule, *other, *reference).setting == answer.setting
    elsewhere = one(*rule, cell("bptt", T1=999, n_force=1, n_vjp=1))
    assert elsewhere.setting is not None
    assert elsewhere.setting.times is None


def test_the_rule_to_take_comes_first_and_costs_decide_between_equals() -> None:
    rows = [
        cell("ep", rel_error=0.5),
        cell("aep", n_jvp=10),
        cell("adjoint", beta=None),
        cell("tbptt", status="unsettled"),
    ]
    ((told),) = answered(source(*rows)).values()
    assert [a.rule for a in told] == ["adjoint", "aep", "ep", "tbptt"]


def test_what_the_global_cosine_hides_is_told_with_the_parameter() -> None:
    rows = [
        cell(seed=i, cosine=0.9990 + i / 1e4, params={"W": (0.04 + i / 10, 2.0), "b": (0.9, 0.2)}) for i in range(3)
    ]
    answer = one(*rows, cell(T2=20, rel_error=0.5, cosine=0.8))
    assert answer.hidden is not None
    h = answer.hidden
    assert (h.cells, h.of, h.cosine, h.param, h.lowest, h.cell) == (3, 4, 0.9990, "W", 0.04, f"{0:016x}")
    assert "The global cosine hides this: it reads 0.9990 or more at 3 of 4 settled cells" in told(
        *rows, cell(T2=20, rel_error=0.5)
    )


def test_a_parameter_that_errs_with_the_whole_gradient_is_not_hidden() -> None:
    assert one(cell(rel_error=0.5, params={"W": (0.04, 2.0)})).hidden is None


def test_causes_are_counted_with_the_values_at_which_they_act() -> None:
    rows = [cell(T2=t, rel_error=0.5, cause="truncation") for t in (5, 10)] + [
        cell(beta=0.5, rel_error=0.3, cause="nudge")
    ]
    rows += [cell(T2=80)]
    assert [(b.word, b.cells, b.values) for b in one(*rows).breaks] == [
        ("truncation", 2, {"T2": (5, 10), "beta": (0.1,)}),
        ("nudge", 1, {"T2": (10,), "beta": (0.5,)}),
    ]


def test_an_error_that_was_not_taken_apart_is_told_as_such() -> None:
    assert [b.word for b in one(cell(rel_error=0.5, cause=None)).breaks] == ["without a cause"]


def test_a_rule_without_coordinates_of_its_own_has_a_setting_without_values() -> None:
    answer = one(cell("tbptt", T2=None, beta=None))
    assert answer.setting is not None
    assert answer.setting.values == {}
    assert " at  " not in told(cell("tbptt", T2=None, beta=None))


def test_the_threshold_of_the_suite_decides() -> None:
    assert one(cell(rel_error=0.3), faithful=0.5).grade == "all"
    assert one(cell(rel_error=0.05), faithful=0.01).grade == "none"


def test_systems_with_other_options_are_answered_apart() -> None:
    other = cell(rel_error=0.9) | {"system_label": "toy_cons N=3"}
    by_system = answered(source(cell(), other))
    assert {system: told[0].grade for system, told in by_system.items()} == {"toy_cons": "all", "toy_cons N=3": "none"}


def test_the_sentence_names_setting_places_seeds_worst_and_cost() -> None:
    rows = [cell(T1=t, seed=i, n_force=t + 20, rel_error=0.01 * (i + 1)) for t in (100, 200) for i in range(3)]
    text = told(*rows, *(cell("bptt", T1=t, n_force=t, n_vjp=t) for t in (100, 200)))
    assert text.startswith(
        "ep can be trusted: at T2 = 10, β = 0.1 its error is at most 10 %, in every parameter and in every seed, "
        "at both settled places (T1 varies). It was measured with 3 seeds a place; the worst is an error of 3 %; "
        "the smallest cosine of a parameter is 0.9980. It costs 120 to 220 evaluations of the force, "
        "0.28 to 0.3 times as many as the reference takes there."
    )


def test_one_seed_is_said_to_tell_nothing_of_the_spread() -> None:
    assert "measured with 1 seed, which tells nothing of the spread; the worst" in told(cell())
    assert "spread" not in told(cell(), cell(seed=1))


def test_a_tiny_error_is_told_as_such() -> None:
    assert [wording.percent(v) for v in (0.0, 9e-6, 1e-5, 0.1234, 24.7)] == [
        "0 %",
        "<0.001 %",
        "0.001 %",
        "12.3 %",
        "2,470 %",
    ]


def test_completeness_counts_what_is_measured_and_what_is_evidence() -> None:
    made = source(cell(), cell(seed=1, status="error"), cell(seed=2, status="skipped"))
    text = sentences.plain([sentences.completeness(made)])
    assert text == (
        "The suite makes no checks. 1 of 2 cells are measured; 1 of them are settled, and only these are evidence."
    )


def test_a_matrix_has_a_row_for_every_rule_on_every_system() -> None:
    rows = matrix.rows_of(
        answered(source(cell(), cell("aep", rel_error=0.4), cell("aep", system="toy_noncons", status="collapsed")))
    )
    assert rows[["system", "estimator", "grade"]].to_numpy().tolist() == [
        ["toy_cons", "ep", "all"],
        ["toy_cons", "aep", "none"],
        ["toy_noncons", "aep", "silent"],
    ]
    assert rows["cosine_min"].tolist()[:2] == [0.998, 0.998]
    assert rows["places"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0.99991, "0.9999"),
        (0.99996, "0.999960"),
        (1.0, "1.000000"),
        (-0.5, f"{wording.MINUS}0.5000"),
        (math.nan, wording.DASH),
    ],
)
def test_a_cosine_that_is_not_one_does_not_read_one(given: float, text: str) -> None:
    assert wording.cosine(given) == text


def test_a_coordinate_of_rules_may_be_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradbench.planning.registry.of_rules", lambda: frozenset({"T2", "dtype"}))
    rows = [cell(dtype="float32", rel_error=0.5, cause="precision"), cell(dtype="float64")]
    answer = one(*rows)
    assert answer.setting is not None
    assert answer.setting.values == {"T2": 10, "dtype": "float64"}
    assert [(s.value, s.holds) for s in answer.reach["dtype"]] == [("float32", 0), ("float64", 1)]
    assert answer.breaks[0].values["dtype"] == ("float32",)
    assert "at T2 = 10, dtype = float64 its error" in told(*rows)
    assert "dtype = float64" in rendered(source(*rows))


def test_every_coordinate_is_a_setting_or_a_place() -> None:
    answer = one(cell(damp=0.0), cell(damp=1.0, rel_error=0.5), cell(damp=1.0, batch=8, rel_error=0.5))
    assert answer.setting is not None
    assert answer.setting.varied == ("damp", "batch")
    assert set(answer.setting.values) | set(answer.setting.worst.at) == set(COORDINATES)


def test_the_answers_of_a_run_are_what_plain_pandas_says_of_its_tables(finished: Path) -> None:
    run = trusted(Run(finished))
    source = Source.of(run)
    faithful = source.thresholds.faithful
    cells = run.cells
    params = run.params[~run.params["reason"].fillna("").str.startswith("the reference")]
    largest = params.groupby("cell")["rel_error"].max()
    cells["error"] = np.fmax(cells["rel_error"], cells["cell"].map(largest))
    compared = 0
    for system, by_rule in answered(source).items():
        for answer in by_rule:
            of_rule = cells[(cells["system_label"] == system) & (cells["estimator_label"] == answer.rule)]
            points = of_rule.groupby(["T1", "T2", "beta"], dropna=False)
            there = points.agg(
                n=("seed", "nunique"), tested=("status", lambda s: s.isin(TESTED).all()), error=("error", "max")
            )
            there = there[there["tested"]].reset_index()
            assert answer.tested == len(there)
            assert answer.holds == (there["error"] <= faithful).sum()
            if answer.setting is None:
                continue
            here = there[there["T2"] == answer.setting.values["T2"]]
            assert answer.setting.places == len(here)
            assert answer.setting.worst.error == here["error"].max()
            compared += 1
    assert compared == 6
    assert (
        pd.Series([a.grade for told in answered(source).values() for a in told])
        .isin(["all", "most", "some", "none"])
        .all()
    )
