"""Rules from functions: against independent computations, through the product, and what is wrong with them is told."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from linear import B, Line, N, line
from live import gap, live_field, whole_gap
from torch import Tensor
from written import tanh_layer

import gradbench as gb
from gradbench.commands import measuring
from gradbench.commands.explaining import choose, explain
from gradbench.diagnostics.ladder import estimate
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.errors import RuleFaultError, UserError
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.ep import Ep
from gradbench.estimators.functions import AbstractFunctionRule, Free
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import load, parse
from gradbench.plots.gallery import collect
from gradbench.plots.sources import Tables
from gradbench.systems.base import Params

TOY: dict[str, Any] = {"damp": 3.0, "T1": 200, "dtype": "float64", "batch": 4, "system_options": {"drive_std": 1.0}}
SIZES = {"drive_std": 1.0, "N": 2, "D": 4, "heads": 2, "out": 2}


@gb.estimator(source="Fung et al. 2022", terms=1)
def one_term(free: Free) -> Any:
    """The adjoint with one term."""
    return free.back(free.cost_slope)


@gb.estimator(source="Geng et al. 2021")
def weighted(free: Free, k: int = 5, lam: float = 0.5) -> Any:
    """k damped terms of the adjoint series."""
    a, total = free.cost_slope, 0
    for _ in range(k):
        total = total + lam * a
        a = (1 - lam) * a + lam * free.step_vjp(a)
    return free.back(total)


@gb.estimator(source="Saad & Schultz 1986", exact="fixed point")
def solved(free: Free, steps: int = 30) -> gb.Estimate:
    """(1 - J_G^T) a = dC/ds by GMRES, every example with a Krylov space of its own."""
    g = free.cost_slope
    size = g.norm(dim=-1, keepdim=True)
    basis, images = [g / size], []
    for _ in range(min(steps, g.shape[-1])):
        images.append(basis[-1] - free.step_vjp(basis[-1]))
        v = images[-1]
        for q in [*basis, *basis]:
            v = v - (v * q).sum(-1, keepdim=True) * q
        basis.append(v / v.norm(dim=-1, keepdim=True).clamp_min(1e-300))
    A = torch.stack(images, -1)
    y = torch.linalg.lstsq(A, g[..., None], driver="gelsd").solution
    left = (g - (A @ y)[..., 0]).norm() / g.norm()
    return gb.Estimate(credit=free.back((torch.stack(basis[:-1], -1) @ y)[..., 0]), evidence={"solve_left": left})


@gb.estimator(source="Scellier & Bengio 2017", exact="symmetric", order=2)
def nudged(free: Free, T2: int, beta: float) -> Any:
    """Centred EP."""
    return (free.nudge(-beta, T2) - free.nudge(beta, T2)) / (2 * beta)


@gb.estimator(source="Almeida 1987", uses={"T2"}, terms="T2", exact="fixed point")
def neumann(free: Free) -> Iterator[tuple[int, Any]]:
    """The adjoint, depth by depth."""
    a, total = free.cost_slope, 0
    for depth in range(1, free.depths[-1] + 1):
        total, a = total + a, free.step_vjp(a)
        if depth in free.depths:
            yield depth, free.back(total)


@gb.estimator(source="a test", draws=True)
def noisy(free: Free, rng: torch.Generator, size: float = 0.1) -> Any:
    """One term with noise."""
    a = free.back(free.cost_slope)
    return a + size * a.norm() * torch.randn(a.shape, generator=rng, dtype=torch.float64).to(a)


RULES = [one_term, weighted, solved, nudged, neumann, noisy]


@pytest.fixture(autouse=True)
def _session() -> Iterator[None]:
    with registry.scope():
        yield


def dense(field: Field, s: Tensor) -> tuple[Tensor, Tensor]:
    """J_G and Pi' of every example, by autograd of the step itself."""
    with torch.no_grad():
        u = s + field.step_size * field.force(s)
    whole = [torch.autograd.functional.jacobian(f, v) for f, v in ((field.step, s), (field.project, u))]
    J_G, P = (torch.stack([J[b, :, b] for b in range(len(s))]) for J in whole)
    return J_G, P


