"""Rules that the package knows nothing of: a fault that is planted in one is named, in the table and by `explain`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Tensor, nn

import gradbench as gb
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count, Reading, Snapshot, along
from gradbench.estimators.functions import Free
from gradbench.planning import registry

DRAWS = 1  # of every fault: `python tests/physics/test_dissection.py` counts 20
Made = tuple[Any, dict[str, Any]]  # a rule, and its coordinates
mine = partial(gb.estimator, source="a planted fault")


@pytest.fixture(autouse=True)
def _session() -> Iterator[None]:
    with registry.scope():
        yield


def series(free: Free, step: Callable[[Tensor], Tensor], terms: int) -> Tensor:
    a = total = free.cost_slope
    for _ in range(terms - 1):
        a = step(a)
        total = total + a
    return total


def adjoint(free: Free, terms: int = 80) -> Tensor:
    credit: Tensor = free.back(series(free, free.step_vjp, terms))
    return credit


def noise(seed: int, like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape or like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)


# faults: each makes a rule from a draw


def truncated(draw: random.Random) -> Made:
    terms = draw.choice([1, 2])
    return mine()(lambda free: adjoint(free, terms)), {}


def truncated_of_T2(draw: random.Random) -> Made:
    return mine()(lambda free, T2: adjoint(free, T2)), {"T2": draw.choice([1, 2])}


def damped(draw: random.Random) -> Made:
    gamma = draw.uniform(0.2, 0.6)
    return mine()(lambda free, T2: free.back(series(free, lambda a: gamma * free.step_vjp(a), T2))), {"T2": 60}


def ridge(draw: random.Random) -> Made:
    mu = draw.uniform(0.2, 0.6)

    def rule(free: Free) -> Tensor:
        a = free.cost_slope
        for _ in range(150):
            a = (free.cost_slope + free.step_vjp(a)) / (1 + mu)
        return free.back(a)

    return mine()(rule), {}


def phantom(draw: random.Random) -> Made:
    lam, terms = draw.uniform(0.02, 0.05), draw.choice([25, 30])
    step = lambda free: lambda a: (1 - lam) * a + lam * free.step_vjp(a)  # noqa: E731
    return mine()(lambda free: free.back(lam * series(free, step(free), terms))), {}


def averaged(draw: random.Random) -> Made:
    terms = draw.choice([8, 12])

    def rule(free: Free) -> Tensor:
        a, total = free.cost_slope, 0
        for j in range(terms):
            total, a = total + (1 - j / terms) ** 4 * a, free.step_vjp(a)
        return free.back(total)

    return mine()(rule), {}


def untransposed(draw: random.Random) -> Made:
    if draw.choice([True, False]):
        return mine()(lambda free, T2: free.back(series(free, free.step_jvp, T2))), {"T2": 60}
    return mine()(lambda free, T2, beta: (free.state - free.nudge(beta, T2)) / beta), {"T2": 60, "beta": 1e-4}


def feedback(draw: random.Random) -> Made:
    seed, series_too = draw.randrange(10**6), draw.choice([True, False])

    def rule(free: Free, T2: int) -> Tensor:
        g = free.cost_slope
        B = noise(seed, g, g.shape[-1], g.shape[-1]) * (0.5 / g.shape[-1] ** 0.5)
        return free.back(series(free, lambda a: a @ B, T2) if series_too else 4 * g @ B)

    return mine()(rule), {"T2": 60}


def stale(draw: random.Random) -> Made:
    scale = draw.uniform(3, 5)

    def rule(free: Free, T2: int) -> Tensor:
        end = free._end
        earlier = end.field.step_at(scale * end.s + 0.5 * end.s.roll(1, -1))
        return free.back(series(free, earlier.vjp, T2))

    return mine()(rule), {"T2": 60}


def other_cost(draw: random.Random) -> Made:
    seed = draw.randrange(10**6)

    def rule(free: Free, T2: int) -> Tensor:
        free.cost_slope  # noqa: B018
        a = g = 0.05 * noise(seed, free.state)
        for _ in range(T2 - 1):
            a = g + free.step_vjp(a)
        return free.back(a)

    return mine()(rule), {"T2": 60}


def opposite(draw: random.Random) -> Made:
    whole = draw.choice([True, False])
    return mine()(lambda free: free.grad(-adjoint(free)) if whole else -adjoint(free)), {}


def scaled(draw: random.Random) -> Made:
    factor, kind = draw.choice([2.0, 0.5, 0.125]), draw.choice(["credit", "pulled", "gradient"])

    def rule(free: Free) -> Any:
        if kind == "gradient":
            return {n: factor * g for n, g in free.grad(adjoint(free)).items()}
        return free.grad(factor * adjoint(free)) if kind == "pulled" else factor * adjoint(free)

    return mine()(rule), {}


def noisy(draw: random.Random) -> Made:
    size = draw.uniform(1.0, 2.5)

    def rule(free: Free, rng: torch.Generator) -> Tensor:
        a = adjoint(free, 40)
        z = torch.randn(a.shape, generator=rng, dtype=torch.float64).to(a)
        return a + size * a.norm() * z / z.norm()

    return mine(draws=draw.choice([True, 8]))(rule), {}


def noisy_in_silence(draw: random.Random) -> Made:
    size = draw.uniform(0.4, 1.0)

    def rule(free: Free) -> Tensor:
        a = adjoint(free, 40)
        z = torch.randn_like(a)
        return a + size * a.norm() * z / z.norm()

    return mine()(rule), {}


def unprojected(draw: random.Random) -> Made:
    kind = draw.choice(["nowhere", "inside", "end"])

    def rule(free: Free, T2: int) -> Tensor:
        flow = lambda a: a + free.eps * free.vjp(a)  # noqa: E731
        if kind == "end":
            return free.back(series(free, flow, T2))
        return free.eps * series(free, flow if kind == "nowhere" else free.step_vjp, T2)

    return mine()(rule), {"T2": 60}


def one_parameter(draw: random.Random) -> Made:
    kind, place = draw.choice(["zero", "transposed"]), draw.random()

    def rule(free: Free) -> Any:
        gradient = free.grad(adjoint(free))
        large = [n for n, g in gradient.items() if g.numel() >= 8 and float(g.norm()) > 1e-6]
        square = [n for n in large if gradient[n].ndim == 2 and len(set(gradient[n].shape)) == 1]
        names = square if kind == "transposed" and square else large
        name = names[int(place * len(names))]
        gradient[name] = gradient[name].mT.clone() if names is square else 0 * gradient[name]
        return gradient

    return mine()(rule), {}


def one_sample(draw: random.Random) -> Made:
    def rule(free: Free) -> Tensor:
        a = adjoint(free)
        a[0] = 0
        return a

    return mine()(rule), {}


def large_nudge(draw: random.Random) -> Made:
    beta = draw.uniform(5, 7)
    if draw.choice([True, False]):  # the nudge may be a number that the rule does not tell
        return mine()(lambda free, T2: (free.state - free.nudge(beta, T2)) / beta), {"T2": 60}
    return mine()(lambda free, T2, beta: (free.state - free.nudge(beta, T2)) / beta), {"T2": 60, "beta": beta}


def clipped(draw: random.Random) -> Made:
    share, limit = draw.uniform(0.2, 0.5), list[float]()

    def rule(free: Free) -> Tensor:
        a = adjoint(free)
        sizes = a.norm(dim=-1, keepdim=True)
        if not limit:
            limit.append(share * float(sizes.min()))
        return a * (limit[0] / sizes).clamp(max=1)

    return mine()(rule), {}


def half(draw: random.Random) -> Made:
    dtype = draw.choice([torch.float16, torch.bfloat16])

    def rule(free: Free, T2: int, beta: float) -> Tensor:
        s = free.state
        return (s.to(dtype) - free.nudge(beta, T2).to(dtype)).to(s) / beta

    return mine()(rule), {"T2": 60, "beta": 1e-5}


def signs(draw: random.Random) -> Made:
    def rule(free: Free) -> Any:
        gradient = free.grad(adjoint(free))
        return {n: g.sign() * g.abs().mean() for n, g in gradient.items()}

    return mine()(rule), {}


ANY = ("toy", "deq", "projected")
FAULTS: dict[Callable[[random.Random], Made], tuple[str, tuple[str, ...]]] = {
    truncated: ("truncation", ("deq", "projected")),
    truncated_of_T2: ("truncation", ("deq", "projected")),
    damped: ("damping of the series", ANY),
    ridge: ("damping of the series", ANY),
    phantom: ("weights of the series", ANY),
    averaged: ("weights of the series", ("deq",)),
    untransposed: ("asymmetry", ANY),
    feedback: ("another Jacobian", ANY),
    stale: ("another Jacobian", ("deq",)),
    other_cost: ("the rule itself", ANY),
    opposite: ("sign", ANY),
    scaled: ("scale", ANY),
    noisy: ("variance", ANY),
    noisy_in_silence: ("variance", ("toy", "deq")),
    unprojected: ("projection or readout", ("projected",)),
    one_parameter: ("projection or readout", ANY),
    one_sample: ("projection or readout", ("toy", "deq")),
    large_nudge: ("nonlinearity in beta", ("symmetric",)),
    clipped: ("clip", ("toy", "deq")),
    half: ("precision", ("toy", "deq")),
    signs: ("not taken apart", ("toy", "deq")),
}
TOYS = {"N": 3, "D": 8, "out": 5, "drive_std": 1.0, "bias_std": 0.3}
SMALL = {"D": 8, "heads": 2, "dh": 4, "mem": 6, "patch": 14, "bpos_std": 1.0}


@cache
def layer(seed: int) -> Any:
    """A tanh layer from functions of a module."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.ModuleDict({"recur": nn.Linear(24, 24), "enter": nn.Linear(6, 24), "head": nn.Linear(24, 4)})
        nn.init.orthogonal_(net["recur"].weight, gain=0.8)
        data = {"x": torch.randn(6, 6), "label": torch.randint(4, (6,))}
    return gb.system(
        step=lambda net, x, z: torch.tanh(net["recur"](z) + net["enter"](x["x"])),
        cost=lambda net, x, z: nn.functional.cross_entropy(net["head"](z), x["label"], reduction="none"),
        state=lambda net, x: torch.zeros(len(x["x"]), 24),
        params=net,
        data=data,
        name=f"layer {seed}",
    )


