"""Malformed input, drawn: no traceback, no hang, and nothing written outside the folder that it is about."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crash import sealing
from crash.damage import NAME, PROBLEMS, _trained, changed, changed_value, read_training
from crash.forking import each
from crash.oracle import rows_of
from crash.reporting import Report
from crash.suites import GRID, RULES, TOY, undisturbed
from gradbench.errors import StoreError, UserError
from gradbench.tables.store import Run
from gradbench.tables.verifying import verify

BATCH = 500  # inputs of one forked process
SECONDS = 10.0  # that an input may take
# events of Python's audit that change a disk, and the arguments that are paths
WRITES = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.link": (0, 1), "os.symlink": (1,),
    "os.chmod": (0,), "os.truncate": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
JUNK = (
    "", " ", "\0", "\x1b[31m", "\u202egnp", "\ufeff", "\ud800", "é", "😀", "nan", "inf", "-inf", "1e999", "-0.0",
    "9" * 400, "0x", "1_0", "true", "null", "[]", "{}", "[" * 200, "{a=" * 200, "]", "}", ",", ",,", "=", "==", "'",
    '"', '"""', "#", "../../etc/passwd", "/dev/zero", "/dev/stdin", "~", "$(touch x)", "`touch x`", "%s%n", "a" * 5000,
    "seed=1", "T1=1e300", "1979-05-27", "beta = [", "[[grid]]", "[grid]", "range", "{ from = 1, to = 9 }", "2" * 20,
    "-1", "0", ".", "..", "*",
)  # fmt: skip
KEYS = ("seed", "T1", "beta", "system", "estimator", "damp", "dtype", "status", "cosine", "cell", "params_from", "s")
VALUES = ("1", "0.5", "[1, 2]", '"aep"', "aep clip=batch", "toy_cons N=2", "settled", "{ from = 1, to = 9 }")


Draw = Callable[[random.Random], object]
Take = Callable[[object], object]


@dataclass
class Target:
    """What takes inputs: how one is drawn, and what is done with it."""

    name: str
    draw: Draw
    take: Take


