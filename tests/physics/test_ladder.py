"""The ladder: rungs against matrices, their sum against the engine, and planted faults by their names."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from linear import line, noise
from live import LIVE, SYSTEMS, gap, live_field, whole_gap

from gradbench.diagnostics.deep import certify_deep
from gradbench.diagnostics.ladder import Ladder, Relaxed, climb
from gradbench.diagnostics.neumann import adjoint_credit
from gradbench.dynamics import linear
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.engine.draws import build
from gradbench.engine.solving import solve
from gradbench.estimators import implicit
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import Params
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.status import Status, Thresholds

T1, T2, BETA = 20, 7, 0.05
TILTED = 0.9 * torch.eye(5, dtype=torch.float64) + 0.05 * noise(5, 5, seed=9)


def pulled(field: Field, s: torch.Tensor, a: torch.Tensor) -> Params:
    """<a, dF/dtheta> of the linear system by hand: a s^T and a, summed over examples."""
    return {"W": a.mT @ s, "h": a.sum(0)}


def answers(field: Field, asymmetric: bool) -> dict[str, Params]:
    """Every rung by matrices; centred, of a cost that is linear in s."""
    eye, power = torch.eye(5, dtype=torch.float64), torch.linalg.matrix_power
    W, eps, P = field.theta["W"], float(field.knobs.eps), field.system.P
    P = eye if P is None else P
    G, c, states = P @ (eye + eps * W), field.x["c"], [field.x["s0"]]
    for _ in range(T1):
        states.append((states[-1] + eps * (states[-1] @ W.mT + field.theta["h"] + field.x["x"])) @ P.mT)
    s = states[-1]
    path = [pulled(field, states[T1 - 1 - j], eps * c @ power(G, j) @ P) for j in range(T1)]
    K = W.mT if asymmetric else W
    other = P @ (eye + eps * K)
    terms = {
        "adjoint, T1 terms": sum(power(G.mT, j) for j in range(T1)),
        "implicit": torch.linalg.inv(eye - G.mT),
        "adjoint, T2 terms": sum(power(G.mT, j) for j in range(T2)),
    }
    credits = {name: eps * c @ total.mT @ P for name, total in terms.items()}
    credits["linearised"] = eps * c @ P.mT @ sum(power(other, j) for j in range(T2)).mT
    found = {name: pulled(field, s, a) for name, a in credits.items()}
    found["bptt"] = {n: sum(g[n] for g in path) for n in path[0]}
    return found | dict.fromkeys(("along the drift", "beta -> 0", "beta", "readout"), found["linearised"])


@pytest.mark.fast
@pytest.mark.parametrize("P", [None, TILTED], ids=["free", "projected"])
@pytest.mark.parametrize("rule", ["ep", "aep"])
def test_every_rung_of_a_linear_system_is_exact(rule: str, P: torch.Tensor | None) -> None:
    field = line(P=P)
    found = climb(Relaxed(field, T1), registry.estimator(rule), T2, BETA, stable=True, settled=True)
    expected = answers(field, rule == "aep")
    assert {rung.name for rung in found.rungs} == set(expected)
    for rung in found.rungs:
        assert gap(rung.gradient, expected[rung.name]) < 1e-10, rung.name


@pytest.mark.fast
def test_one_sided_rules_divide_the_drift_by_beta() -> None:
    """s_+ = s_0' - beta a, with s_0' the state after T2 more steps without a nudge."""
    field = line()
    found = climb(
        Relaxed(field, T1), registry.estimator("ep", {"nudge": "positive"}), T2, BETA, stable=True, settled=True
    )
    free = relax(field, (T1, T1 + T2))
    drift = (free.ends[0] - free.ends[1]) / BETA
    expected = answers(field, False)["linearised"]
    assert gap(found["beta"].gradient, expected) < 1e-10
    with_drift = {n: g + pulled(field, free.ends[0], drift)[n] for n, g in expected.items()}
    assert gap(found["with the drift"].gradient, with_drift) < 1e-10


def test_a_finite_nudge_of_a_quadratic_cost_moves_the_jacobian() -> None:
    """C = 1/2 q |s - y|^2 makes the nudged state move by J -+ beta q, which the linearised phase does not have."""
    field, rule = line(curved=1.0, skew=0.0), registry.estimator("ep")
    sizes = [
        climb(Relaxed(field, 200), rule, 100, beta, stable=True, settled=True).sizes[Cause.NONLINEARITY]
        for beta in (0.1, 0.01)
    ]
    assert sizes[0] / sizes[1] == pytest.approx(100, rel=0.1)


@cache
def relaxed(name: str) -> Relaxed:
    """What the ladders of all rules at the live point of a system share, in float32."""
    field = live_field(name, dtype="float32")
    return Relaxed(field, 30 if "T1" in field.system.uses else 0)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("bptt", {}), ("tbptt", {}), ("adjoint", {}), ("adjoint", {"projection": "dropped"}), ("ep", {}),
        ("ep", {"nudge": "positive"}), ("ep", {"reduction": "mean"}), ("ep", {"readout": "energy_contrast"}),
        ("aep", {"clip": "sample"}), ("aep", {"nudge": "negative"}),
    ],
)  # fmt: skip
def test_the_rungs_recompose_to_what_the_engine_measures(name: str, rule: str, options: dict[str, str]) -> None:
    """In float32, so that the last step is there: from the reference in float64 to the estimate of `measure`."""
    built = registry.estimator(rule, options)
    if built.skip(registry.known_systems()[name]):
        pytest.skip("not for this system")
    small = dict(LIVE[name])
    damp = small.pop("damp", 1.0)
    grid = {
        "system": {"name": name, **small}, "estimator": {"name": rule, **options}, "damp": damp, "T1": 30, "T2": 6,
        "beta": 0.05, "dtype": "float32", "batch": 2,
    }  # fmt: skip
    asked = plan(parse({"name": "test", "about": "", "grid": [grid]}, "test"))
    (problem,), (cell,) = asked.problems, asked.cells
    (outcome,) = solve([problem], build(problem, "cpu"), asked.thresholds)
    assert cell.steps == relaxed(name).T1
    found = climb(relaxed(name), built, cell.T2, cell.beta, stable=True, settled=True)
    assert gap(found.rungs[-1].gradient, outcome.estimate) == 0
    total = {n: torch.zeros_like(g) for n, g in found.reference.items()}
    for a, b in itertools.pairwise(found.rungs):
        total = {n: total[n] + (b.gradient[n] - a.gradient[n]) for n in total}
    whole = {n: outcome.estimate[n].double() - found.reference[n] for n in total}
    scale = sum(float(rung.gradient[n].norm()) for rung in found.rungs for n in total)
    assert max(float((total[n] - whole[n]).norm()) for n in total) < 1e-14 * scale
    assert whole_gap(outcome.reference, found.reference) < 1e-4


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_implicit_solve_is_the_limit_of_the_series_by_lu_and_by_gmres(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = relax(live_field(name), (400,))
    limit = adjoint_credit(free, 2000)
    for dense, loose in ((0, implicit.LOOSE), (linear.DENSE, -1.0)):  # never matrices, always matrices
        monkeypatch.setattr(linear, "DENSE", dense)
        monkeypatch.setattr(implicit, "LOOSE", loose)
        found = implicit.solution(free)
        assert found.solved.all()
        torch.testing.assert_close(found.credit, limit, rtol=1e-7, atol=1e-7 * float(limit.abs().max()))


def test_a_solve_that_fails_is_a_flag_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """W = 0 has no isolated fixed point: 1 - J_G is zero."""
    field = line()
    field = replace(field, theta=field.theta | {"W": torch.zeros_like(field.theta["W"])})
    for dense in (linear.DENSE, 0):
        monkeypatch.setattr(linear, "DENSE", dense)
        found = climb(Relaxed(field, T1), registry.estimator("adjoint"), T2, None, stable=False, settled=True)
        assert [rung.name for rung in found.rungs] == ["bptt", "adjoint, T1 terms", "adjoint, T2 terms", "readout"]
        assert "left out" in found.flags[0]


def climbed(field: Field, rule: str, options: dict[str, str], T1: int, T2: int, beta: float | None) -> Ladder:
    """With what the certificate finds."""
    found = certify_deep(relax(field.wide, (T1,)), Thresholds(), 0)
    settled = found.free.settled_share == 1
    return climb(Relaxed(field, T1), registry.estimator(rule, options), T2, beta, stable=found.stable, settled=settled)


def narrow(field: Field) -> Field:
    theta, x = ({n: v.float() for n, v in tensors.items()} for tensors in (field.theta, field.x))
    return Field(field.system, theta, x, Knobs(*(k.float() for k in field.knobs)))


FAULTS: list[tuple[Cause, dict[str, Any], str, dict[str, str], tuple[int, int, float | None]]] = [
    (Cause.NONE, {}, "aep", {}, (200, 100, 1e-3)),
    (Cause.NONE, {"skew": 0.0}, "ep", {}, (200, 100, 1e-3)),
    (Cause.NONE, {"P": TILTED}, "adjoint", {}, (200, 100, None)),
    (Cause.TRANSIENT, {}, "aep", {}, (3, 200, 1e-3)),
    (Cause.TRANSIENT, {}, "adjoint", {}, (3, 200, None)),
    (Cause.TRANSIENT, {"skew": 0.0}, "ep", {"nudge": "positive"}, (40, 200, 1e-4)),  # drift over beta
    (Cause.TRANSIENT, {"pull": -0.05, "skew": 0.0, "at": 0.9}, "ep", {}, (40, 30, 1e-3)),  # still leaving a saddle
    (Cause.NO_FIXED_POINT, {"pull": -0.5, "skew": 0.0, "at": 1.0}, "ep", {}, (40, 200, 1e-3)),  # a saddle
    (Cause.NO_FIXED_POINT, {"skew": 12.0, "at": 1.0}, "aep", {}, (20, 9, 1e-3)),  # Re lambda < 0, rho > 1
    (Cause.TRUNCATION, {}, "aep", {}, (400, 3, 1e-3)),
    (Cause.TRUNCATION, {}, "tbptt", {}, (400, 3, None)),
    (Cause.TRUNCATION, {"skew": 0.0}, "ep", {"reduction": "mean"}, (400, 8, 1e-3)),
    (Cause.ASYMMETRY, {"skew": 1.0}, "ep", {}, (200, 100, 1e-3)),
    (Cause.NONLINEARITY, {"curved": 1.0}, "aep", {}, (200, 100, 0.7)),
    (Cause.NONLINEARITY, {"curved": 1.0, "skew": 0.0}, "ep", {"nudge": "positive"}, (200, 100, 0.3)),
    (Cause.CLIP, {"skew": 3.0}, "aep", {"clip": "sample"}, (200, 100, 1e-3)),
    (Cause.CLIP, {"skew": 3.0}, "aep", {"clip": "batch"}, (200, 100, 1e-3)),
    (Cause.READOUT, {"P": TILTED}, "adjoint", {"projection": "dropped"}, (200, 100, None)),
    (Cause.READOUT, {"P": 0.5 * TILTED}, "adjoint", {"projection": "dropped"}, (400, 40, None)),
]


@pytest.mark.parametrize(("cause", "place", "rule", "options", "cell"), FAULTS)
def test_a_planted_fault_is_named(
    cause: Cause, place: dict[str, Any], rule: str, options: dict[str, str], cell: tuple[int, int, float | None]
) -> None:
    found = climbed(line(**place), rule, options, *cell)
    assert found.cause is cause, {str(c): v for c, v in found.sizes.items()}


def test_the_smallest_nudge_is_heard_where_everything_grows() -> None:
    """Of a saddle, a nudge that ends at SMALL of the state would start below its round-off, which grows as it does."""
    found = climbed(line(pull=-0.5, skew=0.0, at=1.0), "ep", {}, 40, 200, 1e-3)
    assert found.sizes[Cause.RULE] < 1e-2 * found.sizes[Cause.NO_FIXED_POINT]


@pytest.mark.parametrize(("rule", "place"), [("aep", {}), ("ep", {"skew": 0.0})])
def test_the_floor_of_float32_is_named_and_float64_has_none(rule: str, place: dict[str, Any]) -> None:
    field = line(**place)
    assert climbed(narrow(field), rule, {}, 200, 100, 1e-6).cause is Cause.PRECISION
    assert climbed(narrow(field), rule, {}, 200, 100, 1e-2).cause is Cause.NONE
    assert climbed(field, rule, {}, 200, 100, 1e-6).cause is Cause.NONE


def test_a_good_whole_does_not_hide_a_bad_parameter() -> None:
    """Naive EP on cet_real: attention weights, whose gradient is small, go by the wrong Jacobian."""
    found = climb(Relaxed(live_field("cet_real"), 400), registry.estimator("ep"), 200, 1e-3, stable=True, settled=True)
    worst = found.whole.worst
    assert found.whole.params[worst].cosine < found.whole.whole.cosine
    assert found.causes[worst] is Cause.ASYMMETRY


def test_a_collapsed_state_has_its_status_and_a_parameter_without_a_gradient_has_no_cause() -> None:
    field = line(drive=0.0)
    certificate = certify_deep(relax(field, (200,)), Thresholds(collapse_residual=0), 0)
    assert certificate.free.judgement.status is Status.COLLAPSED
    assert set(climbed(field, "adjoint", {}, 200, 200, None).causes) == {"h"}
