"""From a suite to work: cells, the problems that share a trajectory, the families that share a program.

Pure Python: planning ten thousand cells needs no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from gradbench import registry
from gradbench.errors import UserError, near_miss, placed
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count
from gradbench.estimators.reverse import ReversePhase
from gradbench.selection import keys, matches
from gradbench.status import Thresholds
from gradbench.suite import Check, Grid, Suite, Table
from gradbench.systems.base import AbstractSystem

PARAMS_FROM = "params_from"  # beside the options of a system
TRAININGS = Path("results/training")  # where `gradbench train` puts them, a folder a file, unless it is told otherwise


@dataclass(frozen=True)
class Cell:
    """One point. Coordinates that neither the system nor the estimator uses are None."""

    system: str
    system_options: str  # canonical JSON, defaults included
    estimator: str
    estimator_options: str
    s: float | None
    damp: float | None
    T1: int | None
    T2: int | None
    beta: float | None
    eps: float
    seed: int
    dtype: str
    batch: int

    @cached_property
    def key(self) -> str:
        """Content key: equal cells have equal keys in every run, whatever planned them."""
        return _digest(self.coordinates)

    @property
    def coordinates(self) -> dict[str, Any]:
        """Its fields by name."""
        return {name: getattr(self, name) for name in _COORDINATES}

    @property
    def labels(self) -> dict[str, str]:
        """Its system and estimator as people read them."""
        return {
            "system_label": _label(self.system, self.system_options, "system"),
            "estimator_label": _label(self.estimator, self.estimator_options, "estimator"),
        }

    @property
    def steps(self) -> int:
        """Free steps: T1, and none where the free state is a forward pass."""
        return self.T1 or 0

    @property
    def problem(self) -> Cell:
        """The coordinates that decide the free trajectory, with the others blanked."""
        return replace(self, estimator="", estimator_options="", T1=None, T2=None, beta=None)


_COORDINATES = tuple(f.name for f in fields(Cell))


@cache
def _label(name: str, options: str, kind: Literal["system", "estimator"]) -> str:
    """A name with the options that differ from the defaults, trained parameters by their training and digest."""
    known = json.loads(options)
    if PARAMS_FROM in known:
        path, _, digest = known[PARAMS_FROM].rpartition("@")
        checkpoint = Path(path)  # <training>/<id>/checkpoint.pt, or any file
        known[PARAMS_FROM] = f"{checkpoint.parent.parent.name or checkpoint.stem}@{digest[:8]}"
    return registry.label(name, json.dumps(known), kind)


@dataclass(frozen=True)
class Pass:
    """One run of a second phase, read by every estimator that shares it, at every depth and beta."""

    phase: AbstractPhase
    cells: tuple[Cell, ...]
    T1s: tuple[int, ...]

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """T2 of its cells, ascending."""
        return _values(c.T2 for c in self.cells)

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """Nudges of its cells, ascending."""
        return _values(c.beta for c in self.cells)

    @property
    def cost(self) -> Count:
        """Evaluations on one batch of examples: each T1 and beta is a row of its own."""
        # the sweep that gives the references goes to its end, whatever is read on the way
        depth = None if self.phase == ReversePhase() else max(self.depths)
        rows = (self.phase.count(T1, depth) * max(1, len(self.betas)) for T1 in self.T1s)
        return sum(rows, self.phase.beside(depth) * len(self.T1s))


@dataclass(frozen=True)
class Problem:
    """Cells that share system, parameters, data and dynamics: one free trajectory, read at each T1."""

    cells: tuple[Cell, ...]

    @cached_property
    def point(self) -> Cell:
        """Its coordinates, as a cell with the cell's own blanked."""
        return self.cells[0].problem

    @cached_property
    def key(self) -> str:
        """Content key: equal for equal cells in any order, so that a reordered suite finds its records."""
        return _digest(sorted(c.key for c in self.cells))

    @cached_property
    def system(self) -> AbstractSystem:
        """The system with its options."""
        options = json.loads(self.point.system_options)
        options.pop(PARAMS_FROM, None)
        return registry.system(self.point.system, options)

    @property
    def params_from(self) -> str | None:
        """Where its parameters come from, as `trained` names it; None: they are drawn."""
        name: str | None = json.loads(self.point.system_options).get(PARAMS_FROM)
        return name

    @cached_property
    def T1s(self) -> tuple[int, ...]:
        """Free steps of its cells, ascending."""
        return _values(c.steps for c in self.cells)

    @cached_property
    def reverse(self) -> Pass:
        """The sweep that gives the reference at every T1, and whatever cells read it as their estimate."""
        return Pass(ReversePhase(), tuple(c for c in self.cells if _phase(c) == ReversePhase()), self.T1s)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """The other second phases, each once."""
        grouped: dict[AbstractPhase, list[Cell]] = {}
        for cell in self.cells:
            if _phase(cell) != ReversePhase():
                grouped.setdefault(_phase(cell), []).append(cell)
        return tuple(Pass(phase, tuple(cells), _values(c.steps for c in cells)) for phase, cells in grouped.items())

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for problems that can run as one batch: same program, same shapes."""
        loops = tuple((p.phase, p.T1s, p.depths, len(p.betas)) for p in (self.reverse, *self.passes))
        return (self.point.system, self.point.system_options, self.point.batch, self.point.dtype, loops)

    @property
    def cost(self) -> Count:
        """Evaluations on one batch of examples, with everything shared."""
        return sum((p.cost for p in (self.reverse, *self.passes)), Count(force=max(1, *self.T1s)))

    @property
    def cost_alone(self) -> Count:
        """The same cells one at a time: each with a free phase and a reference of its own."""
        total = Count()
        for cell in self.cells:
            total += cell_count(cell)
            if _phase(cell) != ReversePhase():
                total += ReversePhase().count(cell.steps, None)
        return total


@dataclass(frozen=True)
class Plan:
    """All that a run will do, decided before it starts."""

    suite: str
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Cell, str], ...]  # cells that are rows without a measurement, with the reason
    points: int  # of all grids
    folded: int  # grid points that fell on a cell of their own grid, since nobody uses the coordinate
    repeated: int  # cells that an earlier grid had planned
    thresholds: Thresholds = field(default_factory=Thresholds)

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Cells by free trajectory, in the order of the suite."""
        grouped: dict[Cell, list[Cell]] = {}
        for cell in self.cells:
            grouped.setdefault(cell.problem, []).append(cell)
        return tuple(Problem(tuple(cells)) for cells in grouped.values())

    @cached_property
    def families(self) -> dict[tuple[Any, ...], list[Problem]]:
        """Problems by shape."""
        grouped: dict[tuple[Any, ...], list[Problem]] = {}
        for problem in self.problems:
            grouped.setdefault(problem.shape, []).append(problem)
        return grouped

    @cached_property
    def skip_reasons(self) -> Counter[str]:
        """How many cells are skipped, by reason."""
        return Counter(reason for _, reason in self.skipped)

    @cached_property
    def key(self) -> str:
        """Content key: the cells with their order aside, and the thresholds that judge them."""
        return _digest([sorted(c.key for c in (*self.cells, *(c for c, _ in self.skipped))), asdict(self.thresholds)])

    def verify(self, checks: Iterable[Check], where: str, tables: Iterable[Table] = ()) -> None:
        """Raise UserError for a check without a verdict, whatever is measured, and for a table without a cell."""
        cells = [cell.coordinates | cell.labels for cell in self.cells]
        known = {"status", *(k for cell in cells for k in keys(cell))}
        rules = {cell[k] for cell in cells for k in ("estimator", "estimator_label")}
        asked = [("check", i, check) for i, check in enumerate(checks)]
        for kind, i, item in [*asked, *(("table", i, table) for i, table in enumerate(tables))]:
            place = f"{where}: {kind}[{i}] {item.name!r}"
            for key in item.where:
                if key not in known:
                    raise UserError(
                        f"{place}: where.{key} is neither a coordinate nor an option{near_miss(key, known)}"
                    )
            planned = {k: v for k, v in item.where.items() if k != "status"}  # the one that a plan cannot know
            if not any(matches(cell, planned) for cell in cells):
                raise UserError(f"{place}: where matches none of {len(cells):,} planned cells")
            if isinstance(item, Check) and item.against is not None and item.against not in rules:
                raise UserError(f"{place}: against = {item.against!r} is not planned{near_miss(item.against, rules)}")

    @property
    def summary(self) -> dict[str, str]:
        """What `gradbench plan` prints."""
        shared = sum((p.cost for p in self.problems), Count())
        alone = sum((p.cost_alone for p in self.problems), Count())
        return {
            "grid points": f"{self.points:,}  ({self.folded:,} folded, {self.repeated:,} planned by an earlier grid)",
            "cells": f"{len(self.cells):,}  and {len(self.skipped):,} skipped",
            "problems": f"{len(self.problems):,}  free trajectories",
            "families": f"{len(self.families):,}  programs",
            "force evaluations": f"{shared.force:,}  ({alone.force:,} one cell at a time)",
            "jvp": f"{shared.jvp:,}  ({alone.jvp:,})",
            "vjp": f"{shared.vjp:,}  ({alone.vjp:,})",
        }

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


