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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from gradbench.commands.claiming import refuse_hopeless
from gradbench.commands.environment import data_sets, describe_environment, warn_of_undigested
from gradbench.commands.limits import Limits
from gradbench.commands.progress import CellProgress, CellWatch, say, watching
from gradbench.engine import processes
from gradbench.engine.failures import ClusterGoneError
from gradbench.errors import StoreError, UserError, spoken
from gradbench.planning import files, plans, suites
from gradbench.planning.overrides import Overrides
from gradbench.planning.plans import Plan
from gradbench.planning.plugins import Names, load
from gradbench.planning.problems import Problem
from gradbench.planning.shards import SHARD, Shard, shared_out
from gradbench.planning.values import check_truth
from gradbench.tables import runs
from gradbench.tables.placeholders import unmeasured
from gradbench.tables.records import judged
from gradbench.tables.store import Run
from gradbench.vocabulary.status import Status

BACKLOG = 64  # problems whose rows wait for the disk; where more come, measuring waits

if TYPE_CHECKING:
    from gradbench.commands.clusters import Cluster
    from gradbench.commands.executing import Results, Row
    from gradbench.commands.measuring import Setup
    from gradbench.engine.hosts import Facts


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
    cluster: object = None,
    shard: str | None = None,
    watch: CellWatch | None = None,
) -> Run:
    """Run a suite, or resume a run of it that was cut off; the folder of the run.

    A suite is given by path, by the name of a shipped one, or as it is. `overrides` replaces keys of every grid of a
    file, by value: numbers, words, lists, ranges, arrays with one axis. `engine` is auto, eager (a problem at a time),
    batched, compiled (batched, and compiled first; CUDA only) or fused (batched, and steps are kernels of their system
    where it has some; CUDA only). `auto` is eager on a CPU and batched on CUDA, or fused there for large plans of
    systems with kernels. `memory` is what packs may take, as "80%" or "24GiB". `certify` adds a deep certificate to
    every cell. `profile` writes where the time went.

    Systems and rules from outside of the package are measured by worker processes: one that crashes, or fills the
    memory, costs the cells of its problem, which say `error` or `oom`. So are all where `timeout` is given: the seconds
    that a problem may take. On a CPU of three cores or more a long plan is measured by this process and by a worker
    process on each of the remaining cores, since threads would wait for each other. Cells that failed stay so, unless
    `retry` is "failed". After `max_failures` failed cells, or after `stop_after`, as "8m" or a number of seconds, no
    further pack begins: what runs is finished and stored, and a later call goes on.

    `cluster` measures on the workers of dask.distributed: "local" (a worker for every GPU, or every core), the address
    of a scheduler, its scheduler file, or a client or a cluster of dask. This process alone writes. `shard` is a share
    of the problems, as "2/8", which makes a run of its own; `gradbench.merge` puts all of them together. `plugins` are
    files and modules whose systems and rules get their names first. `watch` is called with the progress after every
    problem.
    Raises UserError before anything runs, StoreError where the results cannot be written.
    """
    watch, results = watching(watch), runs.results_folder(out)
    for name, value in {"certify": certify, "profile": profile, "fresh": fresh}.items():
        check_truth(name, value)
    limits = Limits.of(timeout, retry, max_failures, stop_after)
    share = None if shard is None else Shard.read(shard)
    if cluster is not None:
        if profile:
            raise UserError("profile: it sees this process alone, and a cluster has others; leave one of them out")
        from gradbench.commands.clusters import checked, connected

        connection = connected(checked(cluster), device)
    elif plugins or limits.timeout is not None:
        # a worker process imports torch and starts the device while this process does the same
        processes.prepare(1, str(device))
    named = load(plugins)
    loaded, planned = prepare(suite, overrides)
    frozen, problems = planned.to_json(), list(planned.problems)
    if share is not None:
        problems = shared_out(problems, share)
        frozen[SHARD] = share.to_json(problems)
    with nullcontext() if cluster is None else connection as there:
        if there is None:
            setup, facts = _setup(planned, device, engine, memory, limits, certify=certify, profile=profile), None
        else:
            setup, facts = _setup_there(there, planned, device, engine, memory, limits, certify=certify)
        key = f"{planned.key} certified" if certify else planned.key
        told = None if there is None else f"{there.address}, {there.told}"
        where: dict[str, Any] = {"engine": setup.engine, "workers": facts, "cluster": told}
        where["shard"] = None if share is None else str(share)
        env = describe_environment(key, setup.device, planned.parts, named, **where)
        warn_of_undigested(env)
        if there is None:
            _try_data(planned, setup)
        folder = results / "runs" / loaded.name
        claims = loaded.model_dump(mode="json", include={"check", "statement", "table", "allow_incomplete"})
        target = runs.resumed_or_begun(
            folder, env["identity"], lambda run: run.start(frozen, env, claims), say, fresh=fresh
        )
        with target.alone():
            target.claim(claims)
            if share is None:
                runs.point(folder, target)
            if profile and len(_finished(target, problems, planned, limits.retry)) == len(problems):
                way = spoken(python="fresh=True", shell="--fresh")
                raise UserError(f"{target.folder}: nothing is left to measure, and so to profile; use {way}")
            from gradbench.commands.profiling import profiled

            with profiled(target.folder / "profile", setup.device) if profile else nullcontext():
                execute(target, problems, planned, setup, limits, watch)
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
    engine, budget = packs.resolved(engine, device, planned.problems), packs.available(device, memory)
    setup = Setup(device=device, engine=engine, budget=budget, certify=certify, alone=profile, timeout=limits.timeout)
    if profile and limits.timeout is not None:
        raise UserError("profile: it sees this process alone, and a timeout needs others; leave one of them out")
    return setup if profile else with_crew(setup, planned)


