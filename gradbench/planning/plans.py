"""From a suite to a plan: cells, skipped cells with reasons, and the problems and families that the cells make.

Pure Python: planning ten thousand cells needs no torch.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator, Count
from gradbench.estimators.reference import IMPLICIT, REFERENCE
from gradbench.planning import registry, values
from gradbench.planning.cells import NAMES, PARAMS_FROM, Cell, common, digest, trained
from gradbench.planning.problems import Problem, Shape, no_way_back, rule_of
from gradbench.planning.selection import NAMED, keys, matches, why_none
from gradbench.planning.suites import Check, Grid, Suite, Table
from gradbench.planning.values import Options
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.coordinates import COORDINATES, Value
from gradbench.vocabulary.solver import Solver
from gradbench.vocabulary.status import Thresholds

Item = TypeVar("Item", AbstractSystem, AbstractEstimator)


@dataclass(frozen=True)
class Plan:
    """All cells of a run, decided before it starts."""

    suite: str
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Cell, str], ...]  # cells that get a row without a measurement, and why
    points: int  # of all grids
    folded: int  # points that are the same cell as another point of their grid, since a coordinate is not used
    repeated: int  # cells that an earlier grid had planned
    thresholds: Thresholds = field(default_factory=Thresholds)

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Cells that share a free trajectory, in the order of the suite."""
        grouped: dict[tuple[Value, ...], list[Cell]] = {}
        with uncollected():
            for cell, shared in zip(self.cells, map(common, self.cells), strict=True):
                if (there := grouped.get(shared)) is None:
                    grouped[shared] = [cell]
                else:
                    there.append(cell)
            return tuple(Problem(tuple(cells)) for cells in grouped.values())

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """For every problem the place of the first one that has its shape and its costs, and differs in numbers."""
        known: dict[object, int] = {}
        return tuple(known.setdefault(problem.kind, i) for i, problem in enumerate(self.problems))

    @cached_property
    def families(self) -> dict[Shape, list[Problem]]:
        """Problems that share a shape."""
        shapes = {i: self.problems[i].shape for i in sorted(set(self.firsts))}
        grouped: dict[Shape, list[Problem]] = {shape: [] for shape in shapes.values()}
        for problem, first in zip(self.problems, self.firsts, strict=True):
            grouped[shapes[first]].append(problem)
        return grouped

    @cached_property
    def parts(self) -> tuple[AbstractSystem | AbstractEstimator, ...]:
        """The systems and the rules that are measured, each with its options."""
        different = {(p.cells[0].system, p.cells[0].system_options): p for p in self.problems}
        rules = dict.fromkeys(map(attrgetter("estimator", "estimator_options"), self.cells))
        return (*(problem.system for problem in different.values()), *(rule_of(*rule) for rule in rules))

    @cached_property
    def skip_reasons(self) -> Counter[str]:
        """How many cells are skipped, by reason."""
        return Counter(reason for _, reason in self.skipped)

    @cached_property
    def key(self) -> str:
        """Content key of the suite, its cells in any order, those that are skipped, and the thresholds."""
        return key_of(
            self.suite, (c.key for c in self.cells), (c.key for c, _ in self.skipped), asdict(self.thresholds)
        )

    def verify(self, items: Iterable[tuple[str, Iterable[Check | Table]]], where: str) -> None:
        """Raise UserError for a check that can have no verdict, and for a table without a cell: items by key."""
        listed = [(key, tuple(entries)) for key, entries in items]
        if any(entries for _, entries in listed):
            named = {key for _, entries in listed for item in entries for key in item.where}
            # rows that differ in nothing that is asked for are looked at once
            asked = [c.attribute for name, c in COORDINATES.items() if name in named]
            telling = attrgetter(*NAMES, *asked)
            different = dict(zip(map(telling, reversed(self.cells)), reversed(self.cells), strict=True))
            cells: list[dict[str, Value]] = [{**c.coordinates, **c.labels} for c in reversed(different.values())]
            verify_items(cells, "planned", listed, where, len(self.cells))

    @property
    def summary(self) -> dict[str, str]:
        """The lines of `gradbench plan`, by name."""
        alike = Counter(self.firsts)
        shared = sum((self.problems[i].cost * n for i, n in alike.items()), Count())
        alone = sum((self.problems[i].cost_alone * n for i, n in alike.items()), Count())
        least = "at least " if shared.partial else ""  # rules that are a function ask for what they need
        return {
            "grid points": f"{self.points:,}  ({self.folded:,} folded, {self.repeated:,} planned by an earlier grid)",
            **self._few,
            "cells": f"{len(self.cells):,}  and {len(self.skipped):,} skipped",
            "problems": f"{len(self.problems):,}  free trajectories",
            "families": f"{len(self.families):,}  programs",
            "force evaluations": f"{least}{shared.force:,}  ({alone.force:,} one cell at a time)",
            "jvp": f"{least}{shared.jvp:,}  ({alone.jvp:,})",
            "vjp": f"{least}{shared.vjp:,}  ({alone.vjp:,})",
        }

    @property
    def _few(self) -> dict[str, str]:
        """The values of the coordinates that not every system and rule uses, where they are few."""
        told = {}
        for name, c in COORDINATES.items():
            if not c.optional:
                continue
            if c.shared:
                holders = [cell for i in set(self.firsts) for cell in self.problems[i].cells]
            else:
                holders = [problem.cells[0] for problem in self.problems]
            values = sorted(set(map(attrgetter(c.attribute), holders)) - {None})
            if 0 < len(values) <= NAMED:
                told[name] = ", ".join(f"{v:g}" for v in values)
        return told

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, for the run folder."""
        return {
            "suite": self.suite,
            "key": self.key,
            "points": self.points,
            "folded": self.folded,
            "repeated": self.repeated,
            "cells": [c.coordinates | {"cell": c.key} for c in self.cells],
            "skipped": [c.coordinates | {"cell": c.key, "reason": reason} for c, reason in self.skipped],
            "problems": [p.key for p in self.problems],
            "thresholds": asdict(self.thresholds),
        }


def verify_items(
    cells: Sequence[Mapping[str, Any]],
    kind: str,
    items: Iterable[tuple[str, Iterable[Check | Table]]],
    where: str,
    count: int | None = None,
) -> None:
    """Raise UserError for a check that can have no verdict among `cells`, and for a table without one.

    Messages call the cells those of a `kind`, such as planned. They begin with `where`, and with the key of a suite
    under which the items stand. Where `cells` has one for many that are alike, `count` is how many they are.
    """
    count = len(cells) if count is None else count
    known = {"status", *(k for cell in cells for k in keys(cell))}
    rules = {str(cell[k]) for cell in cells for k in ("estimator", "estimator_label")}
    for key_of_items, i, item in ((key, i, item) for key, listed in items for i, item in enumerate(listed)):
        place = f"{where}: {key_of_items}[{i}] {item.name!r}"
        for key in item.where:
            if key not in known:
                raise UserError(f"{place}: where.{key} is neither a coordinate nor an option{near_miss(key, known)}")
        meant = {k: v for k, v in item.where.items() if k != "status"}  # a plan knows no status
        chosen = [cell for cell in cells if matches(cell, meant)]
        if not chosen:
            told = why_none(cells, meant, kind) if cells else f"no cell is {kind}"
            raise UserError(f"{place}: where matches none of {count:,} {kind} cells: {told}")
        for key, wanted in meant.items():  # a value that is misspelt would be left out without a word
            for value in wanted if isinstance(wanted, list) else ():
                if not any(matches(cell, {key: value}) for cell in chosen):
                    told = why_none(cells, meant | {key: value}, kind)
                    raise UserError(f"{place}: where.{key} has a value that no cell has: {told}")
        if isinstance(item, Check) and item.against is not None:
            if item.against not in rules:
                raise UserError(f"{place}: against = {item.against!r} is not {kind}{near_miss(item.against, rules)}")
            exact = any(cell["estimator_label"] == item.against for cell in cells)
            column = "estimator_label" if exact else "estimator"
            if all(cell[column] == item.against for cell in chosen):
                told = "where matches cells of that rule alone, whose difference to themselves is 0"
                raise UserError(f"{place}: against = {item.against!r}: {told}")


def key_of(suite: str, cells: Iterable[str], skipped: Iterable[str], thresholds: Mapping[str, Any]) -> str:
    """Content key of a plan, from the keys of its cells and of those that it skips."""
    return digest([suite, sorted(cells), sorted(skipped), thresholds])


def plan(
    suite: Suite,
    where: str = "suite",
    given: Collection[str] = (),
    places: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Plan a suite. Raises UserError for unknown names and options.

    `where` names the file of the suite in errors, and `places` says how an error calls the keys of grids that are not
    from there. `given` names the data that the caller brings, which are not drawn.
    """
    points = folded = 0
    planned: list[tuple[Cell, str | None]] = []  # of all grids
    repeated: set[int] = set()  # their places where an earlier grid has the cell
    known: set[Cell] = set()  # of earlier grids
    with uncollected():
        for i, grid in enumerate(suite.grid):
            named = {**{key: f"{where}: grid[{i}].{key}" for key in type(grid).model_fields}, **places}
            first = len(planned)
            for block in _blocks(grid, named, given):
                points += block.points
                folded += block.points - len(block.reasons)
                planned += block.cells()
            if len(suite.grid) > 1:
                new = {cell: j for j, (cell, _) in enumerate(planned[first:], first)}
                repeated |= {j for cell, j in new.items() if cell in known}
                known |= new.keys()
        if repeated:
            cells = tuple(dict.fromkeys(cell for cell, reason in planned if reason is None))
            skipped = tuple({cell: reason for cell, reason in planned if reason is not None}.items())
        else:
            cells = tuple(cell for cell, reason in planned if reason is None)
            skipped = tuple((cell, reason) for cell, reason in planned if reason is not None)
    _refuse_shared_labels(cells, skipped, where)
    return Plan(suite.name, cells, skipped, points, folded, len(repeated), suite.decide())


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is looked for: among a million cells, which hold none, that takes as long as to make them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Block(NamedTuple):
    """The points of a grid at which one system and one rule meet."""

    system: str
    rule: tuple[str, str]  # name and options
    points: int  # before points that are one cell were folded
    reasons: dict[tuple[Any, ...], str | None]  # why a cell is skipped, by the options of its system and its values

    def cells(self) -> Iterator[tuple[Cell, str | None]]:
        """The cells, each with the reason why it is skipped, or None."""
        attributes = [c.attribute for c in COORDINATES.values()]
        name, options = self.rule
        for (chosen, *at), reason in self.reasons.items():
            point = dict(zip(attributes, at, strict=True))
            yield (
                Cell(system=self.system, system_options=chosen, estimator=name, estimator_options=options, **point),
                reason,
            )


