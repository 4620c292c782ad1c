"""What single rules of the shelf say of themselves, against dense linear algebra, plain autograd and each other."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from live import LIVE, jacobian, live_field, whole_gap
from test_estimators import estimates, reference, settled, slope

import gradbench as gb
from gradbench.dynamics import krylov
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.errors import UserError
from gradbench.estimators.aep import Aep
from gradbench.estimators.phases.adjoint import AdjointPhase
from gradbench.estimators.phases.nudged import NudgedPhase
from gradbench.estimators.phases.unrolled import UnrolledPhase
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

Tensor = torch.Tensor


def rule(name: str, **options: Any) -> Any:
    return registry.estimator(name, options)


@pytest.mark.parametrize("name", ["toy_cons", "toy_noncons", "cet_projected", "linear"])
def test_rules_of_one_series_are_equal_depth_by_depth_at_a_fixed_point(name: str) -> None:
    free, depths = settled(name), (1, 2, 7)
    adjoint = estimates(rule("adjoint"), free, depths, ())
    others = [rule("tbptt"), *(rule("phantom", lam=1.0, form=form) for form in ("series", "unrolled"))]
    for other in [*others, rule("rbp", eta=float(free.field.knobs.eps))]:
        found = estimates(other, free, depths, ())
        for depth in depths:
            assert whole_gap(found[depth, 0, 0], adjoint[depth, 0, 0]) < 1e-10, (other, depth)
    (one_step,) = estimates(rule("jfb"), free, (), ()).values()
    assert whole_gap(one_step, adjoint[1, 0, 0]) < 1e-14
    halves = [estimates(rule("phantom", lam=0.6, form=form), free, depths, ()) for form in ("series", "unrolled")]
    for depth in depths:
        assert whole_gap(halves[0][depth, 0, 0], halves[1][depth, 0, 0]) < 1e-10
    assert whole_gap(halves[0][7, 0, 0], adjoint[7, 0, 0]) > 1e-2


@pytest.mark.parametrize("name", ["toy_noncons", "cet_projected"])
def test_an_unrolled_phantom_gradient_is_autograd_through_its_damped_steps(name: str) -> None:
    field, lam, start = live_field(name), 0.4, 8
    free, depths = relax(field, (3, start)), (2, 5)
    found = estimates(rule("phantom", lam=lam, form="unrolled"), free, depths, ())
    series = estimates(rule("phantom", lam=lam), free, depths, ())
    for depth in depths:
        theta = {n: p.clone().requires_grad_() for n, p in field.theta.items()}
        context, s = field.system.context(theta, field.x), free.states[start]
        for _ in range(depth):
            moved = field.system.force(theta, field.x, context, s, field.knobs)
            s = (1 - lam) * s + lam * field.system.project(s + field.knobs.eps * moved)
        unrolled = torch.autograd.grad(field.system.cost(theta, field.x, s).sum(), list(theta.values()))
        assert whole_gap(found[depth, 1, 0], dict(zip(theta, unrolled, strict=True))) < 1e-12
        assert whole_gap(series[depth, 1, 0], found[depth, 1, 0]) > 1e-5  # away from rest they are two


@pytest.mark.parametrize(("name", "eta"), [("toy_noncons", 0.13), ("cet_projected", 0.07), ("cet_projected", 0.3)])
def test_recurrent_backpropagation_is_the_relaxation_of_almeida_and_pineda(name: str, eta: float) -> None:
    """With a dense J_G: dy/dt = ((J_G^T - 1) y + g) / eps in steps of eta, and of J where nothing projects."""
    field = live_field(name, batch=1)
    free = relax(field, (800,))
    s, g, eps = free.ends[0], free.cost_slope[0, 0], float(field.knobs.eps)
    J_G = jacobian(lambda s: field.step(s[None])[0], s[0])
    Pi = jacobian(lambda u: field.project(u[None])[0], (s + eps * field.force(s))[0])
    y = torch.zeros_like(g)
    for _ in range(7):
        y = y + eta * ((J_G.mT - torch.eye(len(g))) @ y + g) / eps
    (snapshot,) = rule("rbp", eta=eta).phase.run(free, (7,), ())
    torch.testing.assert_close(snapshot.credit[0, 0], eps * Pi.mT @ y, rtol=1e-9, atol=1e-12)
    if field.system.projects:
        return
    J, a = jacobian(lambda s: field.force(s[None])[0], s[0]), torch.zeros_like(g)
    for _ in range(7):
        a = a + eta * (J.mT @ a + g)
    torch.testing.assert_close(snapshot.credit[0, 0], a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["gmres", "bicgstab", "anderson"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_solver_that_has_arrived_stays_and_says_how_far_it_is(solver: str, dtype: str) -> None:
    """A sample that no cost moves is solved at once; the others long before the last depth."""
    field, close = live_field("toy_noncons", dtype=dtype), 1e-10 if dtype == "float64" else 1e-4
    free = relax(field, (300,))
    free.cost_slope[:, 0] = 0
    residuals = []
    for snapshot in rule("ift", linear_solver=solver).phase.run(free, (1, 4, 400), ()):
        assert snapshot.credit is not None
        assert snapshot.credit.isfinite().all()
        assert not snapshot.credit[0, 0].any()
        residuals.append(float(snapshot.evidence["solve_residual"]))
    assert residuals[0] > 1e-2
    assert residuals[-1] <= close
    J = jacobian(lambda s: field.force(torch.stack((free.ends[0, 0], s)))[1], free.ends[0, 1]).double()
    expected = -torch.linalg.solve(J.mT, free.cost_slope[0, 1].double())
    assert float((snapshot.credit[0, 1] - expected).norm()) <= close * float(expected.norm())


def test_every_iterate_of_gmres_has_the_least_residual_and_one_space_serves_all() -> None:
    M = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(9)
    g = torch.randn(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    products = []

    def product(v: Tensor) -> Tensor:
        products.append(v)
        return v @ M.mT

    for k, x in zip((2, 5, 9, 20), krylov.least_of_each(product, g, (2, 5, 9, 20)), strict=True):
        V = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(M, j) @ g[0] for j in range(min(k, 9))], -1))[0]
        expected = V @ torch.linalg.lstsq(M @ V, g[0][:, None]).solution[:, 0]
        torch.testing.assert_close(x[0], expected, rtol=1e-9, atol=1e-10)
    assert len(products) == 9


@cache
def rest(name: str) -> tuple[Trajectory, Any]:
    free = relax(live_field(name), (600,))
    return free, reference(free)


@pytest.mark.parametrize(
    ("name", "options", "order", "betas"),
    [
        ("toy_cons", {}, 4, (0.1, 0.05, 0.025)),
        ("toy_cons", {"nudge": "positive"}, 2, (0.1, 0.03, 0.01)),
        ("toy_cons", {"nudge": "negative"}, 2, (0.1, 0.03, 0.01)),
        ("toy_noncons", {"correction": "asymmetric"}, 4, (0.1, 0.05, 0.025)),
        ("toy_noncons", {"correction": "asymmetric", "nudge": "positive"}, 2, (0.1, 0.03, 0.01)),
    ],
)
def test_extrapolated_nudges_err_at_the_order_that_they_claim(
    name: str, options: dict[str, str], order: int, betas: tuple[float, ...]
) -> None:
    free, exact = rest(name)
    made = rule("richardson_ep", **options)
    found = estimates(made, free, (300,), betas)
    errors = {beta: whole_gap(found[300, 0, j], exact) for j, beta in enumerate(betas)}
    assert made.claim.order == order
    assert slope(errors) == pytest.approx(order, abs=0.1), errors


def test_a_drawn_sign_errs_as_beta_and_its_expectation_as_beta_squared() -> None:
    free, exact = rest("toy_cons")
    made, betas = rule("random_sign_ep"), (0.1, 0.03, 0.01)
    draws = [made.phase.drawn(range(d, d + 1)) for d in range(8)]
    seen: dict[float, list[float]] = {beta: [] for beta in betas}
    for phase in draws:
        (snapshot,) = phase.run(free, (300,), free.ends.new_tensor(betas))
        reading = made.read(free, snapshot, free.ends.new_tensor(betas))
        for j, beta in enumerate(betas):
            seen[beta].append(whole_gap({n: g[0, j] for n, g in reading.gradient.items()}, exact))
    assert slope({beta: max(errors) for beta, errors in seen.items()}) == pytest.approx(1, abs=0.1)
    centred = estimates(rule("ep"), free, (300,), betas)
    sides = [estimates(rule("ep", nudge=nudge), free, (300,), betas) for nudge in ("positive", "negative")]
    for j in range(len(betas)):
        expectation = {n: (g + sides[1][300, 0, j][n]) / 2 for n, g in sides[0][300, 0, j].items()}
        assert whole_gap(expectation, centred[300, 0, j]) < 1e-8  # whose order is 2
        assert seen[betas[j]] == pytest.approx([seen[betas[j]][0]] * 8, rel=0.2)


def test_signs_are_those_of_the_seed_and_the_table_has_their_spread() -> None:
    m = gb.measure("toy_cons", "random_sign_ep", T1=300, T2=100, beta=0.5, dtype="float64", **{"damp": 3.0})
    again = gb.measure("toy_cons", "random_sign_ep", T1=300, T2=100, beta=0.5, dtype="float64", **{"damp": 3.0})
    assert m.row["draws"] == 15
    assert m.row["bias_se"] == pytest.approx(math.sqrt(m.row["variance"] / 15))
    assert 0 < m.row["bias_se"] == again.row["bias_se"]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_correction_is_taken_anew_where_it_says(every: int) -> None:
    """Step by step with dense Jacobians."""
    field, beta, steps = live_field("toy_noncons", batch=1), 2.0, 8
    free = relax(field, (400,))
    s_star, eps = free.ends[0], float(field.knobs.eps)

    def antisymmetric(s: Tensor) -> Tensor:
        J = jacobian(lambda v: field.force(v[None])[0], s[0])
        return 0.5 * (J - J.mT)

    ends = []
    for b in (beta, -beta):
        s, A = s_star, antisymmetric(s_star)
        for t in range(steps):
            A = antisymmetric(s) if t and t % every == 0 else A
            s = s + eps * (field.force(s) - b * field.cost_slope(s) - 2 * (s - s_star) @ A.mT)
        ends.append(s)
    made, betas = rule("aep_refreshed", every=every), free.ends.new_tensor([beta])
    (snapshot,) = made.phase.run(free, (steps,), betas)
    credit = made.read(free, snapshot, betas).credit
    assert credit is not None
    torch.testing.assert_close(credit[0, 0], (ends[1] - ends[0]) / (2 * beta), rtol=1e-9, atol=1e-11)
    (old,) = Aep().phase.run(free, (steps,), betas)
    apart = float((Aep().read(free, old, betas).credit - credit).norm() / credit.norm())  # type: ignore[operator]
    assert (apart < 1e-12) is (every >= steps), apart


@pytest.mark.fast
def test_phases_that_are_equal_are_shared() -> None:
    assert rule("phantom", lam=1.0).phase == AdjointPhase() == rule("adjoint").phase
    assert rule("richardson_ep").phase == NudgedPhase((1, -1, 0.5, -0.5))
    assert rule("phantom", form="unrolled").phase == UnrolledPhase(0.5)


@pytest.mark.fast
def test_options_out_of_their_range_are_refused() -> None:
    for name, options, told in (
        ("phantom", {"lam": 1.5}, "phantom.lam = 1.5 is above 1|lam = 1.5 is above 1"),
        ("phantom", {"lam": 0.0}, "is not above 0"),
        ("rbp", {"eta": -0.1}, "is not above 0"),
        ("aep_refreshed", {"every": 0}, "is no size"),
        ("ift", {"linear_solver": "gmre"}, "gmres"),
    ):
        with pytest.raises(UserError, match=told):
            registry.estimator(name, options)


@pytest.mark.fast
def test_matrices_that_do_not_fit_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradbench.dynamics.linear.DENSE", 10)
    with pytest.raises(UserError, match="take ift, which has no matrices"):
        gb.measure("toy_noncons", "ift_dense", T1=5, batch=2)


def test_one_run_of_a_solver_or_of_unrolled_steps_costs_what_the_plan_says() -> None:
    grid = {"system": {"name": "linear", **LIVE["linear"]}, "T1": 20, "T2": [2, 5], "batch": 2, "dtype": "float64"}
    for made, vjp in (({"name": "phantom", "form": "unrolled"}, 2 + 5), ("ift", 5 + 2), ("rbp", 4), ("adjoint", 5)):
        (problem,) = plan(parse({"name": "t", "about": "", "grid": [grid | {"estimator": made}]}, "t")).problems
        (one,) = problem.passes
        assert one.cost.vjp == vjp
