"""Solvers of the free phase against dense linear algebra, their textbook recursions and the relaxation itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from linear import N, line, noise
from live import SYSTEMS, live_field
from torch import Tensor
from written import WRITTEN

import gradbench as gb
from gradbench.dynamics import solvers
from gradbench.dynamics.field import Field
from gradbench.dynamics.meter import PRODUCT, Meter
from gradbench.dynamics.stack import Looped, Stack
from gradbench.dynamics.trajectory import relax
from gradbench.engine.draws import draw
from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.solver import SPACE, Solver

FAST = [s for s in Solver if s is not Solver.EULER]
RELAXING = [name for name in SYSTEMS if "T1" in live_field(name).system.uses]
P = torch.eye(N, dtype=torch.float64) - 0.2 * noise(N, N, seed=9)
ENOUGH = {Solver.ANDERSON: 120, Solver.BROYDEN: 120, Solver.NEWTON: 12}
NEAR = {
    "cet": 60,
    "cet_projected": 60,
}  # steps of the relaxation before a solver begins: far from rest it goes elsewhere


def by(field: Field, solver: Solver) -> Field:
    return replace(field, solver=solver)


def iterates(field: Field, T: int) -> Tensor:
    return relax(field, (T,)).states


@dataclass(frozen=True, eq=False)
class Started(Field):
    """A field whose s_0 is another one."""

    start: Tensor = dataclasses.field(kw_only=True)

    def init_state(self) -> Tensor:
        return self.start


def started(field: Field, start: Tensor) -> Field:
    return Started(field.system, field.theta, field.x, field.knobs, start=start)


@cache
def near(name: str, dtype: str = "float64") -> Field:
    """The live point of a system, begun after some steps of its relaxation."""
    field = live_field(name, dtype=dtype)
    return started(field, relax(field, (NEAR.get(name, 0),)).ends[0])


@cache
def at_rest(name: str) -> Tensor:
    return relax(near(name), (1500,)).ends[0]


def relative(a: Tensor, b: Tensor) -> float:
    """Of the worst sample."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def residuals(field: Field, T: int) -> list[float]:
    """|G(s_t) - s_t| / |s_t| of the worst sample, from s_1 on."""
    states = iterates(field, T)[1:]
    with torch.no_grad():
        moved = field.step(states) - states
    return (moved.norm(dim=-1) / states.norm(dim=-1)).amax(-1).tolist()


