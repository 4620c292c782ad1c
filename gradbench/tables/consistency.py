"""Whether the numbers of the tables can be: in their range, in agreement with each other and with their status.

These rules follow from definitions alone, so that they hold for every run, of every system and rule, on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.tables.findings import counted
from gradbench.tables.schema import COLUMNS, NESTED, OUTCOME
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.notation import ATTENTION
from gradbench.vocabulary.reason import ESTIMATE, NOT_FINITE, REFERENCE, ZERO
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    Mask = np.ndarray[Any, np.dtype[np.bool_]]
    Array = np.ndarray[Any, np.dtype[Any]]

RANGE_ERROR = 1e-5  # of a number against an end of its range: some cosines are means in float32
SUM_ERROR = 1e-9  # of means and sums of squares over parameters, relative
READING_ERROR = 1e-11  # of sums over entries in float64, relative; 1e-15 on a CPU
RESIDUAL_ERROR = 1e-2  # relative, of a norm in the dtype of the cell
OF_A_STATE = ("residual", "settled_share", "rho", "state_norm", "reference_open")  # equal for all rules there
OF_A_REFERENCE = ("reference_norm",)  # the same where rules are compared with the same reference
Fault = tuple[str, str, str]  # table, rule, and what breaks it


def faults(tables: Mapping[str, pa.Table], at: Thresholds) -> Iterator[Fault]:
    """All that is wrong with the numbers of a run that was judged with the thresholds `at`."""
    for name, table in tables.items():
        yield from _range_faults(name, table)
    cells, params = _Columns(tables["cells"]), _Columns(tables["params"])
    for rule, wrong, words in (*_status_rules(cells, at), *_state_rules(cells), *_reading_rules(cells)):
        if wrong.any():
            yield "cells", rule, counted(cells.keys[wrong].tolist(), words)
    for rule, wrong, words in _reading_rules(params):
        if wrong.any():
            places = [f"{c} {p}" for c, p in zip(params.keys[wrong], params["param"][wrong], strict=True)]
            yield "params", rule, counted(places, words)
    yield from _budget_faults(cells, tables["budget"])
    for name in NESTED:
        yield from _owner_faults(name, tables[name], tables["cells"])
    yield from _params_faults(cells, params, pc.index_in(tables["params"]["cell"], tables["cells"]["cell"]))


class _Columns:
    """The columns of a table as arrays: numbers as float64 with NaN for null, words with "" for null."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.read: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self.read:
            column = self.table[name].combine_chunks()
            words = pa.types.is_string(column.type)
            filled = pc.fill_null(column, "") if words else pc.cast(column, pa.float64())
            self.read[name] = filled.to_numpy(zero_copy_only=False)
        return self.read[name]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> Array:
        return self["cell"]

    def given(self, name: str) -> Mask:
        """Where the column is not null."""
        there: Mask = self.table[name].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        return there

    def begins(self, name: str, words: str) -> Mask:
        """Where the text of a column begins with these words."""
        begins: Mask = pc.starts_with(self.table[name].combine_chunks().fill_null(""), words).to_numpy(
            zero_copy_only=False
        )
        return begins


def _range_faults(name: str, table: pa.Table) -> Iterator[Fault]:
    for column, declared in COLUMNS[name].items():
        if declared.least is None and declared.most is None:
            continue
        values = pc.cast(table[column], pa.float64()).to_numpy()
        low = -np.inf if declared.least is None else declared.least
        high = np.inf if declared.most is None else declared.most
        wrong = (values < low - RANGE_ERROR) | (values > high + RANGE_ERROR)
        if wrong.any():
            keys = table["cell"].filter(pa.array(wrong)).to_pylist()
            words = f"have a {column} outside {low:g} to {high:g} ({values[wrong][0]:g})"
            yield name, "numbers are in their range", counted(keys, words)


