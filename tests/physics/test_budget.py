"""Causes of many cells: against the ladder of one cell, stacked against single, and planted faults by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, final

import pytest
import torch
from linear import line, noise
from live import LIVE, SYSTEMS, live_field

from gradbench.diagnostics.ladder import Relaxed, climb
from gradbench.dynamics.field import Field
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.engine.draws import build
from gradbench.engine.outcome import Outcome
from gradbench.engine.solving import solve
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.aep import Aep
from gradbench.estimators.base import AbstractEstimator, Reading, Snapshot, along
from gradbench.estimators.phases.adjoint import AdjointPhase
from gradbench.estimators.phases.nudged import NudgedPhase
from gradbench.planning import registry
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse
from gradbench.vocabulary.cause import CAUSES, Cause
from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.status import Status, Thresholds

TILTED = 0.9 * torch.eye(5, dtype=torch.float64) + 0.05 * noise(5, 5, seed=9)


def planned(**grid: Any) -> Plan:
    return plan(parse({"name": "test", "about": "", "grid": [grid]}, "test"))


def measured(field: Field, rule: Any, T1: int, T2: int, beta: float, **thresholds: float) -> Outcome:
    """One cell of the engine, at a field of one's own."""
    dtype = str(field.knobs.eps.dtype).removeprefix("torch.")
    asked = planned(system="toy_noncons", estimator=rule, T1=T1, T2=T2, beta=beta, dtype=dtype)
    (found,) = solve(asked.problems, field, replace(Thresholds(), **thresholds))
    return found


def narrow(field: Field) -> Field:
    theta, x = ({n: v.float() for n, v in tensors.items()} for tensors in (field.theta, field.x))
    return Field(field.system, theta, x, Knobs(*(k.float() for k in field.knobs)))


# rules with a fault that only their own code knows of


@final
@dataclass(frozen=True)
class OtherCost(NudgedPhase):
    """Nudged along a cost of its own."""

    def run(self, free: Trajectory, depths: Any, betas: Any) -> Any:
        field = free.field
        x = field.x | {"c": field.x["c"] + noise(*field.x["c"].shape, seed=11).to(field.x["c"])}
        return NudgedPhase.run(self, replace(free, field=replace(field, x=x), _views={}), depths, betas)


@final
@dataclass(frozen=True)
class OtherJacobian(NudgedPhase):
    """Corrected by a multiple of the antisymmetric part: of another state, or of the other sign."""

    gain: float = -1.0

    def run(self, free: Trajectory, depths: Any, betas: Any) -> Any:
        class Turned(Field):
            def swirl_at(self, s: torch.Tensor) -> Any:  # type: ignore[override]
                inner = Field.swirl_at(self, s)
                inner.antisym = lambda v: gain * 0.5 * (inner.jvp(v) - inner.vjp(v))  # type: ignore[method-assign]
                return inner

        gain, own = self.gain, free.field
        turned = Turned(own.system, own.theta, own.x, own.knobs)
        return NudgedPhase.run(self, replace(free, field=turned, _views={}), depths, betas)


class Faulty(AbstractEstimator):
    uses: ClassVar[frozenset[str]] = frozenset({"T2", "beta"})
    source = "a test"

    @property
    def phase(self) -> NudgedPhase:
        return NudgedPhase((1, -1), asymmetric=True)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        return Aep().read(free, snapshot, betas)

    def changed(self, reading: Reading, change: Any) -> Reading:
        return replace(reading, gradient={n: change(g) for n, g in reading.gradient.items()})


@final
@dataclass(frozen=True)
class Reversed(Faulty):
    name: ClassVar[str] = "reversed"

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        return self.changed(super().read(free, snapshot, betas), lambda g: -g)


@final
@dataclass(frozen=True)
class Doubled(Faulty):
    name: ClassVar[str] = "doubled"

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        return self.changed(super().read(free, snapshot, betas), lambda g: 2 * g)


@final
@dataclass(frozen=True)
class Biased(Faulty):
    name: ClassVar[str] = "biased"

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        return self.changed(super().read(free, snapshot, betas), lambda g: g + g.norm() * noise(*g.shape, seed=3))


@final
@dataclass(frozen=True)
class Mistaken(Faulty):
    name: ClassVar[str] = "mistaken"

    @property
    def phase(self) -> NudgedPhase:
        return OtherCost((1, -1), asymmetric=True)


@final
@dataclass(frozen=True)
class Stale(Faulty):
    name: ClassVar[str] = "stale"

    @property
    def phase(self) -> NudgedPhase:
        return OtherJacobian((1, -1), asymmetric=True, gain=0.5)


