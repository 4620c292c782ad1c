"""Figures: drawn from stored tables, the same whoever draws them, honest about what has not settled."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import gradbench as gb
from gradbench import plots
from gradbench.errors import StoreError, UserError
from gradbench.plots import gallery, hold, look, parallel
from gradbench.plots.explained import draw_explanation
from gradbench.plots.figures import cosine_sweeps, error_budget, error_vs_beta
from gradbench.plots.figures.antisymmetry_vs_error import draw_antisymmetry_vs_error
from gradbench.plots.figures.credit_by_layer import draw_credit_by_layer
from gradbench.plots.figures.error_budget import COLOURS, FACES, LEAST, TOP, draw_error_budget
from gradbench.plots.figures.error_vs_cost import _front, _settings, draw_error_vs_cost
from gradbench.plots.figures.map_s_damp import draw_map_s_damp
from gradbench.plots.figures.params import SHADE, draw_params
from gradbench.plots.figures.residual_vs_cosine import draw_residual_vs_cosine
from gradbench.plots.figures.rules_by_system import draw_rules_by_system
from gradbench.plots.scale import COLOURS as COSINE_COLOURS
from gradbench.plots.scale import SHADED, SPACED, cosine_at, nines
from gradbench.plots.scale import TOP as NINES
from gradbench.plots.sources import Tables
from gradbench.plots.wording import BLANK
from gradbench.tables.disk import read_json
from gradbench.tables.schema import BUDGETS, CELLS, PARAMS
from gradbench.tables.store import PLAN_SEAL, Run
from gradbench.vocabulary.coordinates import LATE
from gradbench.vocabulary.reason import REFERENCE
from gradbench.vocabulary.status import Status

pytestmark = pytest.mark.filterwarnings("error")

ERROR = {"ep": 0.4, "aep": 1e-5, "aep clip=batch": 1e-4}


def _cell(number: int, label: str, s: float, damp: float, T1: int, T2: int, beta: float, seed: int) -> dict:
    name = label.partition(" ")[0]
    status = Status.DIVERGED if s > 2 and damp == 0 else Status.UNSETTLED if T1 < 100 else Status.SETTLED
    cosine = float("nan") if status is Status.DIVERGED else 1 - ERROR[label] * (1 + seed) * (1 + s) * beta
    row = (
        dict.fromkeys(CELLS.names)
        | LATE
        | {"cell": f"{number:x}", "problem": "p", "system": "toy", "system_label": "toy"}
    )
    row |= {"estimator": name, "estimator_label": label, "dtype": "float32", "batch": 8, "eps": 0.2}
    row |= {"s": s, "damp": damp, "T1": T1, "T2": T2, "beta": beta, "seed": seed, "status": status.value}
    row |= dict.fromkeys(("cosine", "cosine_mean", "cosine_min"), cosine)
    row |= {
        "n_force": T1 + 2 * T2,
        "n_jvp": 2 * T2,
        "n_vjp": 2 * T2,
        "rel_error": ERROR[label],
        "noise_floor": 1e-7 / beta,
    }
    row |= {"cause": "asymmetry", "cause_of": ""} if label == "ep" else {}
    return row | {"residual": 1e-2 if T1 < 100 else 0.0, "antisymmetry": 0.05 * s}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    points = [(s, c, 100, 20, 0.02, 0) for s, c in itertools.product((0.5, 1.0, 4.0), (0.0, 1.0))]
    points += [(1.0, 0.0, T1, 20, beta, seed) for T1, beta, seed in itertools.product((50, 100), (0.02, 0.1), (0, 1))]
    points = list(dict.fromkeys(points))
    return [_cell(i, label, *p) for i, (label, p) in enumerate(itertools.product(ERROR, points))]


@pytest.fixture(scope="module")
def cells(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=CELLS.names).astype({"cosine_attn": float})


def _params(cosine: dict[str, float], row: dict) -> list[dict]:
    rows = [dict.fromkeys(PARAMS.names) | {"cell": row["cell"], "param": p, "cosine": c} for p, c in cosine.items()]
    return [p | {"rel_error": row["rel_error"], "reference_norm": 1.0, "reason": ""} for p in rows]


def _blocks(cosine: float) -> list[dict]:
    return [{"block": f"h{layer}", "cosine": cosine * (layer > 0), "cosine_error": None} for layer in range(3)]


def _budget(row: dict) -> list[dict]:
    if row["cause"] is None:
        return []
    steps = dict.fromkeys(BUDGETS.names) | {"rel_error": 0.4, "asymmetry": 0.3, "truncation": 0.1}
    return [steps | {"param": param} for param in ("", "W", "b")]


def _tables(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parameters and budgets of cells."""
    rows = cells.to_dict("records")
    budget = [b | {"cell": row["cell"]} for row in rows for b in _budget(row)]
    params = pd.DataFrame([p for row in rows for p in _params({"W": row["cosine"], "b": row["cosine"]}, row)])
    return params, pd.DataFrame(budget, columns=BUDGETS.names)


def draw_cosine_sweep(cells: pd.DataFrame, x: str) -> Figure | None:
    return cosine_sweeps.draw_cosine_sweep(cells, _tables(cells)[0], x)


def draw_error_vs_beta(cells: pd.DataFrame) -> Figure | None:
    return error_vs_beta.draw_error_vs_beta(cells, _tables(cells)[0], 0.1)


@pytest.fixture
def run(tmp_path: Path, rows: list[dict]) -> Run:
    return _stored(tmp_path / "run", rows)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> tuple[list[Path], dict[str, Figure]]:
    """The files of every figure of a run, and the figures by name as they were written. No test changes them."""
    run, figures = _stored(tmp_path_factory.mktemp("shelf") / "run", rows), {}

    def recorded(figure: Figure, stem: Path, *, inside: Path) -> list[Path]:
        figures[stem.name] = figure
        return save(figure, stem, inside=inside)

    save = plots.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", recorded)
        return plots.draw(run), figures


def _stored(folder: Path, rows: list[dict]) -> Run:
    run = Run(folder)
    planned = [{"cell": row["cell"]} for row in rows]
    thresholds = {"residual": 1e-4, "faithful": 0.1}
    plan = {"suite": "toy", "cells": planned, "skipped": [], "problems": ["p"], "thresholds": thresholds}
    run.start(plan, {"commit": "0123456789abcdef"})
    nested = [
        {
            "params": _params({"W": row["cosine"], "b": float("nan")}, row),
            "blocks": _blocks(row["cosine"]),
            "budget": _budget(row),
        }
        for row in rows
    ]
    run.keep("p", [row | tables for row, tables in zip(rows, nested, strict=True)])
    run.compact([])
    return run


def _markers(figure: object) -> list[PathCollection]:
    drawn = [c for ax in figure.axes for c in ax.collections if isinstance(c, PathCollection)]  # type: ignore[attr-defined]
    return [c for c in drawn if len(c.get_offsets())]


