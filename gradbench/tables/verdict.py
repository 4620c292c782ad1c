"""The verdict of a run: its coverage, its checks, one line and one exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from gradbench.planning.suites import Check
from gradbench.tables.checks import Finding, evaluate
from gradbench.tables.store import Run, write_json
from gradbench.vocabulary.exit import PRECEDENCE, Exit
from gradbench.vocabulary.status import Status

_WORDS = {Exit.OK: "pass", Exit.CHECK_FAILED: "fail", Exit.INCOMPLETE: "incomplete", Exit.NOTHING: "nothing checked"}


@dataclass(frozen=True)
class Verdict:
    """The result of all checks of a run."""

    run: str
    code: Exit
    planned: int
    present: int
    statuses: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def line(self) -> str:
        """The verdict in one line."""
        passed = sum(f.passed for f in self.findings)
        return (
            f"VERDICT {_WORDS[self.code]} ({self.code.value})  {passed} of {len(self.findings)} checks, "
            f"{self.present} of {self.planned} cells"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for verdict.json."""
        content = asdict(self) | {"code": self.code.value, "verdict": _WORDS[self.code]}
        return content | {"findings": [asdict(f) for f in self.findings]}


def judge(run: Run) -> Verdict:
    """Evaluate the checks of a run and store verdict.json. Raises StoreError for damage."""
    if not run.tabled:
        run.compact(())
    plan, claims, cells = run.plan, run.claims, run.cells
    planned = len(plan["cells"]) + len(plan["skipped"])
    statuses = Counter(cells["status"].tolist())
    findings = tuple(evaluate(Check(**check), cells) for check in claims["check"])
    unmeasured = 0 if claims["allow_incomplete"] else sum(statuses[s] for s in Status if s.incomplete)
    codes = [
        Exit.INCOMPLETE if len(cells) < planned or unmeasured else Exit.OK,
        Exit.CHECK_FAILED if any(f.result == "fail" for f in findings) else Exit.OK,
        Exit.CHECK_FAILED if any(f.result == "none" for f in findings) else Exit.OK,
        Exit.NOTHING if not findings else Exit.OK,
    ]
    code = next((c for c in PRECEDENCE if c in codes), Exit.OK)
    verdict = Verdict(run.id, code, planned, len(cells), dict(statuses), findings)
    write_json(run.folder / "verdict.json", verdict.to_json())
    return verdict
