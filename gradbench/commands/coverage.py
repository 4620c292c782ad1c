"""How far a suite is among the results: what is done, missing or failed, or what makes its newest run stale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.errors import StoreError
from gradbench.tables import runs
from gradbench.tables.records import judged
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.planning.plans import Plan

UNSEEN = ("it may have changed in what no digest sees",)


@dataclass(frozen=True)
class Standing:
    """The newest run of a suite, against what would be run now. Numbers are cells that a rule measures."""

    run: str  # its folder
    done: int
    failed: int
    missing: int
    stale: tuple[str, ...]  # why the run is not gone on with; empty: it is

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        if self.stale:
            return f"{self.run} is stale: {'; '.join(self.stale)}. A run measures all {self.missing:,} cells"
        return f"{self.run}: {self.done:,} done, {self.missing:,} missing, {self.failed:,} failed"


def standing(planned: Plan, out: Path, device: str, engine: str = "auto") -> Standing | None:
    """How far a plan is; None where its suite has no run that can be read."""
    folder = runs.results_folder(out) / "runs" / planned.suite
    if not runs.begun(folder):
        return None
    from gradbench.commands.environment import describe_environment, differences
    from gradbench.engine import device as devices
    from gradbench.engine.packs import resolved

    device = devices.resolve(device)
    engine = resolved(engine, device, planned.problems)
    env = describe_environment(planned.key, device, planned.parts, engine=engine)
    if (run := runs.matching(folder, env["identity"])) is not None:
        wanted = {problem.key: problem.cells for problem in planned.problems}
        records = [record for _, record in judged(run, wanted, planned.thresholds)]
        # a record that cannot be trusted is measured again, and so is missing
        told = [statuses for statuses in records if not isinstance(statuses, StoreError)]
        statuses = [Status(status) for statuses in told for status in statuses]
        failed = sum(status.incomplete for status in statuses)
        return Standing(str(run.folder), len(statuses) - failed, failed, len(planned.cells) - len(statuses), ())
    for newest in runs.begun(folder):
        try:
            if newest.env.get("shard"):
                continue  # it is gone on with as that shard alone
            stale = differences(env, newest.env)
            if newest.plan.get("key") != planned.key and not any("changed" in reason for reason in stale):
                stale.append("the suite asks for other cells, or by other thresholds")
        except (StoreError, LookupError, TypeError, AttributeError):
            continue  # a run that cannot be read is gone on with by nobody
        return Standing(str(newest.folder), 0, 0, len(planned.cells), tuple(stale or UNSEEN))
    return None
