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
from gradbench.vocabulary.status import Status

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
    assert [(f.at, f.worst.error) for f in answer.setting.fails] == [({"T1": 100}, 0.101)]
    assert answer.setting.within == 0.02
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
    advice = wording.ADVICE[Status(status)]
    assert text == (
        f"Nothing is said of ep: nowhere is every seed settled. Its cells are {status}. Where {status}: {advice}."
    )


def test_every_status_without_evidence_says_what_may_be_done_and_no_other_does() -> None:
    assert set(wording.ADVICE) == set(Status) - {Status.SETTLED, Status.SKIPPED}
    assert "a longer T1 does not help" in told(cell(status="collapsed"))
    both = told(cell(status="collapsed"), cell(status="unsettled", T1=50))
    assert "Where collapsed: " in both
    assert "Where unsettled: " in both
    assert "Where settled" not in told(cell(T1=50), cell(T1=50, seed=1, status="unsettled"))


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


def test_the_setting_with_the_most_places_that_hold_less_those_that_fail_is_taken() -> None:
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


def test_a_rule_that_holds_nowhere_is_told_at_the_setting_of_the_rule_to_take() -> None:
    takes = [cell("aep", T2=t, rel_error=e) for t, e in ((10, 0.5), (20, 0.01))]
    wrong = [cell(T2=t, rel_error=e, cosine_min=c) for t, e, c in ((10, 0.2, 0.9), (20, 0.8, -0.03))]
    ((first, last),) = answered(source(*takes, *wrong)).values()
    assert first.setting is not None
    assert last.setting is not None
    assert (last.grade, last.setting.values, first.setting.values) == (
        "none",
        first.setting.values,
        last.setting.values,
    )
    assert last.setting.worst.cosine_min == -0.03
    text = told(*takes, *wrong)
    assert (
        f"At T2 = 20, β = 0.1 it errs by up to 80 %, and the smallest cosine of a parameter is {wording.MINUS}0.0300"
        in text
    )
    assert "0.9000" not in text  # one minimum
    ((_, alone),) = answered(source(*takes, *wrong[:1])).values()  # not tried at that setting
    assert alone.setting is not None
    assert alone.setting.values["T2"] == 10


def test_a_rule_that_brings_fewer_coordinates_is_told_at_those_that_both_bring() -> None:
    takes = [cell("aep", T2=20, rel_error=0.01)]
    wrong = [cell("adjoint", beta=None, T2=t, rel_error=e) for t, e in ((10, 0.2), (20, 0.8))]
    ((_, last),) = answered(source(*takes, *wrong)).values()
    assert last.setting is not None
    assert last.setting.values == {"T2": 20}


def test_of_rules_that_hold_nowhere_the_one_tried_at_the_most_places_comes_first() -> None:
    rows = [cell("ep", T1=t, rel_error=0.9) for t in (100, 200)] + [cell("aep", rel_error=0.5)]
    ((first, last),) = answered(source(*rows)).values()
    assert (first.rule, first.places, last.rule, last.places) == ("ep", 2, "aep", 1)


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
    assert [(c.T1, c.work, c.reference, c.times) for c in answer.setting.costs] == [
        (100, (180.0, 180.0), (400.0, 400.0), (0.45, 0.45)),
        (200, (280.0, 280.0), (800.0, 800.0), (0.35, 0.35)),
    ]
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
        cell(seed=i, cosine=0.9990 + i / 1e4, params={"W": (0.04, 2.0, None, 1.0), "b": (0.9, 0.2, None, norm)})
        for i, norm in enumerate((3.0, 2.0, 7.0))
    ]
    answer = one(*rows, cell(T2=20, rel_error=0.5, cosine=0.8))
    assert answer.hidden is not None
    h = answer.hidden
    assert (h.cells, h.of, h.cosine, h.param, h.cell) == (3, 4, 0.9990, "W", f"{0:016x}")
    assert (h.share, h.leader, h.leads) == (0.1, "b", 0.9)
    assert (
        "The global cosine hides this: in 3 of 4 settled cells the whole gradient errs by at most 10 %, at a global "
        "cosine of 0.9990 or more, and a parameter by more than that. Most often it is W, which holds 10 % of |g|² in "
        "the median cell; b holds 90 %, and the global cosine follows it."
    ) in told(*rows, cell(T2=20, rel_error=0.5))


