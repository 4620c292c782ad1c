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
    source: str  # suite, run and commit, for captions

    @classmethod
    def of(cls, run: Run) -> Tables:
        """The tables of a run."""
        plan, env = run.plan, run.env
        code = f"commit {env['commit'][:10]}" if env.get("commit") else "no commit"
        changed = " with changes" if env.get("dirty") else ""
        source = f"Suite {plan['suite']}, run {run.id}, {code}{changed}"
        return cls(run.cells, run.params, run.blocks, run.budget, plan["thresholds"]["residual"], source)
