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

    from pandas import DataFrame, Series

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
class Failure:
    """A place where a setting does not hold."""

    at: dict[str, object]  # by the coordinates in which the places differ
    worst: Worst


@dataclass(frozen=True)
class Cost:
    """What a setting costs at the places with one T1, in evaluations of the force: the least and the most."""

    T1: object  # None: a forward pass, or a state that was given
    work: tuple[float, float]
    reference: tuple[float, float] | None  # of BPTT at these places; None: it was not run there
    times: tuple[float, float] | None  # the first over the second, place by place


@dataclass(frozen=True)
class Setting:
    """A setting of a rule over all places where it is tested."""

    values: dict[str, object]  # of the coordinates that rules bring; empty where the rule has none
    places: int
    holds: int
    varied: tuple[str, ...]  # the coordinates in which the places differ
    fails: tuple[Failure, ...]
    within: float  # the largest error at the places where it holds; NaN where it holds nowhere
    cosine: float  # the smallest of a parameter at the places where it holds; NaN where it holds nowhere
    seeds: dict[int, int]  # how many places have so many seeds, the most seeds first
    often: dict[str, tuple[object, ...]]  # the values of `varied` at the places with the most seeds
    worst: Worst
    costs: tuple[Cost, ...]  # by T1, ascending

    @property
    def work(self) -> tuple[float, float]:
        """Evaluations of the force, over the places."""
        return min(c.work[0] for c in self.costs), max(c.work[1] for c in self.costs)

    @property
    def times(self) -> tuple[float, float] | None:
        """The same over those of BPTT at this place; None where it was not run."""
        there = [c.times for c in self.costs if c.times]
        return (min(low for low, _ in there), max(high for _, high in there)) if there else None


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
    cell: str  # that has this cosine
    param: str  # that most often has the largest error
    share: float  # its share of |g|^2, g the reference: the median over these cells
    leader: str  # the parameter that most often has the largest share
    leads: float  # its share, the median


@dataclass(frozen=True)
class Answer:
    """What a run says of one rule on one system."""

    system: str  # labels
    rule: str
    cells: int
    places: int  # that are settled, at whatever setting
    tested: int  # pairs of a setting and a place
    holds: int  # of these
    untested: dict[str, int]  # cells by status at places where not every seed is settled
    setting: Setting | None  # the one to take; of a rule that holds nowhere, that of the rule to take; None: untested
    reach: dict[str, tuple[Step, ...]]  # how far one may go from the setting, by coordinate
    breaks: tuple[Break, ...]  # the most frequent first
    silent: tuple[Break, ...]  # statuses of cells at places where a seed is not settled
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
    for system, of_system in source.rules[READ].groupby("system_label", sort=False):
        by_rule = [cells for _, cells in of_system.groupby("estimator_label", sort=False)]
        told = sorted((_answer(source, cells) for cells in by_rule), key=_rank)
        if told[0].trusted and told[0].setting is not None:
            # a rule that holds nowhere is told where the rule to take is told, so that the two compare
            same = told[0].setting.values
            told = sorted((_answer(source, cells, same) for cells in by_rule), key=_rank)
        by_system[str(system)] = told
    return by_system


def _rank(answer: Answer) -> tuple[object, ...]:
    """The rule that holds at the most places, less those where it fails, comes first; of equals, the cheaper one.

    Of those that hold nowhere, the one that was tried at the most places comes first.
    """
    if answer.setting is None:
        return (2,)
    s = answer.setting
    if not answer.trusted:
        return (1, -answer.places, _number(s.worst.error))
    return (0, s.places - 2 * s.holds, s.work[0], answer.rule)


def _number(value: float) -> float:
    """A number that sorts; NaN is worse than all."""
    return value if value == value else np.inf


def _answer(source: Source, cells: DataFrame, same: dict[str, object] | None = None) -> Answer:
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
    setting = _setting(source, tested, points, brought, same or {}) if len(tested) else None
    shared = [name for name in POINT if name not in brought]
    return Answer(
        str(first["system_label"]),
        str(first["estimator_label"]),
        len(cells),
        len(points.drop_duplicates(shared)),
        len(points),
        int(points["holds"].sum()),
        {str(s): int(n) for s, n in cells.loc[~cells["tested"], "status"].value_counts().items()},
        setting,
        dict(_reach(points, setting, brought)) if setting is not None and points["holds"].any() else {},
        tuple(_breaks(tested, brought, source.thresholds.faithful)),
        tuple(_silent(cells[~cells["tested"]], tested, shared)),
        _hidden(source, tested),
    )


