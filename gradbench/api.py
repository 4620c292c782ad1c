"""One cell from Python: `gradbench.measure(system, estimator, ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any

from gradbench.engine.device import resolve
from gradbench.engine.draws import build
from gradbench.engine.precision import ieee_float32
from gradbench.engine.solving import solve
from gradbench.errors import UserError, near_miss
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.vocabulary.coordinates import COORDINATES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.engine.outcome import Outcome
    from gradbench.systems.base import Params
    from gradbench.vocabulary.status import Status


@dataclass(frozen=True)
class Measurement:
    """An estimate and its reference, with the evidence that their comparison means something.

    `row` holds every column of the table `cells`; the attributes are the columns that are read most. A number that is
    undefined is NaN, and `reason` says why.
    """

    status: Status
    reason: str
    cosine: float  # of the whole gradient
    cosines: dict[str, float]  # by parameter
    blocks: dict[str, dict[str, float]]  # by block of the state: its credit against that of the reference
    budget: dict[str, dict[str, float]]  # by parameter, "" the whole: its error by cause; {} where none is looked for
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
    device: str = "cpu",
    params: Mapping[str, Tensor] | None = None,
    data: Mapping[str, Tensor] | None = None,
    system_options: Mapping[str, object] | None = None,
    estimator_options: Mapping[str, object] | None = None,
    **coordinates: Value,
) -> Measurement:
    """Compare one estimate with backpropagation through time.

    The signature has a keyword for every coordinate. A coordinate that is None or left out takes the default of the
    system. `params` and `data` replace what `seed` would draw, and sizes and batch are read from them. Raises UserError
    for unknown names and options, for wrong shapes, and for an estimator that does not apply to the system. Numerical
    trouble is no exception but the status of the measurement.
    """
    for name in coordinates:
        if name not in COORDINATES:
            known = [p.name for p in signature(measure).parameters.values()]
            raise UserError(f"measure: there is no argument {name!r}{near_miss(name, known)}")
    params, data = params or {}, data or {}
    known_system = registry.known_systems().get(system)
    sizes = known_system.sizes(dict(params), dict(data)) if known_system else {}
    batches = {len(data[n]) for n in (known_system.per_example if known_system else ()) if n in data}
    if len(batches) > 1:
        raise UserError(f"data of {system}: entries disagree on the number of examples: {sorted(batches)}")
    named = coordinates | ({"batch": batches.pop()} if batches else {})
    grid = {
        "system": {"name": system, **sizes, **(system_options or {})},
        "estimator": {"name": estimator, **(estimator_options or {})},
        **{name: value for name, value in named.items() if value is not None},
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


def _signed() -> Signature:
    """The signature of `measure` with a keyword for every coordinate."""
    written = signature(measure)
    *others, _ = written.parameters.values()
    keywords = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=c.default, annotation=f"{c.type.__name__} | None")
        for name, c in COORDINATES.items()
    ]
    return written.replace(parameters=[*others, *keywords])


measure.__signature__ = _signed()  # type: ignore[attr-defined]


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