def _blocks(grid: Grid, places: Mapping[str, str], given: Collection[str]) -> Iterator[_Block]:
    """Every point of a grid, by system and rule; `places` has the keys of errors."""
    pairs = itertools.product(
        _instances(grid.system, registry.system, places["system"]),
        _instances(grid.estimator, registry.estimator, places["estimator"]),
    )
    for system, estimator in pairs:
        axes = {c.attribute: grid.along(c, system.defaults) for c in COORDINATES.values()}
        with placed(places["system"]):
            system.check(axes["batch"][0], given)
        used = system.uses | estimator.uses
        _refuse_missing(system, used, axes)
        coordinates = [(places[n], v) for n, c in COORDINATES.items() for v in axes[c.attribute]]
        options = _numbers(system, places["system"]) + _numbers(estimator, places["estimator"])
        refuse_unheld(axes["dtype"], coordinates + options)
        unused = {c.attribute for c in COORDINATES.values() if c.optional and c.name not in used}
        folded = {name: (None,) * len(values) if name in unused else values for name, values in axes.items()}
        reasons = {solver: skip_reason(system, estimator, solver) for solver in axes["solver"]}
        alone = {solver for solver in axes["solver"] if no_way_back(system, solver)}  # with one reference
        for solver, name in itertools.product(sorted(alone), grid.named(COORDINATES["reference"]) or ()):
            refuse_reference(name, system, solver, places["reference"])
        rule = registry.options(estimator)
        sources = [trained(Path(name), places["params_from"]) for name in grid.params_from or ()]
        systems = [_options(system, source) for source in sources] or [registry.options(system)]
        block = _Block(system.name, (estimator.name, rule), len(systems) * math.prod(map(len, axes.values())), {})
        solver, T1, T2, reference = (1 + list(axes).index(name) for name in ("solver", "T1", "T2", "reference"))
        where_read = {
            (a, b): estimator.skip_cell(a, b) if "T1" in used else None
            for a, b in itertools.product(axes["T1"], axes["T2"])
        }
        # the cells have no value of an axis that is not used, and a rule may ask for it all the same
        all_points = zip(
            itertools.product(systems, *axes.values()), itertools.product(systems, *folded.values()), strict=True
        )
        for point, at in all_points:
            if alone and point[solver] in alone:
                at = (*at[:reference], IMPLICIT, *at[reference + 1 :])
            block.reasons[at] = reasons[point[solver]] or where_read[point[T1], point[T2]]
        yield block


