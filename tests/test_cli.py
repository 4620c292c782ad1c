"""The command as a user meets it: exit codes, one clear line for every mistake, data on stdout and talk on stderr."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import warm

import gradbench
from gradbench import cli
from gradbench.commands import comparing, progress
from gradbench.dynamics.meter import Meter
from gradbench.engine import packs
from gradbench.estimators.base import Count
from gradbench.tables.disk import read_json
from gradbench.tables.store import Run

ROOT = Path(__file__).parent.parent
HOLDS = """
[[check]]
name = "bptt is itself"
where = { estimator = "bptt", status = "any" }
metric = "cosine"
min = 0.999
"""
FAILS = '\n[[check]]\nname = "ep is bptt"\nwhere = { estimator = "ep", status = "any" }\nmetric = "cosine"\nmax = -1\n'
SHELL = [sys.executable, "-m", "gradbench"]


def shell(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | more.pop("env", {})
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, env=env, timeout=120, **more)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli._code([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two suites, made once."""
    folder = tmp_path_factory.mktemp("cli")
    base = 'about = ""\n[[grid]]\nsystem = { name = "toy_cons", N = 2, D = 4, out = 2 }\n'
    base += 'estimator = ["bptt", "ep"]\nT1 = 5\nT2 = 2\nbatch = 2\n'
    for name, checks in (("good", HOLDS), ("bad", HOLDS + FAILS)):
        (folder / f"{name}.toml").write_text(base + checks)
        gradbench.run(str(folder / f"{name}.toml"), out=folder / "results", device="cpu")
    return folder / "results"


