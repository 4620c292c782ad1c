"""What runs of many cells cost: CPU seconds and peak memory of planning, of the resume scan and of the compaction.

    python tests/perf/at_size.py FOLDER

Each is done in a process of its own. The run of 10,000 records is made in FOLDER, where none is there yet: it is one
measured record, again and again under the keys of other seeds. CPU seconds are those of the process and of its threads,
in user and system mode, without imports.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

import gradbench
from gradbench.commands.running import prepare
from gradbench.planning import suites
from gradbench.tables.bundles import FOLDER
from gradbench.tables.disk import SHORT, sealed_table
from gradbench.tables.journal import Journal
from gradbench.tables.manifest import NAME
from gradbench.tables.schema import METADATA
from gradbench.tables.store import Run

SYSTEM = {"system": {"name": "cet_real", "D": 8, "dh": 4, "heads": 2, "mem": 8}, "damp": 1.0, "batch": 2}
FEW = {"estimator": ["ep", "aep"], "T1": 50, "T2": [5], "beta": [0.01, 0.02, 0.05, 0.1, 0.2]}  # 10 cells of a problem
MANY = {"estimator": ["ep", "aep"], "T1": [50, 100], "T2": [5, 10, 15, 20, 30], "beta": FEW["beta"]}  # 100
RECORDS = 10_000
BEGUN = """
import json, os, re, sys
from pathlib import Path
from gradbench.commands import running
from gradbench.planning import registry
from gradbench.planning.suites import parse
import gradbench.tables.records, pandas, pyarrow.parquet, pyarrow.compute
registry.known_systems(), registry.known_estimators()
suite = parse(json.loads(Path(sys.argv[1]).read_text()), sys.argv[1])
spent = lambda: sum(os.times()[:2])
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
start = spent()
"""
ENDED = """
print(json.dumps([spent() - start, peak()]))
"""
PLANNED = """
planned = running.prepare(suite)[1]
assert planned.summary
"""
SCANNED = """
from gradbench.tables.store import Run
planned = running.prepare(suite)[1]
keys = {problem.key for problem in planned.problems}
start = spent()
assert running._finished(Run(Path(sys.argv[2])), planned.problems, planned, False).keys() == keys
"""
COMPACTED = """
from gradbench.tables.store import Run
assert Run(Path(sys.argv[2])).compact([]) == 0
"""


def _written(folder: Path, name: str, grid: dict[str, object], seeds: int) -> Path:
    """The file of a suite, as JSON."""
    path = folder / f"{name}.json"
    content = {"name": "at_size", "about": "", "grid": [SYSTEM | grid | {"seed": list(range(seeds))}]}
    path.write_text(json.dumps(content))
    return path


def _stored(folder: Path, suite: Path) -> Run:
    """A run with a record for every problem and without tables."""
    run = Run(folder / "runs" / "at_size" / "many")
    if (run.folder / "env.json").exists():
        return run
    planned = prepare(suites.parse(json.loads(suite.read_text()), str(suite)))[1]
    measured = gradbench.run(
        gradbench.suite(SYSTEM | FEW | {"seed": 0}, name="measured"), out=folder / "measured", device="cpu"
    )
    (key,) = measured.done()
    table = measured.record(key)
    (run.folder / "records").mkdir(parents=True)
    noted = Journal(run.folder)
    run.start(planned.to_json(), measured.env, {"check": [], "statement": [], "table": [], "allow_incomplete": False})
    for problem in planned.problems:
        there: dict[str, list[Any]] = {
            "problem": [problem.key] * len(table),
            "seed": [problem.point.seed] * len(table),
            "cell": [cell.key for cell in problem.cells],
        }
        again = table.replace_schema_metadata({**METADATA, **run.origin})
        for name, values in there.items():
            place = table.column_names.index(name)
            again = again.set_column(place, table.schema.field(place), pa.array(values, table.schema.types[place]))
        content, seal = sealed_table(again, SHORT)
        noted.note(problem.key, seal)
        run.path_of(problem.key).write_bytes(content)  # without the syncs of `keep`, which take minutes for so many
    return run


def _spent(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", BEGUN + code + ENDED, *map(str, arguments)]
    answer = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    seconds, peak = json.loads(answer.stdout)
    return f"{seconds:6.1f} s of CPU, {peak:6.0f} MB"


def main(folder: Path) -> None:
    """Print a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for cells in (100_000, 1_000_000):
        for words, grid, of_a_problem in (("10 cells a problem", FEW, 10), ("100 cells a problem", MANY, 100)):
            suite = _written(folder, f"plan-{cells}-{of_a_problem}", grid, cells // of_a_problem)
            print(f"plan of {cells:,} cells, {words}: {_spent(PLANNED, suite)}", flush=True)
    suite = _written(folder, "stored", FEW, RECORDS)
    run = _stored(folder, suite)
    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)
    for words in ("without copies", "with copies"):  # the first compaction makes them
        (run.folder / NAME).unlink(missing_ok=True)
        for what, code in (("resume scan", SCANNED), ("compaction", COMPACTED)):
            told = f"{what} of {RECORDS:,} records of 10 cells, {words}"
            print(f"{told}: {_spent(code, suite, run.folder)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
