"""One cell from Python: `gradbench.measure(system, estimator, ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench import registry
from gradbench.engine.device import resolve
from gradbench.engine.precision import ieee_float32
from gradbench.engine.problem import build
from gradbench.engine.solve import solve
from gradbench.errors import UserError
from gradbench.plan import plan
from gradbench.suite import parse

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.engine.outcome import Outcome
    from gradbench.status import Status
    from gradbench.systems.base import Params


@dataclass(frozen=True)
class Measurement:
    """An estimate beside its reference, with the evidence that the comparison means something.

    `row` holds every column of the `cells` table; the attributes are those read most. A number that is
    undefined is NaN, and `reason` says why.
    """

    status: Status
    reason: str
    cosine: float  # of the whole gradient
    cosines: dict[str, float]  # of each parameter
    blocks: dict[str, dict[str, float]]  # of each block of the state: how its credit follows the reference's
    budget: dict[str, dict[str, float]]  # of an error that wants a cause: by parameter, "" the whole, what makes it up
    norm_ratio: float
    rel_error: float
    residual: float  # |G(s*) - s*| / |s*|
    antisymmetry: float  # |A|_F / |J|_F at s*
    estimate: Params | None  # None where the free phase diverged
    reference: Params | None
    row: dict[str, Any]


def measure(
    system: str,
    estimator: str,
    *,
    s: float | None = None,
    damp: float | None = None,
    T1: int | None = None,
    T2: int | None = None,
    beta: float | None = None,
    eps: float | None = None,
    seed: int = 0,
    batch: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    params: Mapping[str, Tensor] | None = None,
    data: Mapping[str, Tensor] | None = None,
    system_options: Mapping[str, Any] | None = None,
    estimator_options: Mapping[str, Any] | None = None,
) -> Measurement:
    """Compare one estimate with backpropagation through time.

    What is None takes the system's default. `params` and `data` replace what `seed` would draw; sizes
    and batch are read from them. Raises UserError for unknown names, options, shapes and pairs that do
    not go together; numerical trouble is the status of the measurement.
    """
    params, data = params or {}, data or {}
    known = registry.systems().get(system)
    sizes = known.sizes(dict(params), dict(data)) if known else {}
    batches = {len(data[n]) for n in (known.per_example if known else ()) if n in data}
    if len(batches) > 1:
        raise UserError(f"data of {system}: entries disagree on the number of examples: {sorted(batches)}")
    given = {"s": s, "damp": damp, "T1": T1, "T2": T2, "beta": beta, "eps": eps}
    grid = {
        "system": {"name": system, **sizes, **(system_options or {})},
        "estimator": {"name": estimator, **(estimator_options or {})},
        **{name: value for name, value in given.items() if value is not None},
        "seed": seed,
        "dtype": dtype,
        "batch": batches.pop() if batches else batch,
    }
    asked = plan(parse({"name": "measure", "about": "one cell", "grid": [grid]}, "measure"), "measure", data)
    if asked.skipped:
        raise UserError(f"measure: {asked.skipped[0][1]}")
    if len(asked.cells) != 1:
        raise UserError(f"measure: compares one cell, and these lists make {len(asked.cells)}; use a suite")
    (problem,) = asked.problems
    with ieee_float32():
        field = build(problem, resolve(device), params, data)
        (outcome,) = solve([problem], field, asked.thresholds)
    return _measurement(outcome)


def _measurement(outcome: Outcome) -> Measurement:
    row = outcome.row()
    return Measurement(
        status=outcome.status,
        reason=outcome.reason,
        cosines={p["param"]: p["cosine"] for p in row.pop("params")},
        blocks={b.pop("block"): b for b in row.pop("blocks")},
        budget={b.pop("param"): b for b in row.pop("budget")},
        estimate=outcome.estimate,
        reference=outcome.reference,
        row=row,
        **{name: row[name] for name in ("cosine", "norm_ratio", "rel_error", "residual", "antisymmetry")},
    )