def skip_reason(system: AbstractSystem, estimator: AbstractEstimator, solver: str) -> str | None:
    """Why a rule does not apply to a system whose free phase this solver does, or None."""
    if solver != Solver.EULER and "T1" not in system.uses:
        return f"{system.name} has no free phase that solver = {solver!r} could solve"
    why = no_way_back(system, solver)
    if why and estimator.phase == REFERENCE.phase:
        return f"{estimator.name} goes back through the steps of the relaxation, and {why}"
    return estimator.skip(type(system))


def refuse_reference(name: object, system: AbstractSystem, solver: str, where: str) -> None:
    """Raise UserError for a reference that goes back through steps where there are none; `where` is its place."""
    why = no_way_back(system, solver)
    if why and name == REFERENCE.name:
        way_out = f"leave it out, or write {IMPLICIT!r}"
        raise UserError(f"{where} = {name!r}: it goes back through the steps of the relaxation, and {why}; {way_out}")


def _refuse_shared_labels(cells: Sequence[Cell], skipped: Sequence[tuple[Cell, str]], where: str) -> None:
    """Raise UserError where two systems or two rules have one label: those from functions may share a name."""
    meant: dict[tuple[str, str], tuple[str, str]] = {}
    different: dict[object, Cell] = {}
    for cell in itertools.chain(cells, (cell for cell, _ in skipped)):
        different.setdefault((cell.system, cell.system_options, cell.estimator, cell.estimator_options), cell)
    for cell in different.values():
        pairs = ((cell.system, cell.system_options), (cell.estimator, cell.estimator_options))
        for (kind, label), item in zip(cell.labels.items(), pairs, strict=True):
            if meant.setdefault((kind, label), item) != item:
                raise UserError(f"{where}: two different items have the name {label!r}; give one another name")