def along(field: Field, s: Tensor, a: Tensor) -> Params:
    """<a, dF/dtheta(s)> + dC/dtheta by autograd of the system's own force and cost."""
    theta = {n: v.clone().requires_grad_() for n, v in field.theta.items()}
    system, x, knobs = field.system, field.x, field.knobs
    F = system.force(theta, x, system.context(theta, x), s, knobs)
    total = (a * F).sum() + system.cost(theta, x, s).sum()
    grads = torch.autograd.grad(total, list(theta.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, grads, strict=True))


@pytest.mark.parametrize("field", [line(at=1), live_field("cet_projected")], ids=["line", "cet_projected"])
def test_phantom_and_gmres_are_what_dense_matrices_give(field: Field) -> None:
    free = relax(field, (200,))
    s, g, eps = free.ends[0], free.cost_slope[0], field.step_size
    J_G, P = dense(field, s)
    eye = torch.eye(s.shape[-1], dtype=torch.float64)
    M = 0.5 * eye + 0.5 * J_G.mT
    series = 0.5 * sum((torch.linalg.matrix_power(M, j) @ g[..., None]) for j in range(5))
    for rule, a in ((weighted(), series), (solved(steps=100), torch.linalg.solve(eye - J_G.mT, g[..., None]))):
        expected = along(field, s, eps * (P.mT @ a)[..., 0])
        assert gap(estimate(rule, free, None, None), expected) < (1e-9 if rule.name == "solved" else 1e-12)


def test_one_term_is_truncation_and_the_adjoint_with_one_term() -> None:
    mine, adjoint = gb.measure("toy_noncons", one_term, **TOY), gb.measure("toy_noncons", "adjoint", T2=1, **TOY)
    assert mine.estimate is not None
    assert adjoint.estimate is not None
    assert gap(mine.estimate, adjoint.estimate) < 1e-12
    assert (mine.row["cause"], mine.row["estimator_label"]) == ("truncation", "one_term")
    assert mine.budget[""]["truncation"] == pytest.approx(mine.rel_error)
    assert (mine.row["n_force"], mine.row["n_jvp"], mine.row["n_vjp"]) == (200, 0, 0)


def test_a_nudged_function_is_ep_with_its_status_and_its_cost() -> None:
    for beta in (0.02, 1e6):
        mine, ep = (gb.measure("toy_noncons", rule, T2=30, beta=beta, **TOY) for rule in (nudged, "ep"))
        assert mine.estimate is not None
        assert ep.estimate is not None
        assert gap(mine.estimate, ep.estimate) < 1e-12
        assert (mine.status, mine.reason) == (ep.status, ep.reason)
        assert mine.row["n_force"] == ep.row["n_force"] == 260
    assert mine.status == "nudge_diverged"
    assert mine.row["gamma"] == ep.row["gamma"]


def test_a_generator_serves_every_depth_of_one_pass() -> None:
    for name in ("toy_noncons", "cet_projected"):
        free = relax(live_field(name), (20, 60))
        none, depths = free.ends.new_empty(0), (1, 2, 7)
        mine, ours = neumann(), Adjoint()
        for a, b in zip(mine.phase.run(free, depths, none), ours.phase.run(free, depths, none), strict=True):
            read, expected = mine.read(free, a, none), ours.read(free, b, none)
            assert read.depth == expected.depth
            assert whole_gap(read.gradient, expected.gradient) < 1e-12
            assert a.evidence["n_vjp"].tolist() == [[read.depth]] * 2
    m = gb.measure("toy_noncons", neumann, T2=1, **TOY)
    assert (m.row["cause"], m.row["n_vjp"]) == ("truncation", 1)


def test_draws_are_those_of_the_seed_of_the_cell() -> None:
    first, again = (gb.measure("toy_noncons", noisy, seed=1, **TOY) for _ in range(2))
    other = gb.measure("toy_noncons", noisy(size=0.2), seed=1, **TOY)
    assert first.estimate is not None
    assert again.estimate is not None
    assert other.row["estimator_label"] == "noisy size=0.2"
    row = {**TOY, "estimator_options": other.row["estimator_options"], "seed": 1}
    assert gb.measure("toy_noncons", "noisy", **row).row["cell"] == other.row["cell"]
    assert gap(first.estimate, again.estimate) == 0
    field = live_field("toy_noncons", seed=0)
    drawn = [estimate(noisy(), relax(f, (50,)), None, None) for f in (field, replace(field, seeds=(5,)))]
    assert gap(*drawn) > 1e-3


