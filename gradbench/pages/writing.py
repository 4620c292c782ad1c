"""Tables for other programs: CSV, and tables of LaTeX with the rules of booktabs."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from gradbench.pages import wording
from gradbench.vocabulary.coordinates import COORDINATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pandas import DataFrame

    from gradbench.pages.answers import Answer

READ_FIRST = ("status", "cosine_min", "worst", "cosine", "rel_error", "cause")
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind the end of a row it would begin an argument
    "*": "{*}",  # the same
    "-": "{-}",  # two of them would join
    "'": r"\textquotesingle{}",
    wording.MINUS: "$-$",
    wording.DASH: "--",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{letter: f"${command}$" for command, letter in wording.GREEK.items()},
}


def csv(table: DataFrame) -> str:
    """A table as CSV, with all digits of its numbers and an empty field where there is none."""
    return table.to_csv(index=False, lineterminator="\n")


def differing(cells: DataFrame) -> list[str]:
    """The columns of a table for people: labels, the coordinates in which the cells differ, what is read first."""
    labels = ["system_label", "estimator_label"]
    varied = [name for name in COORDINATES if cells[name].nunique(dropna=False) > 1]
    return [*labels, *varied, *READ_FIRST]


def latex(table: DataFrame) -> str:
    """A table as a `tabular` with the rules of booktabs: numbers of four digits, cosines of four decimals."""
    rows = [[tex(_text(*named)) for named in zip(table, row, strict=True)] for row in table.itertuples(index=False)]
    aligned = "".join("r" if table[name].dtype.kind in "fiu" else "l" for name in table)
    return _tabular(aligned, [tex(str(name)) for name in table.columns], rows)


def latex_matrix(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Rules by systems: the smallest cosine at the setting to take, the places where it holds, cost and cause."""
    rules = list(dict.fromkeys(a.rule for told in answers.values() for a in told))
    there = {(system, a.rule): a for system, told in answers.items() for a in told}
    rows = [[tex(rule), *(_entry(there.get((system, rule))) for system in answers)] for rule in rules]
    return _tabular("l" * (1 + len(answers)), ["", *map(tex, answers)], rows)


def _entry(answer: Answer | None) -> str:
    if answer is None:
        return ""
    s = answer.setting
    if s is None:
        return "nothing settled"
    lines = [f"{wording.cosine(s.worst.cosine_min)} ({s.holds}/{s.places})", wording.at(s.values)]
    lines += [f"{wording.span(*s.work)} evaluations", *(b.word for b in answer.breaks[:1])]
    inner = r" \\ ".join(tex(line) for line in lines if line)
    return rf"\shortstack[l]{{{inner}}}"


def _tabular(aligned: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _text(name: str, value: Any) -> str:
    if value is None or value != value:
        return ""
    if name.startswith("cosine"):
        return wording.cosine(value)
    return wording.value(float(f"{value:.4g}")) if isinstance(value, float) else str(value)


def tex(text: str) -> str:
    """A text that LaTeX sets as it is. A letter that its fonts may lack is written as its number."""
    line = " ".join(text.split())
    return "".join(_TEX.get(c) or (c if c.isascii() and c.isprintable() else _foreign(c)) for c in line)


def _foreign(letter: str) -> str:
    """A letter beyond ASCII: without its accents where it has some, else by its number."""
    base = unicodedata.normalize("NFKD", letter)[0]
    return base if base.isascii() and base.isalnum() else rf"\texttt{{U+{ord(letter):04X}}}"