def refuse_unheld(dtypes: Iterable[str], numbers: Iterable[tuple[str, object]]) -> None:
    """Raise UserError for a number, which comes with its place, that one of the dtypes cannot hold."""
    for dtype, (place, number) in itertools.product(dtypes, numbers):
        if isinstance(number, float):
            try:
                values.check_held(number, dtype)
            except ValueError as error:
                raise UserError(f"{place} = {error}") from None


def _numbers(item: AbstractSystem | AbstractEstimator, where: str) -> list[tuple[str, object]]:
    """The options of a system or an estimator, with their places in a suite."""
    return [(f"{where}.{f.name}", getattr(item, f.name)) for f in fields(item)]  # type: ignore[arg-type]


def _refuse_missing(system: AbstractSystem, used: Collection[str], axes: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise UserError where a coordinate that is used has no value: neither the caller nor the system names one."""
    missing = [n for n, c in COORDINATES.items() if axes[c.attribute] == (None,) and (n in used or not c.optional)]
    if missing:
        told = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        raise UserError(
            f"{system.name}: {told} {'are' if missing[1:] else 'is'} missing: name {'them' if missing[1:] else 'it'}, "
            f"or give defaults= to the system"
        )


def _options(system: AbstractSystem, source: str) -> str:
    """Options of a system and the source of its trained parameters, so that labels and checks name the source."""
    return json.dumps(json.loads(registry.options(system)) | {PARAMS_FROM: source}, sort_keys=True)


def _instances(choices: Sequence[tuple[str, Options]], build: Callable[..., Item], where: str) -> Iterator[Item]:
    """A system or an estimator for every name and every product of its options. Raises UserError for equal ones."""
    seen: dict[str, str] = {}
    for i, (name, options) in enumerate(choices):
        place = f"{where}[{i}]" if len(choices) > 1 else where
        for chosen in itertools.product(*options.values()):
            item = build(name, dict(zip(options, chosen, strict=True)), place)
            key = f"{name} {registry.options(item)}"
            if key in seen:
                raise UserError(f"{place}: {name!r} with these options stands there twice (see {seen[key]})")
            seen[key] = place
            yield item
