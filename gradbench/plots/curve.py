"""A training as curves: how well it does, and how faithful its gradients are on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradbench.plots import look
from gradbench.plots.scale import FLOOR, FLOOR_WORDS, SPACED, floored, show_cosines
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

ESCAPE = 100  # largest over smallest score from which on the axis is logarithmic; a linear one shows the largest alone
SCORES = {"masked_mse": "masked MSE", "accuracy": "accuracy", "cost": "mean cost of an example"}


@look.themed
def draw_curve(log: DataFrame, config: dict[str, Any], env: dict[str, Any]) -> Figure:
    """Score and fidelity against step: thin lines are seeds, the thick one is their median, hollow is not settled."""
    score, faithful = log["score"].iloc[0], log["cosine_min"].notna().any()
    figure = Figure(figsize=(look.WIDTH, 3.4), layout="constrained")
    left, *right = figure.subplots(1, 2 if faithful else 1, squeeze=False)[0]
    colour = look.colour(config["estimator"][0])
    looks: dict[str, tuple[str, Any]] = {"train": (look.GREY, "--"), "test": (colour, "-")}
    if log["test"].isna().all():  # a system that holds its examples, all of them to train on
        looks = {"train": (colour, "-")}
    for column, (shade, dashes) in looks.items():
        _lines(left, log, column, shade, dashes)
    left.set(xlabel="step", ylabel=SCORES[score])
    entries = [Line2D([], [], color=c, linestyle=dashes, linewidth=2, label=n) for n, (c, dashes) in looks.items()]
    if score != "accuracy":
        values = log[list(looks)].stack()
        if values.max() > ESCAPE * values.min() > 0:  # a seed that diverged
            left.set_yscale("log")
        elif values.min() >= 0:
            left.set_ylim(bottom=0)
    for ax in right:
        shown = log[log["status"].notna()]
        drawn = [_fidelity(ax, shown, "cosine", look.GREY, "s"), _fidelity(ax, shown, "cosine_min", colour, "o")]
        show_cosines([ax], [v for values in drawn for v in values])
        ax.set(xlabel="step", ylabel=f"cosine to BPTT, fixed batch\n{SPACED}")
        entries += [
            Line2D([], [], color=look.GREY, marker="s", markersize=4, linewidth=2, label="whole gradient"),
            Line2D([], [], color=colour, marker="o", markersize=4, linewidth=2, label="smallest over parameters"),
            Line2D(
                [],
                [],
                color=look.GREY,
                marker="o",
                markersize=5,
                linestyle="",
                markerfacecolor="none",
                label="not settled",
            ),
        ]
    for ax in (left, *right):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(handles=entries, loc="outside upper center", ncols=5, frameon=False)
    code = f"commit {env['commit'][:10]}" if env.get("commit") else "no commit"
    skipped = int(log.groupby("seed")["skipped"].max().sum())
    said = [
        f"{config['system'][0]} by {config['estimator'][0]}, {look.count(len(config['seeds']), 'seed')}:",
        "thin a seed, thick their median." if len(config["seeds"]) > 1 else "the lines are its own.",
    ]
    said += [f"{look.count(skipped, 'step')} skipped, whose gradient was not finite."] if skipped else []
    said += ["Shaded: negative."] if faithful else []
    said += [f"{FLOOR_WORDS.capitalize()}."] if (log["cosine"] > 1 - FLOOR).any() else []
    look.caption(figure, [*said, f"Training {config['name']}, {code}{' with changes' if env.get('dirty') else ''}."])
    return figure


def _lines(ax: Axes, log: DataFrame, column: str, colour: str, dashes: str) -> None:
    table = log.pivot(index="step", columns="seed", values=column).dropna(how="all")
    for seed in table:
        ax.plot(table.index, table[seed], color=colour, linestyle=dashes, linewidth=0.7, alpha=0.5)
    marker = "o" if len(table) == 1 else ""  # a line of one point is not seen
    ax.plot(table.index, table.median(axis=1), color=colour, linestyle=dashes, linewidth=2, marker=marker)


def _fidelity(ax: Axes, log: DataFrame, column: str, colour: str, marker: str) -> list[float]:
    """Draw lines and markers of one cosine; the values that were drawn."""
    log = log.assign(**{column: floored(log[column])})
    _lines(ax, log, column, colour, "-")
    for settled, rows in log.groupby(log["status"] == Status.SETTLED):
        faces = colour if settled else "none"
        ax.scatter(rows["step"], rows[column], marker=marker, s=16, facecolors=faces, edgecolors=colour, zorder=3)
    return [float(v) for v in log[column]]
