"""The batched path against the eager one, over the registry: same statuses, same numbers, nobody disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from live import LIVE, SYSTEMS, live_field

from gradbench.dynamics.stack import Stack
from gradbench.engine import packs
from gradbench.engine.draws import build
from gradbench.engine.outcome import Outcome
from gradbench.engine.solving import solve
from gradbench.planning import registry
from gradbench.planning.plans import Plan, plan
from gradbench.planning.problems import Problem
from gradbench.planning.suites import parse
from gradbench.vocabulary.status import Thresholds

RULES = [
    "bptt",
    "tbptt",
    {"name": "adjoint", "projection": ["kept", "dropped"]},
    "ep",
    {"name": "ep", "nudge": ["positive", "negative"]},
    {"name": "ep", "readout": "energy_contrast"},
    {"name": "ep", "reduction": "mean"},
    {"name": "aep", "clip": ["none", "batch", "sample"]},
    {"name": "control", "kind": ["scaled", "flipped", "shuffled", "random"]},
    {"name": "dyadic_ep", "cost": ["midpoint", "replicas"]},
    {"name": "holomorphic_ep", "points": [2, 3]},
    "fa",
    "dfa",
    "sign_symmetric",
    "predictive_coding",
    "z_il",
    {"name": "phantom", "form": ["series", "unrolled"]},
    {"name": "ift", "linear_solver": ["gmres", "bicgstab", "anderson"]},
    {"name": "richardson_ep", "nudge": ["centred", "negative"]},
    {"name": "aep_refreshed", "every": 3},
    "ift_dense",
    "jfb",
    "random_sign_ep",
    "rbp",
]


WIDE = 100  # coordinates of a state beyond which a matrix of it takes longer than all else


def family(name: str, dtype: str = "float64") -> Plan:
    """Four problems of one shape: other coupling, other seeds."""
    options = {k: v for k, v in LIVE.get(name, {}).items() if k != "damp"}
    wide = live_field(name).init_state().shape[-1] > WIDE
    grid = {
        "system": {"name": name, **options},
        "estimator": [rule for rule in RULES if not (wide and rule == "ift_dense")],
        "s": [0.3, 0.9],
        "damp": LIVE.get(name, {}).get("damp", 1.0),
        "T1": [5, 40],
        "T2": [3, 10],
        "beta": [0.02, 0.2],
        "seed": [0, 1],
        "batch": 2,
        "dtype": dtype,
    }
    return plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))


def rows(outcomes: Sequence[Outcome]) -> dict[str, dict[str, object]]:
    # the worst of perfect parameters is round-off's choice; budgets are compared in test_budget
    unlike = ("seconds", "peak_memory", "params", "worst", "budget")

    def flat(row: dict[str, Any]) -> dict[str, object]:
        blocks = {f"{b['block']}/{name}": value for b in row.pop("blocks") for name, value in b.items()}
        blocks |= {f"extra/{e['column']}": e["value"] for e in row.pop("extra")}
        return {k: v for k, v in (row | blocks).items() if k not in unlike}

    return {o.cell.key: flat(o.row()) for o in outcomes}


def eager(problems: Sequence[Problem]) -> dict[str, dict[str, object]]:
    return rows([o for p in problems for o in solve([p], build(p, "cpu"), Thresholds())])


def agree(a: dict[str, dict[str, object]], b: dict[str, dict[str, object]], rel: float, floor: float) -> None:
    assert a.keys() == b.keys()
    for key, row in a.items():
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        assert {k: v for k, v in b[key].items() if k in numbers} == pytest.approx(
            numbers, rel=rel, abs=floor, nan_ok=True
        )
        assert {k: v for k, v in b[key].items() if k not in numbers and k != "reason"} == {
            k: v for k, v in row.items() if k not in numbers and k != "reason"
        }


@pytest.mark.parametrize("name", SYSTEMS)
def test_stacked_and_single_agree_in_float64(name: str) -> None:
    problems = family(name).problems
    assert len({p.shape for p in problems}) == 1
    agree(eager(problems), rows(packs.measure_pack(problems, "cpu", Thresholds())), rel=1e-9, floor=1e-11)


def test_a_diverged_cell_changes_no_other() -> None:
    grid = {"system": {"name": "cet_energy", "D": 32, "heads": 2, "mem": 48}, "estimator": ["ep", "aep"]}
    grid |= {"s": [0.4, 4.0, 0.5], "damp": 0.5, "T1": [40, 300], "T2": 10, "beta": 0.02, "batch": 2, "dtype": "float64"}
    problems = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    together = rows(packs.measure_pack(problems, "cpu", Thresholds()))
    assert {r["status"] for r in together.values() if r["s"] == 4.0 and r["T1"] == 300} == {"diverged"}
    healthy = [p for p in problems if p.point.sigma != 4.0]
    alone = rows(packs.measure_pack(healthy, "cpu", Thresholds()))
    agree(alone, {k: v for k, v in together.items() if k in alone}, rel=1e-12, floor=1e-14)
    agree(eager(problems), together, rel=1e-9, floor=1e-11)


def test_order_and_packing_change_nothing() -> None:
    problems = family("toy_noncons").problems
    whole = rows(packs.measure_pack(problems, "cpu", Thresholds()))
    for cut in ([problems[::-1]], [problems[:1], problems[1:]], [problems[i::2] for i in range(2)]):
        agree(whole, rows([o for p in cut for o in packs.measure_pack(p, "cpu", Thresholds())]), rel=1e-10, floor=1e-12)


@pytest.mark.fast
def test_packs_hold_every_problem_once_and_fit_the_budget() -> None:
    problems = [*family("toy_noncons").problems, *family("toy_cons").problems, *family("toy_cons", "float32").problems]
    one = max(packs.footprint(p) for p in problems)
    for budget in (1, 2 * one, 10**12):
        cut = list(packs.cut_into_packs(problems, "cpu", "batched", budget))
        assert sorted(p.key for pack in cut for p in pack) == sorted(p.key for p in problems)
        assert all(len({p.shape for p in pack}) == 1 for pack in cut)
        assert all(len(pack) == 1 or sum(map(packs.footprint, pack)) <= budget for pack in cut)
    assert [[p] for p in problems] == list(packs.cut_into_packs(problems, "cpu", "eager"))


@pytest.mark.fast
def test_packs_of_a_cluster_are_short_beside_what_a_thread_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [*family("toy_noncons").problems, *family("toy_cons").problems]
    monkeypatch.setattr(packs, "WORTH", 2)
    share = sum(p.cost.work for p in problems) / (3 * packs.TURNS)
    cut = list(packs.cut_into_packs(problems, "cpu", "batched", 10**12, threads=3))
    assert sorted(p.key for pack in cut for p in pack) == sorted(p.key for p in problems)
    assert all(len(pack) <= packs.WORTH or sum(p.cost.work for p in pack) <= share for pack in cut)
    whole = list(packs.cut_into_packs(problems, "cpu", "batched", 10**12))
    assert len(cut) > len(whole)
    assert whole == list(packs.cut_into_packs(problems, "cpu", "batched", 10**12, threads=0))  # no worker is there yet


@pytest.mark.fast
def test_cells_of_other_systems_do_not_stack() -> None:
    with pytest.raises(ValueError, match="one system"):
        Stack.of([live_field("toy_cons"), live_field("toy_noncons")])


@pytest.mark.fast
def test_a_problem_may_want_fewer_points_than_its_neighbours() -> None:
    """Two grids whose union is no product: what one problem of a stack does not want is not reported for it."""
    base = {
        "system": {"name": "toy_cons", "N": 2, "D": 4, "drive_std": 1.0},
        "estimator": "ep",
        "damp": 3.0,
        "dtype": "float64",
    }
    grids = [
        base | {"seed": [0, 1], "T1": [10, 20], "T2": [2, 4], "beta": [0.1, 0.2]},
        base | {"seed": 2, "T1": 10, "T2": [2, 4], "beta": 0.1},
        base | {"seed": 2, "T1": 20, "T2": [2, 4], "beta": 0.2},
    ]
    problems = plan(parse({"name": "t", "about": "", "grid": grids}, "t")).problems
    assert len({p.shape for p in problems}) == 1
    outcomes = packs.measure_pack(problems, "cpu", Thresholds())
    assert sorted(o.cell.key for o in outcomes) == sorted(c.key for p in problems for c in p.cells)
    agree(eager(problems), rows(outcomes), rel=1e-9, floor=1e-11)


def test_options_of_every_estimator_are_covered_here() -> None:
    named = {rule if isinstance(rule, str) else rule["name"] for rule in RULES}
    assert named == set(registry.known_estimators())


def test_problems_of_one_shape_differ_in_knobs_only() -> None:
    first, *others = family("cet_real").problems
    for other in others:
        assert replace(other.point, sigma=first.point.sigma, seed=first.point.seed) == first.point