def test_a_parameter_that_leads_the_norm_and_errs_is_not_said_to_be_hidden_by_itself() -> None:
    text = told(cell(params={"W": (0.9, 0.2, None, 3.0), "b": (0.99, 0.05, None, 1.0)}))
    assert "Most often it is W." in text
    assert "follows it" not in text


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
    assert told(cell("tbptt", T2=None, beta=None)).startswith("Use tbptt: its error")


def test_the_threshold_of_the_suite_decides() -> None:
    assert one(cell(rel_error=0.3), faithful=0.5).grade == "all"
    assert one(cell(rel_error=0.05), faithful=0.01).grade == "none"


def test_systems_with_other_options_are_answered_apart() -> None:
    other = cell(rel_error=0.9) | {"system_label": "toy_cons N=3"}
    by_system = answered(source(cell(), other))
    assert {system: told[0].grade for system, told in by_system.items()} == {"toy_cons": "all", "toy_cons N=3": "none"}


def test_the_sentence_names_setting_error_places_and_seeds_and_the_cost_of_bptt_beside_its_own() -> None:
    rows = [cell(T1=t, seed=i, n_force=t + 20, rel_error=0.01 * (i + 1)) for t in (100, 150, 200) for i in range(3)]
    text = told(*rows, *(cell("bptt", T1=t, n_force=t, n_vjp=t) for t in (100, 150, 200)))
    assert text == (
        "Use ep at T2 = 10, β = 0.1: its error is at most 3 % at all 3 settled places (3 seeds a place). "
        "An estimate costs 120 evaluations of the force at T1 = 100, 0.3 times the 400 of BPTT; 220 at T1 = 200, "
        "0.275 times the 800 of BPTT.\n"
        "The smallest cosine of a parameter is 0.9980; T1 varies between the places."
    )
    assert "An estimate costs 120 evaluations of the force at T1 = 100; 220 at T1 = 200." in told(*rows)
    assert "BPTT" not in told(*rows)


def test_the_places_with_the_most_seeds_are_told() -> None:
    rows = [cell(T1=t, s=1.0, seed=i) for t in (100, 200) for i in range(3)] + [cell(T1=100, s=4.0)]
    text = told(*rows)
    assert "(3 seeds at 2 places and 1 seed at 1)" in text
    assert "The places with 3 seeds have s 1 and T1 100 and 200." in text
    assert "The places with" not in told(*rows[:-1])


def test_seconds_are_told_of_a_system_and_not_of_a_rule() -> None:
    there = source(cell(seconds=0.5), cell("aep", seconds=1.0), cell(system="linear", seconds=7.0), cell(seconds=None))
    assert sentences.took(there, "toy_cons").startswith("2 cells took 1.5 s, 750 ms a cell, with references")
    assert sentences.took(source(cell(seconds=None)), "toy_cons") == ""


def test_a_system_without_a_free_phase_is_told_with_its_cost() -> None:
    rows = [cell(system="residual_mlp", T1=None, seed=i, n_force=21) for i in range(3)]
    text = told(*rows, *(cell("bptt", system="residual_mlp", T1=None, n_force=1, n_vjp=1, seed=i) for i in range(3)))
    assert text.startswith("Use ep at T2 = 10, β = 0.1: its error is at most 2 % at the one settled place (3 seeds). ")
    assert "An estimate costs 21 evaluations of the force, 5.25 times the 4 of BPTT." in text


def test_an_exception_is_told_with_its_error_its_parameter_and_its_place_and_not_counted_in_the_error() -> None:
    wrong = {"cosine_min": 0.5, "params": {"W": (0.5, 0.102)}}
    rows = [cell(T1=t, rel_error=0.03) for t in (100, 200, 300)]
    text = told(*rows, cell(T1=400, **wrong))
    assert "The smallest cosine of a parameter is 0.9980 where the rule holds, and 0.5000 in all; T1 varies" in text
    assert text.startswith(
        "Use ep at T2 = 10, β = 0.1: its error is at most 3 % at 3 of 4 settled places (1 seed a place, which tells "
        "nothing of the spread). The exception: 10.2 % in W at T1 = 400. Up to 10 % counts as faithful."
    )
    assert "exception" not in told(*rows)
    many = told(*[cell(T1=t, rel_error=0.03) for t in range(1, 7)], *(cell(T1=10 * t, **wrong) for t in range(1, 6)))
    assert (
        "The 5 exceptions: 10.2 % in W at T1 = 10; 10.2 % in W at T1 = 20; 10.2 % in W at T1 = 30; and 2 more." in many
    )


