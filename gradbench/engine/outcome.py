"""The outcome of a cell: its status, its evidence and its comparison, as one flat row."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from gradbench.diagnostics.certificate import Deep
from gradbench.diagnostics.credit import SUMMARY, blocks
from gradbench.diagnostics.metrics import UNDEFINED, Comparison, Similarity
from gradbench.estimators.base import Count
from gradbench.estimators.reference import IMPLICIT
from gradbench.planning.problems import cell_count
from gradbench.tables.placeholders import extra, unmeasured
from gradbench.vocabulary.cause import column

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradbench.diagnostics.budget import Budget
    from gradbench.diagnostics.certificate import Certificate
    from gradbench.diagnostics.judgement import Judgement
    from gradbench.engine.references import Apart
    from gradbench.planning.cells import Cell
    from gradbench.systems.base import Params
    from gradbench.vocabulary.status import Status


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
        """The cell as a record of tables.schema."""
        if self.status.incomplete:
            return unmeasured(self.cell, self.status, self.reason, self.problem)
        row = self.cell.identity | {"problem": self.problem, "status": str(self.status), "reason": self.reason}
        count = self.count
        row |= {"n_force": count.force, "n_jvp": count.jvp, "n_vjp": count.vjp} if not count.partial else {}
        row |= {"seconds": self.seconds, "peak_memory": self.peak_memory}
        row |= {name: value for name, value in vars(self.certificate).items() if name not in _INTERNAL}
        row |= self._apart() | {name: getattr(self.certificate.deep, name, None) for name in _DEEP}
        row |= {name: self.evidence.get(name) for name in (*_NUDGED, *SUMMARY)}
        row |= self._of_draws()
        row["rho_T2"] = _power(self.certificate.rho, self.cell.T2) if self.cell.T2 is not None else None
        c = self.comparison
        whole = c.whole if c else UNDEFINED
        row |= dict(zip(_READINGS, whole[:-1], strict=True))
        for name in ("cosine_mean", "cosine_min", "cosine_attn"):
            row[name] = getattr(c, name) if c else math.nan
        row["worst"] = c.worst if c else ""
        row |= {name: getattr(c, name) if c else None for name in ("params_live", "params_zero", "params_undefined")}
        row["params"] = [dict(zip(_OF_PARAM, (name, *p), strict=True)) for name, p in c.params.items()] if c else []
        row["blocks"] = blocks(self.evidence)
        row["cause"] = str(self.budget.cause) if self.budget else None
        row["cause_of"] = self.budget.of if self.budget else None
        row["budget"] = self._budget()
        more = {n: v for n, v in self.evidence.items() if n not in EVIDENCE and "/" not in n}
        row["extra"] = extra(self.cell.knobs | more)
        return row

    def _apart(self) -> dict[str, float | None]:
        """How far the references are apart; of the implicit one where the cell or a deep certificate asks for it."""
        columns: dict[str, float | None] = self.apart._asdict()
        if self.cell.reference == IMPLICIT or self.certificate.deep is not None:
            return columns
        return columns | dict.fromkeys(("reference_gap", "implicit_open"))

    def _of_draws(self) -> dict[str, float | int | None]:
        """What several draws of a rule leave open; null for a rule that has one estimate alone."""
        draws = self.evidence.get("draws")
        if draws is None or not math.isfinite(draws):
            return {"draws": None, "variance": None, "bias_se": None}
        error = standard_error(self.evidence, self.comparison)
        return {"draws": int(draws), "variance": error**2 * draws, "bias_se": error}

    def _budget(self) -> list[dict[str, Any]]:
        """A row for the whole gradient and one for every live parameter."""
        if self.budget is None or self.comparison is None:
            return []
        rows = []
        for name, sizes in self.budget.sizes.items():
            error = (self.comparison.params[name] if name else self.comparison.whole).rel_error
            steps = zip(map(column, sizes), sizes.values(), strict=True)
            rows.append({"param": name, "rel_error": error} | dict(steps))
        return rows


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


_DEEP = tuple(field.name for field in fields(Deep))
_READINGS = Similarity._fields[:-1]  # without the reason
_OF_PARAM = ("param", *Similarity._fields)
_NUDGED = ("nudge_residual", "clip_share", "drift", "curvature", "noise_floor")
COUNTED = ("n_force", "n_jvp", "n_vjp")
# evidence that has columns of its own, or none; what else a rule returns is a further column
EVIDENCE = frozenset({*_NUDGED, *SUMMARY, *COUNTED, "nudge_norm", "draws", "draw_spread"})
# fields of a certificate without a column: `deep` has a column a field, and the reason tells what decided the status
_INTERNAL = ("scale", "shrink", "collapsed_share", "escape", "judgement", "deep")