def test_rules_that_draw_are_read_as_the_mean_of_their_draws() -> None:
    def rule(free: Free, rng: torch.Generator) -> Any:
        a = free.cost_slope
        for _ in range(80):
            a = free.cost_slope + free.step_vjp(a)
        a = free.back(a)
        return a + a.norm() * torch.randn(a.shape, generator=rng, dtype=torch.float64).to(a) / a.numel() ** 0.5

    one, many = (gb.estimator(source="a test", name=f"of {n}", draws=n)(rule) for n in (False, 64))
    single, mean = (gb.measure("toy_noncons", r, **TOY) for r in (one, many))
    assert [single.row[c] for c in ("draws", "variance", "bias_se")] == [None] * 3
    assert mean.row["draws"] == 64
    assert mean.row["bias_se"] == pytest.approx(math.sqrt(mean.row["variance"] / 64))
    assert mean.rel_error == pytest.approx(mean.row["bias_se"], rel=0.6)  # the rule has no bias
    assert single.rel_error == pytest.approx(math.sqrt(mean.row["variance"]), rel=0.6)
    assert mean.row["n_vjp"] == 64 * single.row["n_vjp"] == 64 * 80
    assert registry.digest_of(one) != registry.digest_of(many)
    first = relax(live_field("toy_noncons"), (50,))
    drawn = [one().phase.drawn(range(k, k + 1)) for k in (0, 1)]
    a, b = (next(phase.run(first, (), first.ends.new_empty(0))).credits for phase in drawn)
    assert not torch.equal(a, b)
    assert torch.equal(a, next(one().phase.run(first, (), first.ends.new_empty(0))).credits)


def suite(tmp_path: Path, estimators: list[object], name: str = "mine", **more: object) -> Path:
    """A suite file of two problems of the toy with these estimators."""
    grid = {"damp": 3.0, "T1": [50, 100], "T2": [2, 9], "beta": [0.02, 0.2], "s": 1.0, "seed": [0, 1]}
    grid |= {"dtype": "float64", "batch": 2} | more
    lines = [f"{key} = {json.dumps(value)}" for key, value in grid.items()]
    system = f'{{ name = "toy_noncons", {", ".join(f"{k} = {v}" for k, v in SIZES.items())} }}'
    path = tmp_path / f"{name}.toml"
    text = f"[[grid]]\nsystem = {system}\nestimator = {json.dumps(estimators)}\n" + "\n".join(lines)
    path.write_text(f'about = "x"\n{text}\n')
    return path


def test_it_is_run_in_batches_explained_and_drawn_beside_the_others(tmp_path: Path) -> None:
    for rule in RULES:
        gb.register(rule)
    names = [rule.name for rule in RULES]
    path = suite(tmp_path, ["bptt", "ep", *names])
    runs = [gb.run(path, out=tmp_path / e, device="cpu", engine=e) for e in ("eager", "batched")]
    eager, batched = (run.cells.set_index("cell").sort_index() for run in runs)
    assert set(eager["status"]) == {"settled"}
    numbers = [c for c in eager.columns if eager[c].dtype == float and c not in ("seconds", "peak_memory")]
    for column in numbers:
        assert list(batched[column]) == pytest.approx(list(eager[column]), rel=1e-9, abs=1e-11, nan_ok=True), column
    assert list(batched["status"]) == list(eager["status"])
    assert list(batched["cause"].astype(str)) == list(eager["cause"].astype(str))
    by_rule = eager.groupby("estimator")["solve_left"]
    assert by_rule.max()["solved"] < 1e-9
    assert by_rule.count().to_dict() == {"bptt": 0, "ep": 0} | dict.fromkeys(names, 0) | {"solved": 4}
    assert list(eager.columns)[-1] == "solve_left"
    assert eager["n_force"].notna().all()
    assert set(eager.loc[eager["estimator"] == "one_term", "cause"].dropna()) <= {"truncation"}
    (row,) = choose(runs[0], None, {"estimator": "weighted"}, 1)
    explained = explain(runs[0], row)
    assert explained.ladder is not None
    assert explained.ladder.cause == "weights of the series"
    tables, figures = Tables.of(runs[0]), collect()
    assert all(figures[name](tables) is not None for name in ("error_budget", "error_vs_cost", "params"))
    assert "at least " in plan(load(path), "x").summary["vjp"]


