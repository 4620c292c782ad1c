"""The readings of the cells of a pack from its second phases: they stay on the device until the last phase is over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.profiler import record_function

from gradbench.diagnostics.metrics import Comparison, Reference, comparisons
from gradbench.engine.outcome import EVIDENCE
from gradbench.errors import RuleFaultError
from gradbench.planning.problems import rule_of
from gradbench.tables.schema import CELLS

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.engine.references import OneReference
    from gradbench.estimators.base import AbstractEstimator, Reading, Snapshot
    from gradbench.planning.cells import Cell
    from gradbench.planning.problems import Pass
    from gradbench.systems.base import Params

Place = tuple[int, int, int]  # of a cell in a reading: T1, beta, stacked problem


@dataclass(frozen=True, eq=False)
class Taken:
    """One reading of a rule at one depth, by T1, beta and stacked problem, and the cells that it serves."""

    cells: list[tuple[Cell, Place]]
    rule: AbstractEstimator
    free: Trajectory
    betas: Tensor
    reading: Reading
    reference: str  # the name of what the cells are compared with
    tally: Tensor  # of the gradient against the reference, (i, j, c, P, 6)


@dataclass
class Readings:
    """All readings of a pack."""

    stacked: bool
    taken: list[Taken] = field(default_factory=list)

    def read(
        self,
        passes: Sequence[Pass],
        free: Trajectory,
        snapshots: Iterable[Snapshot],
        betas: Tensor,
        references: Mapping[str, OneReference],
    ) -> None:
        """Read every cell of a pass from the snapshots as these come, at the T1 of `free`, and compare it.

        The passes of stacked problems have the same T1, depths and number of betas, but each problem may want other
        cells of this grid. `references` are those at these T1.
        """
        lead = 3 if self.stacked else 2
        compared = {
            name: Reference({n: g[:, None] for n, g in reference.gradient.items()}, lead)
            for name, reference in references.items()
        }
        wanted = _by_rule(passes, free)
        for snapshot in snapshots:
            for (name, options, depth), by_reference in wanted.items():
                if depth == snapshot.depth:
                    with record_function("gradbench: readouts"):
                        rule = rule_of(name, options)
                        plain = rule.read(free, snapshot, betas)
                        _try_evidence(rule, plain)
                        for reference, cells in by_reference.items():
                            more = references[reference].credits.read(free.T1s, plain)
                            reading = replace(plain, evidence=plain.evidence | more)
                            tally = compared[reference].tally(reading.gradient)
                            self.taken.append(Taken(cells, rule, free, betas, reading, reference, tally))

    def estimates(self) -> dict[Cell, Params]:
        """Gradients of the cells of a single problem."""
        return {
            cell: {name: g[i, j] for name, g in taken.reading.gradient.items()}
            for taken in self.taken
            for cell, (i, j, _) in taken.cells
        }

    def resolved(self, names: Sequence[str], floor: float) -> dict[Cell, tuple[Comparison, dict[str, float]]]:
        """The comparison and the evidence of every cell: the one moment at which the device is waited for.

        `names` are the parameters; a cosine needs a reference norm above `floor` of the whole.
        """
        if not self.taken:
            return {}
        fetched = iter(_fetched([v for t in self.taken for v in (t.tally, *t.reading.evidence.values())]))
        tallies, evidence = [], []
        for taken in self.taken:
            places = tuple(zip(*(place if self.stacked else place[:2] for _, place in taken.cells), strict=True))
            tallies.append(next(fetched)[places])
            columns = [next(fetched)[places].tolist() for _ in taken.reading.evidence]
            rows = zip(*columns, strict=True) if columns else itertools.repeat((), len(taken.cells))
            evidence += [dict(zip(taken.reading.evidence, row, strict=True)) for row in rows]
        compared = comparisons(np.concatenate(tallies), names, floor)
        cells = (cell for taken in self.taken for cell, _ in taken.cells)
        return dict(zip(cells, zip(compared, evidence, strict=True), strict=True))


def _fetched(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as arrays: one copy for every dtype and device, since a copy waits for its device, however small."""
    alike: dict[object, list[int]] = {}  # places by dtype, and by device: a rule may return evidence on a CPU
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.device), []).append(i)
    arrays: dict[int, np.ndarray] = {}
    for places in alike.values():
        whole = torch.cat([tensors[i].reshape(-1) for i in places]).cpu().numpy()
        ends = itertools.accumulate(tensors[i].numel() for i in places)
        parts = np.split(whole, list(ends)[:-1])
        arrays |= {i: part.reshape(tensors[i].shape) for i, part in zip(places, parts, strict=True)}
    return [arrays[i] for i in range(len(tensors))]


def _try_evidence(rule: AbstractEstimator, reading: Reading) -> None:
    """Raise RuleFaultError for evidence that would hide a column of the table `cells`."""
    for name in reading.evidence:
        if name not in EVIDENCE and (name in CELLS.names or "/" in name):
            raise RuleFaultError(f"{rule.name}: evidence {name!r} has the name of a column; choose another one")


def _by_rule(
    passes: Sequence[Pass], free: Trajectory
) -> dict[tuple[str, str, int | None], dict[str, list[tuple[Cell, Place]]]]:
    """The cells of stacked passes with their places, by estimator, options and depth, and then by their reference.

    Only those at a T1 of `free`.
    """
    rows = {T1: i for i, T1 in enumerate(free.T1s)}
    wanted: dict[tuple[str, str, int | None], dict[str, list[tuple[Cell, Place]]]] = {}
    for c, pass_ in enumerate(passes):
        for cell, place in pass_.places.items():
            row = rows.get(pass_.T1s[place.row])
            if row is not None:
                key = cell.estimator, cell.estimator_options, cell.T2
                wanted.setdefault(key, {}).setdefault(cell.reference, []).append((cell, (row, place.column, c)))
    return wanted
