"""Titles of sweeps: at which values of a coordinate a rule follows BPTT, and where float32 rounds it off."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gradbench.plots import grounds, look
from gradbench.plots.grounds import LOST, THROUGHOUT, by_rule, clauses, evidence, small_whole
from gradbench.plots.look import FOLLOWS
from gradbench.plots.scale import FLOOR
from gradbench.plots.titles import of_main
from gradbench.plots.wording import (
    BLANK,
    FEW,
    MINUS,
    NAMED,
    Predicate,
    cosine,
    equal,
    number,
    parameters,
    part,
    plain,
    short,
    some,
    spoken_of,
    together,
)
from gradbench.tables.text import capital

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame, Series

    from gradbench.plots.grounds import Systems

ROUNDED = 10.0  # times the error in float64, and times the least one in float32: round-off


class Reach(NamedTuple):
    """Where a rule follows BPTT along a coordinate: at any value with evidence, at all of them, and in words."""

    some: bool
    every: bool
    words: str


def reach(rows: DataFrame, x: str, here: DataFrame) -> Reach:
    """Where the rule of some rows with evidence follows BPTT along x, of the values in all its rows of a system."""
    good = rows.groupby(x)["cosine_min"].apply(grounds.follows)
    values, at, name = list(good.index), list(good[good].index), plain(x)
    asked = _asked(rows, x, here)
    last, first = at == values[-len(at) :], at == values[: len(at)]
    if not at:
        words = f"at no tested {name}"
    elif good.all():
        words = _every(rows, x, here)
    elif len(at) == 1 and (last or first):
        words = f"only at {equal(x, at)} (the {'largest' if last else 'smallest'} {asked})"
    elif last:
        words = f"for {name}{BLANK}≥{BLANK}{number(at[0])} ({asked} up to {number(at[-1])})"
    elif first:
        words = f"for {name}{BLANK}≤{BLANK}{number(at[-1])} ({asked} from {number(at[0])})"
    else:
        words = f"at {part(len(at), len(values))} {asked} {name}"
    return Reach(bool(at), bool(good.all()), words)


def _asked(rows: DataFrame, x: str, here: DataFrame) -> str:
    """What the values of x are called at which a rule has evidence: all that were tested, or the settled ones."""
    tested = here[here["estimator_label"].isin(rows["estimator_label"])][x].nunique()
    return "settled" if rows[x].nunique() < tested else "tested"


def _every(rows: DataFrame, x: str, here: DataFrame) -> str:
    values = sorted(rows[x].unique())
    return f"at every {_asked(rows, x, here)} {plain(x)}" if len(values) > 1 else f"at {equal(x, values)}"


def along(here: DataFrame, x: str) -> dict[str, Predicate]:
    """What each rule does along a coordinate on one system. Of many rules it is not told which parameters they miss."""
    rules = dict(by_rule(evidence(here), spoken_of))
    said = {}
    for label, rows in rules.items():
        where = reach(rows, x, here)
        worst = rows.loc[rows.groupby(x)["cosine_min"].idxmin()]
        if where.some or len(rules) > FEW:
            said[label] = Predicate(THROUGHOUT, where.words + (_lost(rows, x) if len(rules) <= FEW else ""))
        else:
            said[label] = Predicate("misses " + _culprit(worst), f"{_every(rows, x, here)}{_unseen(worst)}")
    return said


def _culprit(rows: DataFrame) -> str:
    """How many parameters are missed, and which one is the worst in all rows. Rows have `missed` and `compared`."""
    names = set(rows["worst"].fillna(""))
    name = names.pop() if len(names) == 1 else ""
    low, high, total = int(rows["missed"].min()), int(rows["missed"].max()), int(rows["compared"].max())
    if high <= 1:
        return name or "a parameter"
    many = parameters(total) if low == total else f"{low if low == high else f'{low} to {high}'} of {total} parameters"
    return f"{many} ({name} worst)" if name else many


def _unseen(rows: DataFrame) -> str:
    """That the global cosine does not show what is missed, where it is large in all rows."""
    least = float(rows["cosine"].min())
    return f", though its global cosine is {cosine(least)} or more" if least >= FOLLOWS else ""


def _lost(rows: DataFrame, x: str) -> str:
    """That the global cosine is small somewhere where a rule follows BPTT in every parameter: their scales are off."""
    least = rows[(rows["cosine_min"] >= FOLLOWS) & (rows["cosine"] < LOST)].sort_values("cosine")
    if least.empty:
        return ""
    return f", though the global cosine is only {cosine(least['cosine'].iloc[0])} at {equal(x, [least[x].iloc[0]])}"


def rounded(here: DataFrame, x: str) -> dict[str, Series]:
    """Rules whose error grows by round-off towards small x: 1 - cos in float32 by x, from its least value down.

    It is round-off where it is `ROUNDED` times the least one in float32, and so many times that in float64.
    """
    grown = {}
    for label, rows in by_rule(evidence(here)):
        if rows["dtype"].nunique() < 2:
            continue
        off = (1 - rows.groupby(["dtype", x])["cosine_min"].min()).clip(lower=FLOOR)
        single, double = off["float32"], off["float64"]
        least, single = float(single.min()), single[: single.idxmin()]
        smallest = single.index[0]
        if smallest in double.index and single[smallest] >= ROUNDED * max(least, float(double[smallest])):
            grown[label] = single
    return grown


def _rounding(here: DataFrame, x: str) -> str:
    """A clause that says which rule loses how much to float32 at small x; empty where none does."""
    told = []
    for label, off in rounded(here, x).items():
        low, best = off.index[0], off.index[-1]
        missed = " and makes it miss BPTT" if off[low] > 1 - FOLLOWS else ""
        told.append(
            f"float32 rounding raises 1{BLANK}{MINUS}{BLANK}cos of {look.words(label)} from {number(off[best])} at "
            f"{equal(x, [best])} to {number(off[low])} at {equal(x, [low])}{missed}, float64 does not"
        )
    return clauses(*told)


def of_sweep(system: str, here: DataFrame, x: str) -> str:
    """The title of a row of a sweep: what every rule does along x on one system, and what float32 does to it."""
    return f"{system}: {clauses(together(along(here, x)) or grounds.nothing(here), _rounding(here, x))}"


def of_sweeps(systems: Systems, x: str) -> str:
    """The title of a sweep: at which values each rule follows BPTT, on which systems; of one system, its row."""
    if alone := grounds.only(systems):
        return of_sweep(*alone, x)
    held = grounds.holding(systems, lambda rows: bool(rows.groupby(x)["cosine_min"].apply(grounds.follows).any()))
    if len(held) > FEW:
        told = grounds.tallied(f"{THROUGHOUT} at some {plain(x)}", held, systems)
    else:
        told = clauses(capital(together(_reaches(systems, x))), grounds.silent(systems))
    names = short(systems)
    off = [names[system] for system, here in systems.items() if rounded(here, x)]
    whole = small_whole(systems, look.words)
    return clauses(
        told, whole, f"float32 rounding costs digits at small {plain(x)} on {some(off, len(off))}" if off else ""
    )


def of_crowded_sweeps(systems: Systems, x: str, kinds: Mapping[str, str]) -> str:
    """The title of a sweep of many rules: on how many systems of each kind the main rules follow BPTT somewhere."""
    held = grounds.holding(systems, lambda rows: bool(rows.groupby(x)["cosine_min"].apply(grounds.follows).any()))
    return capital(of_main(f"{THROUGHOUT} at some {plain(x)}", held, kinds)) or of_sweeps(systems, x)


def _reaches(systems: Systems, x: str) -> dict[str, Predicate]:
    """On which systems each rule follows BPTT at no value of x, at every one, and at some."""
    names = short(systems)
    told: dict[str, dict[str, Reach]] = {}
    for system, here in systems.items():
        for label, rows in by_rule(evidence(here)):
            told.setdefault(label, {})[names[system]] = reach(rows, x, here)
    total = len({system for of in told.values() for system in of})
    return {label: Predicate(THROUGHOUT, _grouped(of, x, total)) for label, of in told.items()}


def _grouped(of: dict[str, Reach], x: str, total: int) -> str:
    """The reaches of one rule by system: those that are alike together, and different ones of a kind in one word.

    Of a rule that follows BPTT somewhere on every one of many systems, the rows of the figure say where.
    """
    kinds: dict[tuple[bool, bool], dict[str, Reach]] = {}
    anywhere = len(of) > NAMED and all(at.some for at in of.values()) and not all(at.every for at in of.values())
    for system, where in of.items():
        kinds.setdefault((where.some, where.every and not anywhere), {})[system] = where
    told = []
    for (_, every), group in sorted(kinds.items()):
        words = list(dict.fromkeys(where.words for where in group.values()))
        word = words[0] if len(words) == 1 else f"at every settled {plain(x)}" if every else f"at some {plain(x)}"
        everywhere = len(group) == total > 1
        told.append(f"{word} on {f'{part(total, total)} systems' if everywhere else some(list(group), len(of))}")
    return ", ".join(told)