def test_every_figure_is_drawn_from_a_stored_run_and_redrawn_to_the_same_bytes(
    run: Run, shelf: tuple[list[Path], dict[str, Figure]]
) -> None:
    figures = gallery.collect()
    drawn, _ = shelf
    missing = {"cosine_vs_T2", "error_vs_beta", "gap_vs_residual"}  # one T2, two beta, one reference: nothing to show
    assert {p.name for p in drawn} == {f"{name}.{kind}" for name in figures.keys() - missing for kind in ("svg", "png")}
    before = {path.name: path.read_bytes() for path in drawn}
    assert all(before.values())
    again = {"cosine_vs_s", "map_s_damp", "params"}  # one of each kind of panel
    redrawn = plots.draw(run, names=again)
    assert {path.stem: path.read_bytes() == before[path.name] for path in redrawn} == dict.fromkeys(again, True)
    assert {p.name for p in drawn[0].parent.iterdir()} == before.keys()  # no temporary file is left


@pytest.mark.fast
def test_every_file_of_figures_is_collected_in_the_order_of_names() -> None:
    names = list(gallery.collect())
    assert names == sorted(names)
    assert {"params", "map_s_damp", *(f"cosine_vs_{x}" for x in ("s", "damp", "T1", "T2", "beta"))} < set(names)


def test_every_figure_has_a_title_that_its_files_know_and_that_stands_above_its_legend(
    shelf: tuple[list[Path], dict[str, Figure]],
) -> None:
    paths, figures = shelf
    files = {path.name: path for path in paths}
    for name, figure in figures.items():
        title = look.said(figure, "title")
        assert title, name
        figure.draw_without_rendering()  # a file has another resolution
        (text,) = (t for t in figure.findobj(Text) if t.get_gid() == "title")
        box = text.get_window_extent()
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.width, name
        assert box.y1 <= figure.bbox.height + 1, name
        assert all(entry.get_window_extent().y1 < box.y0 for legend in figure.legends for entry in legend.get_texts())
        panels = [ax.get_window_extent() for ax in figure.axes if ax.get_visible()]
        assert not any(box.overlaps(panel) for panel in panels), name
        assert f"<dc:title>{escape(title)}</dc:title>" in files[f"{name}.svg"].read_text()


@pytest.mark.parametrize(("style", "letters"), [("paper", b"STIXGeneral"), ("paper-sans", b"DejaVuSans")])
def test_on_paper_a_figure_has_the_width_of_a_column_and_its_letters_in_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, style: str, letters: bytes
) -> None:
    wanted = {"antisymmetry_vs_error": 3.5, "map_s_damp": 7.2}
    known = gallery.collect()
    monkeypatch.setattr(gallery, "collect", lambda: {name: known[name] for name in wanted})
    drawn = plots.draw(run, style)
    assert {p.relative_to(run.folder / "plots").as_posix() for p in drawn} == {
        f"{style}/{name}.{kind}" for name in wanted for kind in ("pdf", "svg")
    }
    for path in (p for p in drawn if p.suffix == ".pdf"):
        content = path.read_bytes()
        assert content.count(b"/Subtype /CIDFontType2") + content.count(b"/Subtype /TrueType") > 0
        assert b"/Subtype /Type3" not in content
        assert letters in content
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([0-9.]+) [0-9.]+ \]", content)
        assert float(width) == pytest.approx(72 * wanted[path.stem])
    for path in (p for p in drawn if p.suffix == ".svg"):
        assert "<text" not in path.read_text()  # letters are paths
    before = {path: path.read_bytes() for path in drawn if path.stem == "antisymmetry_vs_error"}
    assert {path: path.read_bytes() for path in plots.draw(run, style, ["antisymmetry_vs_error"])} == before
    assert look.page() is look.PAGES[plots.SCREEN]  # nothing of the style is left


