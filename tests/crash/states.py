"""A machine of states: a run is begun, killed, gone on with, read and compacted, while its code and its data change.

The model is a dict from (number in the code, checkpoint that is read) to the rows that such a run must hold.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from crash.forking import Ended, Kill, command, tell
from crash.kills import check_start
from crash.oracle import Oracle, WrongError, started
from crash.reporting import Report
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.store import Run

NAME = "moved"
CODES, DATA = (1.0, 1.5), ("a", "b")
SYSTEM = 'system = { name = "cet_real", D = 4, heads = 1, dh = 2, mem = 2, patch = 14 }'
SUITE = f"""
about = "Reads a checkpoint."
[[grid]]
{SYSTEM}
params_from = "checkpoint.pt"
estimator = ["bptt", "aep"]
T1 = [2]
T2 = 2
beta = 0.1
damp = [0.5, 1.0, 1.5]
seed = [0, 1]
batch = 2
"""
CONFIG = f"""
about = "Makes a checkpoint."
{SYSTEM}
estimator = "bptt"
T1 = 2
batch = 2
steps = 1
seeds = [0, 1]
eval_batches = 1
[optimiser]
"""
RUN = ["run", f"{NAME}.toml", "--device", "cpu"]
CHECKS = 3  # while a run goes on


def edited(code: float) -> None:
    """Make the code of this process another one: a number in it, and the digest of its source."""
    from gradbench.commands import environment
    from gradbench.engine import outcome

    rooms, record_of = environment.room_digests(), outcome.record_of

    def changed(outcomes: Sequence[outcome.Outcome]) -> pa.Table:
        table = record_of(outcomes)
        place = table.schema.get_field_index("state_norm")
        return table.set_column(place, table.schema.field(place), pc.multiply(table["state_norm"], code))

    outcome.record_of = changed
    environment.room_digests = lambda: {**rooms, "engine": f"{code}"}


def checking_meanwhile() -> None:
    """Begin a process that checks the suite again and again, and tells the exit codes and what was said."""
    if os.fork():
        return
    from gradbench.cli import _code

    try:
        with tempfile.TemporaryFile("w+") as words:
            sys.stdout = sys.stderr = words
            for _ in range(CHECKS):
                words.seek(0)
                words.truncate()
                code = _code(["check", NAME])
                words.seek(0)
                tell(f"checked {code} {' '.join(words.read().split())}")
    except BaseException as error:
        tell(f"checked 70 {type(error).__name__}: {error}")
    finally:
        os._exit(0)


class Campaign:
    """What all examples share: the checkpoints, and the rows of undisturbed runs."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        folder.mkdir(parents=True, exist_ok=True)
        for name, lr in zip(DATA, (0.01, 0.3), strict=True):
            (folder / f"{name}.toml").write_text(f"{CONFIG}lr = {lr}\n")
            ended = command(["train", f"{name}.toml", "--device", "cpu", "--out", name], folder)
            if ended.code:
                raise RuntimeError(f"the undisturbed training ended with {ended.code}: {ended.err}")
        self.oracles = {(code, data): self._oracle(code, data) for code in CODES for data in DATA}

    def place(self, folder: Path, data: str) -> None:
        """Write the suite, and put a checkpoint where it is read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.toml").write_text(SUITE)
        (source,) = (self.folder / data).rglob("checkpoint.pt")
        shutil.copyfile(source, folder / "checkpoint.pt")

    def _oracle(self, code: float, data: str) -> Oracle:
        folder = self.folder / f"{code}{data}"
        self.place(folder, data)
        ended = command(RUN, folder, first=[lambda: edited(code)])
        if ended.code:
            raise RuntimeError(f"the undisturbed run ended with {ended.code}: {ended.err}")
        return Oracle(started(folder / "results", NAME)[-1].folder)


def noted(step: Callable[..., None]) -> Callable[..., None]:
    """Note the step, and what is wrong when it is: kills depend on the time, so that a second try may pass."""

    @wraps(step)
    def taken(self: Any, **drawn: object) -> None:
        self.steps.append(f"{step.__name__}{drawn or ''}")
        try:
            step(self, **drawn)
        except Exception as error:
            self.report.failed("", f"{type(error).__name__}: {error}; steps: {', '.join(self.steps)}")
            raise

    return taken


def machine(campaign: Campaign) -> type[RuleBasedStateMachine]:
    """The machine of one campaign."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            campaign.report.counts["examples"] += 1
            self.report, self.steps = campaign.report, list[str]()
            self.folder = Path(tempfile.mkdtemp(dir=campaign.folder))
            self.state = (CODES[0], DATA[0])
            self.model: dict[str, tuple[float, str]] = {}  # id of a run -> what it was measured with
            self.stored: dict[str, set[str]] = {}
            campaign.place(self.folder, self.state[1])

        def teardown(self) -> None:
            shutil.rmtree(self.folder)

        def start(self, kill: Kill | None = None, *, meanwhile: bool = False) -> Ended:
            code = self.state[0]
            before = {run.id for run in self.runs()}
            first = [lambda: edited(code), *([checking_meanwhile] if meanwhile else [])]
            ended = command(RUN, self.folder, first=first, kill=kill)
            new = {run.id for run in self.runs()} - before
            if new and self.state in self.model.values():
                raise WrongError("a run was begun anew, and could have been gone on with")
            self.model |= dict.fromkeys(new, self.state)
            current = [name for name, state in self.model.items() if state == self.state]
            if current:
                stored = self.stored.setdefault(current[0], set())
                check_start(ended, stored)
                stored |= set(ended.of("stored"))
            elif not ended.killed:
                raise WrongError(f"no run was begun: exit code {ended.code}: {ended.err}")
            if not ended.killed and ended.code:
                raise WrongError(f"exit code {ended.code}: {ended.err}")
            return ended

        def runs(self) -> list[Run]:
            return started(self.folder / "results", NAME)

        @rule(code=st.sampled_from(CODES))
        @noted
        def edit_code(self, code: float) -> None:
            self.state = (code, self.state[1])

        @rule(data=st.sampled_from(DATA))
        @noted
        def swap_data(self, data: str) -> None:
            self.state = (self.state[0], data)
            campaign.place(self.folder, data)

        @rule()
        @noted
        def run_or_resume(self) -> None:
            self.start()
            (name,) = (name for name, state in self.model.items() if state == self.state)
            run = Run(self.folder / "results" / "runs" / NAME / name)
            campaign.oracles[self.state].judge(run, self.stored[name], whole=True)

        @rule(delay=st.floats(0, 0.3))
        @noted
        def kill(self, delay: float) -> None:
            campaign.report.counts["kills"] += bool(self.start(Kill(delay)).killed)

        @rule(delay=st.floats(0, 0.8))
        @noted
        def kill_early(self, delay: float) -> None:
            campaign.report.counts["kills"] += bool(self.start(Kill(delay, at_once=True)).killed)

        @rule()
        @noted
        def check_meanwhile(self) -> None:
            for said in self.start(meanwhile=True).of("checked"):
                campaign.report.counts["checks meanwhile"] += 1
                campaign.report.notes[f"exit code {said.split()[0]} of a check meanwhile"] += 1
                if said.split()[0] not in ("2", "3", "4"):  # no run yet, not whole, no check
                    raise WrongError(f"a check meanwhile: {said}")

        @rule()
        @noted
        def compact(self) -> None:
            for run in self.runs():
                run.compact(skipped_rows(run.plan))

        @rule()
        @noted
        def check(self) -> None:
            for run in self.runs():
                ended = command(["check", run.folder], self.folder)
                if ended.code not in (3, 4):
                    raise WrongError(f"a check ended with {ended.code}: {ended.out}{ended.err}")

        @invariant()
        @noted
        def every_run_holds_its_rows(self) -> None:
            campaign.report.counts["steps"] += 1
            for run in self.runs():
                campaign.oracles[self.model[run.id]].judge(run, self.stored.get(run.id, set()))

    return Machine


def states(folder: Path, seed: int, examples: int) -> Report:
    """Try so many sequences of steps."""
    report = Report("states", seed)
    made = hypothesis.seed(seed)(machine(Campaign(folder, report)))
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=12,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        run_state_machine_as_test(made, settings=settings)
    except Exception as error:
        if not report.failures:
            report.failed("", f"{type(error).__name__}: {error}")
    return report
