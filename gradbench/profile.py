"""Where the time of a run went: a trace for a viewer, and a table by phase and by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile

from gradbench.tables.store import write

if TYPE_CHECKING:
    from pathlib import Path

KERNELS = 25  # lines of the table


@contextmanager
def profiled(folder: Path, device: str) -> Iterator[None]:
    """Profile what runs inside: `trace.json.gz` and `table.txt` in the folder."""
    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        yield
    folder.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(folder / "trace.json.gz"))
    write(folder / "table.txt", lambda file: file.write(_table(found.key_averages(), cuda).encode()))


def _table(events: Any, cuda: bool) -> str:
    """Milliseconds by phase, then the operations that took most, on the device where there is one."""
    lines = [f"{'phase':<44}{'calls':>8}{'host ms':>12}{'device ms':>12}"]
    phases = [e for e in events if e.key.startswith("gradbench: ") and e.cpu_time_total]
    for e in sorted(phases, key=lambda e: -e.cpu_time_total):
        device = f"{e.device_time_total / 1e3:>12.1f}" if cuda else f"{'':>12}"
        lines.append(f"{e.key.removeprefix('gradbench: '):<44}{e.count:>8}{e.cpu_time_total / 1e3:>12.1f}{device}")
    where, own = ("device", "self_device_time_total") if cuda else ("host", "self_cpu_time_total")
    rest = [e for e in events if not e.key.startswith("gradbench: ") and getattr(e, own) > 0]
    whole = sum(getattr(e, own) for e in rest)
    lines += ["", f"{'operation':<84}{'calls':>8}{where + ' ms':>12}{'share':>8}"]
    for e in sorted(rest, key=lambda e: -getattr(e, own))[:KERNELS]:
        time = getattr(e, own)
        lines.append(f"{e.key[:82]:<84}{e.count:>8}{time / 1e3:>12.1f}{time / whole:>8.1%}")
    return "\n".join(lines) + "\n"