def test_a_font_that_the_list_of_matplotlib_lacks_is_used_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is made once for a user, without the fonts whose files could not be read at that moment."""
    lacking = [font for font in fontManager.ttflist if not font.name.startswith("STIX")]
    assert len(lacking) < len(fontManager.ttflist)
    monkeypatch.setattr(fontManager, "ttflist", lacking)
    fontManager.addfont(lacking[0].fname)  # adding a font makes matplotlib forget which fonts it looked up
    (path,) = (p for p in plots.draw(run, "paper", ["antisymmetry_vs_error"]) if p.suffix == ".pdf")
    assert b"STIXGeneral" in path.read_bytes()


def test_the_smallest_letters_on_paper_have_five_points(run: Run) -> None:
    with look.on("paper"):
        figures = dict(plots.drawn(run))
        sizes = {
            t.get_fontsize() for f in figures.values() for t in f.findobj(Text) if t.get_text() and t.get_visible()
        }
    assert min(sizes) >= 5
    assert max(sizes) <= 9
    assert {look.said(figure, "caption") != "" for figure in figures.values()} == {True}
    assert not any(t.get_visible() for f in figures.values() for t in f.texts if t.get_gid() == "caption")


def test_a_large_run_is_drawn_by_several_processes_to_the_same_bytes(
    gated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["antisymmetry_vs_error", "params", "residual_vs_cosine"]
    alone = {path: path.read_bytes() for path in parallel.draw_in_parallel(gated, names=names)}
    assert [path.name for path in alone] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in alone:
        path.unlink()
    here: list[list[str]] = []

    def recorded(run: Run, style: str, names: list[str]) -> list[Path]:
        here.append(list(names))
        return plots.draw(run, style, names)

    monkeypatch.setattr(parallel, "CELLS", 0)
    monkeypatch.setattr(parallel, "draw", recorded)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert {path: path.read_bytes() for path in parallel.draw_in_parallel(gated, names=names)} == alone
    assert here == [["antisymmetry_vs_error", "residual_vs_cosine"]]
    monkeypatch.setattr(sys, "executable", "false")  # what another process cannot draw is drawn here
    assert {path: path.read_bytes() for path in parallel.draw_in_parallel(gated, names=names)} == alone
    assert here[1:] == [["antisymmetry_vs_error", "residual_vs_cosine"], ["params"]]
    with pytest.raises(UserError, match=r"there is no figure 'parms'\. Did you mean 'params'"):
        parallel.draw_in_parallel(gated, names=["parms"])


def test_a_style_that_there_is_none_of_is_a_mistake_with_its_near_miss(run: Run) -> None:
    with pytest.raises(UserError, match=r"there is no style 'papper'\. Did you mean 'paper'"):
        plots.draw(run, "papper")
    assert not (run.folder / "plots").exists()


def test_the_parameter_that_decides_the_whole_gradient_is_shaded_and_named_with_its_share(
    cells: pd.DataFrame, rows: list[dict]
) -> None:
    for norm, shades, named in ((10.0, 1, "b\n99.0 % of $|g|^2$"), (1.0, 0, "b")):
        norms = {"W": 1.0, "b": norm}
        parameters = [p for row in rows for p in _params({"W": 0.1, "b": 0.9999}, row)]
        parameters = pd.DataFrame([p | {"reference_norm": norms[p["param"]]} for p in parameters])
        figure = draw_params(cells, parameters)
        assert figure is not None
        (ax,) = figure.axes
        assert sum(p.get_facecolor()[:3] == to_rgb(SHADE) for p in ax.patches) == shades
        assert [t.get_text().replace(BLANK, " ") for t in ax.get_xticklabels()] == ["whole g", "W", named]
        legend = [t.get_text() for t in figure.legends[0].get_texts()]
        assert ("decides the whole gradient" in legend) == bool(shades)


def test_bars_of_seeds_that_are_not_settled_are_hollow_and_causes_have_hatches(cells: pd.DataFrame) -> None:
    figure = draw_error_budget(cells, *_tables(cells), 0.1)
    assert figure is not None
    hatches = {p.get_hatch() for p in figure.axes[0].patches if p.get_facecolor()[:3] == to_rgb(COLOURS["truncation"])}
    assert len(hatches) == 1
    assert hatches != {None}
    figure = draw_error_budget(cells.assign(status="unsettled"), *_tables(cells), 0.1)
    assert figure is not None
    parts = [p for ax in figure.axes for p in ax.patches]
    assert {p.get_facecolor()[:3] for p in parts} == {to_rgb("white")}
    assert {p.get_hatch() for p in parts} == {None}  # a cause is not shown where there is no evidence
    assert any("hollow" in t.get_text() for t in figure.legends[0].get_texts())
    assert look.said(figure, "title").startswith("Nothing is settled")
    assert len({*error_budget.HATCHES.values()}) >= len(error_budget.PATTERNS)


def test_a_system_without_a_settled_bar_has_no_panel_of_its_errors_and_is_named(cells: pd.DataFrame) -> None:
    idle = cells.assign(system_label="idle", cell="i" + cells["cell"], status="unsettled")
    both = pd.concat([cells, idle], ignore_index=True)
    figure = draw_error_budget(both, *_tables(both), 0.1)
    assert figure is not None
    assert not [ax for ax in figure.axes if "idle" in ax.get_title(loc="left")]
    assert "nothing is settled there: idle." in look.said(figure, "caption")
    assert "parts: causes, scaled to fill the bar" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_collapsed_cells_are_no_points_of_antisymmetry_and_every_system_has_its_span(cells: pd.DataFrame) -> None:
    gone = cells.assign(system_label="gone", cell="g" + cells["cell"], status="collapsed")
    other = cells.assign(system_label="other", cell="o" + cells["cell"], antisymmetry=0.3)
    figure = draw_antisymmetry_vs_error(pd.concat([cells, gone, other]))
    assert figure is not None
    spans, panel = figure.axes
    assert {t.get_text() for t in spans.texts} == {"toy", "other"}
    assert {tuple(line.get_xdata()) for line in spans.lines} == {(0.025, 0.2), (0.3, 0.3)}
    assert spans.get_xlim() == panel.get_xlim()
    assert "collapsed cells." in look.said(figure, "caption")


def test_rows_of_layers_that_show_the_same_are_drawn_once(cells: pd.DataFrame) -> None:
    same, worse = (cells.assign(system_label=name, cell=name + cells["cell"]) for name in ("same", "worse"))
    cosines = [(cells, 0.999), (same, 0.9995), (worse, 0.5)]
    blocks = pd.DataFrame([{"cell": c} | b for rows, value in cosines for c in rows["cell"] for b in _blocks(value)])
    figure = draw_credit_by_layer(pd.concat([cells, same, worse]), blocks.astype({"cosine_error": float}))
    assert figure is not None
    drawn = [strip.get_suptitle().partition(":")[0] for strip in figure.subfigs]
    assert drawn == ["same", "worse"]
    assert "what a row above shows: toy." in look.said(figure, "caption")


def test_a_caption_says_what_an_axis_of_cosines_shows_and_no_more(cells: pd.DataFrame) -> None:
    for cosine, shaded, close in ((0.5, False, False), (-0.5, True, False), (1 - 1e-12, False, True)):
        figure = draw_residual_vs_cosine(cells.assign(cosine_min=cosine), 1e-4)
        assert figure is not None
        said = look.said(figure, "caption")
        assert (SHADED in said, "are drawn there" in said.partition("1e-12 are drawn there")[2]) == (shaded, close)


def test_colours_of_cosines_jump_where_a_rule_follows() -> None:
    below, at = (COSINE_COLOURS(nines(cosine) / NINES)[:3] for cosine in (0.9899, 0.9901))
    grey = [sum(share * part for share, part in zip((0.3, 0.59, 0.11), to_rgb(c), strict=True)) for c in (below, at)]
    assert grey[1] - grey[0] > 0.15


def test_two_figures_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_budget, "FIGURES", {"params": error_budget.FIGURES["error_budget"]})
    with pytest.raises(ValueError, match="draws params already"):
        gallery.collect()


@pytest.mark.fast
def test_a_folder_that_refuses_is_a_store_error(run: Run) -> None:
    (run.folder / "plots").write_text("in the way")
    with pytest.raises(StoreError, match="plots"):
        plots.draw(run)


def test_settled_cells_are_filled_and_all_others_hollow(cells: pd.DataFrame) -> None:
    for figure in (draw_cosine_sweep(cells, "T1"), draw_residual_vs_cosine(cells, 1e-4)):
        markers = _markers(figure)
        hollow = [c for c in markers if not len(c.get_facecolor())]
        filled = [c for c in markers if len(c.get_facecolor())]
        xs = [{float(x) for c in kind for x in c.get_offsets()[:, 0]} for kind in (hollow, filled)]
        assert xs in ([{50.0}, {100.0}], [{1e-2}, {1e-12}])  # T1, residual


@pytest.mark.fast
def test_no_cell_with_a_cosine_at_the_usual_depth_and_nudge_is_dropped_and_the_others_are_counted(
    cells: pd.DataFrame,
) -> None:
    shallow = cells.assign(T2=5, cell="s" + cells["cell"])
    figure = draw_residual_vs_cosine(pd.concat([cells, shallow]), 1e-4)
    assert figure is not None
    usual = cells[cells["beta"] == 0.02]
    assert len(usual) < len(cells)
    absent = int(usual["cosine"].isna().sum())
    assert sum(len(c.get_offsets()) for c in _markers(figure)) == len(usual) - absent > 0
    assert f"No cosine: {absent} cells ({absent} diverged)" in " ".join(figure.texts[0].get_text().split())


@pytest.mark.fast
def test_lines_join_settled_cells_only(cells: pd.DataFrame) -> None:
    figure = draw_cosine_sweep(cells, "T1")
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if line.get_color() != look.GREY]  # grey: a cosine of 0.99
    joined = {x for line in lines for x in line.get_xdata() if line.get_linestyle() != "None"}
    assert list(joined) == [pytest.approx(100)]


@pytest.mark.fast
def test_credit_is_drawn_layer_by_layer_for_settled_cells_of_layered_systems(cells: pd.DataFrame) -> None:
    blocks = pd.DataFrame(
        [{"cell": c} | b for c, v in zip(cells["cell"], cells["cosine"], strict=True) for b in _blocks(v)]
    )
    figure = draw_credit_by_layer(cells, blocks.astype({"cosine_error": float}))
    assert figure is not None
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["h0\nfixed", "h1", "h2"]
    lines = [line for line in figure.axes[0].lines if line.get_color() != look.GREY]
    # nothing is drawn where there is no credit; rules stand side by side
    assert {round(float(x)) for line in lines for x in line.get_xdata()} == {1, 2}
    assert {round(float(x)) for c in _markers(figure) for x in c.get_offsets()[:, 0]} == {1, 2}
    assert all(len(c.get_facecolor()) for c in _markers(figure))
    assert draw_credit_by_layer(cells, blocks[blocks["block"] != "h1"]) is None  # two blocks are no layers


def test_rules_of_equal_credit_stand_side_by_side_and_one_without_credit_is_not_named(
    cells: pd.DataFrame,
) -> None:
    equal = [{"cell": c} | b for c in cells["cell"] for b in _blocks(0.9)]
    blocks = pd.DataFrame(equal).astype({"cosine_error": float})
    clipped = cells[cells["estimator_label"] == "aep clip=batch"]
    blocks.loc[blocks["cell"].isin(clipped["cell"]), "cosine"] = float("nan")
    figure = draw_credit_by_layer(cells, blocks)
    assert figure is not None
    sizes = [float(c.get_sizes()[0]) for c in figure.axes[0].collections if len(c.get_offsets())]
    assert sizes == [look.MARKERS[name][1] ** 2 for name in ("ep", "aep")]
    ep, aep = ({float(x) for x in c.get_offsets()[:, 0]} for c in _markers(figure)[:2])
    assert not ep & aep
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["asymmetric EP", "naive EP", "cosine 0.99: follows BPTT in direction (worst seed)"]


def test_a_colour_belongs_to_the_name_whatever_else_is_drawn(cells: pd.DataFrame) -> None:
    backwards = cells[::-1]
    alone = cells[cells["estimator_label"] == "aep"]
    plugin = cells.assign(estimator="mine", estimator_label="mine")
    assert look.styles(cells) == look.styles(backwards)
    assert look.styles(alone)["aep"] == look.styles(cells)["aep"]
    assert look.styles(cells)["aep clip=batch"].colour == look.styles(cells)["aep"].colour
    assert look.styles(pd.concat([plugin, cells]))["mine"] == look.styles(plugin)["mine"]
    ranked = [cells.assign(estimator=name, estimator_label=name) for name in ("dfa", "fa", "jfb")]
    assert look.styles(ranked[2])["jfb"].marker == look.styles(pd.concat(ranked))["jfb"].marker
    forms = [cells.assign(estimator=f.partition(" ")[0], estimator_label=f) for f in (*look.FORMS, "aep gain=2")]
    every = look.styles(pd.concat(forms))
    assert len({style.marker for style in every.values()}) == len(forms)
    for form, label in zip(forms, look.FORMS, strict=False):
        alone_style = look.styles(form)[label]
        assert (alone_style.marker, alone_style.dashes) == (every[label].marker, every[label].dashes)
    hollow = [c for c in _markers(draw_cosine_sweep(alone, "T1")) if not len(c.get_facecolor())]
    used = {tuple(c.get_edgecolor()[0][:3]) for c in hollow}
    assert used == {to_rgba(look.COLOURS["aep"])[:3]}


def test_the_reference_and_its_controls_are_no_rules_to_draw(cells: pd.DataFrame) -> None:
    labels = {"bptt": "bptt", "control": "control", "control kind=flipped": "control"}
    known = [cells.assign(estimator_label=label, estimator=name) for label, name in labels.items()]
    with_known = pd.concat([cells, *known])
    assert hold.estimates(with_known).equals(cells)
    axes = [draw_error_vs_cost(drawn).axes[0] for drawn in (cells, with_known)]
    assert len({len([*ax.lines, *ax.collections]) for ax in axes}) == 1
    assert len({str([line.get_color() for line in ax.lines]) for ax in axes}) == 1


@pytest.mark.fast
def test_a_number_that_is_no_evidence_is_hatched_and_not_coloured(cells: pd.DataFrame) -> None:
    figure = draw_map_s_damp(cells)
    assert figure is not None
    status, ep = figure.axes[:2]
    assert sorted(t.get_text() for t in status.texts) == ["diverged"] + ["settled"] * 5
    assert [(p.get_x(), p.get_y()) for p in ep.patches if p.get_hatch()] == [(0, 0)]  # damp 0, largest s on top
    assert ep.collections[0].get_array().mask.sum() == 1


def _undefined(figure: Figure) -> int:
    return [text.get_text() for text in figure.axes[0].texts].count("undefined")


def test_an_undefined_parameter_is_named(cells: pd.DataFrame, rows: list[dict]) -> None:
    parameters = [p for row in rows for p in _params({"W": 0.9, "b": float("nan")}, row)]
    figure = draw_params(cells, pd.DataFrame(parameters))
    assert figure is not None
    assert _undefined(figure) == 1  # said once, since it is so of every rule
    partly = [p for row in rows for p in _params({"W": 0.9, "b": 0.5 if row["estimator"] == "ep" else math.nan}, row)]
    figure = draw_params(cells, pd.DataFrame(partly))
    assert figure is not None
    assert _undefined(figure) == 2  # aep, aep with an option
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["whole g", "W", "b"]


def test_numbers_above_bars_are_the_cosines_of_missed_parameters_and_of_the_whole(cells: pd.DataFrame) -> None:
    rows = cells.to_dict("records")
    missed = [p for row in rows for p in _params({"W": 0.04 if row["estimator"] == "ep" else 0.999, "b": 0.999}, row)]
    for table, numbers in ((missed, ["0.04", "0.998"]), ([p | {"cosine": 0.999} for p in missed], [])):
        figure = draw_params(cells.assign(cosine=0.998), pd.DataFrame(table))
        assert figure is not None
        assert sorted(text.get_text() for text in figure.axes[0].texts) == numbers


def test_long_names_of_parameters_stand_upright_and_touch_no_other_name(cells: pd.DataFrame, rows: list[dict]) -> None:
    for names, rotation in (([f"encoder.layer{i}.attention.weight" for i in range(14)], 90), (["W", "b"], 0)):
        parameters = pd.DataFrame([p for row in rows for p in _params(dict.fromkeys(names, 0.9), row)])
        figure = draw_params(cells, parameters)
        assert figure is not None
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        labels = figure.axes[0].get_xticklabels()
        assert {label.get_rotation() for label in labels} == {rotation}
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        assert figure.axes[0].get_window_extent().height > 60


@pytest.mark.fast
def test_rules_with_options_are_drawn_while_few_and_named_where_they_are_not(cells: pd.DataFrame) -> None:
    some, nothing = hold.main_forms(cells)
    assert some is cells
    assert not nothing
    many = pd.concat([cells, *(cells.assign(estimator="aep", estimator_label=f"aep gain={i}") for i in range(7))])
    shown, told = hold.main_forms(many)
    assert set(shown["estimator_label"]) == {"ep", "aep"} & set(cells["estimator_label"])
    assert told[0].startswith("Not drawn: asymmetric EP")
    assert "asymmetric EP gain=6" in told[0]


@pytest.mark.fast
def test_a_title_names_the_point_without_an_empty_word(cells: pd.DataFrame) -> None:
    (place,) = hold.by_system(cells.assign(T1=None, T2=None, beta=None, s=None, damp=None), ("T1", "T2", "beta"))
    assert place == ("toy", "at float32")


LONG = "cet_real D=32 ch=3 dataset=cifar10 dh=32 heads=2 img=32 mem=32 patch=8 params_from=quick@8759bb5e"


@pytest.mark.parametrize("name", ["cosine_vs_T1", "cosine_vs_beta", "params", "residual_vs_cosine", "error_vs_cost"])
def test_a_system_with_many_options_stays_within_its_figure(cells: pd.DataFrame, rows: list[dict], name: str) -> None:
    other = cells.assign(system_label=LONG, cell="f" + cells["cell"])
    both = pd.concat([cells, other], ignore_index=True)
    parameters = pd.DataFrame([p for row in both.to_dict("records") for p in _params({"W": 0.9, "b": 0.8}, row)])
    figure = gallery.collect()[name](Tables(both, parameters, pd.DataFrame(), pd.DataFrame(), 1e-4, 0.1, "", both))
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    extent = figure.get_tightbbox(canvas.get_renderer())
    assert extent.width <= figure.get_figwidth()
    titles = [ax.title.get_window_extent() for ax in figure.axes if ax.title.get_text() and ax.get_visible()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))


def test_the_held_point_is_written_above_its_row(cells: pd.DataFrame) -> None:
    (place,) = hold.by_system(cells, free=("damp",))
    assert place.system == "toy"
    assert all(part in place.point for part in ("1", "100", "20", "0.02", "float32"))
    figure = draw_cosine_sweep(cells, "damp")
    assert figure is not None
    told = f"{place.point}; 2 seeds at c{BLANK}={BLANK}0, 1 seed at c{BLANK}={BLANK}1"
    assert figure.subfigs[0].get_suptitle() == told  # of one system, what is to be seen is the figure's title
    other = cells.assign(system_label="other", cell="f" + cells["cell"])
    figure = draw_cosine_sweep(pd.concat([cells, other], ignore_index=True), "damp")
    assert figure is not None
    assert figure.subfigs[1].get_suptitle().startswith("toy: naive EP ")
    assert figure.subfigs[1].get_suptitle().endswith(told)


def test_a_coordinate_that_every_system_has_is_said_only_where_cells_differ_in_it(cells: pd.DataFrame) -> None:
    (alike,) = hold.by_system(cells)
    (differing,) = hold.by_system(cells.assign(batch=[4] + [8] * (len(cells) - 1)))
    assert set(hold.HELD) - set(hold.ALWAYS) == {"eps", "batch"}
    assert "batch" not in alike.point
    assert r"batch$\,=\,$8" in differing.point


def test_float64_is_drawn_with_float32_along_beta_alone(cells: pd.DataFrame) -> None:
    both = pd.concat([cells, cells.assign(dtype="float64")])
    assert len(_markers(draw_cosine_sweep(both, "beta"))) == 2 * len(_markers(draw_cosine_sweep(cells, "beta")))
    assert len(_markers(draw_cosine_sweep(both, "T1"))) == len(_markers(draw_cosine_sweep(cells, "T1")))


def test_nothing_to_show_is_no_figure(cells: pd.DataFrame) -> None:
    one = cells[(cells["s"] == 1) & (cells["damp"] == 0) & (cells["T1"] == 100) & (cells["beta"] == 0.02)]
    lost = cells.assign(cosine=float("nan"), cosine_min=float("nan"), status="diverged")
    for x in hold.ALWAYS:
        assert draw_cosine_sweep(one, x) is None
    assert draw_map_s_damp(one) is None
    assert draw_residual_vs_cosine(lost, 1e-4) is None
    assert draw_antisymmetry_vs_error(lost) is None
    assert draw_cosine_sweep(lost, "T1") is None


@pytest.mark.fast
def test_the_cosine_scale_is_monotone_and_inverts() -> None:
    cosines = [-1, -0.3, 0, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-7]
    assert list(nines(cosines)) == sorted(nines(cosines))
    assert cosine_at(nines(cosines)) == pytest.approx(cosines, abs=1e-12)
    assert cosine_at(2) == pytest.approx(0.99)


def test_importing_plots_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, gradbench.plots; print({'torch', 'pandas', 'matplotlib', 'seaborn'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


@pytest.mark.fast
def test_the_front_of_cost_and_error_holds_what_no_cheaper_setting_of_the_worst_seed_reaches() -> None:
    def row(seed: int, T2: int, cosine: float, status: str = "settled") -> dict[str, object]:
        counts = {"n_force": 100 + T2, "n_jvp": 0, "n_vjp": T2}
        named = {"estimator_label": "aep", "T1": 100, "T2": T2, "beta": 0.1, "seed": seed, "reference": "bptt"}
        return {**named, **counts, "cosine_min": cosine, "status": status}

    rows = [row(0, 5, 0.9), row(1, 5, 0.8), row(0, 10, 0.7), row(1, 10, 0.99), row(0, 20, 0.9999), row(1, 20, 0.999)]
    rows += [row(0, 2, 0.99999), row(1, 2, 0.99999, "unsettled")]
    settings = _settings(pd.DataFrame(rows))
    assert dict(zip(settings["T2"], settings["cosine_min"], strict=True)) == {2: 0.99999, 5: 0.8, 10: 0.7, 20: 0.999}
    assert dict(zip(settings["T2"], settings["status"], strict=True))[2] == "unsettled"
    front = _front(settings[settings["status"] == "settled"])
    assert front["T2"].tolist() == [5, 20]
    assert front["cost"].tolist() == [120, 180]  # a product with the Jacobian counts as three forces
    assert set(front["reference_cost"]) == {400}  # 100 forces and 100 products


def test_the_cost_of_the_reference_is_marked_on_the_axis_of_cost_in_the_unit_of_the_estimates(
    cells: pd.DataFrame,
) -> None:
    figure = draw_error_vs_cost(cells)
    assert figure is not None
    marks = {float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_marker() == "^"}
    assert marks == {4.0 * T1 for T1 in (50, 100)}
    assert "cost of BPTT itself, at a T1" in [text.get_text() for text in figure.legends[0].get_texts()]
    costs = {float(x) for c in _markers(figure) for x in c.get_offsets()[:, 0]}
    assert costs == {T1 + 2 * 20 + 3 * 4 * 20 for T1 in (50.0, 100.0)}
    figure = draw_error_vs_cost(cells.assign(reference="implicit"))  # what backpropagation costs is not said there
    assert figure is not None
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "^"]


def _bars(figure: object, knob: str = "nudge") -> list[tuple[float, float, tuple]]:
    """Middle, height and colour of every part of a bar in the panel of a knob."""
    (panel,) = (ax for ax in figure.axes if ax.get_visible() and ax.get_xlabel().startswith(knob))  # type: ignore[attr-defined]
    return [(round(p.get_x() + p.get_width() / 2, 3), p.get_height(), p.get_facecolor()[:3]) for p in panel.patches]


def _heights(figure: object) -> list[float]:
    """Heights of whole bars, from left to right."""
    parts = pd.DataFrame(_bars(figure), columns=["place", "height", "face"])
    return parts.groupby("place")["height"].sum().tolist()


@pytest.mark.fast
def test_a_bar_of_a_budget_is_the_error_divided_as_its_steps_are(cells: pd.DataFrame) -> None:
    figure = draw_error_budget(cells, *_tables(cells), 0.1)
    assert figure is not None
    bars = [(height, face) for _, height, face in _bars(figure)]
    for height, cause in ((0.1, "truncation"), (0.3, "asymmetry")):
        drawn = [h for h, face in bars if face == to_rgb(COLOURS[cause])]
        assert drawn == pytest.approx([height] * 2)  # at both beta, of ep alone
    assert [h for h, face in bars if face == to_rgb(FACES["faithful"])] == pytest.approx([LEAST] * 4)  # aep


def test_every_bar_of_a_budget_is_the_error_of_the_worst_parameter_whatever_its_cause_is_of(
    cells: pd.DataFrame,
) -> None:
    cells = cells[cells["estimator_label"] == "ep"]
    large = cells["cell"].isin(cells[cells["beta"] == 0.1]["cell"])
    cells = cells.assign(cause_of=large.map({True: "", False: "W"}), rel_error=large.map({True: 0.3, False: 0.02}))
    params, budget = _tables(cells)
    params["rel_error"] = params["cell"].map(dict(zip(cells["cell"], large.map({True: 1.2, False: 0.6}), strict=True)))
    params.loc[params["param"] == "b", "rel_error"] = 0.01
    assert _heights(draw_error_budget(cells, params, budget, 0.1)) == pytest.approx([0.6, 1.2])


def test_a_parameter_without_a_reference_has_no_error_to_draw(cells: pd.DataFrame) -> None:
    params, budget = _tables(cells)
    dead = params["param"] == "b"
    params.loc[dead, "rel_error"] = 1.4
    params.loc[dead, "reason"] = f"{REFERENCE} of b is below the floor of liveness"
    assert max(_heights(draw_error_budget(cells, params, budget, 0.1))) == pytest.approx(0.4)


@pytest.mark.parametrize(("error", "words"), [(4.49, "4.5"), (31234.0, "3e4"), (math.nan, "∞")])
def test_a_bar_that_is_cut_says_its_error_and_is_broken(cells: pd.DataFrame, error: float, words: str) -> None:
    params, budget = _tables(cells)
    params.loc[params["cell"].isin(cells[cells["estimator_label"] == "ep"]["cell"]), "rel_error"] = error
    figure = draw_error_budget(cells, params, budget, 0.1)
    assert max(_heights(figure)) == pytest.approx(TOP)
    assert {text.get_text() for ax in figure.axes for text in ax.texts} == {words}  # type: ignore[union-attr]
    strokes = [line for ax in figure.axes for line in ax.lines if line.get_color() == "black"]  # type: ignore[union-attr]
    cut = sum(len(ax.texts) for ax in figure.axes)  # type: ignore[union-attr]
    assert len(strokes) == 2 * cut > 0


def test_an_error_without_steps_of_its_parameter_has_the_cause_of_the_cell(cells: pd.DataFrame) -> None:
    params, budget = _tables(cells)
    transient = cells.assign(cause=cells["cause"].replace("asymmetry", "transient"))
    figure = draw_error_budget(transient, params, budget[budget["param"] == ""], 0.1)
    drawn = {face for _, height, face in _bars(figure) if height > LEAST}
    assert drawn == {to_rgb(COLOURS["transient"])}


def test_without_a_cause_there_is_no_budget_to_draw(cells: pd.DataFrame) -> None:
    params, budget = _tables(cells)
    assert draw_error_budget(cells.assign(cause=None), params, budget[:0], 0.1) is None


# rules that no list knows, the last one with options only
STRANGERS = {
    "zeta": "zeta",
    "halved": "halved",
    "credit_thresholded": "credit_thresholded",
    "jfb share=0.5": "jfb",
}


def _with_strangers(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with those of four rules more, which alone are at a third beta, and all of them at a second T2."""
    ep = cells[cells["estimator_label"] == "ep"]
    both = pd.concat([ep, ep.assign(beta=1.0, cell="n" + ep["cell"])])
    added = [
        both.assign(estimator=name, estimator_label=label, cell=name + both["cell"])
        for label, name in STRANGERS.items()
    ]
    known = pd.concat([cells, *added], ignore_index=True)
    return pd.concat([known, known.assign(T2=40, cell="d" + known["cell"])], ignore_index=True)


