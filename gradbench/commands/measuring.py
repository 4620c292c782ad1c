"""Measuring the problems of a plan in packs, several packs side by side: what `run` and `tune` share.

Packs are measured by threads of this process. Worker processes measure them where something foreign or risky is
measured. On a CPU of `CORES` or more, where a plan is long, one thread of this process measures, and a worker process
on each of the remaining cores: threads hand Python's lock to each other at every operation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from gradbench.commands.executing import Answer, Job, Lanes, Results, execute
from gradbench.commands.progress import say
from gradbench.data import origins
from gradbench.dynamics.meter import Meter
from gradbench.engine import checkpoint, packs, processes
from gradbench.engine.failures import failure_of
from gradbench.engine.hosts import room_digests
from gradbench.engine.outcome import by_problem, records_of
from gradbench.engine.serving import Session
from gradbench.engine.workers import OneThread, Threads
from gradbench.errors import UserError
from gradbench.planning import registry

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.planning.plans import Plan
    from gradbench.planning.problems import Problem
    from gradbench.vocabulary.status import Thresholds

CORES = 3  # from which on there are worker processes: on two, one saves a fifth of the time for a third more memory
LONG = 50_000  # evaluations from which on worker processes save more time than their start takes: measured
WORKER = 2**29  # bytes that a worker process takes besides its packs
Attempt = Callable[[Sequence["Problem"], int, Meter], Sequence[Results]]  # of a pack, the bytes that it may take


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The means to measure problems."""

    device: str
    engine: str  # eager, batched, compiled or fused
    budget: int  # bytes for all packs in flight
    certify: bool = False  # a deep certificate for every cell
    alone: bool = False  # no two packs side by side
    timeout: float | None = None  # seconds for a problem, of a pack their sum
    crew: processes.Crew | None = None  # the worker processes that measure; None: threads of this process do
    joined: bool = False  # whether a thread of this process measures where no worker of the crew is free
    elsewhere: Callable[[], Lanes] | None = None  # the lanes of a cluster, where that measures
    threads: int = 1  # that the workers of the cluster have together at the start


def side_by_side_in(cut: Sequence[Sequence[Problem]], setup: Setup) -> int:
    """How many of these packs are measured side by side."""
    return 1 if setup.alone else packs.how_many_at_once(cut, setup.device, setup.engine, setup.budget)


def with_crew(setup: Setup, planned: Plan) -> Setup:
    """The means with worker processes, where something foreign or risky is measured.

    Foreign are systems and rules from outside of the package; a time limit is only asked for where something may hang.
    Where the session knows a system or a rule that cannot be sent to another process, threads measure, and stderr says
    so; with a time limit this raises UserError.
    """
    if setup.timeout is None and not _foreign(planned):
        return setup
    number = side_by_side_in(_cut(planned.problems, setup), setup)
    session = _session(setup, planned, None if setup.device.startswith("cuda") else processes.memory(number))
    try:
        return replace(setup, crew=_crew(session, number))
    except processes.CannotTravelError as error:
        what = f"cannot be sent to a worker process ({error})"
        if setup.timeout is not None:
            raise UserError(f"timeout: it needs worker processes, and a system or a rule here {what}") from None
        say(f"gradbench: a system or a rule here {what}: a crash of it would end this process")
        return setup
    except processes.WorkerLostError as error:
        raise UserError(f"a system or a rule here ends the process that receives it: {error}") from None


def with_processes(problems: Sequence[Problem], planned: Plan, setup: Setup) -> Setup:
    """The means with a worker process on every core but one, where there are `CORES` and these problems take long.

    A thread of this process measures on the last core: this process has torch in its memory, and each worker imports
    torch anew. Threads measure everything where the machine has no memory for the workers. They also do where no
    worker can measure, and stderr says why.
    """
    if setup.device != "cpu" or setup.elsewhere is not None or _foreign(planned) or setup.timeout is not None:
        return setup
    number = side_by_side_in(_cut(problems, setup), setup)
    if number < CORES or sum(problem.cost.work for problem in problems) < LONG:
        return setup
    room = processes.memory(number)
    if room is not None and number * room < (number - 1) * WORKER + setup.budget:
        return setup
    try:
        return replace(setup, crew=_crew(_session(setup, planned, None), number - 1), joined=True)
    except (processes.CannotTravelError, processes.WorkerLostError, UserError, OSError) as error:
        processes.dismiss()
        say(f"gradbench: threads measure, since no worker process can: {error}")
        return setup


def _crew(session: Session, number: int) -> processes.Crew:
    """A crew of so many worker processes, one of which has opened the session."""
    crew = processes.Crew(processes.packed(session), session.device, number)
    processes.prepare(number, session.device)
    with crew.lent():
        return crew


def _session(setup: Setup, planned: Plan, memory: int | None) -> Session:
    """What a worker process of this machine is told, each of which may take so many bytes of `memory`."""
    return Session(
        folder=os.getcwd(),
        environment=dict(os.environ),
        path=[os.path.abspath(folder) for folder in sys.path],
        classes={cls: registry.types_of(cls) for cls in _foreign(planned)},
        thresholds=planned.thresholds,
        device=setup.device,
        engine=setup.engine,
        certify=setup.certify,
        memory=memory,
        files={},
        rooms=room_digests(),
    )