@final
@dataclass(frozen=True)
class Transposed(Faulty):
    name: ClassVar[str] = "transposed"

    @property
    def phase(self) -> NudgedPhase:
        return OtherJacobian((1, -1), asymmetric=True, gain=-1.0)


@final
@dataclass(frozen=True)
class Twice(AbstractEstimator):
    """The adjoint with its projection applied once more."""

    name: ClassVar[str] = "twice"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source = "a test"

    @property
    def phase(self) -> AdjointPhase:
        return Adjoint().phase  # type: ignore[return-value]

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        assert snapshot.credit is not None
        return along(free, snapshot, free.field.project_vjp(free.ends, snapshot.credit)[:, None])


@pytest.fixture(autouse=True)
def faulty() -> Iterator[None]:
    """Rules with a fault, as a plugin would bring them."""
    with registry.scope():
        for rule in (Reversed, Doubled, Biased, Mistaken, Stale, Transposed, Twice):
            registry.register(rule)
        yield


CLIPPED = {"name": "aep", "clip": "sample"}
ONE_SIDED = {"name": "ep", "nudge": "positive"}
SETTLED, UNSETTLED = Status.SETTLED, Status.UNSETTLED

# fault: (place, rule, T1, T2, beta), what the certificate says, what the cause is
FAULTS: dict[str, tuple[tuple[dict[str, Any], Any, int, int, float], Status, Cause | None]] = {
    "T1 too short": (({}, "aep", 3, 200, 1e-3), UNSETTLED, Cause.TRANSIENT),
    "T2 too short": (({}, "aep", 400, 3, 1e-3), SETTLED, Cause.TRUNCATION),
    "T2 too short, tbptt": (({}, "tbptt", 400, 3, 1e-3), SETTLED, Cause.TRUNCATION),
    "beta too large": (({"curved": 1.0}, "aep", 200, 100, 0.7), SETTLED, Cause.NONLINEARITY),
    "beta below the floor of float32": (({"narrow": True}, "aep", 200, 100, 3e-8), SETTLED, Cause.PRECISION),
    "clip on": (({"skew": 3.0}, CLIPPED, 200, 100, 1e-3), SETTLED, Cause.CLIP),
    "J in place of its transpose": (({"skew": 1.0}, "ep", 200, 100, 1e-3), SETTLED, Cause.ASYMMETRY),
    "correction of the other sign": (({}, "transposed", 200, 100, 1e-3), SETTLED, Cause.RULE),
    "projection dropped": (
        ({"P": TILTED}, {"name": "adjoint", "projection": "dropped"}, 200, 100, 1e-3), SETTLED, Cause.READOUT
    ),
    "projection twice": (({"P": 0.5 * TILTED}, "twice", 200, 100, 1e-3), SETTLED, Cause.READOUT),
    "skew map with rho > 1": (({"skew": 12.0, "at": 1.0}, "aep", 20, 9, 1e-3), Status.UNSTABLE, Cause.NO_FIXED_POINT),
    "symmetric saddle": (
        ({"pull": -0.5, "skew": 0.0, "at": 1.0}, "ep", 40, 200, 1e-3), Status.UNSTABLE, Cause.NO_FIXED_POINT
    ),
    "collapsed state": (({"drive": 0.0}, "aep", 60, 60, 1e-3), Status.COLLAPSED, None),
    "one-sided drift": (({"skew": 0.0}, ONE_SIDED, 40, 200, 1e-4), SETTLED, Cause.TRANSIENT),
    "damping beyond stability": (
        ({"pull": 11.0, "at": 1.0}, "aep", 10, 5, 1e-3), Status.UNSTABLE, Cause.NO_FIXED_POINT
    ),
    "wrong sign": (({}, "reversed", 200, 100, 1e-3), SETTLED, Cause.SIGN),
    "wrong scale": (({}, "doubled", 200, 100, 1e-3), SETTLED, Cause.SCALE),
    "biased estimator": (({}, "biased", 200, 100, 1e-3), SETTLED, Cause.READOUT),
    "another cost": (({}, "mistaken", 200, 100, 1e-3), SETTLED, Cause.RULE),
    "a Jacobian of another time": (({"skew": 2.0}, "stale", 200, 100, 1e-3), SETTLED, Cause.RULE),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault: str) -> None:
    (place, *cell), status, cause = FAULTS[fault]
    field = line(**{k: v for k, v in place.items() if k != "narrow"})
    found = measured(narrow(field) if "narrow" in place else field, *cell, collapse_residual=0.0, residual=1e-3)
    assert found.status is status, found.reason
    sizes = found.budget.sizes if found.budget else None
    assert (found.budget.cause if found.budget else None) is cause, sizes