@pytest.mark.parametrize("name", sorted(set(gallery.collect()) - {"credit_by_layer", "gap_vs_residual"}))
def test_a_rule_that_no_list_knows_is_named_in_every_figure(cells: pd.DataFrame, name: str) -> None:
    known = _with_strangers(cells)
    params, budget = _tables(known)
    figure = gallery.collect()[name](Tables(known, params, pd.DataFrame(), budget, 1e-4, 0.1, "", known))
    assert figure is not None
    said = {text.get_text() for text in figure.findobj(Text)}
    assert {*STRANGERS} <= said
    assert {"naive EP", "asymmetric EP"} <= said
    assert not {"ep", "aep", "aep clip=batch"} & said  # a rule has one name in all figures


def test_rules_without_a_fixed_marker_never_share_one_in_any_figure_of_a_run(cells: pd.DataFrame) -> None:
    names = [f"rule{i}" for i in range(15)]
    many = pd.concat([cells, *(cells[:1].assign(estimator=name, estimator_label=name) for name in names)])
    styles = look.styles(many)
    assert len({styles[name].marker for name in names} | {marker for marker, _ in look.MARKERS.values()}) == 15 + 4
    known = _with_strangers(cells)
    styles = {label: look.styles(known)[label] for label in STRANGERS}
    assert len({style.marker for style in styles.values()}) == len(STRANGERS)
    assert len({style.hatch for style in styles.values()}) == len(STRANGERS)
    sweep, residuals = draw_cosine_sweep(known, "beta"), draw_residual_vs_cosine(known, 1e-4)
    drawn = [
        {h.get_label(): h.get_marker() for h in figure.legends[0].legend_handles if hasattr(h, "get_marker")}  # type: ignore[union-attr]
        for figure in (sweep, residuals)
    ]
    for markers in drawn:
        assert {label: markers[label] for label in styles} == {label: style.marker for label, style in styles.items()}


