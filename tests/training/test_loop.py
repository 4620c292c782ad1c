"""A training on disk: cut off anywhere, it goes on to the same numbers, and its log has no gap and no row twice."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from crash.sealing import reseal

import gradbench as gb
from gradbench.commands.progress import StepProgress
from gradbench.commands.trainings import Training, train
from gradbench.engine import checkpoint
from gradbench.errors import StoreError, UserError
from gradbench.planning import files
from gradbench.tables.verdict import judge
from gradbench.vocabulary.exit import Exit

TEXT = """
about = "A few steps of a tiny cet_real."
system = { name = "cet_real", D = 8, heads = 2, dh = 4, mem = 6, patch = 14, bpos_std = 0.3 }
estimator = "aep"
damp = 1.0
T1 = 12
T2 = 4
batch = 4
steps = 9
seeds = [0, 1]
log_every = 2
eval_every = 3
eval_batches = 2
fidelity_every = 5
[optimiser]
lr = 1e-2
clip = 5.0
"""
DUE = [0, 2, 3, 4, 5, 6, 8, 9]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    return path


class CutError(Exception):
    pass


def cut_after(steps: int) -> Callable[[StepProgress], None]:
    def watch(progress: StepProgress) -> None:
        if progress.done_weight == steps:
            raise CutError

    return watch


def same(a: Training, b: Training) -> bool:
    ours, theirs = (checkpoint.read(t.checkpoint) for t in (a, b))
    return all(torch.equal(v, theirs["state"][n]) for n, v in ours["state"].items()) and a.log.equals(b.log)


def test_a_training_that_was_cut_off_twice_ends_at_the_numbers_of_one_that_was_not(file: Path, tmp_path: Path) -> None:
    whole = train(str(file), out=tmp_path / "whole", device="cpu")
    for steps in (5, 2):
        with pytest.raises(CutError):
            train(str(file), out=tmp_path / "cut", device="cpu", watch=cut_after(steps))
    seen: list[StepProgress] = []
    again = train(str(file), out=tmp_path / "cut", device="cpu", watch=seen.append)
    assert seen[0].resumed == 6  # where the last row was
    assert same(whole, again)
    assert len(list((tmp_path / "cut" / "training" / "tiny").iterdir())) == 1
    assert again.log["step"].tolist() == [s for s in DUE for _ in range(2)]


@pytest.mark.fast
def test_rows_hold_what_is_due(file: Path, tmp_path: Path) -> None:
    log = train(str(file), out=tmp_path, device="cpu").log
    assert set(log["score"]) == {"masked_mse"}
    for column, steps in {"train": [2, 4, 6, 8, 9], "test": [0, 3, 6, 9], "cosine_min": [0, 5, 9]}.items():
        assert log.loc[log[column].notna(), "step"].tolist() == [s for s in steps for _ in range(2)]
    assert log["status"].dropna().isin(["settled", "unsettled"]).all()
    first = log[log["step"] == 0].iloc[0]
    found = {p["param"]: p["cosine"] for p in first["params"]}
    assert min(v for v in found.values() if v == v) == first["cosine_min"]
    assert set(log["skipped"]) == {0}


def test_fidelity_is_what_measure_says_at_the_trained_parameters(file: Path, tmp_path: Path) -> None:
    """A checkpoint is a source of parameters for one cell."""
    done = train(str(file), out=tmp_path, device="cpu")
    params = checkpoint.load_params(done.checkpoint, 1)
    point = {"damp": 1.0, "T1": 12, "T2": 4, "batch": 4, "seed": 1}
    options = {"heads": 2, "dh": 4, "mem": 6, "patch": 14, "bpos_std": 0.3}
    m = gb.measure("cet_real", "aep", params=params, system_options=options, **point)
    assert m.status in ("settled", "unsettled")
    initial = gb.measure("cet_real", "aep", system_options=options | {"D": 8}, **point)
    assert m.reference is not None
    assert initial.reference is not None
    assert not torch.allclose(m.reference["Wenc"], initial.reference["Wenc"])
    with pytest.raises(UserError, match="seed = 7 was not trained; known: 0, 1"):
        checkpoint.load_params(done.checkpoint, 7)


KILLED = """
import sys
from gradbench.commands.trainings import train
train(sys.argv[1], out=sys.argv[2], device="cpu", watch=lambda p: print(p.resumed + p.done_weight, flush=True))
"""


def test_kill_9_anywhere_leaves_a_log_without_gap_or_duplicate(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace("steps = 9", "steps = 60").replace("fidelity_every = 5", "fidelity_every = 50"))
    whole = train(str(file), out=tmp_path / "whole", device="cpu")
    os.mkfifo(tmp_path / "told")
    reached = []
    for kill in range(3):
        process = warm.start(KILLED, file, tmp_path / "cut", streams={1: tmp_path / "told"})
        with open(tmp_path / "told") as told:
            start = int(told.readline())
            for line in told:
                if int(line) >= start + 11 + kill:
                    break
            time.sleep(0.003 * kill)  # into a step, an evaluation or a checkpoint
            process.kill()
        assert warm.ended(process) == -signal.SIGKILL
        reached.append(start)
    assert reached == sorted(set(reached))
    assert reached[-1] > 0
    assert reached[-1] < 60
    assert same(whole, train(str(file), out=tmp_path / "cut", device="cpu"))


def test_a_finished_training_is_not_trained_again_and_fresh_begins_anew(file: Path, tmp_path: Path) -> None:
    first = train(str(file), out=tmp_path, device="cpu")
    before = first.checkpoint.stat().st_mtime_ns
    seen: list[StepProgress] = []
    again = train(str(file), out=tmp_path, device="cpu", watch=seen.append)
    assert again.folder == first.folder
    assert (seen[0].weight, seen[0].over) == (0, True)
    assert first.checkpoint.stat().st_mtime_ns == before
    fresh = train(str(file), out=tmp_path, device="cpu", fresh=True)
    assert fresh.folder != first.folder
    assert same(first, fresh)


def test_another_file_is_another_training(file: Path, tmp_path: Path) -> None:
    first = train(str(file), out=tmp_path, device="cpu")
    assert train(str(file), out=tmp_path, device="cpu", overrides={"steps": 2}).folder != first.folder
    file.write_text(TEXT.replace("A few steps", "Some steps"))
    assert train(str(file), out=tmp_path, device="cpu").folder == first.folder


def test_a_damaged_checkpoint_is_told_and_the_log_is_written_from_a_sound_one(file: Path, tmp_path: Path) -> None:
    done = train(str(file), out=tmp_path, device="cpu")
    log = done.log
    (done.folder / "log.parquet").unlink()
    assert train(str(file), out=tmp_path, device="cpu").log.equals(log)
    content = done.checkpoint.read_bytes()
    done.checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"checkpoint.pt: damaged: .*--fresh"):
        train(str(file), out=tmp_path, device="cpu")


def test_a_log_with_a_column_whose_name_is_no_text_is_damaged_and_written_anew(file: Path, tmp_path: Path) -> None:
    done = train(str(file), out=tmp_path, device="cpu")
    log, path = done.log, done.folder / "log.parquet"
    content = path.read_bytes()
    assert reseal(path, content.replace(b"\x06status", b"\x06\xectatus"))  # pyarrow raises UnicodeDecodeError
    assert checkpoint.read(done.checkpoint)["step"] == 9
    with pytest.raises(StoreError, match=r"log.parquet: damaged"):
        done.log  # noqa: B018
    assert train(str(file), out=tmp_path, device="cpu").log.equals(log)


def test_steps_without_a_finite_gradient_are_counted_and_trained_around(file: Path, tmp_path: Path) -> None:
    """At this step size the relaxation of every batch overflows."""
    log = train(str(file), out=tmp_path, device="cpu", overrides={"eps": 50.0, "T1": 60}).log
    last = log[log["step"] == 9]
    assert last["skipped"].tolist() == [9, 9]
    assert log["train"].isna().all()
    assert set(log["status"].dropna()) == {"diverged"}


def test_curves_are_drawn_as_svg_and_png(file: Path, tmp_path: Path) -> None:
    done = train(str(file), out=tmp_path, device="cpu")
    paths = done.draw()
    assert [p.name for p in paths] == ["curve.svg", "curve.png"]
    assert all(p.stat().st_size > 10_000 for p in paths)
    assert paths[1].read_bytes() == done.draw()[1].read_bytes()


def test_train_is_a_command(file: Path, tmp_path: Path, capsys: Any) -> None:
    from gradbench.cli import _code

    arguments = ["train", str(file), "--out", str(tmp_path), "--device", "cpu", "--set", "steps=2"]
    assert _code(arguments) == 0
    told = capsys.readouterr()
    assert "step 2/2" in told.err
    assert told.out.splitlines()[-1].startswith(str(tmp_path / "training" / "tiny"))
    words = ["--set", "steps=1", "--set", "estimator=ep", "--set", "dtype=float64"]
    assert _code(["train", str(file), "--out", str(tmp_path / "words"), *words]) == 0
    capsys.readouterr()
    assert _code(["train", str(file), "--set", "stepz=2"]) == 2
    assert "stepz: unknown key. Did you mean 'steps'?" in capsys.readouterr().err


SUITE = """
about = "Trained weights."
[[grid]]
system = { name = "cet_real", D = 8, heads = 2, dh = 4, mem = 6, patch = 14, bpos_std = 0.3 }
estimator = ["ep", "aep"]
damp = 1.0
T1 = 12
T2 = 4
batch = 4
seed = [0, 1]
params_from = "PATH"
"""


def test_suites_run_on_trained_weights_and_name_them(file: Path, tmp_path: Path) -> None:
    done = train(str(file), out=tmp_path, device="cpu")
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE.replace("PATH", str(done.folder)))
    cells = gb.run(str(suite), out=tmp_path, device="cpu").cells
    assert len(cells) == 4
    assert cells["system_options"].str.contains(f"{done.checkpoint}@[0-9a-f]{{16}}").all()
    (label,) = set(cells["system_label"])
    short = re.search(r" params_from=tiny@([0-9a-f]{8}) ", label)
    assert short
    assert f"{done.checkpoint}@{short[1]}" in cells["system_options"][0]
    suite.write_text(SUITE.replace("PATH", str(done.folder.parent)))  # of all trainings of a file the last
    assert set(gb.run(str(suite), out=tmp_path, device="cpu").cells["cell"]) == set(cells["cell"])
    suite.write_text(SUITE.replace("PATH", str(done.folder)))
    row = cells[(cells["estimator"] == "aep") & (cells["seed"] == 1)].iloc[0]
    options = {"heads": 2, "dh": 4, "mem": 6, "patch": 14, "bpos_std": 0.3}
    params = checkpoint.load_params(done.checkpoint, 1)
    point = {"damp": 1.0, "T1": 12, "T2": 4, "batch": 4, "seed": 1}
    m = gb.measure("cet_real", "aep", params=params, system_options=options, **point)
    assert row["cosine"] == pytest.approx(m.cosine, abs=1e-6)
    assert row["reference_norm"] == pytest.approx(m.row["reference_norm"], rel=1e-6)
    state = checkpoint.read(done.checkpoint)["state"]
    checkpoint.save(done.checkpoint, (0, 1), 9, {n: v / 2 for n, v in state.items()}, [])
    again = gb.run(str(suite), out=tmp_path, device="cpu").cells  # other weights are other cells, of another run
    assert not set(again["cell"]) & set(cells["cell"])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that ship and without results, as the current one."""
    for shipped in (files.SUITES, files.CONFIGS):
        (tmp_path / shipped).symlink_to(shipped.resolve())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("checkout")