def test_classes_and_objects_stand_in_a_grid_where_names_do() -> None:
    rules = registry.written(["bptt", one_term, {"name": weighted, "k": [1, 3]}, weighted(k=7)])
    grid = {"system": {"name": "toy_noncons", **SIZES}, "estimator": rules, "T1": 20, "seed": 0}
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    assert [cell.labels["estimator_label"] for cell in planned.cells] == [
        "bptt",
        "one_term",
        "weighted k=1",
        "weighted k=3",
        "weighted k=7",
    ]
    assert json.loads(planned.cells[1].estimator_options) == {"digest": registry.digest_of(one_term)}
    assert "one_term" not in registry.known_estimators()


def test_a_function_with_other_content_is_another_cell() -> None:
    def made(factor: float) -> type[AbstractFunctionRule]:
        return gb.estimator(source="a test", name="mine")(lambda free: factor * free.back(free.cost_slope))

    one, same, other = made(1.0), made(1.0), made(2.0)
    assert registry.digest_of(one) == registry.digest_of(same) != registry.digest_of(other)
    a, b = (gb.measure("toy_noncons", rule, **TOY) for rule in (one, other))
    assert a.row["cell"] != b.row["cell"]
    assert b.norm_ratio == pytest.approx(2 * a.norm_ratio)
    open_file = Path(__file__).open()  # noqa: SIM115
    with open_file:
        unseen = [gb.estimator(source="a test", name="mine")(lambda free: open_file and None) for _ in range(2)]
    assert len({registry.digest_of(rule) for rule in unseen}) == 2
    assert one.unseen is None
    assert "open_file" in str(unseen[0].unseen)


MUTANTS: dict[str, tuple[Callable[[Free], Any], str]] = {
    "sign": (lambda free: -solved.function(free).credit, "sign"),
    "missing eps": (lambda free: solved.function(free).credit / free.eps, "scale"),
    "no transpose": (
        lambda free: free.back(sum(powers(free.step_jvp, free.cost_slope, 60))),
        "asymmetry",
    ),
}


def powers(product: Callable[[Any], Any], a: Any, k: int) -> Iterator[Any]:
    for _ in range(k):
        yield a
        a = product(a)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_rule_has_a_low_cosine_or_a_cause(name: str) -> None:
    mutant, cause = MUTANTS[name]
    m = gb.measure("toy_noncons", gb.estimator(source="a mutant", name="mutant")(mutant), **TOY)
    assert m.status == "settled"
    assert m.row["cause"] == cause
    assert m.cosine < 0.99 or not 0.9 < m.norm_ratio < 1.1