def test_lines_of_rules_that_share_a_colour_are_told_apart(cells: pd.DataFrame) -> None:
    names = [f"rule{i}" for i in range(15)]
    many = pd.concat([cells[:1].assign(estimator=name, estimator_label=name) for name in names])
    styles = look.styles(many)
    assert {styles[name].colour for name in names} <= set(look.RESERVE)
    assert len({(styles[name].colour, styles[name].dashes) for name in names}) == len(names)


def test_bars_of_a_budget_stand_in_one_order_and_each_has_its_name(cells: pd.DataFrame) -> None:
    known = _with_strangers(cells)
    figure = draw_error_budget(known, *_tables(known), 0.1)
    assert figure is not None
    (panel,) = (ax for ax in figure.axes if ax.get_visible() and ax.get_xlabel().startswith("nudge"))
    named = [(label.get_position()[0], label.get_text()) for label in panel.get_xticklabels(minor=True)]
    last = [name for place, name in sorted(named) if place > 1.5]  # the strangers alone are at the largest beta
    assert last == ["credit_thresholded", "halved", "jfb share=0.5", "zeta"]
    assert [name for place, name in sorted(named) if place < 0.5] == ["naive EP", "asymmetric EP", *last]
    assert {place for place, _, _ in _bars(figure)} == {round(place, 3) for place, _ in named}


