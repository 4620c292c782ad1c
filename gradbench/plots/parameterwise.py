"""The parameter that a rule gets most wrong, and how many it misses, by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradbench.plots.look import FOLLOWS
from gradbench.vocabulary.reason import REFERENCE

if TYPE_CHECKING:
    from pandas import DataFrame

WORST = "worst parameter's error\n" r"$\max_p\ |\hat g_p-g_p|/|g_p|$"  # what an axis says


def with_worst(cells: DataFrame, params: DataFrame) -> DataFrame:
    """The cells with `error`, the largest relative error of a parameter, and `param`, the name of that parameter.

    A parameter whose reference says nothing does not count. An error that is not finite is infinite. Both columns are
    NaN where no parameter counts.
    """
    compared = params[~params["reason"].fillna("").str.startswith(REFERENCE)]
    compared = compared.assign(error=compared["rel_error"].astype(float).fillna(np.inf))
    worst = compared.sort_values("error", kind="stable").drop_duplicates("cell", keep="last")
    return cells.merge(worst[["cell", "param", "error"]], on="cell", how="left")


def with_missed(cells: DataFrame, params: DataFrame) -> DataFrame:
    """The cells with `missed`, the number of parameters that the rule misses, and `compared`, that of all."""
    known = params[params["cell"].isin(cells["cell"]) & params["cosine"].notna()]
    missed = (known["cosine"] < FOLLOWS).groupby(known["cell"]).agg(["sum", "size"])
    counts = missed.set_axis(["missed", "compared"], axis=1).reindex(cells["cell"], fill_value=0)
    return cells.assign(missed=counts["missed"].to_numpy(), compared=counts["compared"].to_numpy())
