"""A training as curves: how well it does, and how faithful its gradients are on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradbench.plots import look
from gradbench.plots.scale import FLOOR, FLOOR_WORDS, SHADED, SPACED, floored, show_cosines
from gradbench.plots.wording import cosine, number
from gradbench.tables.text import capital
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

ESCAPE = 100  # largest over smallest score from which on the axis is logarithmic; a linear one shows the largest alone
SCORES = {"masked_mse": "masked MSE", "accuracy": "accuracy", "cost": "mean cost of an example"}


@look.themed
def draw_curve(log: DataFrame, config: dict[str, Any], env: dict[str, Any]) -> Figure:
    """Score and fidelity against step: thin lines are seeds, the thick one is their median, hollow is not settled."""
    score, faithful = log["score"].iloc[0], log["cosine_min"].notna().any()
    figure = look.figure(3.4, wide=faithful)
    left, *right = figure.subplots(1, 2 if faithful else 1, squeeze=False)[0]
    colour = look.colour(config["estimator"][0])
    looks: dict[str, tuple[str, Any]] = {"train": (look.GREY, "--"), "test": (colour, "-")}
    if log["test"].isna().all():  # a system that holds its examples, all of them to train on
        looks = {"train": (colour, "-")}
    for column, (shade, dashes) in looks.items():
        _lines(left, log, column, shade, dashes)
    left.set(xlabel="step of training", ylabel=SCORES[score])
    entries = [Line2D([], [], color=c, linestyle=dashes, linewidth=2, label=n) for n, (c, dashes) in looks.items()]
    if score != "accuracy":
        values = log[list(looks)].stack()
        if values.max() > ESCAPE * values.min() > 0:  # a seed that diverged
            left.set_yscale("log")
        elif values.min() >= 0:
            left.set_ylim(bottom=0)
    for ax in right:
        shown = log[log["status"].notna()]
        drawn = [
            _fidelity(ax, shown, "cosine", look.GREY, "s", "--"),
            _fidelity(ax, shown, "cosine_min", colour, "o", "-"),
        ]
        show_cosines([ax], [v for values in drawn for v in values])
        look.followed(ax)
        ax.set(xlabel="step of training", ylabel=f"cosine to BPTT, fixed batch\n{SPACED}")
        entries += [
            Line2D(
                [], [], color=look.GREY, marker="s", markersize=4, linewidth=2, linestyle="--", label="whole gradient"
            ),
            Line2D([], [], color=colour, marker="o", markersize=4, linewidth=2, label="smallest over parameters"),
            Line2D(
                [],
                [],
                color=look.GREY,
                marker="o",
                markersize=5,
                linestyle="",
                markerfacecolor="none",
                label="not settled: no evidence",
            ),
            look.followed_key(),
        ]
    for ax in (left, *right):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    look.strip(figure, entries, 3)
    reading = [advance(log), *([fidelity(log)] if faithful else [])]
    for ax, sentence in zip((left, *right), reading, strict=True):
        ax.set_title(look.fit(capital(sentence), look.TEXT, look.room(figure) / len(reading) - 60))
    look.title(figure, f"{config['system'][0]} trained by {look.words(config['estimator'][0])}: {'; '.join(reading)}")
    code = f"commit {env['commit'][:10]}" if env.get("commit") else "no commit"
    skipped = int(log.groupby("seed")["skipped"].max().sum())
    said = [
        f"{config['system'][0]} by {config['estimator'][0]}, {look.count(len(config['seeds']), 'seed')}:",
        "thin a seed, thick their median." if len(config["seeds"]) > 1 else "the lines are its own.",
    ]
    said += [f"{look.count(skipped, 'step')} skipped, whose gradient was not finite."] if skipped else []
    said += [SHADED] if faithful else []
    said += [f"{FLOOR_WORDS.capitalize()}."] if (log["cosine"] > 1 - FLOOR).any() else []
    look.caption(figure, [*said, f"Training {config['name']}, {code}{' with changes' if env.get('dirty') else ''}."])
    return figure


def advance(log: DataFrame) -> str:
    """How the score goes from the first step to the last, in the median seed; of test where there is any."""
    column = "train" if log["test"].isna().all() else "test"
    known = log[["step", "seed", column]].dropna()
    words = f"{column} {SCORES[log['score'].iloc[0]]}"
    if known.empty:
        return f"{words} is finite in no seed"
    median = known.groupby("step")[column].median()
    lost = log["seed"].nunique() - known[known["step"] == known["step"].max()]["seed"].nunique()
    first, last = (number(float(median.iloc[i])) for i in (0, -1))
    if median.index[-1] < log["step"].max():
        return f"{words} is not finite in any seed at the end"
    moved = f"stays at {last}" if first == last else f"goes from {first} to {last}"
    return f"{words} {moved}" + (f", without {look.count(lost, 'seed')} that diverged" if lost else "")


def fidelity(log: DataFrame) -> str:
    """How faithful the gradients are where that was measured last: the smallest cosines of the settled seeds."""
    measured = log[log["status"].notna()]
    last = measured[measured["step"] == measured["step"].max()]
    seen = last[(last["status"] == Status.SETTLED) & last["cosine_min"].notna()]["cosine_min"]
    if seen.empty:
        return "at the end nothing is settled, so that no cosine is evidence"
    ends = " to ".join(dict.fromkeys([cosine(float(seen.min())), cosine(float(seen.max()))]))
    missing = f" in {len(seen)} of {len(last)} seeds" if len(seen) < len(last) else ""
    return f"the smallest cosine ends at {ends}{missing}"


def _lines(ax: Axes, log: DataFrame, column: str, colour: str, dashes: str) -> None:
    table = log.pivot(index="step", columns="seed", values=column).dropna(how="all")
    for seed in table:
        ax.plot(table.index, table[seed], color=colour, linestyle=dashes, linewidth=0.7, alpha=0.5)
    marker = "o" if len(table) == 1 else ""  # a line of one point is not seen
    ax.plot(table.index, table.median(axis=1), color=colour, linestyle=dashes, linewidth=2, marker=marker)


def _fidelity(ax: Axes, log: DataFrame, column: str, colour: str, marker: str, dashes: str) -> list[float]:
    """Draw lines and markers of one cosine; the values that were drawn."""
    log = log.assign(**{column: floored(log[column])})
    _lines(ax, log, column, colour, dashes)
    for settled, rows in log.groupby(log["status"] == Status.SETTLED):
        faces = colour if settled else "none"
        ax.scatter(rows["step"], rows[column], marker=marker, s=16, facecolors=faces, edgecolors=colour, zorder=3)
    return [float(v) for v in log[column]]
