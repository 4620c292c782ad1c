"""SIGKILL at random times after a first record: nothing acknowledged is lost, torn, doubled or different."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.forking import BACKLOG, Ended, Kill, command
from crash.oracle import Oracle, WrongError, leftovers, started
from crash.reporting import Report
from crash.suites import undisturbed, write_suite

NAME, PROBLEMS = "toys", 8
WHOM = ("coordinator", "worker", "both")


@dataclass(frozen=True)
class Kind:
    """A kind of run that is killed."""

    name: str
    seconds: float  # that a run takes
    plugin: float | None = None  # the constant of its plugin, whose problems worker processes measure
    large: bool = False  # tables of thousands of rows

    @property
    def asked(self) -> dict[str, Any]:
        """What the suite is told."""
        return {"plugin": self.plugin, "large": self.large}


PLAIN, LARGE, PLUGGED = Kind("plain", 0.7), Kind("large", 1.5, large=True), Kind("plugged", 6.0, plugin=0.9)
AT_ONCE = 1 + BACKLOG  # problems of a run with threads that a kill may cost: one is measured, others wait for the disk


def kills(folder: Path, seed: int, number: int, only: int | None = None, *, plugged: bool = True) -> Report:
    """Kill `number` processes, in runs that are gone on with until each is whole."""
    report = Report("kills", seed)
    kinds = [PLAIN, LARGE, *([PLUGGED] if plugged else [])]
    oracles = {kind: undisturbed(folder / kind.name, NAME, PROBLEMS, **kind.asked)[0] for kind in kinds}
    life = 0
    while report.counts["kills"] < number:
        if only is None or life == only:
            kind = PLUGGED if plugged and life % 3 == 2 else LARGE if life % 8 == 1 else PLAIN
            try:
                live(folder / f"life{life}", f"{seed} {life}", oracles[kind], kind, report)
            except WrongError as wrong:
                report.failed(f"--only {life}", wrong)
            if only is not None:
                break
            shutil.rmtree(folder / f"life{life}", ignore_errors=True)
        life += 1
    return report


def live(folder: Path, seed: str, oracle: Oracle, kind: Kind, report: Report) -> None:
    """Begin a run, kill it again and again, and go on with it until it is whole."""
    rng = random.Random(seed)
    arguments = write_suite(folder, NAME, PROBLEMS, **kind.asked)
    stored: set[str] = set()
    first, killed = True, 0
    while True:
        at_once = not first and (kind is not PLUGGED or rng.random() < 0.3)
        span = kind.seconds if at_once else 0.3
        kill = Kill(rng.uniform(0, span), rng.choice(WHOM), at_once)
        ended = command(arguments, folder, kill=None if killed > rng.randrange(3, 9) else kill)
        report.counts["starts"] += 1
        check_start(ended, stored)
        if again := stored & set(ended.of("stored")):
            raise WrongError(f"{len(again)} problems with a record were stored again")
        stored |= set(ended.of("stored"))
        if ended.orphans:
            raise WrongError(f"{ended.orphans} workers live longer than their coordinator")
        if ended.killed:
            report.notes["temporary files that a kill left"] += len(leftovers(folder / "results"))
            killed, first = killed + 1, first and not ended.first
            report.counts["kills"] += 1
            report.notes[f"kill in a {kind.name} run"] += 1
            report.notes[f"kill of {' and '.join(ended.killed)}"] += 1
            lost = set(ended.of("begun")) - stored
            report.notes[f"{len(lost)} problems begun and not stored at a kill"] += 1
            if len(lost) > AT_ONCE:
                raise WrongError(f"{len(lost)} problems that were begun had no record, expected {AT_ONCE} at most")
        elif ended.code != 0:
            raise WrongError(f"exit code {ended.code}: {ended.err}")
        (run,) = started(folder / "results", NAME)[-1:] or (None,)
        if run is None:
            raise WrongError("no run was begun")
        whole = ended.code == 0
        oracle.judge(run, stored, whole=whole)
        if whole:
            break
    if len(started(folder / "results", NAME)) != 1:
        raise WrongError("a run that was killed was begun anew, and not gone on with")
    report.counts["runs gone on with to the end"] += 1
    if left := leftovers(folder / "results"):
        raise WrongError(f"temporary files are left after the run has gone on: {left}")


def check_start(ended: Ended, stored: set[str]) -> None:
    """Raise WrongError where a start measures again what it had, hangs, or shows the inside of the package."""
    if again := stored & set(ended.of("begun")):
        raise WrongError(f"{len(again)} problems with a record were measured again")
    if ended.hung:
        raise WrongError("a start did not end")
    if "Traceback" in ended.err:
        raise WrongError(f"a traceback: {ended.err}")
