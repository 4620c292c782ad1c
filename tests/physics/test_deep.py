"""The deep certificate against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import torch
from live import SYSTEMS, live_field

from gradbench.diagnostics import deep
from gradbench.diagnostics.deep import certify_deep
from gradbench.field import Field
from gradbench.status import Thresholds
from gradbench.trajectory import relax


def matrices(field: Field, s: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """J and J_G of every sample, by autograd, one example at a time."""
    J, G = [], []
    for i in range(len(s)):
        x = {n: v[i : i + 1] if n in field.system.per_example else v for n, v in field.x.items()}
        alone = Field(field.system, field.theta, x, field.knobs)
        for maps, of in ((J, alone.force), (G, alone.step)):
            maps.append(torch.autograd.functional.jacobian(lambda s, of=of: of(s[None])[0], s[i]))
    return J, G


@pytest.mark.parametrize("name", [n for n in SYSTEMS if live_field(n).init_state().shape[-1] < 100])
def test_the_certificate_is_that_of_dense_matrices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field = live_field(name)
    free = relax(field, (400,))
    found = certify_deep(free, Thresholds(), 0)
    J, G = matrices(field, free.ends[0])
    eye = torch.eye(len(J[0]), dtype=torch.float64)
    assert found.rho == pytest.approx(max(float(torch.linalg.eigvals(M).abs().max()) for M in G), rel=1e-8)
    assert found.rightmost == pytest.approx(max(float(torch.linalg.eigvals(M).real.max()) for M in J), rel=1e-8)
    assert found.sigma_max == pytest.approx(max(float(torch.linalg.matrix_norm(M, 2)) for M in G), rel=1e-8)
    condition = max(float(torch.linalg.cond(eye - M)) for M in G)
    assert found.condition_exact
    assert found.condition == pytest.approx(condition, rel=1e-8)
    monkeypatch.setattr(deep, "DENSE", 0)
    estimated = certify_deep(free, Thresholds(), 0)
    assert not estimated.condition_exact
    assert estimated.condition == pytest.approx(condition, rel=1e-4)  # n below the Krylov space: it is whole


def test_a_large_system_has_its_eigenvalues_from_a_krylov_space() -> None:
    field = live_field("cet_real")
    free = relax(field, (400,))
    found = certify_deep(free, Thresholds(), 0)
    J, G = matrices(field, free.ends[0])
    assert found.open < 1e-6
    assert found.rho == pytest.approx(max(float(torch.linalg.eigvals(M).abs().max()) for M in G), rel=1e-6)
    assert found.rightmost == pytest.approx(max(float(torch.linalg.eigvals(M).real.max()) for M in J), rel=1e-6)


def test_the_residual_falls_by_rho_a_step_and_bounds_the_distance() -> None:
    field = live_field("toy_cons")
    found, far = (certify_deep(relax(field, (T1,)), Thresholds(), 0) for T1 in (60, 30))
    assert found.residual_rate == pytest.approx(found.rho, rel=1e-2)
    settled, early = relax(field, (2000,)).ends[0], relax(field, (30,)).ends[0]
    distance = float((early - settled).norm() / early.norm())
    assert 0.2 * far.distance < distance < 2 * far.distance  # symmetric J_G; samples and directions differ


def test_end_states_count_attractors_and_not_samples() -> None:
    x0 = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = live_field("toy_cons", batch=4)
    x = field.x | {"x0": torch.stack([x0, x0, -x0, -x0]), "drive": torch.zeros(4, 3, 8, dtype=torch.float64)}
    theta = field.theta | {"b": torch.zeros_like(field.theta["b"]), "S": 3 * field.theta["S"]}
    found = certify_deep(relax(Field(field.system, theta, x, field.knobs), (300,)), Thresholds(), 0)
    assert found.end_states == 2  # a state and its mirror image


def test_a_phase_that_diverged_has_no_jacobian_to_read() -> None:
    found = certify_deep(relax(live_field("toy_cons", eps=5.0), (200,)), Thresholds(), 0)
    assert math.isnan(found.rho)
    assert found.distance == math.inf
    with pytest.raises(ValueError, match="one T1"):
        certify_deep(relax(live_field("toy_cons"), (2, 3)), Thresholds(), 0)
