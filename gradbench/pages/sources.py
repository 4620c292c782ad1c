"""What a page of a run is made from: its tables, its plan and the verdict on its checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbench.estimators.base import Count, Role
from gradbench.planning import registry
from gradbench.tables.verdict import decided
from gradbench.vocabulary.reason import REFERENCE
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.tables.snapshots import Snapshot
    from gradbench.tables.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Source:
    """The tables of a run, with what a page says of the run itself."""

    suite: str
    name: str  # suite and run, as commands take them
    cells: DataFrame
    params: DataFrame
    budget: DataFrame
    planned: int
    thresholds: Thresholds
    env: dict[str, Any]
    verdict: Verdict  # on the checks of the suite; it is compared with no baseline

    @classmethod
    def of(cls, run: Snapshot) -> Source:
        """The source of a page on a run that was verified."""
        plan, verdict = run.plan, decided(run)
        return cls(
            plan["suite"],
            f"{plan['suite']}/{run.id}",
            run.cells,
            run.params,
            run.budget,
            verdict.planned,
            Thresholds(**plan["thresholds"]),
            run.env,
            verdict,
        )

    @cached_property
    def judged(self) -> DataFrame:
        """The cells, with four more columns.

        `role` says what the estimator is there for. `error` is the largest relative error of the whole gradient and of
        its live parameters: inf where one of them is not finite, NaN where nothing was compared. `error_of` is the
        parameter with this error, empty where it is the whole gradient. `work` is what the cell costs, in evaluations
        of the force.
        """
        counted = self.params[~self.params["reason"].fillna("").str.startswith(REFERENCE)]
        counted = counted.assign(rel_error=counted["rel_error"].fillna(np.inf))
        largest = counted.sort_values("rel_error", kind="stable").drop_duplicates("cell", keep="last").set_index("cell")
        whole = self.cells["rel_error"].fillna(np.inf)
        of_param = self.cells["cell"].map(largest["rel_error"])
        error = np.fmax(whole, of_param)
        compared = self.cells["status"] == Status.SETTLED
        counts = (self.cells[name].fillna(0).to_numpy() for name in ("n_force", "n_jvp", "n_vjp"))
        work = [Count(int(f), int(j), int(v)).work for f, j, v in zip(*counts, strict=True)]
        return self.cells.assign(
            role=self.cells["estimator"].map({name: registry.role(name) for name in self.cells["estimator"].unique()}),
            error=error.where(compared),
            error_of=self.cells["cell"].map(largest["param"]).where(compared & (of_param >= whole), ""),
            work=np.where(self.cells["n_force"].notna(), work, np.nan),
        )

    @cached_property
    def rules(self) -> DataFrame:
        """The judged cells of the rules that apply: no reference, no control, nothing that the plan skips."""
        cells = self.judged
        return cells[(cells["role"] == Role.RULE) & (cells["status"] != Status.SKIPPED)]
