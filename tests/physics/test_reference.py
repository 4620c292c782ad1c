"""The implicit reference, and how far backpropagation is from it: against matrices, differences and each other."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from linear import line
from live import LIVE, SYSTEMS, gap, jacobian, live_field, whole_gap

import gradbench as gb
from gradbench.diagnostics.arbiter import STEPS, arbitrate
from gradbench.diagnostics.deep import certify_deep
from gradbench.diagnostics.ladder import estimate
from gradbench.dynamics import krylov as spaces
from gradbench.dynamics import linear
from gradbench.dynamics.field import Field
from gradbench.dynamics.meter import Meter
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.engine.draws import build
from gradbench.engine.references import gather_references
from gradbench.engine.solving import solve
from gradbench.estimators.bptt import Bptt
from gradbench.estimators.implicit import gradient_of, solution
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.status import Status, Thresholds

RELAXING = [name for name in SYSTEMS if "T1" in live_field(name).system.uses]


def by_matrices(field: Field, s: torch.Tensor) -> dict[str, torch.Tensor]:
    """dC/dtheta + <a, dG/dtheta> with (1 - J_G^T) a = dC/ds, from dense matrices of autograd, sample by sample."""
    leaves = {n: p.clone().requires_grad_() for n, p in field.theta.items()}
    moving = replace(field, theta=leaves)

    def step(s: torch.Tensor) -> torch.Tensor:
        u = s + field.knobs.eps * moving.system.force(
            leaves, field.x, moving.system.context(leaves, field.x), s, field.knobs
        )
        return field.system.project(u)

    g = torch.autograd.functional.jacobian(lambda s: field.system.cost(field.theta, field.x, s).sum(), s)
    a = torch.zeros_like(s)
    for b in range(len(s)):
        J = jacobian(lambda v, b=b: step(torch.cat([s[:b], v[None], s[b + 1 :]]))[b], s[b].clone()).detach()
        a[b] = torch.linalg.solve(torch.eye(len(J), dtype=J.dtype) - J.T, g[b])
    total = (a * step(s)).sum() + field.system.cost(leaves, field.x, s).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if v is None else v for (n, p), v in zip(leaves.items(), grads, strict=True)}


def implicit_gradient(free: Trajectory) -> dict[str, torch.Tensor]:
    return {n: g[0] for n, g in gradient_of(free, solution(free)).items()}


@pytest.mark.parametrize("T1", [7, 60])
@pytest.mark.parametrize("name", RELAXING)
def test_the_implicit_reference_is_that_of_dense_linear_algebra_at_rest_or_not(name: str, T1: int) -> None:
    free = relax(live_field(name), (T1,))
    assert gap(implicit_gradient(free), by_matrices(free.field, free.ends[0])) < 1e-10


@pytest.mark.parametrize("name", RELAXING)
def test_the_implicit_reference_is_the_slope_of_the_cost_at_the_fixed_point(name: str) -> None:
    free = relax(live_field(name), (800,))
    (slope,) = arbitrate(free.field, 800, implicit_gradient(free), (0,), STEPS[2:6], compared_with="implicit")
    assert slope.plateau
    assert slope.error < 1e-6


def test_differences_catch_a_reference_that_is_wrong_by_a_part_in_ten_thousand() -> None:
    free = relax(live_field("cet_real"), (800,))
    wrong = {n: g * (1 + 1e-4) for n, g in implicit_gradient(free).items()}
    (slope,) = arbitrate(free.field, 800, wrong, (0,), STEPS[2:6], compared_with="implicit")
    assert slope.error == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("name", RELAXING)
def test_backpropagation_nears_the_implicit_reference_as_rho_to_the_T1(name: str) -> None:
    """The gap is T1^k rho^T1: k = 0, or up to 1 where the Jacobians on the way differ from that at the end."""
    field = live_field(name)
    rho = certify_deep(relax(field, (400,)), Thresholds(), 0).rho
    first, last = (math.ceil(math.log(left) / math.log(rho)) for left in (1e-6, 1e-10))
    free = relax(field, (first, last))
    ends = [free.at((T1,)) for T1 in (first, last)]
    gaps = [whole_gap(estimate(Bptt(), end, None, None), implicit_gradient(end)) for end in ends]
    assert 1e-12 < gaps[1] < gaps[0]
    ratio, steps = gaps[1] / gaps[0], last - first
    assert (ratio * first / last) ** (1 / steps) - 0.01 < rho < ratio ** (1 / steps) + 0.01


@pytest.mark.parametrize("projected", [False, True])
def test_what_is_open_of_the_credit_of_backpropagation_is_that_of_matrices(projected: bool) -> None:
    P = torch.eye(5, dtype=torch.float64) - 0.2 * torch.ones(5, 5, dtype=torch.float64) if projected else None
    field = line(P=P)
    T1 = 6
    free = relax(field, (T1,))
    asked = one("toy_cons", T1=T1)
    (cell,) = asked.problems
    found = gather_references([cell], free, Meter(), both=True)
    W, eps = field.theta["W"], field.knobs.eps
    eye = torch.eye(5, dtype=torch.float64)
    P = eye if P is None else P
    J_G, g = P @ (eye + eps * W), field.x["c"]
    powers = [torch.linalg.matrix_power(J_G.T, k) for k in range(T1)]
    p = sum(g @ M.T for M in powers) @ P  # behind the projection: P^T a, and P is symmetric
    left = (g + p @ (eye + eps * W)) @ P - p
    assert float(found.apart["reference_open"][0]) == pytest.approx(float(left.norm() / (g @ P).norm()), rel=1e-12)
    whole = {n: v[0] for n, v in found.known["bptt"].gradient.items()}
    other = {n: v[0] for n, v in found.known["implicit"].gradient.items()}
    assert float(found.apart["reference_gap"][0]) == pytest.approx(whole_gap(other, whole), rel=1e-12)


def one(system: str, estimators: Any = "bptt", **named: Any) -> Plan:
    small = dict(LIVE[system])
    grid = {"system": {"name": system, **{k: v for k, v in small.items() if k != "damp"}}, "estimator": estimators}
    known = {"damp": small.get("damp", 1.0), "dtype": "float64", "batch": 2, "T2": 6, "beta": 0.01} | named
    return plan(parse({"name": "test", "about": "", "grid": [grid | known]}, "test"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_second_reference_changes_no_number_of_the_first(name: str) -> None:
    rules = ["bptt", "tbptt", "adjoint", "aep"]
    if name == "residual_mlp":
        rules.remove("tbptt")
    rows = []
    for chosen in ("bptt", ["bptt", "implicit"]):
        asked = one(name, rules, reference=chosen, T1=[20, 40])
        (problem,) = asked.problems
        outcomes = solve([problem], build(problem, "cpu"), asked.thresholds)
        rows.append({o.cell.key: o.row() for o in outcomes if o.cell.reference == "bptt"})
    assert rows[0].keys() == rows[1].keys()
    timed = {"seconds", "peak_memory", "problem"}
    for key, row in rows[0].items():
        for column, value in row.items():
            if column not in timed:
                assert repr(value) == repr(rows[1][key][column]), column


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stack_reads_what_single_problems_read(name: str) -> None:
    rules = ["bptt", "adjoint", "ep"]
    asked = one(name, rules, reference=["bptt", "implicit"], T1=[20, 40], seed=[0, 1])
    fields = [build(problem, "cpu") for problem in asked.problems]
    alone = [o for p, f in zip(asked.problems, fields, strict=True) for o in solve([p], f, asked.thresholds)]
    stacked = solve(asked.problems, Stack.of(fields), asked.thresholds)
    for a, b in zip(alone, stacked, strict=True):
        assert a.cell == b.cell
        assert a.status == b.status
        for column in ("cosine", "rel_error", "reference_norm", "reference_open", "reference_gap"):
            x, y = a.row()[column], b.row()[column]
            assert (x is None) == (y is None)
            assert x is None or y == pytest.approx(x, rel=1e-8, abs=1e-12)


def test_the_key_of_a_cell_of_before_is_as_it_was_and_the_other_reference_has_one_of_its_own() -> None:
    cells = one("toy_cons", reference=["bptt", "implicit"], T1=20).cells
    plain = one("toy_cons", T1=20).cells
    assert [c.reference for c in cells] == ["bptt", "implicit"]
    assert cells[0].key == plain[0].key != cells[1].key
    assert cells[0].problem == cells[1].problem


def test_columns_stand_where_they_are_asked_for() -> None:
    plain = gb.measure("toy_cons", "adjoint", T1=50).row
    assert plain["reference_open"] is not None
    assert plain["reference_gap"] is None
    assert plain["implicit_open"] is None
    row = gb.measure("toy_cons", "adjoint", T1=50, reference="implicit").row
    assert None not in (row["reference_open"], row["reference_gap"], row["implicit_open"])
    assert gb.measure("residual_mlp", "adjoint").row["reference_open"] is None


def test_certificates_bring_the_gap_to_every_row() -> None:
    asked = one("toy_cons", ["bptt", "adjoint"], T1=[20, 40])
    (problem,) = asked.problems
    rows = [o.row() for o in solve([problem], build(problem, "cpu"), asked.thresholds, deep=True)]
    assert len({row["reference_gap"] for row in rows}) == 2
    assert all(row["implicit_open"] < 1e-10 for row in rows)


def test_where_the_reference_moved_the_adjoint_is_right_by_one_and_wrong_by_the_other() -> None:
    """A state on its way: the adjoint series is that of the point where the state stands."""
    named = asdict(one("cet_real", "adjoint", T1=12, T2=2000).cells[0])
    point = {n: named[n] for n in ("damp", "T1", "T2", "dtype", "batch")}
    options = {k: v for k, v in LIVE["cet_real"].items() if k != "damp"}
    by = {
        reference: gb.measure("cet_real", "adjoint", system_options=options, reference=reference, **point)
        for reference in ("bptt", "implicit")
    }
    assert by["implicit"].rel_error < 1e-8
    assert by["bptt"].rel_error > 0.01
    assert by["bptt"].row["reference_open"] > 0.01
    assert by["implicit"].row["reference_gap"] == pytest.approx(by["bptt"].rel_error, rel=1e-6)
    assert by["implicit"].status == by["bptt"].status == Status.UNSETTLED


@pytest.mark.parametrize("rule", ["adjoint", "tbptt"])
def test_a_short_second_phase_is_truncation_by_either_reference(rule: str) -> None:
    options = {k: v for k, v in LIVE["toy_noncons"].items() if k != "damp"}
    point = {"damp": 1.0, "T1": 300, "T2": 2, "batch": 2}
    for reference in ("bptt", "implicit"):
        found = gb.measure("toy_noncons", rule, system_options=options, reference=reference, **point)
        assert found.row["cause"] == Cause.TRUNCATION
    told = found.explain()
    assert told.cause == Cause.TRUNCATION
    assert told.explanation.ladder is not None
    assert told.explanation.ladder.rungs[0].name == "implicit"
    assert told.explanation.arbiter is not None
    assert told.explanation.arbiter.error < 1e-4


def test_a_solve_that_fails_is_a_status_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_up(product: object, g: torch.Tensor, *_: object) -> torch.Tensor:
        return 0.5 * g

    monkeypatch.setattr(spaces, "gmres", given_up)
    monkeypatch.setattr(linear, "DENSE", 0)
    options = {k: v for k, v in LIVE["toy_cons"].items() if k != "damp"}
    found = gb.measure("toy_cons", "adjoint", system_options=options, damp=3.0, T1=200, reference="implicit")
    assert found.status == Status.UNDEFINED
    assert "not solved" in found.reason
    assert found.row["implicit_open"] > 1e-8
    assert math.isnan(found.cosine)


def test_an_unstable_state_says_that_the_solution_is_no_limit() -> None:
    """z = 0 of a saddle: the state stands still, and perturbations of it grow."""
    data = {"x": torch.zeros(2, 1), "y": torch.ones(2, 3)}
    saddle = gb.system(
        name="saddle", params={"w": torch.tensor([0.5, -0.5, -0.2]), "h": torch.full((3,), 0.1)}, data=data, eps=0.2,
        force=lambda p, x, z: p["w"] * (z - 1) + 0 * p["h"], cost=lambda p, x, z: ((z - x["y"]) @ p["h"]),
        state=lambda p, x: torch.ones(len(x["y"]), 3),
    )  # fmt: skip
    found = gb.measure(saddle, "adjoint", T1=20, T2=5, reference="implicit", dtype="float64")
    assert found.status == Status.UNSTABLE
    assert found.reason.endswith("; the implicit reference is a solution there, and no limit of the adjoint series")
    assert found.row["implicit_open"] < 1e-10
    assert "no limit" not in gb.measure(saddle, "adjoint", T1=20, T2=5, dtype="float64").reason


def test_a_reference_that_is_none_is_told_with_its_near_miss() -> None:
    with pytest.raises(gb.UserError, match=r"^reference = 'implict' is not a choice. Did you mean 'implicit'\?"):
        gb.measure("toy_cons", "adjoint", reference="implict")
