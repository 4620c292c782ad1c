"""`gradbench explain`: one cell of a run, measured anew on the CPU to say where its error comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from string import hexdigits
from typing import TYPE_CHECKING, Any, get_args

from gradbench.diagnostics.arbiter import Slope, arbitrate
from gradbench.diagnostics.deep import DeepCertificate, certify_deep
from gradbench.diagnostics.judgement import enough_settled
from gradbench.diagnostics.ladder import Ladder, Relaxed, climb
from gradbench.diagnostics.remedy import Case, remedy_for
from gradbench.diagnostics.series import Updates, depths, eigenvalues, updates
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.errors import UserError, near_miss, spoken
from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.planning.cells import Cell
from gradbench.planning.plugins import Kind, recall
from gradbench.planning.problems import Problem, rule_of
from gradbench.planning.registry import DIGEST
from gradbench.planning.selection import IDENTITY, keys, matches, why_none
from gradbench.vocabulary.cause import NEGLIGIBLE
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.dynamics.field import Field
    from gradbench.tables.store import Run


@dataclass(frozen=True, eq=False)
class Explanation:
    """A cell as a run recorded it, and its error taken apart."""

    cell: Cell
    recorded: Mapping[str, Any]  # the row of the cell in the table `cells`
    status: Status  # of the free phase, by the deep certificate
    certificate: DeepCertificate
    relaxed: Relaxed  # the free phase
    ladder: Ladder | None = None  # None: the free phase diverged, so that there is no state to measure at
    arbiter: Slope | None = None  # of the cost along one random direction, to judge the reference by
    remedy: str | None = None
    complete: bool = False  # else there is more to come, and what is None may not be known yet

    @property
    def title(self) -> str:
        """System, estimator and coordinates of the cell as people read them."""
        named = {name: self.recorded[name] for name in IDENTITY}
        return " ".join(
            str(v) if n.endswith("label") else f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}"
            for n, v in named.items()
            if v is not None and v == v
        )


def choose(run: Run, cell: str | None, where: Mapping[str, Any], worst: int | None) -> list[dict[str, Any]]:
    """Rows of the table `cells` to explain: the one whose key starts with `cell`, or those that match `where`.

    `worst` takes so many of the settled rows, those with the smallest cosine of a parameter, the smallest first. It
    takes no control, whose cosine is known. Raises UserError where no row is left, or several without `worst`.
    """
    rows = [row for row in run.cells.to_dict("records") if Status(row["status"]).measured]
    if cell is not None:
        rows = [row for row in rows if row["cell"].startswith(cell)]
        if not rows:
            told = f"cell {cell!r} is not among the measured cells of {run.id}"
            way = (
                ""
                if set(cell) <= set(hexdigits)
                else "; a cell is named by the first digits of its key, or by "
                + spoken(python="a coordinate or worst=", shell="--where or --worst")
            )
            raise UserError(told + way)
    place = spoken(python="explain:", shell="--where")
    for key in where:
        if rows and key not in (names := set().union(*map(keys, rows))):
            raise UserError(f"{place} {key}: is neither a column nor an option{near_miss(key, names)}")
    if not rows:
        raise UserError(f"{run.id} has no measured cell")
    every, rows = rows, [row for row in rows if matches(row, where)]
    if not rows:
        raise UserError(f"{place.removesuffix(':')}: {why_none(every, where, 'measured')}")
    if worst is not None:
        rows = [row for row in rows if row["status"] == Status.SETTLED and math.isfinite(row["cosine_min"])]
        rows = [row for row in rows if registry.role(row["estimator"]) is not Role.CONTROL]
        rows = sorted(rows, key=lambda row: row["cosine_min"])[:worst]
    if not rows:
        option = spoken(python="worst", shell="--worst")
        raise UserError(f"{option}: none of the cells that are asked for is settled and has a cosine to go by")
    if worst is None and len(rows) > 1:
        named = ", ".join(row["cell"] for row in rows[:3])
        way = spoken(python="worst=N", shell="--worst N")
        raise UserError(f"{len(rows)} cells of {run.id} are meant ({named} ...): name one, or ask for {way}")
    return rows


def explain(run: Run, row: Mapping[str, Any], watch: Callable[[Explanation], None] | None = None) -> Explanation:
    """Rebuild the problem of a cell of a run from its coordinates, and take its error apart as `explain_cell` does.

    `row` is the row of the cell in the table `cells`. Plugins that the run names are loaded where its cell needs them.
    Raises UserError where its code cannot be had.
    """
    bring_back(run, row)
    plan = run.plan
    (planned,) = (c for c in plan["cells"] if c["cell"] == row["cell"])
    cell = Cell.of(planned)
    with isolated():
        field = build(Problem((cell,)), "cpu")
    return explain_cell(cell, row, Thresholds(**plan["thresholds"]), field, watch)


def explain_cell(
    cell: Cell,
    row: Mapping[str, Any],
    thresholds: Thresholds,
    field: Field,
    watch: Callable[[Explanation], None] | None = None,
) -> Explanation:
    """The error of a cell taken apart; `row` is what was measured of it.

    All is in float64 but the last rung of a float32 cell. `watch` is called with what is known so far as soon as there
    is more: the certificate, a rung of the ladder, the whole ladder, the judgement of the reference, and the
    explanation that is returned.
    """
    watch = watch or (lambda known: None)
    rule = rule_of(cell.estimator, cell.estimator_options)
    with isolated():
        relaxed = Relaxed(field, cell.steps, cell.reference)
        certificate = certify_deep(relaxed.wide, thresholds, cell.seed)
        judged = certificate.free.judgement
        known = Explanation(cell, row, judged.status, certificate, relaxed)
        watch(known)
        if not judged.diverged:
            settled = enough_settled(certificate.free.settled_share, thresholds)
            stable, certified = certificate.stable, known
            ladder = climb(
                relaxed,
                rule,
                cell.T2,
                cell.beta,
                stable=stable,
                settled=settled,
                watch=lambda climbed: watch(replace(certified, ladder=climbed)),
            )
            watch(known := replace(known, ladder=ladder))
            (slope,) = arbitrate(
                relaxed.field, cell.steps, ladder.reference, (cell.seed,), compared_with=relaxed.compared_with
            )
            watch(known := replace(known, arbiter=slope))
            case = Case(relaxed, rule, cell.T2, cell.beta, cell.seed, thresholds, ladder)
            known = replace(known, remedy=remedy_for(case))
        watch(known := replace(known, complete=True))
        return known


def bring_back(run: Run, row: Mapping[str, Any]) -> None:
    """Load the plugins of a run that the cell of a row needs. Raises UserError where their code is another one now."""
    for kind in get_args(Kind):
        digest = json.loads(row[f"{kind}_options"]).get(DIGEST)
        recall(kind, row[kind], digest, run.env.get("plugins", ()), f"run {run.id}")


def picture(e: Explanation) -> Figure | None:
    """The explanation as a figure; None where the free phase diverged, so that there is no ladder to draw."""
    from pandas import DataFrame

    from gradbench.plots.explained import draw_explanation

    if e.ladder is None:
        return None
    cell, rule = e.cell, rule_of(e.cell.estimator, e.cell.estimator_options)
    T2 = cell.T2 if cell.T2 is not None else Problem((cell,)).system.defaults["T2"]
    with isolated():
        free = e.relaxed.wide
        spectrum = eigenvalues(free, cell.seed)
        curves, moves = depths(free, T2, e.relaxed.reference), updates(free, rule, T2, cell.beta)
    causes = [{"cause": str(c), "size": v, "culprit": c is e.ladder.culprit[0]} for c, v in e.ladder.sizes.items()]
    values = {"real": spectrum.values.real.tolist(), "imaginary": spectrum.values.imag.tolist()}
    drawn = [{"estimator": n, "T2": d, "cosine": v} for n, by_depth in curves.items() for d, v in by_depth.items()]
    return draw_explanation(
        DataFrame(causes, columns=["cause", "size", "culprit"]),
        DataFrame(values | {"whole": spectrum.whole}),
        DataFrame(drawn),
        DataFrame(list(_moves(moves)), columns=["param", "step", "estimate", "reference"]),
        negligible=NEGLIGIBLE,
        T2=cell.T2,
        system=str(e.recorded["system_label"]),
        rule=str(e.recorded["estimator_label"]),
        status=str(e.status),
        sentences=[
            f"{e.title}: {e.status}, cause {e.ladder.culprit[0]}.",
            f"Eigenvalues of sample {spectrum.sample}"
            + ("." if spectrum.whole else ", as a Krylov space sees them: the outermost are found first."),
            *(["Updates: of the worst parameter and the two largest, the entry farthest off."] if moves else []),
            "Curves in float64.",
        ],
    )


def _moves(by_param: Mapping[str, Updates]) -> Iterator[dict[str, Any]]:
    for name, update in by_param.items():
        for t, (estimate, reference) in enumerate(zip(update.estimate, update.reference, strict=True)):
            moved = {"estimate": float(estimate), "reference": float(reference)}
            yield {"param": f"{name}[{', '.join(map(str, update.entry))}]", "step": t + 1} | moved
