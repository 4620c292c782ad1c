"""Every call that concerns the results kills the process, or fails, in turn.

That is done in a new run, in one that goes on, in one that is whole, and in a check.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

from crash import sealing
from crash.driver import Driver, Point, points
from crash.forking import Ended, command
from crash.kills import check_start
from crash.oracle import Oracle, WrongError, leftovers, started
from crash.reporting import Report
from crash.suites import undisturbed, write_suite

NAME, PROBLEMS = "few", 3
# what is done while a call fails: a new run, a run that lacks records and has tables, a whole run, a check
WORKS = ("begin", "go on", "again", "check")
ALLOWED = (0, 3, 5, 6)  # exit codes of a command whose call has failed


def prepared(folder: Path, work: str, whole: Path) -> list[str]:
    """Make the folder in which a piece of work begins; the arguments of its command."""
    arguments = write_suite(folder, NAME, PROBLEMS)
    if work != "begin":
        target = folder / "results" / "runs" / NAME / whole.name
        shutil.copytree(whole, target)
        (target.parent / "latest").write_text(whole.name)
        if work == "go on":  # what is left of a run that was cut off
            sealing.unfinish(target)
            for record in sorted((target / "records").glob("*.parquet"))[1:]:
                record.unlink()
    return ["check", NAME] if work == "check" else arguments


def counted(folder: Path, work: str, whole: Path) -> Counter[str]:
    """How often every call is made in an undisturbed piece of work."""
    arguments = prepared(folder, work, whole)
    driver = Driver(folder / "results")
    ended = command(arguments, folder, first=[driver.install])
    if ended.code not in (0, 4):
        raise RuntimeError(f"{work} ended with {ended.code}: {ended.err}")
    return Counter(ended.of("call"))


def all_points(folder: Path, seed: int, number: int | None, only: str | None = None) -> Report:
    """Try every point of all works, or a number of points that is drawn. `only` is one work, or a work and a point."""
    report = Report("points", seed)
    oracle, whole = undisturbed(folder / "plain", NAME, PROBLEMS)
    if only is not None and "," in only:
        work, _, text = only.partition(",")
        tries = [(work, Point.read(text))]
    else:
        works = [only] if only else WORKS
        tries = [(work, p) for i, work in enumerate(works) for p in points(counted(folder / f"count{i}", work, whole))]
        report.counts["points that there are"] = len(tries)
        if number is not None:
            tries = random.Random(seed).sample(tries, min(number, len(tries)))
    for i, (work, point) in enumerate(tries):
        try:
            broken(folder / f"point{i}", work, point, oracle, whole, report)
        except WrongError as wrong:
            report.failed(f"--only '{work},{point}'", f"{work} {point}: {wrong}")
        if only is None:
            shutil.rmtree(folder / f"point{i}", ignore_errors=True)
    return report


def broken(folder: Path, work: str, point: Point, oracle: Oracle, whole: Path, report: Report) -> None:
    """Do a piece of work that breaks at a point; read what is there; go on with it undisturbed."""
    arguments = prepared(folder, work, whole)
    stored = set(oracle.problems if work in ("again", "check") else ())
    if work == "go on":
        stored = {path.stem for path in (folder / "results" / "runs" / NAME / whole.name / "records").iterdir()}
    before = {run.folder for run in started(folder / "results", NAME)}
    broke = command(arguments, folder, first=[Driver(folder / "results", point).install])
    if not broke.of("reached"):
        report.notes["points that were not reached"] += 1
    else:
        report.counts["kills" if point.kills else "failing calls"] += 1
    check_start(broke, stored if point.kills else set())
    check_code(broke, point, report)
    report.notes["temporary files that a broken command left"] += len(leftovers(folder / "results"))
    runs = started(folder / "results", NAME)
    for run in runs[:-1]:  # one that could not be read was passed over
        oracle.judge(run, stored if run.folder in before else set())
    if runs and runs[-1].folder not in before:
        stored = set()
    stored |= set(broke.of("stored"))
    for run in runs[-1:]:
        oracle.judge(run, stored)
    write_suite(folder, NAME, PROBLEMS)
    after = command(["run", f"{NAME}.toml", "--device", "cpu"], folder)
    check_start(after, stored)
    if after.code != 0:
        raise WrongError(f"the run that goes on ended with {after.code}: {after.err}")
    if runs and len(started(folder / "results", NAME)) != len(runs):
        raise WrongError("a run that was broken was begun anew, and not gone on with")
    run = started(folder / "results", NAME)[-1]
    oracle.judge(run, stored, whole=True)
    if left := leftovers(folder / "results"):
        raise WrongError(f"temporary files are left after the run has gone on: {left}")


def check_code(broke: Ended, point: Point, report: Report) -> None:
    """Raise WrongError where a command ends as none may after such a fault."""
    if point.kills:
        return
    report.notes[f"exit code {broke.code} after {point.what}"] += 1
    allowed = (*ALLOWED, 4) if "VERDICT" in broke.out else ALLOWED
    if broke.code not in allowed:
        raise WrongError(f"exit code {broke.code}: {broke.err}{broke.out}")
    if broke.code and not (broke.err.strip() or broke.out.strip()):
        raise WrongError(f"exit code {broke.code} without a word")
