"""What a run answers: which rule may be trusted on which system, at which setting, how sure that is, and its cost.

A *setting* of a rule is a value of each coordinate that rules bring (T2, beta). A *place* is a value of each other
coordinate, the seed aside. A rule is *tested* at a place where the free state is settled in every seed, and *holds*
there where the error of the whole gradient and of every parameter is at most `faithful` in every seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from pandas import DataFrame

    from gradbench.pages.sources import Source

SEED = "seed"
POINT = tuple(name for name in COORDINATES if name != SEED)
# a nudged phase that leaves every bound from a settled state says something of the rule
TESTED = (Status.SETTLED, Status.NUDGE_DIVERGED)
WITHOUT_CAUSE = "without a cause"
READ = ["system_label", "estimator_label", *COORDINATES, "cell", "status", "cause", "cosine", "cosine_min", "rel_error"]
READ += ["error", "error_of", "work"]


Grade = Literal["all", "most", "some", "none", "silent"]  # places at which a setting holds; silent: nothing was tested


@dataclass(frozen=True)
class Worst:
    """The seed and place with the largest error at a setting."""

    cell: str
    error: float
    cosine_min: float  # the smallest over all seeds and places, which may be another cell's
    param: str  # that has this error; empty: the whole gradient
    status: Status
    at: dict[str, object]  # the coordinates of the cell


@dataclass(frozen=True)
class Setting:
    """A setting of a rule over all places where it is tested."""

    values: dict[str, object]  # of the coordinates that rules bring; empty where the rule has none
    places: int
    holds: int
    varied: tuple[str, ...]  # the coordinates in which the places differ
    fails: tuple[dict[str, object], ...]  # the places where it does not hold, by these coordinates
    seeds: dict[int, int]  # how many places have so many seeds, the most seeds first
    worst: Worst
    work: tuple[float, float]  # evaluations of the force, over the places
    times: tuple[float, float] | None  # the same over those of the reference at this place; None: it was not run


@dataclass(frozen=True)
class Step:
    """One value of a coordinate of the rule, where its others stay as they are in the setting."""

    value: object
    holds: int  # places
    tested: int


@dataclass(frozen=True)
class Break:
    """What makes tested cells err by more than `faithful`."""

    word: str  # a cause, the status `nudge_diverged`, or WITHOUT_CAUSE
    cells: int
    values: dict[str, tuple[object, ...]]  # of the coordinates that rules bring, where it does so


@dataclass(frozen=True)
class Hidden:
    """Cells whose whole gradient is within `faithful` while a parameter is not."""

    cells: int
    of: int  # settled cells
    cosine: float  # the smallest cosine of the whole gradient among them
    param: str  # that most often has the largest error
    lowest: float  # its smallest cosine among them; NaN where it has none
    cell: str  # where the cosine is smallest


@dataclass(frozen=True)
class Answer:
    """What a run says of one rule on one system."""

    system: str  # labels
    rule: str
    cells: int
    tested: int  # places at a setting
    holds: int
    untested: dict[str, int]  # cells by status at places where not every seed is settled
    setting: Setting | None  # the one to take; where none holds, the nearest; None: nothing was tested
    reach: dict[str, tuple[Step, ...]]  # how far one may go from the setting, by coordinate
    breaks: tuple[Break, ...]  # the most frequent first
    hidden: Hidden | None

    @property
    def trusted(self) -> bool:
        """Whether some setting holds somewhere."""
        return self.holds > 0

    @property
    def grade(self) -> Grade:
        """How far the setting to take may be trusted."""
        if self.setting is None:
            return "silent"
        holds, places = self.setting.holds, self.setting.places
        return "all" if holds == places else "most" if 2 * holds > places else "some" if holds else "none"


def answered(source: Source) -> dict[str, list[Answer]]:
    """The answers by system, in the order of the plan; of each system the rule to take comes first."""
    by_system: dict[str, list[Answer]] = {}
    for labels, cells in source.rules[READ].groupby(["system_label", "estimator_label"], sort=False):
        by_system.setdefault(str(labels[0]), []).append(_answer(source, cells))
    return {system: sorted(told, key=_rank) for system, told in by_system.items()}


def _rank(answer: Answer) -> tuple[object, ...]:
    """The rule that holds at the most places beyond those where it fails comes first; of equals, the cheaper one."""
    if answer.setting is None:
        return (2,)
    s = answer.setting
    if not answer.trusted:
        return (1, _number(s.worst.error))
    return (0, s.places - 2 * s.holds, s.work[0], answer.rule)


def _number(value: float) -> float:
    """A number that sorts; NaN is worse than all."""
    return value if value == value else np.inf


def _answer(source: Source, cells: DataFrame) -> Answer:
    first = cells.iloc[0]
    brought = [name for name in COORDINATES if name in registry.of_rules() and cells[name].notna().any()]
    holds = (cells["status"] == Status.SETTLED) & (cells["error"] <= source.thresholds.faithful)
    cells = cells.assign(
        tested=cells["status"].isin(TESTED), holds=holds, error=cells["error"].where(~cells["error"].isna(), np.inf)
    )
    grouped = cells.groupby(list(POINT), dropna=False, sort=False)
    for name in ("tested", "holds"):
        cells[name] = grouped[name].transform("all")
    tested = cells[cells["tested"]]
    points = tested.drop_duplicates(list(POINT))
    setting = _setting(source, tested, points, brought) if len(tested) else None
    return Answer(
        str(first["system_label"]),
        str(first["estimator_label"]),
        len(cells),
        len(points),
        int(points["holds"].sum()),
        {str(s): int(n) for s, n in cells.loc[~cells["tested"], "status"].value_counts().items()},
        setting,
        dict(_reach(points, setting, brought)) if setting is not None and points["holds"].any() else {},
        tuple(_breaks(tested, brought, source.thresholds.faithful)),
        _hidden(source, tested),
    )


def _setting(source: Source, tested: DataFrame, points: DataFrame, brought: list[str]) -> Setting:
    """The setting to take: it holds at the most places beyond those where it fails; of equals, it is the cheapest one,
    and then the one with the smallest error.

    Where none holds anywhere it is the one whose largest error is the smallest.
    """
    ranked = []
    for values, here in _by_setting(points, brought):
        rows = _at(tested, dict(zip(brought, values, strict=True)))
        holds = int(here["holds"].sum())
        first = len(here) - 2 * holds if points["holds"].any() else float(rows["error"].max())
        ranked.append(((first, float(here["work"].mean()), float(rows["error"].max())), values, here, rows))
    _, values, here, rows = min(ranked, key=lambda entry: entry[0])
    seeds = rows.groupby(list(POINT), dropna=False)[SEED].nunique()
    varied = tuple(name for name in POINT if name not in brought and here[name].nunique(dropna=False) > 1)
    return Setting(
        {name: _plain(value) for name, value in zip(brought, values, strict=True)},
        len(here),
        int(here["holds"].sum()),
        varied,
        tuple({name: _plain(row[name]) for name in varied} for row in here[~here["holds"]].to_dict("records")),
        {int(n): int(places) for n, places in seeds.value_counts().sort_index(ascending=False).items()},
        _worst(rows),
        (float(here["work"].min()), float(here["work"].max())),
        _times(source, here, brought),
    )


def _by_setting(points: DataFrame, brought: list[str]) -> Iterable[tuple[tuple[Hashable, ...], DataFrame]]:
    if not brought:
        return [((), points)]
    return [
        (key if isinstance(key, tuple) else (key,), here)
        for key, here in points.groupby(brought, dropna=False, sort=True)
    ]


def _at(rows: DataFrame, values: dict[str, Hashable]) -> DataFrame:
    keep = np.ones(len(rows), bool)
    for name, value in values.items():
        keep &= (rows[name] == value).to_numpy() if value == value else rows[name].isna().to_numpy()
    return rows[keep]


def _worst(rows: DataFrame) -> Worst:
    row = rows.loc[rows["error"].idxmax()]
    at = {name: _plain(row[name]) for name in COORDINATES if row[name] is not None and row[name] == row[name]}
    lowest = float(rows["cosine_min"].min()) if rows["cosine_min"].notna().any() else np.nan
    return Worst(str(row["cell"]), float(row["error"]), lowest, str(row["error_of"]), Status(row["status"]), at)


def _times(source: Source, here: DataFrame, brought: list[str]) -> tuple[float, float] | None:
    """What a setting costs over what the reference costs at the same place."""
    shared = [name for name in POINT if name not in brought]
    cells = source.judged
    same = (cells["role"] == Role.REFERENCE) & cells["work"].notna()
    same &= cells["system_label"] == here["system_label"].iloc[0]
    reference = cells.loc[same].drop_duplicates(shared)[[*shared, "work"]]
    # a merge takes two missing values for equal
    there = here[[*shared, "work"]].merge(reference, on=shared, suffixes=("", "_reference"))
    if there.empty:
        return None
    times = there["work"] / there["work_reference"]
    return float(times.min()), float(times.max())


def _reach(points: DataFrame, setting: Setting, brought: list[str]) -> Iterable[tuple[str, tuple[Step, ...]]]:
    for name in brought:
        others: dict[str, Hashable] = {n: v for n, v in setting.values.items() if n != name}
        held = _at(points, others).groupby(name)["holds"].agg(["sum", "count"])
        if len(held) > 1:
            steps = zip(held.index, held["sum"], held["count"], strict=True)
            yield name, tuple(Step(_plain(value), int(holds), int(n)) for value, holds, n in steps)


def _breaks(tested: DataFrame, brought: list[str], faithful: float) -> list[Break]:
    wrong = tested[~(tested["error"] <= faithful)]
    words = wrong["cause"].where(wrong["cause"].notna() & (wrong["cause"] != ""), WITHOUT_CAUSE)
    words = words.where(wrong["status"] == Status.SETTLED, wrong["status"])
    told = []
    for word, rows in wrong.groupby(words):
        values = {name: tuple(map(_plain, sorted(rows[name].dropna().unique()))) for name in brought}
        told.append(Break(str(word), len(rows), values))
    return sorted(told, key=lambda b: (-b.cells, b.word))


def _hidden(source: Source, tested: DataFrame) -> Hidden | None:
    settled = tested[tested["status"] == Status.SETTLED]
    limit = source.thresholds.faithful
    hiding = settled[(settled["rel_error"] <= limit) & (settled["error"] > limit)]
    if hiding.empty:
        return None
    param = str(hiding["error_of"].mode().iloc[0])
    rows = source.params[(source.params["param"] == param) & source.params["cell"].isin(hiding["cell"])]
    rows = rows[~(rows["rel_error"] <= limit)]
    lowest = rows.sort_values("cosine", kind="stable").iloc[0]  # a cosine that is undefined comes last
    return Hidden(
        len(hiding), len(settled), float(hiding["cosine"].min()), param, float(lowest["cosine"]), str(lowest["cell"])
    )


def _plain(value: object) -> object:
    """A value of a table as Python has it; a whole number without a point."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15 else plain
