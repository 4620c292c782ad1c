"""What the figures of a run are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.estimators.reference import REFERENCE

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
    whole: DataFrame  # the cells of every reference; `cells` and the other tables are those of one

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
        return cls.by_one_reference((cells, run.params, run.blocks, run.budget), *limits, source)

    @classmethod
    def by_one_reference(
        cls,
        tables: tuple[DataFrame, DataFrame, DataFrame, DataFrame],
        residual: float,
        faithful: float,
        source: str,
    ) -> Tables:
        """Tables with the cells that are compared with backpropagation, or with the other reference where none is.

        A figure draws cosines to one reference; the source says what is left out.
        """
        cells, params, blocks, budget = tables
        counts = cells["reference"].value_counts()
        chosen = REFERENCE.name if REFERENCE.name in counts else next(iter(counts.index), REFERENCE.name)
        here = cells[cells["reference"] == chosen]
        if others := len(cells) - len(here):
            source += f"; cosines are those to {chosen}, and none of the {others} cells with another reference is drawn"
            params, blocks, budget = (rows[rows["cell"].isin(here["cell"])] for rows in (params, blocks, budget))
        return cls(here, params, blocks, budget, residual, faithful, source, cells)

    @property
    def reference(self) -> str:
        """What the cells are compared with."""
        return str(next(iter(self.cells["reference"]), REFERENCE.name))