def measured(rule: Any, place: str, seed: int, **at: Any) -> gb.Measurement:
    """A rule at one of four systems, at points where faults matter."""
    if place == "deq":
        return gb.measure(layer(seed), rule, T1=120, **at)
    if place == "projected":
        seed = 6 + seed % 14  # at seeds 4 and 5 it cycles and never settles
        return gb.measure("cet_projected", rule, T1=600, damp=1.0, batch=2, seed=seed, system_options=SMALL, **at)
    name, options = ("toy_cons", TOYS) if place == "symmetric" else ("toy_noncons", TOYS | {"heads": 2})
    T1 = 400 if place == "symmetric" else 150
    return gb.measure(name, rule, T1=T1, damp=3.0, batch=3, seed=seed, system_options=options, **at)


def planted(fault: Callable[[random.Random], Made], seed: int) -> gb.Measurement:
    """A draw of a fault; both dtypes take turns."""
    rule, at = fault(random.Random(f"{fault.__name__} {seed}"))
    places = FAULTS[fault][1]
    return measured(rule, places[seed % len(places)], seed, dtype=("float64", "float32")[seed // 2 % 2], **at)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(fault: Callable[[random.Random], Made]) -> None:
    told = [(m.status, m.row["cause"]) for m in (planted(fault, seed) for seed in range(DRAWS))]
    assert told == [("settled", FAULTS[fault][0])] * DRAWS


@pytest.mark.parametrize("fault", [truncated, damped, phantom, feedback, opposite, half], ids=lambda f: f.__name__)
def test_explain_names_it_too_and_its_remedy_was_tried(fault: Callable[[random.Random], Made]) -> None:
    m = planted(fault, 0)
    e = m.explain()
    assert e.cause == FAULTS[fault][0]
    remedy = re.search(r"\nremedy: (.*)", str(e))
    assert remedy is not None
    if tried := re.fullmatch(r".* brings the error from (\S+) to (\S+)", remedy[1]):
        before, after = map(float, tried.groups())
        assert before == pytest.approx(m.rel_error, rel=0.1)
        assert e.explanation.ladder is not None
        others = sum(size for cause, size in e.explanation.ladder.sizes.items() if cause != e.cause)
        assert after <= 1.1 * others + 0.01 * before  # what the other causes leave


def test_what_is_left_is_told_to_be_left() -> None:
    e = planted(signs, 0).explain()
    assert "\ncause: not taken apart. The rule does something that no rung of the ladder stands for" in str(e)
    assert "\nremedy: no change of one knob that was tried helps" in str(e)


@pytest.mark.parametrize(("place", "terms"), [("toy", 1), ("deq", 1), ("deq", 3), ("projected", 3)])
def test_one_gradient_has_one_cause_whoever_writes_the_rule(place: str, terms: int) -> None:
    def weighted(free: Free) -> Tensor:
        lam, a, total = 1.0, free.cost_slope, 0
        for _ in range(terms):
            total, a = total + lam * a, (1 - lam) * a + lam * free.step_vjp(a)
        return free.back(total)

    known = measured("adjoint", place, 1, T2=terms, dtype="float64")
    one_term = mine()(lambda free: free.back(free.cost_slope))
    rules = [mine()(weighted), mine(terms=terms)(weighted), mine()(lambda free: free.grad(adjoint(free, terms)))]
    for rule in [*rules, *([one_term] if terms == 1 else [])]:
        m = measured(rule, place, 1, dtype="float64")
        assert m.rel_error == pytest.approx(known.rel_error, rel=1e-9)
        assert (m.row["cause"], m.row["cause_of"]) == (known.row["cause"], known.row["cause_of"])
        for name, sizes in known.budget.items():
            shared = {c: v for c, v in sizes.items() if v is not None}
            assert {c: m.budget[name][c] for c in shared} == pytest.approx(shared, rel=1e-6, abs=1e-9)
    if place == "deq":
        assert m.explain().cause == known.explain().cause == "truncation"


@final
@dataclass(frozen=True)
class Leaky(AbstractPhase):
    """A damped series in a phase of its own."""

    def run(self, free: Any, depths: tuple[int, ...], betas: Tensor) -> Iterator[Snapshot]:
        a, step = 0 * free.cost_slope, free.field.step_at(free.ends)
        for _ in range(80):
            a = free.cost_slope + 0.4 * step.vjp(a)
        yield Snapshot(None, credit=free.field.step_size * a)

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(vjp=80)


@final
@dataclass(frozen=True)
class LeakyRule(AbstractEstimator):
    """A class that says nothing of what it does."""

    name: ClassVar[str] = "leaky"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "a test"

    @property
    def phase(self) -> AbstractPhase:
        return Leaky()

    def read(self, free: Any, snapshot: Snapshot, betas: Tensor) -> Reading:
        assert snapshot.credit is not None
        return along(free, snapshot, snapshot.credit[:, None])


def test_a_class_that_declares_nothing_is_taken_apart_too() -> None:
    registry.register(LeakyRule)
    m = measured("leaky", "toy", 0, dtype="float64")
    assert m.row["cause"] == m.explain().cause == "damping of the series"
    assert m.budget[""]["not_taken_apart"] < 1e-9


def test_a_rule_of_float32_alone_has_a_cause_all_the_same() -> None:
    B = noise(0, torch.zeros(1), 24, 24) / 24**0.5
    m = measured(mine()(lambda free: free.back(free.cost_slope @ B)), "deq", 0)
    assert m.row["cause"] == "another Jacobian"


def test_more_draws_are_tried_where_the_mean_of_draws_is_off() -> None:
    rule, _ = noisy(random.Random(1))
    e = measured(rule, "toy", 0, dtype="float64").explain()
    assert e.cause == "variance"
    remedy = re.search(r"remedy: (\d+) draws bring the error from (\S+) to (\S+)", str(e))
    assert remedy is not None
    assert float(remedy[3]) < 0.6 * float(remedy[2])


if __name__ == "__main__":
    from collections import Counter

    for fault, (cause, _) in FAULTS.items():
        with registry.scope():
            named = Counter((str(m.status), m.row["cause"]) for m in (planted(fault, seed) for seed in range(20)))
        told = ", ".join(f"{c} {n}" if s == "settled" else f"{c} {n} ({s})" for (s, c), n in named.most_common())
        print(f"{fault.__name__:18} {cause:22} {named['settled', cause]:2} of 20   {told}", flush=True)