def _status_rules(cells: _Columns, at: Thresholds) -> Iterator[tuple[str, Mask, str]]:
    """Rows whose status does not agree with their numbers."""
    status = cells["status"]

    def among(*statuses: Status) -> Mask:
        return np.isin(status, [str(s) for s in statuses])

    rule = "a status agrees with its numbers"
    yield "a status is a word of the list", ~among(*Status), "have a status that is none"
    unmeasured = among(*(s for s in Status if not s.measured))
    numbers = np.zeros(len(cells), bool)
    for name in OUTCOME:
        if name not in ("status", "reason"):
            numbers |= cells.given(name)
    yield rule, unmeasured & numbers, "were not measured, and have numbers"
    measured = among(*(s for s in Status if s.measured))
    uncounted = ~(cells.given("n_force") & cells.given("residual") & cells.given("settled_share"))
    yield rule, measured & uncounted, "were measured, and have no evidence of it"
    diverged, settled = among(Status.DIVERGED), among(Status.SETTLED)
    yield rule, diverged & cells.given("params_live"), "diverged, and were compared"
    compared = cells.given("params_live") & cells.given("cosine") & cells.given("rel_error")
    yield rule, measured & ~diverged & ~compared, "did not diverge, and were not compared"
    rested = among(Status.UNSTABLE, Status.NUDGE_DIVERGED, Status.UNDEFINED, Status.SETTLED)
    share, rho, deep = cells["settled_share"], cells["rho"], cells["rho_arnoldi"]
    yield rule, rested & ~(share >= at.settled_share), "are at rest by their status, and not by their samples"
    yield rule, among(Status.UNSETTLED) & (share >= at.settled_share), "are unsettled, and every sample is settled"
    whole = rested & (share >= 1) & ~(cells["residual"] <= at.residual * (1 + RESIDUAL_ERROR))
    yield rule, whole, f"are at rest by their status, with a residual above {at.residual:g}"
    grows = ~(rho <= 1 + at.growth), ~(deep <= 1 + at.growth)
    certified = cells.given("rho_arnoldi")
    stable = among(Status.SETTLED, Status.NUDGE_DIVERGED, Status.UNDEFINED)
    yield rule, stable & grows[0] & (grows[1] | ~certified), "are stable by their status, and perturbations grow"
    yield (
        rule,
        among(Status.UNSTABLE) & ~grows[0] & ~(grows[1] & certified),
        "are unstable, and perturbations do not grow",
    )
    norm, reason = cells["reference_norm"], cells["reason"]
    there = np.isfinite(norm) & (norm > 0)
    yield rule, among(Status.UNDEFINED) & there, "are undefined, and have a reference"
    yield rule, settled & ~there, "are settled, and have no reference"
    compared = (reason == "") | cells.begins("reason", ESTIMATE)
    yield rule, settled & ~compared, "are settled, with a reason why not"
    yield rule, ~settled & compared, "are not settled, without a reason"
    read = np.isfinite(cells["cosine"]) & np.isfinite(cells["norm_ratio"]) & np.isfinite(cells["rel_error"])
    yield rule, settled & (reason == "") & ~read, "are settled, and have no cosine, without a reason"
    with np.errstate(all="ignore"):
        power = rho ** cells["T2"]
        wrong = np.abs(cells["rho_T2"] - power) > SUM_ERROR * power
    yield "rho_T2 is rho to the power of T2", wrong & np.isfinite(power), "have another rho_T2"
    draws, variance, error = cells["draws"], cells["variance"], cells["bias_se"]
    lone = cells.given("draws") & ~((draws >= 2) & cells.given("variance") & cells.given("bias_se"))
    yield "draws have a variance", lone, "are the mean of draws, and have no variance"
    with np.errstate(all="ignore"):
        wrong = np.abs(draws * error**2 - variance) > SUM_ERROR * variance
    yield "the standard error is that of the variance", wrong & cells.given("draws"), "have another standard error"
    causes = np.isin(cells["cause"], [str(c) for c in Cause])
    yield "a cause is a word of the list", (cells["cause"] != "") & ~causes, "have a cause that is none"


