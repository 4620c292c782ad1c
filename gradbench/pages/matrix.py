"""Every rule on every system: the smallest cosine of a parameter at the setting to take, its cost, what breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradbench.vocabulary.coordinates import COORDINATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pandas import DataFrame

    from gradbench.pages.answers import Answer


def rows_of(answers: Mapping[str, Sequence[Answer]]) -> DataFrame:
    """A row for every rule on every system, in the order of the answers.

    `places` is how many settled places the setting was tested at and `holds` at how many of these it holds;
    `cosine_min` and `error` are those of the worst seed and place. Null where nothing was tested.
    """
    from pandas import DataFrame

    told = [_row(answer) for by_rule in answers.values() for answer in by_rule]
    brought = [name for name in COORDINATES if any(name in row for row in told)]
    columns = ["system", "estimator", "grade", *brought, "places", "holds", "cosine_min", "error", "error_of"]
    columns += ["work_least", "work_most", "times_least", "times_most", "breaks", "hides", "cell"]
    return DataFrame(told, columns=columns).astype({"places": "Int64", "holds": "Int64"})


def _row(answer: Answer) -> dict[str, object]:
    row: dict[str, object] = {"system": answer.system, "estimator": answer.rule, "grade": answer.grade}
    row["breaks"] = answer.breaks[0].word if answer.breaks else None
    row["hides"] = answer.hidden.param if answer.hidden else None
    s = answer.setting
    if s is None:
        return row
    low, high = s.times or (None, None)
    worst = {"cosine_min": s.worst.cosine_min, "error": s.worst.error, "error_of": s.worst.param, "cell": s.worst.cell}
    cost = {"work_least": s.work[0], "work_most": s.work[1], "times_least": low, "times_most": high}
    return row | s.values | {"places": s.places, "holds": s.holds} | worst | cost