def test_the_shipped_suite_of_trained_weights_names_the_training_that_it_needs(capsys: Any) -> None:
    from gradbench.cli import _code

    for command in ("plan", "run"):
        assert _code([command, "trained"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "suites/trained.toml: grid[0].params_from = 'results/training/quick' is no training" in line
        assert "To make one: gradbench train quick." in line


@pytest.mark.usefixtures("checkout")
def test_the_shipped_suite_of_trained_weights_runs_after_that_training() -> None:
    done = train("quick", device="cpu", overrides={"steps": 1, "T1": 2, "T2": 2, "batch": 2, "eval_batches": 1})
    cells = gb.run("trained", device="cpu", overrides={"T1": 5, "T2": 2, "batch": 2}).cells
    assert not set(cells["status"]) & {"error", "diverged"}
    trained = cells["system_options"].str.contains(f"{done.checkpoint}@[0-9a-f]{{16}}")
    assert set(trained) == {True, False}


@pytest.mark.long
@pytest.mark.usefixtures("checkout")
def test_the_shipped_suite_of_trained_weights_passes_after_that_training() -> None:
    done = train("quick", device="cpu")
    scores = done.log.dropna(subset="test").groupby("step")["test"].mean()
    assert scores.iloc[-1] < 0.75 * scores.iloc[0]
    verdict = judge(gb.run("trained", device="cpu"))
    assert verdict.code is Exit.OK, "\n".join(f"{f.result} {f.name}: {f.detail}" for f in verdict.findings)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("nowhere", {}, "params_from = 'nowhere' is no training or checkpoint: No such file"),
        (None, {"seed = [0, 1]": "seed = [0, 7]"}, "seed = 7 was not trained; known: 0, 1"),
        (None, {"D = 8": "D = 16"}, r"params_from\['Wenc'\]: got shape"),
        (None, {'"cet_real"': '"cet_energy"'}, r"params_from\['WV'\]: cet_energy has no such parameter"),
    ],
)
def test_weights_that_do_not_fit_are_told_before_anything_runs(
    file: Path, tmp_path: Path, path: str | None, changes: dict[str, str], message: str
) -> None:
    done = train(str(file), out=tmp_path, device="cpu", overrides={"steps": 1})
    text = SUITE.replace("PATH", path or str(done.checkpoint))
    for old, new in changes.items():
        text = text.replace(old, new)
    suite = tmp_path / "suite.toml"
    suite.write_text(text)
    with pytest.raises(UserError, match=message):
        gb.run(str(suite), out=tmp_path, device="cpu")
    assert not (tmp_path / "runs").exists()
