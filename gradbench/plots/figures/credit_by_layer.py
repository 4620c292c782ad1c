"""In which layer credit goes wrong: its cosine with the credit of the reference, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from gradbench.plots import bands, hold, look, titles
from gradbench.plots.grounds import FOLLOW
from gradbench.plots.scale import SPACED, floored, limits_of, show_cosines
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

SHIFT, SPREAD = 0.09, 0.7  # between the markers of two rules in a block, and of all, of the distance of blocks
CREDITS = {"cosine": "displacement", "cosine_error": "prediction error"}
MEANT = {
    "cosine": "nudged block less free block",
    "cosine_error": "nudged block less what the nudged block below predicts",
}
MARKS = {"cosine": "", "cosine_error": " e"}  # after the name of a block, in the matrix of many rules


@look.themed
def draw_credit_by_layer(cells: DataFrame, blocks: DataFrame) -> Figure | None:
    """Settled cells of systems with three or more blocks, at one point each: a marker a seed, lines at the worst."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    layered = blocks.groupby("cell")["block"].transform("size") >= 3
    cells = cells[cells["cell"].isin(blocks[layered]["cell"]) & (cells["status"] == Status.SETTLED)]
    if cells.empty:
        return None
    keys = ["cell", "estimator_label", "seed", "status"]
    rows = {place: here[keys].merge(blocks, on="cell") for place, here in hold.by_system(cells).items()}
    shown = [column for column in CREDITS if any(here[column].notna().any() for here in rows.values())]
    if not shown:
        return None
    drawn = pd.concat(rows.values())
    headline = titles.of_credits({place.system: here for place, here in rows.items()}, CREDITS)
    if bands.crowded(drawn["estimator_label"]):
        return _matrix(cells, rows, headline)
    rows, alike = _different(rows)
    said = {
        place: look.row_title(titles.of_credit(place.system, here, CREDITS) if len(rows) > 1 else "", place.point)
        for place, here in rows.items()
    }
    heights = [2.05 + look.LINE * len(text.split("\n")) for text in said.values()]
    figure = look.figure(0.9 + sum(heights), wide=len(shown) > 1)
    strips = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels: list[Axes] = []
    titled: set[str] = set()
    for strip, (place, here) in zip(strips, rows.items(), strict=True):
        look.head(strip, said[place])
        has = [column for column in CREDITS if here[column].notna().any()]
        for ax, column in zip(strip.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
            ax.set_visible(column in has)
            if column in has:
                _panel(ax, here, column, styles)
                ax.set_title("" if column in titled else f"credit by {CREDITS[column]}:\n{MEANT[column]}")
                titled.add(column)
                ax.set_xlabel("block of the state, from the input on" if place == list(rows)[-1] else "")
                ax.set_ylabel(f"cosine to BPTT\n{SPACED}" if column == has[0] else "")
                ax.tick_params(labelleft=column == has[0])
                panels.append(ax)
    show_cosines(panels, drawn[list(CREDITS)])
    named = drawn.dropna(subset=list(CREDITS), how="all")["estimator_label"].unique()
    look.legend(figure, {label: styles[label] for label in named}, [look.followed_key()], hollow=False)
    look.title(figure, headline)
    look.caption(
        figure,
        [
            "Cosine of the state credit with the reference's by layer, settled cells: a point a seed, lines at the",
            "worst. A row is measured at the setting in its title. Rules stand side by side. A fixed layer, as a",
            "clamped input, does not move and has no credit; no adjoint has a prediction error.",
            *([f"Counted and not drawn, as they show what a row above shows: {', '.join(alike)}."] if alike else []),
            *limits_of(drawn[list(CREDITS)]),
        ],
    )
    return figure


def _matrix(cells: DataFrame, rows: dict[hold.Place, DataFrame], headline: str) -> Figure:
    """The worst seed of many rules: a column a block, and for each credit that a system has."""
    kinds, here = bands.kinds(cells), {place.system: of for place, of in rows.items()}
    cosines: dict[bands.Place, float] = {}
    groups = []
    for system in (system for system in kinds if system in here):
        columns = []
        for credit, mark in MARKS.items():
            known = here[system].dropna(subset=[credit])
            known = known[~known["block"].isin(titles.without_credit(known, credit))]
            columns += [f"{block}{mark}" for block in known["block"].unique()]
            worst = known.groupby(["estimator_label", "block"])[credit].min()
            cosines |= {(rule, system, f"{block}{mark}"): float(of) for (rule, block), of in worst.items()}
        groups.append(bands.Group(system, kinds[system], tuple(columns)))
    figure = bands.of_cosines(cosines, groups, bands.SILENT)
    look.title(figure, headline)
    look.caption(
        figure,
        [
            "A field is the cosine of the state credit of a block with the reference's in the worst settled seed.",
            "Credit is the nudged block less the free one; in columns with an e it is the prediction error, the nudged",
            "block less what the nudged block below predicts. Blocks that do not move have no credit and no column.",
            bands.spacing(),
            bands.held_at(rows),
        ],
    )
    return figure


def _different(rows: dict[hold.Place, DataFrame]) -> tuple[dict[hold.Place, DataFrame], list[str]]:
    """The rows that show something else than those before them, and the systems of the others.

    Rows are alike where the same rules miss the same blocks by the same credits.
    """
    seen: list[object] = []
    different, alike = {}, []
    for place, here in rows.items():
        said = [titles.by_layer(here, column) for column in CREDITS]
        told = [{rule: p if p.verb != FOLLOW else FOLLOW for rule, p in of.items()} for of in said]
        if told in seen:
            alike.append(place.system)
        else:
            different[place] = here
            seen.append(told)
    return different, alike


def _panel(ax: Axes, here: DataFrame, column: str, styles: dict[str, look.Style]) -> None:
    names = list(here["block"].unique())
    none = titles.without_credit(here, column)
    look.followed(ax)
    here = here.dropna(subset=[column])
    here = here.assign(place=here["block"].map(names.index), **{column: floored(here[column])})
    here = here[~here["block"].isin(none)]
    drawn = {label: style for label, style in styles.items() if (here["estimator_label"] == label).any()}
    shift = min(SHIFT, SPREAD / max(1, len(drawn)))
    for i, (label, style) in enumerate(drawn.items()):
        rows = here[here["estimator_label"] == label]
        rows = rows.assign(place=rows["place"] + shift * (i - (len(drawn) - 1) / 2))
        look.line(ax, rows.groupby("place")[column].min(), style)
        look.points(ax, rows, "place", column, style)
    ax.set_xticks(range(len(names)), [f"{name}\nfixed" if name in none else name for name in names])
    ax.set_xlim(-0.4, len(names) - 0.6)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "credit_by_layer": lambda tables: draw_credit_by_layer(tables.cells, tables.blocks)
}