def test_a_direct_gradient_that_is_added_twice_is_told_where_the_cost_has_parameters() -> None:
    def twice(free: Free) -> Params:
        a = solved.function(free, steps=60).credit
        return {n: g + direct for (n, g), direct in zip(free.grad(a).items(), free.grad(0 * a).values(), strict=True)}

    at: dict[str, Any] = {"batch": 2, "dtype": "float64", "system_options": {"d_in": 784, "d": 8, "L": 3}}
    right = gb.measure("residual_mlp", solved(steps=60), **at)
    wrong = gb.measure("residual_mlp", gb.estimator(source="a mutant", name="twice")(twice), **at)
    assert right.rel_error < 1e-9
    assert right.row["cause"] is None
    assert wrong.rel_error > 0.1
    assert wrong.row["cause"] == "projection or readout"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda free: free.cost_slope[:1],
            r"mine: the credit got shape \(1, 10\), expected a tensor of shape \(4, 10\)",
        ),
        (lambda free: None, r"mine: returned None, expected a credit"),
        (lambda free: gb.Estimate(), r"mine: the estimate has neither a credit nor a gradient"),
        (lambda free: 0 * free.cost_slope + 1j, r"mine: the credit got complex numbers"),
        (lambda free: {"WV": free.cost_slope}, r"mine: the gradient has nothing for "),
        (lambda free: free.grad(free.cost_slope) | {"WX": 1}, r"the gradient of 'WX': no such parameter. Did you mean"),
        (
            lambda free: dict.fromkeys(free.grad(free.cost_slope), 1.0),
            r"the gradient of '\w+' is a float, expected a t",
        ),
        (lambda free: gb.Estimate(credit=free.cost_slope, evidence={"x": "y"}), r"evidence 'x' is a str, expected a n"),
        (
            lambda free: gb.Estimate(credit=free.cost_slope, evidence={"cosine": 1}),
            r"'cosine' has the name of a column",
        ),
        (lambda free: gb.Estimate(credit=free.cost_slope, evidence={"a b": 1}), r"'a b': a column cannot have this"),
        (lambda free: free.vjp(free.cost_slope[0]), r"mine: vjp got shape \(10,\), expected a tensor of shape"),
        (lambda free: 1 / 0, r"mine: raised ZeroDivisionError: division by zero"),
        (lambda free: {"WZ": free.cost_slope}, r"the gradient of 'WZ': no such parameter"),
        (lambda free: free.slope, r"mine: raised AttributeError: free has no 'slope'. Did you mean 'cost_slope'"),
        (lambda free: free.nudge(0, 5), r"mine: raised UserError: nudge: beta = 0, expected a finite number"),
        (lambda free: free.nudge(0.1, -1), r"mine: raised UserError: nudge: T2 = -1 is no number of steps"),
    ],
)
def test_what_is_no_estimate_is_named_with_what_was_expected(function: Callable[..., Any], message: str) -> None:
    wide = {"drive_std": 1.0, "N": 2, "D": 5, "heads": 1}
    with pytest.raises(UserError, match=message):
        gb.measure(
            "toy_noncons", gb.estimator(source="a test", name="mine")(function), T1=5, batch=4, system_options=wide
        )


def growing(*depths: object) -> Callable[[Free], Iterator[Any]]:
    def function(free: Free) -> Iterator[Any]:
        for depth in depths:
            yield depth, free.cost_slope

    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (growing(1), r"mine: nothing was yielded for T2 = 3"),
        (growing(1, 2, 3), r"mine: yielded depth 2, expected \(T2, estimate\) with T2 = 3"),
        (growing(1, 3, 4), r"mine: yielded more than the depths that were asked for: \(1, 3\)"),
        (lambda free: free.cost_slope, r"mine: returned a Tensor, expected \(depth, estimate\) for every depth"),
    ],
)
def test_a_generator_yields_the_depths_that_are_asked_for(function: Callable[..., Any], message: str) -> None:
    rule = gb.estimator(source="a test", name="mine", uses={"T2"})(function)()
    free = relax(live_field("toy_noncons"), (5,))
    with pytest.raises(RuleFaultError, match=message):
        list(rule.phase.run(free, (1, 3), free.ends.new_empty(0)))


def test_a_fault_of_one_rule_costs_its_own_cells_alone(tmp_path: Path) -> None:
    @gb.register
    @gb.estimator(source="a test")
    def broken(free: Free) -> Any:
        raise RuntimeError("no way" if free.state.square().sum() > 0 else "none")

    path = suite(tmp_path, ["bptt", "broken", "ep"], s=1.0, T1=[50], T2=[2], beta=[0.1])
    for engine in ("eager", "batched"):
        cells = gb.run(path, out=tmp_path / engine, device="cpu", engine=engine).cells
        assert cells.groupby("estimator")["status"].agg(set).to_dict() == {
            "bptt": {"settled"},
            "broken": {"error"},
            "ep": {"settled"},
        }
        assert set(cells.loc[cells["status"] == "error", "reason"]) == {"broken: raised RuntimeError: no way"}


