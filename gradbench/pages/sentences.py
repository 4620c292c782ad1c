"""The answers of a run in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradbench.pages import wording
from gradbench.tables.text import capital, listed
from gradbench.vocabulary.cause import Cause
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gradbench.pages.answers import Answer, Break, Cost, Setting, Worst
    from gradbench.pages.sources import Source

FEW = 3  # places, or causes, that a sentence names
_TERMS = {str(word) for word in (*Cause, *Status)} | wording.PAGE.keys()


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


@dataclass(frozen=True)
class Paragraph:
    """Sentences of one kind: what to do, what to keep away from, or what there is to know besides."""

    kind: Literal["advice", "warning", "aside"]
    sentences: tuple[Sentence, ...]

    def __iter__(self) -> Iterator[Sentence]:
        return iter(self.sentences)


def said(*parts: str | Piece) -> Sentence:
    """A sentence from its parts."""
    return tuple(part if isinstance(part, Piece) else Piece(part) for part in parts)


def term(word: str, text: str = "") -> Piece:
    """A word, which has a definition where the glossary has one."""
    return Piece(text or word, term=word if word in _TERMS else "")


def rule(label: str) -> Piece:
    """The label of a rule or a system, whose name has a definition where the code has one."""
    return Piece(label, term=label.partition(" ")[0], name=True)


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


def of_system(source: Source, answers: Sequence[Answer]) -> list[Paragraph]:
    """What is said of one system: the rule to take, those to keep away from, what else holds, what is not known."""
    limit = wording.percent(source.thresholds.faithful)
    trusted = [a for a in answers if a.trusted]
    wrong = [a for a in answers if not a.trusted and a.setting is not None]
    silent = [a for a in answers if a.setting is None]
    told = [Paragraph("advice", (*_advice(first, limit),)) for first in trusted[:1]]
    told += [Paragraph("aside", (*_besides(first, limit),)) for first in trusted[:1]]
    told += [Paragraph("warning", (*_wrong(a, limit),)) for a in wrong]
    told += [Paragraph("aside", (_others(trusted[1:]),))] if trusted[1:] else []
    told += [Paragraph("aside" if trusted else "advice", (_silent(silent),))] if silent else []
    return told


def took(source: Source, system: str) -> str:
    """The seconds of the cells of a system; empty where the tables have none. Those of a rule alone cannot be told."""
    seconds = source.cells.loc[source.cells["system_label"] == system, "seconds"].dropna()
    if seconds.empty:
        return ""
    device = f" on {source.env['device']}" if "device" in source.env else ""
    return (
        f"{wording.many(len(seconds), 'cell')} took {seconds.sum():.3g} s{device}, {1000 * seconds.mean():.3g} ms a "
        "cell, with references, certificates and causes. Cells of a problem share their phases: a rule alone has no "
        "seconds."
    )


def _advice(answer: Answer, limit: str) -> Iterator[Sentence]:
    """The rule to take, at which setting, how exact it is, and where it is not."""
    s = answer.setting
    assert s is not None
    where = f" at {wording.at(s.values)}" if s.values else ""
    yield said(
        "Use ",
        rule(answer.rule),
        f"{where}, which holds at some places only: its " if answer.grade == "some" else f"{where}: its ",
        term("error"),
        f" is at most {wording.percent(s.within)} at {_of(s.holds, s.places)} settled ",
        term("place", "place" if s.places == 1 else "places"),
        f" ({seeds_of(s)}{', which tells nothing of the spread' if [*s.seeds] == [1] else ''}).",
    )
    if s.fails:
        parts: list[str | Piece] = ["The exception: " if len(s.fails) == 1 else f"The {len(s.fails)} exceptions: "]
        for i, f in enumerate(s.fails[:FEW]):
            there = f" at {wording.at(f.at)}" if f.at else ""
            parts += ["; " if i else "", Piece(_error(f.worst), cell=f.worst.cell), there]
        more = f"; and {len(s.fails) - FEW} more" if len(s.fails) > FEW else ""
        yield said(*parts, f"{more}. Up to {limit} counts as faithful.")
    yield _costs(s)


def _error(worst: Worst) -> str:
    """An error and the parameter that has it."""
    if worst.status is not Status.SETTLED:
        return str(worst.status)
    return wording.percent(worst.error) + (f" in {worst.param}" if worst.param else "")


def _besides(answer: Answer, limit: str) -> Iterator[Sentence]:
    """Where a rule that can be trusted was tried, what breaks it, what the global cosine hides, what is not known."""
    s = answer.setting
    assert s is not None
    told = f"The smallest cosine of a parameter is {wording.cosine(s.cosine)}"
    if s.fails:
        told = f"{told} where the rule holds, and {wording.cosine(s.worst.cosine_min)} in all"
    yield said(f"{told}; {_varied(s)}." if s.varied else f"{told}.")
    if len(s.seeds) > 1 and s.often:
        values = [f"{wording.letter(name)} {wording.some(there)}" for name, there in s.often.items()]
        yield said(f"The places with {wording.many(max(s.seeds), 'seed')} have {listed(values)}.")
    if answer.breaks:
        where = ("Where ", rule(answer.rule), " fails, at this setting or another, ") if s.values else ()
        yield said(*where, f"{_breakers(answer.breaks)} it.")
    if answer.hidden:
        yield _hidden(answer, limit)
    if answer.silent:
        parts: list[str | Piece] = ["Where a seed is not settled there is no evidence: "]
        for i, b in enumerate(answer.silent[:FEW]):
            parts += ["; " if i else "", term(b.word), f" ({wording.many(b.cells, 'cell')}{_values(b)})"]
        yield said(*parts, ".")


def _costs(s: Setting) -> Sentence:
    """What a setting costs at its smallest and its largest T1, beside backpropagation through time."""
    parts: list[str | Piece] = ["An estimate costs "]
    for i, c in enumerate(ends(s.costs)):
        if i:
            parts += ["; ", wording.span(*c.work)]
        else:
            parts += [wording.span(*c.work), " ", term("work", "evaluations"), " of the force"]
        if c.T1 is not None:
            parts.append(f" at T1 = {wording.value(c.T1)}")
        if c.times and c.reference:
            parts.append(f", {wording.span(*c.times, digits=3)} times the {wording.span(*c.reference)} of BPTT")
    return said(*parts, ".")


def ends(costs: Sequence[Cost]) -> Sequence[Cost]:
    """The costs at the smallest and at the largest T1."""
    return [costs[0], costs[-1]] if len(costs) > 1 else costs


def _varied(s: Setting) -> str:
    verb = "vary" if len(s.varied) > 1 else "varies"
    return f"{listed(map(wording.letter, s.varied))} {verb} between the places"


def _of(holds: int, places: int) -> str:
    if holds == places:
        return "the one" if places == 1 else "both" if places == 2 else f"all {places:,}"
    return f"{holds:,} of {places:,}"


def seeds_of(s: Setting) -> str:
    """How many seeds the places have."""
    if len(s.seeds) == 1:
        ((seeds, places),) = s.seeds.items()
        return wording.many(seeds, "seed") + (" a place" if places > 1 else "")
    first, *more = s.seeds.items()
    told = [f"{wording.many(first[0], 'seed')} at {wording.many(first[1], 'place')}"]
    return listed([*told, *(f"{wording.many(seeds, 'seed')} at {places:,}" for seeds, places in more)])


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
    none = "at the one settled " if answer.places == 1 else f"at any of {answer.places:,} settled "
    yield said(
        "Do not trust ",
        rule(answer.rule),
        ": with no setting is its ",
        term("error"),
        f" within {limit} {none}",
        term("place", "place" if answer.places == 1 else "places"),
        ".",
    )
    where = f"At {wording.at(s.values)} it" if s.values else "It"
    yield said(
        f"{where} errs by up to ",
        Piece(_error(s.worst), cell=s.worst.cell),
        f", and the smallest cosine of a parameter is {wording.cosine(s.worst.cosine_min)}.",
    )
    if answer.breaks:
        yield said(f"{capital(_breakers(answer.breaks))} it.")
    if answer.hidden:
        yield _hidden(answer, limit)


def _breakers(breaks: Sequence[Break]) -> str:
    """The causes with their cells and the values at which they act."""
    shown = []
    for i, b in enumerate(breaks[:FEW]):
        number = wording.many(b.cells, "cell") if not i else f"{b.cells:,}"
        shown.append(f"{b.word} ({number}{_values(b)})")
    return f"{listed(shown)} {'breaks' if len(shown) == 1 else 'break'}"


def _values(b: Break) -> str:
    """The values of coordinates at which something acts."""
    return "".join(f", {wording.letter(n)} {wording.some(v)}" for n, v in b.values.items() if v)


def _hidden(answer: Answer, limit: str) -> Sentence:
    h = answer.hidden
    assert h is not None
    low: list[str | Piece] = [
        "The ",
        term("global cosine"),
        f" hides this: in {h.cells:,} of {wording.many(h.of, 'settled cell')} the whole gradient errs by at most "
        f"{limit}, at a global cosine of ",
        Piece(wording.cosine(h.cosine), cell=h.cell),
        " or more, and a parameter by more than that. ",
        f"Most often it is {h.param}",
    ]
    if h.leader == h.param:
        return said(*low, ".")
    return said(
        *low,
        f", which holds {wording.percent(h.share)} of |g|² in the median cell; {h.leader} holds ",
        f"{wording.percent(h.leads)}, and the global cosine follows it.",
    )


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
    parts.append(".")
    for status in sorted(statuses, key=lambda s: -statuses[s]):
        if advice := wording.ADVICE.get(Status(status)):
            parts.append(f" Where {status}: {advice}.")
    return said(*parts)


def plain(paragraphs: Iterable[Iterable[Sentence]]) -> str:
    """Paragraphs as a text, a line each."""
    return "\n".join(" ".join("".join(map(str, sentence)).strip() for sentence in told) for told in paragraphs)
