"""Shards: shared out by cost, the same for everybody; merged with proof that every cell is there once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbench as gb
from gradbench.commands.archiving import prove
from gradbench.commands.merging import MERGED, merged
from gradbench.commands.running import prepare
from gradbench.errors import StoreError, UserError
from gradbench.planning.shards import SHARD, Shard, shared_out
from gradbench.tables.disk import read_json
from gradbench.tables.store import Run
from gradbench.vocabulary.exit import Exit

COST_OF_TIME = ["seconds", "peak_memory"]
OF = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suite tiny, its three shards as 1, 2 and 3, and a whole run of it. No test changes them."""
    from tiny import TINY

    folder = tmp_path_factory.mktemp("shards")
    (folder / "tiny.toml").write_text(TINY)
    for index in range(1, OF + 1):
        made = gb.run(str(folder / "tiny.toml"), out=folder / "out", device="cpu", shard=f"{index}/{OF}")
        shutil.copytree(made.folder, folder / str(index))
    whole = gb.run(str(folder / "tiny.toml"), out=folder / "out", device="cpu")
    shutil.copytree(whole.folder, folder / "whole")
    return folder


def test_merged_shards_are_the_run_that_was_measured_at_once(shards: Path, tmp_path: Path) -> None:
    run, proof = merged([Run(shards / str(index)) for index in (2, 3, 1)], tmp_path)
    assert proof.code is Exit.OK
    assert (proof.planned, proof.present) == (60, 60)
    whole = Run(shards / "whole")
    for table in ("cells", "params", "blocks", "budget"):
        a, b = getattr(run, table), getattr(whole, table)
        pd.testing.assert_frame_equal(
            a.drop(columns=COST_OF_TIME, errors="ignore"), b.drop(columns=COST_OF_TIME, errors="ignore")
        )
    assert run.env["identity"] == whole.env["identity"]
    assert {**run.plan, MERGED: None} == {**whole.plan, MERGED: None}
    assert set(run.plan[MERGED]) == {"1/3", "2/3", "3/3"}
    gone_on = gb.run(str(shards / "tiny.toml"), out=tmp_path, device="cpu")  # nothing is left to measure
    assert gone_on.folder == run.folder
    assert gb.merge(*(str(shards / str(index)) for index in (1, 2, 3)), out=tmp_path).folder != run.folder


def test_a_shard_is_complete_with_its_share_and_is_gone_on_with(shards: Path, tmp_path: Path) -> None:
    proofs = [prove(Run(shards / str(index))) for index in (1, 2, 3)]
    assert {proof.code for proof in proofs} == {Exit.OK}
    assert sum(proof.present for proof in proofs) == 60
    assert proofs[1].line.endswith("20 of 20 cells of shard 2/3")
    out = shards / "out"
    again = gb.run(str(shards / "tiny.toml"), out=out, device="cpu", shard="2/3")
    assert read_json(again.folder / "env.json")["started"] == read_json(shards / "2" / "env.json")["started"]
    (whole,) = (folder for folder in out.glob("runs/tiny/2*") if Run(folder).env["shard"] is None)
    assert (out / "runs" / "tiny" / "latest").read_text() == whole.name


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ((1, 3), "1 of 3 shards are missing: 2/3; gradbench.run('tiny', shard='2/3', out={out!r}) measures one"),
        ((1, 2, 2), "both are shard 2/3; name one of them"),
        ((1, 2, 3, 3), "both are shard 3/3"),
        ((1, 2, "whole"), "whole: is no shard; "),
        ((), "name the shards of a run"),
    ],
)
def test_shards_that_are_missing_or_named_twice_are_refused(
    shards: Path, tmp_path: Path, named: tuple[object, ...], told: str
) -> None:
    with pytest.raises(UserError) as error:
        merged([Run(shards / str(name)) for name in named], tmp_path)
    assert told.format(out=str(tmp_path)) in str(error.value)
    assert not list(tmp_path.iterdir())


def copied(shards: Path, tmp_path: Path) -> list[Run]:
    return [Run(Path(shutil.copytree(shards / str(index), tmp_path / str(index)))) for index in (1, 2, 3)]


def sealed_again(run: Run, env: dict[str, Any] = {}, share: dict[str, Any] = {}) -> None:  # noqa: B006
    """A shard made anew with another environment or another share, so that every seal of it is right."""
    plan = run.plan | {SHARD: run.plan[SHARD] | share}
    content = {name: value for name, value in run.env.items() if name not in ("run", "plan_seal")} | env
    records = {problem: run.record(problem) for problem in run.done()}
    claims = {name: value for name, value in run.claims.items() if name != "bound_to"}
    shutil.rmtree(run.folder)
    run.folder.mkdir()
    fresh = Run(run.folder)
    fresh.start(plan, content, claims)
    for problem, record in records.items():
        fresh.store(problem, record)
    fresh.compact([])


