"""State credits against dense linear algebra, backpropagation through torch.nn, and known extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from live import SYSTEMS, jacobian, live_field, random_like
from test_residual_mlp import SMALL, network

import gradbench as gb
from gradbench.diagnostics.credit import Credits, blocks
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.base import Reading
from gradbench.estimators.bptt import Bptt
from gradbench.planning import registry
from gradbench.systems.base import AbstractForwardSystem

FORWARD = [n for n in SYSTEMS if issubclass(registry.known_systems()[n], AbstractForwardSystem)]
RELAXING = [n for n in SYSTEMS if n not in FORWARD]


def swept(free: Trajectory) -> torch.Tensor:
    (snapshot,) = Bptt().phase.run(free, (), free.ends.new_empty(0))
    assert snapshot.credit is not None
    return snapshot.credit


def read(free: Trajectory, credit: torch.Tensor) -> dict[str, float]:
    """The readings of one credit (b, n) at the only T1."""
    found = Credits(free, swept(free), [0]).read(free.T1s, Reading(None, {}, credit[None, None], {}))
    return {name: float(value[0, 0]) for name, value in found.items()}


def test_layer_slopes_are_what_backpropagation_carries() -> None:
    field = live_field("residual_mlp", batch=4)
    net = network(field)
    layers = net.layers(field.x["x"])
    loss = torch.nn.functional.cross_entropy(net.out_head(net.out_ln(layers[-1])), field.x["label"], reduction="sum")
    expected = torch.cat(torch.autograd.grad(loss, layers), -1)
    torch.testing.assert_close(field.layer_slopes, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", RELAXING)
def test_the_reference_credit_of_a_settled_state_solves_the_adjoint_system(name: str) -> None:
    field = live_field(name, batch=1)
    free = relax(field, (600,))
    s, g = free.ends[0], free.cost_slope[0, 0]
    J_G = jacobian(lambda s: field.step(s[None])[0], s[0])
    Pi = jacobian(lambda u: field.project(u[None])[0], (s + field.knobs.eps * field.force(s))[0])
    a = field.knobs.eps * Pi.mT @ torch.linalg.solve(torch.eye(len(g), dtype=g.dtype) - J_G.mT, g)
    torch.testing.assert_close(swept(free)[0, 0], a, rtol=1e-6, atol=1e-7 * float(a.abs().max()))
    found = read(free, a[None])
    assert found["gamma"] == pytest.approx(1, abs=1e-9)
    assert {f"{block}/cosine" for block in field.system.layout} <= found.keys()
    assert "rho_corr" not in found


def test_prediction_errors_tend_to_backpropagation_and_displacements_to_the_adjoint() -> None:
    """D a = backprop's gradient, D = de/ds: the first cosine is 1 at every layer, the second is not."""
    field = live_field("residual_mlp", batch=1)
    free = relax(field, (0,))
    D = jacobian(lambda s: field.errors(s[None])[0], free.ends[0, 0])
    adjoint = torch.linalg.solve(D.mT @ D, free.cost_slope[0, 0])
    backprop = field.layer_slopes[0, -len(adjoint) :]
    torch.testing.assert_close(torch.linalg.solve(D.mT, free.cost_slope[0, 0]), backprop, rtol=1e-10, atol=1e-12)
    ep, betas = registry.estimator("ep"), free.ends.new_tensor([1e-3])
    (snapshot,) = ep.phase.run(free, (3000,), betas)
    reading = ep.read(free, snapshot, betas)
    assert reading.credit is not None
    assert reading.error is not None
    torch.testing.assert_close(reading.error[0, 0, 0], backprop, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(reading.credit[0, 0, 0], adjoint, rtol=1e-5, atol=1e-8)
    found = {n: float(v[0, 0]) for n, v in Credits(free, swept(free), [0]).read((0,), reading).items()}
    assert found["gamma_error_free"] == pytest.approx(1, abs=1e-9)
    assert 0.9 < found["gamma_free"] < 1 - 1e-5
    assert found["gamma_error"] == pytest.approx(2 / 3, abs=1e-9)  # h0 of L = 3 is clamped


def test_perturbations_tell_backpropagation_from_noise() -> None:
    """Calibration: about 1 (0.997 in float32) for backprop's gradient, about 0 for a random direction."""
    m = gb.measure("residual_mlp", "bptt", dtype="float64")
    assert m.row["rho_corr_free"] > 0.997
    assert m.row["rho_corr"] == pytest.approx(0.75 * m.row["rho_corr_free"])
    field = live_field("residual_mlp", batch=64)
    found = read(relax(field, (0,)), random_like(field.init_state(), seed=5))
    assert all(abs(found[f"{layer}/rho_corr"]) < 0.15 for layer in ("h1", "h2"))  # 1 / sqrt(64 x 16) and the width
    assert found["h0/rho_corr"] == 0


def test_no_credit_counts_0_and_no_reference_is_undefined() -> None:
    field = live_field("toy_noncons", batch=2)
    free = relax(field, (50,))
    credit = swept(free)[0]
    half = credit.clone()
    half[0] = 0
    assert read(free, half)["gamma"] == pytest.approx(0.5)
    nothing = Credits(free, torch.zeros_like(swept(free)), [0])
    found = nothing.read(free.T1s, Reading(None, {}, credit[None, None], {}))
    assert math.isnan(float(found["gamma"]))
    assert nothing.read(free.T1s, Reading(None, {}, None, {})) == {}


def test_the_state_error_is_that_of_every_row() -> None:
    """The mean over examples of |h_{L/2} - h_L| / |h_L|: `.norm(-1)` would be the norm of order -1 of all of them."""
    field = live_field("residual_mlp", batch=4)
    layers = network(field).layers(field.x["x"])
    rows = [
        float((m - last).norm() / last.norm()) for m, last in zip(layers[1].detach(), layers[-1].detach(), strict=True)
    ]
    found = read(relax(field, (0,)), field.init_state())
    assert found["state_error"] == pytest.approx(sum(rows) / 4, rel=1e-10)


@pytest.mark.parametrize(
    ("dtype", "reduction", "low", "high"),
    [
        ("float64", "sum", (0.99, 0.99, 0.99), (1, 1, 1)),
        ("float32", "sum", (0.99, 0.99, 0.99), (1, 1, 1)),
        ("float64", "mean", (0.999, 0.999, 0.999), (1, 1, 1)),
        ("float32", "mean", (-0.1, 0.1, 0.99), (0.1, 0.6, 1)),  # the displacement of h_1 is 1e-9: round-off
    ],
)
def test_a_mean_over_the_batch_leaves_float32_no_credit_below(
    dtype: str, reduction: str, low: tuple[float, ...], high: tuple[float, ...]
) -> None:
    options = {"nudge": "positive", "reduction": reduction}
    m = gb.measure("residual_mlp", "ep", dtype=dtype, estimator_options=options)
    cosines = {layer: read["cosine"] for layer, read in m.blocks.items()}
    assert cosines["h0"] == 0
    for layer, least, most in zip(("h1", "h2", "h3"), low, high, strict=True):
        assert least <= cosines[layer] <= most, layer
    assert m.row["gamma"] == pytest.approx(0.75 * m.row["gamma_free"])


def test_one_layer_has_no_free_one_that_counts() -> None:
    options: dict[str, Any] = {**SMALL, "L": 1}
    m = gb.measure("residual_mlp", "ep", system_options=options, batch=2)
    assert m.row["gamma"] == 0
    assert math.isnan(m.row["gamma_free"])


def test_blocks_are_rows_in_the_order_of_the_state() -> None:
    evidence = {"nudge_norm": 1.0, "z/cosine": 0.5, "y/cosine": 0.7, "z/norm_ratio": 2.0}
    expected = [{"block": "z", "cosine": 0.5, "norm_ratio": 2.0}, {"block": "y", "cosine": 0.7}]
    assert blocks(evidence) == expected
