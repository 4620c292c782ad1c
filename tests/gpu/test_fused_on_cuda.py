"""Kernels on CUDA: their noise, equal bits, and runs that say the same with them as without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from kernel_checks import (
    SIZES,
    SYSTEMS,
    TOYS,
    TRANSFORMERS,
    ahead,
    along,
    apart,
    credits,
    moved,
    plain,
    smooth,
    stack,
    swept,
)

import gradbench as gb
from gradbench.dynamics.stack import Fused, Stack
from gradbench.engine.checkpoint import load_params
from gradbench.engine.precision import isolated
from gradbench.systems.base import AbstractEnergySystem
from gradbench.systems.kernels import programs

NOISE = {1e-2: 3e-6, 1e-3: 3e-5}  # of (s_- - s_+) / 2 beta against float64, by beta, without a projection
UNBIASED = dict.fromkeys(("bpos_std", "bdec_std", "benc_std"), 0.0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("batch", [5, 64])
def test_a_step_is_as_exact_as_one_without_a_kernel(system: str, batch: int) -> None:
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=batch, device="cuda")
        start, states, nudge = moved(field)
        step = field.nudged_step(start, nudge, field.step_size, asymmetric=True)
        assert step is not None
        exact = plain(field.wide, start.double(), states.double(), nudge.double())
        assert apart(ahead(step, states), exact) < 1.5 * apart(plain(field, start, states, nudge), exact)
        wide = field.wide.step(states.double())
        assert apart(field.step(states), wide) < 1.5 * apart(super(Fused, field).step(states), wide)
        assert torch.equal(ahead(step, states), ahead(step, states))
        in_place = states.clone()
        step(in_place, in_place)
        assert torch.equal(in_place, ahead(step, states))
        advance = field.prepared_step(states[0, 0])
        assert torch.equal(ahead(advance, states[1, 2]), field.step(states[1, 2]))


@pytest.mark.parametrize("system", SYSTEMS)
def test_credit_and_the_free_state_have_the_noise_of_float32(system: str) -> None:
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=64, device="cuda")
        s = plainly = field.init_state()
        exact = s.double()
        for _ in range(100):
            s, exact, plainly = field.step(s), field.wide.step(exact), super(Fused, field).step(plainly)
        assert apart(s, exact) < 2 * apart(plainly, exact)
        for beta in NOISE:
            by_kernels, without = credits(field, s[None], beta)
            assert by_kernels < 2 * without


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_trained_weights_have_the_noise_of_float32_too(system: str, tmp_path: Path) -> None:
    options = {"name": system, **SIZES.get(system, {}), "bpos_std": 0.3}
    training = {"system": options, "estimator": "bptt", "T1": 60, "eps": 0.1, "batch": 16, "steps": 60, "seeds": [0]}
    training |= {"log_every": 60, "optimiser": {"lr": 2e-3}}
    done = gb.train(training, out=tmp_path, device="cuda")
    theta = load_params(done.checkpoint, 0)
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=64, device="cuda")
        moved_by = [apart(p, field.theta[name][0].cpu()) for name, p in theta.items() if name.startswith("W")]
        assert min(moved_by) > 1e-3
        mine = {name: p.to(field.knobs.eps).expand_as(field.theta[name]) for name, p in theta.items()}
        field = Fused(field.system, mine, field.x, field.knobs)
        s = plainly = field.init_state()
        exact = s.double()
        for _ in range(100):
            s, exact, plainly = field.step(s), field.wide.step(exact), super(Fused, field).step(plainly)
        once = field.wide.step(s.double())
        assert apart(field.step(s), once) < 1.5 * apart(super(Fused, field).step(s), once)
        assert apart(s, exact) < 2 * apart(plainly, exact)
        for beta in NOISE:
            by_kernels, without = credits(field, s[None], beta)
            assert by_kernels < 2 * without


@pytest.mark.parametrize("system", ["cet_real", "cet_energy"])
def test_credit_at_the_usual_settings_is_as_exact_as_the_field_expects(system: str) -> None:
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=64, device="cuda", eps=0.2, **UNBIASED)
        s = field.init_state()
        for _ in range(100):
            s = field.step(s)
        for beta, noise in NOISE.items():
            assert credits(field, s[None], beta)[0] < noise


@pytest.mark.parametrize("batch", [5, 64])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_reverse_sweep_has_the_noise_of_float32(system: str, batch: int) -> None:
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=batch, device="cuda")
        states = along(field, 30)
        ends = torch.stack([states[-1], 0.9 * states[-1]])
        a, like = field.cost_slope(ends) * smooth(field, states)[..., None], field.cost_grads(ends)
        exact = swept(field.wide, states.double(), a.double(), field.wide.cost_grads(ends.double()))
        by_kernels, plainly = swept(field, states, a, like), swept(super(Fused, field), states, a, like)
        for name, expected in exact.items():
            # twice the error without kernels, or some units of round-off: a sum of few numbers may have none
            assert apart(by_kernels[name], expected) < max(1e-6, 2 * apart(plainly[name], expected)), name
        again = swept(field, states, a, like)
        assert all(torch.equal(again[name], by_kernels[name]) for name in exact)


@pytest.mark.parametrize("system", SYSTEMS)
def test_products_with_the_step_map_have_the_noise_of_float32(system: str) -> None:
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=18, device="cuda")
        s = along(field, 40)[-2:]
        v = torch.randn_like(s)
        plain_field = Stack(field.system, field.theta, field.x, field.knobs)
        by_kernel, plainly = (f.step_at(s).jvp(v) for f in (field, plain_field))
        exact = field.wide.step_at(s.double()).jvp(v.double())
        assert apart(by_kernel, exact) < 2 * apart(plainly, exact)
        assert torch.equal(field.step_at(s).jvp(v), by_kernel)


@pytest.mark.parametrize("system", SYSTEMS)
def test_all_kernels_are_compiled_ahead(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_loaded", {})
    with isolated(), torch.no_grad():
        field = stack(system, cells=3, batch=5, device="cuda")
        field.compile_kernels()
        monkeypatch.setattr(programs, "_load", lambda *_: pytest.fail("compiled at a launch"))
        start, states, nudge = moved(field)
        field.step(start)
        if isinstance(field.system, AbstractEnergySystem):
            field.energy(start)
        for asymmetric in (False, True):
            step = field.nudged_step(start, nudge, field.step_size, asymmetric=asymmetric)
            assert step is not None
            step(states, states)
        field.prepared_step(start[0])(start[0], start[1])
        field.step_at(start).jvp(start)
        swept(field, start, field.cost_slope(start), field.cost_grads(start))


GRID = {
    "system": [
        *({"name": name, "bpos_std": 0.3, **SIZES.get(name, {})} for name in TRANSFORMERS),
        *({"name": name, "drive_std": 1.0} for name in TOYS),
    ],
    "estimator": [
        "bptt",
        "adjoint",
        "ep",
        "aep",
        {"name": "aep", "clip": "batch"},
        {"name": "ep", "nudge": "positive"},
    ],
    "s": [0.25, 1.0],
    "damp": [0.0, 1.0],
    "T1": [60, 200],
    "T2": [5, 15],
    "beta": [0.005, 0.05],
    "seed": [0, 1],
    "batch": 18,
}


def cells(folder: Path, engine: str) -> pd.DataFrame:
    suite = gb.suite(GRID, name="fused")
    return gb.run(suite, out=folder, device="cuda", engine=engine, fresh=True).cells.set_index("cell").sort_index()


def test_a_run_by_kernels_says_what_a_run_without_them_says(tmp_path: Path) -> None:
    by_kernels, again, plainly = (cells(tmp_path, engine) for engine in ("fused", "fused", "batched"))
    numbers = ["cosine", "cosine_min", "rel_error", "residual", "rho", "drift"]
    pd.testing.assert_frame_equal(by_kernels[numbers], again[numbers], check_exact=True)
    assert set(by_kernels["fused"].dropna()) == {1.0}  # a cell that diverged has no evidence
    different = by_kernels["status"] != plainly["status"]
    assert different.mean() <= 0.005, by_kernels[different][["status", "residual", "rho"]]
    both = ~different & (plainly["status"] == "settled")
    assert both.sum() > 100
    # what rounding in another order moves in a nudged estimate is its noise floor
    allowed = plainly[both]["noise_floor"].fillna(0.0).clip(lower=2e-3)
    for column in ("cosine", "cosine_min"):
        assert ((by_kernels[both][column] - plainly[both][column]).abs() <= allowed).all(), column


def test_sizes_without_kernels_say_so(tmp_path: Path) -> None:
    grid = {"system": {"name": "cet_real", "D": 32, "dh": 8}, "estimator": "aep", "T1": 40, "T2": 5, "batch": 4}
    found = gb.run(gb.suite(grid, name="other"), out=tmp_path, device="cuda", engine="fused").cells
    assert (found["fused"] == 0).all()