def _boxes(labels: list[Text]) -> list[Bbox]:
    return [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]


def test_names_and_values_below_a_panel_never_overlap(cells: pd.DataFrame) -> None:
    rows = cells[(cells["beta"] == 0.1) & (cells["T1"] == 100)]
    dense = [
        rows.assign(beta=beta, cell=f"{i}-" + rows["cell"])
        for i, beta in enumerate(1e-4 * 10 ** (k / 2) for k in range(9))
    ]
    many = _with_strangers(pd.concat(dense, ignore_index=True))
    figures = draw_cosine_sweep(many, "beta"), draw_error_budget(many, *_tables(many), 0.1)
    for figure in figures:
        assert figure is not None
        figure.draw_without_rendering()
        for ax in (ax for ax in figure.axes if ax.get_visible()):
            boxes = _boxes([*ax.get_xticklabels(), *ax.get_xticklabels(minor=True)])
            assert len(boxes) > 1
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_legend_has_as_many_columns_as_fit(cells: pd.DataFrame) -> None:
    labels = [f"ep nudge=positive readout=energy_contrast k={k}" for k in range(6)]
    long = pd.concat([cells, *(cells[:9].assign(estimator="ep", estimator_label=label) for label in labels)])
    figure = draw_residual_vs_cosine(long, 1e-4)
    assert figure is not None
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 < figure.bbox.width


