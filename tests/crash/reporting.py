"""What a campaign tried, and what broke."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

LISTED = 10  # failures of a kind that are printed


@dataclass
class Report:
    """The count of what was tried, and every failure with the command that repeats it."""

    name: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # the command, and what was wrong
    notes: Counter[str] = field(default_factory=Counter)  # what is no failure, and worth a line
    began: float = field(default_factory=time.monotonic)

    def failed(self, again: str, wrong: object) -> None:
        """Note a failure, and print it at once."""
        self.failures.append((f"python -m crash {self.name} --seed {self.seed} {again}".strip(), str(wrong)))
        if len(self.failures) <= LISTED:
            command, told = self.failures[-1]
            print(f"FAIL {told}\n     again: {command}", flush=True)

    def absorb(self, other: Report) -> None:
        """Add what another process tried."""
        self.counts += other.counts
        self.notes += other.notes
        self.failures += other.failures

    @property
    def text(self) -> str:
        """What was tried, in lines."""
        told = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        lines = [f"{self.name:<8} seed {self.seed}: {told}; {len(self.failures)} failures; {self.seconds:.0f} s"]
        lines += [f"         {number:,} x {what}" for what, number in self.notes.most_common(40)]
        return "\n".join(lines)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began
