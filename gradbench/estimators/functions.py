"""Gradient rules that are a function: the decorator that makes an estimator of one, and what it may ask.

The function sees one T1, one beta and one cell at a time, in the state that the author of the system wrote. What it
returns is checked, so that a wrong shape or name is a message and never a number.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from gradbench.data.fingerprints import fingerprint, undigested
from gradbench.data.given import article
from gradbench.data.streams import Streams
from gradbench.errors import RuleFaultError, UserError, near_miss, public
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Claim, Count, Exact, Reading, Snapshot, along
from gradbench.vocabulary.coordinates import COORDINATES

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.dynamics.field import Field
    from gradbench.dynamics.linear import Linear
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import Params

AXES = ("T2", "beta")  # coordinates that a rule may read
Scalar = bool | int | float | str
DRAWS = 16  # of a rule that says that it draws, and not how often
_NUMBERS = ("n_force", "n_jvp", "n_vjp")  # evidence of every function: what was evaluated for it
_OF_DRAWS = ("draws", "draw_spread")  # and of every function that is called for several draws


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a rule returns that has evidence to tell, or that names what it returns.

    `credit` is a state a, of which the estimate is <a, dF/dtheta(s*)> + dC/dtheta. `gradient` has a tensor for every
    parameter, dC/dtheta included. With both the gradient is the estimate, and the credit is read block by block.
    `evidence` are numbers by name; each is a column of the table `cells`.
    """

    credit: Any = None
    gradient: Mapping[str, Tensor] | None = None
    evidence: Mapping[str, float | Tensor] = field(default_factory=dict)


class Free:
    """A free state s* and the derivatives at it, as the function of a rule asks for them.

    States go in and out as the author of the system wrote them: a tensor (b, ...), or a dict or tuple of such tensors.
    They belong to the caller, who may write into them.
    """

    def __init__(self, end: _End, depths: tuple[int, ...]) -> None:
        self.depths = depths  # T2 asked for, ascending; none where the rule does not use T2
        self._end = end
        self._nudged: dict[float, tuple[int, Tensor]] = {}  # steps and state, by beta
        self._largest: Tensor | None = None  # |s| of the largest nudged state
        self._count = Count()
        self._projected = False  # whether the force behind Pi' is counted

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"free has no {name!r}{near_miss(name, [n for n in dir(type(self)) if n[0] != '_'])}")

    @property
    def state(self) -> Any:
        """s*."""
        return self._end.shown(self._end.s)

    @property
    def cost_slope(self) -> Any:
        """dC/ds at s*, summed over nothing: every example has its own."""
        return self._end.shown(self._end.cost_slope)

    @property
    def eps(self) -> Tensor:
        """The step size, a tensor without axes."""
        return self._end.field.step_size.clone()

    def back(self, a: Any) -> Any:
        """eps Pi'^T a: the credit that one step of the relaxation hands to F."""
        end = self._end
        self._project()
        return end.shown(end.field.step_size * end.field.project_vjp(end.ahead, end.flat(a, "back")))

    def jvp(self, v: Any) -> Any:
        """J v, with J = dF/ds at s*."""
        self._count += Count(jvp=1)
        return self._end.shown(self._end.linear.jvp(self._end.flat(v, "jvp")))

    def vjp(self, a: Any) -> Any:
        """J^T a."""
        self._count += Count(vjp=1)
        return self._end.shown(self._end.linear.vjp(self._end.flat(a, "vjp")))

    def step_jvp(self, v: Any) -> Any:
        """J_G v, with J_G = Pi' (1 + eps J) of the map s <- Pi(s + eps F(s)) at s*."""
        self._count += Count(jvp=1)
        self._project()
        return self._end.shown(self._end.step.jvp(self._end.flat(v, "step_jvp")))

    def step_vjp(self, a: Any) -> Any:
        """J_G^T a."""
        self._count += Count(vjp=1)
        self._project()
        return self._end.shown(self._end.step.vjp(self._end.flat(a, "step_vjp")))

    def grad(self, a: Any) -> Params:
        """<a, dF/dtheta(s*)> + dC/dtheta, by parameter: what a rule that returns the credit a estimates."""
        return self._end.grad(self._end.flat(a, "grad"))

    def nudge(self, beta: float, T2: int) -> Any:
        """The state after T2 steps s <- Pi(s + eps (F(s) - beta dC/ds)) from s*; a negative beta nudges the other way.

        A call with the same beta and a larger T2 goes on from where the last one stopped.
        """
        if isinstance(T2, bool) or not isinstance(T2, int) or T2 < 0:
            raise UserError(f"nudge: T2 = {T2!r} is no number of steps")
        end, beta = self._end, float(beta)
        if not (math.isfinite(beta) and beta):
            raise UserError(f"nudge: beta = {beta:g}, expected a finite number that is not 0")
        taken, s = self._nudged.get(beta, (0, end.s))
        if taken > T2:
            taken, s = 0, end.s
        for _ in range(T2 - taken):
            s = end.nudged(s, beta)
            self._largest = s.norm() if self._largest is None else self._largest.maximum(s.norm())
        self._count += Count(force=T2 - taken)
        self._nudged[beta] = T2, s
        return end.shown(s)

    def _project(self) -> None:
        """Count the force behind Pi', once."""
        if self._end.field.system.projects and not self._projected:
            self._projected = True
            self._count += Count(force=1)

    def _told(self) -> dict[str, float]:
        """The evidence of what was asked for so far."""
        told: dict[str, float] = dict(zip(_NUMBERS, (self._count.force, self._count.jvp, self._count.vjp), strict=True))
        return told if self._largest is None else told | {"nudge_norm": float(self._largest)}