def plan(suite: Suite, where: str = "suite", given: Collection[str] = ()) -> Plan:
    """Plan a suite. Raises UserError for unknown names and options; `where` names the file in it.

    `given` names data that come with the call and need not be drawn.
    """
    cells: dict[Cell, None] = {}
    skipped: dict[Cell, str] = {}
    points = folded = repeated = 0
    for i, grid in enumerate(suite.grid):
        own: dict[Cell, str | None] = {}
        for cell, reason in _points(grid, f"{where}: grid[{i}]", given):
            points += 1
            folded += cell in own
            own[cell] = reason
        repeated += sum(cell in cells or cell in skipped for cell in own)
        cells |= {cell: None for cell, reason in own.items() if reason is None}
        skipped |= {cell: reason for cell, reason in own.items() if reason is not None}
    return Plan(suite.name, tuple(cells), tuple(skipped.items()), points, folded, repeated, suite.decide())


def _points(grid: Grid, where: str, given: Collection[str]) -> Iterator[tuple[Cell, str | None]]:
    pairs = itertools.product(
        _instances(grid.system, registry.system, f"{where}.system"),
        _instances(grid.estimator, registry.estimator, f"{where}.estimator"),
    )
    for system, estimator in pairs:
        used, default = system.uses | estimator.uses, system.defaults
        batch = grid.batch or default["batch"]
        with placed(f"{where}.system"):
            system.check(batch, given)
        reason, rule = estimator.skip(type(system)), registry.options(estimator)
        sources = [trained(Path(name), f"{where}.params_from") for name in grid.params_from or ()]
        axes = [
            [_options(system, source) for source in sources] or (registry.options(system),),
            grid.s or (default.get("s"),),
            grid.damp or (default.get("damp"),),
            grid.T1 or (default.get("T1"),),
            grid.T2 or (default["T2"],),
            grid.beta or (default["beta"],),
            grid.eps or (default["eps"],),
            grid.seed,
            grid.dtype,
        ]
        for options, s, damp, T1, T2, beta, eps, seed, dtype in itertools.product(*axes):
            yield (
                Cell(
                    system=system.name,
                    system_options=options,
                    estimator=estimator.name,
                    estimator_options=rule,
                    s=s if "s" in used else None,
                    damp=damp if "damp" in used else None,
                    T1=T1 if "T1" in used else None,
                    T2=T2 if "T2" in used else None,
                    beta=beta if "beta" in used else None,
                    eps=eps,
                    seed=seed,
                    dtype=dtype,
                    batch=batch,
                ),
                reason or (estimator.skip_cell(T1, T2) if "T1" in used else None),
            )


