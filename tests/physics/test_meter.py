"""Progress within a problem: what is counted is what is planned, and counting changes no number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gradbench
from gradbench.commands.progress import CellProgress
from gradbench.dynamics.meter import Meter
from gradbench.engine import packs
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.vocabulary.status import Thresholds

# seconds and memory differ between runs; implicit_open is a residual at round-off, which depends on where memory lies
MOVING = ("seconds", "peak_memory", "implicit_open")
SMALL: dict[str, dict[str, Any]] = {
    "toy_noncons": {"N": 2, "D": 4, "heads": 2, "out": 2},
    "residual_mlp": {"d_in": 784, "d": 8, "L": 2},
}


class Recording(Meter):
    """Keeps, for every stage, what the loops counted in it, and what was planned."""

    stages: list[tuple[int, int]]
    counted = 0

    def count(self, evaluations: int) -> None:
        self.counted += self.problems * evaluations
        super().count(evaluations)

    @contextmanager
    def stage(self, evaluations: int) -> Iterator[None]:
        before = self.counted
        with super().stage(evaluations):
            yield
        self.stages.append((self.counted - before, self.problems * evaluations))


def recording(problems: int) -> Recording:
    meter = Recording(problems)
    meter.stages = []
    return meter


def grid(system: str, **more: Any) -> dict[str, Any]:
    rules = [
        n
        for n, cls in registry.known_estimators().items()
        if cls().skip(registry.known_systems()[system]) is None and not cls().phase.count(4, 7).partial
    ]
    held = {"batch": 2, "T2": [3, 7], "beta": [0.01, 1.0], "seed": [0, 1]}
    held |= {"T1": [4, 9], "damp": 3.0} if system != "residual_mlp" else {}
    return {"system": {"name": system, **SMALL[system]}, "estimator": rules, **held, **more}


def planned(*grids: dict[str, Any]) -> Any:
    return plan(parse({"name": "x", "about": "", "grid": list(grids)}, "x"))


@pytest.mark.parametrize("system", SMALL)
@pytest.mark.parametrize("together", [1, 2], ids=["eager", "stack"])
def test_what_the_loops_count_is_what_is_planned_and_no_row_changes(system: str, together: int) -> None:
    problems = planned(grid(system)).problems
    assert len(problems) == 2
    pack, engine = list(problems[:together]), "batched" if together > 1 else "eager"
    meter = recording(together)
    arguments = (
        pack,
        "cpu",
        Thresholds(),
        engine,
        None,
        True,
    )  # with deep certificates, and causes, which are not counted
    counted = packs.measure_pack(*arguments, meter)
    plain = packs.measure_pack(*arguments)
    rows = [
        [{n: str(v) for n, v in o.row().items() if n not in MOVING} for o in outcomes] for outcomes in (counted, plain)
    ]
    assert rows[0] == rows[1]
    assert any(o.row()["cause"] for o in counted)
    assert meter.launched == sum(problem.cost.work for problem in pack)
    assert len(meter.stages) == 2 + len(pack[0].passes)
    free, sweep, *phases = meter.stages
    assert all(done == asked > 0 for done, asked in phases)
    if system == "residual_mlp":  # one pass forward and one back, which are no loops
        assert (free, sweep) == ((0, together), (0, 3 * together))
    else:
        assert all(done == asked > 0 for done, asked in (free, sweep))


def test_a_phase_that_was_not_reached_counts_as_done() -> None:
    (problem,) = planned(grid("toy_noncons", seed=0, eps=1e3, T1=50)).problems
    meter = recording(1)
    (status,) = {str(o.status) for o in packs.measure_pack([problem], "cpu", Thresholds(), "eager", None, False, meter)}
    assert status == "diverged"
    assert meter.launched <= problem.cost.work
    assert [done for done, _ in meter.stages] == [50]


@pytest.mark.parametrize("threads", [1, 2])
def test_progress_moves_within_a_problem(write_suite: Any, cores: Callable[[int], None], threads: int) -> None:
    text = 'about = ""\n[[grid]]\nsystem = "toy_noncons"\nestimator = ["bptt", "aep"]\ndamp = 3.0\nT1 = 600\nT2 = 50\n'
    suite: Path = write_suite(text + "batch = 2\nseed = [0, 1]\n", base="")
    seen, moved, over = [], [0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for progress in seen[:1]:
                moved.append(progress.moved)

    def watch(progress: CellProgress) -> None:
        seen.append(progress)

    cores(threads)
    looking = threading.Thread(target=look)
    looking.start()
    try:
        gradbench.run(suite, out=suite.parent / "r", device="cpu", watch=watch)
    finally:
        over.set()
        looking.join()
    progress = seen[-1]
    assert moved == sorted(moved)
    assert len(set(moved)) > 10  # a look after each of two problems sees three values
    assert progress.moved == progress.weight == sum(meter.launched for meter in progress.meters)


def test_a_pack_that_fails_counts_again_and_a_problem_that_fails_counts_as_done(
    write_suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, seen = packs.measure_pack, list[CellProgress]()

    def broken(pack: Any, *rest: Any) -> Any:
        outcomes = measure(pack, *rest)  # all of it is launched, and then lost
        if any(problem.point.seed == 1 for problem in pack):
            raise RuntimeError("broken")
        return outcomes

    monkeypatch.setattr(packs, "measure_pack", broken)
    suite = write_suite()
    done = gradbench.run(suite, out=suite.parent / "r", device="cpu", engine="batched", watch=seen.append)
    assert (done.cells["status"] == "error").sum() == 20
    progress = seen[-1]
    assert sum(meter.launched for meter in progress.meters) == progress.weight == progress.moved
