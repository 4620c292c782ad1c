"""What runs in a worker of dask: it hands packs to worker processes of its host, and writes nothing.

A worker process does the measuring, so that a crash or a lack of memory costs that process, and the worker of dask
goes on answering its scheduler. This module is imported without torch. Arguments and answers are bytes, since dask
would look into anything else.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench.engine import processes
from gradbench.engine.failures import Failed, failure_of
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.engine.hosts import Facts
    from gradbench.planning.cells import Cell

SESSIONS = 4  # that a worker remembers
_sessions: OrderedDict[str, bytes] = OrderedDict()  # of coordinators, by their token


@dataclass(frozen=True)
class Unopened:
    """The answer of a worker that does not know the session: it was started since, or serves many."""


@dataclass(frozen=True)
class Task:
    """What a worker of dask is asked for."""

    token: str  # of the session
    device: str
    place: Mapping[str, str]  # variables of the environment of its worker process: which GPU that sees
    seconds: float | None = None  # that the pack may take; None: no bound


def facts(device: str, place: Mapping[str, str], memory: str | None, data: list[str]) -> Facts | Failed:
    """What a worker process of this host is, as far as numbers depend on it."""
    try:
        with processes.lent(device, place) as worker:
            return worker.facts(device, memory, data)
    except Exception as error:
        return _failed(error)


def open_session(token: str, content: bytes) -> None:
    """Remember what a session knows, as `processes.packed` made it, for the packs that follow."""
    _sessions[token] = content
    while len(_sessions) > SESSIONS:
        _sessions.popitem(last=False)


def build(task: Task, content: bytes) -> bytes:
    """Build the system of a problem, of which the pickled cells are given: the pickled answer."""
    cells: tuple[Cell, ...] = pickle.loads(content)
    from gradbench.planning.problems import Problem

    return _answered(task, lambda worker: worker.build(Problem(cells)))


def measure(task: Task, content: bytes, budget: int) -> bytes:
    """The rows of every problem of a pack, of which the pickled cells are given: the pickled answer.

    The answer is Failed where there are no rows, and Unopened where the session is not known here.
    """
    from gradbench.planning.problems import Problem

    pack = [Problem(cells) for cells in pickle.loads(content)]
    return _answered(task, lambda worker: worker.measure(pack, budget, task.seconds, None, _still_wanted()))


def _answered(task: Task, ask: Any) -> bytes:
    content = _sessions.get(task.token)
    answer: object = Unopened()
    if content is not None:
        try:
            with processes.lent(task.device, task.place) as worker:
                worker.open(content)
                if bound := _bound(task.device):
                    worker.bound(bound)
                answer = ask(worker)
        except Exception as error:
            answer = _failed(error)
    return pickle.dumps(answer)


def _failed(error: Exception) -> Failed:
    if isinstance(error, processes.CannotTravelError):
        return Failed(Status.ERROR, f"a system or a rule here cannot be read by a worker: {error}", refused=True)
    return processes.failure_of_worker(error) or failure_of(error)


def _bound(device: str) -> int | None:
    """Bytes of data that a worker process may have, by the memory limit of its worker of dask. None: no bound."""
    from distributed import get_worker

    worker = get_worker()
    limit: int | None = worker.memory_manager.memory_limit
    return None if device.startswith("cuda") or not limit else limit // worker.state.nthreads


def _still_wanted() -> Any:
    """A function that says whether anybody waits for the running task: its coordinator may be gone."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        with suppress(RuntimeError):  # the table of tasks changes while it is looked at
            task = worker.state.tasks.get(key)
            return task is not None and task.state != "cancelled"
        return True

    return wanted