def trained(path: Path, where: str = "params_from") -> str:
    """A checkpoint as path@digest: what a cell is named by is what it was measured at.

    `path` is a checkpoint, the folder of a training, or that of all trainings of a file, the last of which counts.
    """
    trainings = sorted(path.glob("*/checkpoint.pt"))  # their ids begin with the time at which they began
    file = path / "checkpoint.pt" if path.is_dir() else path
    file = trainings[-1] if trainings and not file.exists() else file
    try:
        return f"{file}@{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        way_out = f". To make one: gradbench train {path.name}" if path.parent == TRAININGS else ""
        raise UserError(f"{where} = {str(path)!r} is no training or checkpoint: {error.strerror}{way_out}") from None


def _options(system: AbstractSystem, source: str) -> str:
    """Options of a system whose parameters were trained: the source stands among them, and so in labels and checks."""
    return json.dumps(json.loads(registry.options(system)) | {PARAMS_FROM: source}, sort_keys=True)


def _instances(choices: Iterable[tuple[str, dict[str, tuple[Any, ...]]]], build: Any, where: str) -> Iterator[Any]:
    seen: dict[str, str] = {}
    for i, (name, options) in enumerate(choices):
        for values in itertools.product(*options.values()):
            item = build(name, dict(zip(options, values, strict=True)), f"{where}[{i}]")
            key = f"{name} {registry.options(item)}"
            if key in seen:
                raise UserError(f"{where}[{i}]: {name!r} with these options stands there twice (see {seen[key]})")
            seen[key] = f"{where}[{i}]"
            yield item


@cache
def estimator(name: str, options: str) -> AbstractEstimator:
    """The estimator of a cell, by its name and canonical options."""
    return registry.estimator(name, json.loads(options))


def cell_count(cell: Cell) -> Count:
    """Evaluations that an estimate needs by itself: its free phase and its second phase, no reference.

    A forward pass in place of a free phase evaluates every layer once, as one force does.
    """
    return Count(force=max(1, cell.steps)) + _phase(cell).count(cell.steps, cell.T2)


def _phase(cell: Cell) -> AbstractPhase:
    return estimator(cell.estimator, cell.estimator_options).phase


def _values(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted({v for v in values if v is not None}))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
