"""Measuring the problems of a plan in packs, several packs side by side: what `run` and `tune` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gradbench.dynamics.meter import Meter
from gradbench.engine import packs
from gradbench.engine.workers import side_by_side
from gradbench.errors import SystemFaultError, UserError
from gradbench.tables.placeholders import unmeasured
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.planning.problems import Problem
    from gradbench.vocabulary.status import Thresholds

R = TypeVar("R")
Row = dict[str, Any]  # of the table `cells`, for a cell without an outcome


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The means to measure problems."""

    device: str
    engine: str = "auto"
    budget: int  # bytes for all packs in flight
    certify: bool = False  # a deep certificate for every cell
    alone: bool = False  # no two packs side by side


def measured(
    problems: Sequence[Problem], thresholds: Thresholds, setup: Setup, meters: list[Meter]
) -> Iterator[tuple[Problem, list[Outcome]]]:
    """Every problem with the outcomes of its cells. Exceptions are raised. `meters` gets one for every pack."""
    return _by_pack(partial(_outcomes, thresholds, setup, meters), problems, setup)


def measured_or_failed(
    problems: Sequence[Problem], thresholds: Thresholds, setup: Setup, meters: list[Meter]
) -> Iterator[tuple[Problem, list[Outcome] | list[Row]]]:
    """Every problem with the outcomes of its cells, or with rows that say why it has none.

    A pack that fails is halved until one problem is left, so that a failure costs one problem. A UserError is raised,
    unless it is the fault of one system. `meters` gets one for every pack when it begins.
    """
    return _by_pack(partial(_outcomes_or_failures, thresholds, setup, meters), problems, setup)


def _by_pack(
    measure: Callable[[Sequence[Problem], int], Iterable[R]], problems: Sequence[Problem], setup: Setup
) -> Iterator[R]:
    """The results of `measure` for all packs; its arguments are a pack and the bytes that this pack may take."""
    cut = list(packs.cut_into_packs(problems, setup.device, setup.engine, setup.budget))
    workers = 1 if setup.alone else packs.how_many_at_once(cut, setup.device, setup.engine, setup.budget)

    def share(pack: Sequence[Problem]) -> Iterable[R]:
        return measure(pack, setup.budget // workers)

    yield from side_by_side(share, cut, workers, setup.device)


def _outcomes(
    thresholds: Thresholds, setup: Setup, meters: list[Meter], pack: Sequence[Problem], budget: int
) -> list[tuple[Problem, list[Outcome]]]:
    by_problem: dict[str, list[Outcome]] = {}
    meter = Meter(len(pack))
    meters.append(meter)
    try:
        measurements = packs.measure_pack(pack, setup.device, thresholds, setup.engine, budget, setup.certify, meter)
    except BaseException:
        meter.launched = 0  # what a pack that failed has launched is lost
        raise
    for outcome in measurements:
        by_problem.setdefault(outcome.problem, []).append(outcome)
    return [(problem, by_problem[problem.key]) for problem in pack]


def _outcomes_or_failures(
    thresholds: Thresholds, setup: Setup, meters: list[Meter], pack: Sequence[Problem], budget: int
) -> Iterator[tuple[Problem, list[Outcome] | list[Row]]]:
    results: Sequence[tuple[Problem, list[Outcome] | list[Row]]] = ()
    try:
        results = _outcomes(thresholds, setup, meters, pack, budget)
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, SystemFaultError):
            raise
        if len(pack) == 1:
            results = [(pack[0], _failure(pack[0], error))]
            meters.append(Meter(launched=pack[0].cost.work))  # nothing of it is left to do
    if results:
        yield from results
        return
    # after the `except`, since an exception holds the memory of the work that it stopped
    for half in (pack[: len(pack) // 2], pack[len(pack) // 2 :]):
        yield from _outcomes_or_failures(thresholds, setup, meters, half, budget // 2)


def _failure(problem: Problem, error: Exception) -> list[Row]:
    """Rows for the cells of a problem that could not be measured."""
    status = Status.OOM if packs.does_not_fit(error) else Status.ERROR
    told = str(error) if isinstance(error, SystemFaultError) else f"{type(error).__name__}: {error}"
    reason = told.partition("\n")[0]
    return [unmeasured(cell, status, reason, problem.key) for cell in problem.cells]
