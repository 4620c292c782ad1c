"""What a wanted error costs: error of the worst parameter against the evaluations that an estimate needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gradbench.plots import hold, look
from gradbench.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame

FLOOR = 1e-8  # errors below are drawn here
FREE = ("T1", "T2", "beta")


@look.themed
def error_vs_cost(cells: DataFrame) -> Figure | None:
    """Down and to the left is better; a line is the front of a rule: what no cheaper setting of it reaches."""
    cells = hold.estimates(cells)
    settings = {title: _settings(own) for title, own in hold.by_system(cells, FREE).items()}
    systems = {title: own for title, own in settings.items() if not own.empty}
    if not systems:
        return None
    columns = min(3, len(systems))
    lines = -(-len(systems) // columns)
    figure = Figure(figsize=(look.WIDTH, 1.0 + 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    styles = look.styles(cells)
    drawn = {label for own in systems.values() for label in own["estimator_label"]}
    styles = {label: style for label, style in styles.items() if label in drawn}
    for ax, (title, own) in zip(axes, systems.items(), strict=False):
        for label, style in styles.items():
            rows = own[own["estimator_label"] == label]
            look.points(ax, rows, "cost", "error", style, alpha=0.35)
            front = _front(rows[rows["status"] == Status.SETTLED])
            if len(front):
                ax.step(front["cost"], front["error"], where="post", color=style.colour, linewidth=1.5)
        system, _, point = title.rpartition("at ")
        ax.set_title(f"{hold.lines(system, 36)}\nat {point}", loc="left")
        ax.set(xscale="log", yscale="log", xlabel="evaluations of F, $Jv$ and $J^Ta$")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for i, ax in enumerate(axes):
        ax.set_ylabel("" if i % columns else "1 $-$ smallest cosine")
        ax.set_visible(i < len(systems))
    look.legend(figure, styles)
    look.caption(
        figure,
        [
            "Error of the worst parameter of the worst seed against what one estimate costs by itself, free phase",
            f"included and reference excluded, at every T1, T2 and beta. Errors below {FLOOR:g} are drawn there.",
        ],
    )
    return figure


def _settings(own: DataFrame) -> DataFrame:
    """One row a setting: the worst seed, settled where all are."""
    own = own.assign(cost=own["n_force"] + own["n_jvp"] + own["n_vjp"], unsettled=own["status"] != Status.SETTLED)
    worst = own.sort_values("cosine_min").sort_values("unsettled", ascending=False, kind="stable")
    worst = worst.drop_duplicates(["estimator_label", *FREE])
    worst = worst[worst["cosine_min"].notna() & worst["cost"].notna()]
    return worst.assign(error=(1 - worst["cosine_min"]).clip(lower=FLOOR))


def _front(rows: DataFrame) -> DataFrame:
    """Settings that no cheaper one equals."""
    rows = rows.sort_values(["cost", "error"])
    return rows[rows["error"] < rows["error"].cummin().shift(fill_value=float("inf"))]
