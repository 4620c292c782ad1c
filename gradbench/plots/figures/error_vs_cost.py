"""What a small error costs: error of the worst parameter against the evaluations that an estimate needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gradbench.plots import hold, look, titles
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradbench.plots.sources import Tables

FLOOR = 1e-8  # smaller errors are drawn here
# the settings of a rule: T1, T2 and beta
FREE = tuple(name for name, c in COORDINATES.items() if c.shared and c.type is not str)


@look.themed
def draw_error_vs_cost(cells: DataFrame) -> Figure | None:
    """Down and to the left is better. A line is the front of a rule: settings that are better than all cheaper ones."""
    cells = hold.estimates(cells)
    settings = {place: _settings(rows) for place, rows in hold.by_system(cells, FREE).items()}
    systems = {place: here for place, here in settings.items() if not here.empty}
    if not systems:
        return None
    columns = min(3, len(systems))
    lines = -(-len(systems) // columns)
    figure = look.figure(1.0 + 3.1 * lines, wide=columns > 1)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    styles = look.styles(cells)
    drawn = {label for here in systems.values() for label in here["estimator_label"]}
    styles = {label: style for label, style in styles.items() if label in drawn}
    for ax, (place, here) in zip(axes, systems.items(), strict=False):
        for label, style in styles.items():
            rows = here[here["estimator_label"] == label]
            look.points(ax, rows, "cost", "error", style, alpha=0.35)
            front = _front(rows[rows["status"] == Status.SETTLED])
            if len(front):
                line = {"color": style.colour, "linestyle": style.line}
                ax.step(front["cost"], front["error"], where="post", linewidth=1.5, **line)
        look.followed(ax, cosine=False)
        said = titles.of_cost(place.system, here) if len(systems) > 1 else ""
        look.panel_title(ax, said, place.point, (look.room(figure) - 60) / columns - 10)
        ax.set(xscale="log", yscale="log", xlabel="cost of an estimate (evaluations\nof $F$, $Jv$ and $J^Ta$)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for i, ax in enumerate(axes):
        ax.set_ylabel("" if i % columns else f"$1-$ {METRICS['cosine_min'].words}")
        ax.set_visible(i < len(systems))
    look.legend(figure, styles, [look.followed_key()])
    look.title(figure, titles.of_costs({place.system: here for place, here in systems.items()}))
    look.caption(
        figure,
        [
            "Error of the worst parameter of the worst seed against what one estimate costs by itself, free phase",
            f"included and reference excluded, at every T1, T2 and beta. Errors below {FLOOR:g} are drawn there.",
            "A parameter whose estimate is zero has error 1. One whose reference is zero, not finite or below the",
            "floor of liveness, or whose estimate is not finite, has no cosine and is left out; so is a setting",
            "without any.",
        ],
    )
    return figure


def _settings(rows: DataFrame) -> DataFrame:
    """One row a setting: its worst seed. A seed that is not settled is worse than any that is."""
    rows = rows.assign(cost=rows["n_force"] + rows["n_jvp"] + rows["n_vjp"], unsettled=rows["status"] != Status.SETTLED)
    worst = rows.sort_values("cosine_min").sort_values("unsettled", ascending=False, kind="stable")
    worst = worst.drop_duplicates(["estimator_label", *FREE])
    worst = worst[worst["cosine_min"].notna() & worst["cost"].notna()]
    return worst.assign(error=(1 - worst["cosine_min"]).clip(lower=FLOOR))


def _front(rows: DataFrame) -> DataFrame:
    """Settings with a smaller error than every cheaper one."""
    rows = rows.sort_values(["cost", "error"])
    return rows[rows["error"] < rows["error"].cummin().shift(fill_value=float("inf"))]


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "error_vs_cost": lambda tables: draw_error_vs_cost(tables.cells)
}