def test_a_cell_that_diverged_is_shown_to_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []
    monkeypatch.setattr(measuring, "with_crew", lambda setup, planned: setup)  # in this process, which is watched

    @gb.register
    @gb.estimator(source="a test")
    def picky(free: Free, beta: float) -> Any:
        shown.append(bool(free.state.isfinite().all()))
        return free.back(free.cost_slope) if beta < 0.1 else free.grad(free.back(free.cost_slope))

    path = suite(tmp_path, ["bptt", "picky"], eps=[0.1, 50.0], T1=[400], T2=[2], seed=[0])
    cells = [gb.run(path, out=tmp_path / e, device="cpu", engine=e).cells for e in ("eager", "batched")]
    assert shown
    assert all(shown)
    for by_engine in cells:
        mine = by_engine[by_engine["estimator"] == "picky"]
        assert mine.groupby("eps")["status"].agg(set).to_dict() == {0.1: {"settled"}, 50.0: {"diverged"}}
        settled = mine[mine["status"] == "settled"]
        assert settled["cosine"].nunique() == 1
        assert settled["gamma"].isna().all()


def test_a_number_that_is_not_finite_is_a_reason_and_no_exception() -> None:
    rule = gb.estimator(source="a test", name="mine")(lambda free: math.nan * free.cost_slope)
    m = gb.measure("toy_noncons", rule, **TOY)
    assert math.isnan(m.cosine)
    assert m.reason == "the estimate is not finite"


@dataclass(frozen=True)
class Split(Line):
    """The linear system, in a state of two tensors."""

    names: ClassVar[tuple[str, str]] = ("a", "b")

    def shown(self, s: Tensor) -> dict[str, Tensor]:
        return {self.names[0]: s[..., :2], self.names[1]: s[..., 2:]}

    def flat(self, state: dict[str, Tensor]) -> Tensor:
        return torch.cat([state[name] for name in self.names], -1)


@dataclass(frozen=True)
class Unclear(Split):
    names: ClassVar[tuple[str, str]] = ("W", "h")


def of(function: Callable[[Free], Any], system: type[Line]) -> Params:
    plain = line(at=1)
    free = relax(Field(system(), plain.theta, plain.x, plain.knobs), (50,))
    return estimate(gb.estimator(source="a test", name="mine")(function)(), free, None, None)


def test_a_state_of_named_tensors_goes_in_and_out_by_name() -> None:
    credit = one_term.function
    expected = of(credit, Line)
    assert expected["W"].shape == (N, N)
    assert gap(of(credit, Split), expected) == 0
    assert gap(of(lambda free: free.grad(credit(free)), Split), expected) < 1e-14
    assert gap(of(lambda free: gb.Estimate(credit=credit(free)), Unclear), expected) == 0
    assert gap(of(lambda free: gb.Estimate(gradient=free.grad(credit(free))), Unclear), expected) < 1e-14
    with pytest.raises(RuleFaultError, match=r"the state and the parameters have the same names: say which"):
        of(credit, Unclear)
    with pytest.raises(RuleFaultError, match=rf"got a dict of a, expected a dict of a \({B}, 2\), b \({B}, 3\)"):
        of(lambda free: {"a": free.cost_slope["a"]}, Split)
    with pytest.raises(RuleFaultError, match=r"a dict of a, W is neither credit nor gradient"):
        of(lambda free: {"a": free.cost_slope["a"], "W": 0}, Split)


def test_a_function_cannot_change_what_the_others_read() -> None:
    def careless(free: Free) -> Any:
        for state in (free.state, free.cost_slope, free.nudge(0.1, 3), free.eps):
            state.zero_()
        return free.cost_slope.mul_(free.eps)

    free = relax(line(at=1), (50,))
    expected = estimate(one_term(), free, None, None)
    rule = gb.estimator(source="a test", name="mine")(careless)()
    assert gap(estimate(rule, free, None, None), expected) == 0
    assert gap(estimate(Ep(), free, 3, 0.1), estimate(nudged(), free, 3, 0.1)) < 1e-12