def fuzz(folder: Path, seed: int, number: int, only: str | None = None) -> Report:
    """Give so many inputs to what reads them, in equal shares. `only` is a target and the seed of one input."""
    report = Report("fuzz", seed)
    targets = _targets(folder)
    for target in targets:
        began = time.monotonic()
        rng = random.Random(f"{seed} {target.name}")
        left = -(-number // len(targets))  # no fewer inputs in all than were asked for
        if only is not None:
            if only.partition(",")[0] != target.name:
                continue
            left = 1
        while left > 0:
            draws = [rng.randrange(2**48) for _ in range(min(left, BATCH))]
            if only is not None:
                draws = [int(only.partition(",")[2])]
            left -= len(draws)
            before = listing(folder)
            for draw, wrong in each(draws, Attempt(target, folder), folder, SECONDS):
                report.failed(f"--only {target.name},{draw}", f"{target.name}: {wrong}")
            if changes := listing(folder) ^ before:
                report.failed(f"--only {target.name},{draws[0]}", f"{target.name}: written: {sorted(changes)[:3]}")
            report.counts[f"inputs of {target.name}"] += len(draws)
        rate = report.counts[f"inputs of {target.name}"] / (time.monotonic() - began)
        report.notes[f"inputs a second of {target.name}"] += round(rate)
    return report


class Attempt:
    """Gives an input that is drawn from a number to a target. In its process, writing is watched."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.allowed = (str(folder / "box"), os.devnull)
        self.written: list[str] = []
        self.watching = False

    def __call__(self, draw: int) -> str:
        """What is wrong; empty for nothing."""
        if not self.watching:
            self.watching = True
            sys.addaudithook(self.watch)
        self.written.clear()
        given = self.target.draw(random.Random(draw))
        try:
            self.target.take(given)
        except (UserError, StoreError) as error:
            text = str(error)
            if not text.strip() or "Traceback" in text:
                return f"an error without words: {text[:200]!r} for {given!r:.200}"
        except SystemExit as stop:
            if stop.code not in (0, 2, 3, 4, 5, None):
                return f"exit code {stop.code} for {given!r:.200}"
        except Exception as error:
            import traceback

            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            return f"{type(error).__name__} at {where}: {error!s:.200}; {given!r:.300}"
        return f"written outside: {self.written[0]} for {given!r:.200}" if self.written else ""

    def watch(self, event: str, args: tuple[object, ...]) -> None:
        """Note a path outside of the folder that something is written to, and a program that is started."""
        if event == "open":
            path, mode, flags = (*args, None, None, None)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths: list[object] = [path] if writes or (isinstance(mode, str) and set(mode) & set("wax+")) else []
        elif event in ("subprocess.Popen", "os.system", "socket.connect"):
            self.written.append(f"{event} {args!r:.200}")
            return
        else:
            paths = [args[i] for i in WRITES.get(event, ()) if i < len(args)]
            if event in ("os.remove", "os.rmdir") and args[1] != -1:  # relative to an open folder
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), os.fsdecode(args[0]))]  # type: ignore[arg-type]
        for path in paths:
            if isinstance(path, int) or path is None:
                continue
            there = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
            if not there.startswith(self.allowed) and "__pycache__" not in there:
                self.written.append(f"{event} {there}")


def listing(folder: Path) -> set[tuple[str, int]]:
    """All files but those that the inputs themselves are written to."""
    return {
        (str(p), p.lstat().st_size) for p in folder.rglob("*") if "box" not in p.parts and not p.is_dir()
    }  # fmt: skip


def mutated(text: str, rng: random.Random) -> str:
    """A text with a few edits: cut, doubled, swapped, a letter, a piece of junk."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 2, 5, 30)))
        piece = rng.choice(("", text[i:j] * 2, rng.choice(JUNK), chr(rng.randrange(256))))
        text = text[:i] + piece + text[j:]
    return text


def _nested(rng: random.Random) -> object:
    value: object = rng.choice((1, "x", None, 0.5, True, []))
    for _ in range(rng.choice((1, 3, 50, 500))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "b", "cell")): value}
    return value


