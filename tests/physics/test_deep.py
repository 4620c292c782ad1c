"""The deep certificate against dense linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from linear import line, noise
from live import LIVE, SYSTEMS, jacobian, live_field

from gradbench.diagnostics import deep
from gradbench.diagnostics.certificate import Certificate, Deep, certify
from gradbench.diagnostics.deep import DeepCertificate, certify_deep, deepen
from gradbench.diagnostics.judgement import Judgement
from gradbench.dynamics.field import Field, StepMap
from gradbench.dynamics.linear import by_lu
from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.engine import packs
from gradbench.engine.draws import build
from gradbench.engine.solving import solve
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.vocabulary.status import Status, Thresholds

P = torch.eye(5, dtype=torch.float64) - 0.2 * noise(5, 5, seed=9)


def close(found: float | None, expected: float | None, **how: Any) -> bool:
    """Null beside null, or two numbers that agree."""
    return found is None if expected is None else bool(found == pytest.approx(expected, **how))


def batch(free: Trajectory) -> list[Certificate]:
    """The certificates of a batch, of one problem, by T1."""
    shallow = certify(free, Thresholds(), [0])
    return [c for (c,) in deepen(shallow, free, Thresholds(), [0])]


def deep_of(certificate: Certificate) -> Deep:
    assert certificate.deep is not None
    return certificate.deep


def matrices(field: Field, s: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """J and J_G of every sample, by autograd, one example at a time."""
    J, G = [], []
    for i in range(len(s)):
        x = {n: v[i : i + 1] if n in field.system.per_example else v for n, v in field.x.items()}
        alone = Field(field.system, field.theta, x, field.knobs)
        for maps, of in ((J, alone.force), (G, alone.step)):
            maps.append(jacobian(lambda s, of=of: of(s[None])[0], s[i]))
    return J, G


@dataclass(frozen=True)
class Dense:
    """A settled state, and what dense matrices say of its samples: the largest of every number."""

    free: Trajectory
    rho: float
    rightmost: float
    sigma_max: float
    condition: float
    gap: float  # the least distance of two eigenvalues of J_G, of all samples

    @property
    def closes(self) -> bool:
        """Whether eigenvalues coincide, as norms of tokens make them: a Krylov space then closes before it is whole.

        Round-off alone goes on from there, and decides which condition the space sees.
        """
        return self.free.ends.shape[-1] <= deep.SPACE and self.gap < 1e-10


@cache
def by_matrices(name: str) -> Dense:
    free = relax(live_field(name), (400,))
    J, G = matrices(free.field, free.ends[0])
    eye = torch.eye(len(J[0]), dtype=torch.float64)
    return Dense(
        free,
        rho=max(float(torch.linalg.eigvals(M).abs().max()) for M in G),
        rightmost=max(float(torch.linalg.eigvals(M).real.max()) for M in J),
        sigma_max=max(float(torch.linalg.matrix_norm(M, 2)) for M in G),
        condition=max(float(torch.linalg.cond(eye - M)) for M in G),
        gap=min(float(torch.pdist(torch.view_as_real(torch.linalg.eigvals(M))).min()) for M in G),
    )


@cache
def certified(name: str) -> DeepCertificate:
    return certify_deep(by_matrices(name).free, Thresholds(), 0)


@pytest.mark.parametrize("name", [n for n in SYSTEMS if live_field(n).init_state().shape[-1] < 100])
def test_the_certificate_is_that_of_dense_matrices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, true = certified(name), by_matrices(name)
    assert found.rho == pytest.approx(true.rho, rel=1e-8)
    assert found.rightmost == pytest.approx(true.rightmost, rel=1e-8)
    assert found.sigma_max == pytest.approx(true.sigma_max, rel=1e-8)
    assert found.condition_exact
    assert found.condition == pytest.approx(true.condition, rel=1e-8)
    monkeypatch.setattr(deep, "DENSE", 0)
    estimated = certify_deep(true.free, Thresholds(), 0)
    assert not estimated.condition_exact
    assert estimated.condition == pytest.approx(true.condition, rel=1e-4)  # n below the Krylov space: it is whole


def test_a_large_system_has_its_eigenvalues_from_a_krylov_space() -> None:
    found, true = certified("cet_real"), by_matrices("cet_real")
    assert found.open < 1e-6
    assert found.rho == pytest.approx(true.rho, rel=1e-6)
    assert found.rightmost == pytest.approx(true.rightmost, rel=1e-6)


@pytest.mark.usefixtures("plain_loops")
def test_a_large_batch_is_certified_by_a_bounded_number_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As residual_mlp at b = 128 is, whose matrices are too large: a space of bounded size, pairs, a solve."""
    field = live_field("residual_mlp", batch=16)
    free = relax(field, (0,))
    exact = certify_deep(free, Thresholds(), 0)
    monkeypatch.setattr(deep, "DENSE", 0)
    monkeypatch.setattr(deep, "KRYLOV", 12 * free.ends.numel())
    products = []
    for name in ("jvp", "vjp"):
        product = getattr(StepMap, name)
        monkeypatch.setattr(StepMap, name, lambda *a, product=product: (products.append(1), product(*a))[1])
    found = certify_deep(free, Thresholds(), 0)
    assert len(products) <= 60 + 12 + 2 * 2 * 12 + 24 + 3  # growth, space, pairs twice, a solve and its checks
    assert found.rho == pytest.approx(exact.rho, rel=1e-3)
    assert found.condition <= exact.condition * (1 + 1e-10)
    assert found.open > 1e-8  # and says that the space was too small
    assert found.angle == pytest.approx(exact.angle, abs=1e-9)


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


