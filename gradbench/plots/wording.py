"""How titles put things: numbers, lists, clauses about rules."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gradbench.plots import hold, look
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
    return f"{plain(name)}{BLANK}={BLANK}{listed([hold.number(value) for value in values])}"


def some(things: Sequence[str], total: int) -> str:
    """Things by name where they are few, else the first of them and the number of the others, of how many in all."""
    return first(things) + f" of {total}" * (len(things) > NAMED)


def first(things: Sequence[str]) -> str:
    """Things by name where they are few, else the first of them and the number of the others."""
    if len(things) <= NAMED:
        return listed(things)
    return f"{', '.join(things[: NAMED - 1])} and {len(things) - NAMED + 1} more"


def part(good: int, total: int) -> str:
    """`none of 4`, `3 of 4`, `all 4`, `both`."""
    return {1: "the one", 2: "both"}.get(total, f"all {total}") if good == total else f"{good or 'none'} of {total}"


def parameters(number: int) -> str:
    """All parameters of a system, by their number."""
    return {1: "its one parameter", 2: "both parameters"}.get(number, f"all {number} parameters")


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
        every = len(names) == len(predicates) > NAMED
        subject = f"all {len(names)} rules" if every else _subject(names, len(predicates))
        verb = "" if predicate.verb == before else predicate.verb if len(names) == 1 else predicate.plural
        clauses.append(" ".join(filter(None, [subject, verb, predicate.more, predicate.unit if verb else ""])))
        before = predicate.verb
    return "; ".join(clauses)


def _subject(names: Sequence[str], total: int) -> str:
    """Rules by name where they are few; else the first ones, and of how many they are."""
    return some(names, total) + " rules" * (len(names) > NAMED)


def tally(
    claim: str, held: Mapping[str, Mapping[str, bool]], systems: str = "systems", others: Iterable[str] = ()
) -> str:
    """On which systems a claim about a rule holds: rule to system to whether, of systems that say something about it.

    `systems` is what these are called, and `others` are named in the same title. Rules that are alike share a clause,
    and the first one says the claim. Many rules are ranked. Empty where there is no rule.
    """
    labels = [system for on in held.values() for system in on]
    names = short([*labels, *others])
    total = len(set(labels))
    rules = default_forms(held)
    if len(rules) > FEW:
        parts = {label: (sum(held[label].values()), len(held[label])) for label in rules}
        several = {label: of for label, of in parts.items() if of[1] > 1} or parts
        told = ranked(claim, several, "on {}", f"every {systems.removesuffix('s')} tried")
        once = len(parts) - len(several)
        return capital(told) + (f"; {once} more tried on one system only" if once else "")
    wheres = {
        label: _where(
            [names[s] for s, yes in held[label].items() if yes],
            [names[s] for s, yes in held[label].items() if not yes],
            total,
            systems,
        )
        for label in rules
    }
    return capital(together({label: Predicate(claim, where) for label, where in wheres.items()}))


def ranked(
    claim: str,
    parts: Mapping[str, tuple[int, int]],
    where: str,
    every: str,
) -> str:
    """What many rules do: those of which a claim always holds, those of which it never does, the two main ones between.

    parts: rule to the number of places at which the claim holds, and that of all
    where: how a place is put, with a gap for `every` and for the numbers
    """
    labels = sorted(look.in_order(parts), key=lambda label: " " in label)  # default forms before others
    always = [look.words(label) for label in labels if parts[label][0] == parts[label][1]]
    never = [look.words(label) for label in labels if not parts[label][0]]
    between = [label for label in labels if 0 < parts[label][0] < parts[label][1]]
    main = [label for label in between if label in look.MAIN] or between[: NAMED - 1]
    said = [(always, where.format(every)), (never, where.format("none"))]
    said += [([look.words(label)], where.format(part(*parts[label]))) for label in main]
    if others := len(between) - len(main):
        said.append(([f"{others} other{'s' * (others > 1)}"], where.format("some")))
    said = [(names, place) for names, place in said if names]
    verbs = [claim if len(said[0][0]) == 1 else Predicate(claim, "").plural, *[""] * (len(said) - 1)]
    clauses = [
        " ".join(filter(None, [first(names), verb, place])) for (names, place), verb in zip(said, verbs, strict=True)
    ]
    return f"of {len(labels)} rules, {'; '.join(clauses)}"


def short(labels: Iterable[str]) -> dict[str, str]:
    """Labels without the options that all labels of their name have."""
    words = {label: label.split(" ") for label in labels}
    shared = {w[0]: set.intersection(*(set(v) for v in words.values() if v[0] == w[0])) for w in words.values()}
    return {label: " ".join([w[0], *(o for o in w[1:] if o not in shared[w[0]])]) for label, w in words.items()}


def _where(yes: Sequence[str], no: Sequence[str], total: int, systems: str) -> str:
    """On which systems a claim holds, and on which it does not."""
    asked = len(yes) + len(no)
    if asked == 1:
        return f"on {yes[0]}" if yes else f"not on {no[0]}"
    tried = "" if asked == total else " that have it"
    if asked == 2 and len(yes) != 1:
        return f"on both {systems}{tried}" if yes else f"on neither {systems.removesuffix('s')}{tried}"
    if not yes or not no:
        return f"on {part(len(yes), asked)} {systems}{tried}"
    good = f"on {listed(yes)}" if len(yes) <= NAMED else f"on {len(yes)} of {asked} {systems}{tried}"
    if len(no) <= NAMED:
        return f"{good}, not on {listed(no).replace(' and ', ' or ')}"
    return f"{good} alone" if len(yes) <= NAMED else good
