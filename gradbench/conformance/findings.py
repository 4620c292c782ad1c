"""What a check found, and how a check is run: a fault of the item is a finding and never an exception."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gradbench.vocabulary.exit import Exit

Result = Literal["pass", "fail", "none", "told"]  # none: not tried; told: a number without a verdict
HINTS = {  # what to do, by a word of the message of an exception
    "vmap": "the batched engine lifts a system by torch.func.vmap: avoid .item(), in-place writes and branches on "
    "values, or say lifted = False in the class of the system",
    "has no energy": "the rule reads an energy: say so in its claim, Claim(energy_for=...)",
    "unhashable": "systems and rules are frozen dataclasses: @dataclass(frozen=True)",
}


class NotTriedError(Exception):
    """A check does not apply; the message says why."""


class Number(NamedTuple):
    """The result of a check before it is judged."""

    number: float
    bound: float | None  # passes where number <= bound; None: no verdict
    advice: str = ""  # of a failure, or of a number without a verdict


Check = Callable[[], Number]


@dataclass(frozen=True)
class Finding:
    """The result of one check of a system or a rule."""

    name: str  # what must hold
    result: Result
    number: float  # what was measured, NaN where it is no number; it passes where it is at most `bound`
    bound: float
    advice: str  # what is wrong and what to do, or why it was not tried

    @property
    def failed(self) -> bool:
        """Whether what must hold does not."""
        return self.result == "fail"


@dataclass(frozen=True)
class Conformance:
    """The findings about one system or rule."""

    name: str
    kind: Literal["system", "estimator"]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether something was tried and nothing failed."""
        return self.code == Exit.OK

    @property
    def code(self) -> Exit:
        """OK, CHECK_FAILED, or NOTHING where nothing could be tried."""
        results = {finding.result for finding in self.findings}
        if "fail" in results:
            return Exit.CHECK_FAILED
        return Exit.OK if "pass" in results else Exit.NOTHING

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return tuple(finding for finding in self.findings if finding.failed)

    @property
    def line(self) -> str:
        """The verdict in one line."""
        count = {r: sum(finding.result == r for finding in self.findings) for r in ("pass", "fail", "none")}
        verdict = {Exit.OK: "passed", Exit.CHECK_FAILED: "failed"}.get(self.code, "nothing could be tried")
        told = f"{count['pass']} checks pass, {count['fail']} fail, {count['none']} not tried"
        return f"{self.kind} {self.name}: {verdict}; {told}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        rows = [
            {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in vars(f).items()}
            for f in self.findings
        ]
        return {"name": self.name, "kind": self.kind, "passed": self.passed, "findings": rows}

    def __repr__(self) -> str:
        shown = [f for f in self.findings if f.result != "pass"]
        return "\n".join([*(f"{f.result.upper():<4}  {f.name}  {measured(f)}  {f.advice}" for f in shown), self.line])


def measured(finding: Finding) -> str:
    """The number of a finding beside its bound, for people to read."""
    if math.isnan(finding.number) or (finding.result == "pass" and not finding.bound):  # a count of faults: none
        return ""
    return f"{finding.number:.2g}" + ("" if math.isnan(finding.bound) else f" of {finding.bound:.2g}")


def tried(name: str, check: Check) -> Finding:
    """Run one check. Whatever it raises is a finding."""
    try:
        number, bound, advice = check()
    except NotTriedError as reason:
        return Finding(name, "none", math.nan, math.nan, str(reason))
    except Exception as error:  # an item may raise anything
        return Finding(name, "fail", math.nan, math.nan, raised(error))
    if bound is None:
        return Finding(name, "told", number, math.nan, advice)
    passed = number <= bound
    return Finding(name, "pass" if passed else "fail", number, bound, "" if passed else advice)


def all_tried(checks: Iterable[tuple[str, Check]], *, needed: bool = False) -> Iterator[Finding]:
    """Run checks one after the other; if `needed`, up to the first that does not pass: what follows relies on it."""
    for name, check in checks:
        finding = tried(name, check)
        yield finding
        if needed and finding.result != "pass":
            return


def raised(error: Exception) -> str:
    """An exception of an item in one line, with a hint where one is known."""
    told = str(error).partition("\n")[0]
    hint = next((f"; {hint}" for word, hint in HINTS.items() if word in told), "")
    return f"raised {type(error).__name__}: {told}{hint}"