@pytest.mark.fast
@pytest.mark.parametrize("projection", [None, P], ids=["plain", "projected"])
def test_of_a_linear_system_every_number_is_that_of_its_matrices(projection: torch.Tensor | None) -> None:
    field = line(skew=0.6, P=projection)
    free = relax(field, (3, 30))
    W, eye = field.theta["W"], torch.eye(5, dtype=torch.float64)
    Pi = eye if projection is None else projection
    G, g = Pi @ (eye + 0.2 * W), field.x["c"]
    response, credit = torch.linalg.solve(eye - G, Pi @ g.mT), Pi.mT @ torch.linalg.solve(eye - G.mT, g.mT)
    angle = math.degrees(math.acos(float((response * credit).sum() / response.norm() / credit.norm())))
    rho = float(torch.linalg.eigvals(G).abs().max())
    exact = certify_deep(relax(field, (30,)), Thresholds(), 0)
    for certificate in batch(free):
        found = deep_of(certificate)
        assert found.rho_arnoldi == pytest.approx(rho, rel=1e-10)
        assert found.sigma_max == pytest.approx(float(torch.linalg.matrix_norm(G, 2)), rel=1e-10)
        assert found.condition == pytest.approx(float(torch.linalg.cond(eye - G)), rel=1e-10)
        assert found.angle == pytest.approx(angle, rel=1e-10)
        assert found.distance == pytest.approx(certificate.residual / (1 - rho), rel=1e-10)
        assert found.spectrum_open < 1e-10
        if projection is None:
            assert found.rightmost == pytest.approx(float(torch.linalg.eigvals(W).real.max()), rel=1e-10)
        else:
            assert found.rightmost is None
    assert exact.angle == pytest.approx(angle, rel=1e-10)
    assert angle > 5


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_batch_has_the_numbers_of_dense_matrices_or_bounds_of_them(name: str) -> None:
    true = by_matrices(name)
    found = deep_of(batch(true.free)[0])
    assert found.rho_arnoldi == pytest.approx(true.rho, rel=2e-4)
    assert 0.999 * true.sigma_max <= found.sigma_max <= true.sigma_max * (1 + 1e-10)
    assert 0.5 * true.condition <= found.condition <= true.condition * (1 + 1e-8)
    assert (found.rightmost is None) is true.free.field.system.projects
    if found.rightmost is not None:
        assert found.rightmost == pytest.approx(true.rightmost, rel=1e-3)
    assert found.angle == pytest.approx(certified(name).angle, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_float32_is_enough_for_a_batch(name: str) -> None:
    """Bases and products in float32, small matrices in float64: what the engine does with a float32 run."""
    wide, narrow = (deep_of(batch(relax(live_field(name, dtype=d), (200,)))[0]) for d in ("float64", "float32"))
    true = by_matrices(name)
    for column in ("rho_arnoldi", "rightmost", "sigma_max", "condition", "end_states"):
        if column == "condition" and true.closes:
            assert 0.5 * true.condition <= narrow.condition <= true.condition * (1 + 1e-3)
        else:
            assert close(getattr(narrow, column), getattr(wide, column), rel=2e-3), column
    assert narrow.angle == pytest.approx(wide.angle, rel=1e-3, abs=0.05)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stack_has_the_deep_certificates_of_its_problems(name: str) -> None:
    options = {k: v for k, v in LIVE[name].items() if k != "damp"}
    grid = {"system": {"name": name, **options}, "estimator": "bptt", "damp": 1.0, "T1": [5, 40], "batch": 2}
    grid |= {"s": 0.3, "seed": 0, "eps": 0.1, "dtype": "float64"}
    # each coordinate by itself tells one problem from the first
    problems = plan(
        parse(
            {"name": "t", "about": "", "grid": [grid, grid | {"s": 0.9}, grid | {"seed": 1}, grid | {"eps": 0.2}]}, "t"
        )
    ).problems
    eager = [o for p in problems for o in solve([p], build(p, "cpu"), Thresholds(), deep=True)]
    stacked = {o.cell: o.row() for o in packs.measure_pack(problems, "cpu", Thresholds(), deep=True)}
    for alone in eager:
        row, together = alone.row(), stacked[alone.cell]
        assert row["status"] == together["status"]
        for column in vars(deep_of(alone.certificate)):
            # what a Krylov space leaves open depends on round-off, and so does how it ends
            rel = 1e-2 if column == "condition" and by_matrices(name).closes else 1e-5
            assert close(together[column], row[column], rel=rel, abs=1e-6, nan_ok=True), column


def planted(G: torch.Tensor) -> Certificate:
    """The certificate of a linear map at its fixed point."""
    field = line(at=1.0, drive=0.0)
    W = torch.zeros(5, 5, dtype=torch.float64)
    W[: len(G), : len(G)] = G
    s = noise(3, 5, seed=3)
    W = (W - torch.eye(5, dtype=torch.float64)) / 0.2
    still = field.x | {"x": -s @ W.mT, "s0": s}
    field = replace(field, theta=field.theta | {"W": W, "h": torch.zeros(5, dtype=torch.float64)}, x=still)
    return batch(relax(field, (1,)))[0]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("G", "rho"),
    [
        (torch.tensor([[0.9, 0.83], [-0.83, 0.9]], dtype=torch.float64), math.hypot(0.9, 0.83)),
        (torch.diag(torch.tensor([0.5, 1.05, -0.9], dtype=torch.float64)), 1.05),
    ],
    ids=["skew, whose symmetric part is 0.9", "symmetric saddle"],
)
def test_a_state_at_rest_whose_perturbations_grow_is_unstable(G: torch.Tensor, rho: float) -> None:
    certificate = planted(G)
    assert certificate.residual < 1e-12
    assert deep_of(certificate).rho_arnoldi == pytest.approx(rho, rel=1e-10)
    assert rejudged(certificate, rho=0.9).status is Status.UNSTABLE  # whatever the growth says
    assert deep_of(certificate).distance == math.inf


