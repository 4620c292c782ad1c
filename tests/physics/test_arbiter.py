"""The arbiter believes the reference, and nothing that is not it."""

from __future__ import annotations

import pytest
import torch
from live import SYSTEMS, live_field, random_like

from gradbench.diagnostics.arbiter import arbitrate
from gradbench.diagnostics.ladder import estimate
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.bptt import Bptt
from gradbench.systems.base import AbstractForwardSystem

pytestmark = pytest.mark.fast

SEEDS = (0, 1)


def place(name: str, T1: int = 12):  # type: ignore[no-untyped-def]
    field = live_field(name)
    T1 = 0 if isinstance(field.system, AbstractForwardSystem) else T1
    return field, T1, estimate(Bptt(), relax(field, (T1,)), None, None)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_reference_is_the_slope_of_the_relaxed_cost(name: str) -> None:
    for slope in arbitrate(*place(name), SEEDS):
        assert slope.plateau
        assert slope.error < 1e-4


@pytest.mark.parametrize("control", ["scaled", "flipped", "shuffled", "random"])
def test_every_control_is_refused(control: str) -> None:
    field, T1, g = place("toy_noncons")
    wrong = {
        "scaled": lambda v, i: 1.01 * v,
        "flipped": lambda v, i: -v,
        "shuffled": lambda v, i: v.flatten()[torch.randperm(v.numel(), generator=torch.Generator().manual_seed(i))],
        "random": lambda v, i: random_like(v, seed=i) * v.norm(),
    }[control]
    given = {n: wrong(v, i).reshape(v.shape) for i, (n, v) in enumerate(g.items())}
    assert all(slope.error > 5e-3 for slope in arbitrate(field, T1, given, SEEDS))


def test_a_cost_that_jumps_has_no_plateau() -> None:
    """Beyond every bound differences are not finite: no word about the reference."""
    field = live_field("toy_cons", eps=50.0)
    (slope,) = arbitrate(field, 400, {n: torch.zeros_like(p) for n, p in field.theta.items()}, (0,))
    assert not slope.plateau