def test_a_shard_of_another_identity_is_refused_with_what_differs(shards: Path, tmp_path: Path) -> None:
    runs = copied(shards, tmp_path)
    sealed_again(runs[1], env={"whole": "0", "numpy": "1.0"})
    with pytest.raises(UserError, match=r"are of two identities: numpy was .* and is 1\.0"):
        merged([Run(run.folder) for run in runs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_of_two_plans_or_two_numbers_are_refused(shards: Path, tmp_path: Path) -> None:
    overrides = {"seed": [0, 1]}
    other = gb.run(str(shards / "tiny.toml"), out=tmp_path, device="cpu", shard="2/3", overrides=overrides)
    with pytest.raises(UserError, match="are shards of two plans"):
        merged([Run(shards / "1"), other.run], tmp_path / "out")
    other = gb.run(str(shards / "tiny.toml"), out=tmp_path, device="cpu", shard="2/4")
    with pytest.raises(UserError, match="one is of 4 shards, the other of 3"):
        merged([Run(shards / "1"), other.run], tmp_path / "out")


def test_a_shard_that_is_not_finished_or_lacks_records_is_refused(shards: Path, tmp_path: Path) -> None:
    stopped = gb.run(str(shards / "tiny.toml"), out=tmp_path, device="cpu", shard="1/3", stop_after=1e-6)
    with pytest.raises(UserError, match="2 of its problems are not measured; gradbench run tiny goes on"):
        merged([stopped.run, Run(shards / "2"), Run(shards / "3")], tmp_path / "out")
    (stopped.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not finished: no process works on it"):
        merged([stopped.run, Run(shards / "2"), Run(shards / "3")], tmp_path / "out")


def test_shares_that_overlap_or_leave_problems_out_are_refused(shards: Path, tmp_path: Path) -> None:
    runs = copied(shards, tmp_path)
    first, second, _ = (run.plan[SHARD]["problems"] for run in runs)
    sealed_again(runs[1], share={"problems": [*second, first[0]]})
    with pytest.raises(StoreError, match=f"the problem {first[0]} is also in the share of "):
        merged([Run(run.folder) for run in runs], tmp_path / "out")
    sealed_again(Run(runs[1].folder), share={"problems": second[:1]})
    with pytest.raises(StoreError, match=r"it has 1 records that are not of its share"):
        merged([Run(run.folder) for run in runs], tmp_path / "out")
    Run(runs[1].folder).path_of(second[1]).unlink()
    Run(runs[1].folder).compact([])
    with pytest.raises(StoreError, match=f"1 problems are in no share; first {second[1]}"):
        merged([Run(run.folder) for run in runs], tmp_path / "out")


def test_a_damaged_shard_is_refused(shards: Path, tmp_path: Path) -> None:
    for harmed in ("plan.json", "env.json", "cells.parquet", "records"):
        folder = tmp_path / harmed
        runs = copied(shards, folder)
        path = runs[2].folder / harmed
        path = next(path.iterdir()) if path.is_dir() else path
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        with pytest.raises(StoreError, match=path.name):
            merged([Run(run.folder) for run in runs], folder / "out")
        assert not (folder / "out").exists()


@settings(max_examples=20)
@given(of=st.integers(1, 40), data=st.data())
def test_shards_have_every_problem_once_whatever_their_order_and_cost_about_the_same(of: int, data: Any) -> None:
    grid = {"system": {"name": "toy_cons", "N": 2, "D": 4}, "estimator": "bptt", "batch": 2, "seed": [0, 1, 2]}
    _, planned = prepare(gb.suite([{**grid, "T1": T1, "s": T1 / 100} for T1 in (5, 30, 40, 50, 80)], name="x"))
    shuffled = data.draw(st.permutations(planned.problems))
    shares = [shared_out(planned.problems, Shard(index, of)) for index in range(1, of + 1)]
    assert sorted(p.key for share in shares for p in share) == sorted(p.key for p in planned.problems)
    for index, share in enumerate(shares, 1):
        assert {p.key for p in shared_out(shuffled, Shard(index, of))} == {p.key for p in share}
    costs = [sum(problem.cost.work for problem in share) for share in shares]
    assert max(costs) - min(costs) <= max(problem.cost.work for problem in planned.problems)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1-3", "1/3/3", "", "a/b", "1/9999999", 3, "-1/3"])
def test_what_is_no_shard_is_refused(text: Any) -> None:
    with pytest.raises(UserError, match=r"^shard = "):
        Shard.read(text)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("1/0", "a plan has 1 to 100,000 shards"),
        ("1/2000000", "a plan has 1 to 100,000 shards"),
        ("3/2", "shards are 1/2 to 2/2"),
        ("two", "expected i/n"),
    ],
)
def test_a_shard_that_cannot_be_is_refused_with_what_can(named: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shard.read(named)


def test_a_suite_with_shards_alone_names_one_and_merge(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gradbench.cli import _code

    folder = shards / "alone" / "runs" / "tiny"
    shutil.copytree(shards / "1", folder / "20260101-000000-aaaa")
    assert _code(["verify", "tiny", "--out", str(shards / "alone")]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "a shard never is; name one, such as 20260101-000000-aaaa, or merge the shards. Nothing was run." in told
    assert _code(["merge", "20260101-000000-aaaa", "--out", str(shards / "alone")]) == Exit.USAGE
    told = capsys.readouterr().err
    assert f"gradbench run tiny --shard 2/3 --out {shards / 'alone'} measures one. Nothing was merged.\n" in told
