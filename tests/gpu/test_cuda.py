"""The same physics on CUDA: same draws, same statuses, same gradients. Skipped where there is no GPU."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from live import LIVE, SYSTEMS

import gradbench as gb
from gradbench.commands.progress import StepProgress
from gradbench.commands.trainings import train
from gradbench.dynamics import recordings
from gradbench.dynamics.capture import Captured
from gradbench.dynamics.linear import Linear
from gradbench.dynamics.stack import Stack
from gradbench.engine import packs
from gradbench.engine.draws import build
from gradbench.engine.outcome import Outcome
from gradbench.engine.precision import isolated
from gradbench.planning import registry
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse
from gradbench.training.config import parse as parse_training
from gradbench.training.trainer import Trainer
from gradbench.vocabulary.status import Thresholds


def options(name: str) -> dict[str, float]:
    return {option: value for option, value in LIVE.get(name, {}).items() if option != "damp"}


def damp(name: str) -> float:
    return LIVE.get(name, {}).get("damp", 1.0)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cpu_and_cuda_draw_the_same_parameters_data_and_masks(name: str, dtype: str) -> None:
    grid = {"system": {"name": name, **options(name)}, "estimator": "bptt", "batch": 4, "dtype": dtype}
    (problem,) = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    cpu, cuda = build(problem, "cpu"), build(problem, "cuda")
    for ours, theirs in ((cpu.theta, cuda.theta), (cpu.x, cuda.x)):
        assert ours.keys() == theirs.keys()
        assert all(theirs[n].is_cuda and torch.equal(ours[n], theirs[n].cpu()) for n in ours)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("rule", ["bptt", "ep", "aep", "tbptt", "adjoint"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
def test_cpu_and_cuda_agree_on_settled_cells(name: str, rule: str, dtype: str, tolerance: float) -> None:
    """float32: the nudge divides round-off by beta, so estimates agree to the noise floor only."""
    if reason := registry.estimator(rule).skip(registry.known_systems()[name]):
        pytest.skip(reason)
    free = {"damp": damp(name), "T1": 800}
    cell = {n: v for n, v in free.items() if n in registry.known_systems()[name].uses} | {
        "T2": 40,
        "beta": 0.05,
        "batch": 4,
        "dtype": dtype,
        "system_options": options(name),
    }
    cpu, cuda = (gb.measure(name, rule, device=device, **cell) for device in ("cpu", "cuda"))
    assert cpu.status == cuda.status == "settled"
    assert cpu.reference is not None
    for mine, theirs in ((cpu.reference, cuda.reference), (cpu.estimate, cuda.estimate)):
        assert mine is not None
        assert theirs is not None
        flat = [torch.cat([g[n].double().cpu().flatten() for n in mine]) for g in (mine, theirs)]
        assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < tolerance
    assert cuda.row["rho"] == pytest.approx(cpu.row["rho"], rel=1e-3)
    assert cuda.row["antisymmetry"] == pytest.approx(cpu.row["antisymmetry"], rel=1e-3, abs=1e-6)


def test_a_diverged_cell_is_diverged_on_both() -> None:
    for device in ("cpu", "cuda"):
        m = gb.measure("cet_energy", "ep", s=1.0, damp=0.0, T1=400, batch=4, device=device)
        assert m.status == "diverged"
        assert math.isnan(m.cosine)


def test_products_are_ieee_float32_whatever_the_caller_had_set() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        rng = torch.Generator().manual_seed(0)
        a = torch.randn(512, 512, generator=rng)
        exact = a.double() @ a.double()
        with isolated():
            error = float(((a.cuda() @ a.cuda()).cpu().double() - exact).norm() / exact.norm())
        assert error < 1e-6  # TF32 would leave 3e-4
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("beta", [1e-4, [1e-4, 0.02]], ids=["alone", "beside a good one"])
def test_tf32_is_named_where_it_drowns_the_nudge(beta: float | list[float]) -> None:
    grid = {"system": "cet_real", "estimator": "aep", "damp": 1.0, "T1": 300, "T2": 60, "beta": beta, "batch": 4}
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    with isolated():
        exact = {
            o.cell.beta: o.row()["cause"] for o in packs.measure_pack(planned.problems, "cuda", planned.thresholds)
        }
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        rough = {
            o.cell.beta: o.row()["cause"] for o in packs.measure_pack(planned.problems, "cuda", planned.thresholds)
        }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert set(exact.values()) == {None}
    assert rough[1e-4] == "precision"


def test_peak_memory_is_that_of_the_device() -> None:
    m = gb.measure("cet_real", "bptt", T1=20, batch=4, device="cuda")
    assert 0 < m.row["peak_memory"] < 2**32


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 2e-3)])
def test_captured_stacks_agree_with_the_eager_cpu(name: str, dtype: str, tolerance: float) -> None:
    """Every rule, several T1, T2, beta and seeds through recorded graphs, a diverging neighbour included."""
    grid = {
        "system": {"name": name, **options(name)},
        "estimator": [
            "bptt",
            "tbptt",
            "adjoint",
            "ep",
            {"name": "aep", "clip": ["none", "batch", "sample"]},
            {"name": "control", "kind": ["scaled", "flipped", "shuffled", "random"]},
        ],
        "s": [0.5, 1.0, 40.0],
        "damp": damp(name),
        "T1": [30, 800],
        "T2": [5, 25],
        "beta": [0.02, 0.2],
        "seed": [0, 1],
        "batch": 2,
        "dtype": dtype,
    }
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    with isolated():
        (pack,) = packs.cut_into_packs(planned.problems, "cuda", "batched")
        stacked = {o.cell.key: o for o in packs.measure_pack(pack, "cuda", planned.thresholds)}
        alone = [o for p in pack for o in packs.measure_pack([p], "cpu", planned.thresholds, "eager")]
    assert stacked.keys() == {o.cell.key for o in alone}
    settled = [o for o in alone if o.status == "settled"]
    assert len(settled) >= (
        40 if "T1" in registry.known_systems()[name].uses else 38
    )  # all of them, where T1 and s fold
    for o in alone:
        assert stacked[o.cell.key].status == o.status, o.cell
    for o in settled:
        found = stacked[o.cell.key].budget
        if o.budget and found and o.budget.of == found.of:
            largest = sorted(o.budget.sizes[o.budget.of].values())[-2:]
            assert found.cause is o.budget.cause or largest[-1] < 2 * largest[0]  # equal ones are round-off's choice
        assert o.comparison is not None
        theirs = stacked[o.cell.key].comparison
        assert theirs is not None
        # two devices round in another order; what that moves in a nudged estimate is its noise floor
        allowed = max(tolerance, o.row()["noise_floor"] or 0.0)
        assert theirs.whole.cosine == pytest.approx(o.comparison.whole.cosine, abs=allowed)
        assert theirs.whole.norm_ratio == pytest.approx(o.comparison.whole.norm_ratio, rel=allowed)


def test_a_captured_function_follows_its_inputs() -> None:
    W = torch.randn(8, 8, device="cuda", dtype=torch.float64, generator=torch.Generator("cuda").manual_seed(0))
    examples = [torch.randn(3, 8, device="cuda", dtype=torch.float64) for _ in range(3)]

    def function(s: torch.Tensor) -> tuple[torch.Tensor, ...]:
        linear = Linear(lambda s: (s @ W).tanh(), s)
        return linear.vjp(s), linear.jvp(s)

    captured = Captured(function, examples[0])
    for s in examples:
        for ours, expected in zip(captured(s), function(s), strict=True):
            torch.testing.assert_close(ours, expected)
    W.mul_(0.5)  # parameters are read where they lie
    torch.testing.assert_close(captured(examples[1])[0], function(examples[1])[0])


@pytest.mark.parametrize("rule", ["bptt", "tbptt", "ep", "aep", "adjoint", {"name": "aep", "clip": "batch"}])
@pytest.mark.parametrize("system", ["cet", "cet_real"])
def test_captured_training_steps_equal_plain_ones(system: str, rule: str | dict[str, str]) -> None:
    """Steps, skips and evaluations as recorded graphs against the same code on the CPU, in float64."""
    name = {"cet": {"img": 28, "ch": 1}}.get(system, {}) | {"patch": 14, "D": 16, "heads": 2, "dh": 4, "mem": 12}
    content = {
        "name": "t",
        "about": "",
        "system": {"name": system, "bpos_std": 0.3, **name},
        "estimator": rule,
        "damp": 1.0,
        "T1": 20,
        "T2": 6,
        "batch": 8,
        "steps": 6,
        "seeds": [0, 1, 2],
        "dtype": "float64",
        "eval_batches": 2,
        "norm_cap": {"WQ": 1.001},
        "optimiser": {"lr": 1e-2, "lr_min": 1e-4, "weight_decay": 0.1, "clip": 5.0},
    }
    config = parse_training(content, "t")
    with isolated():
        cpu, cuda = Trainer(config, "cpu"), Trainer(config, "cuda")
        before = {n: p.clone() for n, p in cuda.state.theta.items()}
        for step in range(6):
            if step == 3:  # a seed that stands still, in the graph that has been recorded
                for trainer in (cpu, cuda):
                    trainer.state.theta["Wenc"][1] = math.nan
            for trainer in (cpu, cuda):
                trainer.advance(step)
            assert cuda.test() == pytest.approx(cpu.test(), rel=1e-8, nan_ok=True)
    for name, ours in cpu.state.tensors().items():
        torch.testing.assert_close(cuda.state.tensors()[name].cpu(), ours, rtol=1e-7, atol=1e-10, equal_nan=True)
    assert cuda.state.skipped.tolist() == [0, 3, 0]
    assert cuda.state.taken.tolist() == [6, 3, 6]
    assert not torch.equal(cuda.state.theta["WK"], before["WK"])
    assert set(cuda._recorded) == {"step", "test"}
    assert all(isinstance(graph, Captured) for graph in cuda._recorded.values())


def test_a_training_on_cuda_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    changes = {"steps": 20, "seeds": [0, 1], "fidelity_every": 10}
    whole = train("quick", out=tmp_path / "whole", device="cuda", overrides=changes)

    def cut(progress: StepProgress) -> None:
        if progress.done_weight == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("quick", out=tmp_path / "cut", device="cuda", overrides=changes, watch=cut)
    again = train("quick", out=tmp_path / "cut", device="cuda", overrides=changes)
    pd.testing.assert_frame_equal(again.log.drop(columns="params"), whole.log.drop(columns="params"), rtol=1e-4)


def test_a_recorded_step_follows_changed_weights_knobs_and_states() -> None:
    grid = {"system": "cet_real", "estimator": "bptt", "s": [0.3, 0.9], "batch": 2, "dtype": "float64"}
    problems = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    stack = Stack.of([build(p, "cuda") for p in problems])

    def step(s: torch.Tensor) -> tuple[torch.Tensor, ...]:  # a field of its own, so that its context is made anew
        field = Stack(stack.system, stack.theta, stack.x, stack.knobs)
        return field.step(s), field.at(s).vjp(s)

    s = stack.init_state()
    captured = Captured(step, s)
    for change in (lambda: None, lambda: stack.knobs.sigma.mul_(2), lambda: stack.theta["WV"].mul_(0.5)):
        change()
        s = s + 0.1
        for ours, expected in zip(captured(s), step(s), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_nudged_phase_follows_other_betas() -> None:
    """Two suites that differ in beta only, one after the other in one process."""
    found = {}
    for beta in (0.02, 0.2):
        grid = {"system": "cet_real", "estimator": "aep", "damp": 1.0, "beta": beta, "batch": 2, "dtype": "float64"}
        planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
        with isolated():
            (cuda,) = packs.measure_pack(planned.problems, "cuda", planned.thresholds)
            (cpu,) = packs.measure_pack(planned.problems, "cpu", planned.thresholds, "eager")
        assert cuda.row()["rel_error"] == pytest.approx(cpu.row()["rel_error"], rel=1e-6)
        found[beta] = cuda.row()["rel_error"]
    assert found[0.02] != pytest.approx(found[0.2], rel=1e-3)


def small_family(dtype: str) -> Plan:
    """Twelve problems of cet_real, one of which diverges."""
    grid = {"system": {"name": "cet_real", "bpos_std": 0.3}, "estimator": ["bptt", "ep", "aep"], "seed": [0, 1]}
    grid |= {"s": [0.2, 0.4, 0.6, 0.8, 1.0, 40.0], "damp": 1.0, "T1": [100, 300], "T2": [5, 25], "beta": [0.05, 0.2]}
    return plan(parse({"name": "t", "about": "", "grid": [grid | {"batch": 4, "dtype": dtype}]}, "t"))


def cosines(outcomes: list[Outcome]) -> dict[str, tuple[str, float, float]]:
    return {o.cell.key: (o.status, (r := o.row())["cosine"], r["rel_error"]) for o in outcomes}


@pytest.mark.parametrize(
    ("change", "dtype", "tolerance"),
    [
        ("a problem at a time", "float64", 1e-10),
        ("another order", "float64", 1e-10),
        ("kept in part", "float64", 1e-10),
        ("kept in part", "float32", 2e-3),
        ("compiled", "float32", 2e-3),
    ],
)
def test_packing_order_memory_and_compilation_change_no_row(dtype: str, tolerance: float, change: str) -> None:
    planned = small_family(dtype)
    problems = list(planned.problems)
    with isolated():
        whole = cosines(packs.measure_pack(problems, "cuda", planned.thresholds))
        if change == "a problem at a time":
            other = [o for p in problems for o in packs.measure_pack([p], "cuda", planned.thresholds)]
        elif change == "another order":
            other = packs.measure_pack(problems[::-1], "cuda", planned.thresholds)
        elif change == "kept in part":
            other = packs.measure_pack(problems, "cuda", planned.thresholds, budget=2**20)
        else:
            other = packs.measure_pack(problems, "cuda", planned.thresholds, "compiled")
    statuses = {status for status, _, _ in whole.values()}
    assert {"settled", "diverged"} <= statuses
    for key, (status, cosine, error) in cosines(other).items():
        assert status == whole[key][0]
        if status == "settled":
            assert (cosine, error) == pytest.approx(whole[key][1:], rel=tolerance, abs=tolerance)


def test_packs_side_by_side_give_the_rows_of_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, measure, both = tmp_path / "lanes.toml", packs.measure_pack, threading.Barrier(2, timeout=60)
    suite.write_text("""about = "Two packs."
