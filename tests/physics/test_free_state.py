"""Where the free state comes from: a solver of the free phase, or a state of the caller's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from live import LIVE, whole_gap
from torch import Tensor
from written import WRITTEN, tanh_layer

import gradbench as gb
from gradbench.conformance.findings import Conformance
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.engine import packs
from gradbench.engine.draws import build
from gradbench.errors import UserError
from gradbench.planning import registry
from gradbench.planning.cells import digest
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.solver import Solver
from gradbench.vocabulary.status import Thresholds

FAST = [str(s) for s in Solver if s is not Solver.EULER]
ITERATIONS = {"euler": 600, "anderson": 80, "broyden": 80, "newton": 10}
SMALL: dict[str, Any] = {"N": 3, "D": 8, "out": 5, "drive_std": 1.0, "bias_std": 0.3}
TOY: dict[str, Any] = {"system_options": SMALL, "damp": 3.0, "batch": 3, "dtype": "float64"}


@pytest.fixture(autouse=True)
def _session() -> Iterator[None]:
    with registry.scope():
        yield


def planned(**grid: Any) -> Plan:
    return plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"), "t")


@cache
def by_solver(name: str, rule: str, solver: str, **more: Any) -> gb.Measurement:
    options = {k: v for k, v in LIVE.get(name, {}).items() if k != "damp"}
    at = {"damp": LIVE[name].get("damp", 1.0), "batch": 2, "dtype": "float64", "reference": "implicit"}
    return gb.measure(name, rule, T1=ITERATIONS[solver], solver=solver, system_options=options, **at | more)


@pytest.mark.parametrize("rule", ["adjoint", "ep", "aep"])
@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", ["toy_noncons", "cet_real"])
def test_a_rule_reads_the_same_at_the_end_of_every_solver(name: str, solver: str, rule: str) -> None:
    """Certificate, second phase and reference are those of the deployed map at the state that is reached."""
    at = {"T2": 20} if rule == "adjoint" else {"T2": 20, "beta": 0.02}
    plain, fast = (by_solver(name, rule, s, **at) for s in ("euler", solver))
    assert plain.status == fast.status == "settled"
    for one, other in ((plain.estimate, fast.estimate), (plain.reference, fast.reference)):
        assert one is not None
        assert other is not None
        assert whole_gap(other, one) < 1e-9
    for column in ("rho", "antisymmetry", "state_norm", "cosine", "rel_error"):
        assert fast.row[column] == pytest.approx(plain.row[column], rel=1e-6), column
    assert (fast.row["solver"], fast.row["T1"], fast.row["energy_monotone"]) == (solver, ITERATIONS[solver], None)
    assert fast.residual < 1e-12
    assert fast.row["reference_open"] is None
    assert fast.row["reference_gap"] is None
    assert fast.row["implicit_open"] < 1e-10


def test_an_unsettled_state_of_a_solver_is_told_as_one() -> None:
    m = gb.measure("toy_cons", "adjoint", solver="newton", T1=1, T2=5, **TOY)
    assert m.status == "unsettled"
    assert m.residual > 1e-3
    assert m.row["reference"] == "implicit"


def test_the_reference_is_implicit_by_default_where_a_solver_takes_no_steps() -> None:
    left_out, named = (
        gb.measure("toy_cons", "adjoint", solver="anderson", T1=40, T2=9, **TOY, **r)
        for r in ({}, {"reference": "implicit"})
    )
    assert left_out.row["reference"] == "implicit"
    assert left_out.row["cell"] == named.row["cell"]
    assert gb.measure("toy_cons", "adjoint", T1=40, T2=9, **TOY).row["reference"] == "bptt"


def test_the_key_of_a_cell_leaves_the_solver_out_at_its_default() -> None:
    cells = planned(system="toy_cons", estimator="adjoint", solver=["euler", "newton"], T1=5).cells
    plain, newton = cells
    assert (plain.solver, newton.solver) == ("euler", "newton")
    assert plain.key == digest({n: v for n, v in plain.coordinates.items() if n not in ("solver", "reference")})
    assert newton.key == digest(newton.coordinates)


def test_a_suite_runs_two_solvers_and_skips_what_goes_back_through_steps(tmp_path: Path) -> None:
    suite = gb.suite(
        {
            "system": {"name": "toy_cons", **SMALL},
            "estimator": ["bptt", "tbptt", "ep", "adjoint", "control"],
            "solver": ["euler", "newton"],
            "T1": [6, 200],
            "T2": 4,
            "beta": 0.02,
            "damp": 3.0,
            "batch": 2,
            "dtype": "float64",
        },
        check=[
            {"name": "newton rests", "where": {"solver": "newton"}, "metric": "residual", "max": 1e-9},
            {
                "name": "the reference",
                "where": {"solver": "newton", "estimator": "adjoint"},
                "metric": "implicit_open",
                "max": 1e-9,
            },
        ],
    )
    run = gb.run(suite, out=tmp_path, device="cpu")
    cells = run.cells
    skipped = cells[cells["status"] == "skipped"]
    assert set(skipped["estimator"]) == {"bptt", "tbptt", "control"}
    assert set(skipped["solver"]) == {"newton"}
    assert set(skipped["reason"]) == {
        f"{rule} goes back through the steps of the relaxation, and solver = 'newton' takes none"
        for rule in ("bptt", "tbptt", "control")
    }
    measured = cells[cells["status"] != "skipped"]
    assert dict(zip(measured["solver"], measured["reference"], strict=True)) == {"euler": "bptt", "newton": "implicit"}
    newton = measured[measured["solver"] == "newton"]
    assert set(newton["status"]) == {"settled"}
    assert set(newton["n_force"] - newton["T1"]) == {0, 8}  # of ep four steps of two rows
    assert set(newton["n_jvp"] / newton["T1"]) == {24}
    assert newton["reference_open"].isna().all()
    assert set(measured[(measured["solver"] == "euler") & (measured["T1"] == 6)]["status"]) == {"unsettled"}
    assert run.check(baseline="none").passed
    assert gb.run(suite, out=tmp_path, device="cpu").id == run.id
    told = str(run.explain(solver="newton", estimator="ep", T1=6, worst=1)[0])
    assert "implicit" in told
    assert run.plot("params")


def test_the_plan_counts_the_iterations_of_a_solver_and_no_reverse_sweep() -> None:
    at: dict[str, Any] = {"system": {"name": "toy_cons", "N": 3, "D": 8}, "estimator": "adjoint", "T1": [5, 9], "T2": 4}
    (plain,), (newton,), (broyden,) = (planned(**at, solver=s).problems for s in ("euler", "newton", "broyden"))
    assert (plain.cost.force, plain.cost.jvp, plain.cost.vjp) == (9, 0, 5 + 9 + 4 + 4)
    assert (newton.cost.force, newton.cost.jvp, newton.cost.vjp) == (9, 9 * 24, 4 + 4)
    assert (broyden.cost.force, broyden.cost.jvp, broyden.cost.vjp) == (9, 0, 4 + 4)
    assert (newton.cost_alone.force, newton.cost_alone.jvp, newton.cost_alone.vjp) == (14, 14 * 24, 8)
    assert len({p.shape for p in (plain, newton, broyden)}) == 3


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", ["toy_noncons", "toy_cons"])
def test_the_batched_engine_reads_what_the_eager_one_does(name: str, solver: str) -> None:
    options = {k: v for k, v in LIVE[name].items() if k != "damp"}
    problems = planned(
        system={"name": name, **options},
        estimator=["adjoint", "ep"],
        damp=LIVE[name]["damp"],
        solver=solver,
        T1=[3, 12],
        T2=4,
        beta=0.1,
        seed=[0, 1],
        batch=2,
        dtype="float64",
    ).problems
    together = packs.measure_pack(problems, "cpu", Thresholds(), deep=True)
    alone = [o for p in problems for o in packs.measure_pack([p], "cpu", Thresholds(), "eager", deep=True)]
    for one, other in zip(together, alone, strict=True):
        assert one.cell == other.cell
        assert one.status == other.status
        for column in ("cosine", "rel_error", "residual", "rho", "implicit_open"):
            a, b = one.row()[column], other.row()[column]
            assert a == pytest.approx(b, rel=1e-6, abs=1e-12, nan_ok=True), column


SOLVER_MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "reference": (
        lambda: gb.measure("toy_cons", "ep", solver="newton", reference="bptt"),
        "reference = 'bptt': it goes back through the steps of the relaxation, and solver = 'newton' takes none; "
        "leave it out, or write 'implicit'",
    ),
    "reference of a grid": (
        lambda: planned(system="toy_cons", estimator="ep", solver=["euler", "newton"], reference=["bptt", "implicit"]),
        "t: grid[0].reference = 'bptt': it goes back through the steps of the relaxation, and solver = 'newton' takes "
        "none; leave it out, or write 'implicit'",
    ),
    "rule": (
        lambda: gb.measure("toy_cons", "bptt", solver="anderson"),
        "measure: bptt goes back through the steps of the relaxation, and solver = 'anderson' takes none",
    ),
    "near miss": (
        lambda: gb.measure("toy_cons", "ep", solver="newtn"),
        "'newtn' is not a choice. Did you mean 'newton'?",
    ),
    "forward pass": (
        lambda: gb.measure("residual_mlp", "ep", solver="newton"),
        "measure: residual_mlp has no free phase that solver = 'newton' could solve",
    ),
    "tune": (
        lambda: gb.tune("toy_cons", "tbptt", overrides={"solver": "newton"}),
        "tune: tbptt goes back through the steps of the relaxation, and solver = 'newton' takes none",
    ),
    "train": (
        lambda: gb.train(training("toy", estimator="bptt", solver="broyden")),
        "estimator = 'bptt': bptt goes back through the steps of the relaxation, and solver = 'broyden' takes none",
    ),
    "reference of a training": (
        lambda: gb.train(training("toy", solver="broyden", reference="bptt")),
        "config: reference = 'bptt': it goes back through the steps of the relaxation",
    ),
}


@pytest.mark.parametrize("mistake", SOLVER_MISTAKES.values(), ids=SOLVER_MISTAKES)
def test_a_mistake_with_a_solver_is_told(mistake: tuple[Callable[[], object], str]) -> None:
    call, told = mistake
    with pytest.raises(UserError, match=re.escape(told)):
        call()


def test_a_search_for_a_cheap_setting_takes_a_solver() -> None:
    found = gb.tune(
        f"toy_cons {' '.join(f'{k}={v}' for k, v in SMALL.items())}",
        "adjoint",
        overrides={
            "solver": "newton",
            "T1": [1, 8],
            "T2": [10, 80],
            "damp": 3.0,
            "seed": 0,
            "batch": 2,
            "dtype": "float64",
        },
        device="cpu",
    )
    assert found.chosen is not None
    assert (found.chosen.T1, found.unsettled) == (8, (1,))


def settled(parts: dict[str, Any], steps: int = 400) -> Any:
    """The state that a relaxation of the functions rests at, in float64, as its author wrote it."""
    system = gb.system(name="to settle", **parts)
    field = field_of(system)
    return system.shown(relax(field, (steps,)).ends[0])


def field_of(system: AbstractSystem) -> Field:
    at: dict[str, Any] = {"T1": 1, "T2": 1, "dtype": "float64"}
    (problem,) = planned(system=registry.written(system), estimator="adjoint", **at).problems
    return build(problem, "cpu")


def resting(written: Callable[[], dict[str, Any]] = tanh_layer, name: str = "resting", **more: Any) -> Any:
    """A system whose free state is that of its relaxation, given as a value."""
    parts = written() | {"name": name}
    return gb.system(**{k: v for k, v in parts.items() if k != "state"} | {"state_at": settled(written())} | more)


def deq(net: Any, x: dict[str, Tensor]) -> Tensor:
    """A solver as somebody writes it: z <- net(z) until no example moves."""
    z = torch.zeros(len(x["x"]), 12, dtype=x["x"].dtype)
    for _ in range(200):
        new = net(x["x"], z)
        if float((new - z).detach().norm() / new.detach().norm()) < 1e-12:
            break
        z = new
    return z


@pytest.mark.parametrize("rule", ["adjoint", "ep", "aep"])
@pytest.mark.parametrize("written", WRITTEN, ids=lambda w: w.__name__)
def test_a_free_state_of_ones_own_is_measured_as_that_of_the_relaxation(
    written: Callable[[], dict[str, Any]], rule: str
) -> None:
    at: dict[str, Any] = {"T2": 30, "dtype": "float64", **({} if rule == "adjoint" else {"beta": 0.01})}
    whole = gb.measure(gb.system(name="relaxed", **written()), rule, T1=400, reference="implicit", **at)
    given = gb.measure(resting(written), rule, **at)
    assert given.status == whole.status == "settled"
    assert (given.row["T1"], given.row["reference"]) == (None, "implicit")
    assert given.cosine == pytest.approx(whole.cosine, rel=1e-9)
    for one, other in ((whole.estimate, given.estimate), (whole.reference, given.reference)):
        assert one is not None
        assert other is not None
        assert whole_gap(other, one) < 1e-8


def test_a_function_makes_the_free_state_and_follows_the_data_and_the_parameters() -> None:
    value, function = resting(), resting(state_at=deq, name="solved")
    at: dict[str, Any] = {"T2": 30, "dtype": "float64"}
    assert whole_gap(gb.measure(function, "adjoint", **at).estimate, gb.measure(value, "adjoint", **at).estimate) < 1e-9
    data = {n: 2 * v[:4] for n, v in tanh_layer()["data"].items()}
    other = gb.measure(function, "adjoint", data=data, **at)
    assert other.residual < 1e-9
    assert other.row["batch"] == 4
    moved = {n: 1.1 * p for n, p in function.init_params(None).items()}
    assert gb.measure(function, "adjoint", params=moved, **at).status == "settled"
    assert gb.measure(value, "adjoint", params=moved, **at).status == "unsettled"


def test_a_state_that_is_no_fixed_point_is_unsettled_with_its_residual() -> None:
    m = gb.measure(resting(state_at=torch.ones(6, 12)), "adjoint", T2=30, dtype="float64")
    assert m.status == "unsettled"
    assert m.residual > 0.1
    assert m.row["reference"] == "implicit"


def test_the_state_of_a_smaller_batch_is_that_of_the_first_examples() -> None:
    parts = tanh_layer()
    first = parts | {"data": {n: v[:2] for n, v in parts["data"].items()}}
    z = settled(parts)
    few = {k: v for k, v in first.items() if k != "state"} | {"state_at": z[:2], "name": "few"}
    one = gb.measure(gb.system(**few), "adjoint", T2=30, dtype="float64")
    other = gb.measure(resting(), "adjoint", T2=30, dtype="float64", batch=2)
    assert one.estimate is not None
    assert whole_gap(other.estimate, one.estimate) < 1e-12


def test_the_digest_sees_the_free_state_and_no_later_change() -> None:
    z = settled(tanh_layer())
    first, same, other = (resting(state_at=v) for v in (z, z.clone(), z + 1e-9))
    assert first.digest == same.digest != other.digest
    before = gb.measure(first, "adjoint", T2=5, dtype="float64").row["state_norm"]
    z.zero_()
    assert gb.measure(first, "adjoint", T2=5, dtype="float64").row["state_norm"] == before > 0


def test_a_run_takes_a_system_with_a_free_state_of_its_own(tmp_path: Path) -> None:
    suite = gb.suite(
        {"system": resting(), "estimator": ["bptt", "tbptt", "adjoint", "ep"], "T1": 50, "T2": [5, 40], "beta": 0.01}
    )
    run = gb.run(suite, out=tmp_path, device="cpu")
    cells = run.cells.set_index(["estimator", "T2"])
    assert set(cells.loc["adjoint"]["status"]) == {"settled"}
    assert cells["T1"].isna().all()
    assert set(cells["reference"]) == {"implicit"}
    (reason,) = set(run.cells[run.cells["estimator"] == "bptt"]["reason"])
    assert (
        reason
        == "bptt goes back through the steps of the relaxation, and the free state of resting is given by state_at"
    )
    told = str(run.explain(estimator="ep", worst=1)[0])
    assert "cause" in told
    assert run.explain(estimator="ep", worst=1)[0].plot() is not None


@pytest.mark.parametrize("more", [{}, {"state_at": deq}], ids=["value", "function"])
def test_a_system_with_a_free_state_of_its_own_passes_the_checks_of_a_system(more: dict[str, Any]) -> None:
    told: Conformance = gb.conform(resting(**more))
    assert told.passed, told
    on: Conformance = gb.conform("adjoint", on=resting(**more))
    assert on.passed, on


def training(name: str, **more: Any) -> dict[str, Any]:
    toy = {"name": "cet", "D": 8, "heads": 2, "dh": 4, "mem": 8}
    return {
        "name": name,
        "system": toy,
        "estimator": "adjoint",
        "T1": 20,
        "T2": 10,
        "batch": 2,
        "steps": 2,
        "fidelity_every": 2,
        "optimiser": {"lr": 1e-3},
    } | more


def test_a_training_follows_a_free_state_that_is_a_function(tmp_path: Path) -> None:
    config = {"system": resting(state_at=deq, name="trained"), "optimiser": {"lr": 1e-2}, "steps": 6, "batch": 3}
    made = {k: v for k, v in training("solved", **config).items() if k != "T1"}
    log = gb.train(made, out=tmp_path, device="cpu").log
    rows = log[log["status"].notna()]
    assert set(rows["status"]) == {"settled"}
    assert (rows["cosine"] > 0.999).all()
    assert log["skipped"].max() == 0


@pytest.mark.parametrize("solver", FAST)
def test_a_training_relaxes_by_a_solver(solver: str, tmp_path: Path) -> None:
    config = {
        "system": gb.system(name="relaxed", **tanh_layer()),
        "solver": solver,
        "T1": 30 if solver != "newton" else 6,
    }
    log = gb.train(training("by solver", **config, T2=40, dtype="float64"), out=tmp_path, device="cpu").log
    rows = log[log["status"].notna()]
    assert set(rows["status"]) == {"settled"}
    assert (rows["residual"] < 1e-9).all()
    assert (rows["rel_error"] < 1e-9).all()


def without_state(**more: Any) -> dict[str, Any]:
    return {k: v for k, v in tanh_layer().items() if k != "state"} | {"name": "wrong"} | more


STATE_MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "both": (
        lambda: gb.system(**tanh_layer(), state_at=torch.zeros(6, 12), name="wrong"),
        "system: got state and state_at, expected one of them",
    ),
    "neither": (lambda: gb.system(**without_state()), "system: missing: state or state_at"),
    "nothing": (lambda: gb.system(step=len), "state or state_at"),
    "examples": (
        lambda: gb.system(**without_state(state_at=torch.zeros(5, 12))),
        "wrong: state_at: got shape (5, 12), expected (6, ...): examples come first",
    ),
    "kind": (lambda: gb.system(**without_state(state_at="rest")), "wrong: state_at: got a str, expected a tensor"),
    "NaN": (lambda: gb.system(**without_state(state_at=torch.full((6, 12), math.nan))), "wrong: state_at"),
    "arguments": (
        lambda: gb.system(**without_state(state_at=lambda net, x, z: z)),
        "state_at: takes 3 arguments, expected (net, x)",
    ),
    "raises": (
        lambda: gb.system(**without_state(state_at=lambda net, x: net.solve(x))),
        "wrong: state_at raised Attribute",
    ),
    "random": (
        lambda: gb.system(**without_state(state_at=lambda net, x: torch.randn(len(x["x"]), 12))),
        "wrong: state_at: two calls with equal arguments differ: it draws random numbers",
    ),
    "form": (
        lambda: gb.system(**without_state(state_at=torch.zeros(6, 12), step=lambda net, x, z: (z,))),
        "step: got a tuple of 1 tensors, expected a tensor as in `state_at`",
    ),
    "T1": (
        lambda: gb.system(**without_state(state_at=torch.zeros(6, 12), defaults={"T1": 20})),
        "defaults['T1']: with state_at there is no free phase; leave it out",
    ),
    "T1 of a call": (lambda: gb.measure(resting(), "adjoint", T1=20, T2=5), "T1 = 20: nobody uses it here"),
    "solver": (
        lambda: gb.measure(resting(), "adjoint", solver="newton", T2=5),
        "measure: resting has no free phase that solver = 'newton' could solve",
    ),
    "reference": (
        lambda: gb.measure(resting(), "adjoint", reference="bptt", T2=5),
        "reference = 'bptt': it goes back through the steps of the relaxation, and the free state of resting is given "
        "by state_at; leave it out, or write 'implicit'",
    ),
    "rule": (
        lambda: gb.measure(resting(), "bptt"),
        "measure: bptt goes back through the steps of the relaxation, and the free state of resting is given by "
        "state_at",
    ),
    "other data": (
        lambda: gb.measure(resting(), "adjoint", T2=5, data={n: v[:4] for n, v in tanh_layer()["data"].items()}),
        "data: got 4 examples, and state_at of 'resting' is the free state of 6; give it as a function of the data, "
        "state_at(net, x)",
    ),
    "training": (
        lambda: gb.train({k: v for k, v in training("t", system=resting()).items() if k != "T1"}),
        "system: resting: state_at is a value, which does not follow the parameters; give it as a function, "
        "state_at(net, x)",
    ),
}


@pytest.mark.parametrize("mistake", STATE_MISTAKES.values(), ids=STATE_MISTAKES)
def test_a_mistake_with_a_free_state_is_told(mistake: tuple[Callable[[], object], str]) -> None:
    call, told = mistake
    with pytest.raises(UserError, match=re.escape(told)):
        call()
