"""Where the time of a run went: a trace for a viewer, and a table by phase and by operation."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

from gradbench.tables.disk import guarded, refuse_links, scratch, write

OPERATIONS = 25  # lines of the table
PHASE = "gradbench: "
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class Span(NamedTuple):
    """An entry of a trace: what ran where, from when on and for how long, in microseconds."""

    kind: str
    name: str
    thread: int | str
    start: float
    duration: float


@contextmanager
def profiled(folder: Path, device: str) -> Iterator[None]:
    """Profile the code inside, and write `trace.json.gz` and `table.txt` into the folder, which is one of a run."""
    refuse_links(folder, folder.parent)
    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        yield
    with guarded(folder), scratch(folder.parent) as made:
        plain = made / "trace.json"
        profiler.export_chrome_trace(str(plain))
        content = plain.read_bytes()
    packed = gzip.compress(content, compresslevel=1)
    write(folder / "trace.json.gz", lambda file: file.write(packed), inside=folder.parent)
    # made from the trace, since the averages of torch take a minute for a million operations
    text = table(spans(content), cuda).encode()
    write(folder / "table.txt", lambda file: file.write(text), inside=folder.parent)


def spans(trace: bytes) -> list[Span]:
    """The entries with a duration of a trace in Chrome's format."""

    def lean(entry: dict[str, Any]) -> Any:
        if "traceEvents" in entry:
            return entry["traceEvents"]
        if entry.get("ph") != "X" or "cat" not in entry:
            return None
        return Span(sys.intern(entry["cat"]), sys.intern(entry["name"]), entry["tid"], entry["ts"], entry["dur"])

    return [entry for entry in json.loads(trace, object_hook=lean) if entry is not None]


def table(entries: Iterable[Span], cuda: bool) -> str:
    """Milliseconds by phase, then the operations that took most.

    With `cuda` an operation is timed on the device, where a phase lasts from its first operation to its last. Without
    it, an operation is timed on the host, less the operations that it calls.
    """
    entries = list(entries)
    phases = [s for s in entries if s.kind == "user_annotation" and s.name.startswith(PHASE)]
    host, calls = _sums((s.name, s.duration) for s in phases)
    device, _ = _sums((s.name, s.duration) for s in entries if s.kind == "gpu_user_annotation")
    lines = [f"{'phase':<44}{'calls':>8}{'host ms':>12}" + (f"{'device ms':>12}" if cuda else "")]
    for name in sorted(host, key=lambda name: -host[name]):
        there = f"{device.get(name, 0.0) / 1e3:>12.1f}" if cuda else ""
        lines.append(f"{name.removeprefix(PHASE):<44}{calls[name]:>8}{host[name] / 1e3:>12.1f}{there}")
    on_device = ((s.name, s.duration) for s in entries if s.kind in ON_DEVICE)
    spent, calls = _sums(on_device if cuda else _exclusive(entries))
    whole = sum(spent.values())
    lines += ["", f"{'operation':<84}{'calls':>8}{('device' if cuda else 'host') + ' ms':>12}{'share':>8}"]
    for name in sorted(spent, key=lambda name: -spent[name])[:OPERATIONS]:
        lines.append(f"{name[:82]:<84}{calls[name]:>8}{spent[name] / 1e3:>12.1f}{spent[name] / whole:>8.1%}")
    return "\n".join(lines) + "\n"


def _sums(durations: Iterable[tuple[str, float]]) -> tuple[dict[str, float], dict[str, int]]:
    """The sum and the number of durations by name."""
    total, number = defaultdict[str, float](float), defaultdict[str, int](int)
    for name, duration in durations:
        total[name] += duration
        number[name] += 1
    return total, number


def _exclusive(entries: Iterable[Span]) -> Iterator[tuple[str, float]]:
    """Every operation of the host with its duration, less that of the operations which it calls."""
    by_thread = defaultdict[int | str, list[Span]](list)
    for span in entries:
        if span.kind == "cpu_op":
            by_thread[span.thread].append(span)
    for ordered in by_thread.values():
        ordered.sort(key=lambda s: (s.start, -s.duration))
        open_: list[tuple[Span, float]] = []  # operations that have not ended, with their time outside of calls
        for span in ordered:
            while open_ and open_[-1][0].start + open_[-1][0].duration <= span.start:
                done, left = open_.pop()
                yield done.name, left
            if open_:
                open_[-1] = open_[-1][0], open_[-1][1] - span.duration
            open_.append((span, span.duration))
        yield from ((done.name, left) for done, left in open_)