def test_a_system_without_attention_has_no_panel_for_it(cells: pd.DataFrame) -> None:
    attending = cells.assign(system_label="attends", cell="f" + cells["cell"], cosine_attn=0.5)
    alone, both = draw_cosine_sweep(cells, "T1"), draw_cosine_sweep(pd.concat([cells, attending]), "T1")
    assert [sum(ax.axison for ax in figure.axes) for figure in (alone, both)] == [3, 7]  # type: ignore[union-attr]
    assert "no mean cosine of attention" in {text.get_text() for text in both.findobj(Text)}  # type: ignore[union-attr]
    titles = [ax.get_title() for ax in both.axes if ax.axison]  # type: ignore[union-attr]
    assert len([title for title in titles if title]) == 4


@pytest.mark.parametrize(
    "name", ["cosine_vs_T1", "credit_by_layer", "map_s_damp", "params", "residual_vs_cosine", "error_vs_cost"]
)
def test_an_axis_of_nines_says_how_it_is_spaced(run: Run, name: str) -> None:
    figure = gallery.collect()[name](Tables.of(run))
    assert figure is not None
    spaced = [ax for ax in figure.axes if ax.get_yscale() == "function"]
    words = [text.get_text() for text in figure.findobj(Text) if SPACED in text.get_text()]
    assert bool(words) == (bool(spaced) or name == "map_s_damp")


def test_a_run_that_is_not_whole_says_so_in_its_captions(run: Run) -> None:
    whole = Tables.of(run)
    assert " cells" not in whole.source
    plan = read_json(run.folder / "plan.json")
    plan["cells"] += [{"cell": "missing"}, {"cell": "lost"}]
    env = {key: value for key, value in run.env.items() if key != PLAN_SEAL}
    Run(run.folder).start(plan, env)
    assert f"{len(whole.cells)} of {len(whole.cells) + 2} cells" in Tables.of(run).source


def test_error_against_beta_needs_three_nudges_and_shows_the_floor() -> None:
    rows = [_cell(i, "aep", 1.0, 1.0, 100, 20, beta, 0) for i, beta in enumerate((0.01, 0.1, 1.0))]
    cells = pd.DataFrame(rows, columns=CELLS.names).assign(rel_error=[1e-3, 1e-5, 1e-2])
    assert draw_error_vs_beta(cells[:2]) is None
    figure = draw_error_vs_beta(cells)
    assert figure is not None
    lines = {tuple(line.get_ydata()) for line in figure.axes[0].lines}
    assert (1e-3, 1e-5, 1e-2) in lines
    params = _tables(cells)[0]
    params["rel_error"] = np.where(params["param"] == "b", 0.6, 1e-6)
    hidden = error_vs_beta.draw_error_vs_beta(cells, params, 0.1)
    assert hidden is not None
    drawn = {tuple(line.get_ydata()) for line in hidden.axes[0].lines}
    assert {(0.6, 0.6, 0.6), (1e-3, 1e-5, 1e-2)} <= drawn  # the worst parameter, and the whole gradient
    assert "is off by 0.6 at every tested β (the whole gradient by 0.001)" in look.said(hidden, "title")
    assert any(line == pytest.approx((1e-5, 1e-6, 1e-7)) for line in lines)
    labels = ["aep", "aep clip=batch", "aep clip=sample", "aep nudge=positive", "ep", "ep nudge=positive"]
    many = pd.concat([cells.assign(estimator=label.partition(" ")[0], estimator_label=label) for label in labels])
    figure = draw_error_vs_beta(
        pd.concat([many, many.assign(dtype="float64", system_label="other"), many.assign(system_label="other")])
    )
    assert figure is not None
    figure.draw_without_rendering()
    assert max(text.get_window_extent().x1 for text in figure.legends[0].get_texts()) < figure.bbox.width