class _End:
    """One end state of one cell, and what all readings of it share."""

    def __init__(self, rule: str, field: Field, s: Float[Tensor, "b n"]) -> None:
        self.rule, self.field, self.s = rule, field, s

    @cached_property
    def cost_slope(self) -> Float[Tensor, "b n"]:
        return self.field.cost_slope(self.s)

    @cached_property
    def linear(self) -> Linear:
        return self.field.at(self.s)

    @cached_property
    def step(self) -> Linear:
        return self.field.step_at(self.s)

    @cached_property
    def ahead(self) -> Float[Tensor, "b n"]:
        """s* + eps F(s*), at which a projection is linearised."""
        import torch

        if not self.field.system.projects:
            return self.s
        with torch.no_grad():
            return self.field.ahead(self.s)

    @cached_property
    def direct(self) -> Params:
        """dC/dtheta."""
        return self.field.cost_grads(self.s)

    def grad(self, a: Float[Tensor, "b n"]) -> Params:
        pulled = self.field.pull(self.s, a)
        return {name: (pulled[name] + direct).detach() for name, direct in self.direct.items()}

    def nudged(self, s: Float[Tensor, "b n"], beta: float) -> Float[Tensor, "b n"]:
        import torch

        with torch.no_grad():
            push = torch.sub(self.field.force(s), self.field.cost_slope(s), alpha=beta)
            return self.field.project(torch.addcmul(s, self.field.step_size, push))

    def shown(self, s: Float[Tensor, "b n"]) -> Any:
        """A state as its author wrote it, in memory that is nobody else's."""
        return self.field.system.shown(s.detach().clone())

    def flat(self, state: Any, what: str) -> Float[Tensor, "b n"]:
        """A state of the author as a flat one, a copy. Raises RuleFaultError for anything else; `what` names it."""
        like = self.field.system.shown(self.s)
        if wrong := _unlike(state, like):
            raise RuleFaultError(f"{self.rule}: {what} got {wrong}, expected {_described(like)}")
        return self.field.system.flat(state).detach().to(self.s, copy=True)

    def gradient(self, given: Mapping[Any, Any]) -> Params:
        """A gradient with a tensor for every parameter. Raises RuleFaultError for anything else."""
        import torch

        theta, gradient = self.field.theta, {}
        for name in given:
            if name not in theta:
                raise RuleFaultError(
                    f"{self.rule}: the gradient of {name!r}: no such parameter{near_miss(name, theta)}"
                )
        if missing := [name for name in theta if name not in given]:
            raise RuleFaultError(f"{self.rule}: the gradient has nothing for {', '.join(missing)}")
        for name, value in given.items():
            place, shape = f"{self.rule}: the gradient of {name!r}", tuple(theta[name].shape)
            if not isinstance(value, torch.Tensor):
                raise RuleFaultError(f"{place} is {article(value)}, expected a tensor of shape {shape}")
            if tuple(value.shape) != shape:
                raise RuleFaultError(f"{place} has shape {tuple(value.shape)}, expected {shape}")
            if value.is_complex():
                raise RuleFaultError(f"{place} has complex numbers, expected real ones")
            gradient[name] = value.detach().to(theta[name], copy=True)
        return {name: gradient[name] for name in theta}


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a function returned for one T1, beta and cell."""

    end: _End
    credit: Float[Tensor, "b n"] | None
    gradient: Params | None  # None: that of the credit
    evidence: dict[str, float]

    @classmethod
    def of(cls, given: Any, free: Free) -> _Answer:
        """What was returned, checked. Raises RuleFaultError where it is neither a credit nor a gradient."""
        end = free._end
        estimate = given if isinstance(given, Estimate) else _sorted_out(given, end)
        if estimate.credit is None and estimate.gradient is None:
            raise RuleFaultError(f"{end.rule}: the estimate has neither a credit nor a gradient")
        if estimate.gradient is not None and not isinstance(estimate.gradient, Mapping):
            raise RuleFaultError(
                f"{end.rule}: the gradient is {article(estimate.gradient)}, expected a dict by parameter"
            )
        return cls(
            end,
            None if estimate.credit is None else end.flat(estimate.credit, "the credit"),
            None if estimate.gradient is None else end.gradient(estimate.gradient),
            _numbers(estimate.evidence, end.rule) | free._told(),
        )

    @property
    def estimate(self) -> Params:
        """The gradient, that of the credit included."""
        if self.gradient is not None:
            return self.gradient
        assert self.credit is not None
        return self.end.grad(self.credit)


class _Mean:
    """The mean of answers as they come, and how far the gradients are spread around theirs."""

    def __init__(self) -> None:
        self._answers = 0
        self._end: _End | None = None
        self._credit: Tensor | None = None
        self._gradient_given = False  # whether there are gradients beside those of the credits
        self._gradient: Params = {}
        self._evidence: dict[str, float] = {}
        self._squares = 0.0  # sum of |g - mean|^2

    def add(self, answer: _Answer) -> None:
        """One more answer. Welford 1962."""
        first, self._answers, self._end = not self._answers, self._answers + 1, answer.end
        share = 1 / self._answers
        if first:
            self._credit = answer.credit
        elif self._credit is not None:
            self._credit = None if answer.credit is None else self._credit + share * (answer.credit - self._credit)
        self._gradient_given |= answer.gradient is not None
        gradient = answer.estimate
        before = gradient if first else self._gradient
        self._gradient = {n: before[n] + share * (g - before[n]) for n, g in gradient.items()}
        self._squares += sum(float(((g - before[n]) * (g - self._gradient[n])).sum()) for n, g in gradient.items())
        for name, value in answer.evidence.items():
            told = self._evidence.get(name, 0.0)
            self._evidence[name] = told + (value if name in _NUMBERS else (value - told) * share)

    @property
    def answer(self) -> _Answer:
        """What stands for all of them: evaluations are summed, all else is a mean."""
        assert self._end is not None
        spread = math.sqrt(self._squares / (self._answers - 1))
        evidence = self._evidence | {"draws": float(self._answers), "draw_spread": spread}
        gradient = self._gradient if self._gradient_given or self._credit is None else None
        return _Answer(self._end, self._credit, gradient, evidence)


def _sorted_out(given: Any, end: _End) -> Estimate:
    """A dict by its keys as a credit or a gradient; anything else is a credit."""
    import torch

    like = end.field.system.shown(end.s)
    if not isinstance(given, Mapping):
        if not isinstance(given, torch.Tensor | list | tuple):
            wanted = f"a credit ({_described(like)}), a dict by parameter or a gradbench.Estimate"
            raise RuleFaultError(f"{end.rule}: returned {article(given)}, expected {wanted}")
        return Estimate(credit=given)
    if not isinstance(like, Mapping):
        return Estimate(gradient=given)
    names, blocks, keys = set(end.field.theta), set(like), set(given)
    if names == blocks:
        raise RuleFaultError(
            f"{end.rule}: the state and the parameters have the same names: say which of them is returned by "
            "gradbench.Estimate(credit=...) or gradbench.Estimate(gradient=...)"
        )
    if keys == blocks:
        return Estimate(credit=given)
    if keys == names or not keys & blocks:
        return Estimate(gradient=given)
    if not keys & names:
        return Estimate(credit=given)
    told = f"the state has {', '.join(map(str, like))}, the parameters are {', '.join(end.field.theta)}"
    raise RuleFaultError(f"{end.rule}: a dict of {', '.join(map(str, given))} is neither credit nor gradient: {told}")


def _numbers(evidence: Any, rule: str) -> dict[str, float]:
    """Evidence as floats by name. Raises RuleFaultError for anything else."""
    if not isinstance(evidence, Mapping):
        raise RuleFaultError(f"{rule}: the evidence is {article(evidence)}, expected numbers by name")
    numbers = {}
    for name, value in evidence.items():
        if not isinstance(name, str) or not name.isidentifier() or name in (*_NUMBERS, *_OF_DRAWS):
            raise RuleFaultError(f"{rule}: evidence {name!r}: a column cannot have this name")
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise RuleFaultError(f"{rule}: evidence {name!r} is {article(value)}, expected a number") from None
    return numbers


def _unlike(state: Any, like: Any) -> str | None:
    """What `state` is, in words, where it has not the form of `like`, a state as its author wrote it."""
    import torch

    if isinstance(like, torch.Tensor):
        if not isinstance(state, torch.Tensor):
            return article(state)
        if tuple(state.shape) != tuple(like.shape):
            return f"shape {tuple(state.shape)}"
        return "complex numbers" if state.is_complex() and not like.is_complex() else None
    if isinstance(like, Mapping):
        if not isinstance(state, Mapping):
            return article(state)
        if set(state) != set(like):
            return f"a dict of {', '.join(map(str, state))}"
        parts = {name: (state[name], value) for name, value in like.items()}
    else:
        if not isinstance(state, list | tuple) or len(state) != len(like):
            return f"{article(state)} of {len(state)} entries" if isinstance(state, list | tuple) else article(state)
        parts = dict(enumerate(zip(state, like, strict=True)))
    return next((f"{wrong} at {name!r}" for name, pair in parts.items() if (wrong := _unlike(*pair))), None)


def _described(state: Any) -> str:
    """A state as its author wrote it, in words."""
    if isinstance(state, Mapping):
        return f"a dict of {', '.join(f'{name} {tuple(value.shape)}' for name, value in state.items())}"
    if isinstance(state, list | tuple):
        return f"a {type(state).__name__} of {', '.join(str(tuple(value.shape)) for value in state)}"
    return f"a tensor of shape {tuple(state.shape)}"


@dataclass(frozen=True, eq=False)
class Answers(Snapshot):
    """What a function returned at one depth, for every T1, beta and cell."""

    credits: Float[Tensor, "i j *c b n"] | None = None  # None: some have no credit
    gradients: Params | None = None  # (i, j, *c, ...); None: those of the credits


@final
@dataclass(frozen=True)
class FunctionPhase(AbstractPhase):
    """Calls of the function of a rule, one for every T1, beta, cell and draw.

    It is not called for the cells of a stack whose free phase left every float.
    """

    rule: AbstractFunctionRule
    draws: range = range(0)  # numbers of the draws; none: those of the rule

    hints = True
    recordable = False

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        lead = free.ends.shape[:-2]  # T1, and the cells of a stack
        steps: tuple[int | None, ...] = depths or (None,)
        answers: list[dict[int | None, _Answer]] = []
        columns = betas.double().tolist() or [None]
        finite = free.ends.flatten(-2).isfinite().all(-1).reshape(lead[0], -1).tolist()
        for row in range(lead[0]):
            ends = [self._end(free, row, c) for c in range(math.prod(lead[1:]))]
            for column in columns:
                for c, end in enumerate(ends):
                    beta = column[c] if isinstance(column, list) else column
                    if finite[row][c]:
                        answers.append(self._mean(end, depths, beta, free.field.cell_seeds[c]))
                    else:
                        answers.append(dict.fromkeys(steps, _Answer(end, end.s * math.nan, None, {})))
        for depth in steps:
            yield _stacked([by_depth[depth] for by_depth in answers], depth, (lead[0], len(columns), *lead[1:]))

    def drawn(self, draws: range) -> AbstractPhase:
        return dataclasses.replace(self, draws=draws) if self.rule.draws else self

    def _mean(self, end: _End, depths: tuple[int, ...], beta: float | None, seed: int) -> dict[int | None, _Answer]:
        """The mean of the answers to all draws, by depth."""
        draws = self.draws or range(max(1, self.rule.draws))
        if len(draws) == 1:
            return self.rule.answers(end, depths, beta, seed, draws[0])
        means: dict[int | None, _Mean] = {}
        for draw in draws:
            for depth, answer in self.rule.answers(end, depths, beta, seed, draw).items():
                means.setdefault(depth, _Mean()).add(answer)
        return {depth: mean.answer for depth, mean in means.items()}

    def _end(self, free: Trajectory, row: int, c: int) -> _End:
        s = free.ends[row]
        return _End(self.rule.name, free.field.cell(c), s[c] if s.ndim > 2 else s)

    def terms(self, depth: int | None) -> int | None:
        return depth if self.rule.series == "T2" else self.rule.series

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(partial=True)


def _stacked(answers: list[_Answer], depth: int | None, lead: tuple[int, ...]) -> Answers:
    """The answers at one depth with axes in front. A credit alone stands for its gradient, unless others have one."""
    import torch

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).unflatten(0, lead)

    like = answers[0].end.s
    names = dict.fromkeys(name for a in answers for name in a.evidence)
    evidence = {
        name: torch.tensor(
            [a.evidence.get(name, math.nan) for a in answers], dtype=torch.float64, device=like.device
        ).unflatten(0, lead)
        for name in names
    }
    credits = [a.credit for a in answers if a.credit is not None]
    gradients = [a.estimate for a in answers] if any(a.gradient is not None for a in answers) else []
    return Answers(
        depth,
        evidence,
        credits=whole(credits) if len(credits) == len(answers) else None,
        gradients={name: whole([g[name] for g in gradients]) for name in gradients[0]} if gradients else None,
    )


class AbstractFunctionRule(AbstractEstimator):
    """A gradient rule that is a function; `estimator` makes the classes. Options are the parameters with defaults.

    `digest` tells functions of one name apart. Calling a class sets options, as for any estimator: it gives the rule,
    not an estimate. The function itself is `function`.
    """

    asked: ClassVar[tuple[str, ...]]  # of T2, beta and rng: what the function is called with
    claims: ClassVar[Claim]
    series: ClassVar[int | Literal["T2"] | None]
    digest: str

    @staticmethod
    @abstractmethod
    def function(free: Free, **options: Any) -> Any:
        """The rule."""

    @property
    def claim(self) -> Claim:
        return self.claims

    @property
    def phase(self) -> AbstractPhase:
        return FunctionPhase(self)

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        assert isinstance(snapshot, Answers)
        if snapshot.gradients is None:
            assert snapshot.credits is not None
            return along(free, snapshot, snapshot.credits)
        return Reading(snapshot.depth, snapshot.gradients, snapshot.credits, snapshot.evidence)

    def answers(
        self, end: _End, depths: tuple[int, ...], beta: float | None, seed: int, draw: int
    ) -> dict[int | None, _Answer]:
        """What the function returns for one T1, beta, cell and draw, by depth."""
        rng = self._stream(seed, draw)
        if not depths:
            return {None: self._answer(Free(end, ()), None, beta, rng)}
        if "T2" in self.asked:
            return {T2: self._answer(Free(end, (T2,)), T2, beta, self._stream(seed, draw)) for T2 in depths}
        return dict(self._growing(Free(end, depths), beta, rng))

    def _stream(self, seed: int, draw: int) -> Generator | None:
        """What the function draws from; the first draw has the stream of the seed itself."""
        return Streams(seed).draw(draw)[f"rule {self.name}"] if self.draws else None

    def _answer(self, free: Free, T2: int | None, beta: float | None, rng: Generator | None) -> _Answer:
        return _Answer.of(self._guarded(lambda: self._called(free, T2, beta, rng)), free)

    def _growing(self, free: Free, beta: float | None, rng: Generator | None) -> Iterator[tuple[int, _Answer]]:
        """The answers of a function that goes through the depths by itself."""
        given = self._guarded(lambda: self._called(free, None, beta, rng))
        if not isinstance(given, Iterator):
            wanted = "(depth, estimate) for every depth of free.depths, by `yield`; or take T2 as a parameter"
            raise RuleFaultError(f"{self.name}: returned {article(given)}, expected {wanted}")
        for depth in free.depths:
            pair = self._guarded(lambda: next(given, None))
            if pair is None:
                raise RuleFaultError(f"{self.name}: nothing was yielded for T2 = {depth}")
            if not isinstance(pair, tuple) or len(pair) != 2 or isinstance(pair[0], bool) or pair[0] != depth:
                told = f"depth {pair[0]!r}" if isinstance(pair, tuple) and len(pair) == 2 else article(pair)
                raise RuleFaultError(f"{self.name}: yielded {told}, expected (T2, estimate) with T2 = {depth}")
            yield depth, _Answer.of(pair[1], free)
        if self._guarded(lambda: next(given, None)) is not None:
            raise RuleFaultError(f"{self.name}: yielded more than the depths that were asked for: {free.depths}")

    def _called(self, free: Free, T2: int | None, beta: float | None, rng: Generator | None) -> Any:
        known = {"T2": T2, "beta": beta, "rng": rng}
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "digest"}  # type: ignore[arg-type]
        return type(self).function(free, **{name: known[name] for name in self.asked}, **chosen)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """The result of user code. Raises RuleFaultError for what it raises, but where memory is short."""
        import torch

        try:
            return call()
        except (RuleFaultError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if "can't allocate memory" in str(error):
                raise
            told = str(error).partition("\n")[0]
            raise RuleFaultError(f"{self.name}: raised {type(error).__name__}: {told}") from error


@public()
def estimator(
    function: object = None,
    /,
    *,
    uses: frozenset[str] | set[str] = frozenset(),
    exact: Literal["always", "fixed point", "symmetric"] | None = None,
    order: int | None = None,
    terms: int | Literal["T2"] | None = None,
    draws: bool | int = False,
    source: str = "",
    name: str | None = None,
) -> Callable[[Callable[..., Any]], type[AbstractFunctionRule]]:
    """Make an estimator of the function that this decorates: f(free, **options), with `free` a `Free`.

    Parameters called T2, beta and rng are given; every other parameter has a default, and is an option. The function
    returns one of
        a credit a   the estimate is <a, dF/dtheta(s*)> + dC/dtheta; of the form of a state
        a gradient   a dict with a tensor for every parameter, dC/dtheta included
        an Estimate  either of them, by name, with evidence
    A function that uses T2 and does not take it yields (T2, one of these) for every T2 of `free.depths`.

    `uses`: coordinates that it reads; those among its parameters count. `exact`, `order`: where it claims to be exact,
    and the order of its error in beta. `terms`: how many terms of the adjoint series its credit stands for, a hint to
    the diagnostics. A function that takes `rng` is given a generator on the CPU, the same in every call of a cell, by
    its seed; with `draws`, a number or True for 16, it is called so many times, with a stream of its own each time, and
    the estimate is the mean. `source`: where the rule is from. `name`: that of the function by default. Raises
    UserError where these do not go together.

    The result is an estimator class: it stands in a grid and in `measure` where a name does, and a call of it sets
    options, as in `rule(damping=0.5)`. The function itself is its attribute `function`.
    """
    way = 'write @gradbench.estimator(source="where the rule is from") above the function of a rule'
    if function is not None:
        got = "source is missing" if callable(function) else f"got {article(function)}"
        raise UserError(f"estimator: {got}; {way}")
    if isinstance(uses, str):
        raise UserError(f"estimator: uses = {uses!r}, expected a set of names: {{{uses!r}}}")

    def made(function: Callable[..., Any]) -> type[AbstractFunctionRule]:
        title = getattr(function, "__name__", "rule") if name is None else name
        where = f"estimator {title!r}"
        if not callable(function) or inspect.isclass(function):
            raise UserError(f"{where}: decorates {article(function)}, expected a function of `free`")
        asked, options = _parameters(function, where)
        used = frozenset(uses) | (set(asked) & set(AXES))
        _check(where, title, source, used, asked, exact, order, terms, draws)
        times = (DRAWS if draws is True else int(draws) or 1) if "rng" in asked else 0
        facts = (sorted(used), exact, order, terms, *([times] if times > 1 else []))
        digest = fingerprint(function, facts)
        cls = dataclasses.make_dataclass(
            getattr(function, "__name__", "rule"),
            [("digest", str, digest or uuid.uuid4().hex[:16]), *options],  # no digest: equal to no other one
            bases=(AbstractFunctionRule,),
            frozen=True,
            namespace={
                "__module__": function.__module__,
                "name": title,
                "uses": used,
                "source": source,
                "draws": times,
                "unseen": None if digest else undigested(function, facts),
                "function": staticmethod(function),
                "asked": asked,
                "claims": Claim(Exact(exact) if exact else None, order),
                "series": terms,
            },
        )
        cls.__doc__ = inspect.getdoc(function)
        _name_options(cls, [option for option, *_ in options])
        return cls

    return made


def _name_options(cls: type[AbstractFunctionRule], options: Sequence[str]) -> None:
    """Make a call of the class take options by name alone, and tell a name that it does not have."""
    made = cls.__init__

    def init(self: AbstractFunctionRule, *args: Any, **named: Any) -> None:
        if args:
            known = ", ".join(f"{option}=..." for option in options) or "it has none"
            raise UserError(f"{cls.name}: options are given by their names: {known}")
        for name in named:
            if name not in (*options, "digest"):
                raise UserError(f"{cls.name}: there is no option {name!r}{near_miss(name, options)}")
        made(self, **named)

    cls.__init__ = wraps(made)(init)  # type: ignore[method-assign, assignment]


def _parameters(function: Callable[..., Any], where: str) -> tuple[tuple[str, ...], list[tuple[str, Any, Any]]]:
    """What a function is called with, and its options as fields: name, type and default. Raises UserError."""
    signature = inspect.signature(function)
    if not signature.parameters:
        raise UserError(f"{where}: has no parameter, expected `free` as the first one")
    _, *others = signature.parameters.values()
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations may name what is imported for types alone
        hints = {}
    asked, options = [], list[tuple[str, Any, Any]]()
    for parameter in others:
        n, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserError(f"{where}: {parameter} cannot be given by name")
        if n in (*AXES, "rng"):
            asked.append(n)
        elif default is parameter.empty:
            raise UserError(f"{where}: {n!r} has no default; free, T2, beta and rng are given, all else is an option")
        elif n in _TAKEN or n in COORDINATES:
            raise UserError(f"{where}: an option cannot be called {n!r}")
        else:
            options.append((n, *_option(hints.get(n), default, f"{where}: option {n!r}")))
    return tuple(asked), options


def _option(hint: Any, default: Any, where: str) -> tuple[Any, Any]:
    """Type and default of an option. Raises UserError for a default that no suite could write."""
    if typing.get_origin(hint) is Literal and default in typing.get_args(hint):
        return hint, default
    kind = hint if hint in (bool, int, float, str) else type(default)
    if kind is float and type(default) is int:
        default = float(default)
    if type(default) is not kind or kind not in (bool, int, float, str):
        raise UserError(f"{where} = {default!r}: expected a number, a word, True or False")
    if kind is float and not math.isfinite(default):
        raise UserError(f"{where} = {default!r}: expected a finite number")
    if kind is int and default < 1:
        raise UserError(
            f"{where} = {default!r}: a whole number is a count, from 1; for a number write {float(default)}"
        )
    return kind, default


def _check(
    where: str,
    title: object,
    source: object,
    used: frozenset[str],
    asked: tuple[str, ...],
    exact: object,
    order: object,
    terms: object,
    draws: object,
) -> None:
    """Raise UserError for what does not go together."""
    if not isinstance(title, str) or not title.strip():
        raise UserError(f"estimator: name = {title!r}, expected a word")
    if source == "":
        raise UserError(f"{where}: source is missing: where the rule is from, in words")
    if not isinstance(source, str):
        raise UserError(f"{where}: source = {source!r}, expected where the rule is from, in words")
    for axis in used:
        if axis not in AXES:
            raise UserError(f"{where}: uses {axis!r}{near_miss(axis, AXES)}")
    if "beta" in used and "beta" not in asked:
        raise UserError(f"{where}: uses beta, and so takes it as a parameter")
    if not isinstance(draws, bool | int) or draws < 0:
        raise UserError(f"{where}: draws = {draws!r}, expected how many draws an estimate is the mean of, or True")
    if draws and "rng" not in asked:
        raise UserError(f"{where}: draws, and so takes rng as a parameter")
    if exact is not None and exact not in list(Exact):
        raise UserError(f"{where}: exact = {exact!r} is not a choice{near_miss(exact, Exact)}")
    if order is not None and (isinstance(order, bool) or not isinstance(order, int) or order < 1 or "beta" not in used):
        raise UserError(f"{where}: order = {order!r}, expected a whole number from 1, of a rule that uses beta")
    if terms is not None and terms != "T2" and (isinstance(terms, bool) or not isinstance(terms, int) or terms < 1):
        raise UserError(f"{where}: terms = {terms!r}, expected a whole number from 1, or 'T2'")
    if terms == "T2" and "T2" not in used:
        raise UserError(f"{where}: terms = 'T2' of a rule that does not use T2")


# names that an option would hide
_TAKEN = frozenset(n for n in dir(AbstractFunctionRule) if not n.startswith("__")) | {
    *("name", "uses", "source", "digest", "function", "asked", "claims", "series")
}