def only(results: Path, suite: str) -> Run:
    (path,) = (results / "runs" / suite).glob("*/plan.json")
    return Run(path.parent)


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_asking_takes_half_a_second(arguments: list[str]) -> None:
    """Of a core: how long that takes is a matter of what else the machine does. With torch it is two seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(2):
        assert shell(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / 2
    print(f"{' '.join(arguments)}: {seconds:.2f} s")
    assert seconds < 1.0


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "smok"], "suite 'smok' does not exist. Did you mean 'smoke'?"),
        (["run", "smok"], "Did you mean 'smoke'?"),
        (["run", "nowhere/x.toml"], "suite 'nowhere/x.toml' does not exist"),
        (["show", "aepp"], "Did you mean 'aep'?"),
        (["plan", "smoke", "--set", "betta=1"], "--set betta: unknown key. Did you mean 'beta'?"),
        (["plan", "smoke", "--set", "estimator=bppt"], "Did you mean 'bptt'?"),
        (["plan", "smoke", "--set", "system=toy_con"], "Did you mean 'toy_cons'?"),
        (["plan", "smoke", "--set", "beta"], "expected KEY=VALUE"),
        (["plan", "smoke", "--set", "=1"], "expected KEY=VALUE"),
        (["plan", "smoke", "--set", "beta="], "expected KEY=VALUE"),
        (["plan", "smoke", "--set", "beta=1", "--set", "beta=2"], "set twice"),
        (["plan", "smoke", "--set", "beta=0"], "not positive"),
        (["plan", "smoke", "--set", "beta=0.1,,0.2"], "not a number"),
        (["plan", "smoke", "--set", "foo-bar=1"], "unknown key"),
        (["plan", "smoke", "--set", "β=1"], "unknown key"),
        (["plan", "smoke", "--set", "seed=" + "9" * 400], "digits"),
        (["plan", "smoke", "--set", "name=x"], "unknown key; keys of grids alone are replaced; this one is written in"),
        (["plan", "smoke", "--set", "thresholds.residual=1"], "unknown key; keys of grids alone are replaced"),
        (["plan", "smoke", "--set", "grid.T1=5"], "--set grid.T1: unknown key; write --set T1, which replaces T1"),
        (["plan", "smoke", "--set", ""], "expected KEY=VALUE"),
        (["plan", "smoke", "--set", "T1=02"], "'02' is not a number: write it without zeros in front"),
        (["plan", "smoke", "--set", "T1=1,000"], "'000' is not a number"),
        (["plan", "smoke", "--set", "T1=1__0"], "'1__0' is not a number"),
        (["plan", "smoke", "--set", "T1=10#2"], "'10#2' is not a number"),
        (["plan", "smoke", "--set", "T1=10,beta=0"], "not positive"),
        (["plan", "smoke", "--set", "T1=" + "[" * 5000], "brackets close"),
        (["plan", "smoke", "--set", "T1=" + "[" * 5000 + "]" * 5000], "nested too deep"),
        (["plan", "smok.toml"], "suite 'smok.toml' does not exist. Did you mean 'smoke'?"),
        (["plan", "no.toml"], "suite 'no.toml' does not exist. Nothing was run."),
        (["plan", "--smoke"], "No such option: --smoke"),
        (["train", "quik"], "training 'quik' does not exist. Did you mean 'quick'?"),
        (["tune", "toy_cons", "ep", "--cosine-min", "high"], "--cosine-min high: expected a number between 0 and 1"),
        (["tune", "toy_cons", "ep", "--cosine-min", "1.5"], "--cosine-min 1.5 is not between 0 and 1"),
        (["explain", "--worst", "two"], "--worst two: expected a number of cells, 1 or more"),
        (["run", "smoke", "--dtype", "float23"], "Did you mean 'float32'?"),
        (["run", "smoke", "--dtype", "float64", "--set", "dtype=float32"], "set twice"),
        (["run", "smoke", "--dtype", "float64,T1=5"], "--dtype float64,T1=5: 'T1=5' is not a choice"),
        (["run", "smoke", "--dtype", ""], "--dtype : '' is not a choice"),
        (["explain", "--worst", "\u0663"], "--worst \u0663: expected a number of cells, 1 or more"),
        (["tune", "toy_cons", "ep", "--cosine-min", "0_9"], "--cosine-min 0_9: expected a number between 0 and 1"),
        (["tune", "toy_noncons name=toy_cons", "ep"], "there is no option 'name'"),
        (["train", "smoke"], "training 'smoke' does not exist, but a suite of this name does: gradbench run smoke"),
        (["run", "quick"], "suite 'quick' does not exist, but a training of this name does: gradbench train quick"),
        (
            ["train", "quick", "--set", "optimiser.lr=0.1"],
            "the whole table is set at once: optimiser = {lr = ..., ...}",
        ),
        (
            ["train", "quick", "--set", "lr=0.1"],
            "--set lr: it is a key of optimiser, which is set whole: optimiser={lr = ..., ...}",
        ),
        (["train", "quick", "--set", "D=16"], "--set D: unknown key; it is an option of cet_real: --set 'system = {"),
        (["run", "ep"], "suite 'ep' does not exist, but an estimator of this name does: gradbench show ep"),
        (
            ["plan", "toy_cons"],
            "suite 'toy_cons' does not exist, but a system of this name does: gradbench show toy_cons",
        ),
        (["plan", "smoke", "--set", "system=ep"], "--set system = 'ep' is an estimator, and no system"),
        (["plan", "smoke", "--set", "estimator=shine"], "--plugin FILE.py gives a name to another one"),
        (["show", "quick"], "'quick' is a training; gradbench train quick runs it"),
        (["show", "shine"], "--plugin FILE.py gives a name to another one"),
        (["tune", "ep", "toy_cons"], "'ep' is an estimator; the system comes first, and then the estimator"),
        (
            ["tune", "toy_cons", "ep", "--set", "dtype=float64,float32"],
            "--set dtype: got float64, float32; a search asks of",
        ),
        (["tune", "toy_noncons drive_std=1,2", "aep"], "system.drive_std: got 1, 2; a search asks of one value"),
        (
            ["tune", "toy_noncons", "aep", "--set", "clip=batch"],
            "option of aep, and stands behind its name: 'aep clip=batch'",
        ),
        (["tune", "smoke", "aep"], "'smoke' is a suite; a search takes a system and an estimator"),
        (["train", f"{ROOT}/suites/smoke.toml"], "smoke.toml is a suite, and no training: gradbench run"),
        (["run", f"{ROOT}/configs/quick.toml"], "quick.toml is a training, and no suite: gradbench train"),
        (["show", "smoke"], "'smoke' is a suite; what it would do: gradbench plan smoke"),
        (["show", "aep clip=batch"], "'aep clip=batch': show takes a name without options: gradbench show aep"),
        (["list", "--plugin", "nope"], "plugin 'nope': there is no such module. Nothing was run."),
        (["run", "smoke", "--device", "gpu"], "device = 'gpu' is not known"),
        (["check", "x" * 4000], "there is no run"),
        (["check"], "there is no run in results/runs yet; make one with: gradbench run SUITE"),
        (["plot", "aep"], "there is no run of the suite 'aep' in results/runs yet; make one with: gradbench run aep."),
        (["rnu"], "Did you mean 'run'? See: gradbench --help"),
        (["run"], "Missing argument 'SUITE'. See: gradbench run --help"),
        (["run", "smoke", "--bogus"], "No such option: --bogus. See: gradbench run --help"),
        (["plan", "smoke", "--fresh", "x"], "No such option: --fresh. See: gradbench plan --help"),
        (
            ["compare", "a", "b", "--metrics", "x"],
            "No such option: --metrics. Did you mean --metric? See: gradbench compare",
        ),
        (["baseline", "set", "a", "--alow", "x"], "Did you mean --allow? See: gradbench baseline set --help"),
        (["baseline", "smoke"], "Did you mean gradbench baseline set smoke? See: gradbench baseline --help"),
        (["list", "extra"], "unexpected extra argument"),
        (["explain", "375eff6cf9904ab2"], "looks like the key of a cell: gradbench explain RUN 375eff6cf9904ab2"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_2(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    (tmp_path / "suites").symlink_to(ROOT / "suites")
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gradbench: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "results").exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("mistake", "right"),
    [
        ("D=16", """'system = { name = "toy_cons", D = 16 }'"""),
        ("bias_std=0.1", """'system = { name = "toy_cons", bias_std = 0.1 }'"""),
        ("nudge=positive", """'estimator = { name = "ep", nudge = "positive" }'"""),
        ("estimator=aep clip=batch", """estimator='{ name = "aep", clip = "batch" }'"""),
    ],
)
def test_what_a_message_says_to_set_can_be_pasted(command: Any, write_suite: Any, mistake: str, right: str) -> None:
    base = 'about = ""\n[[grid]]\nsystem = "toy_cons"\nestimator = "ep"\n'
    suite = write_suite(base=base)
    code, _, err = command("plan", suite, "--set", mistake)
    assert code == 2
    assert f"--set {right}" in err
    assert command("plan", suite, "--set", *shlex.split(right))[0] == 0


def test_a_mistake_in_a_process_of_its_own_leaves_no_traceback() -> None:
    for arguments in (["plan", "smok"], ["rnu"]):
        done = shell(*arguments, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "Traceback" not in done.stderr


def test_a_command_for_a_path_can_be_pasted_in_every_locale(tmp_path: Path) -> None:
    folder = tmp_path / "my d\u00fcr"
    folder.mkdir()
    (folder / "s.toml").write_text('about = ""\n[[grid]]\nsystem = "toy_cons"\nestimator = "ep"\n')
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-m", "gradbench", "plan", str(folder / "s.toml")]
    done = subprocess.run(asked, capture_output=True, env=os.environ | plain, timeout=120)
    assert done.returncode == 0
    assert f"next: gradbench run '{folder / 's.toml'}'".encode() in done.stderr


def test_no_argument_is_the_help() -> None:
    assert "Usage" in shell().stdout
    assert shell().returncode == 0


@pytest.mark.fast
def test_list_names_everything_and_its_json_is_data(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = command("list", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert list(data["systems"]) == gradbench.systems()
    assert list(data["estimators"]) == gradbench.estimators()
    assert {"aep", "smoke"} <= set(data["suites"])
    text = command("list")[1]
    assert all(name in text for kind in data.values() for name in kind)


def test_list_goes_on_over_a_suite_that_cannot_be_read(command: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "broken.toml").write_bytes(b"\xff = ")
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("list")
    assert code == 0
    assert re.search("^  broken +unreadable: not TOML", out, re.MULTILINE)


@pytest.mark.fast
@pytest.mark.parametrize("name", [*gradbench.systems(), *gradbench.estimators()])
def test_show_tells_definition_options_and_source(command: Any, name: str) -> None:
    data = json.loads(command("show", name, "--json")[1])
    assert data["name"] == name
    assert data["definition"]
    assert data["source"]
    assert data["source"] in command("show", name)[1]


@pytest.mark.fast
def test_plan_prints_what_sharing_saves_and_writes_nothing(command: Any, write_suite: Any, tmp_path: Path) -> None:
    suite = write_suite()
    code, out, err = command("plan", suite)
    assert code == 0
    for words in ("grid points", "cells                60", "problems             6", "families             2"):
        assert words in out
    assert err == f"suite {suite}\nnext: gradbench run {suite}\n"
    assert re.search(r"^  T1 +5(, 10)?$\n^  T2 +", out, re.MULTILINE)
    assert len(json.loads(command("plan", suite, "--json")[1])["cells"]) == 60
    assert os.listdir(tmp_path) == ["tiny.toml"]


@pytest.mark.fast
def test_run_prints_data_on_stdout_and_talk_on_stderr(command: Any, write_suite: Any, tmp_path: Path) -> None:
    code, out, err = command("run", write_suite(), "--out", tmp_path / "r", "--device", "cpu", "--set", "seed=0")
    folder = Path(out.splitlines()[-1])
    assert code == 0
    assert "cells" in err
    assert folder == only(tmp_path / "r", "tiny").folder
    assert len(Run(folder).cells) == 20


@pytest.mark.parametrize("suite", ["tüte 袋", "a.b", "aep (copy)"])
def test_a_suite_may_have_an_unusual_name(command: Any, write_suite: Any, tmp_path: Path, suite: str) -> None:
    path, out = write_suite(HOLDS, name=suite), tmp_path / "r"
    assert command("run", path, "--out", out, "--set", "seed=0")[0] == 0
    assert command("check", suite, "--out", out)[0] == 0


@pytest.mark.fast
def test_cells_that_fail_make_the_run_incomplete_and_the_next_run_repairs_it(
    command: Any, write_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", write_suite(HOLDS), "--out", tmp_path / "r", "--device", "cpu")
    with monkeypatch.context() as broken:
        broken.setattr(packs, "measure_pack", lambda *rest: 1 / 0)
        code, out, err = command(*arguments)
        assert code == 3
        assert "error            60" in out
        assert "ZeroDivisionError" in err
        assert command("check", "tiny", "--out", tmp_path / "r")[0] == 3
    assert command(*arguments, "--retry", "failed")[0] == 0
    assert command("check", "tiny", "--out", tmp_path / "r")[0] == 0


def test_allowed_failures_leave_the_run_complete(
    command: Any, write_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "measure_pack", lambda *rest: 1 / 0)
    suite = write_suite()
    suite.write_text("allow_incomplete = true\n" + suite.read_text())
    assert command("run", suite, "--out", tmp_path / "r")[0] == 0


def test_a_suite_of_skipped_cells_selects_nothing(command: Any, write_suite: Any, tmp_path: Path) -> None:
    grid = 'about = ""\n[[grid]]\nsystem = "toy_noncons"\nestimator = { name = "ep", readout = "energy_contrast" }\n'
    code, out, err = command("run", write_suite(grid, base=""), "--out", tmp_path / "r")
    assert code == 4
    assert "skipped          1" in out
    assert "nothing was measured" in err


@pytest.mark.fast
@pytest.mark.parametrize("place", ["file", "file/results", "nowhere", "/dev/null", "/dev/null/results"])
def test_results_where_no_folder_can_be_are_a_mistake(
    command: Any, write_suite: Any, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "nowhere").symlink_to("gone")
    code, out, err = command("run", write_suite(), "--out", tmp_path / place)
    there = tmp_path / place.removesuffix("/results")
    assert (code, out) == (2, "")
    assert (
        err == f"gradbench: out = {tmp_path / place}: {there} is no folder, expected one of results. Nothing was run.\n"
    )
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_is_exit_5_and_the_next_run_goes_on(write_suite: Any, tmp_path: Path, command: Any) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (15000, 15000))"
    arguments = ["run", str(write_suite()), "--out", str(tmp_path / "r"), "--device", "cpu", "--set", "seed=0,1"]
    told = tmp_path / "told"
    assert warm.run(arguments, {1: "/dev/null", 2: told}, first=limited) == 5
    assert "File too large; what was stored before is unchanged" in told.read_text()
    assert "Traceback" not in told.read_text()
    assert command(*arguments)[0] == 0


@pytest.mark.parametrize(("sent", "exits"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_exit_130_or_143_and_the_next_run_goes_on(
    write_suite: Any, tmp_path: Path, command: Any, sent: signal.Signals, exits: int
) -> None:
    # a parent that ignores interrupts, as nohup does, hands that on to its children
    slow = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow += "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    slow += "from gradbench.engine import packs; solve = packs.measure_pack\n"
    slow += "packs.measure_pack = lambda *a: (time.sleep(0.5), solve(*a))[1]\nfrom gradbench.cli import main; main()"
    arguments = ["run", str(write_suite()), "--out", str(tmp_path / "r"), "--device", "cpu"]
    told = tmp_path / "told"
    process = warm.start(slow, *arguments, streams={1: "/dev/null", 2: told})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/runs/tiny/*/records/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, sent)
    assert warm.ended(process) == exits
    err = told.read_text()
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    code, out, _ = command("check", "tiny", "--out", tmp_path / "r")
    assert code == 3
    assert "VERDICT incomplete (3)" in out
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("r/runs/tiny/*/records/*.parquet")}
    assert command(*arguments)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(only(tmp_path / "r", "tiny").cells) == 60


@pytest.mark.fast
@pytest.mark.parametrize(("suite", "code", "word"), [("good", 0, "pass"), ("bad", 1, "fail")])
def test_check_ends_with_the_verdict_and_exits_with_its_code(
    command: Any, results: Path, suite: str, code: int, word: str
) -> None:
    found, out, _ = command("check", suite, "--out", results)
    assert found == code
    assert out.splitlines()[-1].startswith(f"VERDICT {word} ({code})")
    kept = read_json(only(results, suite).folder / "verdict.json")
    assert kept == json.loads(command("check", suite, "--out", results, "--json")[1])
    assert (kept["code"], kept["verdict"]) == (code, word)


def test_check_prints_the_tables_of_the_suite_first(command: Any, write_suite: Any, tmp_path: Path) -> None:
    table = '\n[[table]]\nname = "the toys"\nwhere = { estimator = "ep" }\ncolumns = ["cosine"]\nknown = "little"\n'
    command("run", write_suite(HOLDS + table), "--out", tmp_path / "r")
    code, out, _ = command("check", "tiny", "--out", tmp_path / "r")
    assert code == 0
    assert out.startswith("the toys\n  known: little\n")
    assert out.count(" ep ") == 8  # two systems, T1 and T2; three seeds are one line


def test_a_run_without_checks_is_exit_4(command: Any, write_suite: Any, tmp_path: Path) -> None:
    command("run", write_suite(), "--out", tmp_path / "r", "--set", "seed=0")
    code, out, _ = command("check", "--out", tmp_path / "r")
    assert code == 4
    assert "VERDICT nothing checked (4)" in out


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_table_is_exit_5(command: Any, write_suite: Any, tmp_path: Path, damage: str) -> None:
    command("run", write_suite(HOLDS), "--out", tmp_path / "r", "--set", "seed=0")
    table = only(tmp_path / "r", "tiny").folder / "cells.parquet"
    content = table.read_bytes()
    table.write_bytes(
        content[:900] + bytes([content[900] ^ 1]) + content[901:] if damage == "flipped" else content[:900]
    )
    code, out, _ = command("check", "--out", tmp_path / "r")
    fault, verdict = out.splitlines()
    assert code == 5
    assert "cells.parquet: damaged" in fault
    assert verdict.startswith("VERDICT damaged (5)  1 fault, ")
    for verb in ("plot", "explain"):
        code, out, err = command(verb, "latest", "--out", tmp_path / "r")
        assert (code, out) == (5, "")
        assert "cells.parquet: damaged" in err


@pytest.mark.fast
@pytest.mark.parametrize("how", ["id", "prefix", "suite", "suite/id", "path", "latest"])
def test_a_run_is_addressed_by(command: Any, results: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(results / "runs" / "good", tmp_path / "runs" / "good")
    run = only(tmp_path, "good")
    names = {"id": run.id, "prefix": run.id[:8], "suite": "good", "suite/id": f"good/{run.id}", "path": str(run.folder)}
    code, out, _ = command("check", names.get(how, how), "--out", tmp_path)
    assert code == 0
    assert str(run.folder / "verdict.json") in out


def test_latest_is_the_run_last_worked_on(command: Any, results: Path, tmp_path: Path) -> None:
    assert str(only(results, "bad").folder) in command("check", "latest", "--out", results)[1]
    command("run", results.parent / "good.toml", "--out", results, "--device", "cpu")
    assert str(only(results, "good").folder) in command("check", "--out", results)[1]
    command("run", results.parent / "bad.toml", "--out", results, "--device", "cpu")


def test_an_ambiguous_prefix_names_its_runs(command: Any, results: Path) -> None:
    code, _, err = command("check", "2", "--out", results)
    assert code == 2
    assert "ambiguous" in err
    assert f"good/{only(results, 'good').id}" in err
    assert f"bad/{only(results, 'bad').id}" in err
    assert command("check", f"bad/{only(results, 'bad').id}", "--out", results)[0] == 1


def test_an_unknown_run_names_the_near_miss(command: Any, results: Path) -> None:
    code, _, err = command("check", "goood", "--out", results)
    assert code == 2
    assert "Did you mean 'good'?" in err


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_tiny_terminal_is_no_reason_to_fail(command: Any, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"COLUMNS": columns, "TERMINAL_WIDTH": columns}
    for arguments in (["--help"], ["run", "--help"]):  # typer reads the width of a help where it is imported
        done = shell(*arguments, env=tiny, cwd=ROOT)
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
    for name, value in tiny.items():
        monkeypatch.setenv(name, value)
    codes = [command(*arguments)[0] for arguments in (["list"], ["plan", "smoke"], ["rnu"])]
    assert codes == [0, 0, 2]


def test_no_color_is_respected() -> None:
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[" in shell("--help", env=forced).stdout  # else this proves nothing
    coloured = [c for c in shell("--help", env=forced | {"NO_COLOR": "1"}).stdout.split("\x1b[")[1:] if c[0] == "3"]
    assert coloured == []


@pytest.mark.parametrize("arguments", ["list", "plan suites/aep.toml --json"])
def test_a_reader_that_leaves_causes_no_traceback(arguments: str) -> None:
    piped = f"{sys.executable} -m gradbench {arguments} | true"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("arguments", ["list", "plan suites/aep.toml --json"])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_6(arguments: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SHELL, *arguments.split()], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == "gradbench: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["closed", "full", "reader gone"])
@pytest.mark.parametrize("verb", ["list", "plan", "run", "plot", "check"])
def test_a_stderr_that_cannot_be_written_stops_nothing(write_suite: Any, tmp_path: Path, verb: str, how: str) -> None:
    out, suite = ("--out", str(tmp_path / "r")), write_suite(HOLDS)
    arguments = {"list": (), "plan": (str(suite),), "run": (str(suite), *out, "--set", "seed=0")}.get(
        verb, ("tiny", *out)
    )
    if verb in ("plot", "check"):
        gradbench.run(str(suite), out=tmp_path / "r", device="cpu", overrides={"seed": 0})
    if verb == "plot":  # the figures take a minute, and their talk is before them
        (only(tmp_path / "r", "tiny").folder / "cells.parquet").write_bytes(b"")
    told = tmp_path / "told"
    stderr = {"closed": None, "full": "/dev/full"}.get(how, "/dev/null")
    gone = GONE.format(2) if how == "reader gone" else ""
    code = warm.run([verb, *arguments], {1: told, 2: stderr}, first=gone)
    assert code == (5 if verb == "plot" else 0)
    assert (told.read_text() == "") == (verb == "plot")
    if verb == "run":
        folder = Path(told.read_text().splitlines()[-1])
        assert len(Run(folder).cells) == 20


# code that leaves stream {} without a reader
GONE = "import os; read, write = os.pipe(); os.close(read); os.dup2(write, {})"


@pytest.mark.parametrize("streams", ["closed", "all closed", "reader gone"])
def test_tables_are_written_whatever_is_closed(write_suite: Any, tmp_path: Path, streams: str) -> None:
    told = tmp_path / "told"
    given: dict[int, str | Path | None] = {"closed": {1: None, 2: told}, "all closed": dict.fromkeys(range(3))}.get(
        streams, {2: "/dev/full"}
    )
    gone = GONE.format(1) if streams == "reader gone" else ""
    assert warm.run(["run", write_suite(), "--out", tmp_path / "r"], given, first=gone) == 0
    assert len(only(tmp_path / "r", "tiny").cells) == 60
    assert streams != "closed" or "Traceback" not in told.read_text()


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param(">&-", marks=pytest.mark.long),
        "<&- >&- 2>&-",
        pytest.param("2>/dev/full | true", marks=pytest.mark.long),
    ],
)
def test_an_interpreter_writes_tables_whatever_is_closed(write_suite: Any, tmp_path: Path, streams: str) -> None:
    piped = f"set -o pipefail; {sys.executable} -m gradbench run {write_suite()} --out {tmp_path / 'r'} {streams}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0
    assert len(only(tmp_path / "r", "tiny").cells) == 60
    assert "Traceback" not in done.stderr


def test_a_check_that_fails_says_so_to_a_reader_that_leaves(results: Path) -> None:
    piped = f"set -o pipefail; {sys.executable} -m gradbench check bad --out {results} | true"
    assert subprocess.run(["bash", "-c", piped], cwd=ROOT, timeout=60).returncode == 1


def on_terminal(*arguments: str, read: bool = True, **env: str) -> tuple[int, str]:
    """The command with stderr on a terminal: exit code, and what the terminal is sent, or is gone at if not `read`."""
    ours, theirs = pty.openpty()
    process = warm.start(
        "from gradbench.cli import main; main()", *arguments, streams={1: "/dev/null", 2: os.ttyname(theirs)}, env=env
    )
    told = b""
    while process.is_alive() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            if not read:
                break
            told += os.read(ours, 4096)
    os.close(ours)
    code = warm.ended(process)
    os.close(theirs)
    return code, told.decode()


def test_a_terminal_has_a_bar_with_the_time_that_is_left(write_suite: Any, tmp_path: Path) -> None:
    suite = str(write_suite())
    code, told = on_terminal("run", suite, "--out", str(tmp_path / "r"), TERM="xterm", COLUMNS="70")
    assert code == 0
    first, *frames = told.split("\r")
    assert first == f"suite {suite}"
    assert all(len(frame.partition("\x1b")[0]) < 70 for frame in frames)
    assert re.match(r"\n?-{20}   0%  0:00 elapsed  0/60 cells", frames[1] if frames[0] == "\n" else frames[0])
    assert re.search(r"#{20} 100%  0:\d\d elapsed  60/60 cells", told)


@pytest.mark.parametrize(("resumed", "percent"), [(0, "25%  "), (2160, "25% of what was left  ")])
def test_a_percentage_says_what_it_is_of_where_a_run_goes_on(
    resumed: int, percent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = progress.StepProgress(weight=4, done_weight=1, resumed=resumed)
    display = progress.Lines("training")
    display.progress, display.text = steps, "step"
    display.show(news=True)
    assert f"step  {percent}0:00 elapsed" in capsys.readouterr().err


def test_a_dumb_terminal_has_lines(write_suite: Any, tmp_path: Path) -> None:
    code, told = on_terminal("run", str(write_suite()), "--out", str(tmp_path / "r"), TERM="dumb")
    assert code == 0
    assert "\x1b" not in told
    assert re.fullmatch(r"  60/60 cells .* 0:\d\d elapsed", told.splitlines()[-1])


def test_a_terminal_that_is_gone_stops_nothing(write_suite: Any, tmp_path: Path) -> None:
    code, _ = on_terminal("run", str(write_suite()), "--out", str(tmp_path / "r"), read=False, TERM="xterm")
    assert code == 0
    assert len(only(tmp_path / "r", "tiny").cells) == 60


class Clock:
    """A clock that is set by hand, in the place of `time.monotonic`."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.mark.fast
