"""A cluster of dask: a connection to its scheduler, what its workers agree on, and packs that they measure.

The coordinator is this process. It alone writes. Every worker of dask gets one pack for each of its threads, which
`agents` hands to a worker process there.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
import pickle
import queue
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.commands import agents
from gradbench.commands.executing import Answer, Job
from gradbench.commands.progress import say
from gradbench.data.given import article
from gradbench.engine.failures import ClusterGoneError, Failed
from gradbench.engine.hosts import Facts, Versions, room_digests, rooms_apart, versions_here
from gradbench.engine.processes import NOWHERE
from gradbench.engine.workers import AbstractLanes
from gradbench.errors import UserError, near_miss, spoken
from gradbench.planning.regular_files import regular
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from gradbench.planning.problems import Problem

LOCAL = "local"
POLL = 0.2  # seconds after which the coordinator looks whether anything else happened than the end of a pack
LOOK = 1.0  # seconds between two looks at which workers there are
CONNECT = 30.0  # seconds that a scheduler gets to answer
FILE_BYTES = 1 << 20  # of the file of a scheduler
GATHER = 60.0  # seconds that rows get to come back; their worker may be lost meanwhile
PATIENCE = 600.0  # seconds that the coordinator waits where a cluster has no worker
VISIBLE = "CUDA_VISIBLE_DEVICES"
COMMON = ("python", "torch", "numpy")  # versions that the coordinator has, too
# of workers in one process, which would each look many times a second at this process and at threads that wait
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 50,
    "distributed.admin.system-monitor.log-length": 50,
}
INSTALL = "pip install 'gradbench[cluster]'"


def checked(cluster: object) -> object:
    """What names a cluster: the word local, an address, a scheduler file, or a client or a cluster of dask.

    Raises UserError for anything else, and where dask.distributed is not installed.
    """
    told = spoken(python="cluster", shell="--cluster")
    if isinstance(cluster, str | os.PathLike):
        name = os.fspath(cluster)
        if name != LOCAL and "://" not in str(name) and not os.path.isfile(name):
            ways = "local, an address such as tcp://HOST:8786, or the file of a scheduler"
            near = near_miss(name, [LOCAL]) if "." not in str(name) else ""
            near = near if near.startswith(". Did") else ""
            raise UserError(f"{told} = {str(name)!r} is not known; expected {ways}{near}")
    elif not hasattr(cluster, "scheduler_info"):
        ways = "local, an address, a scheduler file, or a client or a cluster of dask"
        raise UserError(f"{told}: got {article(cluster)}, expected {ways}")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError(f"{told}: it needs dask.distributed ({error}); install it: {INSTALL}") from None
    return cluster


@contextmanager
def connected(cluster: object, device: str) -> Iterator[Cluster]:
    """A connection to a cluster that is `checked`, until the end; a local one is started and ended with it."""
    from distributed import Client

    name = cluster
    with ExitStack() as open_things:
        open_things.enter_context(_silenced("distributed.client"))  # what is lost is told here in a sentence
        places: dict[str, Mapping[str, str]] = {}
        client: Any = name
        if name == LOCAL:
            started, places = _started(device)
            open_things.enter_context(started)
            client = open_things.enter_context(Client(started, set_as_default=False))
        elif not isinstance(name, Client):
            if isinstance(name, str | os.PathLike):
                name = _answering(os.fspath(name))
            client = open_things.enter_context(Client(name, timeout=CONNECT, set_as_default=False))
        elif name.status != "running":
            raise UserError(f"{spoken(python='cluster', shell='--cluster')}: the client is {name.status}")
        there = Cluster(client, places, local=name == LOCAL)
        there.wait_for_workers()
        where = "on this machine" if name == LOCAL else f"at {there.address}"
        say(f"cluster: {there.told} {where}; dashboard: {_dashboard(client, there)}")
        yield there


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """A logger of this name says nothing inside."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _answering(name: str) -> str:
    """The address of a scheduler, which may be given by its file. Raises UserError where no scheduler answers there.

    It is asked before there is a client, which would wait for ever for an answer that means nothing to it, and at its
    end for a minute.
    """
    told = f"{spoken(python='cluster', shell='--cluster')} = {name}"
    address = name if "://" in name else _named_in(Path(name))
    if address is None:
        raise UserError(f"{told}: is no file of a scheduler, which names its address")
    try:
        with ThreadPoolExecutor(1) as thread:  # this one may have a loop that runs
            kind = thread.submit(asyncio.run, asyncio.wait_for(_identity(address), CONNECT)).result()
    except Exception as error:  # whatever an address, a certificate or the other end make dask raise
        first = str(error).partition("\n")[0] or f"nothing of dask answers there within {CONNECT:g} s"
        raise UserError(f"{told}: {first}") from None
    if kind != "Scheduler":
        raise UserError(f"{told}: a {kind} of dask answers there, expected a scheduler")
    return address


