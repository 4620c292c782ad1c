"""Krylov spaces against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import torch

from gradbench.diagnostics.arnoldi import leading, singular
from gradbench.dynamics.krylov import gmres

pytestmark = pytest.mark.fast

ROTATION = torch.tensor([[0.9, 0.83], [-0.83, 0.9]], dtype=torch.float64)
JORDAN = 0.9 * torch.eye(3, dtype=torch.float64) + torch.diag(torch.ones(2, dtype=torch.float64), 1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(M: torch.Tensor) -> tuple:  # type: ignore[type-arg]
    """v -> M v and a -> M^T a of each sample's own matrix, M `(b, n, n)`."""
    return lambda v: (M @ v[..., None])[..., 0], lambda a: (M.mT @ a[..., None])[..., 0]


def test_a_rotation_has_its_modulus_where_the_rayleigh_quotient_reads_the_symmetric_part() -> None:
    v = noise(1, 2)
    jvp, _ = maps(ROTATION[None])
    assert float((v * jvp(v)).sum() / v.square().sum()) == pytest.approx(0.9, rel=1e-12)
    assert float(leading(jvp, v)[0][0].values.abs()[0]) == pytest.approx(math.hypot(0.9, 0.83), rel=1e-12)  # 1.224


def test_a_jordan_block_is_stable_and_still_grows_at_first() -> None:
    jvp, vjp = maps(JORDAN[None])
    assert float(leading(jvp, noise(1, 3))[0][0].values.abs()[0]) == pytest.approx(
        0.9, rel=1e-4
    )  # sensitive as eps^(1/3)
    sigma = singular(jvp, vjp, noise(1, 3))[0]
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(JORDAN, 2)[None], rtol=1e-12, atol=0)
    assert float(sigma[0]) > 1.6


def test_a_skew_map_has_no_real_part() -> None:
    K = noise(7, 7)
    K = K - K.mT
    jvp, _ = maps(K[None])
    (right,), _ = leading(jvp, noise(1, 7), (torch.real,))
    assert abs(float(right.values.real[0])) < 1e-12
    assert float(leading(jvp, noise(1, 7))[0][0].values.abs()[0]) == pytest.approx(
        float(torch.linalg.eigvals(K).abs().max())
    )


@pytest.mark.parametrize("n", [1, 5, 40, 300])
def test_every_sample_has_the_leading_eigenvalues_of_its_own_matrix(n: int) -> None:
    M = noise(3, n, n) / math.sqrt(n) + torch.diag_embed(torch.linspace(0, 2, n, dtype=torch.float64)).expand(3, n, n)
    jvp, _ = maps(M)
    dense = torch.linalg.eigvals(M)
    for order, expected in ((torch.abs, dense.abs().amax(-1)), (torch.real, dense.real.amax(-1))):
        (found,), _ = leading(jvp, noise(3, n, seed=1), (order,))
        torch.testing.assert_close(order(found.values), expected, rtol=1e-7, atol=0)
        assert float(found.residual.max()) < 1e-6


def test_an_invariant_space_ends_the_sample_and_adds_no_eigenvalue_of_its_own() -> None:
    """-1 of a sample whose space closes after one step, beside one whose does not: a padded 0 would lie right of it."""
    M = torch.stack([-torch.eye(6, dtype=torch.float64), -torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))])
    (right,), _ = leading(maps(M)[0], noise(2, 6), (torch.real,))
    torch.testing.assert_close(right.values.real, -torch.ones(2, dtype=torch.float64), rtol=1e-10, atol=0)


def test_singular_values_bound_those_of_a_large_map_and_are_those_of_a_small_one() -> None:
    M = noise(2, 90, 90)
    dense = torch.linalg.svdvals(M)
    largest, smallest = singular(*maps(M), noise(2, 90, seed=1))
    torch.testing.assert_close(largest, dense[:, 0], rtol=1e-10, atol=0)
    torch.testing.assert_close(smallest, dense[:, -1], rtol=1e-4, atol=0)
    largest, smallest = singular(*maps(M), noise(2, 90, seed=1), most=40)
    assert (largest <= dense[:, 0] * (1 + 1e-12)).all()
    assert (smallest >= dense[:, -1]).all()


@pytest.mark.parametrize(("n", "m"), [(30, 60), (200, 25)])
def test_gmres_agrees_with_lu_and_leaves_a_zero_right_side_at_zero(n: int, m: int) -> None:
    M = torch.eye(n, dtype=torch.float64) - 0.8 * noise(3, n, n) / math.sqrt(n)
    g = noise(3, n, seed=1)
    g[1] = 0
    found = gmres(maps(M)[0], g, m=m)
    torch.testing.assert_close(found, torch.linalg.solve(M, g), rtol=1e-9, atol=1e-9)
    assert float(found[1].norm()) == 0