def test_the_time_left_of_steps_is_by_the_pace_of_those_done(clock: Clock) -> None:
    steps = progress.StepProgress(weight=10, began=0.0)
    assert (steps.eta, steps.share) == (None, 0.0)
    for step in range(1, 11):
        clock.now = step - 0.5
        before = steps.eta
        clock.now = float(step)
        assert steps.eta == before  # it does not swing within a step
        steps.advance()
        assert (steps.share, steps.eta) == (step / 10, pytest.approx(10.0 - step))


def test_the_time_left_is_steady_within_a_problem_though_not_all_of_its_time_is_in_evaluations(clock: Clock) -> None:
    """Problems of 100 evaluations: these take the first 60 % of its time, certificate and causes the rest."""
    problem = Mock(cost=Count(force=100), cells=("a",))
    cells = progress.CellProgress.of([problem] * 20)
    cells.began = 0.0
    told = []
    for k in range(20):
        cells.meters.append(meter := Meter())
        for part in range(1, 11):
            clock.now = k + part / 10
            meter.launched = min(100, round(100 * part / 6))
            told.append((clock.now, cells.share, cells.eta))
        cells.add(problem, ["settled"])
        assert cells.eta == pytest.approx(19.0 - k)
    assert all(share < 1 for _, share, _ in told)
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert len(set(shares)) == 6 * 20
    later = [(now, eta) for now, _, eta in told if now > 2 and eta is not None]
    assert max(abs(20 - now - eta) for now, eta in later) < 1  # less than a problem takes
    assert max(abs(a - b) for (_, a), (_, b) in itertools.pairwise(later)) < 0.5
    assert (cells.share, cells.eta, cells.over) == (1.0, 0.0, True)