def _setting(
    source: Source, tested: DataFrame, points: DataFrame, brought: list[str], same: dict[str, object]
) -> Setting:
    """The setting to take: it holds at the most places, less those where it fails; of equals, it is the cheapest one,
    and then the one with the smallest error.

    Where none holds anywhere it is the one with the values `same`, where it was tested there, and else the one whose
    largest error is the smallest.
    """
    ranked = []
    for values, here in _by_setting(points, brought):
        rows = _at(tested, dict(zip(brought, values, strict=True)))
        holds = int(here["holds"].sum())
        if points["holds"].any():
            first: tuple[float, ...] = (len(here) - 2 * holds,)
        else:
            differ = sum(same.get(name, _plain(v)) != _plain(v) for name, v in zip(brought, values, strict=True))
            first = (differ > 0, float(rows["error"].max()))
        ranked.append(((first, float(here["work"].mean()), float(rows["error"].max())), values, here, rows))
    _, values, here, rows = min(ranked, key=lambda entry: entry[0])
    seeds = rows.groupby(list(POINT), dropna=False)[SEED].nunique()
    varied = tuple(name for name in POINT if name not in brought and here[name].nunique(dropna=False) > 1)
    often = seeds[seeds == seeds.max()].reset_index()
    return Setting(
        {name: _plain(value) for name, value in zip(brought, values, strict=True)},
        len(here),
        int(here["holds"].sum()),
        varied,
        tuple(_failures(rows[~rows["holds"]], varied)),
        float(rows.loc[rows["holds"], "error"].max()),
        float(rows.loc[rows["holds"], "cosine_min"].min()),
        {int(n): int(places) for n, places in seeds.value_counts().sort_index(ascending=False).items()},
        {name: tuple(map(_plain, sorted(often[name].dropna().unique()))) for name in varied},
        _worst(rows),
        tuple(_costs(source, here, brought)),
    )


def _failures(rows: DataFrame, varied: tuple[str, ...]) -> Iterable[Failure]:
    for _, place in rows.groupby(list(POINT), dropna=False, sort=False):
        yield Failure({name: _plain(place[name].iloc[0]) for name in varied}, _worst(place))


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


def _costs(source: Source, here: DataFrame, brought: list[str]) -> Iterable[Cost]:
    """What a setting costs, and what BPTT costs at the same places."""
    shared = [name for name in POINT if name not in brought]
    cells = source.judged
    same = (cells["role"] == Role.REFERENCE) & cells["work"].notna()
    same &= cells["system_label"] == here["system_label"].iloc[0]
    reference = cells.loc[same].drop_duplicates(shared)[[*shared, "work"]]
    # a merge takes two missing values for equal
    there = here[[*shared, "work"]].merge(reference, on=shared, how="left", suffixes=("", "_reference"))
    there["times"] = there["work"] / there["work_reference"]
    for T1, rows in there.groupby("T1", sort=True, dropna=False):
        run = rows["times"].notna().any()
        yield Cost(
            _plain(T1) if T1 == T1 else None,
            _ends(rows["work"]),
            _ends(rows["work_reference"]) if run else None,
            _ends(rows["times"]) if run else None,
        )


def _ends(numbers: Series[float]) -> tuple[float, float]:
    return float(numbers.min()), float(numbers.max())


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


def _silent(untested: DataFrame, tested: DataFrame, shared: list[str]) -> list[Break]:
    """By status the cells at places that are not tested, with the values of coordinates at which nothing is tested."""
    told = []
    for status, rows in untested[untested["status"] != Status.SETTLED].groupby("status"):
        values = {}
        for name in shared:
            there = set(rows[name].dropna().unique()) - set(tested[name].dropna().unique())
            values[name] = tuple(map(_plain, sorted(there)))
        told.append(Break(str(status), len(rows), values))
    return sorted(told, key=lambda b: (-b.cells, b.word))


def _hidden(source: Source, tested: DataFrame) -> Hidden | None:
    settled = tested[tested["status"] == Status.SETTLED]
    limit = source.thresholds.faithful
    hiding = settled[(settled["rel_error"] <= limit) & (settled["error"] > limit)]
    if hiding.empty:
        return None
    param = str(hiding["error_of"].mode().iloc[0])
    params = source.params[source.params["cell"].isin(hiding["cell"])]
    squares = params["reference_norm"].fillna(0) ** 2
    params = params.assign(share=squares / squares.groupby(params["cell"]).transform("sum"))
    leaders = params.sort_values("share", kind="stable").drop_duplicates("cell", keep="last")
    leader = str(leaders["param"].mode().iloc[0])
    shares = params.groupby("param")["share"].median()
    lowest = hiding.sort_values("cosine", kind="stable").iloc[0]
    return Hidden(
        len(hiding),
        len(settled),
        float(lowest["cosine"]),
        str(lowest["cell"]),
        param,
        float(shares[param]),
        leader,
        float(shares[leader]),
    )


def _plain(value: object) -> object:
    """A value of a table as Python has it; a whole number without a point."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15 else plain
