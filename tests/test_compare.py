"""Two runs cell by cell."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_baselines import HERE, STATE, at, reading, remeasured, undefined, unsettled

import gradbench as gb
from gradbench.cli import _code
from gradbench.errors import StoreError, UserError
from gradbench.plots.paired import WORDS, _row_names, draw_comparison
from gradbench.tables.baselines import Demand, set_baseline
from gradbench.tables.store import Run
from gradbench.tables.verdict import judge
from gradbench.vocabulary.exit import Exit
from gradbench.vocabulary.notation import METRICS


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Run:
    """A second copy of the run."""
    return Run(Path(shutil.copytree(finished, tmp_path / "other")))


def test_two_runs_of_one_suite_are_equal(gated: Run, finished: Path, tmp_path: Path) -> None:
    again = gb.run(str(finished.parents[2] / "gated.toml"), out=tmp_path, device="cpu")
    comparison = gb.compare(gated, again)
    assert comparison.code is Exit.OK
    assert comparison.line == (
        "COMPARED nothing is worse than noise (0)  104 cells in both, 0 only in the first, 0 only in the second"
    )
    assert set(comparison.table["metric"]) >= {"cosine", "cosine_min", "rel_error", "norm_ratio", "residual"}
    assert not comparison.table[["median", "worst", "worse"]].any(axis=None)
    assert comparison.environment == {}


@pytest.mark.parametrize(
    ("change", "metric", "worse"), [(lambda r: reading(r, 0.1), "cosine_min", 1), (undefined, "cosine", 1)]
)
def test_what_is_worse_than_noise_is_named(gated: Run, other: Run, change: Any, metric: str, worse: int) -> None:
    remeasured(gated, at(HERE, lambda row: reading(row, 0.99)))
    remeasured(other, at(HERE, change))
    comparison = gb.compare(gated.folder, other.folder, [metric])
    (row,) = comparison.table.to_dict("records")
    (cell,) = (r["cell"] for r in gated.cells.to_dict("records") if all(r[k] == v for k, v in HERE.items()))
    assert (comparison.code, row["metric"], row["worse"], row["cell"]) == (Exit.CHECK_FAILED, metric, worse, cell)
    assert gb.compare(other, gated, [metric]).code is Exit.OK  # it is better the other way round


def test_a_status_and_a_cause_that_changed_are_told(gated: Run, other: Run) -> None:
    remeasured(other, at(STATE, unsettled))
    (status,) = (f for f in gb.compare(gated, other).findings if f.name == "what was settled is settled")
    assert status.result == "fail"
    assert "7 no longer, first settled -> unsettled at " in status.detail


def test_cells_of_one_side_are_counted_and_without_a_common_one_nothing_is_said(
    gated: Run, finished: Path, tmp_path: Path
) -> None:
    suite = str(finished.parents[2] / "gated.toml")
    part = gb.run(suite, out=tmp_path, device="cpu", overrides={"seed": [3, 4]})
    comparison = gb.compare(gated, part)
    assert (comparison.code, comparison.common, comparison.only_a, comparison.only_b) == (
        Exit.CHECK_FAILED,
        26,
        78,
        26,
    )
    assert [f.name for f in comparison.findings if not f] == ["every cell of the first run"]
    assert gb.compare(part, gated).only_b == 78
    disjoint = gb.compare(gated, gb.run(suite, out=tmp_path, device="cpu", overrides={"seed": 4}))
    assert (disjoint.code, len(disjoint.table)) == (Exit.NOTHING, 0)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            {"T1": [5, 6]},
            "; T1 is 20, 200 in the first and 5, 6 in the second; to pair .* it: --across T1=20,5$",
        ),
        ({"dtype": "float32"}, "; dtype is float64 in the first and float32 .*: --across dtype=float64,float32"),
        (
            {"T1": 5, "dtype": "float32"},
            "; T1 is 20, 200 .* 5 in the second; dtype is float64 .* float32 in the second$",
        ),
        ({"seed": [7, 8, 9, 10, 11]}, "; seed is 0, 1, 2, 3 in the first and 7, 8, 9, 10 and 1 more in the second; to"),
        (
            {"system": "toy_cons"},
            "; system is toy_cons .*, toy_noncons .* in the first and toy_cons in the second",
        ),
    ],
)
def test_runs_without_a_common_cell_are_told_what_differs(
    gated: Run, finished: Path, tmp_path: Path, overrides: dict[str, Any], told: str
) -> None:
    suite = str(finished.parents[2] / "gated.toml")
    other = gb.run(suite, out=tmp_path, device="cpu", overrides=overrides)
    comparison = gb.compare(gated, other)
    (finding,) = comparison.findings
    assert re.search(f"^no cell is in both{told}", finding.detail), finding.detail
    assert ("--across" in finding.detail) == ("--across" in told or told.endswith("; to"))
    assert comparison.line.startswith("COMPARED nothing compared (4)  0 cells in both, 104 only in the first, ")


def test_what_settles_nowhere_is_not_compared(gated: Run, other: Run) -> None:
    remeasured(gated, unsettled)
    remeasured(other, lambda row: (unsettled(row), row.update(seconds=1.0)))  # else it is a copy
    for comparison in (gb.compare(gated, other), gb.compare(gated, gated, across={"estimator": ["ep", "aep"]})):
        numbers = comparison.findings[-1]
        assert (comparison.code, numbers.name, numbers.result) == (Exit.NOTHING, "numbers", "none")
        assert numbers.detail == "no cell is settled in both: no number was compared"
        assert "nothing compared (4)" in comparison.line


def test_a_metric_that_no_cell_has_is_told(finished: Path, tmp_path: Path) -> None:
    toy = {"system": {"name": "toy_cons", "N": 2, "D": 4, "out": 2, "drive_std": 1.0}, "T1": 200}  # without attention
    run = gb.run(str(finished.parents[2] / "gated.toml"), out=tmp_path, device="cpu", overrides=toy)
    comparison = gb.compare(run, run, ["cosine_attn"], across={"estimator": ["ep", "aep"]})
    assert comparison.code is Exit.NOTHING
    assert " cells that are settled in both none has cosine_attn" in comparison.findings[-1].detail


def test_a_rule_that_was_edited_is_compared_with_what_it_was(tmp_path: Path) -> None:
    def scaled(by: float) -> Any:
        @gb.estimator(source="a test", name="scaled")
        def rule(free: Any) -> Any:
            return by * free.back(free.cost_slope)

        return rule

    toy = {"name": "toy_cons", "N": 2, "D": 4, "out": 2, "drive_std": 1.0}
    grid = {"system": toy, "damp": 3.0, "T1": 200, "T2": 30, "beta": 0.1, "batch": 2}
    runs = [
        gb.run(gb.suite(grid | {"estimator": ["ep", scaled(by)][first:]}), out=tmp_path, device="cpu").run
        for by, first in ((1.0, 0), (1.0, 1), (-1.0, 1))  # without ep no T2 is null
    ]
    assert gb.compare(runs[1], runs[0]).code is Exit.OK
    comparison = gb.compare(runs[0], runs[2])
    assert (comparison.code, comparison.common, comparison.only_a, comparison.only_b) == (Exit.CHECK_FAILED, 1, 1, 0)
    (worst,) = comparison.table[comparison.table["metric"] == "cosine"].to_dict("records")
    assert worst["cell"] == runs[2].cells["cell"][0] != runs[0].cells["cell"][1]
    path = set_baseline([runs[0]], tmp_path, ["dirty"])
    findings = {f.name: f for f in judge(runs[2], demand=Demand(path)).of("baseline")}
    assert (
        "; 1 are of a system or a rule whose code changed; 1 are missing"
        in findings["every cell of the baseline"].detail
    )
    assert findings["cosine is no worse"].result == "fail"


def test_an_unfinished_run_is_exit_3(gated: Run, other: Run) -> None:
    (other.folder / "manifest.json").unlink()
    sorted((other.folder / "records").iterdir())[0].unlink()
    for comparison in (gb.compare(gated, other), gb.compare(other, gated)):  # few cells of the first pass for all
        assert (comparison.code, comparison.only_a + comparison.only_b > 0) == (Exit.INCOMPLETE, True)
        assert comparison.line.startswith("COMPARED unfinished (3)")


def test_a_run_with_looser_thresholds_is_worse(gated: Run, finished: Path, tmp_path: Path) -> None:
    loose = tmp_path / "gated.toml"
    loose.write_text((finished.parents[2] / "gated.toml").read_text() + "\n[thresholds]\nresidual = 1.0\n")
    comparison = gb.compare(gated, gb.run(str(loose), out=tmp_path, device="cpu"))
    assert comparison.code is Exit.CHECK_FAILED
    assert [(f.name, f.detail) for f in comparison.findings if not f] == [
        ("the thresholds are those of the first run", "residual: 0.0001 -> 1.0")
    ]


def test_a_metric_that_is_named_twice_is_compared_once(gated: Run, other: Run) -> None:
    remeasured(other, at(HERE, lambda row: reading(row, 0.1)))
    assert gb.compare(gated, other, ["cosine", "cosine"]).table["metric"].tolist() == ["cosine"]
    with pytest.raises(UserError, match=r"metrics: got 'cosine', expected a list of names, as in \['cosine'\]"):
        gb.compare(gated, other, "cosine")


def test_what_compares_nothing_is_a_mistake(gated: Run, capsys: Any) -> None:
    link = gated.folder.parent / "link"
    link.symlink_to(gated.folder)
    with pytest.raises(UserError, match="is compared with itself"):
        gb.compare(gated, link)
    copy = shutil.copytree(gated.folder, gated.folder.parent / "copy")
    with pytest.raises(UserError, match="copy: is a copy of "):
        gb.compare(gated, copy)
    for across, message in (
        ({"estimator": ["aep", "aep"]}, "its two values are equal: 'aep'"),
        ({"cause": ["clip", "rest"]}, "^across cause: is neither a coordinate nor an option"),
        ({"sead": [0, 1]}, "^across sead: .*Did you mean 'seed'"),
    ):
        with pytest.raises(UserError, match=message):
            gb.compare(gated, gated, across=across)
    assert _code(["compare", str(gated.folder), str(gated.folder), "--across", "T1=20,20"]) == Exit.USAGE


def test_cells_that_share_all_but_what_is_left_out_have_no_partner_and_are_counted(
    finished: Path, tmp_path: Path
) -> None:
    nudge = {"estimator": [{"name": "aep", "nudge": ["positive", "negative"]}, "ep"], "seed": 0, "T1": 200, "T2": 60}
    run = gb.run(str(finished.parents[2] / "gated.toml"), out=tmp_path, device="cpu", overrides=nudge)
    comparison = gb.compare(run, run, ["cosine"], across={"estimator": ["aep", "ep"]})
    assert (comparison.code, comparison.common, comparison.only_a) == (Exit.NOTHING, 0, 4)
    labels = gb.compare(run, run, ["cosine"], across={"estimator_label": ["aep nudge=positive", "ep"]})
    assert labels.common == 2


def test_across_pairs_two_rules_two_systems_and_two_dtypes(gated: Run, finished: Path, tmp_path: Path) -> None:
    rules = gb.compare(gated, gated, ["cosine_min"], across={"estimator": ["ep", "aep"]})
    assert rules.common == 32
    cells = gated.cells[gated.cells["status"] == "settled"].set_index("cell")
    for pair in rules.pairs.to_dict("records"):
        aep = cells.loc[pair["cell"]]
        ep = cells[(cells["estimator"] == "ep") & (cells["system"] == aep["system"])]
        (partner,) = ep[(ep[["T1", "T2", "seed"]] == aep[["T1", "T2", "seed"]]).all(axis=1)]["cosine_min"]
        assert (aep["estimator"], pair["a"], pair["b"]) == ("aep", partner, aep["cosine_min"])
    assert gb.compare(gated, gated, across={"system": ["toy_cons", "toy_noncons"]}).common == 52
    coarse = gb.run(str(finished.parents[2] / "gated.toml"), out=tmp_path, device="cpu", overrides={"dtype": "float32"})
    dtypes = gb.compare(gated, coarse, ["cosine"], across={"dtype": ["float64", "float32"]})
    assert dtypes.common == 104
    assert dtypes.table["noise"].tolist() == [pytest.approx(3e-4)]
    with pytest.raises(UserError, match=r"^across estimator: no cell has estimator = 'app'"):
        gb.compare(gated, gated, across={"estimator": ["app", "ep"]})
    with pytest.raises(UserError, match="across seed: got 3, expected two values"):
        gb.compare(gated, gated, across={"seed": 3})


def test_a_figure_says_what_its_axes_and_rows_are(gated: Run, other: Run) -> None:
    remeasured(other, at(HERE, lambda row: reading(row, 0.1)))
    runs = tuple(f"{run.folder.parent.name}/{run.id}" for run in (gated, other))
    for across, b, sides, rules, rows in (
        ({"estimator": ["ep", "aep"]}, gated, ("estimator = ep", "estimator = aep"), 0, "toy_noncons / aep"),
        ({"T1": [20, 200]}, other, (f"T1 = 20, {runs[0]}", f"T1 = 200, {runs[1]}"), 4, "toy_cons / tbptt"),
        (None, other, runs, 4, "toy_cons / ep"),
    ):
        comparison = gb.compare(gated, b, across=across)
        assert comparison.sides == sides
        figure = draw_comparison(comparison.pairs, comparison.sides, [])
        assert figure is not None
        scatter, changes = figure.axes[:2]
        words = METRICS["cosine_min"].axis
        assert (scatter.get_xlabel(), scatter.get_ylabel()) == (f"{words}\n{sides[0]}", f"{sides[1]}\n{words}")
        shown = comparison.pairs[comparison.pairs["metric"] == "cosine_min"]
        lost = int((~(shown["loss"] <= shown["allowed"])).sum())
        assert scatter.get_title().startswith(f"{lost or 'None'} of {len(shown)} cells")
        assert sum(len(legend.get_texts()) for legend in figure.legends) == rules
        assert rows in [label.get_text() for label in changes.get_yticklabels()]
        assert figure.texts[-1].get_text() == "White, crossed: no number to compare."  # toy_cons has no attention
    failed = sum(not finding.passed for finding in comparison.findings)
    assert f"  {failed} of {len(comparison.findings)} comparisons failed  " in comparison.line


def test_the_rule_of_a_row_is_told_however_long_its_system_is() -> None:
    systems = ["a x=1 y=2", "a x=1 y=3", "b " + " ".join(f"option{i}=1" for i in range(9)), "b option0=2"]
    told = _row_names([(system, "aep clip=batch") for system in systems])
    assert told[:2] == ["a y=2 / aep", "a y=3 / aep"]
    assert [len(name) <= WORDS and name.endswith("... / aep") for name in told[2:]] == [True, False]


def test_the_command_says_what_the_function_says(gated: Run, other: Run, capsys: Any) -> None:
    remeasured(other, at(HERE, lambda row: reading(row, 0.1)))
    names = [str(gated.folder), str(other.folder)]
    assert _code(["compare", *names]) == Exit.CHECK_FAILED
    assert capsys.readouterr().out.splitlines()[-1] == gb.compare(*names).line
    assert _code(["compare", *names, "--json"]) == Exit.CHECK_FAILED
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(gb.compare(*names).to_json()))
    assert _code(["compare", names[0], names[0], "--across", "estimator=ep,aep"]) in (Exit.OK, Exit.CHECK_FAILED)
    assert _code(["compare", *names, "--metric", "cosin"]) == Exit.USAGE
    assert "'cosin' is no metric with a direction. Did you mean 'cosine'?" in capsys.readouterr().err
    assert _code(["compare", *names, "--figure", str(other.folder / "f")]) == Exit.CHECK_FAILED
    assert {p.suffix for p in (other.folder / "f").iterdir()} == {".png", ".svg"}
    assert gb.compare(*names).pairs["cell"].str.len().eq(16).all()
    assert _code(["compare", *names, "--figure", "f.pdf"]) == Exit.USAGE
    capsys.readouterr()
    (other.folder / "params.parquet").write_bytes(b"")
    assert _code(["compare", *names]) == Exit.STORE
    with pytest.raises(StoreError, match=r"params\.parquet: damaged"):
        gb.compare(*names)