def rejudged(certificate: Certificate, found: Deep | None = None, **change: float) -> Judgement:
    return replace(certificate, **change).deepened(found or deep_of(certificate), Thresholds()).judgement


@pytest.mark.fast
def test_eigenvalues_that_were_not_found_decide_nothing() -> None:
    certificate = planted(torch.diag(torch.tensor([0.5, 1.05, -0.9], dtype=torch.float64)))
    lost = replace(deep_of(certificate), spectrum_open=0.1)
    assert rejudged(certificate, lost, rho=0.9).status is Status.SETTLED
    nothing = replace(deep_of(certificate), rho_arnoldi=math.nan, spectrum_open=math.nan)
    assert rejudged(certificate, nothing, rho=0.9).status is Status.SETTLED
    assert rejudged(certificate, nothing, rho=1.2).reason == "perturbations of s* grow by 1.2000 a step"


def test_a_cell_that_diverged_has_no_deep_certificate_and_disturbs_no_other() -> None:
    grid = {"system": "toy_cons", "estimator": "bptt", "eps": [0.05, 5.0], "T1": 200, "batch": 2, "dtype": "float64"}
    problems = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    healthy, gone = packs.measure_pack(problems, "cpu", Thresholds(), deep=True)
    assert gone.certificate.deep is None
    assert gone.row().get("rho_arnoldi") is None
    (alone,) = packs.measure_pack(problems[:1], "cpu", Thresholds(), deep=True)
    assert vars(deep_of(healthy.certificate)) == pytest.approx(vars(deep_of(alone.certificate)), rel=1e-6)


@pytest.mark.parametrize("n", [40, 400])
def test_the_dense_solve_is_right_on_several_cores(n: int, cores: Callable[[int], None]) -> None:
    M, v = torch.eye(n, dtype=torch.float64) + 0.1 / n**0.5 * noise(3, n, n, seed=1), noise(3, n, seed=2)
    cores(2)
    x = by_lu(M, v)
    assert torch.get_num_threads() == 2
    torch.testing.assert_close(x, torch.from_numpy(np.linalg.solve(M.numpy(), v.numpy()[..., None])[..., 0]))
    assert not by_lu(torch.zeros_like(M), v).isfinite().any()