def test_an_estimate_that_escapes_leaves_the_reference_in_sight() -> None:
    causes = pd.DataFrame({"cause": ["truncation", "clip"], "size": [math.inf, 0.5], "culprit": [True, False]})
    eigenvalues = pd.DataFrame({"real": [0.5, 1.1], "imaginary": [0.1, 0.0], "whole": [False, False]})
    depths = pd.DataFrame({"estimator": "ep", "T2": [1, 10, 4000], "cosine": [0.5, 0.9, math.nan]})
    steps = {"param": "W[0]", "step": [1, 2, 3], "estimate": [0.1, 1e67, math.nan], "reference": [0.1, 0.05, 0.01]}
    words = {"system": "toy", "rule": "ep", "status": "settled"}
    figure = draw_explanation(
        causes, eigenvalues, depths, pd.DataFrame(steps), negligible=0.01, T2=10, **words, sentences=["A cell."]
    )
    bars, spectrum, curve, moves = figure.axes
    assert moves.get_ylim() == pytest.approx((-0.3, 0.3))
    assert "off scale" in moves.get_title()
    assert look.said(figure, "title") == "toy, naive EP (settled): the cause of its error is truncation (not finite)"
    assert [t.get_text() for t in bars.texts] == ["not finite", "5.0e-01"]
    assert spectrum.get_title().startswith("Ritz values")
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in curve.get_xticklabels() if t.get_text()]
    boxes = [b for b in sorted(boxes, key=lambda b: b.x0) if b.width]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_captions_say_what_a_zero_estimate_is_and_when_there_is_no_cosine(cells: pd.DataFrame) -> None:
    params, _ = _tables(cells)
    for figure, zero in (
        (draw_params(cells, params), "An estimate of zero has cosine 0."),
        (draw_error_vs_cost(cells), "A parameter whose estimate is zero has error 1."),
    ):
        assert figure is not None
        (caption,) = (" ".join(t.get_text().split()) for t in figure.texts if t.get_gid() == "caption")
        assert zero in caption
        assert "reference is zero, not finite or below the floor of liveness, or" in caption
        assert "estimate is not finite" in caption


def test_figures_draw_cosines_to_one_reference_and_the_gap_of_both(tmp_path: Path) -> None:
    grid = {"system": "toy_noncons", "estimator": "adjoint", "T1": [20, 200], "T2": 20, "damp": 3.0, "batch": 2}
    suite = gb.suite(grid | {"reference": ["bptt", "implicit"]}, name="both")
    run = gb.run(suite, out=tmp_path, device="cpu")
    tables = Tables.of(Run(run.folder))
    assert set(tables.cells["reference"]) == {"bptt"}
    assert len(tables.whole) == 2 * len(tables.cells)
    assert set(tables.params["cell"]) == set(tables.cells["cell"])
    figures = run.plot()
    assert "none of the 2 cells with another reference is drawn" in look.said(figures["residual_vs_cosine"], "caption")
    assert look.said(figures["gap_vs_residual"], "title").startswith(
        "Backpropagation through T1 steps and the implicit"
    )
    alone = gb.run(gb.suite(grid | {"reference": "implicit"}, name="alone"), out=tmp_path, device="cpu").plot()
    words = [text.get_text() for text in alone["residual_vs_cosine"].findobj(Text)]
    assert not [text for text in words if "BPTT" in text]
    assert [text for text in words if "the implicit gradient" in text]


def _matrix_rows(*told: tuple[str, str, float, int, str]) -> pd.DataFrame:
    """Cells of (system, rule, smallest cosine, evaluations, status), two seeds each, the second one a little better."""
    rows = []
    for i, (system, rule, cosine, work, status) in enumerate(told):
        for seed in (0, 1):
            row = _cell(10 * i + seed, "ep", 1.0, 0.0, 100, 20, 0.02 * (1 + i), seed)
            names = {"system": system, "system_label": system, "estimator": rule, "estimator_label": rule}
            counts = {"n_force": work, "n_jvp": 0, "n_vjp": 0}
            rows.append(row | names | counts | {"cosine_min": cosine + 1e-4 * seed, "status": status})
    return pd.DataFrame(rows)


def test_a_matrix_shows_one_setting_the_best_with_its_own_price() -> None:
    table = _matrix_rows(
        ("a", "aep", 0.995, 40, "settled"),
        ("a", "aep", 0.9991, 90, "settled"),
        ("b", "aep", 0.99995, 60, "settled"),
        ("b", "aep", 0.99999, 80, "settled"),
        ("a", "ep", 0.5, 30, "settled"),
        ("b", "aep", 0.9997, 50, "settled"),
        ("b", "ep", 0.992, 20, "settled"),
        ("c", "ep", 0.9, 20, "unsettled"),
        ("c", "adjoint", 0.9, 20, "skipped"),
    )
    figure = draw_rules_by_system(table)
    assert figure is not None
    kinds, panel = figure.axes
    assert [text.get_text() for text in kinds.texts] == ["asymmetric Jacobian", "not measured at rest"]
    words = {tuple(np.round(t.get_position(), 2)): t.get_text() for t in panel.texts if t.get_text()}
    assert words[0.5, 0.3] == "0.9991"
    assert words[0.5, 0.68] == "cost 90"
    assert words[1.5, 0.3] == ">0.9999"
    assert words[1.5, 0.68] == "cost 60"  # of cosines that count as equal the cheapest
    assert words[0.5, 1.68] == "asymmetry"
    assert "unsettled" in words.values()
    assert "-" in words.values()
    title = look.said(figure, "title")
    assert title == (
        "At the best setting each, s and damping included, naive EP follows BPTT in every parameter on 1 of 2 "
        "asymmetric systems tried; asymmetric EP on both asymmetric systems tried"
    )


def test_a_row_of_a_matrix_says_where_alone_its_rule_was_run() -> None:
    table = _matrix_rows(*((system, rule, 0.9, 1, "settled") for system in "ab" for rule in ("ep", "aep", "adjoint")))
    figure = draw_rules_by_system(table.assign(beta=table["beta"].where(table["estimator"] != "ep", 0.5)))
    assert figure is not None
    names = {label.get_text().replace(BLANK, " ") for label in figure.axes[1].get_yticklabels()}
    assert names == {"naive EP\n(at β = 0.5 only)", "asymmetric EP", "adjoint"}


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ({}, "worst seed of those run at every value"),
        ({1: (20,)}, "seed 0, the only one run at every value"),
    ],
)
def test_a_key_says_which_seeds_lines_go_through(seeds: dict[int, tuple[int, ...]], words: str) -> None:
    rows = [_cell(0, "aep", 1.0, 0.0, 100, T2, 0.02, seed) for T2 in (20, 60) for seed in (0, 1)]
    table = pd.DataFrame([row for row in rows if row["T2"] in seeds.get(row["seed"], (20, 60))])
    figure = draw_cosine_sweep(table.assign(cell=[f"{i}" for i in range(len(table))]), "T2")
    assert figure is not None
    assert f"line: {words}" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_matrix_of_few_rules_is_none() -> None:
    assert draw_rules_by_system(_matrix_rows(("a", "ep", 0.5, 1, "settled"), ("b", "aep", 0.5, 1, "settled"))) is None
