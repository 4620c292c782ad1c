"""`gradbench tune`: the cheapest T1, T2 and beta at which a rule reaches a wanted cosine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gradbench.commands.measuring import Setup, measured
from gradbench.commands.progress import CellProgress, CellWatch, watching
from gradbench.data.given import article
from gradbench.engine.device import resolve
from gradbench.engine.packs import available, refused_where_too_large, resolved
from gradbench.errors import RuleFaultError, UserError, public, spoken
from gradbench.estimators.reference import REFERENCE
from gradbench.planning import files, registry, values
from gradbench.planning.overrides import Overrides, of_overrides
from gradbench.planning.plans import Plan, plan
from gradbench.planning.plugins import Kind, Names, load
from gradbench.planning.suites import Suite, parse
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import AbstractSystem

# the search is over orders of magnitude: a number between two of a ladder costs no more than the larger of the two
LADDERS = {
    "T1": (25, 50, 100, 200, 400, 800, 1600),
    "T2": (5, 10, 20, 40, 80, 160),
    "beta": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}
SEEDS = (0, 1, 2)
SEARCHED = (*LADDERS, "seed")  # keys that take several values
SHOWN = 3  # of the values of a list that a message repeats


@dataclass(frozen=True)
class Point:
    """A setting of T1, T2 and beta, with its cost and its cosine over all seeds."""

    T1: int | None
    T2: int | None
    beta: float | None
    cosine_min: float  # of the worst seed
    evaluations: int  # force, jvp and vjp that one estimate needs alone, on one batch

    def __str__(self) -> str:
        named = {"T1": self.T1, "T2": self.T2, "beta": self.beta}
        setting = "  ".join(f"{name} = {value:g}" for name, value in named.items() if value is not None)
        return f"cosine_min {self.cosine_min:.6f}  {self.evaluations:>6,} evaluations  {setting}"


@dataclass(frozen=True)
class Tuned:
    """The result of a search."""

    chosen: Point | None  # the cheapest setting that reaches the wanted cosine; None: no setting does
    front: tuple[Point, ...]  # settings that reach a higher cosine than every cheaper one, by cost
    unsettled: tuple[int, ...]  # T1 that were left out: some seed has no stable fixed point there

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        chosen = asdict(self.chosen) if self.chosen else None
        return {"chosen": chosen, "front": [asdict(p) for p in self.front], "unsettled": list(self.unsettled)}


def _elsewhere(name: str) -> str:
    """What an argument is called that `tune` does not have."""
    return "the wanted cosine_min is the argument want" if "cosine" in name else of_overrides(name)


@public(_elsewhere)
def tune(
    system: str | AbstractSystem | type[AbstractSystem],
    estimator: str | AbstractEstimator | type[AbstractEstimator],
    want: float = 0.99,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    watch: CellWatch | None = None,
    plugins: Names = (),
) -> Tuned:
    """Search ladders of T1, T2 and beta for the cheapest setting with cosine_min >= want in every seed.

    `system` and `estimator` are names, names with options as labels have them ("toy_noncons drive_std=1.0"), or what
    `gradbench.system` and `gradbench.estimator` made. `plugins` are files and modules whose systems and rules get their
    names first. `overrides` replaces ladders and other keys of the grid; T1, T2, beta and seed alone take lists, since
    all else is one question. The first pass measures the free phase alone, at every T1; the second pass measures the
    rule, at each T1 where all seeds settled. `watch` is called with the progress of either pass. Raises UserError for
    anything that cannot be planned, and for a wanted cosine outside of (0, 1).
    """
    want = _wanted(want)
    load(plugins)
    device = resolve(device)
    replaced = Overrides.of(overrides)
    for key in ("system", "estimator"):
        if key in replaced:
            raise UserError(f"{replaced.places[key]}: the {key} of a search is an argument of its own")
    grid: dict[str, Any] = LADDERS | {"seed": SEEDS} | replaced | {"system": _entry(system, "system")}
    rule = _entry(estimator, "estimator")
    # mistakes are told before anything is measured
    places = replaced.places | {"system": "system", "estimator": "estimator"}
    _refuse_options(replaced, (grid["system"], rule))
    _refuse_lists(_parsed(grid | {"estimator": rule}, places), places)
    planned = _planned(grid | {"estimator": rule}, places)
    watch = watching(watch)
    settled, unsettled = _free_phases(_outcomes(grid | _cheapest(planned, rule), device, watch))
    if not settled:
        return Tuned(None, (), unsettled)
    if None not in settled:
        grid["T1"] = settled
    points = _points(_outcomes(grid | {"estimator": rule}, device, watch))
    front: list[Point] = []
    for point in points:
        if not front or point.cosine_min > front[-1].cosine_min:
            front.append(point)
    return Tuned(next((p for p in points if p.cosine_min >= want), None), tuple(front), unsettled)


def _cheapest(planned: Plan, rule: object) -> dict[str, Any]:
    """What a grid asks for whose free phases alone are wanted: the reference, or the rule at its first T2 and beta."""
    if planned.problems[0].reverse.T1s:
        return {"estimator": REFERENCE.name}
    first = planned.cells[0]
    return {"estimator": rule} | {n: v for n in ("T2", "beta") if (v := getattr(first, n)) is not None}


def _wanted(want: object) -> float:
    """The wanted cosine. Raises UserError for what is no number between 0 and 1."""
    try:
        number = values.number(want)
    except ValueError as error:
        raise UserError(f"want: {error}; expected a number between 0 and 1") from None
    if not 0 < number < 1:
        raise UserError(f"{spoken(python='want =', shell='--cosine-min')} {number:g} is not between 0 and 1")
    return number


def _refuse_options(replaced: Overrides, items: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError for an option of the system or the rule among the keys: it stands behind a name."""
    for key, (kind, item) in itertools.product(replaced, zip(("system", "estimator"), items, strict=True)):
        name = item["name"]
        if key in registry.options_of(kind, name, item) and key not in registry.knobs(name, item):
            written = f"{name} {key}={replaced[key]}"
            raise UserError(
                f"{replaced.places[key]}: it is an option of {name}, and stands behind its name: {written!r}"
            )


