"""The outcome of a cell: its status, its evidence and its comparison; and the record of many cells, in columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gradbench.diagnostics.certificate import Certificate, Deep
from gradbench.diagnostics.credit import SUMMARY, blocks
from gradbench.diagnostics.metrics import Comparison, Comparisons, Similarity
from gradbench.engine.references import Apart
from gradbench.estimators.base import Count
from gradbench.estimators.reference import IMPLICIT
from gradbench.planning.cells import identities
from gradbench.planning.problems import cell_count
from gradbench.tables.placeholders import extra, unmeasured
from gradbench.tables.schema import BUDGET, CELLS, NESTED, RECORD
from gradbench.vocabulary.cause import CAUSES, Cause, column

if TYPE_CHECKING:
    from jaxtyping import Bool

    from gradbench.diagnostics.budget import Budget
    from gradbench.diagnostics.judgement import Judgement
    from gradbench.planning.cells import Cell
    from gradbench.systems.base import Params
    from gradbench.vocabulary.status import Status

_CERTIFIED = tuple(field.name for field in fields(Certificate) if field.name in CELLS.names)
_DEEP = tuple(field.name for field in fields(Deep))
_NUDGED = ("nudge_residual", "clip_share", "drift", "curvature", "noise_floor")
_COUNTS = ("params_live", "params_zero", "params_undefined")
_READINGS = Similarity._fields[:-1]  # without the reason
COUNTED = ("n_force", "n_jvp", "n_vjp")
# evidence that has columns of its own, or none; what else a rule returns is a further column
EVIDENCE = frozenset({*_NUDGED, *SUMMARY, *COUNTED, "nudge_norm", "draws", "draw_spread"})
_PLACES: dict[Cause, int] = {cause: i for i, cause in enumerate(CAUSES)}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known of one cell."""

    cell: Cell
    problem: str
    judgement: Judgement
    certificate: Certificate
    apart: Apart
    comparison: Comparison | None  # None: the free phase diverged, so there is nothing to estimate at
    evidence: dict[str, float]  # of the second phase
    budget: Budget | None  # None: no error that wants a cause, or no state at which a cause is looked for
    estimate: Params | None
    reference: Params | None
    seconds: float
    peak_memory: int

    @property
    def status(self) -> Status:
        """What became of the cell."""
        return self.judgement.status

    @property
    def reason(self) -> str:
        """The number that decided the status."""
        return self.judgement.reason

    @property
    def count(self) -> Count:
        """Evaluations that the estimate needs alone: as planned, or where only the measurement tells, as counted."""
        planned = cell_count(self.cell)
        if not planned.partial or not all(name in self.evidence for name in COUNTED):
            return planned
        force, jvp, vjp = (int(self.evidence[name]) for name in COUNTED)
        return replace(planned, partial=False) + Count(force, jvp, vjp)

    def row(self) -> dict[str, Any]:
        """The cell as a row of a record; nested rows are without the fields that do not apply to them."""
        (row,) = record_of([self]).to_pylist()
        nested = {name: [{k: v for k, v in r.items() if v is not None} for r in row[name]] for name in NESTED}
        return row | nested