def _of_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file with a few edits, or none of it."""
    what = rng.random()
    if what < 0.1:
        return rng.randbytes(rng.choice((0, 1, 8, 300)))
    if what < 0.25:
        return content[: rng.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 10))):
        i = rng.randrange(len(changed))
        changed[i : i + rng.choice((0, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
    return bytes(changed)


def _hostile(tar: bytes, rng: random.Random) -> bytes:
    """An archive whose entries are renamed, doubled, left out, linked, or of another kind or size, index and all."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as given, tarfile.open(fileobj=out, mode="w") as made:
        for entry in given.getmembers():
            file = given.extractfile(entry)
            content = file.read() if file else b""
            if rng.random() < 0.15:
                if content.startswith(b"{"):
                    index = changed_value(json.loads(content), rng)
                    content = sealing.disk.sealed_json(index) if isinstance(index, dict) else content
                what = rng.choice(("name", "kind", "size", "none", "index"))
                if what == "name":
                    entry.name = rng.choice(("../out.txt", "/tmp/out.txt", "a/../../b", ".hidden", "x" * 90, *JUNK[:6]))
                elif what == "kind":
                    entry.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
                    entry.linkname = rng.choice(("/etc/passwd", "../..", "env.json"))
                elif what == "size":
                    content = content * rng.choice((0, 2)) + b"0" * rng.choice((0, 1, 10**6))
                elif what == "none":
                    continue
            for _ in range(1 + (rng.random() < 0.02)):
                entry.size = len(content) if entry.isreg() else 0
                with suppress(ValueError, UnicodeError):  # a name that no archive can hold
                    made.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _targets(folder: Path) -> list[Target]:
    from gradbench.commands.archiving import indexed, pack, unpack
    from gradbench.commands.reporting import exported
    from gradbench.commands.running import prepare
    from gradbench.planning.overrides import Overrides
    from gradbench.planning.values import settings
    from gradbench.tables.snapshots import Snapshot

    _, whole = undisturbed(folder / "plain", NAME, PROBLEMS)
    trained = _trained(folder / "trained")
    box = folder / "box"
    shutil.copytree(whole, box / "run")
    shutil.copytree(trained, box / "training")
    run = Run(box / "run")
    suite = GRID.format(system=TOY, estimator=RULES, seeds=[0, 1], T2s=2, betas=0.1) + CHECK
    path = box / "drawn.toml"
    plain = box / "plain.toml"
    plain.write_text(suite)
    cell = run.plan["cells"][0]["cell"]

    def draw_suite(rng: random.Random) -> object:
        return mutated(suite, rng).encode("utf-8", "surrogatepass")

    def take_suite(given: object) -> object:
        path.write_bytes(given)  # type: ignore[arg-type]
        return prepare(path)

    def draw_pair(rng: random.Random) -> object:
        pair = f"{rng.choice((*KEYS, *JUNK))}={rng.choice((*VALUES, cell, *JUNK))}"
        return mutated(pair, rng) if rng.random() < 0.7 else pair

    def take_set(given: object) -> object:
        return prepare(plain, Overrides(settings([str(given)], "--set"), "--set {key}"))

    def take_where(given: object) -> object:
        return exported(run, "csv", "cells", settings([str(given)], "--where"))

    def of_file(file: Path, look: Callable[[], object]) -> tuple[Draw, Take]:
        good = file.read_bytes()

        def draw(rng: random.Random) -> object:
            return (rng.choice(("bytes", "sealed")), rng.randrange(2**32))

        def take(given: object) -> object:
            kind, number = given  # type: ignore[misc]
            rng = random.Random(number)
            try:
                file.write_bytes(good)
                if kind == "bytes":
                    file.write_bytes(_of_bytes(good, rng))
                elif file.suffix == ".json" and rng.random() < 0.3:
                    sealing.write_json(file, _nested(rng))
                elif not changed(file, good, rng):
                    return None
                return look()
            finally:
                file.write_bytes(good)

        return draw, take

    def look_at_run() -> object:
        snapshot, _ = verify(run)
        return rows_of(snapshot) if snapshot is not None else None

    record = sorted((run.folder / "records").glob("*.parquet"))[0]
    files = {
        "record": of_file(record, lambda: run.record(record.stem)),
        "table": of_file(run.folder / "cells.parquet", lambda: Snapshot(run.folder)),
        **{
            p.name: of_file(p, look_at_run) for p in sorted(run.folder.glob("*.json")) if p.name != "verdict.json"
        },
        "checkpoint": of_file(box / "training" / "checkpoint.pt", lambda: read_training(box / "training")),
    }  # fmt: skip
    archive = box / "run.tar.gz"
    pack(run, indexed(run)[0], archive)
    packed, rows = archive.read_bytes(), rows_of(Snapshot(run.folder))
    plain_tar = gzip.decompress(packed)

    def take_archive(given: object) -> object:
        rng = random.Random(given)  # type: ignore[arg-type]
        what = rng.random()
        if what < 0.4:
            content = _of_bytes(packed, rng)
        elif what < 0.8:
            content = gzip.compress(_of_bytes(plain_tar, rng), 1)
        else:
            content = gzip.compress(_hostile(plain_tar, rng), 1)
        archive.write_bytes(content)
        try:
            there, _ = unpack(archive, box / "out")
            assert rows_of(Snapshot(there.folder)) == rows, "unpacked with other rows"
        finally:
            shutil.rmtree(box / "out", ignore_errors=True)
        return None

    return [
        Target("archive", lambda rng: rng.randrange(2**32), take_archive),
        Target("suite", draw_suite, take_suite),
        Target("set", draw_pair, take_set),
        Target("where", draw_pair, take_where),
        *(Target(name, *functions) for name, functions in files.items()),
    ]


CHECK = """
[[check]]
name = "aep follows BPTT"
where = { estimator = "ep", status = "any" }
metric = "cosine"
min = -1.0

[[table]]
name = "all cells"
columns = ["cosine", "status"]
"""
