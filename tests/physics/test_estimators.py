"""What every registered estimator promises: its exactness, its order in beta, its sharing."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from live import ESTIMATORS, SYSTEMS, gap, jacobian, live_field, random_like, whole_gap

from gradbench.diagnostics.metrics import compare
from gradbench.dynamics import pieces
from gradbench.dynamics.field import Closed, Field
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.base import AbstractEstimator
from gradbench.estimators.bptt import Bptt
from gradbench.estimators.phases.nudged import NudgedPhase
from gradbench.estimators.phases.reverse import ReversePhase
from gradbench.estimators.tbptt import Tbptt
from gradbench.planning import registry
from gradbench.systems.base import AbstractForwardSystem, Params

LIVE_TOY = {"T1": 300, "T2": 100}


def live_toy(seed: int) -> Field:
    """The live toy at its full size with zero bias: driven, damped, settled to round-off."""
    from gradbench.engine.draws import build
    from gradbench.planning.plans import plan
    from gradbench.planning.suites import parse

    grid = {"system": {"name": "toy_noncons", "drive_std": 1.0}, "estimator": "bptt", "damp": 3.0}
    content = {"name": "test", "about": "", "grid": [grid | {"seed": seed, "dtype": "float64"}]}
    return build(plan(parse(content, "test")).problems[0], "cpu")


def estimates(
    rule: AbstractEstimator, free: Trajectory, depths: tuple[int, ...], betas: tuple[float, ...]
) -> dict[tuple[int | None, int, int], Params]:
    """Gradients by depth, index of T1 and index of beta."""
    nudges = free.ends.new_tensor(betas)
    return {
        (reading.depth, i, j): {name: g[i, j] for name, g in reading.gradient.items()}
        for snapshot in rule.phase.run(free, depths, nudges)
        for reading in [rule.read(free, snapshot, nudges)]
        for i in range(len(free.T1s))
        for j in range(next(iter(reading.gradient.values())).shape[1])
    }


def estimate(rule: AbstractEstimator, free: Trajectory, depth: int, beta: float) -> Params:
    return estimates(rule, free, (depth,), (beta,))[depth, 0, 0]


def reference(free: Trajectory) -> Params:
    (gradient,) = estimates(Bptt(), free, (), ()).values()
    return gradient


@cache
def settled(name: str) -> Trajectory:
    """The state of a live field at its fixed point, to round-off of float64; a forward pass is there at once."""
    field = live_field(name)
    return relax(field, (40 if isinstance(field.system, AbstractForwardSystem) else 600,))


@cache
def exact(name: str) -> Params:
    return reference(settled(name))


def start(field: Field, theta: Params) -> torch.Tensor:
    """s_0, which takes no part in the gradient unless it is a forward pass, and so the free state itself."""
    system = field.system
    return system.equilibrium(theta, field.x) if isinstance(system, AbstractForwardSystem) else field.init_state()


def slope(errors: dict[float, float]) -> float:
    """Of log error against log beta, by least squares."""
    x, y = ([math.log(v) for v in values] for values in (errors.keys(), errors.values()))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


@pytest.mark.fast
@pytest.mark.parametrize("name", SYSTEMS)
def test_bptt_equals_unrolled_autograd(name: str) -> None:
    field = live_field(name)
    theta = {n: p.clone().requires_grad_() for n, p in field.theta.items()}
    context = field.system.context(theta, field.x)
    s = start(field, theta)
    for _ in range(12):
        s = field.system.project(s + field.knobs.eps * field.system.force(theta, field.x, context, s, field.knobs))
    unrolled = torch.autograd.grad(field.system.cost(theta, field.x, s).sum(), list(theta.values()))
    assert gap(reference(relax(field, (12,))), dict(zip(theta, unrolled, strict=True))) < 1e-12


@pytest.mark.fast
@pytest.mark.parametrize("name", SYSTEMS)
def test_bptt_agrees_with_central_differences_of_the_relaxed_cost(name: str) -> None:
    field, h = live_field(name), 1e-5
    gradient = reference(relax(field, (12,)))
    d = {n: random_like(p, seed=i) for i, (n, p) in enumerate(field.theta.items())}

    def cost(step: float) -> float:
        moved = Field(field.system, {n: p + step * d[n] for n, p in field.theta.items()}, field.x, field.knobs)
        s = start(field, moved.theta)
        for _ in range(12):
            s = moved.step(s)
        return float(moved.cost(s).sum())

    numeric = (cost(h) - cost(-h)) / (2 * h)
    assert sum(float((gradient[n] * d[n]).sum()) for n in d) == pytest.approx(numeric, rel=1e-7)


@pytest.mark.fast
@pytest.mark.parametrize("name", SYSTEMS)
def test_one_sweep_serves_every_T1(name: str) -> None:
    field = live_field(name)
    shared = estimates(Bptt(), relax(field, (3, 7, 20)), (), ())
    for i, T1 in enumerate((3, 7, 20)):
        assert gap(shared[None, i, 0], reference(relax(field, (T1,)))) < 1e-12


@pytest.mark.parametrize("name", ["cet_projected", "toy_cons"])
@pytest.mark.parametrize("hold", [2, 5, 37])
def test_a_trajectory_kept_in_part_gives_the_same_reference_and_truncations(name: str, hold: int) -> None:
    field = live_field(name)
    whole, part = relax(field, (7, 38)), relax(field, (7, 38), hold)
    assert part.every > 1
    assert len(part.states) < len(whole.states)
    torch.testing.assert_close(part.ends, whole.ends, rtol=0, atol=0)
    torch.testing.assert_close(part.norms, whole.norms, rtol=0, atol=0)
    if whole.energies is not None:
        torch.testing.assert_close(part.energies, whole.energies, rtol=1e-13, atol=1e-13)
    expected = estimates(Tbptt(), whole, (3, 20), ())
    for place, gradient in estimates(Tbptt(), part, (3, 20), ()).items():
        assert gap(gradient, expected[place]) < 1e-12, place


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("rule", [n for n in ESTIMATORS if registry.known_estimators()[n].uses])
def test_one_pass_serves_every_T1_depth_and_beta(name: str, rule: str) -> None:
    field, built = live_field(name), registry.estimator(rule)
    if reason := built.skip(registry.known_systems()[name]):
        pytest.skip(reason)
    shared = estimates(built, relax(field, (10, 40)), (2, 5, 9), (0.01, 0.3))
    for (depth, i, j), gradient in shared.items():
        if depth is None:  # the reference, which comes with the sweep that tbptt reads
            continue
        alone = estimate(built, relax(field, ((10, 40)[i],)), depth, (0.01, 0.3)[j])
        assert whole_gap(gradient, alone) < 1e-10


@pytest.mark.fast
@pytest.mark.parametrize("name", [n for n in SYSTEMS if Tbptt().skip(registry.known_systems()[n]) is None])
def test_tbptt_cuts_the_chain_where_it_says(name: str) -> None:
    """Against unrolled autograd of the last 5 of 12 steps."""
    field = live_field(name)
    free = relax(field, (12,))
    theta = {n: p.clone().requires_grad_() for n, p in field.theta.items()}
    context, s = field.system.context(theta, field.x), free.states[7]
    for _ in range(5):
        s = field.system.project(s + field.knobs.eps * field.system.force(theta, field.x, context, s, field.knobs))
    unrolled = torch.autograd.grad(field.system.cost(theta, field.x, s).sum(), list(theta.values()))
    assert gap(estimate(Tbptt(), free, 5, 0), dict(zip(theta, unrolled, strict=True))) < 1e-12
    assert gap(estimate(Tbptt(), free, 12, 0), reference(free)) < 1e-14


@pytest.mark.parametrize("name", SYSTEMS)
def test_adjoint_equals_tbptt_term_by_term_at_a_fixed_point(name: str) -> None:
    free, depths = settled(name), (1, 2, 7, 40)
    adjoint, tbptt = (estimates(registry.estimator(n), free, depths, ()) for n in ("adjoint", "tbptt"))
    for depth in depths:
        assert whole_gap(adjoint[depth, 0, 0], tbptt[depth, 0, 0]) < 1e-8
    assert whole_gap(adjoint[2, 0, 0], tbptt[None, 0, 0]) > 1e-3  # the two agree on more than their limit


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adjoint_with_T1_terms_equals_bptt_on_the_live_toy(seed: int) -> None:
    free = relax(live_toy(seed), (LIVE_TOY["T1"],))
    assert whole_gap(estimate(registry.estimator("adjoint"), free, LIVE_TOY["T1"], 0), reference(free)) < 1e-10


@pytest.mark.parametrize("name", ["toy_noncons", "cet_projected"])
def test_adjoint_solves_the_dense_linear_system(name: str) -> None:
    field = live_field(name, batch=1)
    free = relax(field, (800,))
    s, g = free.ends[0], free.cost_slope[0, 0]
    J_G = jacobian(lambda s: field.step(s[None])[0], s[0])
    Pi = jacobian(lambda u: field.project(u[None])[0], (s + field.knobs.eps * field.force(s))[0])
    sums = {7: sum(torch.linalg.matrix_power(J_G.mT, j) @ g for j in range(7))}
    sums[800] = torch.linalg.solve(torch.eye(len(g), dtype=g.dtype) - J_G.mT, g)
    rule = registry.estimator("adjoint")
    for snapshot in rule.phase.run(free, (7, 800), ()):
        credit = rule.read(free, snapshot, ()).credit
        assert credit is not None
        assert snapshot.depth is not None
        expected = field.knobs.eps * Pi.mT @ sums[snapshot.depth]
        torch.testing.assert_close(credit[0, 0, 0], expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_dropping_the_projection_is_wrong_exactly_where_there_is_one(name: str) -> None:
    free = settled(name)
    kept, dropped = (
        estimate(registry.estimator("adjoint", {"projection": p}), free, 200, 0) for p in ("kept", "dropped")
    )
    if not free.field.system.projects:
        assert gap(dropped, kept) == 0
    else:
        comparison = compare(dropped, exact(name), 1e-12)
        assert comparison.cosine_min < 0.5


@pytest.mark.parametrize("name", [n for n in SYSTEMS if live_field(n).system.projects])
def test_the_projected_adjoint_follows_bptt_once_the_state_has_settled(name: str) -> None:
    for seed in (0, 1, 2):
        field = live_field(name, seed=seed)
        free = relax(field, (400,))
        assert float((field.step(free.ends) - free.ends).norm() / free.ends.norm()) <= 1e-6
        comparison = compare(estimate(registry.estimator("adjoint"), free, 400, 0), reference(free), 1e-12)
        assert comparison.cosine_min >= 0.998


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aep_error_falls_as_beta_squared_and_one_sided_as_beta(seed: int) -> None:
    free = relax(live_toy(seed), (LIVE_TOY["T1"],))
    exact = reference(free)
    betas = (0.1, 0.01, 0.001)
    for nudge, order in (("centred", 2.0), ("positive", 1.0), ("negative", 1.0)):
        rule = registry.estimator("aep", {"nudge": nudge})
        found = estimates(rule, free, (LIVE_TOY["T2"],), betas)
        errors = {beta: whole_gap(found[LIVE_TOY["T2"], 0, j], exact) for j, beta in enumerate(betas)}
        assert slope(errors) == pytest.approx(order, abs=0.1), (nudge, errors)
        assert rule.claim.order == order
        if nudge == "centred":
            assert errors[0.001] <= 1e-8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_naive_ep_is_biased_and_no_beta_helps(seed: int) -> None:
    free = relax(live_toy(seed), (LIVE_TOY["T1"],))
    exact, betas = reference(free), (0.1, 0.01, 0.001)
    found = estimates(registry.estimator("ep"), free, (LIVE_TOY["T2"],), betas)
    errors = [whole_gap(found[LIVE_TOY["T2"], 0, j], exact) for j in range(len(betas))]
    assert min(errors) > 0.25
    assert max(errors) / min(errors) < 1.01


@pytest.mark.fast
def test_aep_equals_ep_on_a_settled_conservative_toy() -> None:
    field = live_field("toy_cons", batch=4)
    free = relax(field, (2000,))
    assert float((field.step(free.ends) - free.ends).norm()) < 1e-12
    ep, aep = (estimate(registry.estimator(n), free, 120, 0.02) for n in ("ep", "aep"))
    assert whole_gap(aep, ep) < 1e-10
    assert whole_gap(ep, reference(free)) > 1e-8  # a finite nudge leaves an error: the two agree on more than zero


@pytest.mark.fast
def test_nudged_phase_with_the_correction_moves_by_the_transposed_jacobian() -> None:
    """-delta / beta after k steps tends to eps sum_{j<k} (I + eps J^T)^j g, here with a dense J."""
    field = live_field("toy_noncons", batch=1)
    free = relax(field, (500,))
    s, eps, g = free.ends[0], float(field.knobs.eps), free.cost_slope[0, 0]
    J = jacobian(lambda s: field.force(s[None])[0], s[0])
    a, term = torch.zeros_like(g), g.clone()
    for _ in range(7):
        a, term = a + eps * term, term + eps * J.mT @ term
    rule = registry.estimator("aep")
    (snapshot,) = rule.phase.run(free, (7,), free.ends.new_tensor([1e-4]))
    credit = rule.read(free, snapshot, free.ends.new_tensor([1e-4])).credit
    assert credit is not None
    torch.testing.assert_close(credit[0, 0, 0], a, rtol=1e-6, atol=1e-9)


@pytest.mark.fast
def test_readouts_of_ep_differ_at_second_order() -> None:
    free = relax(live_field("toy_cons"), (2000,))
    differences = {}
    for beta in (0.3, 0.1, 0.03):
        field_readout = estimate(registry.estimator("ep"), free, 400, beta)
        contrast = estimate(registry.estimator("ep", {"readout": "energy_contrast"}), free, 400, beta)
        differences[beta] = whole_gap(contrast, field_readout)
    assert slope(differences) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("clip", "couples"), [("none", False), ("sample", False), ("batch", True)])
def test_only_the_batch_clip_lets_one_example_touch_another(clip: str, couples: bool) -> None:
    """The credit of the first two examples, with and without a third whose cost is much larger."""
    rule, credits = registry.estimator("aep", {"clip": clip}), []
    full = live_field("cet_real", batch=3)
    for batch in (2, 3):
        x = {n: v[:batch] for n, v in full.x.items()}
        x["mask"] = x["mask"] * torch.tensor([1.0, 1.0, 9.0])[:batch, None, None, None]
        free = relax(Field(full.system, full.theta, x, full.knobs), (500,))
        (snapshot,) = rule.phase.run(free, (60,), free.ends.new_tensor([0.02]))
        credit = rule.read(free, snapshot, free.ends.new_tensor([0.02])).credit
        assert credit is not None
        credits.append(credit[0, 0, :2])
    difference = float((credits[0] - credits[1]).norm() / credits[0].norm())
    assert difference > 1e-6 if couples else difference < 1e-10


@pytest.mark.parametrize("clip", ["batch", "sample"])
def test_clip_share_counts_the_steps_that_were_clipped(clip: str) -> None:
    free = relax(live_field("cet_real"), (500,))
    first, last = registry.estimator("aep", {"clip": clip}).phase.run(free, (1, 60), free.ends.new_tensor([0.02]))
    assert float(first.evidence["clip_share"]) == 0  # the first step starts at s*, where the correction is zero
    assert 0 < float(last.evidence["clip_share"]) < 1  # on approach, correction and force become equal


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("name", SYSTEMS)
def test_counts_are_what_one_cell_evaluates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"jvp": 0, "vjp": 0}

    def counting(owner: type, method: str, *products: str) -> None:
        original = getattr(owner, method)

        def counted(self: object, *states: torch.Tensor) -> object:
            for product in products:
                seen[product] += len(states[-1].reshape(-1, *states[-1].shape[-2:]))  # rows share one call
            return original(self, *states)

        monkeypatch.setattr(owner, method, counted)

    if live_field(name).closed:
        counting(Closed, "jvp", "jvp")
        counting(Closed, "vjp", "vjp")
        counting(Closed, "antisym", "jvp", "vjp")
        counting(Field, "backward", "vjp")
    else:
        counting(Linear, "jvp", "jvp")
        counting(Linear, "vjp", "vjp")
    counting(Field, "equilibrium_grads", "vjp")  # a forward pass is gone back through once
    T1 = 6 if "T1" in live_field(name).system.uses else 0
    for rule_name in ESTIMATORS:
        rule = registry.estimator(rule_name)
        if rule.skip(registry.known_systems()[name]):
            continue
        free = relax(live_field(name), (T1,))
        seen.update(jvp=0, vjp=0)
        depths, betas = (
            ((4,) if "T2" in rule.uses else ()),
            free.ends.new_tensor([0.1] if "beta" in rule.uses else []),
        )
        (*_, last) = rule.phase.run(free, depths, betas)
        whole = rule.phase == ReversePhase()  # tbptt alone needs T2 steps of a sweep that goes on to the reference
        depth = None if whole or not depths else depths[0]
        promised = rule.phase.count(T1, depth) + rule.phase.evidence_count(depth)
        told = {product: int(last.evidence.get(f"n_{product}", torch.zeros(1)).max()) for product in seen}
        assert promised.partial == any(told.values())
        assert seen == {"jvp": promised.jvp + told["jvp"], "vjp": promised.vjp + told["vjp"]}, rule_name


@pytest.mark.parametrize("cached", [1, 6_000, 10_000, 2**30])  # entries: of a row, of three, of a T1, of all
@pytest.mark.parametrize("stacked", [False, True])
def test_a_nudged_batch_in_pieces_is_the_same_batch(
    cached: int, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = live_field("cet_real")
    field = Stack.of([field, field]) if stacked else field
    free = relax(field, (20, 60))
    betas = free.ends.new_tensor([0.02, 0.1])
    betas = betas[:, None].expand(2, 2) if stacked else betas
    phase = NudgedPhase((1, -1), asymmetric=True, clip="sample")
    whole = list(phase.run(free, (3, 8), betas))
    monkeypatch.setattr(pieces, "CACHED", cached)
    cut = list(phase.run(free, (3, 8), betas))
    bare = list(phase.unobserved.run(free, (3, 8), betas))
    for a, b, c in zip(whole, cut, bare, strict=True):
        assert a.nudged is not None
        assert c.rest is None
        for other in (b, c):
            torch.testing.assert_close(other.nudged, a.nudged, rtol=1e-12, atol=1e-13)
            for name, value in other.evidence.items():
                torch.testing.assert_close(value, a.evidence[name], rtol=1e-6, atol=1e-12, msg=name)
        torch.testing.assert_close(b.rest, a.rest, rtol=1e-12, atol=1e-13)
        assert b.evidence.keys() == a.evidence.keys()
        assert a.evidence.keys() - c.evidence.keys() == {"drift", "curvature", "noise_floor"}