def test_a_rule_that_holds_at_some_places_only_is_said_to() -> None:
    some = told(cell(T1=100), cell(T1=200, rel_error=0.5))
    assert "Use ep at T2 = 10, β = 0.1, which holds at some places only: its error is at most 2 % at 1 of 2" in some
    assert "some places only" not in told(cell(T1=100), cell(T1=200), cell(T1=300, rel_error=0.5))


def test_a_rule_that_holds_nowhere_is_warned_of_in_places_and_not_in_pairs_of_place_and_setting() -> None:
    rows = [cell(T1=t, T2=k, rel_error=0.5) for t in (100, 200) for k in (10, 20, 40)]
    assert told(*rows).startswith(
        "Do not trust ep: with no setting is its error within 10 % at any of 2 settled places. At T2 = 10"
    )
    assert "at the one settled place." in told(*rows[:3])


def test_what_to_do_and_what_to_keep_away_from_stand_before_the_rest() -> None:
    made = source(cell("aep"), cell("ep", rel_error=0.5), cell("tbptt", status="unsettled"))
    ((answers),) = answered(made).values()
    kinds = [p.kind for p in sentences.of_system(made, answers)]
    assert kinds == ["advice", "aside", "warning", "aside"]
    alone = source(cell(status="unsettled"))
    assert [p.kind for a in answered(alone).values() for p in sentences.of_system(alone, a)] == ["advice"]


def test_one_seed_is_said_to_tell_nothing_of_the_spread() -> None:
    assert "(1 seed, which tells nothing of the spread)" in told(cell())
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
    assert "at T2 = 10, dtype = float64: its error" in told(*rows)
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
            held = here.loc[here["error"] <= faithful, "error"]
            assert answer.setting.within == pytest.approx(held.max(), rel=0, abs=0, nan_ok=True)
            assert sorted(f.worst.error for f in answer.setting.fails) == sorted(here["error"].drop(held.index))
            assert answer.places == there.groupby(["T1"]).ngroups
            assert [c.T1 for c in answer.setting.costs] == sorted(here["T1"])
            compared += 1
    assert compared == 6
    assert (
        pd.Series([a.grade for told in answered(source).values() for a in told])
        .isin(["all", "most", "some", "none"])
        .all()
    )


def test_the_cause_of_a_cell_is_that_of_its_largest_error() -> None:
    """The whole gradient is that of the largest parameter, whose error may have another cause."""
    sizes = {"": {"truncation": 0.12, "asymmetry": 0.03}, "W": {"truncation": 0.3, "asymmetry": 1.1}}
    params = {"W": (0.1, 1.2, None, 1.0), "b": (0.99, 0.11, None, 9.0)}
    both = cell(rel_error=0.12, cause="truncation", cause_of="", params=params, budget=sizes)
    alone = cell(rel_error=0.12, cause="truncation", cause_of="", params=params)
    without = cell(rel_error=0.01)
    judged = source(both, alone, without).judged
    assert list(judged["cause"])[:2] == ["asymmetry", "truncation"]
    assert list(judged["cause_of"])[:2] == ["W", ""]
    assert judged["cause"].isna().tolist() == [False, False, True]
    assert [b.word for b in one(both).breaks] == ["asymmetry"]


def test_what_is_no_evidence_is_told_with_the_values_at_which_nothing_is_tested() -> None:
    rows = [cell(T1=t, seed=i) for t in (100, 200) for i in (0, 1)]
    rows += [cell(T1=50, seed=0, status="unsettled"), cell(T1=50, seed=1)]
    rows += [cell(s=4.0, seed=i, status="diverged") for i in (0, 1)]
    answer = one(*rows)
    assert [(b.word, b.cells, b.values["T1"], b.values["s"]) for b in answer.silent] == [
        ("diverged", 2, (), (4,)),
        ("unsettled", 1, (50,), ()),
    ]
    text = "Where a seed is not settled there is no evidence: diverged (2 cells, s 4); unsettled (1 cell, T1 50)."
    assert text in told(*rows)