def _state_rules(cells: _Columns) -> Iterator[tuple[str, Mask, str]]:
    """Cells of one problem with one T1 are measured at one free state, so that they share its evidence."""
    problem = pc.fill_null(cells.table["problem"].combine_chunks(), "").dictionary_encode().indices.to_numpy()
    steps = np.unique(np.nan_to_num(cells["T1"], nan=-1.0), return_inverse=True)[1]
    place = problem.astype(np.int64) * len(cells) + steps
    kinds = np.unique(cells["reference"], return_inverse=True)[1]
    for name in (*OF_A_STATE, *OF_A_REFERENCE):
        at = place * (kinds.max(initial=0) + 1) + kinds if name in OF_A_REFERENCE else place
        rows = np.flatnonzero(cells.given(name) & cells.given("problem"))
        values = cells[name][rows]
        _, first, code = np.unique(at[rows], return_index=True, return_inverse=True)
        shared = values[first[code]]
        wrong = np.zeros(len(cells), bool)
        wrong[rows] = ~((values == shared) | (np.isnan(values) & np.isnan(shared)))
        yield "cells at one state share its evidence", wrong, f"have another {name} than a cell at the same state"


def _reading_rules(rows: _Columns) -> Iterator[tuple[str, Mask, str]]:
    """|e - r|^2 = |e|^2 + |r|^2 - 2 <e, r>, over |r|^2; and a zero estimate has cosine 0."""
    cosine, ratio, error = rows["cosine"], rows["norm_ratio"], rows["rel_error"]
    with np.errstate(all="ignore"):
        off = np.abs(error**2 - (1 + ratio**2 - 2 * ratio * cosine))
        wrong = off > READING_ERROR * (1 + ratio**2)
    words = "have a cosine, a norm ratio and an error that no two gradients have together"
    read = np.isfinite(cosine) & np.isfinite(ratio) & np.isfinite(error) & np.isfinite(rows["reference_norm"])
    compared = rows.given("reference_norm") & (rows["reason"] == "")
    yield "what is undefined has a reason", compared & ~read, "have a number that is undefined, and no reason"
    yield "cosine, norm ratio and error agree", wrong & np.isfinite(off), words
    zero = rows["reason"] == ZERO
    yield "a zero estimate has cosine 0", zero & ~((cosine == 0) & (ratio == 0)), "have a zero estimate with a cosine"


