"""Where the time goes, on one GPU: `python tests/perf/where.py [atlas] [depth] [--problems 32 256] [--engine fused]`.

It prints a table for every pack: the device time and the host time of each phase, float32 and float64 apart, by the
names of the kernels. `atlas` are the packs of the suite, one for every system. `depth` is one depth of `cet_real` by
`bptt` and `aep`, of `--problems` problems. The first run of a pack makes recordings, the second is timed, the third
is traced.

*Device* is the time in which kernels and copies run. *Host* is the time of the thread less its waits for the device;
it is traced, and tracing slows the host. *Outside* is the time of the second run less the time in which the device is
busy in the third, so that tracing does not enter.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import itertools
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from gradbench.commands.profiling import ON_DEVICE, PHASE, Span, spans
from gradbench.engine import packs
from gradbench.engine.device import describe
from gradbench.engine.precision import isolated
from gradbench.planning.plans import Plan, plan
from gradbench.planning.problems import Problem
from gradbench.planning.suites import load, parse

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
DOUBLE = re.compile(r"double|dgemm|f64|d884|<D|_d_|dnrm|ddot", re.IGNORECASE)
ELSE = "outside of phases"


def depth(problems: int) -> Plan:
    """One depth of the usual sizes of cet_real, where problems share nothing but their numbers at the start."""
    s = [0.1 + 0.9 * i / problems for i in range(problems)]
    grid = {"system": "cet_real", "estimator": ["bptt", "aep"], "s": s, "damp": 1.0, "T1": 100, "T2": 15, "batch": 64}
    return plan(parse({"name": "perf", "about": "", "grid": [grid]}, "perf"))


def innermost(phases: Sequence[Span]) -> list[tuple[float, str]]:
    """From when on which phase is the innermost one, in order of time."""
    edges: list[tuple[float, str]] = []
    open_: list[Span] = []
    for span in sorted(phases, key=lambda s: (s.start, -s.duration)):
        while open_ and open_[-1].start + open_[-1].duration <= span.start:
            done = open_.pop()
            edges.append((done.start + done.duration, open_[-1].name if open_ else ELSE))
        open_.append(span)
        edges.append((span.start, span.name))
    while open_:
        done = open_.pop()
        edges.append((done.start + done.duration, open_[-1].name if open_ else ELSE))
    return edges


def within(edges: Sequence[tuple[float, str]], moment: float) -> str:
    """The phase of a moment."""
    place = bisect.bisect_right(edges, moment, key=lambda edge: edge[0]) - 1
    return edges[place][1] if place >= 0 else ELSE


def busy(entries: Sequence[Span]) -> float:
    """Microseconds in which at least one of them runs."""
    total, end = 0.0, float("-inf")
    for span in sorted(entries, key=lambda s: s.start):
        stop = span.start + span.duration
        total += max(0.0, stop - max(end, span.start))
        end = max(end, stop)
    return total


def lines(entries: Sequence[Span], warm: float) -> Iterator[str]:
    """The table of a trace, of a pack that took `warm` seconds without it."""
    on_host = [s for s in entries if s.kind == "user_annotation" and s.name.startswith(PHASE)]
    on_device = [s for s in entries if s.kind == "gpu_user_annotation" and s.name.startswith(PHASE)]
    ran = [s for s in entries if s.kind in ON_DEVICE]
    host, waited = defaultdict[str, float](float), defaultdict[str, float](float)
    device, number = defaultdict[tuple[str, bool], float](float), defaultdict[str, int](int)
    edges = innermost(on_host)
    for (start, name), (end, _) in itertools.pairwise(edges):
        host[name] += end - start
    for span in entries:
        if span.kind == "cuda_runtime" and span.name in WAITS:
            waited[within(edges, span.start)] += span.duration
    there = innermost(on_device)
    for span in ran:
        name = within(there, span.start)
        device[name, bool(DOUBLE.search(span.name))] += span.duration
        number[name] += 1
    yield f"{'phase':<34}{'host ms':>10}{'waits ms':>10}{'float32 ms':>12}{'float64 ms':>12}{'kernels':>10}"
    for name in sorted({*host, *number}, key=lambda name: -(device[name, False] + device[name, True])):
        yield (
            f"{name.removeprefix(PHASE):<34}{(host[name] - waited[name]) / 1e3:>10.1f}{waited[name] / 1e3:>10.1f}"
            f"{device[name, False] / 1e3:>12.1f}{device[name, True] / 1e3:>12.1f}{number[name]:>10,}"
        )
    worked = busy(ran) / 1e3
    yield f"warm {1e3 * warm:.0f} ms, device busy {worked:.0f} ms, outside {1e3 * warm - worked:.0f} ms"


def told(title: str, pack: Sequence[Problem], planned: Plan, engine: str) -> tuple[float, float]:
    """Print the table of a pack; its warm milliseconds, and those in which the device was busy."""
    budget = packs.available("cuda") // packs.LANES

    def measure() -> None:
        packs.measure_pack(pack, "cuda", planned.thresholds, engine, budget)
        torch.cuda.synchronize()

    measure()
    gc.collect()
    gc.freeze()  # as a run does it: a collection of all objects takes 0.1 s
    try:
        start = perf_counter()
        measure()
        warm = perf_counter() - start
    finally:
        gc.unfreeze()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        measure()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        entries = spans(trace.read_bytes())
    cells = sum(len(problem.cells) for problem in pack)
    print(f"\n{title}: {len(pack)} problems, {cells:,} cells, {1e3 * warm / len(pack):.2f} ms a problem")
    print("\n".join(lines(entries, warm)), flush=True)
    return 1e3 * warm, busy([s for s in entries if s.kind in ON_DEVICE]) / 1e3


def main(asked: Sequence[str], problems: Sequence[int], engine: str) -> None:
    """Print all tables that are asked for."""
    print(f"{describe('cuda')}, torch {torch.__version__}, engine {engine}")
    with isolated():
        if "depth" in asked:
            for number in problems:
                planned = depth(number)
                told("one depth of cet_real", planned.problems, planned, engine)
        if "atlas" in asked:
            planned = plan(load(Path(__file__).parents[2] / "suites" / "atlas.toml"))
            cut = packs.cut_into_packs(planned.problems, "cuda", engine)
            sums = [told(pack[0].cells[0].labels["system_label"], pack, planned, engine) for pack in cut]
            warm, worked = (sum(column) / 1e3 for column in zip(*sums, strict=True))
            print(f"\natlas, a pack at a time: warm {warm:.2f} s, device busy {worked:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="*", default=["depth", "atlas"], help="atlas, depth or both")
    parser.add_argument("--problems", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--engine", default="batched")
    arguments = parser.parse_args()
    main(arguments.asked, arguments.problems, arguments.engine)
