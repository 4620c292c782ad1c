"""The loop over packs: the longest first, on lanes that know the shape; what fails is halved, the lost run again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from gradbench.commands.executing import Answer, Job, _Waiting, execute
from gradbench.engine.failures import Failed
from gradbench.engine.workers import AbstractLanes
from gradbench.planning.plans import plan
from gradbench.planning.problems import Problem
from gradbench.planning.suites import parse
from gradbench.vocabulary.status import Status

pytestmark = pytest.mark.fast


def problems(**keys: Any) -> list[Problem]:
    toy = {"name": "toy_cons", "N": 2, "D": 4}
    grid = {"system": toy, "estimator": "bptt", "batch": 2, **keys}
    return list(plan(parse({"name": "x", "about": "", "grid": [grid]}, "x.toml"), "x.toml").problems)


class Lanes(AbstractLanes[Job, Answer]):
    """Lanes by name, each of which holds one job; jobs are done in the order in which they began."""

    def __init__(self, names: str, answer: Callable[[Hashable, Job], Answer]) -> None:
        self.names, self.answer = names, answer
        self.jobs: list[tuple[Hashable, Job]] = []
        self.begun: list[tuple[Hashable, list[int]]] = []

    def free(self) -> Iterator[Hashable]:
        for name in self.names:
            if name not in {lane for lane, _ in self.jobs}:
                yield name

    def begin(self, lane: Hashable, item: Job) -> None:
        self.jobs.append((lane, item))
        self.begun.append((lane, [p.point.seed for p in item.pack]))

    def wait(self) -> list[tuple[Job, Answer]]:
        lane, job = self.jobs.pop(0)
        return [(job, self.answer(lane, job))]


def measured(lane: Hashable, job: Job) -> Answer:
    return [[{"status": "settled"}] for _ in job.pack]


def test_the_longest_pack_comes_first() -> None:
    packs = [problems(T1=T1, seed=T1) for T1 in (5, 80, 20, 40)]
    lanes = Lanes("a", measured)
    done = [problem.point.seed for problem, _ in execute(packs, lanes, [])]
    assert done == [80, 40, 20, 5]


def test_a_lane_gets_a_shape_that_it_knows_while_one_is_nearly_as_long() -> None:
    long, short = [*problems(T1=40, seed=0), *problems(T1=40, seed=1)], problems(T1=40, seed=2)
    lanes = Lanes("a", measured)
    list(execute([problems(T1=60, seed=3), short, long], lanes, []))
    assert [seeds for _, seeds in lanes.begun] == [[0, 1], [2], [3]]
    lanes = Lanes("a", measured)
    list(execute([problems(T1=90, seed=3), short, [*long, *problems(T1=40, seed=4)]], lanes, []))
    assert [seeds for _, seeds in lanes.begun] == [[0, 1, 4], [3], [2]]
    lanes = Lanes("ab", measured)
    list(execute([problems(T1=60, seed=3), short, long], lanes, []))
    assert lanes.begun == [("a", [0, 1]), ("b", [3]), ("a", [2])]


def test_lanes_begin_with_different_shapes_and_then_take_those_that_take_long() -> None:
    """Three shapes of as many evaluations: those of width 4 take ten times as long as the others."""
    toy = {"name": "toy_cons", "N": 2}
    waiting = _Waiting([problems(system=toy | {"D": D}, T1=20, seed=seed) for D in (4, 5, 6) for seed in (0, 1, 2)])

    def taken(lane: str) -> int:
        job = waiting.take(lane)
        assert job is not None
        width = job.pack[0].system.layout["z"][-1]
        waiting.learn(job, 10.0 if width == 4 else 1.0)
        return width

    # b leaves the quick shape that it knows for the one that nobody has measured; a stays with the slow one
    assert [taken(lane) for lane in "abababa"] == [4, 5, 4, 6, 4, 5, 5]
    assert {taken("b"), taken("a")} == {6}
    assert waiting.take("a") is None


def test_a_lost_pack_runs_again_and_one_that_is_lost_each_time_is_halved() -> None:
    asked = [p for seed in (0, 1, 2) for p in problems(T1=5, seed=seed)]
    lost = Failed(Status.ERROR, "the host is gone", gone=True)
    lanes = Lanes("a", lambda lane, job: lost if 1 in [p.point.seed for p in job.pack] else measured(lane, job))
    told = {p.point.seed: rows[0] for p, rows in execute([asked], lanes, [])}
    assert [seeds for _, seeds in lanes.begun] == [*[[0, 1, 2]] * 3, [0], [1, 2], [1], [2]]
    assert {seed: row["status"] for seed, row in told.items()} == {0: "settled", 1: "error", 2: "settled"}
    assert told[1]["reason"] == "the host is gone, three times"
    once = [lost]
    lanes = Lanes("a", lambda lane, job: once.pop() if once else measured(lane, job))
    assert {row["status"] for _, (row,) in execute([asked], lanes, [])} == {"settled"}
    assert [seeds for _, seeds in lanes.begun] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("end", [ConnectionError, KeyboardInterrupt])
def test_what_was_measured_is_handed_on_where_the_lanes_are_gone(end: type[BaseException]) -> None:
    class Gone(Lanes):
        def free(self) -> Iterator[Hashable]:
            if self.begun and not self.jobs:
                raise end("gone")
            return super().free()

    results = execute([problems(T1=T1) for T1 in (40, 20)], Gone("a", measured), [])
    assert next(results)[1] == [{"status": "settled"}]
    with pytest.raises(end, match="gone"):
        next(results)


def test_no_pack_begins_once_it_is_over_and_halves_of_one_that_began_do() -> None:
    packs = [[*problems(T1=T1, seed=0), *problems(T1=T1, seed=1)] for T1 in (40, 5)]
    failed = Failed(Status.OOM, "full")
    lanes = Lanes("a", lambda lane, job: failed if len(job.pack) == 2 else measured(lane, job))
    done = list(execute(packs, lanes, [], over=lambda: bool(lanes.begun)))
    assert [len(seeds) for _, seeds in lanes.begun] == [2, 1, 1]
    assert len(done) == 2


def test_a_lane_has_its_next_pack_before_the_caller_sees_results_and_what_they_tell_comes_before_both() -> None:
    packs = [problems(T1=T1, seed=T1) for T1 in (40, 20, 5)]
    lanes = Lanes("a", measured)
    events = list[object]()
    for problem, _ in execute(packs, lanes, [], told=lambda results: events.append(len(lanes.begun))):
        events.append((problem.point.seed, [seeds for _, (seeds,) in lanes.begun]))
    assert events == [1, (40, [40, 20]), 2, (20, [40, 20, 5]), 3, (5, [40, 20, 5])]
