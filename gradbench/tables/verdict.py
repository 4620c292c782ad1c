"""The verdict of a run: whether it is whole, its coverage, its checks, one line and one exit code."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gradbench.errors import StoreError
from gradbench.tables.baselines import Demand, compare_with
from gradbench.tables.disk import write_json
from gradbench.tables.findings import Finding, Kind, Result
from gradbench.tables.snapshots import Snapshot
from gradbench.tables.statements import claimed
from gradbench.tables.store import Run
from gradbench.tables.verifying import verify
from gradbench.vocabulary.exit import PRECEDENCE, Ended, Exit
from gradbench.vocabulary.status import Status

_WORDS = {
    Exit.OK: "pass",
    Exit.CHECK_FAILED: "fail",
    Exit.INCOMPLETE: "incomplete",
    Exit.NOTHING: "nothing checked",
    Exit.STORE: "damaged",
}


@dataclass(frozen=True)
class Verdict(Ended):
    """The result of all checks of a run: it passed where the run is whole and all that is claimed of it holds."""

    run: str
    code: Exit
    planned: int
    present: int
    statuses: dict[str, int]
    findings: tuple[Finding, ...]  # of a damaged run all that is wrong with it, and no check
    snapshot: Snapshot | None = field(repr=False)  # what was judged; None: a file cannot be read
    unheld: str = ""  # where a baseline was sought in vain
    unwritten: str = ""  # why there is no verdict.json of it

    @property
    def line(self) -> str:
        """The verdict in one line."""
        told = self._passed("check", "checks")
        if self.of("statement"):
            told += f", {self._passed('statement', 'statements')}"
        if self.of("baseline"):
            told += f", {self._passed('baseline', 'comparisons')}"
        if self.code is Exit.STORE:
            told = f"{len(self.of('store'))} {'fault' if len(self.of('store')) == 1 else 'faults'}"
        return f"VERDICT {_WORDS[self.code]} ({self.code.value})  {told}, {self.present} of {self.planned} cells"

    @property
    def suite(self) -> str:
        """The name of the suite; empty where the plan does not say it."""
        return "" if self.snapshot is None else str(self.snapshot.plan.get("suite") or "")

    @property
    def reported(self) -> tuple[Finding, ...]:
        """All findings behind that of the verdict itself.

        It fails wherever the exit code is not 0: a run that lacks cells has no other finding that does.
        """
        whole: Result = "pass" if self.code is Exit.OK else "fail"
        return (Finding("verdict", whole, self.present, self.line, kind="verdict"), *self.findings)

    def of(self, kind: Kind) -> list[Finding]:
        """The findings of one kind."""
        return [f for f in self.findings if f.kind == kind]

    def _passed(self, kind: Kind, words: str) -> str:
        return f"{sum(f.passed for f in self.of(kind))} of {len(self.of(kind))} {words}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, for verdict.json."""
        return {
            "run": self.run,
            "code": self.code.value,
            "planned": self.planned,
            "present": self.present,
            "statuses": self.statuses,
            "findings": [asdict(f) for f in self.findings],
            "verdict": _WORDS[self.code],
            **({"unheld": self.unheld} if self.unheld else {}),
        }


def judge(run: Run, *, deep: bool = False, demand: Demand | None = None, unheld: str = "") -> Verdict:
    """Verify a run, evaluate its checks and store verdict.json, which is all that is written.

    Where it cannot be written, the verdict says why, and is what it would be else.

    A run that goes on, or that was cut off, is judged by the records that it has. `deep` makes the tables again from
    the records, and compares. `demand` names a baseline that the run is compared with, and `unheld` says where one was
    sought in vain, which the verdict tells.
    """
    path = run.folder / "verdict.json"
    with suppress(OSError):  # so that a verdict of before does not stand where there is none now
        path.unlink(missing_ok=True)
    snapshot, faults = verify(run, deep=deep)
    verdict = _decided(run.id, snapshot, faults, demand, unheld)
    try:
        write_json(path, verdict.to_json(), inside=run.folder)
    except StoreError as error:
        return replace(verdict, unwritten=str(error))
    return verdict


def decided(snapshot: Snapshot) -> Verdict:
    """The verdict on the checks of a run that was verified. It is compared with no baseline, and nothing is written."""
    return _decided(snapshot.id, snapshot, (), None, "")


def _decided(
    name: str, snapshot: Snapshot | None, faults: tuple[Finding, ...], demand: Demand | None, unheld: str
) -> Verdict:
    planned, statuses = 0, Counter[str]()
    if snapshot is not None:
        lists = (snapshot.plan.get(name) for name in ("cells", "skipped"))
        planned = sum(len(entries) for entries in lists if isinstance(entries, list))
        statuses = Counter(snapshot.tables["cells"]["status"].to_pylist())
    present = sum(statuses.values())
    findings, code = faults, Exit.STORE
    if snapshot is not None and not faults:
        claims, cells = snapshot.claims, snapshot.cells
        unmeasured = 0 if claims["allow_incomplete"] else sum(statuses[s] for s in Status if s.incomplete)
        findings = claimed(claims, cells) + _compared(demand, snapshot)
        code = _code(findings, incomplete=present < planned or unmeasured > 0)
    return Verdict(name, code, planned, present, dict(statuses), findings, snapshot, unheld)


def _compared(demand: Demand | None, snapshot: Snapshot) -> tuple[Finding, ...]:
    """The comparison with a baseline; a fault of the store where the baseline cannot be read."""
    if demand is None:
        return ()
    try:
        return tuple(compare_with(demand, snapshot))
    except StoreError as error:
        return (Finding("the baseline can be read", "fail", 0, str(error), kind="store"),)


def _code(findings: tuple[Finding, ...], *, incomplete: bool) -> Exit:
    codes = [
        Exit.STORE if any(f.kind == "store" for f in findings) else Exit.OK,
        Exit.INCOMPLETE if incomplete else Exit.OK,
        Exit.OK if all(f.passed for f in findings) else Exit.CHECK_FAILED,
        Exit.OK if findings else Exit.NOTHING,
    ]
    return next((c for c in PRECEDENCE if c in codes), Exit.OK)
