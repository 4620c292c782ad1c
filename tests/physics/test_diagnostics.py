"""Evidence about the free state, held against dense linear algebra and against states that are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from live import SYSTEMS, jacobian, live_field, random_like

from gradbench import measure
from gradbench.diagnostics.asymmetry import antisymmetry, squares
from gradbench.diagnostics.certificate import certify, judged
from gradbench.diagnostics.judgement import collapsed, of_cell
from gradbench.diagnostics.metrics import compare
from gradbench.diagnostics.spectrum import growth, unit
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.trajectory import relax
from gradbench.engine.outcome import _power
from gradbench.planning import registry
from gradbench.vocabulary.status import Status, Thresholds

SETTLED = {
    "residual": 1e-9, "collapsed_share": 0.0, "settled_share": 1.0, "force_norm": 1e-8, "state_norm": 1.0,
    "scale": 1.0, "shrink": 1.0, "escape": 1.0, "rho": 0.9, "antisymmetry": 0.1, "antisymmetry_se": 0.01,
    "energy_monotone": None,
}  # fmt: skip
ONES = {"a": torch.ones(3, dtype=torch.float64)}


def linear(M: torch.Tensor) -> Linear:
    return Linear(lambda s: s @ M.mT, torch.zeros(1, 1, len(M), dtype=M.dtype))


@pytest.mark.fast
def test_growth_of_a_rotation_is_its_modulus_where_the_rayleigh_quotient_is_blind() -> None:
    """A skew-dominated map with rho = 1.22 whose symmetric part alone would read 0.9."""
    M = torch.tensor([[0.9, 0.83], [-0.83, 0.9]], dtype=torch.float64)
    v = torch.randn(1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(growth(lambda v: unit(linear(M).jvp(v)), v, 60)[0]) == pytest.approx(math.hypot(0.9, 0.83), rel=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_growth_tends_to_the_spectral_radius(name: str) -> None:
    field = live_field(name, batch=1)
    s = relax(field, (400,)).ends
    J = jacobian(lambda s: field.step(s[None, None])[0, 0], s[0, 0])
    rho = float(torch.linalg.eigvals(J).abs().max())
    assert float(growth(lambda v: unit(field.step_at(s).jvp(v)), random_like(s), 400)[0]) == pytest.approx(
        rho, rel=1e-2
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_antisymmetry_agrees_with_the_dense_jacobian_within_its_error(name: str) -> None:
    field = live_field(name, batch=1)
    s = relax(field, (400,)).ends
    J = jacobian(lambda s: field.force(s[None, None])[0, 0], s[0, 0])
    exact = float((0.5 * (J - J.mT)).norm() / J.norm())
    probes = random_like(s.expand(64, *s.shape))
    ratio, error = antisymmetry(partial(squares, field.at(s)), probes)
    assert abs(float(ratio) - exact) <= 4 * float(error) + 1e-13
    assert float(error) <= 0.2 * exact + 1e-13


@pytest.mark.fast
def test_antisymmetry_is_1_for_a_skew_map_and_0_for_a_symmetric_one() -> None:
    M = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = torch.randn(8, 1, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for map_, expected in ((M - M.mT, 1.0), (M + M.mT, 0.0)):
        ratio, error = antisymmetry(partial(squares, linear(map_)), probes)
        assert float(ratio) == pytest.approx(expected, abs=1e-12)
        assert float(error) < 1e-12


def test_the_error_of_the_antisymmetry_is_that_of_repeated_draws() -> None:
    M = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    drawn = [torch.randn(8, 1, 1, 6, dtype=M.dtype, generator=rng) for _ in range(300)]
    draws = [antisymmetry(partial(squares, linear(M)), probes) for probes in drawn]
    spread = float(torch.stack([ratio for ratio, _ in draws]).std())
    quoted = float(torch.stack([error for _, error in draws]).mean())
    assert quoted == pytest.approx(spread, rel=0.3)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, Status.SETTLED),
        ({"rho": 1.0005}, Status.SETTLED),
        ({"rho": 1.01}, Status.UNSTABLE),
        ({"settled_share": 0.9}, Status.UNSETTLED),
        ({"settled_share": 0.9, "rho": 1.5}, Status.UNSETTLED),
        ({"collapsed_share": 0.6, "settled_share": 0.0}, Status.COLLAPSED),
        ({"collapsed_share": 0.5, "settled_share": 0.5}, Status.UNSETTLED),
        ({"collapsed_share": 1.0, "rho": 1.5}, Status.COLLAPSED),
        ({"escape": 1e4, "collapsed_share": 1.0}, Status.DIVERGED),
        ({"escape": math.inf}, Status.DIVERGED),
        ({"escape": math.nan}, Status.DIVERGED),
        ({"rho": math.nan}, Status.UNSTABLE),
    ],
)
def test_status_of_a_free_phase(change: dict[str, float], status: Status) -> None:
    assert judged(SETTLED | change, Thresholds()).judgement.status is status


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shrink", "residual", "dtype", "expected"),
    [
        (1e-3, 5e-2, torch.float64, True),
        (1e-3, 1e-12, torch.float64, False),
        (1e-3, 1e-8, torch.float64, True),
        (1e-3, 1e-8, torch.float32, False),  # the round-off of a float32 state at rest
        (1e-3, 1e-5, torch.float32, True),
        (0.0, math.nan, torch.float64, True),
        (1e-30, 0.0, torch.float32, True),
        (0.5, 1.0, torch.float64, False),
        (math.nan, math.nan, torch.float64, False),
    ],
)
def test_a_sample_is_collapsed_that_is_zero_or_small_and_still_moving(
    shrink: float, residual: float, dtype: torch.dtype, expected: bool
) -> None:
    unit = torch.finfo(dtype).eps
    assert bool(collapsed(torch.tensor(shrink), torch.tensor(residual), unit, Thresholds())) is expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("far", "status"), [(1, Status.SETTLED), (8, Status.SETTLED)])
def test_samples_that_rest_far_inside_their_start_are_settled(dtype: str, far: int, status: Status) -> None:
    m = measure("toy_noncons", "bptt", data=starts(far), damp=3.0, T1=200, dtype=dtype, **DRIVEN)
    assert m.status is status, m.reason


def test_one_sample_that_decays_to_0_makes_its_cell_unsettled_and_more_than_half_make_it_collapsed() -> None:
    for gone, status in ((1, Status.UNSETTLED), (4, Status.UNSETTLED), (5, Status.COLLAPSED)):
        drive = starts(0)["drive"]
        drive[:gone] = 0  # nothing holds these: they decay by a factor a step
        m = measure(
            "toy_noncons", "bptt", data=starts(0) | {"drive": drive}, damp=3.0, T1=20, dtype="float64", **DRIVEN
        )
        assert m.status is status, (gone, m.reason)


DRIVEN = {"system_options": {"drive_std": 1.0}}


def starts(far: int) -> dict[str, torch.Tensor]:
    """Data of eight samples, some of which start a hundred times as far out as the others."""
    rng = torch.Generator().manual_seed(0)
    x0, drive = (torch.randn(8, 8, 32, generator=rng, dtype=torch.float64) for _ in range(2))
    x0[:far] *= 1000
    return {"x0": x0, "drive": drive}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("rho", "nudge_norm", "reference", "status"),
    [
        (0.9, 1.0, 1.0, Status.SETTLED),
        (0.9, 1e9, 1.0, Status.NUDGE_DIVERGED),
        (0.9, math.nan, 1.0, Status.NUDGE_DIVERGED),
        (0.9, 1.0, 0.0, Status.UNDEFINED),
        (0.9, 1.0, math.nan, Status.UNDEFINED),
        (1.5, math.nan, 0.0, Status.UNSTABLE),
        (0.9, math.nan, 0.0, Status.NUDGE_DIVERGED),
    ],
)
def test_status_of_a_cell_follows_the_precedence(
    rho: float, nudge_norm: float, reference: float, status: Status
) -> None:
    comparison = compare(ONES, {"a": reference * ONES["a"]}, 1e-12)
    free = judged(SETTLED | {"rho": rho}, Thresholds()).judgement
    cell = of_cell(free, 1.0, comparison, nudge_norm, Thresholds())
    assert cell.status is status
    assert bool(cell.reason) is (status is not Status.SETTLED)


def test_regimes_that_are_known() -> None:
    """The table of measured facts: what diverges, collapses, is unsettled, or settles."""
    small = {"D": 32, "heads": 2, "mem": 48}
    known = [
        ("cet_energy", {}, {"s": 1.0, "damp": 0.0, "T1": 400, "batch": 4}, Status.DIVERGED),
        ("cet_energy", small, {"s": 0.5, "damp": 0.0, "T1": 400, "batch": 4}, Status.SETTLED),
        ("cet_real", small, {"s": 1.0, "damp": 0.0, "T1": 400, "batch": 4}, Status.SETTLED),
        ("cet_real", small, {"s": 1.0, "damp": 0.0, "T1": 20, "batch": 4}, Status.UNSETTLED),
        ("toy_noncons", {"drive_std": 1.0}, {"damp": 3.0, "T1": 300}, Status.SETTLED),
        ("toy_noncons", {}, {"damp": 1.0, "T1": 300}, Status.COLLAPSED),
        ("toy_noncons", {}, {"damp": 1.0, "T1": 4000, "dtype": "float32"}, Status.COLLAPSED),
    ]
    for system, options, coordinates, status in known:
        m = measure(system, "bptt", system_options=options, **{"dtype": "float64"} | coordinates)
        assert m.status is status, (system, coordinates, m.reason)


def test_an_unstable_fixed_point_is_named() -> None:
    """toy_cons without bias rests at s = 0 if it starts there; a tiny push shows rho > 1."""
    x0 = 1e-7 * torch.randn(8, 8, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = live_field("toy_cons")
    assert field.system.conservative
    m = measure("toy_cons", "bptt", data={"x0": x0}, T1=1, dtype="float64")
    assert m.row["rho"] > 1.1


@pytest.mark.fast
def test_energy_never_rises_on_the_way_down_and_is_seen_to_rise() -> None:
    for eps, monotone in ((0.2, True), (0.9, False)):  # beyond 2 / (1 + c) every step overshoots
        certificates = certify(relax(live_field("toy_cons", eps=eps, damp=3.0), (5,)), Thresholds(), [0])
        assert certificates[0][0].energy_monotone is monotone
    assert certify(relax(live_field("toy_noncons"), (5,)), Thresholds(), [0])[0][0].energy_monotone is None


def test_a_relaxation_that_starts_at_zero_is_not_diverged() -> None:
    x0 = torch.zeros(2, 3, 8, dtype=torch.float64)
    options = {"bias_std": 0.3, "drive_std": 1.0}
    m = measure(
        "toy_noncons", "bptt", data={"x0": x0}, system_options={**options, "heads": 2}, damp=3.0, dtype="float64"
    )
    assert m.status is Status.SETTLED


def test_the_certificate_is_that_of_each_T1_alone() -> None:
    field = live_field("cet_real")
    together = certify(relax(field, (5, 50)), Thresholds(), [0])
    for T1, (shared,) in zip((5, 50), together, strict=True):
        ((alone,),) = certify(relax(field, (T1,)), Thresholds(), [0])
        evidence = {n: v for n, v in vars(alone).items() if n not in ("energy_monotone", "deep", "judgement")}
        assert {n: getattr(shared, n) for n in evidence} == pytest.approx(evidence, rel=1e-7, nan_ok=True)


def test_every_system_has_a_live_point() -> None:
    for name in registry.known_systems():
        ((certificate,),) = certify(relax(live_field(name), (800,)), Thresholds(), [0])
        assert certificate.judgement.status is Status.SETTLED, name


def test_the_truncation_to_expect_falls_as_the_error_of_the_adjoint_does() -> None:
    place = {"damp": 3.0, "T1": 400, "batch": 2, "dtype": "float64", "system_options": {"drive_std": 1.0}}
    rows = [measure("toy_noncons", "adjoint", T2=T2, **place).row for T2 in (8, 16)]  # type: ignore[arg-type]
    assert [row["rho_T2"] for row in rows] == pytest.approx([rows[0]["rho"] ** T2 for T2 in (8, 16)])
    fell, expected = (rows[1][name] / rows[0][name] for name in ("rel_error", "rho_T2"))
    assert math.log(fell) == pytest.approx(math.log(expected), rel=0.15)


def test_a_growth_beyond_every_float_is_infinite() -> None:
    assert _power(5.0, 1000) == math.inf
    assert math.isnan(_power(math.nan, 5))