@pytest.mark.parametrize(
    ("function", "declared", "message"),
    [
        (lambda: 0, {}, "has no parameter, expected `free`"),
        (lambda free, k: 0, {}, "'k' has no default"),
        (lambda free, *k: 0, {}, r"\*k cannot be given by name"),
        (lambda free, k=[1]: 0, {}, r"option 'k' = \[1\]: expected a number"),
        (lambda free, k=0: 0, {}, "a whole number is a count, from 1; for a number write 0.0"),
        (lambda free, k=math.inf: 0, {}, "expected a finite number"),
        (lambda free, terms=3: 0, {}, "an option cannot be called 'terms'"),
        (lambda free, eps=0.1: 0, {}, "an option cannot be called 'eps'"),
        (lambda free: 0, {"uses": {"T3"}}, r"uses 'T3'. Did you mean 'T2'\?"),
        (lambda free: 0, {"uses": {"beta"}}, "uses beta, and so takes it"),
        (lambda free: 0, {"draws": True}, "draws, and so takes rng"),
        (lambda free, rng: 0, {"draws": -1}, "draws = -1, expected how many draws"),
        (lambda free: 0, {"exact": "sometimes"}, "exact = 'sometimes' is not a choice"),
        (lambda free: 0, {"order": 2}, "order = 2, expected a whole number from 1, of a rule that uses beta"),
        (lambda free: 0, {"terms": 0}, "terms = 0, expected a whole number"),
        (lambda free: 0, {"terms": "T2"}, "of a rule that does not use T2"),
        (lambda free: 0, {"name": " "}, "name = ' ', expected a word"),
        (3, {"name": "three"}, "decorates an int, expected a function"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_told(function: Any, declared: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gb.estimator(source="a test", **declared)(function)


def test_a_rule_says_what_it_claims_and_takes_and_has_no_name_of_the_package() -> None:
    rule = nudged()
    assert (rule.claim.exact, rule.claim.order, rule.uses) == ("symmetric", 2, {"T2", "beta"})
    assert (rule.terms(7), neumann().terms(7), one_term().terms(None)) == (None, 7, 1)
    assert registry.definition(nudged) == "Centred EP."
    with pytest.raises(UserError, match=r"weighted.k = 2.5 is a float; expected: int|estimator_options\['k'\] = 2.5"):
        gb.measure("toy_noncons", weighted, estimator_options={"k": 2.5}, **TOY)
    with pytest.raises(UserError, match=r"the name 'ep' is taken by gradbench.estimators.ep.Ep"):
        gb.measure("toy_noncons", gb.estimator(source="a test", name="ep")(one_term.function), **TOY)


@pytest.mark.fast
def test_options_of_a_rule_are_given_by_their_names() -> None:
    @gb.estimator(source="a test")
    def damped(free: Free, lam: float = 0.5) -> Any:
        return lam * free.back(free.cost_slope)

    assert damped(lam=0.1).lam == 0.1
    with pytest.raises(UserError, match=r"damped: there is no option 'lamb'. Did you mean 'lam'\?"):
        damped(lamb=0.1)
    with pytest.raises(UserError, match=r"damped: options are given by their names: lam=\.\.\."):
        damped(0.1)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: gb.estimator(lambda free: 0), "estimator: source is missing; write @gradbench.estimator"),
        (lambda: gb.estimator("ep"), "estimator: got a str; write @gradbench.estimator"),
        (lambda: gb.estimator(terms=1)(lambda free: 0), "source is missing: where the rule is from, in words"),
        (lambda: gb.estimator(source="a test", uses="T2"), r"uses = 'T2', expected a set of names: \{'T2'\}"),  # type: ignore[arg-type]
    ],
)
def test_a_decorator_without_what_it_needs_says_so(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call()


def test_the_remedy_of_a_rule_that_declares_no_series_was_tried() -> None:
    @gb.estimator(source="Geng et al. 2021", uses={"T2"})
    def damped(free: Free, T2: int) -> Any:
        a = free.cost_slope
        total = 0.5 * a
        for _ in range(T2 - 1):
            a = 0.5 * (a + free.step_vjp(a))
            total = total + 0.5 * a
        return free.back(total)

    mine = gb.system(**tanh_layer(), name="mine")
    remedy = gb.explain(mine, damped, T1=200, T2=3).remedy
    assert remedy is not None
    T2, before, after = re.fullmatch(r"T2 = (\d+) brings the error from (\S+) to (\S+)", remedy).groups()  # type: ignore[union-attr]
    for steps, told in ((3, before), (int(T2), after)):
        m = gb.measure(mine, damped, T1=200, T2=steps, dtype="float64")
        assert m.rel_error == pytest.approx(float(told), rel=0.1)
