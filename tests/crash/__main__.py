"""`python -m crash`: all campaigns, or the named ones."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from crash import forking
from crash.damage import damage
from crash.fuzz import fuzz
from crash.kills import kills
from crash.points import all_points
from crash.reporting import Report
from crash.states import states


def main() -> int:
    """Run campaigns; 1 where something broke."""
    parser = argparse.ArgumentParser(prog="python -m crash", description=sys.modules["crash"].__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"{', '.join(CAMPAIGNS)}; left out: all")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--kills", type=int, default=300, help="random kills")
    parser.add_argument("--threads-only", action="store_true", help="no kills of runs with worker processes")
    parser.add_argument("--points", type=int, help="points at which a call kills or fails, drawn; left out: all")
    parser.add_argument("--harms", type=int, help="harms of a file, drawn; left out: every byte and every page")
    parser.add_argument("--resealed", type=int, default=2000, help="changes of a file behind a seal that is right")
    parser.add_argument("--resumed", type=int, default=10, help="harms of a file after which its run is gone on with")
    parser.add_argument("--examples", type=int, default=60, help="sequences of steps of the machine of states")
    parser.add_argument("--inputs", type=int, default=100_000, help="malformed inputs")
    parser.add_argument("--only", help="one trial of a campaign, as a failure names it")
    parser.add_argument("--leave", type=Path, metavar="FOLDER", help="work in this folder, and leave it")
    asked = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory(prefix="crash") as temporary:
        folder = (asked.leave or Path(temporary)).resolve()
        forking.warm(folder / "warm")
        for name in asked.campaigns or CAMPAIGNS:
            print(f"{name}: seed {asked.seed}", flush=True)
            reports.append(CAMPAIGNS[name](folder / name, asked))
            print(reports[-1].text, flush=True)
    return int(any(report.failures for report in reports))


CAMPAIGNS: dict[str, Callable[[Path, argparse.Namespace], Report]] = {
    "kills": lambda folder, asked: kills(
        folder, asked.seed, asked.kills, asked.only and int(asked.only), plugged=not asked.threads_only
    ),
    "points": lambda folder, asked: all_points(folder, asked.seed, asked.points, asked.only),
    "damage": lambda folder, asked: damage(folder, asked.seed, asked.harms, asked.resealed, asked.resumed, asked.only),
    "states": lambda folder, asked: states(folder, asked.seed, asked.examples),
    "fuzz": lambda folder, asked: fuzz(folder, asked.seed, asked.inputs, asked.only),
}

if __name__ == "__main__":
    sys.exit(main())