def _setup_there(
    there: Cluster,
    planned: Plan,
    device: str,
    engine: str,
    memory: str | None,
    limits: Limits,
    *,
    certify: bool,
) -> tuple[Setup, Facts]:
    """The means to measure the run on a cluster, and what its workers are. Raises UserError where they differ."""
    from gradbench.commands.clusters import ClusterLanes, Terms, slots
    from gradbench.commands.measuring import Setup, packed_for_cluster
    from gradbench.engine import packs

    data = data_sets(planned.parts)
    facts = there.agreed(device, memory, data)
    device = facts["device"]
    # auto takes no kernels there: which GPUs the workers have decides whether these were measured
    engine = packs.resolved(engine, device, (), facts["versions"]["nvrtc"] is not None)
    setup = Setup(device=device, engine=engine, budget=facts["budget"], certify=certify, timeout=limits.timeout)
    bound = None if device.startswith("cuda") or not there.local else processes.memory(len(there.workers()))
    content = packed_for_cluster(setup, planned, bound)
    terms = Terms(
        content=content,
        facts=facts,
        device=device,
        engine=engine,
        memory=memory,
        data=data,
        budget=facts["budget"],
        seconds=limits.timeout,
    )
    there.build(terms, _different(planned))
    threads = sum(slots(number, device, engine) for number in there.workers().values())
    return replace(setup, elsewhere=partial(ClusterLanes, there, terms), threads=threads), facts


def _different(planned: Plan) -> list[Problem]:
    """One problem for every data set and checkpoint."""
    different = {(p.point.system_options, p.point.batch, p.params_from and p.point.seed): p for p in planned.problems}
    return list(different.values())


def _try_data(planned: Plan, setup: Setup) -> None:
    """Build one problem for every data set and checkpoint. Raises UserError for data that cannot be had.

    A system that fails or crashes here does so again when it is measured, and its cells say so.
    """
    from gradbench.engine.draws import build
    from gradbench.engine.packs import refused_where_too_large

    for problem in _different(planned):
        if setup.crew is not None:
            with suppress(processes.PackFailedError, processes.WorkerLostError), setup.crew.lent() as worker:
                worker.build(problem)
            continue
        with refused_where_too_large(problem):
            build(problem, "cpu")


def execute(
    target: Run, problems: list[Problem], planned: Plan, setup: Setup, limits: Limits, watch: CellWatch
) -> None:
    """Measure those of the problems that have no record yet, then write the tables."""
    finished = _finished(target, problems, planned, limits.retry)
    waiting = [p for p in problems if p.key not in finished]
    progress = CellProgress.of(waiting, (status for statuses in finished.values() for status in statuses))
    watch(progress)
    reason = ""
    try:
        _measure(waiting, target, planned, setup, limits, progress, watch)
    except ClusterGoneError as error:
        reason = str(error)
    except UserError as error:
        if not target.done():
            raise
        reason = str(error)  # what was measured before the mistake showed stays
    if len(target.done()) < len(problems) and (reason := reason or limits.reached()):
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
    from gradbench.commands.measuring import measured_or_failed, with_processes

    setup = with_processes(problems, planned, setup)
    with _frozen_heap(), ThreadPoolExecutor(1) as writer:
        writing: deque[Future[None]] = deque()
        all_results = measured_or_failed(
            problems,
            planned.thresholds,
            setup,
            progress.meters,
            over=lambda: bool(limits.reached()),
            told=lambda results: limits.count(_statuses(results)),
        )
        for problem, results in all_results:
            writing.append(writer.submit(_store, target, problem, results))
            progress.add(problem, _statuses(results))
            while writing and (writing[0].done() or len(writing) > BACKLOG):
                writing.popleft().result()
            watch(progress)
        for record in writing:
            record.result()


def _statuses(results: Results) -> list[str]:
    if isinstance(results, pa.Table):
        return list(results["status"].to_pylist())
    return [row["status"] for row in cast("list[Row]", results)]


def _store(target: Run, problem: Problem, results: Results) -> None:
    if isinstance(results, pa.Table):
        target.store(problem.key, results)
    else:
        target.keep(problem.key, cast("list[Row]", results))


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


def _finished(target: Run, problems: list[Problem], planned: Plan, retry: bool) -> dict[str, list[str]]:
    """Statuses of the problems that need no measurement, by key; with `retry`, failed cells need one.

    Records that cannot be trusted are set aside, and stderr says so.
    """
    finished: dict[str, list[str]] = {}
    wanted = {problem.key: problem.cells for problem in problems}
    for key, statuses in list(judged(target, wanted, planned.thresholds)):
        if isinstance(statuses, StoreError):
            say(f"gradbench: {statuses}; set aside as {target.set_aside(key)}, to be measured again")
            continue
        if not (retry and any(Status(s).incomplete for s in statuses)):
            finished[key] = statuses
    return finished
