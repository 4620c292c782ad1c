"""The answers of a run in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbench.pages import wording
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gradbench.pages.answers import Answer, Break, Setting
    from gradbench.pages.sources import Source

FEW = 3  # places, or causes, that a sentence names
_TERMS = {str(word) for word in (*Cause, *Status)} | wording.PAGE.keys()


_GRADES = {
    "all": " can be trusted: ",
    "most": " can be trusted, with exceptions: ",
    "some": " can be trusted at some places only: ",
}


@dataclass(frozen=True)
class Piece:
    """A part of a sentence: plain text, a word with a definition, a name, or a link to a cell."""

    text: str
    term: str = ""  # the word of the glossary
    cell: str = ""  # the key
    name: bool = False  # of a system or a rule

    def __str__(self) -> str:
        return self.text


Sentence = tuple[Piece, ...]


def said(*parts: str | Piece) -> Sentence:
    """A sentence from its parts."""
    return tuple(part if isinstance(part, Piece) else Piece(part) for part in parts)


def term(word: str, text: str = "") -> Piece:
    """A word, which has a definition where the glossary has one."""
    return Piece(text or word, term=word if word in _TERMS else "")


def rule(label: str) -> Piece:
    """The label of a rule or a system."""
    return Piece(label, name=True)


def completeness(source: Source) -> Iterator[Sentence]:
    """Whether the run is whole and what its suite claims holds."""
    verdict, statuses = source.verdict, source.verdict.statuses
    checks = verdict.of("check")
    passed = sum(f.passed for f in checks)
    if not checks:
        yield said("The suite makes no checks.")
    elif passed == len(checks):
        yield said(f"All {len(checks)} checks of the suite pass." if len(checks) > 1 else "The check passes.")
    else:
        yield said(f"{len(checks) - passed} of {len(checks)} checks of the suite do not pass.")
    measured = sum(n for s, n in statuses.items() if Status(s).measured)
    skipped = statuses.get(Status.SKIPPED, 0)
    whole = "All" if measured == source.planned - skipped else f"{measured:,} of"
    settled = statuses.get(Status.SETTLED, 0)
    yield said(
        f"{whole} {source.planned - skipped:,} cells are measured; {settled:,} of them are ",
        term("settled"),
        ", and only these are evidence.",
    )


def of_system(source: Source, answers: Sequence[Answer]) -> list[list[Sentence]]:
    """What is said of one system, a paragraph each: the rule to take, the others, and those that cannot be trusted."""
    limit = wording.percent(source.thresholds.faithful)
    trusted = [a for a in answers if a.trusted]
    silent = [a for a in answers if a.setting is None]
    paragraphs = [list(_trusted(first, limit)) for first in trusted[:1]]
    paragraphs += [told for first in trusted[:1] if (told := list(_limits(first)))]
    paragraphs += [[_others(trusted[1:])]] if trusted[1:] else []
    paragraphs += [list(_wrong(a, limit)) for a in answers if not a.trusted and a.setting is not None]
    paragraphs += [[_silent(silent)]] if silent else []
    return paragraphs


def _trusted(answer: Answer, limit: str) -> Iterator[Sentence]:
    s = answer.setting
    assert s is not None
    where = f"at {wording.at(s.values)} its " if s.values else "its "
    seeds = "the one seed" if [*s.seeds] == [1] else "every seed"
    yield said(
        rule(answer.rule),
        _GRADES[answer.grade],
        where,
        term("error"),
        f" is at most {limit}, in every parameter and in {seeds}, at {_of(s.holds, s.places)} settled ",
        term("place", "place" if s.places == 1 else "places"),
        f" ({_varied(s)})." if s.varied else ".",
    )
    if s.fails:
        shown = "; ".join(wording.at(place) for place in s.fails[:FEW])
        more = f" and {len(s.fails) - FEW} more" if len(s.fails) > FEW else ""
        yield said(f"It fails at {shown}{more}.")
    yield _worst(s)
    yield said(f"It costs {wording.span(*s.work)} ", term("work", "evaluations"), f" of the force{_times(s)}.")


def _limits(answer: Answer) -> Iterator[Sentence]:
    """What breaks a rule that can be trusted, and what the global cosine hides."""
    if answer.breaks:
        yield said(f"Elsewhere {_breakers(answer.breaks)} it.")
    if answer.hidden:
        yield _hidden(answer)


def _varied(s: Setting) -> str:
    return wording.listed(map(wording.letter, s.varied)) + (" vary" if len(s.varied) > 1 else " varies")


def _of(holds: int, places: int) -> str:
    if holds == places:
        return "the one" if places == 1 else "both" if places == 2 else f"all {places:,}"
    return f"{holds:,} of {places:,}"


def _worst(s: Setting) -> Sentence:
    of = f" in {w.param}" if (w := s.worst).param else ""
    alone = ", which tells nothing of the spread" if [*s.seeds] == [1] else ""
    told = str(w.status) if w.status is not Status.SETTLED else f"an error of {wording.percent(w.error)}{of}"
    return said(
        f"It was measured with {seeds_of(s)}{alone}; the worst is ",
        Piece(told, cell=w.cell),
        f"; the smallest cosine of a parameter is {wording.cosine(s.worst.cosine_min)}.",
    )


def seeds_of(s: Setting) -> str:
    """How many seeds the places have."""
    if len(s.seeds) == 1:
        ((seeds, places),) = s.seeds.items()
        return wording.many(seeds, "seed") + (" a place" if places > 1 else "")
    first, *more = s.seeds.items()
    told = [f"{wording.many(first[0], 'seed')} at {wording.many(first[1], 'place')}"]
    return wording.listed([*told, *(f"{wording.many(seeds, 'seed')} at {places:,}" for seeds, places in more)])


def _times(s: Setting) -> str:
    return "" if s.times is None else f", {wording.span(*s.times, digits=2)} times as many as the reference takes there"


def _others(answers: Sequence[Answer]) -> Sentence:
    parts: list[str | Piece] = ["Also: "]
    for i, a in enumerate(answers):
        assert a.setting is not None
        where = f" at {wording.at(a.setting.values)}" if a.setting.values else ""
        holds = _of(a.setting.holds, a.setting.places)
        number = "place" if a.setting.places == 1 else "places"
        parts += ["; " if i else "", rule(a.rule), f"{where} ({holds} {number}"]
        parts.append(f", {wording.span(*a.setting.work)} evaluations)")
    return said(*parts, ".")


def _wrong(answer: Answer, limit: str) -> Iterator[Sentence]:
    s = answer.setting
    assert s is not None
    yield said(
        rule(answer.rule),
        " cannot be trusted: at none of ",
        f"{wording.many(answer.tested, 'settled point')} is its ",
        term("error"),
        f" within {limit} in every parameter and seed. ",
    )
    if answer.breaks:
        yield said(f"{_capital(_breakers(answer.breaks))} it.")
    where = f" is {wording.at(s.values)}, where" if s.values else ":"
    yield said(
        f"The nearest setting{where} the worst seed has ",
        Piece(f"an error of {wording.percent(s.worst.error)}", cell=s.worst.cell),
        f" and a smallest cosine of {wording.cosine(s.worst.cosine_min)}.",
    )
    if answer.hidden:
        yield _hidden(answer)


def _breakers(breaks: Sequence[Break]) -> str:
    """The causes with their cells and the values at which they act."""
    shown = []
    for i, b in enumerate(breaks[:FEW]):
        number = wording.many(b.cells, "cell") if not i else f"{b.cells:,}"
        where = "".join(f", {wording.letter(n)} {wording.some(v)}" for n, v in b.values.items() if v)
        shown.append(f"{b.word} ({number}{where})")
    return f"{wording.listed(shown)} {'breaks' if len(shown) == 1 else 'break'}"


def _hidden(answer: Answer) -> Sentence:
    h = answer.hidden
    assert h is not None
    parts: list[str | Piece] = [
        "The ",
        term("global cosine"),
        f" hides this: it reads {wording.cosine(h.cosine)} or more at {h.cells:,} of ",
        f"{wording.many(h.of, 'settled cell')} where a parameter errs beyond that. Most often it is {h.param}",
    ]
    if math.isfinite(h.lowest):
        parts += [", whose cosine falls to ", Piece(wording.cosine(h.lowest), cell=h.cell)]
    return said(*parts, ".")


def _silent(answers: Sequence[Answer]) -> Sentence:
    statuses: dict[str, int] = {}
    for a in answers:
        statuses = {s: max(n, statuses.get(s, 0)) for s, n in (*statuses.items(), *a.untested.items())}
    parts: list[str | Piece] = ["Nothing is said of "]
    for i, a in enumerate(answers):
        parts += [" and " if i and i == len(answers) - 1 else ", " if i else "", rule(a.rule)]
    parts.append(": nowhere is every seed settled. Their cells are " if len(answers) > 1 else ": nowhere is ")
    if len(answers) == 1:
        parts.append("every seed settled. Its cells are ")
    for i, status in enumerate(sorted(statuses, key=lambda s: -statuses[s])):
        parts += [" and " if i and i == len(statuses) - 1 else ", " if i else "", term(status)]
    return said(*parts, ".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def plain(paragraphs: Iterable[Iterable[Sentence]]) -> str:
    """Paragraphs as a text, a line each."""
    return "\n".join(" ".join("".join(map(str, sentence)).strip() for sentence in told) for told in paragraphs)
