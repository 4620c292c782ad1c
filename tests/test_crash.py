"""A share of what `make crashtest` tries: kills, calls that fail, damaged files, malformed input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# the campaigns run in a process of their own: it forks, and holds torch to one thread
SHARES = {
    "kills": ["--kills", "20", "--threads-only", "--seed", "1"],
    "points": ["--points", "12", "--seed", "7"],
    "damage": ["--harms", "9", "--resealed", "4", "--resumed", "0", "--seed", "1"],
    "states": ["--examples", "1", "--seed", "1"],
    "fuzz": ["--inputs", "550", "--seed", "1"],
}
HARNESS = """
import os, random, sys, time, pathlib
sys.path.insert(0, {tests!r})
from crash import forking
from crash.fuzz import Attempt, Target
from crash.oracle import WrongError

folder = pathlib.Path({folder!r})
(folder / "box").mkdir()
NUMBER = {{random.Random(i).random(): i for i in range(7)}}

def take(given):
    if given == 1:
        raise KeyError("inside")
    if given == 2:
        time.sleep(60)
    if given == 3:
        os.kill(os.getpid(), 9)
    if given == 4:
        (folder / "elsewhere").write_text("x")
    if given == 5:
        (folder / "box" / "file").write_text("x")

target = Target("t", lambda rng: NUMBER[rng.random()], take)
for given, wrong in forking.each(range(7), Attempt(target, folder), folder, 1.0):
    print(given, wrong)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("campaign", SHARES)
def test_nothing_is_lost_torn_doubled_or_different(campaign: str) -> None:
    told = python("-m", "crash", campaign, *SHARES[campaign])
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"; 0 failures", told.stdout)


def test_the_harness_sees_what_it_looks_for(tmp_path: Path) -> None:
    """A traceback, a hang, a crash, and a file elsewhere, and nothing else."""
    code = HARNESS.format(tests=str(ROOT / "tests"), folder=str(tmp_path))
    told = python("-c", code)
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"], told.stdout + told.stderr
    for line, wrong in zip(lines, ("KeyError at", "no answer within", "ended with -9", "written outside"), strict=True):
        assert wrong in line


def test_a_forked_run_holds_the_rows_of_one_that_was_started_from_nothing(tmp_path: Path) -> None:
    code = f"""
import pathlib, subprocess, sys
from crash import forking
from crash.oracle import Oracle, started
from crash.suites import undisturbed, write_suite
folder = pathlib.Path({str(tmp_path)!r})
forking.warm(folder / "warm")
oracle, _ = undisturbed(folder / "forked", "toys", 3)
arguments = write_suite(folder / "started", "toys", 3)
subprocess.run([sys.executable, "-m", "gradbench", *arguments], cwd=folder / "started", check=True)
(run,) = started(folder / "started" / "results", "toys")
oracle.judge(run, set(oracle.problems), whole=True)
print("the same", len(oracle.tables))
"""
    told = python("-c", code)
    assert re.search(r"the same [1-9]", told.stdout), told.stdout + told.stderr
