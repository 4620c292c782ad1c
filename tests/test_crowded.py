"""Figures of a run with many rules: a page each, and every field of a matrix is the worst seed of its table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from PIL import Image

from gradbench import plots
from gradbench.estimators.base import Role
from gradbench.planning import registry
from gradbench.plots import bands, gallery, look
from gradbench.plots.figures.antisymmetry_vs_error import draw_antisymmetry_vs_error
from gradbench.plots.figures.cosine_sweeps import draw_cosine_sweep
from gradbench.plots.figures.credit_by_layer import draw_credit_by_layer
from gradbench.plots.figures.error_budget import FACES, HATCHES, draw_error_budget
from gradbench.plots.figures.error_vs_cost import draw_error_vs_cost
from gradbench.plots.figures.params import draw_params
from gradbench.plots.figures.residual_vs_cosine import draw_residual_vs_cosine
from gradbench.plots.scale import COLOURS, TOP, nines
from gradbench.plots.sources import Tables
from gradbench.tables.schema import BUDGETS, CELLS, PARAMS
from gradbench.vocabulary.coordinates import LATE

pytestmark = pytest.mark.filterwarnings("error")

NAMES = [name for name in registry.known_estimators() if registry.role(name) == Role.RULE]
RULES = [*NAMES, *(f"{name} k=1" for name in NAMES)][:20]
SYSTEMS = {"round": 0.0, "flat": 0.0, "skew": 0.1, "askew": 0.2, "idle": 0.3}  # with their antisymmetry
DEPTHS = (5, 20, 60)
PARAMETERS = {"round": ("W", "b"), "flat": ("W", "b"), "skew": ("W", "U", "b"), "askew": ("W",), "idle": ("W",)}
FEWER = ("askew", RULES[3])  # a rule that was not run on a system


def _cosine(*place: object) -> float:
    """A cosine that no other place shares, of every size from -0.2 to 1 - 1e-5."""
    part = (_mixed("/".join(map(str, place))) % 997) / 997
    return -0.2 + 0.9 * part if part < 0.3 else 1 - 10 ** (-5 * part)


def _mixed(text: str) -> int:
    """A number that is the same in every process, as `hash` is not."""
    return sum((i + 7) * ord(letter) for i, letter in enumerate(text)) * 31


def _rows() -> Iterator[tuple[dict, list[dict]]]:
    number = itertools.count()
    for system, rule, T2, beta, seed in itertools.product(SYSTEMS, RULES, DEPTHS, (0.02, 0.1), (0, 1)):
        if (system, rule) == FEWER:
            continue
        cell = f"{next(number):x}"
        of = {param: _cosine(system, rule, T2, beta, seed, param) for param in PARAMETERS[system]}
        name = rule.partition(" ")[0]
        row = dict.fromkeys(CELLS.names) | LATE | {"cell": cell, "problem": "p", "system": system}
        row |= {"system_label": f"{system} d=2", "estimator": name, "estimator_label": rule, "dtype": "float32"}
        row |= {"batch": 8, "eps": 0.2, "s": 1.0, "damp": 0.0, "T1": 100, "T2": T2, "beta": beta, "seed": seed}
        row |= {"status": "unsettled" if system == "idle" else "settled", "reference": "bptt", "residual": 1e-6}
        row |= {"cosine": of["W"], "cosine_mean": of["W"], "cosine_min": min(of.values()), "rel_error": 0.5}
        row |= {"n_force": T2 + len(rule), "n_jvp": 0, "n_vjp": 0, "antisymmetry": SYSTEMS[system] * (1 + 0.01 * seed)}
        row |= {"worst": "W", "cause": "asymmetry" if min(of.values()) < 0.99 else None, "cause_of": ""}
        params = [
            dict.fromkeys(PARAMS.names)
            | {"cell": cell, "param": param, "cosine": cosine, "reference_norm": 9.0 if param == "W" else 1.0}
            | {"rel_error": math.sqrt(2 * (1 - cosine)), "reason": ""}
            for param, cosine in of.items()
        ]
        yield row, params


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = list(_rows())
    cells = pd.DataFrame([row for row, _ in rows], columns=CELLS.names).astype({"cosine_attn": float})
    return cells, pd.DataFrame([param for _, params in rows for param in params])


Seen = dict[tuple[str, str, str], tuple[tuple[float, ...], str | None]]  # rule, system, column to face and hatch


def drawn(figure: Figure) -> Seen:
    """What a reader sees: rule, system and column to face and hatch, by the names beside a field and above it."""
    seen = {}
    for ax in figure.axes:
        labels = [label.get_text() for label in ax.get_yticklabels()]
        names: dict[float, dict[float, str]] = {}
        for text in ax.texts:
            x, y = text.get_position()
            names.setdefault(round(y, 6), {})[x] = text.get_text().replace("\n", "")
        if not labels or not names:
            continue
        columns, systems, _ = (of for _, of in sorted(names.items(), reverse=True))
        for fields in ax.collections:
            assert isinstance(fields, PolyCollection)
            faces = itertools.cycle(map(tuple, fields.get_facecolors()))
            for path, face in zip(fields.get_paths(), faces, strict=False):
                x, y = path.vertices[:4].mean(axis=0)
                column, system = (min(of, key=lambda place: abs(place - x)) for of in (columns, systems))
                assert abs(column - x) < 1e-9
                seen[labels[int(y)], systems[system], columns[column]] = face, fields.get_hatch()
    return seen


def coloured(
    cosines: dict[tuple[str, str, str], float],
) -> dict[tuple[str, str, str], tuple[tuple[float, ...], str | None]]:
    """The same as it has to be for these cosines."""
    return {
        (look.words(rule), system, column): (COLOURS(float(nines(max(cosine, 0.0))) / TOP), None)
        if cosine == cosine
        else (to_rgba("0.96"), "////")
        for (rule, system, column), cosine in cosines.items()
    }


def test_a_sweep_of_many_rules_is_a_matrix_of_the_worst_seeds_of_the_table(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cells, params = tables
    figure = draw_cosine_sweep(cells, params, "T2")
    assert figure is not None
    usual = cells[cells["beta"] == 0.02]
    worst = {}
    for (rule, system, T2), rows in usual.groupby(["estimator_label", "system", "T2"]):
        worst[rule, system, str(T2)] = float("nan") if system == "idle" else rows["cosine_min"].min()
    assert drawn(figure) == coloured(worst)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["nothing is settled: no evidence", "blank: not run, or does not apply"]


def test_parameters_of_many_rules_are_a_matrix_after_the_whole_gradient_and_the_deciding_one_has_a_frame(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cells, params = tables
    figure = draw_params(cells, params)
    assert figure is not None
    usual = cells[(cells["beta"] == 0.02) & (cells["T2"] == 60) & (cells["status"] == "settled")]
    here = usual[["cell", "estimator_label", "system"]].merge(params, on="cell")
    whole = usual.assign(param="whole g")
    every = pd.concat([here, whole]).groupby(["estimator_label", "system", "param"])["cosine"].min()
    assert drawn(figure) == coloured(dict(every.items()))
    bold = [text.get_text() for ax in figure.axes for text in ax.texts if text.get_weight() == "bold"]
    assert bold.count("W") == 3  # a system of one parameter has none that decides
    assert sum(len(ax.patches) for ax in figure.axes) == 3


def test_the_budget_of_many_rules_is_a_matrix_of_the_largest_causes(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, params = tables
    steps = pd.DataFrame([dict.fromkeys(BUDGETS.names) | {"cell": cell, "param": p} for cell, p in _pairs(params)])
    steps = steps.assign(asymmetry=[0.1 + _mixed(cell) % 2 for cell in steps["cell"]], truncation=0.5)
    figure = draw_error_budget(cells, params, steps, 0.1)
    assert figure is not None
    worst = params.sort_values(["rel_error"]).drop_duplicates("cell", keep="last")
    usual = cells[cells["beta"] == 0.02].drop(columns="rel_error").merge(worst, on="cell")
    usual = usual.sort_values(["rel_error", "seed"]).drop_duplicates(["estimator_label", "system", "T2"], keep="last")
    told = {}
    for row in usual.to_dict("records"):
        place = look.words(row["estimator_label"]), row["system"], str(row["T2"])
        cause = "asymmetry" if _mixed(row["cell"]) % 2 else "truncation"
        name = cause if row["cause"] == "asymmetry" else "faithful" if row["rel_error"] <= 0.1 else "without a cause"
        told[place] = to_rgba(FACES[name]), HATCHES.get(name) or None
        if row["system"] == "idle":
            told[place] = to_rgba("0.96"), "////"
    assert drawn(figure) == told


def _pairs(params: pd.DataFrame) -> list[tuple[str, str]]:
    return list(params[["cell", "param"]].itertuples(index=False, name=None))


def test_every_figure_of_many_rules_is_a_page(tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    cells, params = tables
    steps = pd.DataFrame([dict.fromkeys(BUDGETS.names) | {"cell": cell, "param": p} for cell, p in _pairs(params)])
    blocks = pd.DataFrame(
        [
            {"cell": cell, "block": f"h{i}", "cosine": 0.5, "cosine_error": None}
            for cell in cells["cell"]
            for i in (0, 1)
        ]
    )
    named = Tables.by_one_reference((cells, params, blocks, steps.assign(truncation=0.5)), 1e-4, 0.1, "Suite x")
    heights = {}
    for name, drawing in gallery.collect().items():
        if figure := drawing(named):
            look.sign(figure, named.source)
            (path,) = plots.save(figure, tmp_path / name, ("png",))
            with Image.open(path) as image:
                heights[name] = image.height / look.DPI
    assert {"cosine_vs_T2", "cosine_vs_beta", "error_budget", "error_vs_cost", "params", "residual_vs_cosine"} < set(
        heights
    )
    assert max(heights.values()) <= 14, heights


def test_credit_of_many_rules_is_a_matrix_without_blocks_that_do_not_move(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cells, _ = tables
    blocks = pd.DataFrame(
        [
            {"cell": cell, "block": f"h{i}", "cosine": i and _cosine(cell, i), "cosine_error": _cosine(cell, i, "e")}
            for cell in cells["cell"]
            for i in range(3)
        ]
    )
    figure = draw_credit_by_layer(cells, blocks)
    assert figure is not None
    usual = cells[(cells["beta"] == 0.02) & (cells["T2"] == 60) & (cells["status"] == "settled")]
    worst = {}
    for (rule, system), rows in usual.groupby(["estimator_label", "system"]):
        here = blocks[blocks["cell"].isin(rows["cell"])].groupby("block")[["cosine", "cosine_error"]].min()
        worst |= {(rule, system, block): here["cosine"][block] for block in ("h1", "h2")}
        worst |= {(rule, system, f"{block} e"): here["cosine_error"][block] for block in here.index}
    assert drawn(figure) == coloured(worst)


def test_of_many_rules_five_have_a_colour_and_the_others_are_counted(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, _ = tables
    cells = cells.assign(cosine_min=cells["cosine_min"].mask(cells["estimator"].isin(["adjoint", "ift", "rbp"]), 0.999))
    every = ((draw_antisymmetry_vs_error(cells), NAMES), (draw_residual_vs_cosine(cells, 1e-4), RULES))
    for figure, rules in every:
        assert figure is not None
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        coloured = {to_rgb(look.colour(name)) for name in ("ep", "aep", "adjoint", "ift")}
        points = [c for ax in figure.axes for c in ax.collections if isinstance(c, PathCollection)]
        seen = {tuple(face[:3]) for c in points for face in [*c.get_facecolors(), *c.get_edgecolors()]}
        assert coloured < seen
        assert len(seen - {to_rgb("white")}) <= 6
        assert [words for words in legend if "other rules" in words] == [f"{len(rules) - 4} other rules"]


def test_symmetric_systems_of_many_rules_have_a_panel_of_their_own(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, _ = tables
    figure = draw_antisymmetry_vs_error(cells)
    assert figure is not None
    _, _, strip, panel = figure.axes
    assert strip.get_title() == "symmetric Jacobian:\nflat, round"
    assert next(label.get_text() for label in strip.get_xticklabels()) == "others"
    known = [x for c in panel.collections for x, _ in c.get_offsets()]
    assert min(known) > 1e-3
    both = sum(len(c.get_offsets()) for ax in (strip, panel) for c in ax.collections)
    assert both == len(cells[(cells["T2"] == 60) & (cells["beta"] == 0.02) & (cells["estimator_label"].isin(NAMES))])


def test_the_front_of_many_rules_has_colours_and_says_which_one_follows_for_the_least_cost(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cells, _ = tables
    here = cells[cells["system"].isin(["round", "skew"])].assign(cosine_min=0.5)
    cheap = (here["estimator_label"] == "ift") & (here["T2"] == 20) & (here["system"] == "round")
    figure = draw_error_vs_cost(here.assign(cosine_min=here["cosine_min"].mask(cheap, 0.999)))
    assert figure is not None
    first, second = (ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes)
    assert first == f"round: ift follows for {(20 + len('ift')) / 400:.2g} of BPTT's cost"
    assert second == "skew: no rule follows BPTT"
    (left, right) = ({tuple(f[:3]) for c in ax.collections for f in c.get_facecolors()} for ax in figure.axes)
    assert to_rgb(look.colour("ift")) in left
    assert to_rgb(look.colour("ift")) not in right


def test_systems_of_a_kind_stand_together_and_lines_are_as_even_as_they_can_be() -> None:
    groups = [bands.Group(name, "symmetric", tuple("abcd")) for name in "stuvw"]
    room = bands.NARROW * (3 * 4 + 2 * bands.GAP)
    assert [len(line) for line in bands.lines(groups, room)] == [3, 2]
    assert [len(line) for line in bands.lines(groups, room - 1)] == [2, 2, 1]
    assert [len(line) for line in bands.lines(groups, 10 * room)] == [5]
    assert len(bands.lines(groups, 1.0)) == 5  # a system is never torn


def test_rules_are_many_by_their_default_forms() -> None:
    names = ["ep", "aep", "adjoint", "tbptt", "ift", "jfb"]
    assert not bands.crowded([*names, *(f"ep k={k}" for k in range(9))])
    assert bands.crowded([*names, "rbp k=1"])
