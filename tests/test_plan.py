"""Planning: which cells there are, what they share, what they cost, and which checks can have a verdict."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbench
from gradbench.commands.running import prepare
from gradbench.errors import UserError
from gradbench.estimators.base import Count
from gradbench.planning.cells import Cell, key_at
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse

pytestmark = pytest.mark.fast

TOY = {"name": "toy_cons", "N": 2, "D": 4}


def planned(*grids: dict[str, Any], **rest: Any) -> Plan:
    return plan(parse({"name": "x", "about": "", "grid": list(grids), **rest}, "x.toml"), "x.toml")


def verify(check: dict[str, Any], *grids: dict[str, Any]) -> None:
    suite = parse({"name": "x", "about": "", "grid": list(grids), "check": [{"name": "c", **check}]}, "x.toml")
    plan(suite, "x.toml").verify(suite.checks(), "x.toml")


def some(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


GRIDS = st.fixed_dictionaries(
    {
        "system": some(["toy_cons", "toy_noncons"]),
        "estimator": some(["bptt", "ep", "aep"]),
        "s": some([0.5, 1.0]),
        "damp": some([0.0, 3.0]),
        "T1": some([5, 10, 20]),
        "T2": some([1, 4]),
        "beta": some([0.1, 0.2]),
        "eps": some([0.1, 0.2]),
        "seed": some([0, 1]),
        "dtype": some(["float32", "float64"]),
    }
)


NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**63 - 1) | st.none()


@given(
    st.fixed_dictionaries(dict.fromkeys(("sigma", "damp", "T1", "T2", "beta", "eps", "seed", "batch"), NUMBER)),
    st.fixed_dictionaries(
        {name: st.text(max_size=5) for name in ("system", "system_options", "estimator", "estimator_options", "dtype")}
    ),
    st.sampled_from(["bptt", "implicit"]),
    st.sampled_from(["euler", "anderson"]),
)
def test_the_key_of_a_cell_is_the_digest_of_its_coordinates(
    numbers: dict[str, Any], words: dict[str, Any], reference: str, solver: str
) -> None:
    cell = Cell(**numbers, **words, reference=reference, solver=solver)
    assert cell.key == key_at(cell.coordinates)


@settings(max_examples=25)
@given(GRIDS)
def test_what_problems_cost_together_is_the_sum_of_what_each_costs(grid: dict[str, Any]) -> None:
    p = planned({**grid, "batch": 2, "system": [{"name": name, "N": 2, "D": 4} for name in grid["system"]]})
    shared, alone = (sum(counts, Count()) for counts in zip(*((q.cost, q.cost_alone) for q in p.problems), strict=True))
    told = f"{shared.force:,}  ({alone.force:,} one cell at a time)"
    assert p.summary["force evaluations"] == told
    assert [q for family in p.families.values() for q in family if q.shape != family[0].shape] == []
    assert Counter(q.shape for q in p.problems) == {shape: len(family) for shape, family in p.families.items()}


def test_bptt_has_neither_depth_nor_nudge_and_is_planned_once() -> None:
    p = planned({"system": TOY, "estimator": "bptt", "T1": [5, 10], "T2": [1, 2, 4], "beta": [0.1, 0.2]})
    assert [(c.T1, c.T2, c.beta) for c in p.cells] == [(5, None, None), (10, None, None)]
    assert (p.points, p.folded, p.repeated) == (12, 10, 0)


def test_the_same_cell_from_two_grids_is_planned_once_and_counted() -> None:
    grid = {"system": TOY, "estimator": ["bptt", "ep"], "T1": [5, 10]}
    p = planned(grid, grid | {"T1": [10, 20]})
    assert len(p.cells) == 6
    assert (p.points, p.folded, p.repeated) == (8, 0, 2)


def test_an_option_spelt_out_at_its_default_is_the_same_cell() -> None:
    p = planned({"system": TOY, "estimator": "ep"}, {"system": TOY, "estimator": {"name": "ep", "nudge": "centred"}})
    assert (len(p.cells), p.repeated) == (1, 1)
    assert planned({"system": TOY | {"bias_std": 1}, "estimator": "ep"}).key == (
        planned({"system": TOY | {"bias_std": 1.0}, "estimator": "ep"}).key
    )


def test_options_that_name_one_rule_twice_are_a_user_error() -> None:
    with pytest.raises(UserError, match=r"estimator\[1\].*twice"):
        planned({"system": TOY, "estimator": ["ep", {"name": "ep", "nudge": "centred"}]})


def test_a_pair_that_does_not_go_together_is_skipped_with_its_reason() -> None:
    contrast = {"name": "ep", "readout": "energy_contrast"}
    p = planned({"system": ["toy_cons", "cet_real"], "estimator": [contrast, "aep"], "batch": 4})
    assert [(c.system, c.estimator) for c, _ in p.skipped] == [("cet_real", "ep")]
    assert p.skip_reasons == {"the energy contrast needs an energy, which cet_real has not": 1}
    assert len(p.cells) == 3


def test_a_truncation_deeper_than_the_relaxation_is_skipped_and_a_longer_adjoint_is_not() -> None:
    p = planned({"system": TOY, "estimator": ["tbptt", "adjoint"], "T1": [5, 10], "T2": [5, 10]})
    assert [(c.estimator, c.T1, c.T2) for c, _ in p.skipped] == [("tbptt", 5, 10)]
    assert p.skip_reasons == {"T2 > T1: there are fewer steps than tbptt is to go back": 1}
    assert len(p.cells) == 3 + 4
    # the sweep goes back all of 5 + 10 steps for the references; the adjoint has two rows of 10 terms
    assert p.problems[0].cost == Count(force=10, vjp=15 + 20)


@given(st.lists(GRIDS, min_size=1, max_size=2))
@settings(max_examples=50)
def test_the_plan_is_the_union_of_the_products_with_unused_coordinates_blanked(grids: list[dict[str, Any]]) -> None:
    def expected(grid: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {
            (sy, e, s, d, t1, None if e == "bptt" else t2, None if e == "bptt" else b, eps, seed, dt)
            for sy in grid["system"] for e in grid["estimator"] for s in grid["s"] for d in grid["damp"]
            for t1 in grid["T1"] for t2 in grid["T2"] for b in grid["beta"] for eps in grid["eps"]
            for seed in grid["seed"] for dt in grid["dtype"]
        }  # fmt: skip

    p = planned(*grids)
    names = ("system", "estimator", "s", "damp", "T1", "T2", "beta", "eps", "seed", "dtype")
    found = [tuple(c.coordinates[n] for n in names) for c in p.cells]
    assert len(found) == len(set(found))
    assert set(found) == set().union(*map(expected, grids))
    assert p.points == len(p.cells) + p.folded + p.repeated


@given(st.lists(GRIDS, min_size=1, max_size=2))
@settings(max_examples=50)
def test_cells_share_a_problem_exactly_where_they_share_the_free_trajectory(grids: list[dict[str, Any]]) -> None:
    p = planned(*grids)
    own = {"estimator", "estimator_options", "T1", "T2", "beta"}
    shared = [f.name for f in fields(Cell) if f.name not in own]
    naive: dict[tuple[Any, ...], set[str]] = {}
    for cell in p.cells:
        naive.setdefault(tuple(getattr(cell, n) for n in shared), set()).add(cell.key)
    assert {frozenset(c.key for c in problem.cells) for problem in p.problems} == set(map(frozenset, naive.values()))


@given(st.lists(GRIDS, min_size=1, max_size=2))
@settings(max_examples=50)
def test_every_cell_is_in_one_problem_one_family_and_one_pass(grids: list[dict[str, Any]]) -> None:
    p = planned(*grids)
    passes = [q for problem in p.problems for q in (problem.reverse, *problem.passes)]
    in_families = [c.key for family in p.families.values() for problem in family for c in problem.cells]
    once = Counter(c.key for c in p.cells)
    assert Counter(c.key for problem in p.problems for c in problem.cells) == once
    assert Counter(c.key for q in passes for c in q.cells) == once
    assert Counter(in_families) == once
    assert set(once.values()) == {1}
    for q in passes:
        for cell in q.cells:
            assert cell.T1 in q.T1s
            assert cell.T2 in (*q.depths, None)
            assert cell.beta in (*q.betas, None)


def test_families_hold_problems_of_one_shape() -> None:
    grid = {"system": TOY, "estimator": "ep", "beta": [0.1, 0.2]}
    floats = planned(grid | {"s": [0.5, 1.0], "damp": [0.0, 1.0], "seed": [0, 1]})
    assert (len(floats.problems), len(floats.families)) == (8, 1)
    sizes = planned(grid | {"system": [TOY, TOY | {"N": 3}], "dtype": ["float32", "float64"]})
    assert (len(sizes.problems), len(sizes.families)) == (4, 4)


def test_two_readouts_of_one_phase_share_its_pass_and_another_nudge_does_not() -> None:
    rules = ["ep", {"name": "ep", "readout": "energy_contrast"}, {"name": "ep", "nudge": "positive"}, "aep", "bptt"]
    (problem,) = planned({"system": TOY, "estimator": rules}).problems
    assert [len(p.cells) for p in problem.passes] == [2, 1, 1]
    assert [c.estimator for c in problem.reverse.cells] == ["bptt"]


def test_costs_are_those_counted_by_hand() -> None:
    grid = {"system": TOY, "T1": [5, 10], "T2": [2, 4], "beta": [0.1, 0.2]}
    (problem,) = planned(grid | {"estimator": ["bptt", "ep", "aep"]}).problems
    # free: 10 steps. reverse: one row a T1, 5 + 10. ep, aep: 2 T1 x (2 beta x 2 signs and one at rest) to depth 4.
    assert problem.cost == Count(force=10 + 40 + 40, jvp=40, vjp=15 + 40)
    # alone, free: 5 and 10, once for bptt, four times for ep and for aep; ep and aep need a reference each
    second = 2 * 2 * (2 + 4) * 2  # T1 x beta x depths x signs
    assert problem.cost_alone == Count(force=15 * 9 + 2 * second, jvp=second, vjp=15 * 9 + second)


def test_keys_do_not_depend_on_the_order_of_the_suite() -> None:
    grid = {"system": [TOY, "toy_noncons"], "estimator": ["ep", "aep"], "T1": [5, 10], "beta": [0.1, 0.2]}
    mixed = {k: v[::-1] for k, v in grid.items()}
    a, b = planned(grid), planned(mixed)
    assert a.key == b.key
    assert {p.key for p in a.problems} == {p.key for p in b.problems}
    assert {c.key for c in a.cells} == {c.key for c in b.cells}


@pytest.mark.parametrize(
    "change",
    [
        {"system": "toy_noncons"}, {"system_options": "{}"}, {"estimator": "aep"}, {"estimator_options": "{}"},
        {"sigma": 2.0}, {"damp": 1.0}, {"T1": 6}, {"T2": 3}, {"beta": 0.2}, {"eps": 0.1}, {"seed": 1},
        {"dtype": "float64"}, {"batch": 3}, {"sigma": None},
    ],
)  # fmt: skip
def test_a_key_changes_with_any_coordinate_or_option(change: dict[str, Any]) -> None:
    (cell,) = planned({"system": TOY, "estimator": "ep", "T1": 5, "T2": 2, "beta": 0.1}).cells
    assert replace(cell).key == cell.key
    assert replace(cell, **change).key != cell.key
    assert set(asdict(cell)) >= set(change)


def test_the_key_of_a_plan_changes_with_cells_and_thresholds_but_not_with_checks() -> None:
    grid = {"system": TOY, "estimator": "ep"}
    base = planned(grid).key
    assert planned(grid, check=[{"name": "c", "status": "settled"}]).key == base
    assert planned(grid, thresholds={"residual": 1e-3}).key != base
    assert planned(grid | {"seed": [0, 1]}).key != base


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"where": {"estimater": "ep"}}, "where.estimater .* Did you mean 'estimator'"),
        ({"where": {"cosine": 1}}, "neither a coordinate nor an option"),
        ({"where": {"estimator": "aep"}}, "matches none of 2 planned cells"),
        ({"where": {"estimator": []}}, "matches none"),
        ({"where": {"beta": 0.3}}, "matches none of 2 planned cells: no planned cell has beta = 0.3; beta is 0.02"),
        ({"where": {"estimator": "EP"}}, 'no planned cell has estimator = "EP"; estimator is "bptt", "ep"'),
        ({"where": {"estimator": "bptt", "beta": 0.02}}, 'has estimator = "bptt" and beta = 0.02 together'),
        ({"where": {"nudge": "positive"}}, "matches none"),
        ({"where": {"estimator_label": "ep nudge=positive"}}, "matches none"),
        ({"where": {"system_label": "toy_cons"}}, "matches none"),
        ({"against": "bttp"}, "against = 'bttp' is not planned. Did you mean 'bptt'"),
    ],
)
def test_a_check_that_could_never_have_a_verdict_is_an_error_of_the_plan(check: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        verify({"metric": "cosine", "min": 0.0, **check}, {"system": TOY, "estimator": ["bptt", "ep"]})
    assert str(caught.value).startswith("x.toml: check[0] 'c'")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"metric": "cosine", "min": 2}, "min = 2 is above 1, the largest cosine: no number can pass"),
        ({"metric": "cosine_min", "min": 1.001, "where": {"estimator": "ep"}}, "min = 1.001 is above 1"),
        ({"metric": "cosine", "min": -2}, "min = -2 is below -1, the smallest cosine: no number can fail"),
        ({"metric": "cosine_min", "max": 1.5}, "max = 1.5 is above 1, the largest cosine_min: no number can fail"),
        ({"metric": "rel_error", "min": -0.1}, "min = -0.1 is below 0, the smallest rel_error: no number can fail"),
        ({"metric": "cosine", "max": -1.5}, "max = -1.5 is below -1, the smallest cosine: no number can pass"),
        ({"metric": "residual", "max": -1e-9}, "max = -1e-09 is below 0, the smallest residual"),
        ({"metric": "energy_monotone", "min": 2}, "min = 2 is above 1, the largest energy_monotone"),
        (
            {"metric": "cosine", "min": 2.5, "against": "bptt"},
            "min = 2.5 is above 2, the largest cosine - that of bptt",
        ),
        ({"metric": "cosine", "min": 0, "where": {"status": "skipped"}}, "a cell that is skipped has no cosine"),
        ({"metric": "rho", "min": 0, "where": {"status": ["error", "oom"]}}, "a cell that is error or oom has no rho"),
    ],
)
def test_a_check_that_no_run_can_pass_is_an_error_of_the_plan(check: dict[str, Any], words: str) -> None:
    grid = {"system": TOY, "estimator": ["bptt", "ep"]}
    with pytest.raises(UserError) as caught:
        prepare(gradbench.suite(grid, check={"name": "c", **check}))
    assert words in str(caught.value)
    assert str(caught.value).startswith("suite 'session': check[0] 'c': ")


@pytest.mark.parametrize(
    "check",
    [
        {"metric": "cosine", "min": 1}, {"metric": "cosine", "max": -1}, {"metric": "residual", "max": 0},
        {"metric": "norm_ratio", "min": 1e6}, {"metric": "rightmost", "max": -1e6},
        {"metric": "energy_monotone", "min": 1},
        {"metric": "cosine", "min": 1.5, "against": "bptt"}, {"metric": "residual", "max": -1, "against": "bptt"},
        {"metric": "cosine", "min": 0, "where": {"status": ["settled", "error"]}},
        {"metric": "residual", "min": 0, "where": {"status": "diverged"}}, {"status": "skipped"},
    ],
)  # fmt: skip
def test_a_check_that_some_run_can_pass_is_accepted(check: dict[str, Any]) -> None:
    where = {"estimator": "ep"} | check.get("where", {})
    prepare(gradbench.suite({"system": TOY, "estimator": ["bptt", "ep"]}, check={"name": "c", **check, "where": where}))


@pytest.mark.parametrize(
    "where",
    [
        {}, {"estimator": "ep"}, {"estimator": ["ep", "bptt"]}, {"beta": 0.02}, {"N": 2}, {"status": "settled"},
        {"nudge": "centred"}, {"estimator_label": "ep"}, {"system_label": "toy_cons D=4 N=2"}, {"T1": 120.0},
    ],
)  # fmt: skip
def test_a_check_that_can_have_a_verdict_is_accepted(where: dict[str, Any]) -> None:
    verify(
        {"metric": "cosine", "min": 0.0, "where": where, "against": "bptt"},
        {"system": TOY, "estimator": ["bptt", "ep"]},
    )


def test_a_check_of_a_suite_that_is_wholly_skipped_is_an_error_of_the_plan() -> None:
    with pytest.raises(UserError, match="none of 0 planned cells"):
        verify(
            {"status": "settled"}, {"system": "toy_noncons", "estimator": {"name": "ep", "readout": "energy_contrast"}}
        )


def test_ten_thousand_cells_are_planned_in_two_seconds() -> None:
    axes = {"T1": 5, "T2": 10, "seed": 11}
    grid = {k: {"linspace": [1, n, n]} for k, n in axes.items()} | {"beta": {"logspace": [-3, 0, 10]}}
    start = time.process_time()
    p = planned(grid | {"system": TOY, "estimator": ["ep", "aep"]})
    p.to_json(), p.summary
    seconds = time.process_time() - start
    print(f"{len(p.cells):,} cells in {seconds:.2f} s")
    assert len(p.cells) == 11_000
    assert seconds < 2
