"""Running a suite into a folder: plan, environment, problems one after the other, tables.

A run that was cut off is gone on with when the same suite is run again by the same code on the same
processor; otherwise a new run begins. Nothing measured is ever mixed.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import platform
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradbench import plan as planning
from gradbench import registry
from gradbench import suite as suites
from gradbench.errors import StoreError, UserError, near_miss
from gradbench.plan import Plan, Problem
from gradbench.status import Status
from gradbench.tables import runs
from gradbench.tables.store import Run

ENGINES = ("auto", "eager", "batched", "compiled")

# parts of the package that decide no number
_NOT_MEASURED = ("plots", "cli.py", "progress.py", "tables", "runner.py", "explain.py", "tune.py", "profile.py")


@dataclass
class Progress:
    """How far a run is, for `progress.told`; weights are evaluations, so that a long problem counts for more."""

    cells: int
    weight: int
    kept: int = 0  # cells that an earlier start had finished
    done: int = 0
    done_weight: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """Cells done and their statuses."""
        counts = "  ".join(f"{status} {n}" for status, n in self.statuses.most_common())
        return f"{self.done + self.kept}/{self.cells} cells  {counts}"

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.done + self.kept == self.cells

    @property
    def eta(self) -> float | None:
        """Seconds left, once something is done."""
        elapsed = time.monotonic() - self.began
        return elapsed * (self.weight - self.done_weight) / self.done_weight if self.done_weight else None


Watch = Callable[[Progress], None]


def run(
    suite: str,
    *,
    out: str | Path = "results",
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
    engine: str = "auto",
    memory: str | None = None,
    certify: bool = False,
    profile: bool = False,
    fresh: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Run a suite, or go on with it where it was cut off; the folder of the run.

    `overrides` replaces keys of every grid; `engine` is auto, eager (a problem at a time), batched or compiled
    (batched, and compiled first; CUDA only); `memory` what packs may take, as "80%" or "24GiB"; `certify` adds a
    deep certificate to every cell; `profile` writes where the time went. Raises UserError before anything runs,
    StoreError where the results cannot be written.
    """
    loaded, planned = prepare(suite, overrides)
    from gradbench.engine import device as devices
    from gradbench.engine.problem import build

    device = devices.resolve(device)
    if engine not in ENGINES:
        raise UserError(f"engine = {engine!r} is not known{near_miss(engine, ENGINES)}")
    if engine == "compiled" and not device.startswith("cuda"):
        raise UserError("engine = 'compiled' needs a CUDA device; use auto, eager or batched")
    from gradbench.engine.batched import available

    budget = available(device, memory)
    env = environment(f"{planned.key} certified" if certify else planned.key, device)
    for problem in {
        (p.point.system_options, p.point.batch, p.params_from and p.point.seed): p for p in planned.problems
    }.values():
        build(problem, "cpu")  # data that cannot be had are missed now, not in the middle of a run
    folder = Path(out) / "runs" / loaded.name
    target = None if fresh else runs.matching(folder, env["identity"])
    if target is None:
        target = runs.new(folder, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{env['identity'][:4]}")
        target.start(planned.to_json(), env)
    with target.alone():
        target.claim(loaded.model_dump(mode="json", include={"check", "table", "allow_incomplete"}))
        runs.point(folder, target)
        if profile and len(_finished(target)) == len(planned.problems):
            raise UserError(f"{target.folder}: nothing is left to measure, and so to profile; use --fresh")
        from gradbench.profile import profiled

        with profiled(target.folder / "profile", device) if profile else nullcontext():
            # a profile sees the thread that asked for it
            told = watch or (lambda progress: None)
            execute(target, planned, device, engine, budget, told, certify=certify, alone=profile)
    return target


def prepare(suite: str, overrides: dict[str, Any] | None = None) -> tuple[suites.Suite, Plan]:
    """Read and plan a suite, with keys of every grid replaced."""
    path = suites.find(suite)
    loaded = suites.load(path, overrides)
    planned = planning.plan(loaded, str(path))
    if not overrides:  # on a part of the grid some checks may have nothing to look at
        planned.verify(loaded.check, str(path), loaded.table)
    return loaded, planned


def execute(
    target: Run, planned: Plan, device: str, engine: str, budget: int, watch: Watch, *, certify: bool, alone: bool
) -> None:
    """Measure what has no record yet, then write the tables. `alone`: no two packs side by side."""
    from gradbench.engine.batched import packs, workers
    from gradbench.engine.outcome import unmeasured
    from gradbench.engine.precision import ieee_float32
    from gradbench.engine.workers import side_by_side

    finished = _finished(target)
    waiting = [p for p in planned.problems if p.key not in finished]
    progress = Progress(len(planned.cells), sum(_weight(p) for p in waiting))
    for statuses in finished.values():
        progress.kept += len(statuses)
        progress.statuses.update(statuses)
    watch(progress)
    cut = list(packs(waiting, device, engine, budget))
    side = 1 if alone else workers(cut, device, engine, budget)

    def measured(pack: list[Problem]) -> Iterator[tuple[Problem, list[Outcome] | list[dict[str, Any]]]]:
        return _measure(pack, planned, device, engine, budget // side, certify)

    # rows are made and stored while the next pack runs
    with ieee_float32(), _unwalked(), ThreadPoolExecutor(1) as writer:
        writing: deque[Future[None]] = deque()
        for problem, found in side_by_side(measured, cut, side, device):
            writing.append(writer.submit(_keep, target, problem, found))
            progress.done += len(found)
            progress.done_weight += _weight(problem)
            progress.statuses.update(row["status"] if isinstance(row, dict) else row.status for row in found)
            while writing and writing[0].done():
                writing.popleft().result()
            watch(progress)
        for record in writing:
            record.result()
    target.compact(unmeasured(cell, Status.SKIPPED, reason) for cell, reason in planned.skipped)


@contextmanager
def _unwalked() -> Iterator[None]:
    """What is there already, modules and the plan, is not walked through at every collection of what a run makes."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _keep(target: Run, problem: Problem, found: list[Outcome] | list[dict[str, Any]]) -> None:
    target.keep(problem.key, [row if isinstance(row, dict) else row.row() for row in found])


def _measure(
    pack: Sequence[Problem], planned: Plan, device: str, engine: str, budget: int, certify: bool
) -> Iterator[tuple[Problem, list[Outcome] | list[dict[str, Any]]]]:
    """Outcomes of every problem of a pack. A pack that fails is halved, so that what goes wrong costs one problem.

    There it becomes the status of the problem's cells; a mistake of the user is raised.
    """
    import torch

    from gradbench.engine import batched
    from gradbench.engine.outcome import unmeasured

    try:
        outcomes = batched.measure(pack, device, planned.thresholds, engine, budget, certify)
    except UserError:
        raise
    except Exception as error:
        if len(pack) > 1:
            for half in (pack[: len(pack) // 2], pack[len(pack) // 2 :]):
                yield from _measure(half, planned, device, engine, budget // 2, certify)
            return
        # on the CPU torch says so in a RuntimeError
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        status = Status.OOM if full else Status.ERROR
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        yield pack[0], [unmeasured(cell, status, reason, pack[0].key) for cell in pack[0].cells]
        return
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.problem, []).append(outcome)
    for problem in pack:
        yield problem, found[problem.key]


def _weight(problem: Problem) -> int:
    cost = problem.cost
    return cost.force + 3 * cost.vjp + 3 * cost.jvp


def _finished(target: Run) -> dict[str, list[str]]:
    """Statuses of the problems that need no measurement; damaged records are set aside, which stderr is told."""
    finished: dict[str, list[str]] = {}
    for key in sorted(target.done()):
        try:
            statuses = target.record(key)["status"].to_pylist()
        except StoreError as error:
            print(f"gradbench: {error}; set aside as {target.set_aside(key)}, to be measured again", file=sys.stderr)
            continue
        if not any(Status(s).incomplete for s in statuses):
            finished[key] = statuses
    return finished


def environment(key: str, device: str) -> dict[str, Any]:
    """Where and with what a run is made; `identity` is equal for runs whose records may be mixed.

    `key` is the digest of what is asked.
    """
    import numpy
    import torch

    from gradbench.engine import device as devices
    from gradbench.engine.precision import FLAGS

    source = source_digest()
    fixed = [key, device.partition(":")[0], devices.describe(device), torch.__version__, source]
    return {
        "identity": hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16],
        "source": source,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git("status", "--porcelain")) is None else bool(changed),
        "device": device,
        "processor": devices.describe(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "flags": FLAGS,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }


def source_digest() -> str:
    """Digest of all code and data that decide a number: the package, and whatever plugins registered."""
    package = Path(__file__).parent
    files = [p for p in sorted(package.rglob("*")) if p.suffix in (".py", ".npz")]
    own = [p for p in files if p.relative_to(package).parts[0] not in _NOT_MEASURED]
    registered = {c.__module__ for c in (*registry.systems().values(), *registry.estimators().values())}
    foreign = [importlib.import_module(m).__file__ for m in sorted(registered) if not m.startswith("gradbench.")]
    digest = hashlib.sha256()
    for path in (*own, *(Path(f) for f in foreign if f)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that the package lies in; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = ["ls-files", "--error-unmatch", "__init__.py"]  # not so inside somebody else's checkout
    try:
        for command in (tracked, arguments):
            answer = subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip()
