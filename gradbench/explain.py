"""Why is a cosine what it is? One cell of a run, measured anew on the CPU with everything that an explanation needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench.cause import NEGLIGIBLE, Cause
from gradbench.diagnostics.arbiter import Slope, arbitrate
from gradbench.diagnostics.deep import DeepCertificate, certify_deep
from gradbench.diagnostics.ladder import Ladder, free_phase, ladder
from gradbench.diagnostics.remedy import Case, remedy
from gradbench.diagnostics.series import Updates, depths, eigenvalues, updates
from gradbench.engine.precision import ieee_float32
from gradbench.engine.problem import build
from gradbench.errors import UserError, near_miss
from gradbench.plan import Cell, Problem, estimator
from gradbench.selection import CONTROL, matches
from gradbench.selection import keys as known
from gradbench.status import Status, Thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradbench.tables.store import Run

SHOWN = ("system_label", "estimator_label", "s", "damp", "T1", "T2", "beta", "eps", "seed", "dtype", "batch")


@dataclass(frozen=True, eq=False)
class Explanation:
    """A cell as it was recorded, and what was found by taking it apart."""

    cell: Cell
    recorded: Mapping[str, Any]  # its row of the table `cells`
    status: Status  # of the free phase, by the deep certificate
    certificate: DeepCertificate
    ladder: Ladder | None  # None: the free phase diverged, and there is nothing to climb from
    arbiter: Slope | None  # of the reference, along one random direction
    remedy: str | None


def choose(run: Run, cell: str | None, where: Mapping[str, Any], worst: int | None) -> list[dict[str, Any]]:
    """Rows of the cells that are asked for: one by its key, or those of a selection, or the worst of them.

    The worst are the settled cells with the smallest cosine of a parameter, the worst first; a control is none, since
    its cosine is known. Raises UserError where nothing or too much is meant.
    """
    rows = [row for row in run.cells.to_dict("records") if row["status"] not in ("skipped", "error", "oom")]
    if cell is not None:
        rows = [row for row in rows if row["cell"].startswith(cell)]
        if not rows:
            raise UserError(f"cell {cell!r} is not among the measured cells of {run.id}")
    for key in where:
        if rows and key not in (names := set().union(*(known(row) for row in rows))):
            raise UserError(f"--where {key}: is neither a column nor an option{near_miss(key, names)}")
    rows = [row for row in rows if matches(row, where)]
    if worst is not None:
        rows = [row for row in rows if row["status"] == Status.SETTLED and row["estimator"] != CONTROL]
        rows = [row for row in rows if math.isfinite(row["cosine_min"])]
        rows = sorted(rows, key=lambda row: row["cosine_min"])[:worst]
    if not rows:
        raise UserError(f"no measured cell of {run.id} is asked for")
    if worst is None and len(rows) > 1:
        named = ", ".join(row["cell"] for row in rows[:3])
        raise UserError(f"{len(rows)} cells of {run.id} are meant ({named} ...): name one, or ask for --worst N")
    return rows


def explain(run: Run, row: Mapping[str, Any]) -> Explanation:
    """Rebuild the problem of a cell from its coordinates and take its error apart, in float64 up to the last step.

    `row` is that of the table `cells`.
    """
    plan = run.plan
    (planned,) = (c for c in plan["cells"] if c["cell"] == row["cell"])
    cell = Cell(**{name: value for name, value in planned.items() if name != "cell"})
    thresholds = Thresholds(**plan["thresholds"])
    rule = estimator(cell.estimator, cell.estimator_options)
    with ieee_float32():
        field = build(Problem((cell,)), "cpu")
        certificate = certify_deep(free_phase(field.wide, cell.steps), thresholds, cell.seed)
        status = certificate.free.status(thresholds)
        if status is Status.DIVERGED:
            return Explanation(cell, row, status, certificate, None, None, None)
        at = (cell.steps, cell.T2, cell.beta)
        settled = certificate.free.settled_share >= thresholds.settled_share
        found = ladder(field, rule, *at, stable=certificate.stable, settled=settled)
        case = Case(field, rule, *at, cell.seed, thresholds, found)
        (slope,) = arbitrate(field, cell.steps, found.reference, (cell.seed,))
        return Explanation(cell, row, status, certificate, found, slope, remedy(case))


def picture(e: Explanation) -> Figure | None:
    """The explanation as a figure; None where the free phase diverged, and there is nothing to draw."""
    from pandas import DataFrame

    from gradbench.plots.explained import explained

    if e.ladder is None:
        return None
    cell, rule = e.cell, estimator(e.cell.estimator, e.cell.estimator_options)
    T2 = cell.T2 if cell.T2 is not None else Problem((cell,)).system.defaults["T2"]
    with ieee_float32():
        free = free_phase(build(Problem((cell,)), "cpu").wide, cell.steps)
        spectrum = eigenvalues(free, cell.seed)
        curves, moves = depths(free, T2), updates(free, rule, T2, cell.beta)
    causes = [{"cause": str(c), "size": v, "culprit": c is e.ladder.culprit[0]} for c, v in e.ladder.sizes.items()]
    values = {"real": spectrum.values.real.tolist(), "imaginary": spectrum.values.imag.tolist()}
    drawn = [{"estimator": n, "T2": d, "cosine": v} for n, by_depth in curves.items() for d, v in by_depth.items()]
    told = e.recorded["estimator_label"]
    return explained(
        DataFrame(causes, columns=["cause", "size", "culprit"]),
        DataFrame(values | {"whole": spectrum.whole}),
        DataFrame(drawn),
        DataFrame(list(_moves(moves)), columns=["param", "step", "estimate", "reference"]),
        negligible=NEGLIGIBLE,
        T2=cell.T2,
        rule=str(told),
        sentences=[
            f"{_named(e.recorded)}: {e.status}, cause {e.ladder.culprit[0]}.",
            f"Eigenvalues of sample {spectrum.sample}"
            + ("." if spectrum.whole else ", as a Krylov space sees them: the outermost are found first."),
            *(["Updates: of the worst parameter and the two largest, the entry farthest off."] if moves else []),
            "Curves in float64.",
        ],
    )


def _moves(found: Mapping[str, Updates]) -> Iterator[dict[str, Any]]:
    for name, update in found.items():
        for t, (estimate, reference) in enumerate(zip(update.estimate, update.reference, strict=True)):
            moved = {"estimate": float(estimate), "reference": float(reference)}
            yield {"param": f"{name}[{', '.join(map(str, update.entry))}]", "step": t + 1} | moved


def tell(e: Explanation) -> str:
    """The explanation as text: the cell, its certificate, the ladder, parameters, culprit and remedy."""
    return "\n".join(_lines(e))


def _lines(e: Explanation) -> Iterator[str]:
    yield f"{e.cell.key}  {_named(e.recorded)}"
    yield f"  recorded: {e.recorded['status']}, {_reading(e.recorded)}"
    if e.ladder is not None:
        whole = e.ladder.whole
        here = {"cosine": whole.whole.cosine, "cosine_min": whole.cosine_min, "rel_error": whole.whole.rel_error}
        yield f"  here:     {e.status}, {_reading(here | {'worst': whole.worst})}"
    yield f"\ncertificate: {e.status.prose}"
    yield from _table([{"": n, "value": v, "meaning": m} for n, v, m in _evidence(e.certificate)])
    if e.ladder is None:
        return
    yield "\nladder, each rung against the one before it"
    yield from _table(list(_rungs(e.ladder)))
    yield "\nparameters"
    yield from _table(list(_params(e.ladder)))
    if e.arbiter is not None:
        yield f"\nreference: {_judgement(e.arbiter)}"
    for flag in e.ladder.flags:
        yield f"note: {flag}"
    yield from _verdict(e)


def _named(row: Mapping[str, Any]) -> str:
    named = {name: row[name] for name in SHOWN}
    return " ".join(
        str(v) if n.endswith("label") else f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}"
        for n, v in named.items()
        if v is not None and v == v
    )


def _reading(row: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{n} {row[n]:.6g}" for n in ("cosine", "cosine_min", "rel_error"))
    return f"{numbers}, worst {row['worst'] or '-'}"


def _evidence(c: DeepCertificate) -> Iterator[tuple[str, str, str]]:
    yield "residual", f"{c.free.residual:.1e}", "|G(s*) - s*| / |s*|"
    yield "its rate", f"{c.residual_rate:.4f}", "factor a step; 1 is a plateau"
    yield "settled", f"{c.free.settled_share:.0%}", "of the samples"
    yield "distance", f"{c.distance:.1e}", "to the fixed point, residual / (1 - rho)"
    yield "rho", f"{c.rho:.4f}", f"spectral radius of J_G; the Krylov space leaves {c.open:.0e} open"
    yield "rightmost", f"{c.rightmost:+.4f}", "largest Re lambda(J)"
    yield "sigma_max", f"{c.sigma_max:.4f}", "of J_G: above 1, perturbations may grow at first"
    kind = "dense" if c.condition_exact else "at least, from a Krylov space"
    yield "condition", f"{c.condition:.1e}", f"of I - J_G, {kind}"
    yield "antisymmetry", f"{c.free.antisymmetry:.3f}", "|A|_F / |J|_F"
    yield "its angle", f"{c.angle:.2f}", "degrees between J^-1 g and J^-T g, g = dC/ds: what credit feels of it"
    yield "end states", str(c.end_states), "that differ, over the samples"


def _rungs(found: Ladder) -> Iterator[dict[str, str]]:
    yield {"rung": found.rungs[0].name, "step": "", "cosine": "", "rel_error": "", "worst parameter": "", "cause": ""}
    for step in found.steps:
        beside = step.beside
        worst = beside.worst
        yield {
            "rung": step.name,
            "step": f"{step.size:.2e}",
            "cosine": f"{beside.whole.cosine:.6f}",
            "rel_error": f"{beside.whole.rel_error:.2e}",
            "worst parameter": f"{worst} {beside.params[worst].cosine:.4f}" if worst else "",
            "cause": str(step.cause),
        }


def _params(found: Ladder) -> Iterator[dict[str, str]]:
    causes = found.causes
    for name, p in found.whole.params.items():
        yield {
            "parameter": name,
            "cosine": f"{p.cosine:.6f}",
            "rel_error": f"{p.rel_error:.2e}",
            "cause": str(causes[name]) if name in causes else p.reason,
        }


def _judgement(slope: Slope) -> str:
    if not slope.plateau:
        return f"differences of the cost have no plateau (best {slope.spread:.1e}), and cannot judge it"
    return (
        f"central differences of the cost along a random direction give {slope.measured:.8g}, it gives "
        f"{slope.claimed:.8g}; error {slope.error:.1e}, plateau {slope.spread:.1e}"
    )


def _verdict(e: Explanation) -> Iterator[str]:
    found = e.ladder
    assert found is not None
    cause, param = found.culprit
    sizes = sorted(((size, str(c)) for c, size in found.sizes.items()), reverse=True)
    yield "\nerror by cause, of the reference: " + ", ".join(f"{c} {size:.2e}" for size, c in sizes)
    if e.status is not Status.SETTLED:
        yield f"first of all: {e.status.prose}"
    whose = "" if param is None else f" of {param}, while the whole has no error to explain"
    yield f"cause: {cause}{whose}. {cause.prose[0].upper()}{cause.prose[1:]}"
    differing = {n: c for n, c in found.causes.items() if c not in (cause, Cause.NONE)}
    if differing:
        yield "  but " + ", ".join(f"{n}: {c}" for n, c in differing.items())
    if e.remedy is not None:
        yield f"remedy: {e.remedy}"
    elif cause is not Cause.NONE:
        yield "remedy: no change of one knob that was tried helps"


def _table(rows: list[dict[str, str]]) -> list[str]:
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return ["  " + "  ".join(map(str.ljust, line, widths.values())).rstrip() for line in lines]