def _refuse_lists(suite: Suite, places: Mapping[str, str]) -> None:
    """Raise UserError for several values of what is no ladder and no seed: their answers would be one."""
    (grid,) = suite.grid
    several = {name: getattr(grid, name) for name in type(grid).model_fields if name not in SEARCHED}
    for kind in ("system", "estimator"):
        ((_, options),) = several.pop(kind)
        several |= {option if option in places else f"{kind}.{option}": listed for option, listed in options.items()}
    for name, listed in several.items():
        if listed is not None and len(listed) > 1:
            told = ", ".join(map(str, listed[:SHOWN])) + (", ..." if len(listed) > SHOWN else "")
            raise UserError(
                f"{places.get(name, name)}: got {told}; a search asks of one value, for every seed: lists are those of "
                f"{', '.join(SEARCHED)}"
            )


def _parsed(grid: Mapping[str, Any], places: Mapping[str, str]) -> Suite:
    return parse({"name": "tune", "about": "", "grid": [dict(grid)]}, "tune", places)


def _planned(grid: Mapping[str, Any], places: Mapping[str, str] = MappingProxyType({})) -> Plan:
    planned = plan(_parsed(grid, places), "tune", places=places)
    if not planned.cells:
        raise UserError(f"tune: {planned.skipped[0][1]}")
    return planned


def _outcomes(grid: Mapping[str, Any], device: str, watch: CellWatch) -> list[Outcome]:
    """The outcomes of all cells of a grid."""
    planned = _planned(grid)
    outcomes: list[Outcome] = []
    progress = CellProgress.of(planned.problems)
    watch(progress)
    setup = Setup(device=device, engine=resolved("auto", device, planned.problems), budget=available(device))
    with refused_where_too_large(*planned.problems):
        for problem, measurements in measured(planned.problems, planned.thresholds, setup, progress.meters):
            outcomes += measurements
            for outcome in measurements:
                if outcome.status is Status.ERROR:
                    raise RuleFaultError(outcome.reason)
            progress.add(problem, (outcome.status for outcome in measurements))
            watch(progress)
    return outcomes


def _free_phases(outcomes: Iterable[Outcome]) -> tuple[list[int | None], tuple[int, ...]]:
    """The T1 at which every seed settled, and those at which some seed did not. None: a system without a T1."""
    by_T1: dict[int | None, list[Status]] = {}
    for outcome in outcomes:
        by_T1.setdefault(outcome.cell.T1, []).append(outcome.status)
    settled = [T1 for T1, statuses in by_T1.items() if all(status is Status.SETTLED for status in statuses)]
    return settled, tuple(T1 for T1 in by_T1 if T1 not in settled and T1 is not None)


def _points(outcomes: Iterable[Outcome]) -> list[Point]:
    """The settings at which every seed has a cosine, by cost; of equal costs the higher cosine first."""
    by_setting: dict[tuple[int | None, int | None, float | None], list[Outcome]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        by_setting.setdefault((cell.T1, cell.T2, cell.beta), []).append(outcome)
    points = []
    for setting, seeds in by_setting.items():
        cosines = [o.comparison.cosine_min if o.comparison else math.nan for o in seeds]
        if all(o.status is Status.SETTLED for o in seeds) and not any(map(math.isnan, cosines)):
            count = seeds[0].count
            evaluations = count.force + count.jvp + count.vjp
            points.append(Point(*setting, cosine_min=min(cosines), evaluations=evaluations))
    return sorted(points, key=lambda p: (p.evaluations, -p.cosine_min))


def _entry(item: object, argument: Kind) -> dict[str, Any]:
    """What a grid holds for an item, or for "name key=value ...". Raises UserError for anything else."""
    registry.refuse_other_kind(argument, item)
    entry = registry.written(item)
    if isinstance(entry, dict) and not isinstance(item, dict):
        return entry
    if not isinstance(item, str) or not item.split():
        got = repr(item) if isinstance(item, str) else article(item)
        raise UserError(
            f"{argument}: got {got}, expected a name, a name with options such as 'name option=1', or what "
            f"gradbench.{argument} made"
        )
    known = registry.known_systems() if argument == "system" else registry.known_estimators()
    name, pairs = registry.labelled(item, known)
    if name not in known and (what := registry.what_is(name)):
        raise UserError(f"{argument} = {item!r}: {name!r} is {what}; {registry.ORDER}")
    if name not in known and name in files.shipped(files.SUITES):
        raise UserError(f"{argument} = {item!r}: {name!r} is a suite; a search takes a system and an estimator")
    options = values.settings(pairs, f"{item!r}: option")
    if "name" in options:
        raise UserError(f"{argument} = {item!r}: there is no option 'name'; the name comes first: {name!r}")
    return {"name": name} | options
