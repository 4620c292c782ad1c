"""The work that cells share: a problem has one free trajectory, and a pass is one run of a second phase."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple, TypeVar

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count
from gradbench.estimators.reference import REFERENCE
from gradbench.planning import registry
from gradbench.planning.cells import PARAMS_FROM, Cell, digest
from gradbench.systems.base import AbstractSystem
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.solver import Solver

N = TypeVar("N", int, float)
# what shapes and costs follow from, of a problem and of its cells
_OF_A_KIND = attrgetter("system", "system_options", "solver", "batch", "dtype")
_OF_A_PASS = attrgetter("estimator", "estimator_options", *(c.attribute for c in COORDINATES.values() if c.shared))
Shape = tuple[object, ...]  # equal for problems that can run as one batch


class Place(NamedTuple):
    """The place of a cell among the rows and columns of a pass."""

    row: int  # of its T1, among the T1 of the pass
    column: int  # of its beta, among the betas of the pass; 0 where the rule has no beta


@dataclass(frozen=True)
class Pass:
    """One run of a second phase, which all estimators that share the phase read, at every depth and beta."""

    phase: AbstractPhase
    cells: tuple[Cell, ...]
    T1s: tuple[int, ...]

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """T2 of the cells, ascending."""
        return _ascending(c.T2 for c in self.cells)

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """beta of the cells, ascending."""
        return _ascending(c.beta for c in self.cells)

    @cached_property
    def places(self) -> dict[Cell, Place]:
        """The place of every cell."""
        rows = {T1: i for i, T1 in enumerate(self.T1s)}
        columns: dict[float | None, int] = {None: 0} | {beta: j for j, beta in enumerate(self.betas)}
        return {c: Place(rows[c.steps], columns[c.beta]) for c in self.cells}

    @property
    def cost(self) -> Count:
        """Evaluations on one batch of examples: each T1 and beta is a row of its own."""
        # the reverse sweep goes to its end, whatever depths are read on the way, since its end is the reference
        depths = () if self.phase == REFERENCE.phase else self.depths
        rows = (self.phase.run_count(T1, depths) * max(1, len(self.betas)) for T1 in self.T1s)
        return sum(rows, self.phase.evidence_count(max(depths, default=None)) * len(self.T1s))


@dataclass(frozen=True)
class Problem:
    """Cells that share system, parameters, data and dynamics: one free trajectory, read at each T1."""

    cells: tuple[Cell, ...]

    @cached_property
    def point(self) -> Cell:
        """The coordinates that all cells share, as a cell; all other coordinates are blank."""
        return self.cells[0].problem

    @cached_property
    def key(self) -> str:
        """Content key: equal for equal cells in any order, so that a reordered suite finds its records."""
        return digest(sorted(c.key for c in self.cells))

    @cached_property
    def system(self) -> AbstractSystem:
        """The system with its options."""
        return system_of(self.point.system, self.point.system_options)

    @property
    def params_from(self) -> str | None:
        """The checkpoint of its parameters, as `trained` names it; None: parameters are drawn."""
        name: str | None = json.loads(self.point.system_options).get(PARAMS_FROM)
        return name

    @cached_property
    def T1s(self) -> tuple[int, ...]:
        """Steps of the free phases of its cells, ascending."""
        return _ascending(c.steps for c in self.cells)

    @cached_property
    def rows(self) -> dict[Cell, int]:
        """The row of every cell: the place of its T1 in `T1s`."""
        rows = {T1: i for i, T1 in enumerate(self.T1s)}
        return {cell: rows[cell.steps] for cell in self.cells}

    @cached_property
    def reverse(self) -> Pass:
        """The sweep that gives the reference at every T1, with the cells that read their estimate from it.

        It has no T1 where nothing leads back from the free state.
        """
        T1s = self.T1s if no_way_back(self.system, self.point.solver) is None else ()
        return Pass(REFERENCE.phase, tuple(c for c in self.cells if phase_of(c) == REFERENCE.phase), T1s)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """All second phases but the reverse sweep, each once."""
        grouped: dict[AbstractPhase, list[Cell]] = {}
        for cell in self.cells:
            if phase_of(cell) != REFERENCE.phase:
                grouped.setdefault(phase_of(cell), []).append(cell)
        return tuple(Pass(phase, tuple(cells), _ascending(c.steps for c in cells)) for phase, cells in grouped.items())

    @property
    def kind(self) -> object:
        """Equal for problems of equal shape and costs that differ in numbers of their dynamics, or in the seed."""
        return _OF_A_KIND(self.cells[0]), *map(_OF_A_PASS, self.cells)

    @property
    def shape(self) -> Shape:
        """Equal for problems that can run as one batch: same program, same shapes."""
        loops = tuple((p.phase, p.T1s, p.depths, len(p.betas)) for p in (self.reverse, *self.passes))
        point = self.point
        return (point.system, point.system_options, point.batch, point.dtype, point.solver, loops)

    @property
    def free_cost(self) -> Count:
        """Evaluations of the free phase on one batch of examples; a forward pass is one."""
        return _free_count(self.point.system, self.point.system_options, self.point.solver, max(self.T1s))

    @cached_property
    def cost(self) -> Count:
        """Evaluations on one batch of examples, with everything shared."""
        return sum((p.cost for p in (self.reverse, *self.passes)), self.free_cost)

    @property
    def cost_alone(self) -> Count:
        """Evaluations of the same cells one at a time, when no free phase and no reference is shared."""
        total = Count()
        for cell in self.cells:
            total += cell_count(cell)
            if phase_of(cell) != REFERENCE.phase and self.reverse.T1s:
                total += REFERENCE.phase.count(cell.steps, None)
        return total


def no_way_back(system: AbstractSystem | type[AbstractSystem], solver: str) -> str | None:
    """Why there are no steps of the relaxation that a gradient could go back through; None: there are."""
    if system.state_given:
        return f"the free state of {system.name} is given by state_at"
    return None if solver == Solver.EULER else f"solver = {solver!r} takes none"


@registry.remembered
def system_of(name: str, options: str) -> AbstractSystem:
    """The system of a cell, by its name and canonical options."""
    named = json.loads(options)
    named.pop(PARAMS_FROM, None)
    return registry.system(name, named)


@registry.remembered
def rule_of(name: str, options: str) -> AbstractEstimator:
    """The estimator of a cell, by its name and canonical options."""
    return registry.estimator(name, json.loads(options))


def phase_of(cell: Cell) -> AbstractPhase:
    """The second phase that a cell reads."""
    return _phase(cell.estimator, cell.estimator_options)


@registry.remembered
def _phase(name: str, options: str) -> AbstractPhase:
    return rule_of(name, options).phase


def cell_count(cell: Cell) -> Count:
    """Evaluations that one estimate needs alone: its free phase and its second phase, without the reference.

    A forward pass in place of a free phase counts as one force, since it evaluates every layer once.
    """
    rule = cell.estimator, cell.estimator_options
    return _count(cell.system, cell.system_options, cell.solver, *rule, cell.steps, cell.T2)


@registry.remembered
def _count(
    system: str, system_options: str, solver: str, rule: str, rule_options: str, T1: int, T2: int | None
) -> Count:
    """The count of one cell, which is that of many."""
    return _free_count(system, system_options, solver, T1) + _phase(rule, rule_options).count(T1, T2)


def _free_count(system: str, options: str, solver: str, T1: int) -> Count:
    products = Solver(solver).products(sum(map(math.prod, system_of(system, options).layout.values())))
    return Count(force=max(1, T1), jvp=products * T1)


def _ascending(values: Iterable[N | None]) -> tuple[N, ...]:
    """The different values, ascending, without None."""
    return tuple(sorted({v for v in values if v is not None}))
