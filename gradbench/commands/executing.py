"""The one loop over packs, wherever they are measured: by this thread, by threads, by worker processes, by a cluster.

The longest pack comes first, so that no lane works long after the others are done. How long a pack takes is told by the
evaluations that the plan counts, and by the time that those of its shape took before. A pack that fails is halved until
one problem is left, so that a fault costs one problem.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from gradbench.dynamics.meter import Meter
from gradbench.engine.failures import Failed
from gradbench.engine.workers import AbstractLanes
from gradbench.tables.placeholders import unmeasured

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.planning.problems import Problem

Row = dict[str, Any]  # of the table `cells`
# of a problem: outcomes or the table of its record where they were measured here, rows where elsewhere
Results: TypeAlias = "list[Outcome] | pa.Table | list[Row]"
Answer: TypeAlias = Sequence[Results] | Failed  # of a pack: the results of every problem, or why there are none
WARM = 0.5  # of the longest pack that waits: so long is a pack for which a lane is chosen that knows its shape
LOSSES = 3  # hosts or workers of a cluster that a pack may lose, of which it may be innocent
TIMES = {1: "once", 2: "twice", LOSSES: "three times"}


@dataclass(frozen=True, eq=False)
class Job:
    """A pack that is to be measured."""

    pack: Sequence[Problem]
    halvings: int = 0  # how often it was halved since it was cut
    again: bool = False  # its only problem has lost a worker process before
    losses: int = 0  # workers of a cluster that were lost with it
    meter: Meter = field(default_factory=Meter)

    @classmethod
    def of(cls, pack: Sequence[Problem], **more: Any) -> Job:
        """The job of a pack, with a meter for it."""
        return cls(pack, **more, meter=Meter(len(pack)))


Lanes = AbstractLanes[Job, Answer]


def execute(
    packs: Iterable[Sequence[Problem]],
    lanes: Lanes,
    meters: list[Meter],
    over: Callable[[], object] = lambda: False,
    told: Callable[[Results], object] = lambda results: None,
) -> Iterator[tuple[Problem, Results]]:
    """Every problem with its results, or with rows that say why it has none, as packs are done.

    `meters` gets one for every pack when it begins. `told` is called with the results of a problem as soon as they are
    there. No pack begins once `over` says so; of one that began, the halves are measured. What `lanes` raise is raised.
    """
    waiting, again = _Waiting(packs), deque[Job]()
    running: dict[Job, float] = {}  # when each began
    results: list[tuple[Problem, Results]] = []
    with lanes:
        while True:
            try:
                for lane in lanes.free():
                    job = again.popleft() if again else None if over() else waiting.take(lane)
                    if job is None:
                        break
                    meters.append(job.meter)
                    running[job] = time.monotonic()
                    lanes.begin(lane, job)
            except BaseException:  # an interrupt, too
                yield from results  # the lanes may be gone, but these were measured
                raise
            yield from results  # now that no lane waits: the caller may take its time
            results.clear()
            if not (running or again) and (over() or not waiting):
                return
            for job, answer in lanes.wait():
                seconds = time.monotonic() - running.pop(job)
                if not isinstance(answer, Failed):
                    waiting.learn(job, seconds)
                    results += zip(job.pack, answer, strict=True)
                    for measured in answer:
                        told(measured)
                    continue
                job.meter.launched = 0  # what a pack that failed has launched is lost
                if more := _again(job, answer):
                    again.extendleft(reversed(more))
                else:
                    meters.append(Meter(launched=job.pack[0].cost.work))  # nothing of it is left to do
                    results.append(_failed(job, answer))
                    told(results[-1][1])


def _again(job: Job, failed: Failed) -> list[Job]:
    """What is measured in place of a pack that failed; nothing in place of a problem that failed for good."""
    losses = job.losses + failed.gone
    if failed.gone and losses < LOSSES:
        return [replace(job, losses=losses, meter=Meter(len(job.pack)))]
    if len(job.pack) > 1:
        middle, losses = len(job.pack) // 2, min(losses, LOSSES - 1)
        halves = (job.pack[:middle], job.pack[middle:])
        return [Job.of(half, halvings=job.halvings + 1, losses=losses) for half in halves]
    if failed.broken and not failed.gone and not job.again:
        return [replace(job, again=True, meter=Meter())]
    return []


def _failed(job: Job, failed: Failed) -> tuple[Problem, list[Row]]:
    """A problem with the rows that say why it was not measured."""
    (problem,) = job.pack
    times = LOSSES if failed.gone else 1 + job.again if failed.broken else 1
    reason = failed.reason if times == 1 else f"{failed.reason}, {TIMES[times]}"
    return problem, [unmeasured(cell, failed.status, reason, problem.key) for cell in problem.cells]


class _Waiting:
    """Packs that wait, by shape, the longest first."""

    def __init__(self, packs: Iterable[Sequence[Problem]]) -> None:
        self.by_shape: dict[object, deque[tuple[int, Sequence[Problem]]]] = {}
        self.warm: dict[Hashable, set[object]] = {}  # the shapes that a lane has measured
        self.rates: dict[object, float] = {}  # seconds of an evaluation in the last pack that was measured, by shape
        sized = ((sum(problem.cost.work for problem in pack), pack) for pack in packs)
        for entry in sorted(sized, key=lambda entry: -entry[0]):
            self.by_shape.setdefault(entry[1][0].shape, deque()).append(entry)

    def __bool__(self) -> bool:
        return bool(self.by_shape)

    def learn(self, job: Job, seconds: float) -> None:
        """A pack took so long."""
        self.rates[job.pack[0].shape] = seconds / sum(problem.cost.work for problem in job.pack)

    def take(self, lane: Hashable) -> Job | None:
        """The next pack for a lane: the longest, or a shape that it knows where one of that is nearly as long.

        A shape of which no pack was measured is taken for the slowest, so that its time is known soon. Of shapes that
        are equally long a lane takes one that few other lanes know: what is made once for a shape is made less often.
        """
        if not self.by_shape:
            return None
        slowest = max(self.rates.values(), default=1.0)
        heads = {shape: packs[0][0] * self.rates.get(shape, slowest) for shape, packs in self.by_shape.items()}
        known, longest = self.warm.setdefault(lane, set()), max(heads.values())
        near = [shape for shape, length in heads.items() if shape in known and length >= WARM * longest]
        most = max(heads[shape] for shape in near or heads)
        chosen = min((shape for shape in near or heads if heads[shape] == most), key=partial(self._elsewhere, lane))
        known.add(chosen)
        packs = self.by_shape[chosen]
        _, pack = packs.popleft()
        if not packs:
            del self.by_shape[chosen]
        return Job.of(pack)

    def _elsewhere(self, lane: Hashable, shape: object) -> int:
        """How many other lanes know a shape."""
        return sum(shape in known for other, known in self.warm.items() if other != lane)
