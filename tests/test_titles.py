"""Titles of figures: computed from tables, true in both directions, and plain where there is nothing to say."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from gradbench.plots import curve, explained, grounds, paired, sweep_titles, titles, wording
from gradbench.tables.text import capital
from gradbench.vocabulary.coordinates import COORDINATES

pytestmark = pytest.mark.fast


def cells(readings: dict[str, dict[float, float]], system: str = "toy", x: str = "T2", **more: object) -> pd.DataFrame:
    """Settled cells: rule to value of a coordinate to smallest cosine."""
    rows = [
        {"estimator_label": label, x: value, "cosine_min": smallest, "cosine": 0.9995, "worst": "W"}
        for label, by in readings.items()
        for value, smallest in by.items()
    ]
    fixed = {"system_label": system, "status": "settled", "cost": 100.0, "reference_cost": 40.0, "antisymmetry": 0.1}
    fixed |= {"dtype": "float32"}
    fixed |= {"missed": 1, "compared": 3, "T1": 100}
    return pd.DataFrame(rows).assign(**fixed | more)


RIGHT, WRONG, NEAR = {5: 0.999, 60: 0.9999}, {5: 0.2, 60: 0.3}, {5: 0.95, 60: 0.96}


@pytest.mark.parametrize(
    ("of_ep", "words"),
    [
        (RIGHT, "follows BPTT in every parameter at every tested T2"),
        (WRONG, "misses W at every tested T2, though its global cosine is 0.9995 or more"),
        (NEAR, "misses W at every tested T2, though its global cosine is 0.9995 or more"),
        ({5: 0.5, 60: 0.999}, "follows BPTT in every parameter only at T2 = 60 (the largest tested)"),
        ({5: 0.5, 15: 0.999, 60: 0.999}, "follows BPTT in every parameter for T2 ≥ 15 (tested up to 60)"),
        ({5: 0.999, 60: 0.5}, "follows BPTT in every parameter only at T2 = 5 (the smallest tested)"),
        ({5: 0.999, 15: 0.999, 60: 0.5}, "follows BPTT in every parameter for T2 ≤ 15 (tested from 5)"),
        ({5: 0.5, 15: 0.999, 60: 0.5}, "follows BPTT in every parameter at 1 of 3 tested T2"),
        ({5: 0.5, 15: 0.95, 60: 0.5}, "misses W at every tested T2, though its global cosine is 0.9995 or more"),
        ({5: 0.2}, "misses W at T2 = 5, though its global cosine is 0.9995 or more"),
        ({2000: 0.999}, "follows BPTT in every parameter at T2 = 2000"),
    ],
)
def test_a_row_of_a_sweep_says_where_a_rule_follows_and_where_it_misses(of_ep: dict[float, float], words: str) -> None:
    said = sweep_titles.of_sweep("toy", cells({"ep": of_ep}), "T2")
    assert said.replace(wording.BLANK, " ") == f"toy: naive EP {words}"


def test_rules_that_do_the_same_share_a_clause_and_a_verb_is_said_once() -> None:
    here = cells({"ep": RIGHT, "aep": RIGHT, "mine": {5: 0.5, 60: 0.999}})
    said = sweep_titles.of_sweep("toy", here, "T2").replace(wording.BLANK, " ")
    last = "mine only at T2 = 60 (the largest tested)"
    assert said == f"toy: naive EP and asymmetric EP follow BPTT in every parameter at every tested T2; {last}"


def test_a_seed_that_misses_is_enough_for_a_rule_not_to_follow() -> None:
    here = pd.concat([cells({"ep": RIGHT}, seed=0), cells({"ep": {5: 0.5, 60: 0.9999}}, seed=1)])
    assert "only at" in sweep_titles.of_sweep("toy", here, "T2")
    assert "at every tested T2" in sweep_titles.of_sweep("toy", here[here["seed"] == 0], "T2")


def test_a_parameter_is_named_only_where_it_is_the_worst_in_every_cell() -> None:
    here = cells({"ep": WRONG})
    assert "misses W at" in sweep_titles.of_sweep("toy", here, "T2")
    assert "misses a parameter at" in sweep_titles.of_sweep("toy", here.assign(worst=["W", "b"]), "T2")
    several = here.assign(missed=[2, 3], compared=4)
    assert "misses 2 to 3 of 4 parameters (W worst) at every tested T2" in sweep_titles.of_sweep("toy", several, "T2")
    assert "misses all 3 parameters (W worst) at" in sweep_titles.of_sweep("toy", here.assign(missed=3), "T2")


def test_a_rule_that_follows_in_every_parameter_is_not_praised_where_its_global_cosine_is_small() -> None:
    here = cells({"ep": RIGHT, "aep": {5: 0.5, 60: 0.999}}).assign(cosine=[0.15, 0.999, 0.1, 0.95])
    told = sweep_titles.of_sweep("toy", here, "T2").replace(wording.BLANK, " ")
    assert told == (
        "toy: naive EP follows BPTT in every parameter at every tested T2, though the global cosine is only 0.15 at "
        "T2 = 5; asymmetric EP only at T2 = 60 (the largest tested)"
    )
    both = {"a k=1": here, "b": cells({"ep": RIGHT})}
    yet = "; yet the global cosine of naive EP on a falls to 0.15 there"
    assert sweep_titles.of_sweeps(both, "T2").endswith(yet)
    assert "global cosine 0.15" in titles.of_cost("toy", here.assign(cost=[1, 2, 3, 4]))
    assert "global" not in titles.of_cost("toy", here.assign(cost=[2, 1, 3, 4]))
    fine = {"a": cells({"ep": RIGHT}), "b": cells({"ep": RIGHT})}
    assert "global" not in sweep_titles.of_sweeps(fine, "T2") + titles.of_costs(fine)


def test_a_rule_that_ran_on_one_system_does_not_count_among_those_that_follow_on_every_one() -> None:
    rules = {f"rule{i}": RIGHT for i in range(5)}
    systems = {"a": cells(rules | {"lone": RIGHT}), "b": cells(rules | {"rule4": WRONG})}
    assert sweep_titles.of_sweeps(systems, "T2") == (
        "Of 5 rules, rule0, rule1 and 2 more follow BPTT in every parameter at some T2 on every system tried; rule4 "
        "on 1 of 2; 1 more tried on one system only"
    )


def test_a_small_global_cosine_hides_nothing() -> None:
    assert "global" not in sweep_titles.of_sweep("toy", cells({"ep": WRONG}, cosine=0.4), "T2")


def test_of_what_is_not_settled_nothing_is_said_but_that() -> None:
    here = cells({"ep": RIGHT}, status="unsettled")
    silent = f"toy: {grounds.NOTHING}"
    assert sweep_titles.of_sweep("toy", here, "T2") == silent
    assert titles.of_cloud("toy", here) == silent
    assert titles.of_cost("toy", here) == silent
    assert sweep_titles.of_sweeps({"toy": here}, "T2") == silent
    assert titles.of_residuals(here) == "Both cells have not settled and are no evidence"
    assert titles.of_antisymmetry(here) == capital(grounds.NOTHING)
    gone = pd.concat([here, *[cells({"ep": RIGHT}, status="collapsed")] * 2])
    collapsed = "toy: the state shrinks to 0 in 4 of 6 cells drawn here (collapsed), so that no cosine is evidence"
    assert titles.of_cloud("toy", gone) == collapsed
    half = cells({"ep": RIGHT}).assign(status=["unsettled", "settled"])
    partly = pd.concat([half, cells({"ep": {90: 0.999}})])
    assert "at every settled T2" in sweep_titles.of_sweep("toy", partly, "T2")


def test_cells_that_miss_at_rest_are_counted_and_the_systems_named_where_all_do() -> None:
    half = cells({"ep": RIGHT}).assign(status=["unsettled", "settled"])
    lead = "Wherever the state has settled, naive EP follows BPTT in every parameter"
    assert titles.of_residuals(half) == f"{lead}. 1 of 2 cells have not settled and are no evidence"
    assert titles.of_residuals(cells({"ep": RIGHT})) == lead
    both = cells({"ep": RIGHT, "aep": RIGHT})
    assert (
        titles.of_residuals(both)
        == "Wherever the state has settled, naive EP and asymmetric EP follow BPTT in every parameter"
    )
    form = titles.of_residuals(cells({"ep": RIGHT, "ep k=1": WRONG, "ep k=2": RIGHT}))
    assert form == f"{lead}; naive EP k=1 misses it somewhere"
    two = pd.concat([cells({"ep": RIGHT}, "toy k=1"), cells({"ep": WRONG, "aep": RIGHT}, "b"), half])
    said = (
        "Even where the state has settled, naive EP misses BPTT in some parameter in 2 of 5 cells "
        "(in every one on b); asymmetric EP in "
    )
    assert titles.of_residuals(two) == f"{said}none of 2 cells. 1 of 8 cells have not settled and are no evidence"
    assert titles.of_residuals(cells({"ep": WRONG})).endswith("naive EP misses BPTT in some parameter in both cells")


def test_a_sweep_of_several_systems_names_those_on_which_a_rule_never_follows() -> None:
    systems = {name: cells({"ep": by, "aep": RIGHT}, name) for name, by in (("a", RIGHT), ("b", WRONG), ("c", NEAR))}
    said = sweep_titles.of_sweeps(systems, "T2")
    never = "Naive EP follows BPTT in every parameter at no tested T2 on b and c, at every tested T2 on a"
    assert said == f"{never}; asymmetric EP at every tested T2 on all 3 systems"
    unsettled = systems | {"d x=1": cells({"ep": RIGHT}, status="diverged")}
    assert sweep_titles.of_sweeps(unsettled, "T2").endswith("on all 3 systems; nothing is settled on d")
    gone = systems | {"d x=1": cells({"ep": RIGHT}, status="collapsed")}
    assert sweep_titles.of_sweeps(gone, "T2").endswith("on all 3 systems; d collapsed")
    nowhere = {name: cells({"ep": WRONG}) for name in "abc"}
    assert (
        sweep_titles.of_sweeps(nowhere, "T2")
        == "Naive EP follows BPTT in every parameter at no tested T2 on all 3 systems"
    )
    named = {name: here.rename(columns={"T2": "beta"}) for name, here in systems.items()}
    assert "beta" not in sweep_titles.of_sweeps(named, "beta")


@pytest.mark.parametrize(
    ("of_a", "of_b", "words"),
    [
        ({5: 0.5, 15: 0.999, 60: 0.999}, WRONG, "at no tested T2 on b, for T2 ≥ 15 (tested up to 60) on a"),
        ({5: 0.5, 15: 0.999, 60: 0.999}, {5: 0.2, 60: 0.999}, "at some T2 on both systems"),
        ({5: 0.999, 60: 0.2}, RIGHT, "only at T2 = 5 (the smallest tested) on a, at every tested T2 on b"),
        ({5: 0.999}, {60: 0.999, 90: 0.999}, "at every settled T2 on both systems"),
    ],
)
def test_reaches_of_a_kind_are_told_together(of_a: dict[float, float], of_b: dict[float, float], words: str) -> None:
    said = sweep_titles.of_sweeps({"a": cells({"ep": of_a}), "b": cells({"ep": of_b})}, "T2")
    assert said.replace(wording.BLANK, " ") == f"Naive EP follows BPTT in every parameter {words}"


def test_a_rule_that_follows_somewhere_on_many_systems_is_said_to_without_their_names() -> None:
    rising = {5: 0.5, 15: 0.999, 60: 0.999}
    systems = {name: cells({"ep": rising if name == "a" else RIGHT}) for name in "abcd"}
    said = sweep_titles.of_sweeps(systems, "T2").replace(wording.BLANK, " ")
    assert said == "Naive EP follows BPTT in every parameter at some T2 on all 4 systems"
    said = sweep_titles.of_sweeps(systems | {"d": cells({"ep": WRONG})}, "T2").replace(wording.BLANK, " ")
    assert said.endswith("at no tested T2 on d, for T2 ≥ 15 (tested up to 60) on a, at every tested T2 on b and c")


def beta(single: dict[float, float], double: dict[float, float]) -> pd.DataFrame:
    """Settled cells of asymmetric EP: beta to 1 - cos, in float32 and in float64."""
    by = (("float32", single), ("float64", double))
    return pd.concat([cells({"aep": {b: 1 - e for b, e in of.items()}}, x="beta", dtype=dtype) for dtype, of in by])


@pytest.mark.parametrize(
    ("single", "double", "told"),
    [
        ({1e-4: 6e-5, 1e-2: 1e-8, 1: 1e-6}, {1e-4: 1e-12, 1e-2: 1e-8, 1: 1e-6}, "to 6e-5 at β = 0.0001, float64"),
        ({1e-4: 0.5, 1e-2: 1e-8, 1: 1e-6}, {1e-4: 1e-12, 1e-2: 1e-8, 1: 1e-6}, "and makes it miss BPTT, float64"),
        ({1e-4: 6e-5, 1e-2: 1e-8, 1: 1e-6}, {1e-4: 6e-5, 1e-2: 1e-8, 1: 1e-6}, ""),  # float64 turns back too
        ({1e-4: 1e-8, 1e-2: 1e-7, 1: 1e-6}, {1e-4: 1e-12, 1e-2: 1e-8, 1: 1e-6}, ""),  # the smallest beta is the best
        ({1e-4: 6e-5, 1e-2: 1e-8}, {}, ""),  # nothing to compare with
    ],
)
def test_a_sweep_along_beta_says_what_float32_rounds_off(
    single: dict[float, float], double: dict[float, float], told: str
) -> None:
    here = beta(single, double)
    said = sweep_titles.of_sweep("toy", here, "beta").replace(wording.BLANK, " ")
    assert ("cos of asymmetric EP from 1e-8 at β = 0.01" in said) == bool(told)
    assert told in said
    both = sweep_titles.of_sweeps({"a": here, "b": beta(double, double or single)}, "beta")
    assert both.endswith("; float32 rounding costs digits at small β on a") == bool(told)


def test_many_rules_are_ranked_and_the_main_ones_named() -> None:
    rules = {f"rule{i}": RIGHT for i in range(5)} | {"wrong": WRONG, "ep": RIGHT}
    systems = {"a": cells(rules), "b": cells(rules | {"ep": WRONG, "rule4": WRONG})}
    said = sweep_titles.of_sweeps(systems, "T2")
    assert said == (
        "Of 7 rules, rule0, rule1 and 2 more follow BPTT in every parameter at some T2 on every system tried; "
        "wrong on none; naive EP on 1 of 2; 1 other on some"
    )
    row = sweep_titles.of_sweep("a", systems["a"], "T2")
    assert row == (
        "a: naive EP, rule0 and 4 more of 7 rules follow BPTT in every parameter at every tested T2; "
        "wrong at no tested T2"
    )
    assert titles.of_cloud("a", systems["b"]) == (
        "a: of 7 rules, rule0, rule1 and 2 more follow BPTT in every parameter in every settled cell; "
        "naive EP, rule4 and wrong in none"
    )
    assert titles.of_cost("a", systems["b"].assign(cost=30)).endswith(
        "4 of 7 rules follow BPTT in every parameter, rule0 for 30 evaluations; naive EP never"
    )
    assert (
        titles.of_cost("a", cells(dict.fromkeys("abcde", WRONG))) == "a: none of 5 rules follow BPTT in every parameter"
    )


def test_a_matrix_counts_the_systems_of_each_kind_and_all_of_its_rows() -> None:
    systems = {"a": "symmetric", "b": "asymmetric", "c": "asymmetric"}
    right = dict.fromkeys(systems, True)
    held = {"ep": right | {"b": False, "c": False}, "aep": right, "aep k=1": {"a": False}, "fa": {}}
    assert titles.of_matrix(held, systems) == (
        "At the best setting each, s and damping included, naive EP follows BPTT in every parameter on the one "
        "symmetric and none of 2 asymmetric systems; "
        "asymmetric EP on the one symmetric and both asymmetric systems"
    )
    many = titles.of_matrix(held | {f"rule{i}": right for i in range(4)}, systems)
    assert "; of 6 rows on several systems, 5 follow BPTT on every system that settles (asymmetric EP, rule0" in many
    assert titles.of_matrix({"ep": {"a": True}}, systems).endswith("on the one symmetric system tried")
    assert titles.of_main("follows BPTT", held, systems) == (
        "naive EP follows BPTT on the one symmetric and none of 2 asymmetric systems; "
        "asymmetric EP on the one symmetric and both asymmetric systems"
    )
    assert titles.of_main("follows BPTT", {"fa": right}, systems) == ""
    assert titles.of_matrix({"fa": {}}, systems).startswith("Nothing is settled on any of 3 systems")
    here = cells({"ep": RIGHT})
    assert [titles.kind(here.assign(antisymmetry=a)) for a in (0.1, 1e-9)] == ["asymmetric", "symmetric"]
    assert titles.kind(here.assign(status="collapsed")) == titles.kind(here.assign(antisymmetry=float("nan"))) == ""


def test_every_coordinate_has_a_symbol_in_letters() -> None:
    for name in COORDINATES:
        assert wording.plain(name)
        assert not re.search(r"[\\${}_]", wording.plain(name))
    assert (wording.plain("beta"), wording.plain("T2"), wording.plain("eps")) == ("β", "T2", "ε")
    assert wording.spoken("seed") == "seed"


def params(readings: dict[str, dict[str, float]], norms: dict[str, float], whole: float = 0.9995) -> pd.DataFrame:
    rows = [
        {"cell": label, "estimator_label": label, "param": p, "cosine": c, "reference_norm": norms[p]}
        for label, by in readings.items()
        for p, c in by.items()
    ]
    return pd.DataFrame(rows).assign(cosine_whole=whole)


EVEN, ONE = {"W": 1.0, "b": 1.0}, {"W": 0.1, "b": 10.0}
MISSED = {"ep": {"W": 0.1, "b": 0.9999}}


def test_the_figure_of_parameters_says_what_the_global_cosine_hides_and_which_parameter_decides_it() -> None:
    said = titles.of_params({"toy": params(MISSED, ONE)}).replace(wording.BLANK, " ")
    assert said == (
        "On toy the global cosine of naive EP is 0.9995 where that of W is 0.10, since b holds 99.9 % of |g|²"
    )
    assert "holds" not in titles.of_params({"toy": params(MISSED, EVEN)})
    low = titles.of_params({"toy": params(MISSED, ONE, whole=0.5)})  # nothing is hidden
    assert low == "toy: naive EP misses W"
    right = {"ep": {"W": 0.999, "b": 0.9999}}
    assert titles.of_params({"toy": params(right, ONE)}) == "toy: naive EP follows BPTT in both parameters"
    less = {"ep": {"W": 0.8, "b": 0.9999}}
    for systems in (
        {"a": params(less, ONE), "b": params(MISSED, ONE)},
        {"b": params(MISSED, ONE), "a": params(less, ONE)},
    ):
        assert titles.of_params(systems).startswith("On b the global cosine")  # where it hides the most
    both = titles.of_params({"toy": params(right, ONE), "other": params(right, ONE)})
    assert both == "Naive EP follows BPTT in every parameter on both systems"


def test_a_parameter_decides_the_global_cosine_from_more_than_half_of_the_squared_norm_on() -> None:
    assert titles.dominant(params(MISSED, ONE)) == ("b", pytest.approx(100 / 100.01))
    assert titles.dominant(params(MISSED, EVEN)) is None
    assert titles.dominant(params({"ep": {"b": 0.1}}, ONE)) is None  # a parameter alone hides no other


def test_many_parameters_are_counted_and_a_cosine_that_is_undefined_is_none() -> None:
    names = [f"W{i}" for i in range(6)]
    norms = dict.fromkeys(names, 1.0)
    assert titles.of_params_row("toy", params({"ep": dict.fromkeys(names, 0.1)}, norms)).endswith(
        "misses all 6 parameters"
    )
    near = dict.fromkeys(names, 0.999) | {"W3": 0.95}
    assert titles.of_params_row("toy", params({"ep": near}, norms)).endswith("misses W3")
    far = dict.fromkeys(names, 0.1) | {"W3": 0.999}
    assert titles.of_params_row("toy", params({"ep": far}, norms)).endswith("misses 5 of 6 parameters, all but W3")
    assert titles.of_params_row("toy", params({"ep": near | {"W3": 0.99}}, norms)).endswith("in all 6 parameters")
    none = params({"ep": dict.fromkeys(names, float("nan"))}, norms)
    assert titles.of_params_row("toy", none).endswith("has no cosine in any parameter")


CREDITS = {"cosine": "displacement", "cosine_error": "prediction error"}


def layers(by: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"estimator_label": label, "block": f"h{i}", "cosine": c, "cosine_error": float("nan")}
        for label, of in by.items()
        for i, c in enumerate(of)
    ]
    return pd.DataFrame(rows)


def test_a_row_of_layers_says_where_credit_is_lost_and_leaves_out_what_has_none() -> None:
    here = layers({"ep": [0.0, 0.1, 0.99], "aep": [0.0, 0.99, 0.99]})
    said = "toy: credit by displacement: naive EP misses BPTT in h1; asymmetric EP follows BPTT in both blocks"
    assert titles.of_credit("toy", here, CREDITS) == said
    assert titles.without_credit(here, "cosine") == ["h0"]
    assert "h0" in titles.of_credit("toy", layers({"ep": [0.0, 0.1, 0.99], "aep": [0.5, 0.99, 0.99]}), CREDITS)
    right = layers({"ep": [0.0, 0.99, 0.99]})
    several = titles.of_credits({"a": here, "b": right}, CREDITS)
    assert several == "Naive EP misses BPTT in h1 of a; every other rule follows it in every block on both systems"
    forms = {"a": right, "a k=1": right.assign(cosine_error=[0.0, 0.999, 0.999])}
    assert titles.of_credits(forms, CREDITS) == "Every rule follows BPTT in every block on both forms of a"


def test_a_map_counts_the_settled_points_at_which_a_rule_follows() -> None:
    here = pd.concat([cells({"ep": {0: low, 1: 0.999}}, x="damp", s=s) for s, low in ((1.0, 0.5), (2.0, 0.999))])
    axes = ("s", "damp")
    told = "naive EP follows BPTT in every parameter"
    assert titles.of_map("toy", here, axes) == f"toy is settled at all 4 points; {told} at 3 of 4 of these"
    lost = here.assign(status=["diverged", "settled", "settled", "settled"])
    assert titles.of_map("toy", lost, axes) == f"toy is settled at 3 of 4 points; {told} at all 3 of these"
    assert "nothing is settled" in titles.of_map("toy", here.assign(status="diverged"), axes)
    both = titles.of_maps({"a": here, "b": lost}, axes)
    assert both == capital(f"{told} at every coupling scale s and damping c that settles on b, not on a")


def test_antisymmetry_separates_symmetric_from_asymmetric_jacobians() -> None:
    here = pd.concat([cells({"ep": WRONG}), cells({"ep": RIGHT}, antisymmetry=0.0)])
    assert titles.of_antisymmetry(here) == (
        "Where the Jacobian is asymmetric, naive EP follows BPTT in every parameter in none of 2 settled cells. "
        "Where the Jacobian is symmetric, naive EP follows BPTT in every parameter in both settled cells"
    )
    assert "symmetric, naive EP follows BPTT in every parameter in both" in titles.of_antisymmetry(cells({"ep": RIGHT}))


def test_the_cost_of_following_is_the_least_one_and_a_rule_that_never_does_is_told() -> None:
    here = cells({"ep": WRONG, "aep": RIGHT}).assign(cost=[10, 20, 40, 30])
    said = (
        "toy: naive EP misses BPTT at every T1, T2 and β here (worst parameter 0.30 or less); "
        "asymmetric EP follows BPTT in every parameter for 30 evaluations"
    )
    assert titles.of_cost("toy", here).replace(wording.BLANK, " ") == f"{said} (0.75 times BPTT at T1 = 100)"
    cheaper = pd.concat([here, cells({"aep k=1": RIGHT}).assign(cost=20)])
    assert titles.of_cost("toy", cheaper).endswith("; k=1 for 20)")
    assert titles.of_cost("toy", cheaper.assign(cost=30)).endswith("T1 = 100)".replace(" ", wording.BLANK))
    assert titles.of_cost("toy", here.assign(reference_cost=float("nan"))) == said  # to another reference
    both = titles.of_costs({"a": here, "b": cells({"ep": RIGHT})})
    assert both == "Naive EP follows BPTT in every parameter at some cost on b, not on a; asymmetric EP on a"


def nudges(by: dict[str, dict[float, float]], dtype: str = "float32", whole: float = 1.0) -> pd.DataFrame:
    rows = [
        {"estimator_label": n, "beta": b, "error": e, "rel_error": e / whole, "dtype": dtype, "status": "settled"}
        for n, of in by.items()
        for b, e in of.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({0.01: 0.4, 0.1: 0.41, 1: 0.5}, "is off by 0.4 at every tested β"),
        ({0.01: 0.02, 0.1: 0.021, 1: 0.5}, "is off by 0.02 at every tested β ≤ 0.1"),
        ({0.01: 0.02, 0.05: 0.021, 1: 0.5}, "is best at β = 0.01 (the smallest tested), off by 0.02"),
        ({0.01: 1e-6, 0.1: 1e-4, 1: 1e-2}, "is best at β = 0.01 (the smallest tested), off by 1e-6"),
        ({0.01: 1e-3, 0.1: 1e-5, 1: 1e-2}, "is best at β = 0.1, off by 1e-5"),
        ({0.01: 0.9, 0.1: 0.4, 1: 0.1}, "is best at β = 1 (the largest tested), off by 0.1"),
    ],
)
def test_error_against_beta_is_flat_levels_off_or_has_a_best_nudge(errors: dict[float, float], words: str) -> None:
    both = pd.concat([nudges({"ep": errors}), nudges({"ep": {0.01: 1e-9, 1: 1.0}}, "float64")])
    for here, dtype in ((both, "in float32, "), (nudges({"ep": errors}), "")):
        assert titles.of_nudge("toy", here, 0.1).replace(wording.BLANK, " ") == f"toy: {dtype}naive EP {words}"


def test_a_small_error_of_the_whole_gradient_is_told_where_a_parameter_has_a_large_one() -> None:
    flat = {0.01: 0.4, 1: 0.41}
    said = "toy: naive EP is off by 0.4 at every tested β"
    assert titles.of_nudge("toy", nudges({"ep": flat}, whole=10), 0.1) == f"{said} (the whole gradient by 0.04)"
    assert titles.of_nudge("toy", nudges({"ep": flat}, whole=2), 0.1) == said


def test_the_systems_on_which_some_beta_makes_a_rule_faithful_are_counted() -> None:
    flat, best = {0.01: 0.4, 1: 0.41}, {0.01: 1e-6, 1: 1e-2}
    systems = {"a": nudges({"ep": flat, "aep": best}), "b": nudges({"ep": flat, "aep": best})}
    near = "Naive EP comes within 10 % of BPTT in every parameter at some nudge β on"
    said = titles.of_nudges(systems, 0.1).replace(wording.BLANK, " ")
    assert said == f"{near} neither system; asymmetric EP on both systems"
    assert "on b, not on a" in titles.of_nudges(systems | {"b": nudges({"ep": best})}, 0.1)


def bars(by: dict[str, list[tuple[float, str]]], settled: bool = True) -> pd.DataFrame:
    rows = [
        {"estimator_label": n, "T2": 10 * (i + 1), "error": error, "leading": cause, "settled": settled}
        for n, of in by.items()
        for i, (error, cause) in enumerate(of)
    ]
    return pd.DataFrame(rows)


def test_a_budget_says_what_a_rule_errs_by_and_where() -> None:
    asymmetry, short, small = (0.5, "asymmetry"), (0.4, "truncation"), (0.01, "faithful")
    here = bars({"ep": [asymmetry] * 3, "aep": [short, small, small]})
    said = "toy: naive EP errs by asymmetry at every tested T2; asymmetric EP by truncation at T2 = 10"
    assert titles.of_budget("toy", here, "T2", 0.1).replace(wording.BLANK, " ") == said
    both = bars({"ep": [short, asymmetry, asymmetry]})
    said = "toy: naive EP errs by asymmetry at T2 = 20 and 30 and by truncation at T2 = 10"
    assert titles.of_budget("toy", both, "T2", 0.1).replace(wording.BLANK, " ") == said
    assert titles.of_budget("toy", here, "T2", 1.0).endswith(
        "naive EP and asymmetric EP are faithful at every tested T2"
    )
    assert titles.of_budget("toy", bars({"ep": [asymmetry]}, settled=False), "T2", 0.1) == f"toy: {grounds.NOTHING}"
    every = titles.of_budgets(here, 0.1)
    assert every == "Naive EP errs by asymmetry in all 3 bars above 0.1; asymmetric EP by truncation in the one"
    idle = bars({"ep": [short] * 9}, settled=False)
    assert titles.of_budgets(pd.concat([here, idle]), 0.1) == every  # bars that are not settled do not count
    assert titles.of_budgets(here, 1.0) == "Naive EP and asymmetric EP are faithful wherever settled"


def test_the_budget_of_many_rules_says_once_which_ones_err_the_most_often_by_which_cause() -> None:
    asymmetry, short, small = (0.5, "asymmetry"), (0.4, "truncation"), (0.01, "faithful")
    here = bars({"ep": [asymmetry, asymmetry, short], "aep": [short], "a": [short], "b": [small], "c": [short]})
    assert titles.of_budgets(here, 0.1) == (
        "Of 5 rules, naive EP errs the most often by asymmetry; asymmetric EP, a and c by truncation; "
        "b is faithful wherever settled"
    )


def test_the_title_of_many_rules_speaks_of_their_default_forms_and_of_those_without() -> None:
    labels = ["ep", "ep nudge=positive", "aep", "aep clip=batch", "mine k=1"]
    assert wording.default_forms(labels) == ["ep", "aep", "mine k=1"]
    assert wording.spoken_of(labels) == ["ep", "aep", "mine k=1"]
    assert set(wording.spoken_of(labels[:3])) == set(labels[:3])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.123, "0.12"),
        (0.989, "0.98"),
        (0.9996, "0.9996"),
        (0.99, "0.99"),
        (0.99999, "0.99999"),
        (1.0, "1"),
        (-0.696, "\u22120.69"),
        (-0.001, "0.00"),
    ],
)
def test_a_cosine_is_cut_with_as_many_digits_as_tell_it_from_one(value: float, words: str) -> None:
    assert wording.cosine(value) == words


def test_an_explanation_blames_the_culprit_or_no_cause() -> None:
    causes = pd.DataFrame({"cause": ["truncation", "asymmetry"], "size": [0.001, 0.3], "culprit": [False, True]})
    assert explained.blame(causes, 0.01) == "the cause of its error is asymmetry (0.3 of |g|)"
    assert explained.blame(causes.assign(culprit=False), 0.01) == "no cause is above 0.01 of the reference"
    assert "not finite" in explained.blame(causes.assign(size=float("inf")), 0.01)


def test_eigenvalues_outside_of_the_circle_repel() -> None:
    inside = pd.DataFrame({"real": [0.5, 0.1], "imaginary": [0.1, 0.0], "whole": True})
    assert explained.stability(inside) == "Eigenvalues of $J_G$: all inside the circle, s* attracts"
    assert explained.stability(inside.assign(real=[1.0001, 0.1], imaginary=0.0)).endswith(
        "attracts"
    )  # 1, but for round-off
    outside = explained.stability(inside.assign(imaginary=[1.0, 0.0], whole=False))
    assert outside == "Ritz values of $J_G$: 1 of 2 outside the circle, s* repels"


def test_depth_names_the_closest_rule_and_the_farthest() -> None:
    depths = pd.DataFrame({"estimator": ["ep", "tbptt"] * 2, "T2": [1, 1, 9, 9], "cosine": [0.5, 0.5, 0.6, 0.9999]})
    assert explained.reach(depths, 9) == "T2 = 9: truncated BPTT off by 1e-4,\nEP, linearised by 0.4"
    assert explained.reach(depths, None) == explained.reach(depths, 9)
    assert explained.reach(depths, 1) == "T2 = 1: all 2 rules off by 0.5"
    assert "nothing is defined" in explained.reach(depths.assign(cosine=float("nan")), 9)


def test_updates_leave_bptt_at_a_step_or_stay() -> None:
    steps = {"param": "W[0]", "step": [1, 2, 3], "estimate": [0.1, 0.05, 0.04], "reference": [0.1, 0.05, 0.01]}
    assert explained.departure(pd.DataFrame(steps)) == "Updates of W[0] leave BPTT at step 3"
    assert explained.departure(pd.DataFrame(steps | {"estimate": [0.1, float("nan"), 0.01]})).endswith("at step 2")
    same = pd.DataFrame(steps | {"estimate": steps["reference"]})
    assert explained.departure(same) == "Updates stay with BPTT for all 3 steps"


def log(test: list[float], status: str = "settled") -> pd.DataFrame:
    rows = {"step": [0, 10] * 2, "seed": [0, 0, 1, 1], "test": test, "train": 1.0, "score": "accuracy"}
    return pd.DataFrame(rows).assign(status=status, cosine_min=[0.99, 0.5, 0.99, 0.7])


def test_a_training_says_where_the_score_goes_and_how_faithful_it_ends() -> None:
    nan = float("nan")
    assert curve.advance(log([0.1, 0.8, 0.1, 0.9])) == "test accuracy goes from 0.1 to 0.85"
    assert curve.advance(log([0.1, 0.1, 0.1, 0.1])) == "test accuracy stays at 0.1"
    assert curve.advance(log([0.1, 0.8, 0.1, nan])).endswith("to 0.8, without 1 seed that diverged")
    assert curve.advance(log([0.1, nan, 0.1, nan])) == "test accuracy is not finite in any seed at the end"
    assert curve.advance(log([nan] * 4)).startswith("train accuracy")
    assert curve.fidelity(log([0.1] * 4)) == "the smallest cosine ends at 0.50 to 0.70"
    assert "nothing is settled" in curve.fidelity(log([0.1] * 4, "unsettled"))
    half = log([0.1] * 4).assign(status=["settled", "settled", "settled", "unsettled"])
    assert curve.fidelity(half) == "the smallest cosine ends at 0.50 in 1 of 2 seeds"


def test_two_runs_are_alike_within_noise_or_one_has_lost() -> None:
    pairs = pd.DataFrame(
        {
            "cell": ["a", "b"] * 2,
            "metric": ["cosine", "cosine", "cosine_min", "cosine_min"],
            "loss": [0.0, -0.005, 0.2, -0.1],
            "allowed": 0.01,
            "system_label": "toy",
            "estimator_label": "ep",
        }
    )
    said = "cosine_min is worse beyond noise in 1 of 2 cells, better in 1; no other metric lost in any cell"
    assert paired.losses(pairs, "cosine_min") == said
    said = "cosine is worse beyond noise in none of 2 cells, better in 0; worse in others: cosine_min (1)"
    assert paired.losses(pairs, "cosine") == said
    undefined = paired.losses(pairs.assign(loss=float("nan")), "cosine")
    assert undefined == "cosine is worse beyond noise in both cells, better in 0; worse in others: cosine_min (2)"


def test_the_title_of_a_gap_says_how_far_the_references_part_at_rest_and_elsewhere() -> None:
    states = pd.DataFrame({"status": ["settled", "settled", "unsettled"], "reference_gap": [1e-6, 3e-4, 0.5]})
    both = "Backpropagation through T1 steps and the implicit gradient differ"
    said = f"{both} by at most 0.03 % in 2 settled states and by at most 50 % in 1 other state"
    assert titles.of_gap(states).replace(wording.BLANK, " ") == said
    assert titles.of_gap(states[:1]).replace(wording.BLANK, " ") == f"{both} by at most 0.0001 % in 1 settled state"


def test_the_cheapest_rule_of_a_front_is_the_one_that_has_a_mark_there() -> None:
    here = cells({"ift": RIGHT, "adjoint": RIGHT}).assign(cost=[1, 2, 1, 2], reference_cost=[4.0] * 4)
    here = here.assign(error=[1e-5, 1e-6, 1e-4, 1e-7])
    assert titles.of_cheapest("toy", here) == "toy: ift follows for 0.25 of BPTT's cost"
    wrong = cells({"ift": WRONG}).assign(cost=1, reference_cost=4.0, error=1.0)
    assert titles.of_front({"a": here, "b": wrong}, {"a": "symmetric", "b": "asymmetric"}) == (
        "ift follows BPTT for the least cost on 1 of 2 systems; the least cost is 0.25 of BPTT's"
    )