[[grid]]
system = ["cet_real", { name = "toy_noncons", drive_std = 1.0 }]
estimator = ["bptt", "adjoint", "ep", "aep"]
seed = [0, 1, 2]
s = [0.25, 1.0, 40.0]
T1 = [50, 200]
T2 = [5, 15]
beta = [0.005, 0.05]
damp = 1.0
batch = 8
""")

    def together(*arguments: Any) -> Any:
        both.wait()  # two at a time, or never
        return measure(*arguments)

    def rows(out: str) -> pd.DataFrame:
        return gb.run(str(suite), out=tmp_path / out, device="cuda").cells.drop(columns=["seconds", "peak_memory"])

    monkeypatch.setattr(packs, "measure_pack", together)
    found = rows("two")
    monkeypatch.setattr(packs, "measure_pack", measure)
    monkeypatch.setattr(packs, "LANES", 1)
    pd.testing.assert_frame_equal(found, rows("one"), check_exact=True)
    assert {"settled", "unsettled", "diverged"} <= set(found["status"])


def test_the_model_of_memory_is_about_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packs of some GiB: recordings and energies hold up to 2 GiB, however small a pack is.

    Where memory is short, and torch keeps nothing that a recording of the past had.
    """
    grid = {"system": ["cet_real", "cet_energy", "cet_projected"], "estimator": ["bptt", "ep", "aep"], "batch": 64}
    grid |= {"s": [i / 16 for i in range(1, 17)], "T1": [50, 200], "T2": [5, 10], "beta": [0.02, 0.1]}
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    cut, memory = list(packs.cut_into_packs(planned.problems, "cuda", "batched")), torch.cuda.mem_get_info()[1]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, memory))
    for pack in cut:
        recordings.forget()  # else a pack that gives back those of the last one seems to need nothing
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        with isolated():
            packs.measure_pack(pack, "cuda", planned.thresholds, budget=memory)
        measured, model = torch.cuda.max_memory_reserved() - before, sum(map(packs.footprint, pack))
        print(f"{pack[0].point.system}: model {model / 2**30:.2f} GiB, reserved {measured / 2**30:.2f} GiB")
        assert 0.5 < measured / model < 1.25


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deep_certificates_of_a_stack_are_those_of_the_cpu(name: str, dtype: str) -> None:
    grid = {"system": {"name": name, **options(name)}, "estimator": "bptt", "damp": damp(name), "T1": [50, 400]}
    content = {"name": "t", "about": "", "grid": [grid | {"seed": [0, 1], "batch": 4, "dtype": dtype}]}
    problems, at = plan(parse(content, "t")).problems, Thresholds()
    with isolated():
        cpu, cuda = (packs.measure_pack(problems, d, at, "batched", None, True) for d in ("cpu", "cuda"))
    for mine, theirs in zip(cpu, cuda, strict=True):
        assert mine.status == theirs.status
        ours, found = vars(mine.certificate.deep), vars(theirs.certificate.deep)
        for column in ("rho_arnoldi", "rightmost", "sigma_max", "condition", "end_states", "angle"):
            expected = None if ours[column] is None else pytest.approx(ours[column], rel=2e-3, abs=0.05, nan_ok=True)
            assert found[column] == expected, column
