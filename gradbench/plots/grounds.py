"""What titles may speak of: cells that are evidence, rules and systems that have some, and what is said of the others.

A rule *follows* BPTT in cells that are settled and whose smallest cosine over parameters is `FOLLOWS` or more; where it
is less, the rule *misses* BPTT. Of several seeds the worst one counts, here and in what is drawn. Cells that are not
settled are no evidence, and nothing is said of them but that there are such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from gradbench.plots.look import FOLLOWS
from gradbench.plots.wording import cosine, default_forms, part, short, some, tally
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    Systems = Mapping[str, DataFrame]  # the cells of every system that a figure shows

NOTHING = "nothing is settled here, so that no cosine is evidence"
COLLAPSED = "the state shrinks to 0 in {} cells drawn here (collapsed), so that no cosine is evidence"
FOLLOW = "follows BPTT"
THROUGHOUT = f"{FOLLOW} in every parameter"  # what a smallest cosine over parameters says
LOST = 0.9  # a smaller global cosine is told of a rule that follows BPTT in every parameter


def evidence(cells: DataFrame) -> DataFrame:
    """The cells that say something about a rule: settled ones that have a smallest cosine."""
    return cells[(cells["status"] == Status.SETTLED) & cells["cosine_min"].notna()]


def nothing(cells: DataFrame) -> str:
    """What is said of cells without evidence: that they collapsed, where most did, or that nothing is settled."""
    gone = int((cells["status"] == Status.COLLAPSED).sum())
    return COLLAPSED.format(part(gone, len(cells))) if 2 * gone > len(cells) else NOTHING


def by_rule(
    rows: DataFrame, spoken: Callable[[Iterable[str]], list[str]] = default_forms
) -> Iterator[tuple[str, DataFrame]]:
    """The labels that a title speaks of, each with its rows."""
    for label in spoken(rows["estimator_label"]):
        yield label, rows[rows["estimator_label"] == label]


def follows(cosines: Series) -> bool:
    """Whether all cosines, the smallest ones over parameters, are those of a rule that follows BPTT."""
    return bool((cosines >= FOLLOWS).all())


def holding(systems: Systems, holds: Callable[[DataFrame], bool]) -> dict[str, dict[str, bool]]:
    """Rule to system to whether something holds of its evidence there."""
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in by_rule(evidence(here)):
            held.setdefault(label, {})[system] = holds(rows)
    return held


def silent(systems: Systems) -> str:
    """A clause that names the systems without evidence; empty where all have some."""
    names, told = [name for name, here in systems.items() if evidence(here).empty], short(systems)
    gone = names and all(nothing(systems[name]) != NOTHING for name in names)
    where = some([told[name] for name in names], len(systems)) if names else ""
    return "" if not names else f"{where} collapsed" if gone else f"nothing is settled on {where}"


def tallied(claim: str, held: Mapping[str, Mapping[str, bool]], systems: Systems) -> str:
    """On which systems a claim holds, of those with evidence, and which have none."""
    without = silent(systems)
    return clauses(tally(claim, held, "settled systems" if without else "systems", systems), without)


def only(systems: Systems) -> tuple[str, DataFrame] | None:
    """The system of a figure that has one; what is to be seen there is all that there is to be seen."""
    return next(iter(systems.items())) if len(systems) == 1 else None


def small_whole(systems: Systems, called: Callable[[str], str]) -> str:
    """A clause on the smallest global cosine of cells in which a rule follows BPTT in every parameter.

    The scales of parameters are off then. Empty where no global cosine is below `LOST`.
    """
    least, words = LOST, ""
    for system, here in systems.items():
        for label, rows in by_rule(evidence(here)):
            whole = float(rows["cosine"].where(rows["cosine_min"] >= FOLLOWS).min())
            if whole < least:
                least, words = whole, f"yet the global cosine of {called(label)} on {short(systems)[system]} falls to "
    return f"{words}{cosine(least)} there" if words else ""


def clauses(*said: str) -> str:
    """Clauses in one sentence, without the empty ones."""
    return "; ".join(filter(None, said))
