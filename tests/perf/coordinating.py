"""What scheduler and coordinator of a cluster take: `python tests/perf/coordinating.py [PACKS] [WORKERS] [FOLDER]`.

PACKS packs (10,000) of 100 cells go to WORKERS workers (64) of a LocalCluster in this process, each of which sleeps a
second in place of measuring and answers with 100 rows. All else is as in a run: packs are pickled and sent, rows come
back, the record of every pack is stored in FOLDER. All packs have the same cells under other keys, so that the memory
is that of scheduler and coordinator and not that of a plan.

It prints the CPU time of the process, as a share of WORKERS times the wall time, and the peak of its memory. The aims
are 2 % and 2 GB.
"""

from __future__ import annotations

import pickle
import resource
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distributed import Client

from gradbench.commands import agents
from gradbench.commands.clusters import Cluster, ClusterLanes, Terms, in_this_process
from gradbench.commands.executing import execute
from gradbench.commands.running import BACKLOG
from gradbench.engine.hosts import facts_here
from gradbench.planning.plans import plan
from gradbench.planning.problems import Problem
from gradbench.planning.suites import parse
from gradbench.tables.placeholders import unmeasured
from gradbench.tables.schema import CELLS as CELLS_TABLE
from gradbench.tables.store import Run
from gradbench.vocabulary.status import Status

CELLS = 100
SECONDS = 1.0
NESTED = [{"param": f"W{i}", "cosine": 0.1 * i, "norm_ratio": 1.0, "reason": ""} for i in range(6)]


def problems(number: int) -> list[Problem]:
    """Problems of 100 cells under different keys."""
    toy = {"name": "toy_cons", "N": 2, "D": 4}
    grid = {"system": toy, "estimator": "ep", "T1": list(range(1, 11)), "T2": list(range(1, 11)), "beta": 0.1}
    (first,) = plan(parse({"name": "x", "about": "", "grid": [grid]}, "x.toml"), "x.toml").problems
    assert len(first.cells) == CELLS
    made = [Problem(first.cells) for _ in range(number)]
    for i, problem in enumerate(made):
        problem.__dict__["key"] = f"{i:016x}"
    return made


def answer() -> bytes:
    """What a worker sends back of a pack: rows as large as those of measured cells."""
    cells = problems(1)[0].cells
    numbers = dict.fromkeys((f.name for f in CELLS_TABLE if f.type == "double"), 0.123456789)
    return pickle.dumps([[unmeasured(c, Status.SETTLED, "", "p") | numbers | {"params": NESTED} for c in cells]])


def main(packs: int, workers: int, place: Path | None) -> None:
    """Print CPU time and memory."""
    rows_of_all = answer()

    def sleep(task: agents.Task, content: bytes, budget: int) -> bytes:
        time.sleep(SECONDS)
        return rows_of_all

    agents.measure = sleep
    asked = problems(packs)
    with (
        tempfile.TemporaryDirectory(dir=place) as folder,
        in_this_process(workers, 1) as local,
        Client(local, set_as_default=False) as client,
        ThreadPoolExecutor(1) as writer,
    ):
        run = Run(Path(folder) / "run")
        run.folder.mkdir()
        run.start({"cells": [], "skipped": [], "problems": [], "key": "k"}, {"identity": "i"})
        cluster = Cluster(client, {}, local=True)
        facts = facts_here("cpu", None, [])
        cluster.agreeing.update(cluster.workers())
        terms: dict[str, Any] = {"device": "cpu", "engine": "eager", "memory": None, "data": [], "seconds": None}
        lanes = ClusterLanes(cluster, Terms(content=b"", facts=facts, budget=2**32, **terms))
        start, busy = time.monotonic(), time.process_time()
        writing: deque[Future[None]] = deque()
        for problem, rows in execute([[problem] for problem in asked], lanes, []):
            writing.append(writer.submit(run.keep, problem.key, rows))  # type: ignore[arg-type]  # workers send rows
            while writing and (writing[0].done() or len(writing) > BACKLOG):
                writing.popleft().result()
        for record in writing:
            record.result()
        wall, cpu = time.monotonic() - start, time.process_time() - busy
        assert len(run.done()) == packs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    least = packs * SECONDS / workers
    print(
        f"{packs:,} packs, {workers} workers: wall {wall:.1f} s of which the sleep is {least:.1f} s; "
        f"CPU {cpu:.1f} s, {100 * cpu / (workers * wall):.2f} % of {workers} x wall; peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    named = sys.argv[1:]
    main(
        int(named[0]) if named else 10_000,
        int(named[1]) if named[1:] else 64,
        Path(named[2]) if named[2:] else None,
    )
