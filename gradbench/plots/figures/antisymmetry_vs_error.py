"""What asymmetry costs: antisymmetry of the Jacobian against the error of the worst parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from gradbench.plots import hold, look
from gradbench.vocabulary.notation import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pandas import DataFrame

    from gradbench.plots.sources import Tables

FLOOR = 1e-10  # smaller errors are drawn here; AEP in float64 reaches 1e-16


@look.themed
def draw_antisymmetry_vs_error(cells: DataFrame) -> Figure | None:
    """Naive EP agrees with BPTT at the left edge only; a rule that corrects for asymmetry stays low everywhere."""
    cells = hold.estimates(cells)
    styles = look.styles(cells)
    cells, left_out = hold.main_forms(cells)
    cells = pd.concat(
        [_deep(hold.one_dtype(rows)) for _, rows in cells.groupby(["system_label", "s", "damp"])] or [cells]
    )
    absent = cells["cosine_min"].isna() | cells["antisymmetry"].isna()
    shown = cells[~absent]
    if shown.empty:
        return None
    shown = shown.assign(error=(1 - shown["cosine_min"]).clip(lower=FLOOR))
    figure = Figure(figsize=(look.WIDTH * 0.75, 4.0), layout="constrained")
    ax = figure.subplots()
    styles = {label: style for label, style in styles.items() if label in set(shown["estimator_label"])}
    for label, style in styles.items():
        look.points(ax, shown[shown["estimator_label"] == label], "antisymmetry", "error", style, alpha=0.8)
    ax.set(yscale="log", xlabel=METRICS["antisymmetry"].axis, ylabel=f"1 $-$ {METRICS['cosine_min'].axis}")
    look.legend(figure, styles, lines=False)
    middle = shown.groupby("system_label")["antisymmetry"].median().sort_values()
    look.caption(
        figure,
        [
            f"Error of the worst parameter against antisymmetry: {len(shown)} cells, each s and damping at its",
            f"deepest T2 and the nudge nearest {hold.USUAL_BETA}, any T1. Errors below {FLOOR:g} are drawn there.",
            *look.without(cells[absent]),
            f"Median antisymmetry: {', '.join(f'{system} {value:.2g}' for system, value in middle.items())}.",
            *left_out,
        ],
    )
    return figure


def _deep(rows: DataFrame) -> DataFrame:
    """The cells with the deepest T2 and the usual beta, where truncation and nudge do not hide the asymmetry."""
    return hold.at(rows, {key: value for key, value in hold.point(rows).items() if key in ("T2", "beta")})


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "antisymmetry_vs_error": lambda tables: draw_antisymmetry_vs_error(tables.cells)
}