def packed_for_cluster(setup: Setup, planned: Plan, memory: int | None) -> bytes:
    """What a worker process of another host is told: trained weights travel, and the environment is that of the host.

    Raises UserError for a system or a rule that cannot be sent there.
    """
    names = {problem.params_from for problem in planned.problems} - {None}
    files = {name: checkpoint.planned_bytes(name) for name in sorted(map(str, names))}
    session = replace(_session(setup, planned, memory), environment=None, path=None, files=files)
    try:
        return processes.packed(session)
    except processes.CannotTravelError as error:
        raise UserError(f"cluster: a system or a rule here cannot be sent to a worker ({error})") from None


def _foreign(planned: Plan) -> list[registry.Base]:
    """The classes of systems and rules from outside of the package."""
    return [type(part) for part in planned.parts if _is_foreign(type(part))]


def _is_foreign(cls: registry.Base) -> bool:
    return not origins.is_of_package(cls) or registry.digest_of(cls) is not None


def measured(
    problems: Sequence[Problem], thresholds: Thresholds, setup: Setup, meters: list[Meter]
) -> Iterator[tuple[Problem, list[Outcome]]]:
    """Every problem with the outcomes of its cells. Exceptions are raised. `meters` gets one for every pack."""
    attempt: Attempt = partial(_outcomes, thresholds, setup)
    all_results = _by_pack(lambda job, budget: attempt(job.pack, budget, job.meter), problems, setup, meters)
    for problem, results in all_results:
        yield problem, cast("list[Outcome]", results)


def measured_or_failed(
    problems: Sequence[Problem],
    thresholds: Thresholds,
    setup: Setup,
    meters: list[Meter],
    over: Callable[[], bool] = lambda: False,
    told: Callable[[Results], object] = lambda results: None,
) -> Iterator[tuple[Problem, Results]]:
    """Every problem with its results: a table where threads measured it, else rows, which may say why there is nothing.

    A UserError is raised, unless it is the fault of one system. For `meters`, `over` and `told` see `execute`.
    """
    rows: Attempt = partial(_rows, setup)
    attempt: Attempt = rows if setup.crew is not None else partial(_tables, thresholds, setup)
    if setup.joined:
        attempt = partial(_rows_or_tables, thresholds, setup)

    def answer(job: Job, budget: int) -> Answer:
        # a problem that has ended a worker must not end this process
        return _results_or_failure(rows if job.again else attempt, job, budget)

    return _by_pack(answer, problems, setup, meters, over, told)


def _cut(problems: Sequence[Problem], setup: Setup) -> list[list[Problem]]:
    return list(packs.cut_into_packs(problems, setup.device, setup.engine, setup.budget, setup.threads))


def _by_pack(
    measure: Callable[[Job, int], Answer],
    problems: Sequence[Problem],
    setup: Setup,
    meters: list[Meter],
    over: Callable[[], bool] = lambda: False,
    told: Callable[[Results], object] = lambda results: None,
) -> Iterator[tuple[Problem, Results]]:
    """The problems of all packs as `execute` yields them.

    `measure` is called here, with a job and the bytes that its pack may take.
    """
    packs.DRAWN.forget()  # files that data are read from may have changed since the last run
    cut = _cut(problems, setup)
    if setup.elsewhere is not None:
        return execute(cut, setup.elsewhere(), meters, over, told)
    workers = side_by_side_in(cut, setup)

    def answer(job: Job) -> Answer:
        return measure(job, (setup.budget // workers) >> job.halvings)

    lanes: Lanes = OneThread(answer) if workers == 1 else Threads(answer, workers, setup.device)
    return execute(cut, lanes, meters, over, told)


def _outcomes(
    thresholds: Thresholds, setup: Setup, pack: Sequence[Problem], budget: int, meter: Meter
) -> Sequence[Results]:
    """The outcomes of every problem of a pack, measured by this thread."""
    outcomes = packs.measure_pack(pack, setup.device, thresholds, setup.engine, budget, setup.certify, meter)
    return by_problem(outcomes)


def _tables(thresholds: Thresholds, setup: Setup, pack: Sequence[Problem], budget: int, meter: Meter) -> list[Results]:
    """The record of every problem of a pack, measured by this thread."""
    return records_of(packs.measure_pack(pack, setup.device, thresholds, setup.engine, budget, setup.certify, meter))


def _rows(setup: Setup, pack: Sequence[Problem], budget: int, meter: Meter) -> Sequence[Results]:
    """The rows of every problem of a pack, measured by a worker process."""
    assert setup.crew is not None
    seconds = None if setup.timeout is None else setup.timeout * len(pack)
    with setup.crew.lent() as worker:
        return worker.measure(pack, budget, seconds, meter)


def _rows_or_tables(
    thresholds: Thresholds, setup: Setup, pack: Sequence[Problem], budget: int, meter: Meter
) -> Sequence[Results]:
    """The rows of every problem of a pack, measured by a worker that is free, or their records, by this thread."""
    assert setup.crew is not None
    with setup.crew.lent_if_free() as worker:
        if worker is not None:
            return worker.measure(pack, budget, None, meter)
    return _tables(thresholds, setup, pack, budget, meter)


def _results_or_failure(attempt: Attempt, job: Job, budget: int) -> Answer:
    """What a pack comes to. A UserError is raised, unless it is the fault of one system."""
    try:
        return attempt(job.pack, budget, job.meter)
    except Exception as error:
        failed = processes.failure_of_worker(error) or failure_of(error)
        if failed.refused:
            raise
        return failed  # and not the exception, which holds the memory of the work that it stopped