def by_problem(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each problem of a pack, which come one problem after the other."""
    return [list(of_problem) for _, of_problem in itertools.groupby(outcomes, attrgetter("problem"))]


def records_of(outcomes: Sequence[Outcome]) -> list[pa.Table]:
    """The record of each problem of a pack: parts of one table, which is made at once."""
    table, sizes = record_of(outcomes), list(map(len, by_problem(outcomes)))
    return [table.slice(end - size, size) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


def record_of(outcomes: Sequence[Outcome]) -> pa.Table:
    """The cells of a record, a row for each, as tables.schema declares it."""
    measured = [outcome for outcome in outcomes if not outcome.status.incomplete]
    if measured and len(measured) == len(outcomes):
        return _measured(outcomes)
    others = [outcome for outcome in outcomes if outcome.status.incomplete]
    rows = [unmeasured(o.cell, o.status, o.reason, o.problem) for o in others]
    tables = [pa.Table.from_pylist(rows, schema=RECORD), *([_measured(measured)] if measured else [])]
    table = pa.concat_tables(tables).combine_chunks()
    places = {outcome.cell: i for i, outcome in enumerate((*others, *measured))}
    return table.take(pa.array([places[outcome.cell] for outcome in outcomes], pa.int64()))


def _measured(outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows of cells that were measured."""
    cells, certificates = [o.cell for o in outcomes], [o.certificate for o in outcomes]
    evidence, counts = [o.evidence for o in outcomes], [o.count for o in outcomes]
    columns: dict[str, Any] = identities(cells)
    columns["problem"] = [o.problem for o in outcomes]
    columns["status"] = [str(o.status) for o in outcomes]
    columns["reason"] = [o.reason for o in outcomes]
    for name, count in zip(COUNTED, zip(*map(attrgetter("force", "jvp", "vjp"), counts), strict=True), strict=True):
        columns[name] = [None if c.partial else n for c, n in zip(counts, count, strict=True)]
    columns["seconds"] = [o.seconds for o in outcomes]
    columns["peak_memory"] = [o.peak_memory for o in outcomes]
    columns |= {name: list(map(attrgetter(name), certificates)) for name in _CERTIFIED}
    columns |= {name: [getattr(c.deep, name, None) for c in certificates] for name in _DEEP}
    columns |= dict(zip(Apart._fields, zip(*map(_apart, outcomes), strict=True), strict=True))
    columns |= {name: [e.get(name) for e in evidence] for name in (*_NUDGED, *SUMMARY)}
    draws = zip(*map(_of_draws, evidence, (o.comparison for o in outcomes)), strict=True)
    columns |= dict(zip(("draws", "variance", "bias_se"), draws, strict=True))
    T2s = zip(certificates, cells, strict=True)
    columns["rho_T2"] = [None if cell.T2 is None else _power(c.rho, cell.T2) for c, cell in T2s]
    columns |= _of_comparisons(outcomes)
    columns["blocks"] = list(map(blocks, evidence))
    columns["cause"] = [str(o.budget.cause) if o.budget else None for o in outcomes]
    columns["cause_of"] = [o.budget.of if o.budget else None for o in outcomes]
    columns["budget"] = _of_budgets(outcomes)
    more = [{name: e[name] for name in _further(tuple(e))} for e in evidence]
    columns["extra"] = [extra(cell.knobs | further) for cell, further in zip(cells, more, strict=True)]
    arrays = [c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in RECORD]
    return pa.table(arrays, RECORD)


def _apart(outcome: Outcome) -> Apart:
    """How far the references are apart; of the implicit one where the cell or a deep certificate asks for it."""
    if outcome.cell.reference == IMPLICIT or outcome.certificate.deep is not None:
        return outcome.apart
    return Apart(outcome.apart.reference_open)


def _of_draws(
    evidence: Mapping[str, float], comparison: Comparison | None
) -> tuple[int | None, float | None, float | None]:
    """The columns draws, variance and bias_se; null for a rule that has one estimate alone."""
    draws = evidence.get("draws")
    if draws is None or not math.isfinite(draws):
        return None, None, None
    error = standard_error(evidence, comparison)
    return int(draws), error**2 * draws, error


def standard_error(evidence: Mapping[str, float], comparison: Comparison | None) -> float:
    """Of the mean over the draws of a rule, over the norm of the reference; NaN where there is no reference."""
    norm = comparison.whole.reference_norm if comparison else math.nan
    if not (math.isfinite(norm) and norm > 0):
        return math.nan
    return evidence["draw_spread"] / (math.sqrt(evidence["draws"]) * norm)


def _power(rho: float, T2: int) -> float:
    """rho^T2; inf where it is beyond every float."""
    try:
        return rho**T2
    except OverflowError:
        return math.inf


@cache
def _further(names: tuple[str, ...]) -> tuple[str, ...]:
    """The evidence that becomes columns behind those of the schema."""
    return tuple(name for name in names if name not in EVIDENCE and "/" not in name)


def _of_comparisons(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The columns that tell how close estimates are to their references."""
    there = np.array([o.comparison is not None for o in outcomes])
    empty: dict[str, Any] = dict.fromkeys((*_READINGS, "cosine_mean", "cosine_min", "cosine_attn"), math.nan)
    empty |= {"worst": "", **dict.fromkeys(_COUNTS)}
    if not there.any():
        nothing = {name: [value] * len(outcomes) for name, value in empty.items()}
        return {**nothing, "params": [[]] * len(outcomes)}
    among = Comparisons.of([o.comparison for o in outcomes if o.comparison is not None])
    columns = dict(zip(_READINGS, among.numbers[:, 0].T.tolist(), strict=True))
    columns |= {name: getattr(among, name) for name in empty if name not in columns}
    full = {name: _spread(values, there, empty[name]) for name, values in columns.items()}
    names = pa.array(among.names * len(among), pa.string())
    of_params = [names, *among.numbers[:, 1:].reshape(-1, len(_READINGS)).T, among.reasons[:, 1:].ravel()]
    lengths = np.where(there, len(among.names), 0)
    return {**full, "params": _nested("params", lengths, of_params)}


def _spread(values: Iterable[Any], there: Bool[np.ndarray, "n"], empty: Any) -> list[Any]:
    """A column with these values where they are `there`, and with `empty` elsewhere."""
    left = iter(values if isinstance(values, list) else np.asarray(values).tolist())
    return [next(left) if known else empty for known in there.tolist()]


def _of_budgets(outcomes: Sequence[Outcome]) -> pa.Array:
    """For every cell with a budget a row for the whole gradient, and one for every live parameter."""
    told = [(o.budget, o.comparison) if o.budget is not None and o.comparison is not None else None for o in outcomes]
    known = [pair for pair in told if pair is not None]
    lengths = [0 if pair is None else len(pair[0].rows) for pair in told]
    params = [name for budget, _ in known for name in budget.rows]
    errors = np.zeros(0)
    if known:
        among = Comparisons.of([comparison for _, comparison in known])
        places = {name: i for i, name in enumerate(("", *among.names))}
        owner = np.repeat(np.arange(len(known)), [len(budget.rows) for budget, _ in known])
        errors = among.rel_errors[owner, [places[name] for name in params]]
    by_causes: dict[tuple[Cause, ...], tuple[list[int], list[Sequence[float]]]] = {}  # the rows with these causes
    start = 0
    for budget, _ in known:
        rows, values = by_causes.setdefault(budget.causes, ([], []))
        rows += range(start, start + len(budget.rows))
        values += budget.rows.values()
        start += len(budget.rows)
    sizes = np.zeros((len(params), len(CAUSES)))
    missing = np.ones(sizes.shape, bool)
    for causes, (rows, values) in by_causes.items():
        there = np.ix_(rows, [_PLACES[cause] for cause in causes])
        sizes[there], missing[there] = values, False
    by_name = {column(cause): pa.array(sizes[:, i], mask=missing[:, i]) for cause, i in _PLACES.items()}
    by_name |= {"param": pa.array(params, pa.string()), "rel_error": pa.array(errors, pa.float64())}
    return _nested("budget", np.array(lengths), [by_name[name] for name in BUDGET])


def _nested(name: str, lengths: np.ndarray, columns: Sequence[Any]) -> pa.Array:
    """The rows that lie nested in the rows of a record, as many in each as `lengths` say."""
    kind = RECORD.field(name).type
    inner = [pa.array(values, field.type) for values, field in zip(columns, kind.value_type, strict=True)]
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(inner, fields=list(kind.value_type)), type=kind)
