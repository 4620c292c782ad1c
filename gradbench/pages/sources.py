"""What a page of a run is made from: its tables, its plan and the verdict on its checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbench.estimators.base import Count, Role
from gradbench.planning import registry
from gradbench.tables.verdict import decided
from gradbench.vocabulary.cause import CAUSES, column
from gradbench.vocabulary.reason import REFERENCE
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    from pandas import DataFrame, Series

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
        """The cells, with four more columns, and with the cause of their largest error.

        `role` says what the estimator is there for. `error` is the largest relative error of the whole gradient and of
        its live parameters: inf where one of them is not finite, NaN where nothing was compared. `error_of` is the
        parameter with this error, empty where it is the whole gradient. `work` is what the cell costs, in evaluations
        of the force. `cause` and `cause_of` are those of the parameter with the largest error, where that was taken
        apart: where the whole gradient errs, too, the table has the cause of that, which may be another one.
        """
        counted = self.params[~self.params["reason"].fillna("").str.startswith(REFERENCE)]
        counted = counted.assign(rel_error=counted["rel_error"].fillna(np.inf))
        largest = counted.sort_values("rel_error", kind="stable").drop_duplicates("cell", keep="last").set_index("cell")
        whole = self.cells["rel_error"].fillna(np.inf)
        of_param = self.cells["cell"].map(largest["rel_error"])
        error = np.fmax(whole, of_param)
        compared = self.cells["status"] == Status.SETTLED
        error_of = self.cells["cell"].map(largest["param"]).where(compared & (of_param >= whole), "")
        cause = self._cause_of(error_of)
        counts = (self.cells[name].fillna(0).to_numpy() for name in ("n_force", "n_jvp", "n_vjp"))
        work = [Count(int(f), int(j), int(v)).work for f, j, v in zip(*counts, strict=True)]
        return self.cells.assign(
            role=self.cells["estimator"].map({name: registry.role(name) for name in self.cells["estimator"].unique()}),
            error=error.where(compared),
            error_of=error_of,
            cause=cause.fillna(self.cells["cause"]),
            cause_of=error_of.where(cause.notna(), self.cells["cause_of"]),
            work=np.where(self.cells["n_force"].notna(), work, np.nan),
        )

    def _cause_of(self, error_of: Series[str]) -> Series[str]:
        """The largest cause of the error of a parameter of every cell; null where none was looked for."""
        sizes = {column(cause): str(cause) for cause in CAUSES if column(cause) in self.budget}
        parts = self.budget[[*sizes]]
        rows = self.budget[parts.notna().any(axis=1)]
        keys = zip(rows["cell"], rows["param"], strict=True)
        largest = dict(zip(keys, rows[[*sizes]].fillna(-1.0).idxmax(axis=1).map(sizes), strict=True))
        known = self.cells["cause"].notna() & (self.cells["cause_of"] != error_of)
        wanted = zip(self.cells["cell"], error_of, strict=True)
        return self.cells["cell"].map(dict(zip(self.cells["cell"], map(largest.get, wanted), strict=True))).where(known)

    @cached_property
    def rules(self) -> DataFrame:
        """The judged cells of the rules that apply: no reference, no control, nothing that the plan skips."""
        cells = self.judged
        return cells[(cells["role"] == Role.RULE) & (cells["status"] != Status.SKIPPED)]