@pytest.mark.parametrize("projection", [None, P], ids=["plain", "projected"])
@pytest.mark.parametrize(
    ("solver", "iterations", "error"),
    [
        (Solver.NEWTON, 1, 1e-12),
        (Solver.ANDERSON, N + 1, 1e-6),
        (Solver.ANDERSON, N + 2, 1e-12),
        (Solver.BROYDEN, 2 * N, 1e-11),
    ],
)
def test_a_linear_system_is_solved_in_as_many_iterations_as_theory_says(
    solver: Solver, iterations: int, error: float, projection: Tensor | None
) -> None:
    """Newton in one, Anderson as GMRES in n and a step of G, Broyden in 2 n (Gay 1979), to what LU gives."""
    field = line(P=projection, at=0)
    eye, eps = torch.eye(N, dtype=torch.float64), field.step_size
    Pi = eye if projection is None else projection
    G = Pi @ (eye + eps * field.theta["W"])
    right = eps * (field.theta["h"] + field.x["x"]) @ Pi.mT
    solution = torch.linalg.solve(eye - G, right[..., None])[..., 0]
    states = iterates(by(field, solver), iterations)
    assert relative(states[-1], solution) < error
    assert relative(states[iterations - 2 if solver is Solver.BROYDEN else min(iterations - 1, N)], solution) > 1e-4


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", RELAXING)
def test_every_solver_ends_where_the_relaxation_does(name: str, solver: Solver) -> None:
    end = relax(by(near(name), solver), (ENOUGH[solver],)).ends[0]
    assert relative(end, at_rest(name)) < 1e-12


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("name", RELAXING)
def test_a_solver_works_down_to_round_off_and_stays_there(name: str, solver: Solver) -> None:
    last = residuals(by(near(name, "float32"), solver), 5 * ENOUGH[solver] // 4)[ENOUGH[solver] :]
    assert max(last) < 2e-6  # a few units of round-off
    assert sorted(last)[len(last) // 2] < 3e-7


@pytest.mark.parametrize("name", [n for n in RELAXING if live_field(n).init_state().shape[-1] <= SPACE])
def test_newton_is_quadratic_where_its_space_is_whole(name: str) -> None:
    states, rest = iterates(by(near(name), Solver.NEWTON), 12), at_rest(name)
    errors = [relative(s, rest) for s in states]
    pairs = [(a, b) for a, b in itertools.pairwise(errors) if a < 0.1 and b > 1e-14]
    if errors[1] < 1e-12:  # the system is linear
        return
    assert len(pairs) >= 2
    orders = [math.log(c / b) / math.log(b / a) for (a, b), (_, c) in itertools.pairwise(pairs)]
    assert all(b <= 10 * a**2 for a, b in pairs)
    assert max(orders) > 1.7


@pytest.mark.parametrize("solver", [Solver.ANDERSON, Solver.BROYDEN])
@pytest.mark.parametrize("name", RELAXING)
def test_quasi_newton_needs_less_than_half_of_the_iterations_of_the_relaxation(name: str, solver: Solver) -> None:
    plain, fast = (
        next(t for t, r in enumerate(residuals(by(near(name), s), 600)) if r < 1e-10) for s in (Solver.EULER, solver)
    )
    assert fast < (0.5 if plain > 40 else 0.8) * plain


def recursion(field: Field, iterations: int, forget: int | None = None) -> list[Tensor]:
    """Broyden's good method by its update of a dense inverse Jacobian, from -1; of the last pairs only, if `forget`."""
    s = field.init_state()
    eye = torch.eye(s.shape[-1], dtype=s.dtype).expand(len(s), -1, -1)
    pairs: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        f, states = field.step(s) - s, []
        for _ in range(iterations):
            H = -eye
            for ds, df in pairs[-forget:] if forget else pairs:
                Hdf, sH = H @ df[..., None], ds[:, None] @ H
                H = H + (ds[..., None] - Hdf) @ sH / (sH @ df[..., None])
            d = -(H @ f[..., None])[..., 0]
            s, before = s + d, f
            f = field.step(s) - s
            pairs.append((d, f - before))
            states.append(s)
    return states


@pytest.mark.parametrize("memory", [solvers.MEMORY, 4])
def test_broyden_is_the_recursion_of_the_pairs_that_it_holds(memory: int) -> None:
    field = live_field("toy_cons")
    step = field.repeated(lambda s: (field.step(s),), field.init_state())
    advance = solvers.secant(field, step, most=memory, weights=solvers.updated)
    s = field.init_state()
    for t, expected in enumerate(recursion(field, 14, memory)):
        with torch.no_grad():
            s = advance(s)
        assert relative(s, expected) < 1e-9, t


def test_anderson_is_the_least_squares_problem_of_its_window() -> None:
    field = live_field("toy_cons")
    s, states, images = field.init_state(), [], []
    found = iterates(by(field, Solver.ANDERSON), 14)
    for t in range(14):
        with torch.no_grad():
            states.append(s)
            images.append(field.step(s))
        f = torch.stack([g - z for g, z in zip(images, states, strict=True)], -1)[..., -solvers.WINDOW - 1 :]
        G = torch.stack(images, -1)[..., -solvers.WINDOW - 1 :]
        s = images[-1]
        if t:
            w = torch.linalg.lstsq(f.diff(dim=-1), f[..., -1:]).solution
            s = s - (G.diff(dim=-1) @ w)[..., 0]
        assert relative(found[t + 1], s) < 1e-6, t


@pytest.mark.parametrize("solver", FAST)
def test_a_sample_without_a_number_disturbs_no_other(solver: Solver) -> None:
    field = by(live_field("toy_cons", batch=3), solver)
    start = field.init_state()
    healthy = relax(field, (8,)).states
    for wrong in (math.nan, math.inf, 1e300):
        s = start.clone()
        s[1] = wrong
        with torch.no_grad():
            step = field.repeated(lambda s: (field.step(s),), s)
            advance = solvers.SOLVERS[solver](field, step)
            for t in range(8):
                s = advance(s)
                torch.testing.assert_close(s[[0, 2]], healthy[t + 1][[0, 2]], rtol=1e-9, atol=1e-12)
        assert not s[1].isfinite().all() or wrong == 1e300


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("stack", [Stack, Looped])
def test_a_stack_moves_as_its_cells_do(stack: type[Stack], solver: Solver) -> None:
    fields = [
        by(live_field("toy_noncons", seed=seed, damp=damp), solver) for seed, damp in ((0, 3.0), (1, 4.0), (2, 3.0))
    ]
    knobs = Knobs(*(torch.stack(column) for column in zip(*(f.knobs for f in fields), strict=True)))
    theta, x = (
        {n: torch.stack([getattr(f, of)[n] for f in fields]) for n in getattr(fields[0], of)} for of in ("theta", "x")
    )
    together = relax(stack(fields[0].system, theta, x, knobs, solver=solver), (5, 11))
    for c, field in enumerate(fields):
        alone = relax(field, (5, 11))
        torch.testing.assert_close(together.ends[:, c], alone.ends, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.norms[:, c], alone.norms, rtol=1e-9, atol=1e-12)


def test_a_stack_has_one_solver_and_its_cells_have_it_too() -> None:
    field = live_field("toy_cons")
    assert Stack.of([by(field, Solver.NEWTON)] * 2).cell(1).solver is Solver.NEWTON
    with pytest.raises(ValueError, match="one solver"):
        Stack.of([field, by(field, Solver.NEWTON)])


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("name", ["toy_cons", "cet_real"])
def test_the_work_of_an_iteration_is_what_is_told_beforehand(
    name: str, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, calls = by(live_field(name), solver), {"force": 0, "jvp": 0}

    def counted(of: type, method: str, name: str) -> None:
        plain: Callable[..., Tensor] = getattr(of, method)

        def count(self: object, *arguments: Tensor) -> Tensor:
            calls[name] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(of, method, count)

    counted(Field, "step", "force")
    counted(gb.dynamics.field.StepMap, "jvp", "jvp")
    products = solver.products(field.init_state().shape[-1])
    meter = Meter()
    with meter.stage(7 * (1 + PRODUCT * products)), meter.counting():
        relax(field, (7,))
        assert meter.launched == 7 * (1 + PRODUCT * products)
    assert calls == {"force": 7, "jvp": 7 * products}


@pytest.mark.parametrize("solver", Solver)
def test_a_trajectory_of_which_few_states_are_stored_ends_alike(solver: Solver) -> None:
    field = by(live_field("toy_noncons"), solver)
    whole, short = relax(field, (3, 14)), relax(field, (3, 14), hold=5)
    assert short.every > 1
    near = {"rtol": 1e-13, "atol": 1e-13}  # where a product finds its numbers in memory changes its last digit
    torch.testing.assert_close(short.ends, whole.ends, **near)
    torch.testing.assert_close(short.norms, whole.norms, **near)
    torch.testing.assert_close(short.states, whole.states[:: short.every], **near)


def test_the_iterates_of_a_solver_have_no_energy_and_no_way_back() -> None:
    field = live_field("toy_cons")
    assert relax(field, (5,)).energies is not None
    free = relax(by(field, Solver.ANDERSON), (5,))
    assert free.energies is None
    with pytest.raises(ValueError, match="no steps to go back by"):
        next(free.backwards())


@pytest.mark.parametrize("solver", FAST)
@pytest.mark.parametrize("written", WRITTEN, ids=lambda w: w.__name__)
def test_a_system_from_functions_rests_where_its_relaxation_does(
    written: Callable[[], dict[str, object]], solver: Solver
) -> None:
    system = gb.system(name=f"solved {written.__name__}", **written())  # type: ignore[arg-type]
    theta, x = draw(system, 0, system.held or 1)
    knobs = Knobs(
        *(torch.tensor(float(system.defaults.get(n, 0.0)), dtype=torch.float64) for n in ("s", "damp", "eps"))
    )
    field = Field(system, theta, x, knobs)
    field = started(field, relax(field, (200,)).ends[0])  # one of them has another fixed point as well
    rest = relax(field, (1500,)).ends[0]
    assert relative(relax(by(field, solver), (ENOUGH[solver],)).ends[0], rest) < 1e-12
