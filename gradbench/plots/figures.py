"""The figures by name. A new figure is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.plots.antisymmetry_vs_error import antisymmetry_vs_error
from gradbench.plots.cosine_sweeps import cosine_vs_beta, cosine_vs_damp, cosine_vs_s, cosine_vs_T1, cosine_vs_T2
from gradbench.plots.credit_by_layer import credit_by_layer
from gradbench.plots.error_budget import error_budget
from gradbench.plots.error_vs_beta import error_vs_beta
from gradbench.plots.error_vs_cost import error_vs_cost
from gradbench.plots.map_s_damp import map_s_damp
from gradbench.plots.params import params
from gradbench.plots.residual_vs_cosine import residual_vs_cosine
from gradbench.tables.store import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    cells: DataFrame
    params: DataFrame
    blocks: DataFrame
    budget: DataFrame
    residual: float  # above: not settled
    source: str  # where the numbers come from, for captions

    @classmethod
    def of(cls, run: Run) -> Tables:
        """The tables of a run."""
        plan, env = run.plan, run.env
        code = f"commit {env['commit'][:10]}" if env.get("commit") else "no commit"
        changed = " with changes" if env.get("dirty") else ""
        source = f"Suite {plan['suite']}, run {run.id}, {code}{changed}"
        return cls(run.cells, run.params, run.blocks, run.budget, plan["thresholds"]["residual"], source)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "cosine_vs_beta": lambda t: cosine_vs_beta(t.cells),
    "cosine_vs_T1": lambda t: cosine_vs_T1(t.cells),
    "cosine_vs_T2": lambda t: cosine_vs_T2(t.cells),
    "cosine_vs_s": lambda t: cosine_vs_s(t.cells),
    "cosine_vs_damp": lambda t: cosine_vs_damp(t.cells),
    "map_s_damp": lambda t: map_s_damp(t.cells),
    "params": lambda t: params(t.cells, t.params),
    "credit_by_layer": lambda t: credit_by_layer(t.cells, t.blocks),
    "residual_vs_cosine": lambda t: residual_vs_cosine(t.cells, t.residual),
    "antisymmetry_vs_error": lambda t: antisymmetry_vs_error(t.cells),
    "error_budget": lambda t: error_budget(t.cells, t.budget),
    "error_vs_beta": lambda t: error_vs_beta(t.cells),
    "error_vs_cost": lambda t: error_vs_cost(t.cells),
}
