"""Baselines: a run that reads worse than its suite did fails, and so does one that cannot be compared."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradbench
from gradbench.api.results import Results
from gradbench.cli import _code
from gradbench.commands.running import prepare
from gradbench.errors import StoreError, UserError
from gradbench.tables.baselines import (
    MOST_NOISE,
    RUNS,
    SCHEMA_OF_BASELINE,
    SUITE,
    THRESHOLDS,
    Demand,
    path_of,
    places_of,
    read_baseline,
    set_baseline,
    shipped_baseline,
)
from gradbench.tables.disk import write_json, write_table
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.store import Run
from gradbench.tables.verdict import Verdict, judge
from gradbench.vocabulary.exit import Exit

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, Any]]
HERE = {"system": "toy_noncons", "estimator": "aep", "T1": 200, "T2": 60, "seed": 3}  # a settled cell
STATE = {name: HERE[name] for name in ("system", "T1", "seed")}  # the free state of it and of other cells


def remeasured(run: Run, change: Callable[[dict[str, Any]], object]) -> Run:
    """Store every record of a run again, with changed rows, as another measurement would."""
    for path in sorted((run.folder / "records").glob("*.parquet")):
        rows = run.record(path.stem).to_pylist()
        for row in rows:
            change(row)
        run.keep(path.stem, rows)
    run.compact(skipped_rows(run.plan))
    return run


def reading(row: dict[str, Any], cosine: float, ratio: float = 1.0) -> None:
    """A cosine and a norm ratio, the same in every parameter, with the error that follows."""
    for read in (row, *row["params"]):
        error = math.sqrt(max(1 + ratio**2 - 2 * ratio * cosine, 0))
        read |= {"cosine": cosine, "norm_ratio": ratio, "rel_error": error}
    attention = any(p["param"] in ("WQ", "WK", "WV", "WO") for p in row["params"])
    row |= {"cosine_min": cosine, "cosine_mean": cosine, "cosine_attn": cosine if attention else math.nan}


def at(place: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda row: change(row) if all(row[k] == v for k, v in place.items()) else None


@pytest.fixture
def demand(gated: Run, tmp_path: Path) -> Demand:
    """The baseline of a run in which the cell HERE reads 0.99."""
    remeasured(gated, at(HERE, lambda row: reading(row, 0.99)))
    return Demand(set_baseline([gated], tmp_path, ["dirty"]))


def compared(run: Run, demand: Demand) -> tuple[Verdict, dict[str, Any]]:
    verdict = judge(run, demand=demand)
    return verdict, {f.name: f for f in verdict.of("baseline")}


def test_a_run_is_as_good_as_it_was(gated: Run, demand: Demand) -> None:
    verdict, findings = compared(gated, demand)
    assert verdict.code is Exit.OK
    assert set(findings) > {"every cell of the baseline", "what was settled is settled", "cosine_min is no worse"}
    assert all(f.result == "pass" for f in findings.values())
    assert verdict.line.startswith(f"VERDICT pass (0)  1 of 1 checks, {len(findings)} of {len(findings)} comparisons, ")


def unsettled(row: dict[str, Any]) -> None:
    row |= {"status": "unsettled", "reason": "50% of the samples settled", "settled_share": 0.5, "residual": 0.1}


def undefined(row: dict[str, Any]) -> None:
    infinite = {
        "cosine": math.nan,
        "norm_ratio": math.inf,
        "rel_error": math.inf,
        "reason": "the estimate is not finite",
    }
    for read in (row, *row["params"]):
        read |= infinite
    worst = row["params"][0]["param"]
    row |= {"cosine_min": math.nan, "cosine_mean": math.nan, "cosine_attn": math.nan, "worst": worst}
    row |= {"params_undefined": len(row["params"])}


WORSE: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "a cosine of 0.1": (
        lambda r: reading(r, 0.1),
        "cosine is no worse",
        r"1 are worse, most 0\.99 -> 0\.1 at \w{16}, toy_nonc",
    ),
    "a cosine_min of 0.1": (
        lambda r: reading(r, 0.1),
        "cosine_min is no worse",
        r"0\.99 -> 0\.1 at .* seed=3, allowed 0\.001$",
    ),
    "a cosine_mean of 0.1": (lambda r: reading(r, 0.1), "cosine_mean is no worse", r"0\.99 -> 0\.1 at"),
    "an error": (lambda r: reading(r, 0.1), "rel_error is no worse", r"0\.141421 -> 1\.34164 at"),
    "twice the norm": (lambda r: reading(r, 0.99, 2.0), "norm_ratio is no worse", "1 -> 2 at"),
    "half the norm": (lambda r: reading(r, 0.99, 0.5), "norm_ratio is no worse", r"1 -> 0\.5 at"),
    "a little more than the tolerance": (lambda r: reading(r, 0.9889), "cosine is no worse", r"0\.99 -> 0\.9889 at"),
    "no cosine": (undefined, "cosine is no worse", "0.99 -> nan at"),
    "a status": (
        unsettled,
        "what was settled is settled",
        r"7 no longer, first settled -> unsettled at \w{16}, toy_noncons",
    ),
}


@pytest.mark.parametrize("name", WORSE)
def test_a_run_that_is_worse_in_one_cell_fails(gated: Run, demand: Demand, name: str) -> None:
    change, finding, message = WORSE[name]
    verdict, findings = compared(remeasured(gated, at(STATE if change is unsettled else HERE, change)), demand)
    assert verdict.code is Exit.CHECK_FAILED
    assert findings[finding].result == "fail"
    pytest.raises(ValueError, match=message).matches(ValueError(findings[finding].detail)) or pytest.fail(str(findings))


def test_what_is_better_or_within_the_tolerance_passes_and_a_smaller_tolerance_finds_it(
    gated: Run, demand: Demand
) -> None:
    remeasured(gated, at(HERE, lambda row: reading(row, 0.98995)))
    assert compared(gated, demand)[0].code is Exit.OK
    strict = Demand(demand.path, tolerance=1e-5)
    assert compared(gated, strict)[1]["cosine is no worse"].result == "fail"
    assert compared(remeasured(gated, at(HERE, lambda row: reading(row, 0.9999))), strict)[0].code is Exit.OK


def test_a_floor_holds_whatever_the_tolerance_where_the_baseline_keeps_to_it(gated: Run, demand: Demand) -> None:
    remeasured(gated, at(HERE, lambda row: reading(row, 0.98995)))
    for floors, result in (
        ({"cosine_min": 0.9899}, "pass"),
        ({"cosine_min": 0.98998}, "fail"),
    ):
        findings = compared(gated, Demand(demand.path, 1e-3, floors))[1]
        assert findings["cosine_min keeps to {cosine_min:g}".format(**floors)].result == result
    assert (
        compared(gated, Demand(demand.path, 1e-3, {"rel_error": 0.1416}))[1]["rel_error keeps to 0.1416"].result
        == "fail"
    )


def test_a_floor_holds_every_settled_cell_but_those_beyond_it_in_the_baseline(
    gated: Run, demand: Demand, tmp_path: Path
) -> None:
    def below(row: dict[str, Any]) -> None:
        reading(row, 0.3)

    def floored(run: Run) -> Any:
        return compared(run, Demand(demand.path, 0.5, {"cosine": 0.5}))[1]["cosine keeps to 0.5"]

    remeasured(gated, at(HERE, below))
    assert floored(gated).result == "fail"
    demand.path.unlink()
    set_baseline([gated], tmp_path, ["dirty", "failing"])  # the cell is beyond the floor there
    seen = floored(gated)
    assert (seen.result, seen.detail.rpartition("; ")[2]) == (
        "pass",
        "1 cells are beyond it in the baseline, 6 are not settled",
    )
    table = pq.read_table(demand.path)
    write_table(demand.path, table.filter(pa.compute.less(table["seed"], 3)))  # now the cell is new
    seen = floored(gated)
    assert (seen.result, seen.detail.rpartition("; ")[2]) == ("fail", "none is beyond it there, 6 are not settled")
    remeasured(gated, at(STATE, unsettled))
    assert floored(gated).detail.endswith("none is beyond it there, 13 are not settled")


def test_a_residual_may_grow_tenfold_from_round_off(gated: Run, demand: Demand) -> None:
    def residual(value: float) -> Any:
        return lambda row: row.update(residual=value)

    remeasured(gated, residual(1e-16))
    set_baseline([gated], demand.path.parents[1], ["dirty", "failing"])
    for value, result in ((1e-17, "pass"), (3e-14, "pass"), (1e-12, "fail"), (9.9e-5, "fail")):
        finding = compared(remeasured(gated, residual(value)), demand)[1]["residual is no worse"]
        assert (value, finding.result) == (value, result)


def test_a_baseline_knows_the_thresholds_of_its_statuses(gated: Run, demand: Demand) -> None:
    name = "the thresholds are those of the baseline"
    assert compared(gated, demand)[1][name].result == "pass"
    table = pq.read_table(demand.path)
    other = gated.plan["thresholds"] | {"residual": 1.0}
    write_table(demand.path, table.replace_schema_metadata({**table.schema.metadata, THRESHOLDS: json.dumps(other)}))
    verdict, findings = compared(gated, demand)
    assert (verdict.code, findings[name].result) == (Exit.CHECK_FAILED, "fail")
    assert findings[name].detail == "residual: 1.0 -> 0.0001"


def test_a_cause_that_changed_is_told_and_decides_nothing(gated: Run, demand: Demand) -> None:
    def other(row: dict[str, Any]) -> None:
        row["cause"] = "clip" if row["cause"] else None

    verdict, findings = compared(remeasured(gated, other), demand)
    assert verdict.code is Exit.OK
    assert " have another cause, first " in findings["what was settled is settled"].detail


def test_a_dropped_cell_fails_and_a_new_one_is_told(gated: Run, finished: Path, demand: Demand, tmp_path: Path) -> None:
    suite = str(finished.parents[2] / "gated.toml")
    part = gradbench.run(suite, out=tmp_path / "part", device="cpu", overrides={"seed": [0, 1, 2]})
    verdict, findings = compared(part, demand)
    coverage = findings["every cell of the baseline"]
    assert (verdict.code, coverage.result, coverage.cells) == (Exit.CHECK_FAILED, "fail", 78)
    assert "; 26 are missing, first " in coverage.detail
    smaller = Demand(set_baseline([part], tmp_path / "part", ["dirty"]))
    coverage = compared(gated, smaller)[1]["every cell of the baseline"]
    assert coverage.result == "pass"
    assert "; 26 cells are new, first " in coverage.detail
    other = gradbench.run(suite, out=tmp_path / "other", device="cpu", overrides={"seed": 77})
    verdict, findings = compared(other, demand)
    assert (verdict.code, [f.result for f in findings.values()]) == (Exit.CHECK_FAILED, ["none"])
    assert findings["every cell of the baseline"].detail.endswith("the run none of them: nothing was compared")


def changed(table: pa.Table, name: str, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    row = next(i for i, status in enumerate(table["status"].to_pylist()) if status == "settled")
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


def with_metadata(table: pa.Table, key: bytes, value: bytes | None) -> pa.Table:
    """The table with another entry of its metadata, or without it."""
    others = {k: v for k, v in table.schema.metadata.items() if k != key}
    return table.replace_schema_metadata(others if value is None else {**others, key: value})


DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a renamed key": (lambda t: changed(t, "cell", "0" * 16), "0000 is not the digest of its coordinates"),
    "a renamed estimator": (lambda t: changed(t, "estimator", "app"), "is not the digest of its coordinates"),
    "a doubled row": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "a cell stands there more than once"),
    "a misspelt status": (lambda t: changed(t, "status", "setled"), "'setled' is not a status"),
    "an infinite noise": (lambda t: changed(t, "cosine_noise", math.inf), "cosine of .* or its noise is no number"),
    "a NaN as noise": (lambda t: changed(t, "rel_error_noise", math.nan), "rel_error of .* or its noise is no number"),
    "a negative noise": (lambda t: changed(t, "cosine_noise", -1.0), "cosine of .* or its noise is no number"),
    "a cosine of 7": (lambda t: changed(t, "cosine_min", 7.0), "cosine_min of .* or its noise is no number"),
    "another schema": (
        lambda t: t.replace_schema_metadata({**t.schema.metadata, b"gradbench.schema": b"baseline 0"}),
        "schema version baseline 0, this gradbench reads baseline 1 and baseline 2",
    ),
    "other columns": (lambda t: t.drop(["cosine"]), "its columns are not those of schema version baseline 2"),
    "a noise that no cosines have": (
        lambda t: with_metadata(changed(t, "cosine_noise", 2.1), RUNS, b"[{}, {}]"),
        "cosine of .* or its noise is no number",
    ),
    "no runs": (lambda t: with_metadata(t, RUNS, b"[]"), "it names no runs"),
    "runs that are a number": (lambda t: with_metadata(t, RUNS, b"3"), "it names no runs"),
    "torn runs": (lambda t: with_metadata(t, RUNS, b"[{"), "its runs or its thresholds: JSONDecodeError"),
    "no thresholds": (lambda t: with_metadata(t, THRESHOLDS, None), "its runs or its thresholds: KeyError"),
    "thresholds that are a list": (lambda t: with_metadata(t, THRESHOLDS, b"[]"), "it holds no thresholds"),
    "a suite that is no text": (lambda t: with_metadata(t, SUITE, b"\xff"), "is the baseline of the suite '\ufffd'"),
    "no key": (lambda t: changed(t, "cell", None), "None is not the digest of its coordinates"),
    "another suite": (
        lambda t: t.replace_schema_metadata({**t.schema.metadata, SUITE: b"toy"}),
        "is the baseline of the suite 'toy', and the run is of 'gated'",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_baseline_is_exit_5_and_named(gated: Run, demand: Demand, name: str) -> None:
    damage, message = DAMAGE[name]
    write_table(demand.path, damage(pq.read_table(demand.path)))
    verdict = judge(gated, demand=demand)
    (fault,) = verdict.of("store")
    assert verdict.code is Exit.STORE
    assert json.loads((gated.folder / "verdict.json").read_text())["verdict"] == "damaged"
    with pytest.raises(StoreError, match=message) as raised:
        read_baseline(demand.path, "gated")
    assert fault.detail == str(raised.value)


def test_a_number_that_the_baseline_lacks_is_told_and_a_metric_without_any_has_no_verdict(
    gated: Run, demand: Demand
) -> None:
    table = pq.read_table(demand.path)
    write_table(demand.path, changed(table, "cosine", math.nan))
    detail = compared(gated, demand)[1]["cosine is no worse"].detail
    assert "; 1 have a number now, and had none" in detail
    nothing = pa.array([math.nan] * len(table), pa.float64())
    write_table(demand.path, table.set_column(table.column_names.index("cosine"), "cosine", nothing))
    verdict, findings = compared(gated, demand)
    assert (verdict.code, findings["cosine is no worse"].result) == (Exit.CHECK_FAILED, "none")
    assert findings["cosine is no worse"].detail == "no number was compared: 98 have a number now, and had none"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_baseline_is_exit_5(gated: Run, demand: Demand, share: float) -> None:
    content = demand.path.read_bytes()
    demand.path.write_bytes(content[: int(share * len(content))])
    verdict = judge(gated, demand=demand)
    assert (verdict.code, len(verdict.of("store"))) == (Exit.STORE, 1)


def test_an_emptied_baseline_and_one_without_a_settled_cell_have_no_verdict(gated: Run, demand: Demand) -> None:
    table = pq.read_table(demand.path)
    write_table(demand.path, table.slice(0, 0))
    verdict, findings = compared(gated, demand)
    assert (verdict.code, [f.result for f in findings.values()]) == (Exit.CHECK_FAILED, ["none"])
    status = pa.array(["unsettled"] * len(table), pa.string())
    write_table(demand.path, table.set_column(table.column_names.index("status"), "status", status))
    verdict, findings = compared(gated, demand)
    assert (verdict.code, findings["numbers"].result) == (Exit.CHECK_FAILED, "none")


def test_a_baseline_of_several_runs_has_medians_and_spreads(finished: Path, tmp_path: Path) -> None:
    suite = str(finished.parents[2] / "gated.toml")
    runs = [gradbench.run(suite, out=tmp_path, device="cpu", overrides={"seed": 3}, fresh=True) for _ in range(3)]
    for run, cosine in zip(runs, (0.97, 0.99, 0.98), strict=True):
        remeasured(run, at(HERE, lambda row, cosine=cosine: reading(row, cosine)))
    unsettled_at = HERE | {"system": "toy_cons", "estimator": "ep"}
    remeasured(runs[1], at(STATE | {"system": "toy_cons"}, unsettled))
    with pytest.raises(
        UserError, match=r"7 cells have another status in another run; first \w{16}: settled, unsettled"
    ):
        set_baseline(runs, tmp_path, ["dirty"])
    table = read_baseline(set_baseline(runs, tmp_path, ["dirty", "disagreeing"]), "gated").to_pandas()
    (row,) = (r for r in table.to_dict("records") if all(r[k] == v for k, v in HERE.items()))
    assert (row["cosine"], row["cosine_noise"]) == (0.98, pytest.approx(0.02))
    (row,) = (r for r in table.to_dict("records") if all(r[k] == v for k, v in unsettled_at.items()))
    assert row["status"] == "unsettled"
    remeasured(runs[0], at(HERE, lambda row: reading(row, 0.93)))
    demand = Demand(path_of("gated", tmp_path))
    assert compared(runs[0], demand)[1]["cosine is no worse"].result == "pass"  # three times the noise
    remeasured(runs[0], at(HERE, lambda row: reading(row, 0.91)))
    assert compared(runs[0], demand)[1]["cosine is no worse"].result == "fail"
    remeasured(runs[2], at(HERE, lambda row: reading(row, 0.55)))
    with pytest.raises(UserError, match="is disagreeing: cosine of 1 cells may lose 1 or more by its noise"):
        set_baseline([runs[0], runs[2]], tmp_path, ["dirty", "failing"])


@pytest.mark.parametrize(("dtype", "noise"), [("float64", 1e-8), ("float32", 1e-4)])
def test_the_noise_of_one_run_is_that_of_its_dtype(finished: Path, tmp_path: Path, dtype: str, noise: float) -> None:
    suite = str(finished.parents[2] / "gated.toml")
    run = gradbench.run(suite, out=tmp_path, device="cpu", overrides={"seed": 3, "dtype": dtype})
    table = read_baseline(set_baseline([run], tmp_path, ["dirty"]), "gated").to_pandas()
    assert set(table["cosine_noise"].dropna()) == {noise}
    assert np.allclose(table["rel_error_noise"].dropna(), math.sqrt(2 * noise))
    assert list(table.columns) == SCHEMA_OF_BASELINE.names


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_cell_that_is_all_round_off_may_not_hide_a_loss(finished: Path, tmp_path: Path, dtype: str) -> None:
    """The largest noise_floor that a row may have: its noise is bounded, and told."""

    def read(cosine: float) -> Any:
        return at(HERE, lambda row: (reading(row, cosine), row.update(noise_floor=math.inf)))

    suite = str(finished.parents[2] / "gated.toml")
    run = gradbench.run(suite, out=tmp_path, device="cpu", overrides={"seed": 3, "dtype": dtype})
    demand = Demand(set_baseline([remeasured(run, read(0.99))], tmp_path, ["dirty"]))
    assert read_baseline(demand.path, "gated").to_pandas()["cosine_noise"].max() == MOST_NOISE
    for cosine, result in ((0.985, "pass"), (0.98, "fail"), (0.90, "fail")):
        findings = compared(remeasured(run, read(cosine)), demand)[1]
        for metric in ("cosine", "cosine_min", "cosine_mean"):
            finding = findings[f"{metric} is no worse"]
            assert finding.result == result
            assert "; the noise of 1 is above that of their dtype, at most 0.0025" in finding.detail
    turned = remeasured(run, at(HERE, lambda row: reading(row, 0.99, 1.3)))
    assert compared(turned, demand)[1]["norm_ratio is no worse"].result == "fail"
    assert "above that of" not in compared(run, demand)[1]["residual is no worse"].detail
    table = pq.read_table(demand.path)
    write_table(demand.path, changed(table, "cosine_noise", 0.3))
    with pytest.raises(StoreError, match=r"damaged: cosine of .* or its noise is no number that can be"):
        read_baseline(demand.path, "gated")


def env_of(run: Run, **changes: Any) -> None:
    """As if the run had been measured in another environment."""
    before = Run(run.folder)  # a run reads once what its records say of it
    rows, claims = {key: before.record(key).to_pylist() for key in run.done()}, run.claims
    write_json(run.folder / "env.json", run.env | changes)
    there = Run(run.folder)
    there.claim(claims)
    for key, of_record in rows.items():
        there.keep(key, of_record)
    there.compact(skipped_rows(run.plan))


def test_a_baseline_refuses_what_it_should_not_be_made_of_unless_told(
    gated: Run, finished: Path, tmp_path: Path
) -> None:
    env_of(gated, dirty=True, commit="c" * 40)
    with pytest.raises(UserError, match=r"is dirty: it was made by code that differs.*--allow dirty"):
        set_baseline([gated], tmp_path)
    env_of(gated, dirty=False)
    set_baseline([gated], tmp_path).unlink()
    suite = str(finished.parents[2] / "gated.toml")
    other = gradbench.run(suite, out=tmp_path, device="cpu", overrides={"seed": 3})
    env_of(other, dirty=False, commit="c" * 40)
    with pytest.raises(UserError, match=r"is foreign: its plan is .*--allow foreign"):
        set_baseline([gated, other], tmp_path)
    assert set_baseline([gated, other], tmp_path, ["foreign"]).is_file()
    with pytest.raises(UserError, match=r"^out = /dev/null/here: /dev/null is no folder, expected one of results"):
        set_baseline([gated], Path("/dev/null/here"))
    with pytest.raises(UserError, match="is named twice"):
        set_baseline([gated, gated], tmp_path)
    with pytest.raises(UserError, match="is named twice"):
        set_baseline([gated, Run(gated.folder / ".." / gated.folder.name)], tmp_path)
    copy = Run(Path(shutil.copytree(gated.folder, tmp_path / "copy")))
    with pytest.raises(UserError, match="copy: is a copy of "):
        set_baseline([gated, copy], tmp_path)
    with pytest.raises(UserError, match=r"is partial: 78 of 104 cells of the baseline .* are not in it"):
        set_baseline([other], tmp_path)
    copy.claim({**copy.claims, "check": [copy.claims["check"][0] | {"min": 1.0}]})
    with pytest.raises(UserError, match=r"is failing: 1 of its checks do not hold; first 'aep follows BPTT'"):
        set_baseline([copy], tmp_path)
    with pytest.raises(UserError, match=r"--allow dirt: .*Did you mean 'dirty'"):
        set_baseline([gated], tmp_path, ["dirt"])
    write_table(gated.folder / "blocks.parquet", gated.table("blocks").slice(1))
    with pytest.raises(UserError, match=r"is damaged: tables are as they were made: .*blocks.parquet"):
        set_baseline([gated], tmp_path)
    assert set_baseline([gated], tmp_path, ["damaged"]).is_file()
    (gated.folder / "manifest.json").unlink()
    next((gated.folder / "records").iterdir()).unlink()
    with pytest.raises(UserError, match=r"is partial: .* of 112 cells were not measured"):
        set_baseline([gated], tmp_path)
    write_json(gated.folder / "plan.json", {k: v for k, v in gated.plan.items() if k != "suite"})
    with pytest.raises(StoreError, match=r"plan\.json: damaged: KeyError: 'suite'"):
        set_baseline([gated], tmp_path, ["damaged", "partial"])
    (gated.folder / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"plan\.json: No such file"):
        set_baseline([gated], tmp_path, ["damaged", "partial"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--floor", "cosin=0.9"], "floor 'cosin': is no metric with a direction. Did you mean 'cosine'?"),
        (["--floor", "cosine=high"], "--floor cosine = 'high' is not a number"),
        (["--tolerance", "nan"], "--tolerance nan is not finite"),
        (["--tolerance", "3"], "tolerance = 3.0: expected a number from 0 to below 1"),
        (["--floor", "tolerance=0.5"], "floor 'tolerance': is no metric with a direction"),
        (["--tolerance", "0.1,cosine=0.2"], "--tolerance 0.1,cosine=0.2: expected one number"),
        (["--floor", "cosine=1.5"], "floor cosine = 1.5: expected a number from -1 to 1"),
        (["--floor", "rel_error=-1"], "floor rel_error = -1: expected a number from 0 to inf"),
        (["--baseline", "none", "--floor", "cosine=0.9"], "--baseline none: there is no baseline for --floor"),
        (["--baseline", "none", "--tolerance", "0.1"], "--baseline none: there is no baseline for --tolerance"),
        (["--tolerance=-1"], "tolerance = -1.0: expected a number from 0 to below 1"),
        (
            ["--baseline", "nowhere.parquet"],
            "--baseline nowhere.parquet: there is no such file; expected the file of a baseline, or the word none",
        ),
    ],
)
def test_a_typo_is_a_mistake_of_the_command(
    gated: Run, demand: Demand, capsys: Any, arguments: list[str], message: str
) -> None:
    assert _code(["check", str(gated.folder), "--out", str(demand.path.parents[1]), *arguments]) == Exit.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda path: path.mkdir(), Exit.USAGE, "is no file, expected a file that gradbench baseline set wrote"),
        (lambda path: path.symlink_to("/dev/null"), Exit.USAGE, "is no file, expected"),
        (lambda path: path.write_text("# Read me"), Exit.USAGE, "is no table, expected a file that"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), Exit.USAGE, "is a table of schema version none, exp"),
        (
            lambda path: shutil.copy(ROOT / "results" / "baselines" / "smoke.parquet", path),
            Exit.USAGE,
            "is the baseline of the suite 'smoke', and the run is of 'gated'",
        ),
        (lambda path: path.touch(), Exit.STORE, "damaged: its digest is not the one that it was written with"),
        (lambda path: path.write_bytes(b"PAR1 torn"), Exit.STORE, "damaged: its digest is not"),
        (lambda path: path.symlink_to("gone"), Exit.STORE, "No such file or directory"),
    ],
)
def test_a_named_file_that_never_was_a_baseline_is_a_mistake_and_a_torn_one_is_damage(
    gated: Run, tmp_path: Path, capsys: Any, make: Callable[[Path], object], code: Exit, message: str
) -> None:
    path = tmp_path / "named"
    make(path)
    assert _code(["check", str(gated.folder), "--baseline", str(path)]) == code
    told = capsys.readouterr()
    start = f"gradbench: --baseline {path}: {message}" if code is Exit.USAGE else f"{path}: {message}"
    assert start in " ".join((told.err if code is Exit.USAGE else told.out).split())
    assert "unchanged" not in told.out + told.err


def test_a_plan_that_names_no_suite_is_damage_whatever_baseline_is_named(gated: Run, demand: Demand) -> None:
    write_json(gated.folder / "plan.json", {k: v for k, v in gated.plan.items() if k != "suite"})
    assert _code(["check", str(gated.folder), "--baseline", str(demand.path)]) == Exit.STORE


def test_a_table_of_a_run_is_no_baseline(gated: Run) -> None:
    with pytest.raises(UserError, match=r"^baseline .*cells.parquet: is a table of schema version 5, expected a file"):
        Results(gated.folder).check(baseline=gated.folder / "cells.parquet")


def test_a_verdict_names_the_baseline_as_it_was_looked_for(
    gated: Run, demand: Demand, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = demand.path.parents[1]
    monkeypatch.chdir(results.parent)
    assert gated.folder.is_relative_to(results)
    assert _code(["check", str(gated.folder), "--out", results.name]) == Exit.OK
    stored = (gated.folder / "verdict.json").read_text()
    assert f"of {results.name}/baselines/" in stored
    assert str(results) not in stored


def test_check_takes_the_baseline_of_the_suite_where_there_is_one(gated: Run, demand: Demand, capsys: Any) -> None:
    command = ["check", str(gated.folder), "--out", str(demand.path.parents[1])]
    assert _code(command) == Exit.OK
    assert "cosine_min is no worse" in capsys.readouterr().out
    assert _code([*command, "--baseline", "none"]) == Exit.OK
    assert "cosine_min is no worse" not in capsys.readouterr().out
    remeasured(gated, at(HERE, lambda row: reading(row, 0.1)))
    assert _code(command) == Exit.CHECK_FAILED
    demand.path.unlink()
    assert _code([*command, "--floor", "cosine=0.9"]) == Exit.USAGE
    assert "--floor: there is no baseline at" in capsys.readouterr().err


def test_results_are_compared_as_the_command_compares_them(gated: Run, tmp_path: Path, capsys: Any) -> None:
    results = Results(tmp_path / "here" / "runs" / "gated" / "one")
    shutil.copytree(gated.folder, results.folder)
    assert results.check().unheld.startswith("no baseline at ")
    remeasured(results, at(HERE, lambda row: reading(row, 0.99)))
    path = set_baseline([results], tmp_path / "here", ["dirty"])
    elsewhere = shutil.copy(path, tmp_path / "mine.parquet")
    remeasured(results, at(HERE, lambda row: reading(row, 0.98)))
    for named, options in (
        ({}, []),
        ({"baseline": "none"}, ["--baseline", "none"]),
        ({"baseline": elsewhere}, ["--baseline", str(elsewhere)]),
        ({"tolerance": 0.2}, ["--tolerance", "0.2"]),
        ({"tolerance": 0.2, "floor": {"cosine_min": 0.985}}, ["--tolerance", "0.2", "--floor", "cosine_min=0.985"]),
    ):
        verdict = results.check(**named)
        assert verdict.code is (Exit.OK if options[1:] in (["none"], ["0.2"]) else Exit.CHECK_FAILED), named
        command = ["check", str(results.folder), "--out", str(tmp_path / "here"), "--json", *options]
        assert _code(command) == verdict.code
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(verdict.to_json()))
    path.unlink()
    assert results.check().passed


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"tolerance": "low"}, "tolerance = 'low' is not a number"),
        ({"tolerance": math.nan}, "tolerance = nan is not finite"),
        ({"tolerance": 1.0}, "tolerance = 1.0: expected a number from 0 to below 1"),
        ({"tolerance": True}, "tolerance = True is not a number"),
        ({"floor": 0.9}, "floor: got a float, expected a table of numbers by metric"),
        ({"floor": {"cosin": 0.9}}, "floor 'cosin': is no metric with a direction. Did you mean 'cosine'?"),
        ({"floor": {"cosine": None}}, "floor cosine = None is not a number"),
        ({"floor": {"cosine": 7}}, "floor cosine = 7: expected a number from -1 to 1"),
        ({"baseline": 3}, "baseline: got an int, expected the path of a baseline, or the word none"),
        ({"baseline": "nowhere.parquet"}, "baseline nowhere.parquet: there is no such file; expected the file of a"),
        ({"baseline": "none", "floor": {"cosine": 0.9}}, "baseline none: there is no baseline for floor"),
        ({"tolerance": 0.1, "metric": "cosine", "min": 0}, "check: tolerance is of the verdict; 'metric' asks for one"),
        (
            {"tolerence": 0.1},
            "check: 'tolerence' is no key of a check, and no metric is named. Did you mean 'tolerance'?",
        ),
    ],
)
def test_a_mistake_in_a_check_of_results_names_the_argument(
    gated: Run, demand: Demand, named: dict[str, Any], message: str
) -> None:
    given = {"baseline": demand.path, **named} if "metric" not in named else named
    with pytest.raises(UserError) as raised:
        Results(gated.folder).check(**given)
    assert message in str(raised.value)


def test_a_floor_of_results_needs_a_baseline(gated: Run) -> None:
    with pytest.raises(
        UserError, match=r"^tolerance and floor: there is no baseline: .* in no folder of results; make"
    ):
        Results(gated.folder.parent / gated.folder.name).check(tolerance=0.1, floor={"cosine": 0.9})


def test_a_part_of_a_shipped_suite_is_no_baseline_of_it(tmp_path: Path) -> None:
    run = gradbench.run(str(ROOT / "suites" / "smoke.toml"), out=tmp_path, device="cpu", overrides={"seed": 0, "T2": 4})
    with pytest.raises(UserError, match=r"is partial: \d+ of \d+ cells of .*smoke.toml are not in it"):
        set_baseline([run], tmp_path, ["dirty", "failing"])


def test_check_says_where_it_found_no_baseline_and_finds_the_one_beside_the_run(
    gated: Run, tmp_path: Path, capsys: Any
) -> None:
    run = Run(tmp_path / "here" / "runs" / "gated" / "one")
    shutil.copytree(gated.folder, run.folder)
    command = ["check", str(run.folder), "--out", str(tmp_path / "elsewhere")]
    places = [tmp_path / folder / "baselines" / "gated.parquet" for folder in ("elsewhere", "here")]
    assert _code(command) == Exit.OK
    told = f"no baseline at {places[0]} or {places[1]}"
    assert told in " ".join(capsys.readouterr().out.split())
    assert json.loads((run.folder / "verdict.json").read_text())["unheld"] == told
    set_baseline([run], tmp_path / "here", ["dirty"])
    assert _code(command) == Exit.OK
    assert "cosine_min is no worse" in capsys.readouterr().out
    places[0].parent.mkdir(parents=True)
    places[0].symlink_to(tmp_path / "nowhere")
    assert _code(command) == Exit.STORE
    assert json.loads((run.folder / "verdict.json").read_text())["verdict"] == "damaged"
    places[0].unlink()
    places[0].mkdir()
    assert _code(command) == Exit.STORE
    assert "gated.parquet: Is a directory" in " ".join(capsys.readouterr().out.split())


def test_smoke_reads_as_its_baseline_says_which_ships_with_the_package(tmp_path: Path, capsys: Any) -> None:
    run = gradbench.run(str(ROOT / "suites" / "smoke.toml"), out=tmp_path, device="cpu")
    shipped = shipped_baseline(run.plan)
    assert shipped is not None
    assert shipped.read_bytes() == path_of("smoke", ROOT / "results").read_bytes()
    verdict, findings = compared(run, Demand(shipped))
    assert verdict.code is Exit.OK, [f for f in verdict.findings if not f.passed]
    assert findings["every cell of the baseline"].cells == 32
    capsys.readouterr()
    assert _code(["check", "smoke", "--out", str(tmp_path)]) == Exit.OK
    assert f"32 of 32 cells of {shipped}" in " ".join(capsys.readouterr().out.split())  # lines may be folded
    mine = set_baseline([run], tmp_path, ["dirty"])
    assert places_of(run, tmp_path)[0] == mine


def test_a_shipped_baseline_is_of_the_suite_as_it_ships(gated: Run, tmp_path: Path) -> None:
    for overrides, there in (({}, True), ({"seed": 0}, True), ({"seed": 1}, False), ({"T2": 30}, False)):
        plan = prepare("smoke", overrides)[1].to_json()
        assert (shipped_baseline(plan) is not None) == there
    assert shipped_baseline(gated.plan | {"suite": "smoke"}) is None
    assert shipped_baseline(gated.plan) is None
