"""The conformance kit: what ships passes, and every fault is named in the words of its author."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from live import ESTIMATORS, live_field
from torch import Tensor
from written import WRITTEN, hopfield

import gradbench as gb
from gradbench.cli import app
from gradbench.conformance import rule_checks, system_checks
from gradbench.conformance.findings import Conformance
from gradbench.conformance.linear_systems import SkewedLinear
from gradbench.dynamics.trajectory import Trajectory
from gradbench.errors import UserError
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Count, Exact, Reading, Snapshot, along
from gradbench.estimators.ep import Ep
from gradbench.estimators.phases.adjoint import AdjointPhase
from gradbench.planning import registry
from gradbench.systems.base import AbstractSystem
from gradbench.systems.toy_cons import ToyCons
from gradbench.systems.toy_noncons import ToyNoncons
from gradbench.vocabulary.exit import Exit

SMALL: dict[str, Any] = {"N": 2, "D": 4, "out": 3, "drive_std": 1.0, "bias_std": 0.3}
Arguments = Any  # theta, x, context, s, knobs


class Transposed(ToyNoncons):  # type: ignore[misc]
    def jvp(self, *arguments: Arguments) -> Tensor:
        return super().vjp(*arguments)

    def vjp(self, *arguments: Arguments) -> Tensor:
        return super().jvp(*arguments)


class WrongVjp(ToyNoncons):  # type: ignore[misc]
    def vjp(self, *arguments: Arguments) -> Tensor:
        return 2 * super().vjp(*arguments)


class Backwards(ToyCons):  # type: ignore[misc]
    def energy(self, *arguments: Arguments) -> Tensor:
        return -super().energy(*arguments)


class Unfitting(ToyCons):  # type: ignore[misc]
    def force(self, *arguments: Arguments) -> Tensor:
        return super().force(*arguments) + 1e-4 * arguments[3].square()


class Remembering(ToyCons):  # type: ignore[misc]
    kept: ClassVar[list[Tensor]] = []

    def force(self, *arguments: Arguments) -> Tensor:
        self.kept.append(arguments[3])
        return super().force(*arguments) + 1e-9 * len(self.kept)


class Random(ToyCons):  # type: ignore[misc]
    def cost(self, *arguments: Arguments) -> Tensor:
        return super().cost(*arguments) + torch.rand(())


class Coupling(ToyCons):  # type: ignore[misc]
    def force(self, *arguments: Arguments) -> Tensor:
        return super().force(*arguments) - 1e-6 * arguments[3].mean(-2, keepdim=True)


class CoupledRows(ToyCons):  # type: ignore[misc]
    def cost(self, *arguments: Arguments) -> Tensor:
        costs = super().cost(*arguments)
        return costs if costs.ndim == 1 else costs + 1e-6 * costs.mean()


class Divided(ToyCons):  # type: ignore[misc]
    mean_cost = False


class Writing(ToyCons):  # type: ignore[misc]
    def force(self, *arguments: Arguments) -> Tensor:
        return super().force(*arguments[:3], arguments[3].mul_(1 - 1e-9), arguments[4])


class WritingData(ToyCons):  # type: ignore[misc]
    def cost(self, theta: Any, x: Any, s: Tensor) -> Tensor:
        x["target"] += 1e-9
        return super().cost(theta, x, s)


class RandomStart(ToyCons):  # type: ignore[misc]
    def init_state(self, theta: Any, x: Any) -> Tensor:
        return torch.randn_like(x["x0"].flatten(-2))


class GraphStart(ToyCons):  # type: ignore[misc]
    def init_state(self, theta: Any, x: Any) -> Tensor:
        return (x["x0"] + theta["b"]).flatten(-2)


class PulledTwice(ToyCons):  # type: ignore[misc]
    def pull(self, *arguments: Arguments) -> Any:
        return {n: 2 * g if n == "b" else g for n, g in super().pull(*arguments).items()}


class SlopeOfSum(ToyCons):  # type: ignore[misc]
    def cost_slope(self, theta: Any, x: Any, s: Tensor) -> Tensor:
        return super().cost_slope(theta, x, s) * s.shape[-2]


class Raising(ToyCons):  # type: ignore[misc]
    def cost(self, theta: Any, x: Any, s: Tensor) -> Tensor:
        return float(s.mean().sign().item()) * super().cost(theta, x, s)


class Shapeless(ToyCons):  # type: ignore[misc]
    def cost(self, theta: Any, x: Any, s: Tensor) -> Tensor:
        return super().cost(theta, x, s).sum()


SYSTEM_FAULTS: list[tuple[type[AbstractSystem], str, str]] = [
    (Transposed, "J v is the slope of the force", "the Jacobian is transposed. Exchange the two"),
    (WrongVjp, "closed forms equal autograd", r"the closed form (vjp|backward) is 2 times what it should be"),
    (WrongVjp, "J v and J\\^T a are transposes", "jvp and vjp are not transposes"),
    (Backwards, "the force is minus the gradient of the energy", "has the opposite sign: F = -dE/ds"),
    (Unfitting, "the force is the slope of the energy", "is not minus the slope of the energy"),
    (Remembering, "equal arguments give equal results", "force with equal arguments differ: something is kept"),
    (Random, "equal arguments give equal results", "cost with equal arguments differ: random numbers are drawn"),
    (Coupling, "examples do not see each other", "force: the result of an example changes with the state of another"),
    (CoupledRows, "rows are independent", r"cost of several rows is not that of each row"),
    (Divided, "an example does not see the size", "cost is divided by the number of examples, b = 3.*mean_cost = True"),
    (Writing, "no function writes to its arguments", r"force writes to the state: write to a copy"),
    (WritingData, "no function writes to its arguments", "cost writes to the data 'target'"),
    (RandomStart, "the start is the same twice", "s_0 is random. Draw it in `sample`"),
    (GraphStart, "the start is detached", r"end it with .detach\(\)"),
    (PulledTwice, "dF/dtheta is the slope of the force", "d<a, F>/db is not what central differences give"),
    (SlopeOfSum, "dC/ds is the slope of the cost", "dC/ds is multiplied by the number of examples, b = 3"),
    (Raising, "several cells at once", "raised RuntimeError: .*vmap.*avoid .item()"),
    (Shapeless, "shapes and dtypes", r"C has shape \(\), expected \(3,\)"),
]


@cache
def tried_system(cls: type[AbstractSystem]) -> Conformance:
    return gb.conform(cls(**SMALL), batch=3)


def assert_named(tried: Conformance, name: str, advice: str) -> None:
    assert not tried.passed
    assert tried.code == Exit.CHECK_FAILED
    failures = [f for f in tried.failures if re.search(name, f.name)]
    assert failures, [(f.name, f.advice) for f in tried.failures]
    assert any(re.search(advice, f.advice) for f in failures), failures


@pytest.mark.parametrize(("cls", "name", "advice"), SYSTEM_FAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_fault_of_a_system_is_named(cls: type[AbstractSystem], name: str, advice: str) -> None:
    assert_named(tried_system(cls), name, advice)


def test_a_fault_of_a_system_is_the_only_one_that_is_told() -> None:
    assert [f.name for f in tried_system(Divided).failures] == ["an example does not see the size of its batch"]
    assert [f.name for f in tried_system(GraphStart).failures] == ["the start is detached from the parameters"]


@dataclass(frozen=True)
class Implicit(AbstractEstimator):
    """The adjoint, as a rule of somebody else."""

    name: ClassVar[str] = "implicit"
    uses: ClassVar[frozenset[str]] = frozenset({"T2"})
    source: ClassVar[str] = "a test"
    exact: ClassVar[Exact | None] = Exact.FIXED_POINT

    @property
    def claim(self) -> Claim:
        return Claim(self.exact)

    @property
    def phase(self) -> AbstractPhase:
        return AdjointPhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Tensor) -> Reading:
        assert snapshot.credit is not None
        return along(free, snapshot, self.changed(free, snapshot.credit)[:, None])

    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit


class Flipped(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return -credit


class Silent(Flipped):
    exact = None

    def terms(self, T2: int | None) -> int | None:
        return None


class NoEps(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit / free.field.step_size


class NoEpsOfTerms(NoEps):
    exact = None


class ByBatch(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit / credit.shape[-2]


class Centred(Silent):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit - 0.1 * credit.mean(-2, keepdim=True)


class DirectTwice(Implicit):
    def read(self, free: Trajectory, snapshot: Snapshot, betas: Tensor) -> Reading:
        read = super().read(free, snapshot, betas)
        twice = {n: g + free.cost_grads[n][:, None] for n, g in read.gradient.items()}
        return Reading(read.depth, twice, read.credit, read.evidence)


class DirectMissing(Implicit):
    def read(self, free: Trajectory, snapshot: Snapshot, betas: Tensor) -> Reading:
        read = super().read(free, snapshot, betas)
        none = {n: g - free.cost_grads[n][:, None] for n, g in read.gradient.items()}
        return Reading(read.depth, none, read.credit, read.evidence)


@dataclass(frozen=True)
class ForwardPhase(AbstractPhase):
    """a <- (1 + eps J) a: the adjoint with J in place of its transpose."""

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Tensor) -> Iterator[Snapshot]:
        a, eps, linear = free.cost_slope, free.field.step_size, free.field.at(free.ends)
        total = torch.zeros_like(a)
        for term in range(1, max(depths) + 1):
            total, a = total + a, a + eps * linear.jvp(a)
            if term in depths:
                yield Snapshot(term, credit=eps * total)

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(jvp=depth or 0)


class Forward(Implicit):
    @property
    def phase(self) -> AbstractPhase:
        return ForwardPhase()


class Keeping(Implicit):
    last: ClassVar[list[Tensor]] = []

    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        self.last.append(credit)
        return credit * (1 + 1e-9 * len(self.last))


class Drawing(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit * (1 + 1e-6 * torch.rand(()))


class Overwriting(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        free.ends.mul_(1 - 1e-9)
        return credit


class FirstRow(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit[:1].expand_as(credit)


class FirstCell(Implicit):
    def changed(self, free: Trajectory, credit: Tensor) -> Tensor:
        return credit if credit.ndim == 3 else credit[:, :1].expand_as(credit)


class Steep(Ep):  # type: ignore[misc]
    @property
    def claim(self) -> Claim:
        return Claim(Exact.SYMMETRIC, order=1)


class OneTerm(Implicit):
    def terms(self, T2: int | None) -> int | None:
        return 1


class NoEnergy(Ep):  # type: ignore[misc]
    @property
    def claim(self) -> Claim:
        return Claim(Exact.SYMMETRIC, order=2)


class Picky(Implicit):
    """It applies to no system that it could be tried on."""

    def skip(self, system: type[AbstractSystem]) -> str | None:
        return "it needs a system of its own"


class Few(Implicit):
    def read(self, free: Trajectory, snapshot: Snapshot, betas: Tensor) -> Reading:
        read = super().read(free, snapshot, betas)
        return Reading(read.depth, {"W": read.gradient["W"]}, read.credit, read.evidence)


RULE_FAULTS: list[tuple[Callable[[], AbstractEstimator], str, str]] = [
    (Flipped, "exact at rest, on a linear system, not symmetric", "the credit has the opposite sign"),
    (Silent, "points downhill", "points uphill, cosine -1.00. the credit has the opposite sign"),
    (NoEps, "exact at rest, on a linear system, symmetric", "the credit lacks the factor eps = 0.2"),
    (NoEpsOfTerms, "the credit is the adjoint of as many terms", "the credit lacks the factor eps = 0.2"),
    (ByBatch, "exact at rest", "the credit is divided by the number of examples, b = 3"),
    (ByBatch, "examples add up", "the credit is divided by the number of examples, b = 3"),
    (Centred, "examples add up", "examples are coupled"),
    (DirectTwice, "exact at rest", "dC/dtheta is counted twice"),
    (DirectMissing, "exact at rest", "dC/dtheta is missing: add it once"),
    (Forward, "exact at rest, on a linear system, not symmetric", "the Jacobian is transposed: J stands where J\\^T"),
    (Keeping, "the same answer twice", "something is kept between calls"),
    (Drawing, "the same answer twice", "it draws from the global generator"),
    (Overwriting, "the rule writes to nothing", "the rule writes to the end states"),
    (FirstRow, "several T1 and beta at once", "is not that of each by itself"),
    (FirstCell, "several cells at once", "is not that of each"),
    (OneTerm, "as many terms as it says", "it says 1 terms"),
    (Few, "the shapes of the parameters", "no gradient of h; no gradient of R"),
]


@cache
def linear_places() -> tuple[rule_checks.Place, ...]:
    return tuple(rule_checks.places(3, 0)[:3])


@cache
def tried_rule(make: Callable[[], AbstractEstimator]) -> Conformance:
    return Conformance("mine", "estimator", tuple(rule_checks.rule_findings(make(), linear_places())))


@pytest.mark.parametrize(("make", "name", "advice"), RULE_FAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_fault_of_a_rule_is_named(make: Callable[[], AbstractEstimator], name: str, advice: str) -> None:
    assert_named(tried_rule(make), name, advice)


def test_a_wrong_order_and_a_need_that_is_not_said_are_named() -> None:
    cons, noncons = rule_checks.places(2, 0)[3:]
    wrong = rule_checks.order(Steep(), [cons])
    assert wrong.number > wrong.bound  # type: ignore[operator]
    assert re.match(r"the error falls as beta\^(2.0|1.9)\d, the claim is 1", wrong.advice)
    (finding, *_) = rule_checks.rule_findings(NoEnergy(readout="energy_contrast"), [noncons])
    assert finding.failed
    assert "Claim(energy_for=...)" in finding.advice


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_rule_conforms_on_systems_whose_gradient_is_known(name: str) -> None:
    rule = registry.known_estimators()[name]
    if not all(rule().skip(type(place.field.system)) for place in linear_places()):
        assert tried_rule(rule).passed
        return
    fitting = next(system for system, cls in registry.known_systems().items() if not rule().skip(cls))
    place = rule_checks.Place(fitting, live_field(fitting, batch=3), steps=600, deep=800)
    assert Conformance(name, "estimator", tuple(rule_checks.rule_findings(rule(), [place]))).passed


def test_the_linear_systems_conform_and_their_answer_is_backpropagation() -> None:
    assert gb.conform(SkewedLinear(halved=True), batch=3).passed
    for place in linear_places():
        assert rule_checks.gap(place.known, place.reference(place.settled)) < 1e-7


def test_a_rule_that_claims_nothing_gets_its_cosine() -> None:
    told = [f for f in tried_rule(Silent).findings if f.result == "told"]
    assert [f.name.partition(",")[0] for f in told] == ["cosine to the gradient"] * 3
    assert all(-1 <= f.number <= 1 for f in told)
    assert tried_rule(Implicit).passed


def deq(**more: Any) -> Any:
    W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) / 4
    return gb.system(
        step=lambda net, x, z: torch.tanh(z @ net["W"] + x["x"]),
        state=lambda net, x: torch.zeros(len(x["x"]), 4),
        params={"W": W},
        data={"x": torch.linspace(-1, 1, 12).reshape(3, 4)},
        name="a deq",
        **more,
    )


def test_a_system_from_functions_conforms_with_the_examples_that_it_has() -> None:
    tried = gb.conform(deq(cost=lambda net, x, z: z.square().sum(-1)), batch=8)
    assert tried.passed, tried
    assert gb.conform(deq(cost=lambda net, x, z: z.square().sum(-1).mean(), cost_of="mean")).passed
    assert gb.conform(gb.system(**hopfield(), name="my hopfield"), batch=3).passed


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_a_rule_is_tried_on_a_system_of_the_caller(function: Callable[[], dict[str, Any]]) -> None:
    mine = gb.system(**function(), name="mine", defaults={"T1": 50})
    for rule in ("adjoint", "aep"):
        tried = gb.conform(rule, on=mine, batch=2)
        assert tried.passed, tried
        assert any(finding.name.endswith("on mine") for finding in tried.findings)


def test_a_rule_that_is_written_for_a_state_of_several_tensors_is_tried_on_a_system_that_has_one() -> None:
    @gb.estimator(source="the adjoint series", terms="T2", exact="fixed point")
    def series(free: Any, T2: int) -> Any:
        total = a = free.cost_slope
        for _ in range(T2 - 1):
            a = free.step_vjp(a)
            total = {name: total[name] + a[name] for name in total}
        return free.back(total)

    @gb.estimator(source="a false claim", terms="T2")
    def damped(free: Any, T2: int) -> Any:
        total = a = free.cost_slope
        for _ in range(T2 - 1):
            b = free.step_vjp(a)
            a = {name: 0.5 * (a[name] + b[name]) for name in a}
            total = {name: total[name] + a[name] for name in total}
        return free.back({name: 0.5 * total[name] for name in total})

    mine = gb.system(**hopfield(), name="mine")
    assert not gb.conform(series).passed
    assert "on=SYSTEM" in gb.conform(series).findings[-1].advice
    claim = next(f for f in gb.conform(series, on=mine).findings if "as many terms as it says" in f.name)
    assert claim.result == "pass"
    claim = next(f for f in gb.conform(damped, on=mine).findings if "as many terms as it says" in f.name)
    assert claim.result == "fail"
    assert "it says 3 terms, and is not the adjoint of 3 terms on mine" in claim.advice
    assert gb.conform(series, on=mine).passed
    with pytest.raises(UserError, match=r"on: after 200 steps 'restless' still moves by \S+ a step"):
        gb.conform(series, on=gb.system(**hopfield() | {"eps": 2.5}, name="restless"))
    for item, on in ((mine, mine), (series, series)):
        with pytest.raises(UserError, match=r"on: a rule is tried on a system; expected conform\(RULE, on=SYSTEM\)"):
            gb.conform(item, on=on)


def test_names_classes_and_items_are_taken_and_a_wrong_call_is_told() -> None:
    assert gb.conform({"name": "toy_cons", "N": 2, "D": 4}).passed
    for item, message in (
        ("toy_con", "'toy_con' is neither a system nor an estimator. Did you mean 'toy_cons'"),
        ("ep nudge=up", "nudge = 'up' is not a choice"),
        (AbstractEstimator, "AbstractEstimator does not define phase, read"),
        (3, "got an int, expected a system or an estimator"),
        (dict, "expected a system or an estimator"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            gb.conform(item)
    with pytest.raises(UserError, match="batch = 0: expected a whole number, 1 or more"):
        gb.conform("ep", batch=0)


def test_nothing_could_be_tried_is_neither_passed_nor_failed() -> None:
    tried = gb.conform(Picky)
    assert (tried.passed, tried.code) == (False, Exit.NOTHING)
    assert "it needs a system of its own" in repr(tried)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    arguments = ["conform", "ep nudge=positive", "--batch", "2", *(["--json"] if as_json else [])]
    assert app(arguments, standalone_mode=False) == Exit.OK
    out = capsys.readouterr().out
    if as_json:
        told = json.loads(out)
        assert told["passed"]
        assert {"name", "result", "number", "bound", "advice"} == set(told["findings"][0])
    else:
        assert max(map(len, out.splitlines())) <= 60
        assert "estimator ep: passed" in out


@pytest.mark.parametrize(("cls", "code"), [("RandomStart", 1), ("Picky", 4)])
def test_the_command_fails_and_says_so(cls: str, code: int) -> None:
    item = type("Item", ({"RandomStart": RandomStart, "Picky": Picky}[cls],), {"name": "mine"})
    with registry.scope():
        registry.register(item)
        assert app(["conform", "mine"], standalone_mode=False) == code


def test_a_rule_that_cannot_say_what_it_claims_is_told() -> None:
    class Unclear(Implicit):
        @property
        def claim(self) -> Claim:
            raise AttributeError("no claim")

    (finding,) = gb.conform(Unclear).findings
    assert (finding.result, finding.advice) == ("fail", "raised AttributeError: no claim")


def test_the_tables_of_checks_hold_everything_that_is_defined() -> None:
    names = [*system_checks.NEEDED, *system_checks.FURTHER]
    assert len(names) == len(set(names)) == 24
