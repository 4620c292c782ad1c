"""The cheapest T1, T2 and beta at which a rule reaches a wanted cosine: `gradbench tune`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gradbench.engine import batched
from gradbench.engine.device import resolve
from gradbench.engine.precision import ieee_float32
from gradbench.engine.workers import side_by_side
from gradbench.errors import UserError
from gradbench.plan import Plan, Problem, cell_count, plan
from gradbench.runner import Progress, Watch
from gradbench.status import Status
from gradbench.suite import parse, settings

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome

# doubling ladders: the search is over orders of magnitude, and a depth between two of them costs no more than the next
T1 = (25, 50, 100, 200, 400, 800, 1600)
T2 = (5, 10, 20, 40, 80, 160)
BETA = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Point:
    """A setting with what it costs and what it reaches, over all seeds."""

    T1: int | None
    T2: int | None
    beta: float | None
    cosine_min: float  # of the worst seed
    evaluations: int  # force, jvp and vjp that one estimate needs by itself, on one batch

    def __str__(self) -> str:
        named = {"T1": self.T1, "T2": self.T2, "beta": self.beta}
        setting = "  ".join(f"{name} = {value:g}" for name, value in named.items() if value is not None)
        return f"cosine_min {self.cosine_min:.6f}  {self.evaluations:>6,} evaluations  {setting}"


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    chosen: Point | None  # the cheapest that reaches the wanted cosine; None: none does
    front: tuple[Point, ...]  # settings that no cheaper one equals, by cost
    unsettled: tuple[int, ...]  # T1 that were left out, since some seed had no stable fixed point there

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        chosen = asdict(self.chosen) if self.chosen else None
        return {"chosen": chosen, "front": [asdict(p) for p in self.front], "unsettled": list(self.unsettled)}


def tune(
    system: str,
    estimator: str,
    want: float,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Tuned:
    """Search doubling ladders of T1, T2 and beta for the cheapest setting with cosine_min >= want in every seed.

    `system` and `estimator` are names, or names with options as labels have them ("toy_noncons drive_std=1.0");
    `overrides` are keys of a grid and replace a ladder, too. First the free phase alone is taken at every T1;
    second phases run only where all seeds settled. `watch` is told how far either is. Raises UserError for anything
    that cannot be planned, and for a wanted cosine outside of (0, 1).
    """
    if not 0 < want < 1:
        raise UserError(f"cosine_min = {want:g} is not between 0 and 1")
    device = resolve(device)
    grid: dict[str, Any] = {"T1": T1, "T2": T2, "beta": BETA, "seed": SEEDS} | dict(overrides or {})
    grid = {key: list(value) if isinstance(value, tuple) else value for key, value in grid.items()}
    grid["system"], rule = _labelled(system), _labelled(estimator)
    _planned(grid | {"estimator": rule})  # mistakes are told before anything is measured
    told = watch or (lambda progress: None)
    free = _measured(grid | {"estimator": "bptt"}, device, told)
    by_T1: dict[int | None, list[Status]] = {}
    for outcome in free:
        by_T1.setdefault(outcome.cell.T1, []).append(outcome.status)
    settled = [T1 for T1, statuses in by_T1.items() if all(status is Status.SETTLED for status in statuses)]
    unsettled = tuple(T1 for T1 in by_T1 if T1 not in settled and T1 is not None)
    if not settled:
        return Tuned(None, (), unsettled)
    if None not in settled:
        grid["T1"] = settled
    found: dict[tuple[int | None, int | None, float | None], list[Outcome]] = {}
    for outcome in _measured(grid | {"estimator": rule}, device, told):
        cell = outcome.cell
        found.setdefault((cell.T1, cell.T2, cell.beta), []).append(outcome)
    points = []
    for setting, outcomes in found.items():
        cosines = [o.comparison.cosine_min if o.comparison else math.nan for o in outcomes]
        if all(o.status is Status.SETTLED for o in outcomes) and not any(map(math.isnan, cosines)):
            count = cell_count(outcomes[0].cell)
            evaluations = count.force + count.jvp + count.vjp
            points.append(Point(*setting, cosine_min=min(cosines), evaluations=evaluations))
    points.sort(key=lambda p: (p.evaluations, -p.cosine_min))
    front: list[Point] = []
    for point in points:
        if not front or point.cosine_min > front[-1].cosine_min:
            front.append(point)
    return Tuned(next((p for p in points if p.cosine_min >= want), None), tuple(front), unsettled)


def _planned(grid: Mapping[str, Any]) -> Plan:
    planned = plan(parse({"name": "tune", "about": "", "grid": [dict(grid)]}, "tune"), "tune")
    if not planned.cells:
        raise UserError(f"tune: {planned.skipped[0][1]}")
    return planned


def _measured(grid: Mapping[str, Any], device: str, watch: Watch) -> list[Outcome]:
    planned, outcomes, budget = _planned(grid), [], batched.available(device)
    cut = list(batched.packs(planned.problems, device, budget=budget))
    side = batched.workers(cut, device, "auto", budget)
    progress = Progress(len(planned.cells), len(planned.problems))

    def measured(pack: list[Problem]) -> list[tuple[int, list[Outcome]]]:
        return [(len(pack), batched.measure(pack, device, planned.thresholds, "auto", budget // side))]

    watch(progress)
    with ieee_float32():
        for problems, found in side_by_side(measured, cut, side, device):
            outcomes += found
            progress.done += len(found)
            progress.done_weight += problems
            progress.statuses.update(outcome.status for outcome in found)
            watch(progress)
    return outcomes


def _labelled(label: str) -> dict[str, Any]:
    """A name with options, from "name key=value ..."."""
    name, *options = label.split()
    return {"name": name} | settings(options, f"{label!r}: option")
