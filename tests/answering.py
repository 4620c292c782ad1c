"""Small tables of a run, written by hand: what a page says of them is known."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gradbench.pages.sources import Source
from gradbench.tables.schema import BUDGETS, CELLS, PARAMS
from gradbench.tables.verdict import Verdict
from gradbench.vocabulary.coordinates import LATE
from gradbench.vocabulary.exit import Exit
from gradbench.vocabulary.status import Thresholds

POINT = {"s": 1.0, "damp": 0.0, "T1": 100, "T2": 10, "beta": 0.1, "eps": 0.2, "seed": 0, "dtype": "float64", "batch": 2}
POINT |= LATE
READS = {"cosine": 0.999, "cosine_min": 0.998, "worst": "W", "rel_error": 0.02, "norm_ratio": 1.0}
COST = {"n_force": 120, "n_jvp": 0, "n_vjp": 0}


def cell(estimator: str = "ep", status: str = "settled", system: str = "toy_cons", **columns: Any) -> dict[str, Any]:
    """A row of `cells`; `params` is {name: (cosine, relative error)}, where a reason and the norm of the
    reference may follow, and `budget` is {name of a parameter, or "": {column of a cause: size}}."""
    names = {"system": system, "system_label": system, "estimator": estimator, "estimator_label": estimator}
    options = {"system_options": "{}", "estimator_options": "{}", "reason": ""}
    rule = {"T2": None, "beta": None} if estimator in ("bptt", "control") else {}
    return {
        **POINT,
        **READS,
        **COST,
        **rule,
        **names,
        **options,
        "status": status,
        "params": {},
        "budget": {},
        **columns,
    }


def source(*rows: dict[str, Any], suite: str = "by_hand", faithful: float = 0.1) -> Source:
    """The source of a page on these rows; keys count up."""
    cells, params, parts = [], [], []
    for i, row in enumerate(rows):
        key = f"{i:016x}"
        cells.append({**row, "cell": key, "problem": key})
        for name, (cosine, error, *more) in row["params"].items():
            reason, norm = [*more, *(None, 1.0)[len(more) :]]
            of = {"cosine": cosine, "rel_error": error, "norm_ratio": 1.0, "sign_agreement": 1.0}
            params.append({"cell": key, "param": name, **of, "reference_norm": norm, "reason": reason})
        parts += [{"cell": key, "param": name, **sizes} for name, sizes in row["budget"].items()]
    frame = pd.DataFrame(cells, columns=CELLS.names)
    numeric = [f.name for f in CELLS if str(f.type) in ("double", "int64")]
    frame[numeric] = frame[numeric].astype(float)
    statuses = {str(k): int(v) for k, v in frame["status"].value_counts().items()}
    verdict = Verdict("by hand", Exit.OK, len(frame), len(frame), statuses, (), None)
    words = pd.DataFrame(params, columns=PARAMS.names)
    budget = pd.DataFrame(parts, columns=BUDGETS.names)
    return Source(suite, f"{suite}/1", frame, words, budget, len(frame), Thresholds(faithful=faithful), {}, verdict)
