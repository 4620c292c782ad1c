"""The free phase and what all estimators share at its end states."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gradbench.dynamics.solvers import stepper
from gradbench.systems.base import AbstractEnergySystem
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field
    from gradbench.systems.base import Advance, Params

# elements of the states whose norms and energies are taken at once: enough to fill the device, small beside its memory
SPAN = {"cpu": 2**21, "cuda": 2**26}
ENERGY = 9  # memory that the energy of a state takes, in states: measured 8.4 on cet_energy


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One free relaxation from s_0, read after T1 steps for every T1 asked for: iterations, where a solver does it.

    Row i of `ends`, `cost_slope` and `cost_grads` belongs to `T1s[i]`; T1s ascend. Where all states would not fit,
    every `every`-th state is stored, and the states between two of these are computed again when they are needed.
    """

    field: Field
    T1s: tuple[int, ...]
    ends: Float[Tensor, "i *c b n"]  # s* of every T1
    norms: Float[Tensor, "T+1 *c"]  # |s_t|, in float64
    energies: Float[Tensor, "T+1 *c"] | None  # E(s_t) summed over examples, in float64; None: no energy, or a solver
    states: Float[Tensor, "k *c b n"]  # s_0, s_every, s_2every ...
    every: int
    advance: Advance  # G from a state into another tensor
    _views: dict[tuple[int, ...], Trajectory] = dataclasses.field(default_factory=dict)

    def at(self, T1s: tuple[int, ...]) -> Trajectory:
        """This relaxation, read at some of its T1."""
        if T1s == self.T1s:
            return self
        if T1s not in self._views:
            ends = chosen(self.ends, self.rows(T1s))
            self._views[T1s] = dataclasses.replace(self, T1s=T1s, ends=ends, _views={})
        return self._views[T1s]

    def alone(self, row: int, c: int, *, states: bool) -> Trajectory:
        """One T1 of one cell. Without `states` it cannot be gone back through: it is s* and no more."""
        field, stacked = self.field.cell(c), self.ends.ndim == 4

        def of_cell(v: Tensor, cells: int) -> Tensor:
            return v.select(cells, c) if stacked else v

        s, T1 = of_cell(self.ends, 1)[row : row + 1], self.T1s[row]
        stored = T1 // self.every + 1
        return dataclasses.replace(
            self,
            field=field,
            T1s=(T1,),
            ends=s,
            norms=of_cell(self.norms, 1)[: T1 + 1],
            energies=None if self.energies is None else of_cell(self.energies, 1)[: T1 + 1],
            states=of_cell(self.states, 1)[:stored] if states else s,
            advance=_plainly(field),
            _views={},
        )

    @property
    def wide(self) -> Trajectory:
        """The same in float64, as it was rounded."""
        field = self.field.wide
        return dataclasses.replace(
            self,
            field=field,
            ends=self.ends.double(),
            states=self.states.double(),
            advance=_plainly(field),
            _views={},
        )

    def rows(self, T1s: Iterable[int]) -> list[int]:
        """Rows of some of the T1."""
        places = {T1: i for i, T1 in enumerate(self.T1s)}
        return [places[T1] for T1 in T1s]

    def backwards(self) -> Iterator[tuple[int, Float[Tensor, "t *c b n"]]]:
        """The states before the largest T1 in runs, the last run first: the step of the first state, and the states.

        A run begins at every stored state; where all states are stored, there is a single run. Raises ValueError for
        the iterates of a solver, which are no steps.
        """
        if self.field.solver is not Solver.EULER:
            raise ValueError(f"there are no steps to go back by: the iterates are those of {self.field.solver}")
        T = self.T1s[-1]
        run = self.every if self.every > 1 else max(1, T)
        for low in reversed(range(0, T, run)):
            yield low, self._between(low, min(low + run, T))

    def _between(self, low: int, high: int) -> Tensor:
        if self.every == 1:
            return self.states[low:high]
        states = self.states.new_empty((high - low, *self.states.shape[1:]))
        states[0] = self.states[low // self.every]
        with torch.no_grad():
            for t in range(1, high - low):
                self.advance(states[t - 1], states[t])
        return states

    @cached_property
    def cost_slope(self) -> Float[Tensor, "i *c b n"]:
        """g = dC/ds at s*."""
        return self.field.cost_slope(self.ends)

    @cached_property
    def cost_grads(self) -> Params:
        """dC/dtheta at s*, `(i, *c, ...)`: added once to every estimate."""
        return self.field.cost_grads(self.ends)


def chosen(v: Float[Tensor, "i ..."], rows: Sequence[int]) -> Float[Tensor, "k ..."]:
    """Some rows of v, stacked: an index made of numbers would be copied to the device, which would be waited for."""
    return v if list(rows) == list(range(len(v))) else torch.stack([v[i] for i in rows])


def _plainly(field: Field) -> Advance:
    """G by plain calls."""

    def advance(s: Tensor, out: Tensor) -> None:
        out.copy_(field.step(s))

    return advance


def relax(field: Field, T1s: tuple[int, ...], hold: int | None = None) -> Trajectory:
    """Free relaxation s <- Pi(s + eps F(s)), or by the solver of the field, to the largest T1.

    Every state is stored, or every sqrt(T1)-th where there are more than `hold` states. Energies are taken of so many
    states at once that this takes less memory than half of `hold` states.
    """
    T, s = max(T1s), field.init_state()
    every = 1 if hold is None or hold > T else math.isqrt(T - 1) + 1
    stored = s.new_empty((T // every + 1, *s.shape))
    ends = s.new_empty((len(T1s), *s.shape))
    conservative = isinstance(field.system, AbstractEnergySystem) and field.solver is Solver.EULER
    at_once = SPAN[s.device.type] // s.numel()
    at_once = at_once if hold is None else min(at_once, hold // (2 * ENERGY))
    run = max(1, min(T + 1, at_once)) if every == 1 else every
    norms, energies = [], []
    block = stored if every == 1 else s.new_empty((min(every, T + 1), *s.shape))
    with torch.no_grad():
        advance = field.prepared_step(s) if field.solver is Solver.EULER else _plainly(field)
        iterate = stepper(field, s, advance)
        for low in range(0, T + 1, run):
            high = min(low + run, T + 1)
            here = block[low:high] if every == 1 else block[: high - low]
            for t in range(low, high):
                if t:
                    iterate(s, here[t - low])
                else:
                    here[0] = s
                s = here[t - low]
            if every > 1:
                stored[low // every] = here[0]
                s = here[-1].clone()
            norms.append(here.flatten(-2).double().norm(dim=-1))
            if conservative:
                energies.append(field.energy(here).double().sum(-1))
            for i, T1 in enumerate(sorted(T1s)):
                if low <= T1 < high:
                    ends[i] = here[T1 - low]
    measured = torch.cat(norms), torch.cat(energies) if conservative else None
    return Trajectory(field, tuple(sorted(T1s)), ends, *measured, stored, every, advance)
