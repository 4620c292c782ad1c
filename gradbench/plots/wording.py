"""How titles put things: numbers, lists, clauses about rules."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gradbench.plots import look
from gradbench.plots.look import FOLLOWS
from gradbench.tables.text import capital, listed
from gradbench.vocabulary.coordinates import COORDINATES

NAMED = 3  # so many things are named, more are counted
FEW = 4  # rules of which the title of one system speaks in all their forms
GREEK = re.compile(r"\\(?:var)?([a-z]+)")
SLACK = 1e-6  # of a digit: 0.99 is written so, although its binary form lies a little below
BLANK = "\u00a0"  # a space at which no line is broken
MINUS = "\u2212"  # as formulas have it


class Predicate(NamedTuple):
    """What a clause says of a rule: a verb with its object, in the singular, what follows, and what that counts."""

    verb: str
    more: str
    unit: str = ""  # said by the first clause only

    @property
    def plural(self) -> str:
        """The verb of several rules."""
        verb, _, target = self.verb.partition(" ")
        return f"{PLURALS.get(verb, verb.removesuffix('s'))} {target}".strip()


PLURALS = {"misses": "miss", "reaches": "reach", "is": "are", "has": "have"}


def plain(name: str) -> str:
    """The symbol of a coordinate in letters, without TeX; its name where it has none."""
    symbol = COORDINATES[name].symbol or name
    letters = GREEK.sub(lambda match: unicodedata.lookup(f"GREEK SMALL LETTER {match[1].upper()}"), symbol)
    return re.sub(r"[${}_]", "", letters)


def spoken(name: str) -> str:
    """The words and the symbol of a coordinate, in letters."""
    return " ".join(dict.fromkeys([COORDINATES[name].words, plain(name)]))


def number(value: float) -> str:
    """A number in two digits, a whole one in all of them, a power of ten where it is small."""
    if float(value).is_integer():
        return f"{value:g}"
    return f"{value:.2g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def cosine(value: float) -> str:
    """A cosine with two digits, or with as many as tell it from 1; cut and not rounded."""
    if value >= 1 - 1e-8:
        return "1"
    digits = 2 if value < FOLLOWS else int(np.ceil(-np.log10(1 - value) - SLACK))
    return f"{np.trunc(value * 10**digits + SLACK) / 10**digits + 0.0:.{digits}f}".replace("-", MINUS)  # + 0.0: no -0


def percent(share: float) -> str:
    """A share in percent, cut, with the digit that tells it from all."""
    digits = 1 if share > FOLLOWS else 0
    return f"{np.floor(share * 100 * 10**digits) / 10**digits:.{digits}f}{BLANK}%"


def equal(name: str, values: Sequence[float]) -> str:
    """`T2 = 5 and 15`."""
    return f"{plain(name)}{BLANK}={BLANK}{listed([number(value) for value in values])}"


def some(things: Sequence[str], total: int) -> str:
    """Things by name where they are few, else the first of them and the number of the others, of how many in all."""
    if len(things) <= NAMED:
        return listed(things)
    return f"{', '.join(things[: NAMED - 1])} and {len(things) - NAMED + 1} more of {total}"


def part(good: int, total: int) -> str:
    """`none of 4`, `3 of 4`, `all 4`, `both`."""
    return {1: "the one", 2: "both"}.get(total, f"all {total}") if good == total else f"{good or 'none'} of {total}"


def things(number: int, what: str) -> str:
    """`one cell`, `2 cells`."""
    return f"{what}{'' if number == 1 else 's'}"


def spoken_of(labels: Iterable[str]) -> list[str]:
    """The labels that a title of one system speaks of: all of few, else the default forms."""
    ordered = look.in_order(set(labels))
    return ordered if len(ordered) <= FEW else default_forms(ordered)


def default_forms(labels: Iterable[str]) -> list[str]:
    """Rules in their default form, and in all their forms where they are there with options only."""
    ordered = look.in_order(set(labels))
    default = {label for label in ordered if " " not in label}
    return [label for label in ordered if label in default or label.partition(" ")[0] not in default]


def together(predicates: Mapping[str, Predicate], called: Callable[[str], str] = look.words) -> str:
    """A clause for every predicate, of all rules that share it. No verb is said twice in a row. Empty for no rule.

    `called` is what a rule is called: by its words, or by the name that stands at its bars.
    """
    groups: dict[Predicate, list[str]] = {}
    for label, predicate in predicates.items():
        groups.setdefault(predicate, []).append(called(label))
    clauses, before = [], ""
    for predicate, names in groups.items():
        subject = listed(names) if len(names) <= NAMED else f"{part(len(names), len(predicates))} rules"
        verb = "" if predicate.verb == before else predicate.verb if len(names) == 1 else predicate.plural
        clauses.append(" ".join(filter(None, [subject, verb, predicate.more, predicate.unit if verb else ""])))
        before = predicate.verb
    return "; ".join(clauses)


def tally(
    claim: str, held: Mapping[str, Mapping[str, bool]], systems: str = "systems", others: Iterable[str] = ()
) -> str:
    """On which systems a claim about a rule holds: rule to system to whether, of systems that say something about it.

    `systems` is what these are called, and `others` are named in the same title. Rules that are alike share a clause,
    and the first one says the claim. Empty where there is no rule.
    """
    labels = [system for on in held.values() for system in on]
    names = short([*labels, *others])
    total = len(set(labels))
    wheres = {
        label: _where(
            [names[s] for s, yes in held[label].items() if yes], [names[s] for s in held[label]], total, systems
        )
        for label in default_forms(held)
    }
    return capital(together({label: Predicate(claim, where) for label, where in wheres.items()}))


def short(labels: Iterable[str]) -> dict[str, str]:
    """Labels without the options that all labels of their name have."""
    words = {label: label.split(" ") for label in labels}
    shared = {w[0]: set.intersection(*(set(v) for v in words.values() if v[0] == w[0])) for w in words.values()}
    return {label: " ".join([w[0], *(o for o in w[1:] if o not in shared[w[0]])]) for label, w in words.items()}


def _where(yes: Sequence[str], asked: Sequence[str], total: int, systems: str) -> str:
    if len(asked) == 1:
        return f"on {asked[0]}" if yes else f"not on {asked[0]}"
    tried = "" if len(asked) == total else " that have it"
    if len(asked) == 2 and len(yes) != 1:
        return f"on both {systems}{tried}" if yes else f"on neither {systems.removesuffix('s')}{tried}"
    if len(yes) in (0, len(asked)):
        return f"on {part(len(yes), len(asked))} {systems}{tried}"
    return (
        f"on {some(yes, len(asked))} alone" if len(yes) <= NAMED else f"on {len(yes)} of {len(asked)} {systems}{tried}"
    )
