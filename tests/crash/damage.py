"""Files of a run are damaged: then the same rows are read, or an error, never other rows."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crash import sealing
from crash.forking import command, each
from crash.kills import check_start
from crash.oracle import Oracle, WrongError, rows_of, started
from crash.reporting import Report
from crash.suites import undisturbed, write_suite
from gradbench.errors import StoreError, UserError
from gradbench.tables.disk import read_seal
from gradbench.tables.store import Run
from gradbench.tables.verifying import verify

NAME, PROBLEMS = "hurt", 2
BYTES = 65536  # of a file, in which one bit is flipped in every byte
LOOKED = 100  # of so many harms of a table one is looked at in the whole run
PAGE = 512  # bytes between two truncations
CONFIG = """
about = "Two steps."
system = { name = "cet_real", D = 4, heads = 1, dh = 2, mem = 2, patch = 14 }
estimator = "bptt"
T1 = 2
batch = 2
steps = 2
seeds = [0, 1]
eval_batches = 1
[optimiser]
lr = 1e-2
"""
# what is done to the bytes of a file: a bit of a byte is flipped, or all from a byte on is cut off
Harm = tuple[str, int, int]


def harmed(content: bytes, harm: Harm) -> bytes:
    """The bytes with a harm done to them."""
    kind, at, bit = harm
    if kind == "cut":
        return content[:at]
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)


def harms(content: bytes, rng: random.Random, number: int | None) -> list[Harm]:
    """A flip in every byte and a cut at every page, or so many of these, drawn."""
    every = [("flip", i, rng.randrange(8)) for i in range(min(len(content), BYTES))]
    every += [("cut", i, 0) for i in range(0, len(content), PAGE)]
    return every if number is None else rng.sample(every, min(number, len(every)))


def damage(folder: Path, seed: int, number: int | None, resealed: int, resumed: int, only: str | None = None) -> Report:
    """Harm every file of a finished run, of one that was cut off, and of a training.

    `only` is where the names begin of the files that are harmed, as in whole/cells or part.
    `number` of the harms of a file are drawn, None: all are done. `resealed` of the changes are behind a right seal,
    and `resumed` of the harms after which the run is gone on with.
    """
    report = Report("damage", seed)
    oracle, whole = undisturbed(folder / "plain", NAME, PROBLEMS)
    part = folder / "part" / "results" / "runs" / NAME / whole.name
    shutil.copytree(whole, part)
    sealing.unfinish(part)
    sorted((part / "records").glob("*.parquet"))[-1].unlink()
    trained = _trained(folder / "trained")
    for target in (whole, part, trained):
        for path in sorted(p for p in target.rglob("*") if p.is_file() and not p.name.startswith(".")):
            name = f"{'trained' if target is trained else 'whole' if target is whole else 'part'}/{path.name}"
            if (only and not name.startswith(only)) or path.suffix not in (".json", ".parquet", ".pt", ".txt"):
                continue
            rng = random.Random(f"{seed} {name.partition('/')[0]} {path.suffix} {path.stat().st_size}")
            if target is trained:
                read: Callable[[], str] = partial(read_training, trained)
                before = read()
                look = partial(_same_text, read, before)
            else:
                look = partial(read_run, target, oracle)
            content = path.read_bytes()
            try:
                _harm(path, content, harms(content, rng, number), look, report, name)
                _reseal(path, content, rng, resealed, look, report, name)
                if target is not trained:
                    _resume(folder / "again", target, path, harms(content, rng, resumed), oracle, report, name)
            finally:
                path.write_bytes(content)
    return report


def read_run(folder: Path, oracle: Oracle) -> str:
    """What is wrong with what is read of a run; empty for the same rows, and for an error that is one."""
    run = Run(folder)
    try:
        snapshot, faults = verify(run, deep=True)
        if snapshot is None or faults:
            return ""
        for problem in sorted(run.done() & set(oracle.problems)):
            run.record(problem)
        rows = rows_of(snapshot)
    except (StoreError, UserError):
        return ""
    try:
        oracle.compare(rows, whole=snapshot.finished)
    except WrongError as wrong:
        return str(wrong)
    return ""


def _trained(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "short.toml").write_text(CONFIG)
    ended = command(["train", "short.toml", "--device", "cpu", "--out", "results"], folder)
    if ended.code:
        raise RuntimeError(f"the undisturbed training ended with {ended.code}: {ended.err}")
    (found,) = (path.parent for path in folder.rglob("checkpoint.pt"))
    return found


def read_training(folder: Path) -> str:
    """What a training holds: parameters, state and log, as text. Raises StoreError."""
    from gradbench.commands.trainings import Training
    from gradbench.engine import checkpoint

    training = Training(folder)
    content = checkpoint.read(training.checkpoint)
    state = {name: value.tolist() for name, value in content["state"].items()}
    log = training.log.drop(columns="params").to_dict("records")
    return repr((content["seeds"], content["step"], content["rows"], state, log))


def _same_text(read: Callable[[], str], before: str) -> str:
    try:
        return "" if read() == before else "different: what the training holds"
    except (StoreError, UserError):
        return ""


def _harm(path: Path, content: bytes, tried: list[Harm], look: Callable[[], str], report: Report, name: str) -> None:
    """Do every harm: the file itself is read, and where that raises nothing, and in a share of the others, the run."""

    def attempt(harm: Harm) -> str:
        path.write_bytes(harmed(content, harm))
        if path.suffix == ".parquet" and harm[1] % LOOKED:
            try:
                read_seal(path)
            except StoreError:
                return ""
        return look()

    for harm, wrong in each(tried, attempt, path.parent):
        report.failed(f"--only '{name}'", f"{name}: {harm}: {wrong}")
    path.write_bytes(content)
    report.counts["harmed files"] += len(tried)


def _reseal(
    path: Path, content: bytes, rng: random.Random, number: int, look: Callable[[], str], report: Report, name: str
) -> None:
    """Change drawn values and drawn bytes, and seal the file again: what it is bound to tells it."""
    draws = [rng.randrange(2**32) for _ in range(number)]

    def attempt(draw: int) -> str:
        path.write_bytes(content)
        if not changed(path, content, random.Random(draw)):
            return ""
        return look()

    for draw, wrong in each(draws, attempt, path.parent):
        report.failed(f"--only '{name}'", f"re-sealed {name}, draw {draw}: {wrong}")
    path.write_bytes(content)
    report.counts["re-sealed files"] += number


def changed(path: Path, content: bytes, rng: random.Random) -> bool:
    """Write a file with a drawn value or byte changed, sealed as the store does; False where nothing can be sealed."""
    if path.suffix == ".pt":
        return sealing.reseal_checkpoint(path, content, rng)
    if path.suffix == ".txt":  # a line of the journal is checked by itself: there is no seal of the whole
        return False
    if path.suffix == ".json":
        value = json.loads(content)
        sealing.write_json(path, changed_value(value, rng))
        return True
    if rng.random() < 0.5:
        return sealing.reseal(path, harmed(content, ("flip", rng.randrange(len(content)), rng.randrange(8))))
    table = pq.read_table(path)
    names = [n for n in table.column_names if len(table)]
    name, row = rng.choice(names), rng.randrange(len(table))
    values = table[name].to_pylist()
    values[row] = changed_value(values[row], rng)
    try:
        column = pa.array(values, table.schema.field(name).type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    sealing.write_table(path, table.set_column(table.column_names.index(name), table.schema.field(name), column))
    return True


def changed_value(value: Any, rng: random.Random) -> Any:
    """A value of JSON or of a table with one change somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value = dict(value)
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.1:
            del value[key]
        elif what < 0.15:
            value[f"{key}x"] = value.pop(key)
        else:
            value[key] = changed_value(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value = copy.copy(value)
        i = rng.randrange(len(value))
        what = rng.random()
        if what < 0.1:
            del value[i]
        elif what < 0.2:
            value.insert(i, value[i])
        else:
            value[i] = changed_value(value[i], rng)
        return value
    near = {
        bool: lambda: not value,
        int: lambda: value + rng.choice((-1, 1, 10**6)),
        float: lambda: value * rng.choice((-1.0, 0.5, 1.001, float("nan"), float("inf"))) + rng.choice((0.0, 1e-3)),
        str: lambda: value[1:] if rng.random() < 0.5 else f"{value}a",
    }.get(type(value))
    if near is None or rng.random() < 0.3:
        return rng.choice((None, True, 0, -1, 2**70, 0.5, "", "x", [], {}, [1], {"a": 1}))
    return near()


def _resume(
    folder: Path, target: Path, path: Path, tried: list[Harm], oracle: Oracle, report: Report, name: str
) -> None:
    """Go on with a harmed run: it is whole and right afterwards, or a new one is, or the exit code says why not."""
    content = path.read_bytes()
    for harm in tried:
        shutil.rmtree(folder, ignore_errors=True)
        arguments = write_suite(folder, NAME, PROBLEMS)
        there = folder / "results" / "runs" / NAME / target.name
        shutil.copytree(target, there)
        (there / path.relative_to(target)).write_bytes(harmed(content, harm))
        ended = command(arguments, folder)
        report.counts["harmed runs gone on with"] += 1
        report.notes[f"exit code {ended.code} of a harmed run gone on with"] += 1
        again = f"--only '{name}'"
        try:
            check_start(ended, set())
            if ended.code == 0:
                oracle.judge(started(folder / "results", NAME)[-1], set(), whole=True)
            elif ended.code != 5:
                raise WrongError(f"exit code {ended.code}: {ended.err}")
        except WrongError as wrong:
            report.failed(again, f"{name}: {harm}, gone on with: {wrong}")