@pytest.mark.fast
def test_work_that_slows_down_is_not_said_to_end_soon(clock: Clock) -> None:
    problem = Mock(cost=Count(force=100), cells=("a",))
    cells = progress.CellProgress.of([problem] * 2)
    cells.began, clock.now = 0.0, 1.0
    cells.meters.append(Meter(launched=100))
    cells.add(problem, ["settled"])
    cells.meters.append(Meter(launched=10))
    clock.now = 1000.0
    assert cells.share == 110 / 200
    assert cells.eta == pytest.approx(90 * 1000 / 110)
    cells.meters[1].launched = 100
    assert not cells.over
    assert cells.share < 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3661, "1:01:01")])
def test_times_are_told_as_a_clock_does(seconds: float, text: str) -> None:
    assert progress.clock_time(seconds) == text


@pytest.mark.parametrize("columns", ["60", "80", "20", "0", "many"])
@pytest.mark.parametrize("arguments", [["list"], ["show", "aep"], ["show", "cet_real"], ["plan", "smoke"]])
def test_text_is_folded_at_the_width_of_the_terminal(
    command: Any, arguments: list[str], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plain = command(*arguments)[1]
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = command(*arguments)
    assert code == 0
    width = {"60": 60, "20": 40}.get(columns, 80)
    assert max(len(line) for line in out.splitlines() if len(line.split()) > 1) <= width  # no word is cut
    assert out.split() == plain.split()  # nothing is cut off


def test_a_list_in_a_file_has_100_columns_and_its_json_one_line_a_name(command: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    assert 80 < max(map(len, command("list")[1].splitlines())) <= 100
    data, lines = json.loads(command("list", "--json")[1]), command("list", "--json")[1].splitlines()
    assert len(lines) == sum(len(rows) + 2 for rows in data.values()) + 2


def test_a_long_name_keeps_the_column_of_the_others(command: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "suites").mkdir()
    for name in ("a_suite_of_20_letters", "a_name_that_is_longer_than_any_column"):
        (tmp_path / "suites" / f"{name}.toml").write_text('about = "what it asks"\n')
    monkeypatch.chdir(tmp_path)
    lines = command("list")[1].splitlines()
    column = next(line for line in lines if line.startswith("  a_suite")).index("what")
    assert next(line for line in lines if line.startswith("  aep ")).index("Equilibrium") == column
    assert lines[lines.index("  a_name_that_is_longer_than_any_column") + 1] == " " * column + "what it asks"


def test_checks_and_tables_are_folded_and_the_verdict_is_the_last_line(
    write_suite: Any, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = '\n[[table]]\nname = "the toys"\nwhere = { estimator = "ep" }\ncolumns = ["cosine", "residual"]\n'
    command("run", write_suite(HOLDS + table), "--out", tmp_path / "r")
    plain = command("check", "tiny", "--out", tmp_path / "r")[1]
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = command("check", "tiny", "--out", tmp_path / "r")
    assert code == 0
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 60
    assert out.splitlines()[-1] == plain.splitlines()[-1].partition("  " + str(tmp_path))[0]
    assert out.count(" / ep") == 8
    for word in ("cosine", "residual", "settled", "bptt is itself"):
        assert word in out


@pytest.mark.fast
def test_a_version_is_one_line(command: Any) -> None:
    assert command("--version") == (0, f"gradbench {gradbench.__version__}\n", "")


@pytest.mark.parametrize("verb", ["check", "plot", "explain"])
def test_a_suite_without_a_run_says_how_to_make_one(command: Any, results: Path, verb: str) -> None:
    code, _, err = command(verb, "smoke", "--out", results)
    assert code == 2
    assert f"make one with: gradbench run smoke --out {results}" in err


@pytest.mark.fast
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("T2=7", "no measured cell has T2 = 7; T2 is 2."),
        ("estimator=epp", 'no measured cell has estimator = "epp"; estimator is "bptt", "ep".'),
        ("T1=5,T2=3", "no measured cell has T2 = 3; T2 is 2."),
        ("estimator=bptt,T2=2", 'no measured cell has estimator = "bptt" and T2 = 2 together.'),
        ("betta=1", "--where betta: is neither a column nor an option. Did you mean 'beta'?"),
        ("beta=0x", 'beta = "0x"; beta is '),
        ("beta=007", "'007' is not a number: write it without zeros in front"),
        ("cosine=5", "no measured cell has cosine = 5; cosine is "),
        ("clip=none", "clip: is neither a column nor an option"),
        ("T1=", "expected KEY=VALUE"),
    ],
)
def test_a_where_that_matches_nothing_says_what_there_is(command: Any, results: Path, where: str, words: str) -> None:
    code, out, err = command("explain", "good", "--where", where, "--out", results)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", [["estimator=ep,T1=5"], ["estimator=ep", "T1=+5"], ["estimator=ep,T1=5.,T2=2.e0"]])
def test_conditions_with_commas_are_conditions(command: Any, results: Path, where: list[str]) -> None:
    options = [part for text in where for part in ("--where", text)]
    code, out, _ = command("explain", "good", *options, "--out", results)
    assert code == 0
    assert " ep " in out.splitlines()[0]


STREAMS = ["2>&-", "2>/dev/full", "2> >(true)", "| head -1", "| true", ">&- 2>&-"]


@pytest.mark.parametrize("how", STREAMS)
def test_no_stream_stops_an_explanation(results: Path, tmp_path: Path, how: str) -> None:
    told = tmp_path / "told"
    stderr = {"2>&-": None, ">&- 2>&-": None, "2>/dev/full": "/dev/full"}.get(how, tmp_path / "talk")
    gone = GONE.format(2 if how.startswith("2>") else 1) if "true" in how or "head" in how else ""
    streams = {1: None if how == ">&- 2>&-" else told, 2: stderr}
    assert warm.run(["explain", "good", "--where", "estimator=ep", "--out", results], streams, first=gone) == 0
    if isinstance(stderr, Path):
        assert "Traceback" not in stderr.read_text()
    if how.startswith("2>"):
        assert "\ncause: " in told.read_text()


def through_bash(how: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    asked = shlex.join([*SHELL, *map(str, arguments)])
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    piped = ["bash", "-c", f"set -o pipefail; {asked} {how}"]
    return subprocess.run(piped, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


@pytest.mark.parametrize("how", STREAMS)
def test_no_stream_stops_an_interpreter(results: Path, how: str) -> None:
    done = through_bash(how, "plan", results.parent / "good.toml")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("grid points" in done.stdout) == how.startswith("2>")


@pytest.mark.long
@pytest.mark.parametrize("how", STREAMS)
def test_no_stream_stops_an_interpreter_that_explains(results: Path, how: str) -> None:
    done = through_bash(how, "explain", "good", "--where", "estimator=ep", "--out", results)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("\ncause: " in done.stdout) == how.startswith("2>")


@pytest.mark.parametrize("name", ["smöke test 袋", "it's", "a;b", "$HOME"])
def test_the_next_command_can_be_pasted(command: Any, write_suite: Any, tmp_path: Path, name: str, monkeypatch) -> None:
    write_suite(name=name)
    monkeypatch.chdir(tmp_path)
    code, _, err = command("plan", "--", f"{name}.toml")
    assert code == 0
    pasted = err.splitlines()[-1].removeprefix("next: gradbench run ")
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {pasted}"], capture_output=True, text=True).stdout
    assert shown.split("\n")[-2] == f"{name}.toml"


def test_the_next_command_has_what_was_set(command: Any, write_suite: Any) -> None:
    suite = write_suite()
    code, _, err = command("plan", suite, "--set", "T1=7", "--set", 'system={ name = "toy_cons", D = 8 }')
    assert code == 0
    following = shlex.split(err.splitlines()[-1].removeprefix("next: gradbench run "))
    assert [following.count(part) for part in ("--set", "T1=7", 'system={ name = "toy_cons", D = 8 }')] == [2, 1, 1]
    plans = [
        json.loads(command("plan", *arguments, "--json")[1]) for arguments in ((suite, "--set", "T1=7"), following)
    ]
    assert {cell["T1"] for plan in plans for cell in plan["cells"]} == {7}
    assert all('"D": 8' in cell["system_options"] for cell in plans[1]["cells"])


def test_a_plan_shows_the_values_of_a_coordinate_where_they_are_few(command: Any, write_suite: Any) -> None:
    suite = write_suite()
    shown = {n: command("plan", suite, "--set", f"T2={{linspace=[1,{n},{n}]}}")[1] for n in (12, 13)}
    assert re.search(r"^  T2 +1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$", shown[12], re.MULTILINE)
    assert not re.search(r"^  T2 ", shown[13], re.MULTILINE)


@pytest.mark.parametrize("how", [["--metric", "cosine,rel_error"], ["--metric", "cosine", "--metric", "rel_error"]])
def test_metrics_with_commas_are_metrics(
    command: Any, results: Path, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comparing, "compared", lambda a, b, metrics, across: asked.append(metrics) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("compare", "good", "bad", *how, "--out", results)
    assert asked == [["cosine", "rel_error"]]


def test_words_to_allow_may_have_commas(command: Any, results: Path) -> None:
    told = command("baseline", "set", "good", "--allow", "partial,dirt", "--out", results)[2]
    assert "--allow dirt: is nothing that a run is refused for. Did you mean 'dirty'?" in told


def test_the_folder_of_the_runs_of_a_suite_names_one_of_them(command: Any, results: Path) -> None:
    run = only(results, "good")
    code, _, err = command("check", run.folder.parent, "--out", results)
    assert (code, err.count("\n")) == (2, 1)
    assert f"holds the runs of a suite; name one of them, such as the newest: {run.folder}" in err


def test_a_file_here_wins_over_the_one_that_ships_and_is_named(
    command: Any, write_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = command("plan", "smoke")[2]
    assert re.match(r"suite /.*/planning/shipped/suites/smoke\.toml\n", shipped)
    (tmp_path / "suites").mkdir()
    write_suite().rename(tmp_path / "suites" / "smoke.toml")
    assert command("plan", "smoke")[2].startswith("suite suites/smoke.toml\n")
    code, _, err = command("run", "smoke", "--device", "cpu", "--set", "seed=0")
    assert code == 0
    assert err.startswith("suite suites/smoke.toml\n")


def test_letters_that_stdout_cannot_write_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "x.toml").write_text('about = "β, ∂F/∂θ"\n')
    done = shell("list", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, cwd=tmp_path)
    assert done.returncode == 0
    assert "\\u03b2" in done.stdout
