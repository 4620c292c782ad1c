"""`gradbench run`: the problems of a suite measured into the folder of a run.

The same suite, run again by the same code on the same processor, resumes a run that was cut off. Anything else begins
a new run, so that a run never mixes the results of two codes or two processors.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.commands.claiming import refuse_hopeless
from gradbench.commands.environment import describe_environment, warn_of_undigested
from gradbench.commands.limits import Limits
from gradbench.commands.progress import CellProgress, CellWatch, say, watching
from gradbench.engine import processes
from gradbench.errors import StoreError, UserError, spoken
from gradbench.planning import files, plans, suites
from gradbench.planning.overrides import Overrides
from gradbench.planning.plans import Plan
from gradbench.planning.plugins import Names, load
from gradbench.planning.problems import Problem
from gradbench.planning.values import check_truth
from gradbench.tables import runs
from gradbench.tables.placeholders import unmeasured
from gradbench.tables.records import judged
from gradbench.tables.store import Run
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.commands.measuring import Row, Setup
    from gradbench.engine.outcome import Outcome


def run(
    suite: str | Path | suites.Suite,
    *,
    out: str | Path = "results",
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    engine: str = "auto",
    memory: str | None = None,
    certify: bool = False,
    profile: bool = False,
    fresh: bool = False,
    timeout: str | float | None = None,
    retry: str | None = None,
    max_failures: int | None = None,
    stop_after: str | float | None = None,
    plugins: Names = (),
    watch: CellWatch | None = None,
) -> Run:
    """Run a suite, or resume a run of it that was cut off; the folder of the run.

    A suite is given by path, by the name of a shipped one, or as it is. `overrides` replaces keys of every grid of a
    file, by value: numbers, words, lists, ranges, arrays with one axis. `engine` is auto, eager (a problem at a time),
    batched or compiled (batched, and compiled first; CUDA only). `memory` is what packs may take, as "80%" or "24GiB".
    `certify` adds a deep certificate to every cell. `profile` writes where the time went.

    Systems and rules from outside of the package are measured by worker processes: one that crashes, or fills the
    memory, costs the cells of its problem, which say `error` or `oom`. So are all where `timeout` is given: the seconds
    that a problem may take. Cells that failed stay so, unless `retry` is "failed". After `max_failures` failed cells,
    or after `stop_after`, as "8m" or a number of seconds, no further pack begins: what runs is finished and stored,
    and a later call goes on.

    `plugins` are files and modules whose systems and rules get their names first. `watch` is called with the progress
    after every problem. Raises UserError before anything runs, StoreError where the results cannot be written.
    """
    watch, results = watching(watch), runs.results_folder(out)
    for name, value in {"certify": certify, "profile": profile, "fresh": fresh}.items():
        check_truth(name, value)
    limits = Limits.of(timeout, retry, max_failures, stop_after)
    if plugins or limits.timeout is not None:
        # a worker process imports torch and starts the device while this process does the same
        processes.prepare(1, str(device))
    named = load(plugins)
    loaded, planned = prepare(suite, overrides)
    setup = _setup(planned, device, engine, memory, limits, certify=certify, profile=profile)
    key = f"{planned.key} certified" if certify else planned.key
    env = describe_environment(key, setup.device, planned.parts, named, engine=setup.engine)
    warn_of_undigested(env)
    _try_data(planned, setup)
    folder = results / "runs" / loaded.name
    claims = loaded.model_dump(mode="json", include={"check", "statement", "table", "allow_incomplete"})
    target = runs.resumed_or_begun(
        folder, env["identity"], lambda run: run.start(planned.to_json(), env, claims), say, fresh=fresh
    )
    with target.alone():
        target.claim(claims)
        runs.point(folder, target)
        if profile and len(_finished(target, planned, limits.retry)) == len(planned.problems):
            way = spoken(python="fresh=True", shell="--fresh")
            raise UserError(f"{target.folder}: nothing is left to measure, and so to profile; use {way}")
        from gradbench.commands.profiling import profiled

        with profiled(target.folder / "profile", setup.device) if profile else nullcontext():
            execute(target, planned, setup, limits, watch)
    return target


def prepare(suite: str | Path | suites.Suite, overrides: Mapping[str, Any] | None = None) -> tuple[suites.Suite, Plan]:
    """Read and plan a suite, with keys of every grid replaced."""
    replaced = Overrides.of(overrides)
    if isinstance(suite, suites.Suite):
        if replaced:
            raise UserError("overrides: replace keys of a suite file; write them into the grid of gradbench.suite")
        loaded, where = suite, f"suite {suite.name!r}"
    else:
        path = files.find(suite, files.SUITES, "suite")
        loaded, where = suites.load(path, replaced), str(path)
    for key, checks in loaded.checks():
        refuse_hopeless(checks, where, key)
    planned = plans.plan(loaded, where, places=replaced.places)
    if not replaced:  # some checks may match no cell of a part of the grid
        planned.verify([*loaded.checks(), ("table", loaded.table)], where)
    return loaded, planned


def _setup(
    planned: Plan, device: str, engine: str, memory: str | None, limits: Limits, *, certify: bool, profile: bool
) -> Setup:
    """The means to measure the run. Raises UserError for what this machine cannot do."""
    from gradbench.commands.measuring import Setup, with_crew
    from gradbench.engine import device as devices
    from gradbench.engine import packs

    device = devices.resolve(device)
    engine, budget = packs.resolved(engine, device), packs.available(device, memory)
    setup = Setup(device=device, engine=engine, budget=budget, certify=certify, alone=profile, timeout=limits.timeout)
    if profile and limits.timeout is not None:
        raise UserError("profile: it sees this process alone, and a timeout needs others; leave one of them out")
    return setup if profile else with_crew(setup, planned)


def _try_data(planned: Plan, setup: Setup) -> None:
    """Build one problem for every data set and checkpoint. Raises UserError for data that cannot be had.

    A system that fails or crashes here does so again when it is measured, and its cells say so.
    """
    from gradbench.engine.draws import build
    from gradbench.engine.packs import refused_where_too_large

    different = {(p.point.system_options, p.point.batch, p.params_from and p.point.seed): p for p in planned.problems}
    for problem in different.values():
        if setup.crew is not None:
            with suppress(processes.PackFailedError, processes.WorkerLostError), setup.crew.lent() as worker:
                worker.build(problem)
            continue
        with refused_where_too_large(problem):
            build(problem, "cpu")


def execute(target: Run, planned: Plan, setup: Setup, limits: Limits, watch: CellWatch) -> None:
    """Measure the problems that have no record yet, then write the tables."""
    finished = _finished(target, planned, limits.retry)
    waiting = [p for p in planned.problems if p.key not in finished]
    progress = CellProgress.of(waiting, (status for statuses in finished.values() for status in statuses))
    watch(progress)
    _measure(waiting, target, planned, setup, limits, progress, watch)
    if len(target.done()) < len(planned.problems) and (reason := limits.reached()):
        say(f"gradbench: stopped, since {reason}")
    target.compact(unmeasured(cell, Status.SKIPPED, reason) for cell, reason in planned.skipped)


def _measure(
    problems: list[Problem],
    target: Run,
    planned: Plan,
    setup: Setup,
    limits: Limits,
    progress: CellProgress,
    watch: CellWatch,
) -> None:
    """Measure problems and store their records. A thread stores them while the next pack runs."""
    from gradbench.commands.measuring import measured_or_failed

    with _frozen_heap(), ThreadPoolExecutor(1) as writer:
        writing: deque[Future[None]] = deque()
        all_results = measured_or_failed(
            problems, planned.thresholds, setup, progress.meters, over=lambda: bool(limits.reached())
        )
        for problem, results in all_results:
            writing.append(writer.submit(_store, target, problem, results))
            statuses = [row["status"] if isinstance(row, dict) else str(row.status) for row in results]
            progress.add(problem, statuses)
            limits.count(statuses)
            while writing and writing[0].done():
                writing.popleft().result()
            watch(progress)
        for record in writing:
            record.result()


def _store(target: Run, problem: Problem, results: list[Outcome] | list[Row]) -> None:
    target.keep(problem.key, [row if isinstance(row, dict) else row.row() for row in results])


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Garbage collections inside skip all objects from before: modules and the plan, which are many.

    A heap that the process has frozen stays as it is, since it can only be thawed as a whole.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _finished(target: Run, planned: Plan, retry: bool) -> dict[str, list[str]]:
    """Statuses of the problems that need no measurement, by key; with `retry`, failed cells need one.

    Records that cannot be trusted are set aside, and stderr says so.
    """
    finished: dict[str, list[str]] = {}
    wanted = {problem.key: problem.cells for problem in planned.problems}
    for key, statuses in list(judged(target, wanted, planned.thresholds)):
        if isinstance(statuses, StoreError):
            say(f"gradbench: {statuses}; set aside as {target.set_aside(key)}, to be measured again")
            continue
        if not (retry and any(Status(s).incomplete for s in statuses)):
            finished[key] = statuses
    return finished