@pytest.mark.parametrize("rule", ["bptt", "tbptt", "adjoint", "aep"])
def test_what_is_right_has_no_cause(rule: str) -> None:
    assert measured(line(), rule, 400, 400, 1e-3).budget is None


def test_a_parameter_without_a_gradient_wants_no_cause() -> None:
    """s* = 0 where nothing drives it: <a, s*> is zero."""
    found = measured(line(drive=0.0), "adjoint", 400, 3, 1e-3, vanish=0.0, collapse=0.0, residual=1.0)
    assert found.comparison is not None
    assert found.comparison.params["W"].reason.startswith("the reference")
    assert found.budget is not None
    assert set(found.budget.sizes) == {"", "h"}


@cache
def settling(name: str) -> int:
    """Free steps after which a state moves by less than 1e-6 a step; from 40 to 250, since each of them costs."""
    field = live_field(name)
    free = relax(field, (250,) if "T1" in field.system.uses else (0,))
    moved = (free.states[1:] - free.states[:-1]).norm(dim=-1) / free.states[1:].norm(dim=-1)
    return min(250, max(40, int((moved.amax(-1) > 1e-6).sum())))


def grid(name: str, dtype: str, **knobs: Any) -> Plan:
    small = dict(LIVE[name])
    damp = small.pop("damp", 1.0)
    rules = ["bptt", "tbptt", "adjoint", "ep", ONE_SIDED, "aep", CLIPPED]
    return planned(
        system={"name": name, **small}, estimator=rules, damp=damp, batch=2, dtype=dtype,
        **({"T1": [20, settling(name)], "T2": [3, 60], "beta": [1e-3, 0.5]} | knobs),
    )  # fmt: skip


# the ladder of the forward system takes ten seconds
SLOW = {"residual_mlp": pytest.mark.long}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in SYSTEMS])
def test_causes_are_those_of_the_ladder_of_one_cell(name: str) -> None:
    """Wherever a state has settled, and one cause is clearly larger than the next."""
    asked = grid(name, "float64", T1=settling(name))
    agree = []
    for problem in asked.problems:
        field = build(problem, "cpu")
        (T1,) = problem.T1s
        relaxed = Relaxed(field, T1)
        for found in solve([problem], field, asked.thresholds):
            if found.budget is None or found.status is not Status.SETTLED:
                continue
            cell = found.cell
            rule = registry.estimator(cell.estimator, json.loads(cell.estimator_options))
            whole = climb(relaxed, rule, cell.T2, cell.beta, stable=True, settled=True)
            of = found.budget.of or None
            sizes = sorted(whole._by_cause(of).values())
            if len(sizes) < 2 or sizes[-1] > 2 * sizes[-2]:
                agree.append((found.budget.cause, whole._cause(of)))
    assert len(agree) >= 8
    assert all(a is b for a, b in agree), agree


@pytest.mark.parametrize("name", SYSTEMS)
def test_stacked_cells_have_the_budgets_of_single_ones(name: str) -> None:
    asked = grid(name, "float64", seed=[0, 1], T2=[3, 20])
    fields = [build(p, "cpu") for p in asked.problems]
    alone = {o.cell: o for p, f in zip(asked.problems, fields, strict=True) for o in solve([p], f, asked.thresholds)}
    for o in solve(asked.problems, Stack.of(fields), asked.thresholds):
        own = alone[o.cell]
        assert (o.budget is None) == (own.budget is None)
        if o.budget is None or own.budget is None or o.status is Status.NUDGE_DIVERGED:
            continue
        assert (o.budget.cause, o.budget.of) == (own.budget.cause, own.budget.of)
        for n, sizes in own.budget.sizes.items():
            assert o.budget.sizes[n] == pytest.approx(sizes, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_sizes_bound_the_error_and_some_of_them_reach_it(name: str) -> None:
    """|sum of steps| <= sum |steps|, for the whole gradient and every parameter."""
    asked = grid(name, "float64")
    seen = set()
    for problem in asked.problems:
        for o in solve([problem], build(problem, "cpu"), asked.thresholds):
            if o.budget is None or o.comparison is None or o.status is Status.NUDGE_DIVERGED:
                continue
            seen.add(o.budget.cause)
            for n, sizes in o.budget.sizes.items():
                error = (o.comparison.params[n] if n else o.comparison.whole).rel_error
                assert error <= sum(sizes.values()) * (1 + 1e-9)
                assert set(sizes) <= set(CAUSES)
    assert seen & {Cause.TRUNCATION, Cause.ASYMMETRY}
