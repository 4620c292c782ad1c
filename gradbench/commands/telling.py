"""An explanation as text, for people to read, in the order in which it becomes known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gradbench.tables.text import columns, wrapped
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.commands.explaining import Explanation
    from gradbench.diagnostics.arbiter import Slope
    from gradbench.diagnostics.deep import DeepCertificate
    from gradbench.diagnostics.ladder import Ladder

# widths of the columns of a ladder, the same whatever rungs are to come
RUNGS = {"rung": 19, "step": 8, "cosine": 9, "rel_error": 9, "worst parameter": 15, "cause": max(map(len, Cause))}


def tell(e: Explanation, width: int | None = None) -> str:
    """The explanation as text, folded at `width` characters.

    What is told of an explanation that is not complete is the beginning of what is told of the complete one, in whole
    lines, so that text can be printed as it comes.
    """
    lines = itertools.chain(_of_certificate(e, width), () if e.ladder is None else _of_ladder(e, e.ladder, width))
    return "\n".join(_folded(lines, width))


def _folded(lines: Iterable[str], width: int | None) -> Iterator[str]:
    for line in lines:
        empty, text = line[: len(line) - len(line.lstrip("\n"))], line.lstrip("\n")
        yield empty + "\n".join(wrapped(text, width, 2))


def _of_certificate(e: Explanation, width: int | None) -> Iterator[str]:
    yield f"{e.cell.key}  {e.title}"
    yield f"  recorded: {e.recorded['status']}, {_reading(e.recorded)}"
    yield f"\ncertificate: {e.status.prose}"
    yield from columns([{"": n, "value": v, "meaning": m} for n, v, m in _evidence(e.certificate)], width)


def _of_ladder(e: Explanation, ladder: Ladder, width: int | None) -> Iterator[str]:
    yield "\nladder, each rung against the one before it"
    widest = max(len(name) for name in ladder.reference) + len(" -0.0000")
    yield from columns(
        list(_rungs(ladder)), width, widths=RUNGS | {"worst parameter": max(widest, RUNGS["worst parameter"])}
    )
    if not ladder.complete:
        return
    whole = ladder.whole
    here = {"cosine": whole.whole.cosine, "cosine_min": whole.cosine_min, "rel_error": whole.whole.rel_error}
    yield "\nthe estimate, measured anew"
    yield f"  here:     {e.status}, {_reading(here | {'worst': whole.worst})}"
    yield "\nparameters"
    yield from columns(list(_params(ladder)), width)
    if e.arbiter is None:
        return
    yield f"\nreference: {_judgement(e.arbiter)}"
    for flag in ladder.flags:
        yield f"note: {flag}"
    yield from _cause(e, ladder)
    if e.complete:
        yield from _remedy(e, ladder)


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


def _rungs(ladder: Ladder) -> Iterator[dict[str, str]]:
    yield {"rung": ladder.rungs[0].name, "step": "", "cosine": "", "rel_error": "", "worst parameter": "", "cause": ""}
    for step in ladder.steps:
        compared = step.compared
        worst = compared.worst
        yield {
            "rung": step.name,
            "step": f"{step.size:.2e}",
            "cosine": f"{compared.whole.cosine:.6f}",
            "rel_error": f"{compared.whole.rel_error:.2e}",
            "worst parameter": f"{worst} {compared.params[worst].cosine:.4f}" if worst else "",
            "cause": str(step.cause),
        }


def _params(ladder: Ladder) -> Iterator[dict[str, str]]:
    causes = ladder.causes
    for name, p in ladder.whole.params.items():
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


def _cause(e: Explanation, ladder: Ladder) -> Iterator[str]:
    cause, param = ladder.culprit
    sizes = sorted(((size, str(c)) for c, size in ladder.sizes.items()), reverse=True)
    yield "\nerror by cause, of the reference: " + ", ".join(f"{c} {size:.2e}" for size, c in sizes)
    if e.status is not Status.SETTLED:
        yield f"first of all: {e.status.prose}"
    whose = "" if param is None else f" of {param}, while the whole has no error to explain"
    yield f"cause: {cause}{whose}. {cause.prose[0].upper()}{cause.prose[1:]}"
    differing = {n: c for n, c in ladder.causes.items() if c not in (cause, Cause.NONE)}
    if differing:
        yield "  but " + ", ".join(f"{n}: {c}" for n, c in differing.items())


def _remedy(e: Explanation, ladder: Ladder) -> Iterator[str]:
    if e.remedy is not None:
        yield f"remedy: {e.remedy}"
    elif ladder.culprit[0] is not Cause.NONE:
        yield "remedy: no change of one knob that was tried helps"
