"""The rows of `cells` that a `where` means: what `planning.selection.matches` says, asked once for every value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbench.planning.selection import matches
from gradbench.planning.suites import ANY
from gradbench.tables.schema import IDENTITY
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame

_OPTIONS = ["system_options", "estimator_options"]


def selected(cells: DataFrame, where: Mapping[str, Any]) -> DataFrame:
    """The rows with a wanted value at every key of `where`. Skipped rows match only where their status is named.

    An option is not taken for a number of the results that has its name: `where` means what it means in a plan.
    """
    options = {key for name in _OPTIONS for text in set(cells[name]) for key in json.loads(text)} - {*IDENTITY}
    wanted = {key: value for key, value in where.items() if key != "status" or value != ANY}
    keep = np.ones(len(cells), bool) if "status" in wanted else (cells["status"] != Status.SKIPPED).to_numpy()
    for key, value in wanted.items():
        names = [key] if key in cells.columns and key not in options else _OPTIONS
        codes = cells.groupby(names, dropna=False, sort=False).ngroup()
        different = cells.loc[~codes.duplicated(), names].to_dict("records")  # in the order of their codes
        keep = keep & np.array([matches(row, {key: value}) for row in different], bool)[codes]
    return cells.loc[keep]