def _named_in(path: Path) -> str | None:
    """The address in the file of a scheduler; None where it holds none."""
    try:
        address = json.loads(regular(path, FILE_BYTES))["address"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return address if isinstance(address, str) else None


async def _identity(address: str) -> str:
    """What answers at an address: Scheduler, Worker or Nanny."""
    from distributed.core import rpc
    from distributed.security import Security

    asked = rpc(address, connection_args=Security().get_connection_args("client"), timeout=CONNECT)
    try:
        told: dict[str, Any] = await asked.identity()
    finally:
        await asked.close_rpc()
    return str(told["type"])


def _dashboard(client: Client, there: Cluster) -> str:
    """The address of the dashboard, in words."""
    there_is = "dashboard" in client.scheduler_info().get("services", {})
    link = client.dashboard_link if there_is else ""
    if link and there.local:  # dask names a host on which it does not listen
        link = f"http://127.0.0.1:{link.rpartition(':')[2]}"
    if link and there.local and find_spec("bokeh") is None:
        link += " (its pages need bokeh: pip install bokeh)"
    return link or "none"


def _started(device: str) -> tuple[Any, dict[str, Mapping[str, str]]]:
    """A cluster in this process, and by worker the variables that say which GPU it sees."""
    import torch

    from gradbench.engine import device as devices
    from gradbench.engine.packs import LANES

    cuda = devices.resolve(device).startswith("cuda")
    gpus = (os.environ.get(VISIBLE) or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    seen: list[Mapping[str, str]] = [{VISIBLE: gpu} for gpu in gpus] if cuda else [NOWHERE] * torch.get_num_threads()
    cluster = in_this_process(len(seen), LANES if cuda else 1)
    addresses = [worker.address for worker in cluster.workers.values()]
    return cluster, dict(zip(addresses, seen, strict=True))


def in_this_process(workers: int, threads: int) -> LocalCluster:
    """A cluster in this process, with so many workers and threads of each.

    The threads wait for worker processes, so that the cluster needs no port but that of its dashboard.
    """
    import dask
    from distributed import LocalCluster

    with dask.config.set(QUIET):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # the workers are of one process; each worker process has a bound
            silence_logs=logging.CRITICAL,
        )


class Cluster:
    """A connection to a scheduler."""

    def __init__(self, client: Client, places: Mapping[str, Mapping[str, str]], *, local: bool) -> None:
        self.client, self.places, self.local = client, places, local
        self.agreeing = set[str]()  # the addresses of workers that were found to be equal
        self.number = itertools.count()

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        scheduler: Any = self.client.scheduler
        return str(scheduler.address)

    @property
    def told(self) -> str:
        """How many workers there are, in words."""
        number = len(self.workers())
        return f"{number} worker{'s' if number != 1 else ''}"

    def place(self, address: str) -> Mapping[str, str]:
        """Variables of the environment of the worker processes of a worker."""
        return self.places.get(address, NOWHERE)

    def workers(self) -> dict[str, int]:
        """The number of threads of every worker, by address. Raises ClusterGoneError where the scheduler is gone."""
        gone = ClusterGoneError(f"the scheduler at {self.address} is gone")
        if self.client.status != "running":
            raise gone
        try:
            there: dict[str, int] = dict(self.client.nthreads())
        except (OSError, TimeoutError, RuntimeError):
            raise gone from None
        return there

    def wait_for_workers(self) -> None:
        """Wait until there is a worker. Raises UserError where none comes."""
        end, told = time.monotonic() + PATIENCE, False
        while not self.workers():
            if time.monotonic() > end:
                raise UserError(f"cluster at {self.address}: no worker came within {PATIENCE:g} s")
            if not told:
                told = say(f"gradbench: {self.address} has no worker yet; waiting for one")
            time.sleep(POLL)

    def submit(self, address: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a task on one worker and no other one."""
        key = f"{function.__name__}-{os.getpid()}-{id(self)}-{next(self.number)}"
        return self.client.submit(function, *arguments, workers=[address], key=key, pure=False)

    def ask(self, function: Callable[..., Any], *arguments: Callable[[str], Any]) -> dict[str, Any]:
        """The answers of all workers by address; arguments are made of an address. One that is lost gives none.

        Raises UserError where a worker cannot run this gradbench.
        """
        asked = {a: self.submit(a, function, *(make(a) for make in arguments)) for a in self.workers()}
        while any(not future.done() for future in asked.values()):
            time.sleep(POLL)
            there = self.workers()
            asked = {address: future for address, future in asked.items() if address in there or future.done()}
        return {address: _result(address, future) for address, future in asked.items()}

    def agreed(self, device: str, memory: str | None, data: list[str]) -> Facts:
        """What all workers are, and this gradbench. Raises UserError that names a worker that differs, and in what."""
        told = self.ask(agents.facts, lambda a: device, lambda a: dict(self.place(a)), lambda a: memory, lambda a: data)
        if not told:
            raise UserError(f"cluster at {self.address}: every worker was lost before it said what it is")
        first = next(iter(told))
        for address, facts in told.items():
            if isinstance(facts, Failed):
                raise UserError(f"worker {address}: {facts.reason}")
            if different := differing(facts, told[first], first):
                raise UserError(f"worker {address}: {different}; all must be equal, or they decide other numbers")
        self.agreeing.update(told)
        common: Facts = told[first].copy()
        common["budget"] = min(facts["budget"] for facts in told.values())
        return common

    def build(self, terms: Terms, problems: Sequence[Problem]) -> None:
        """Build the systems of problems on a worker. Raises UserError for data that cannot be had there.

        A system that fails or crashes there does so again when it is measured, and its cells say so.
        """
        address = next(iter(self.workers()), None)
        if address is None or not problems:
            return
        task = agents.Task(terms.token, terms.device, dict(self.place(address)))
        with suppress(Exception):
            self.submit(address, agents.open_session, terms.token, terms.content).result(timeout=GATHER)
        for problem in problems:
            future = self.submit(address, agents.build, task, pickle.dumps(problem.cells))
            while not future.done() and address in self.workers():
                time.sleep(POLL)
            answer = pickle.loads(_result(address, future)) if future.done() else None
            if isinstance(answer, Failed) and answer.refused:
                raise UserError(answer.reason)


def _result(address: str, future: Future[Any]) -> Any:
    try:
        return future.result(timeout=GATHER)
    except Exception as error:
        first = f"{type(error).__name__}: {error}".partition("\n")[0]
        told = f"it cannot run this gradbench ({first}); install the same one there"
        raise UserError(f"worker {address}: {told}") from None


@cache
def _here() -> Versions:
    return versions_here("cpu")


def differing(facts: Facts, first: Facts, named: str) -> str:
    """In what a worker differs from this process, or from the worker `named` where this process is not asked.

    Empty where all that decides numbers is equal.
    """
    ours = _here()
    for name in COMMON:
        if facts["versions"][name] != ours[name]:  # type: ignore[literal-required]
            return f"{name} {facts['versions'][name]}, and the coordinator has {ours[name]}"  # type: ignore[literal-required]
    if wrong := rooms_apart(room_digests(), facts["rooms"]):
        return f"the code of gradbench differs from that of the coordinator in {', '.join(wrong)}"
    here, there = (
        {
            "device": told["device"].partition(":")[0],
            "processor": told["processor"],
            "cuda": told["versions"]["cuda"],
            "triton": told["versions"]["triton"],
            "nvrtc": told["versions"]["nvrtc"],
            **{f"the images of {name}": told["data"].get(name) for name in first["data"]},
        }
        for told in (facts, first)
    )
    return next(
        (f"{name} {here[name]}, and {named} has {there[name]}" for name in here if here[name] != there[name]), ""
    )


def slots(threads: int, device: str, engine: str) -> int:
    """How many packs a worker with so many threads takes at a time."""
    from gradbench.engine.packs import lanes

    return min(threads, lanes(device, engine)) if device.startswith("cuda") else threads


def token_of(content: bytes) -> str:
    """The name of a session among those that a worker remembers."""
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass
class _Worker:
    """A worker of dask, as the coordinator knows it."""

    threads: int
    ready: bool = False  # it is as all others are, and knows the session
    refused: bool = False  # it is not as all others are
    jobs: int = 0  # that it has


@dataclass
class _Asked:
    """A task that runs: a job, or the check or the opening of a worker, before which a job may wait."""

    address: str
    kind: str  # check, open or job
    job: Job | None = None
    future: Any = None


@dataclass(kw_only=True)
class Terms:
    """What the lanes of a cluster are told of a run."""

    content: bytes  # of the session, as `processes.packed` made it
    facts: Facts  # what every worker must be
    device: str
    engine: str
    memory: str | None
    data: list[str]
    budget: int  # bytes for all packs in flight on one worker
    seconds: float | None  # for a problem
    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = token_of(self.content)


class ClusterLanes(AbstractLanes[Job, Answer]):
    """The workers of a cluster, those that come later included."""

    def __init__(self, cluster: Cluster, terms: Terms) -> None:
        self.cluster, self.terms = cluster, terms
        self.workers: dict[str, _Worker] = {}
        self.asked: dict[str, _Asked] = {}  # by the key of their future
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.lost: list[tuple[Job, Answer]] = []
        self.looked, self.peopled = -LOOK, time.monotonic()  # the last look, and the last time that there was a worker
        self.said = False  # that there is none
        self.ended: UserError | ClusterGoneError | None = None  # why there is nothing more to wait for

    def __exit__(self, *raised: object) -> None:
        """Take back what runs, which ends there within a moment."""
        with suppress(Exception):
            self.cluster.client.cancel([asked.future for asked in self.asked.values()], force=True)
        self.asked.clear()

    def free(self) -> Iterator[Hashable]:
        """The addresses of workers with a free thread."""
        self._look()
        for address, worker in self.workers.items():
            while worker.ready and worker.jobs < self._slots(worker):
                yield address

    def begin(self, lane: Hashable, item: Job) -> None:
        """Send a pack to a worker."""
        address = str(lane)
        worker, terms = self.workers[address], self.terms
        worker.jobs += 1
        seconds = None if terms.seconds is None else terms.seconds * len(item.pack)
        task = agents.Task(terms.token, terms.device, dict(self.cluster.place(address)), seconds)
        budget = (terms.budget // self._slots(worker)) >> item.halvings
        content = pickle.dumps([problem.cells for problem in item.pack])
        self._ask(_Asked(address, "job", item), agents.measure, task, content, budget)

    def wait(self) -> list[tuple[Job, Answer]]:
        """Packs that are done or lost; none where a moment passes without.

        What ends the run is raised by the next call where packs are done, so that these are handed on first.
        """
        if self.ended is not None:
            raise self.ended
        answers = self._taken_lost()
        try:
            with suppress(queue.Empty):
                future = self.done.get(timeout=0 if answers else POLL)
                while True:
                    answers += self._answered(future)
                    future = self.done.get_nowait()
            self._look()
        except (UserError, ClusterGoneError) as error:
            if not answers:
                raise
            self.ended = error
        return answers + self._taken_lost()

    def _taken_lost(self) -> list[tuple[Job, Answer]]:
        lost, self.lost = self.lost, []
        return lost

    def _slots(self, worker: _Worker) -> int:
        return slots(worker.threads, self.terms.device, self.terms.engine)

    def _ask(self, asked: _Asked, function: Callable[..., Any], *arguments: Any) -> None:
        asked.future = self.cluster.submit(asked.address, function, *arguments)
        self.asked[asked.future.key] = asked
        asked.future.add_done_callback(self.done.put)

    def _answered(self, future: Any) -> list[tuple[Job, Answer]]:
        """What came of a task: the answer of a job, or the next step of a worker that gets ready."""
        asked = self.asked.pop(future.key, None)
        if asked is None:
            return []
        address, worker = asked.address, self.workers.get(asked.address)
        if asked.job is not None and worker is not None:
            worker.jobs -= 1
        try:
            if future.status != "finished":
                raise future.exception() if future.status == "error" else TimeoutError
            result = future.result(timeout=GATHER)
        except Exception as error:
            if asked.job is None:
                self._refuse(address, f"{type(error).__name__}: {error}".partition("\n")[0])
                return []
            return [(asked.job, self._gone(address))]
        if asked.kind == "check":
            self._checked(address, result)
        elif asked.kind == "open":
            if worker is not None:
                worker.ready = True
        else:
            return self._measured(asked, pickle.loads(result))
        return []

    def _measured(self, asked: _Asked, answer: Any) -> list[tuple[Job, Answer]]:
        """The answer of a job. Raises UserError for a mistake of the user."""
        assert asked.job is not None
        if isinstance(answer, agents.Unopened):  # a worker of dask that was started anew at its old address
            if worker := self.workers.get(asked.address):
                worker.ready = False
                self._check(asked.address)
            return [(asked.job, self._gone(asked.address))]
        if isinstance(answer, Failed) and answer.refused:
            raise UserError(f"worker {asked.address}: {answer.reason}")
        return [(asked.job, answer)]

    def _look(self) -> None:
        """See which workers there are. Raises ClusterGoneError where the scheduler, or every worker, is gone."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        there, self.looked = self.cluster.workers(), now
        for address in [address for address in self.workers if address not in there]:
            del self.workers[address]
            self.cluster.agreeing.discard(address)  # who comes back there may be another one
            say(f"gradbench: worker {address} is lost; what it had is measured elsewhere")
            self._lose(address)
        for address, threads in there.items():
            if address not in self.workers:
                self.workers[address] = _Worker(threads)
                self._open(address) if address in self.cluster.agreeing else self._check(address)
        if any(not worker.refused for worker in self.workers.values()):
            self.peopled, self.said = now, False
        elif not self.said:
            self.said = say(f"gradbench: {self.cluster.address} has no worker now; waiting for one")
        elif now - self.peopled > PATIENCE:
            raise ClusterGoneError(f"the cluster at {self.cluster.address} has had no worker for {PATIENCE:g} s")

    def _lose(self, address: str) -> None:
        """Take back what a worker had that is no more."""
        for key in [key for key, asked in self.asked.items() if asked.address == address]:
            asked = self.asked.pop(key)
            asked.future.cancel()
            if asked.job is not None:
                self.lost.append((asked.job, self._gone(address)))

    def _gone(self, address: str) -> Failed:
        return Failed(Status.ERROR, f"the worker {address} of the cluster was lost", broken=True, gone=True)

    def _check(self, address: str) -> None:
        terms = self.terms
        arguments = terms.device, dict(self.cluster.place(address)), terms.memory, terms.data
        self._ask(_Asked(address, "check"), agents.facts, *arguments)

    def _checked(self, address: str, facts: Facts | Failed) -> None:
        different = facts.reason if isinstance(facts, Failed) else differing(facts, self.terms.facts, "all others")
        if different:
            self._refuse(address, different)
        else:
            self._open(address)

    def _open(self, address: str) -> None:
        self._ask(_Asked(address, "open"), agents.open_session, self.terms.token, self.terms.content)

    def _refuse(self, address: str, why: str) -> None:
        if worker := self.workers.get(address):
            worker.refused = True
            say(f"gradbench: worker {address} came later and is not used: {why}")
