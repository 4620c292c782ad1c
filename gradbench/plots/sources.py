"""What the figures of a run are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.tables.store import Run


@dataclass(frozen=True)
class Tables:
    """The tables of a run, with what captions and figures need to know of the run."""

    cells: DataFrame
    params: DataFrame
    blocks: DataFrame
    budget: DataFrame
    residual: float  # threshold of the free residual; a cell above it is not settled
    faithful: float  # threshold of the relative error; a larger one wants a cause
    source: str  # suite, run, commit, and how many of the planned cells there are where some are missing, for captions

    @classmethod
    def of(cls, run: Run) -> Tables:
        """The tables of a run."""
        plan, env = run.plan, run.env
        code = f"commit {env['commit'][:10]}" if env.get("commit") else "no commit"
        changed = " with changes" if env.get("dirty") else ""
        cells, thresholds = run.cells, plan["thresholds"]
        planned = {cell["cell"] for cell in plan["cells"]}
        there = len(planned.intersection(cells["cell"]))
        part = f", {there} of {len(planned)} cells" if there < len(planned) else ""
        source = f"Suite {plan['suite']}, run {run.id}{part}, {code}{changed}"
        limits = thresholds["residual"], thresholds["faithful"]
        return cls(cells, run.params, run.blocks, run.budget, *limits, source)
