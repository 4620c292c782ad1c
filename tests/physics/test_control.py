"""Controls: readings that are known before anything is measured, and rulers that they must catch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from live import live_field, random_like

from gradbench.data.streams import Streams
from gradbench.diagnostics.metrics import Comparison, Reference, compare
from gradbench.dynamics.field import Field
from gradbench.dynamics.stack import Stack
from gradbench.dynamics.trajectory import relax
from gradbench.engine import readings as engine
from gradbench.engine.draws import build
from gradbench.engine.solving import solve
from gradbench.estimators import disguises
from gradbench.estimators.base import Snapshot
from gradbench.estimators.control import Control
from gradbench.estimators.disguises import Kind
from gradbench.estimators.reference import REFERENCE
from gradbench.planning import registry, suites
from gradbench.planning.plans import plan
from gradbench.systems.base import Params
from gradbench.tables.checks import evaluate

FIELD = live_field("toy_noncons")


def hand_made(lead: tuple[int, ...] = (2,), seed: int = 0) -> Params:
    """A gradient of every parameter of `FIELD`, with a mean that is not 0."""
    return {
        n: random_like(torch.empty(*lead, *shape, dtype=torch.float64), seed + i) + 0.2
        for i, (n, shape) in enumerate(FIELD.system.shapes.items())
    }


def read(kind: Kind, g: Params, field: Field = FIELD) -> Params:
    """(i, j, *c, ...): what a control makes of the gradients of two T1."""
    free, none = relax(field, (1, 2)), next(iter(g.values())).new_empty(0)
    return registry.estimator(Control.name, {"kind": kind}).read(free, Snapshot(None, gradient=g), none).gradient


def compared(kind: Kind, g: Params) -> Comparison:
    estimate = read(kind, g)
    return compare({n: e[1, 0] for n, e in estimate.items()}, {n: r[1] for n, r in g.items()}, 1e-12)


@pytest.mark.parametrize(("kind", "cosine", "ratio", "error"), [("scaled", 1, 2, 1), ("flipped", -1, 1, 2)])
def test_scaled_and_flipped_read_as_what_they_are_in_every_parameter(
    kind: Kind, cosine: int, ratio: int, error: int
) -> None:
    found = compared(kind, hand_made())
    for reading in (found.whole, *found.params.values()):
        assert (reading.cosine, reading.norm_ratio, reading.rel_error) == pytest.approx((cosine, ratio, error))


def test_shuffled_has_the_entries_of_every_parameter_in_another_order() -> None:
    g = hand_made()
    for name, e in read("shuffled", g).items():
        for ours, given in zip(e[:, 0].flatten(1), g[name].flatten(1), strict=True):
            assert not torch.equal(ours, given)
            assert torch.equal(ours.sort().values, given.sort().values)


def test_random_has_the_norms_of_the_reference_and_nothing_else_of_it() -> None:
    g = hand_made()
    estimates = read("random", g), read("random", hand_made(seed=50))
    for name in g:
        one, other = (e[name][:, 0].flatten(1) for e in estimates)
        torch.testing.assert_close(one.norm(dim=1), g[name].flatten(1).norm(dim=1))
        torch.testing.assert_close(*(v / v.norm(dim=1, keepdim=True) for v in (one, other)))
    directions = [e.flatten()[:5] / e.norm() for e in estimates[0].values()]
    assert len({tuple(d.tolist()) for d in directions}) == len(g)  # every parameter has draws of its own


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_a_cosine_without_direction_has_the_mean_and_spread_that_are_stated(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = hand_made()
    entries = [r[1] for r in g.values()]
    whole = sum(float(r.square().sum()) for r in entries)
    mean = sum(r.numel() * float(r.mean()) ** 2 for r in entries) / whole if kind == "shuffled" else 0.0
    deviation = math.sqrt(sum((float(r.square().sum()) / whole) ** 2 / r.numel() for r in entries))
    cosines = []
    for seed in range(300):
        monkeypatch.setattr(disguises, "DRAWS", Streams(seed))
        cosines.append(compared(kind, g).whole.cosine)
    assert statistics.mean(cosines) == pytest.approx(mean, abs=4 * deviation / math.sqrt(300))
    assert statistics.stdev(cosines) == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_stack_of_controls_is_that_of_every_cell(kind: Kind) -> None:
    stack, g = Stack.of([live_field("toy_noncons", seed=seed) for seed in (0, 1, 2)]), hand_made((2, 3))
    stacked = read(kind, g, stack)
    for c in range(3):
        alone = read(kind, {n: v[:, c] for n, v in g.items()})
        for name in g:
            torch.testing.assert_close(stacked[name][:, :, c], alone[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_float32_and_float64_see_the_same_draws(kind: Kind) -> None:
    g = hand_made()
    single = read(kind, {n: v.float() for n, v in g.items()})
    for name, e in read(kind, g).items():
        torch.testing.assert_close(single[name].double(), e, rtol=1e-5, atol=1e-6)


def passed() -> dict[str, bool]:
    """Whether the checks of suite `smoke` on the reference and on its controls pass."""
    shipped = suites.load(Path("suites/smoke.toml"))
    problems = [p for p in plan(shipped).problems if any(c.estimator == Control.name for c in p.cells)]
    rows = [o.row() for p in problems for o in solve([p], build(p, "cpu"), shipped.decide())]
    found = {REFERENCE.name: True, Control.name: True}
    for check in shipped.check:
        if (name := check.where.get("estimator")) in found:
            found[name] &= evaluate(check, pd.DataFrame(rows)).passed
    return found


def mixed_up(e: Params, r: Params, lead: int) -> tuple[Params, Params]:
    return {**e, "WQ": e["WK"], "WK": e["WQ"]}, r


def with_itself(e: Params, r: Params, lead: int) -> tuple[Params, Params]:
    return {n: g.expand_as(e[n]) for n, g in r.items()}, r


def without_sign(e: Params, r: Params, lead: int) -> tuple[Params, Params]:
    return {n: g.abs() for n, g in e.items()}, {n: g.abs() for n, g in r.items()}


def without_size(e: Params, r: Params, lead: int) -> tuple[Params, Params]:
    def unit(g: Params) -> Params:
        return {
            n: (v.flatten(lead) / v.flatten(lead).norm(dim=-1, keepdim=True)).reshape(v.shape) for n, v in g.items()
        }

    return unit(e), unit(r)


def sorted_entries(e: Params, r: Params, lead: int) -> tuple[Params, Params]:
    def in_order(g: Params) -> Params:
        return {n: v.flatten(lead).sort(-1).values.reshape(v.shape) for n, v in g.items()}

    return in_order(e), in_order(r)


def test_a_right_ruler_passes() -> None:
    assert passed() == {REFERENCE.name: True, Control.name: True}


@pytest.mark.parametrize("wrong", [mixed_up, with_itself, without_sign, without_size, sorted_entries])
def test_controls_catch_rulers_of_which_the_reference_sees_only_mixed_up_parameters(
    wrong: Callable[[Params, Params, int], tuple[Params, Params]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Reference):
        def __init__(self, gradient: Params, lead: int) -> None:
            self.own = gradient, lead

        def tally(self, estimate: Params) -> torch.Tensor:
            estimate, reference = wrong(estimate, *self.own)
            return Reference(reference, self.own[1]).tally(estimate)

    monkeypatch.setattr(engine, "Reference", Wrong)
    assert passed() == {REFERENCE.name: wrong is not mixed_up, Control.name: False}