def _owner_faults(name: str, table: pa.Table, cells: pa.Table) -> Iterator[Fault]:
    """Whether the rows of a nested table are those of cells, in their order, and each once."""
    places = pc.index_in(table["cell"], cells["cell"])
    if places.null_count:
        keys = table["cell"].filter(places.is_null()).to_pylist()
        yield name, "no cell that is not in cells", counted(keys, "are not in cells.parquet")
        return
    owner, what = places.to_numpy(), table.column_names[1]
    if (np.diff(owner) < 0).any():
        yield name, "rows in the order of the plan", "its rows stand in another order than those of cells.parquet"
    # by numbers in place of words, of which a million take a tenth of the memory that a check has
    coded = table[what].combine_chunks().dictionary_encode(null_encoding="encode")
    number = np.sort(owner.astype(np.int64) * max(len(coded.dictionary), 1) + coded.indices.to_numpy())
    twice = np.unique(number[1:][number[1:] == number[:-1]] // max(len(coded.dictionary), 1))
    if len(twice):
        yield name, "every row once", counted(cells["cell"].take(pa.array(twice)).to_pylist(), f"have a {what} twice")


def _budget_faults(cells: _Columns, table: pa.Table) -> Iterator[Fault]:
    """Whether a budget is that of a cell with a cause, and of its error."""
    whole = table.filter(pc.equal(table["param"], ""))
    places = pc.index_in(whole["cell"], cells.table["cell"])
    if not places.null_count:
        owner, error = places.to_numpy(), whole["rel_error"].to_numpy()
        wrong = (cells["rel_error"][owner] != error) & np.isfinite(error)
        if wrong.any():
            words = "have another rel_error than cells.parquet"
            yield "budget", "a budget is that of the error", counted(cells.keys[owner[wrong]].tolist(), words)
        if (stray := cells["cause"][owner] == "").any():
            words = "have a budget and no cause"
            yield "budget", "a budget is that of the error", counted(cells.keys[owner[stray]].tolist(), words)


def _params_faults(cells: _Columns, params: _Columns, places: pa.ChunkedArray) -> Iterator[Fault]:
    """Whether the summaries in `cells` are those of the rows in `params`. `places` are their rows in `cells`."""
    if not places.null_count:
        for rule, wrong, words in _summary_rules(cells, params, places.to_numpy()):
            if wrong.any():
                yield "cells", rule, counted(cells.keys[wrong].tolist(), words)


def _summary_rules(cells: _Columns, params: _Columns, owner: Array) -> Iterator[tuple[str, Mask, str]]:
    n, reason, cosine, norm = len(cells), params["reason"], params["cosine"], params["reference_norm"]
    lost, zero = params.begins("reason", REFERENCE), reason == ZERO
    broken = reason == NOT_FINITE
    defined = (reason == "") | zero
    counted = defined | broken  # the cosine of what is broken is NaN, and so are the summaries

    def count(mask: Mask) -> Array:
        return np.bincount(owner[mask], minlength=n)

    def mean(mask: Mask) -> Array:
        with np.errstate(all="ignore"):
            means: Array = np.bincount(owner[mask], cosine[mask], minlength=n) / count(mask)
            return means

    least = np.full(n, np.inf)
    np.minimum.at(least, owner[counted], np.where(broken, -np.inf, cosine)[counted])
    summaries = {
        "params_live": count(~lost),
        "params_zero": count(zero),
        "params_undefined": count(~defined),
        "cosine_min": np.where(np.isfinite(least), least, np.nan),
        "cosine_mean": mean(counted),
        "cosine_attn": mean(counted & np.isin(params["param"], ATTENTION)),
    }
    compared = cells.given("params_live")
    for name, summary in summaries.items():
        known = cells[name]
        wrong = compared & ~((np.abs(known - summary) <= SUM_ERROR) | (np.isnan(known) & np.isnan(summary)))
        numbers = next(((known[i], summary[i]) for i in np.flatnonzero(wrong)), (0, 0))
        words = "have a {} of {:g}, and by params.parquet {:g}".format(name, *numbers)
        yield f"{name} is that of params", wrong, words
    with np.errstate(all="ignore"):
        square = cells["reference_norm"] ** 2
        wrong = compared & (np.abs(np.bincount(owner, norm**2, minlength=n) - square) > SUM_ERROR * square)
    yield "the reference is that of params", wrong, "have another norm of the reference than their parameters together"
    # sums over parameters: |e|^2, and <e, r> up to what parameters without a cosine may add
    with np.errstate(all="ignore"):
        ratio, whole = params["norm_ratio"], cells["norm_ratio"] * square
        squares = cells["norm_ratio"] * whole
        length = np.abs(np.bincount(owner, (ratio * norm) ** 2, minlength=n) - squares) > SUM_ERROR * squares
        known = np.isfinite(cosine)
        product = np.bincount(owner, np.where(known, cosine, 0) * ratio * norm**2, minlength=n)
        slack = SUM_ERROR * whole + np.bincount(owner, np.where(known, 0, ratio * norm**2), minlength=n)
        angle = np.abs(product - cells["cosine"] * whole) > slack
    yield "the estimate is that of params", compared & length, "have another norm than their parameters together"
    yield "the cosine is that of params", compared & angle, "have another cosine than their parameters together"
    smallest = broken | (defined & (cosine == least[owner]))
    worsts = set(zip(owner[smallest].tolist(), params["param"][smallest], strict=True))
    wrong = compared & (least < np.inf)
    wrong[wrong] = [(i, cells["worst"][i]) not in worsts for i in np.flatnonzero(wrong).tolist()]
    yield "worst is that of params", wrong, "name as worst a parameter that is not"
    stray = np.isin(np.arange(n), owner) & ~compared
    yield "what was not compared has no parameters", stray, "were not compared, and have parameters"
