"""The command as a user meets it: exit codes, one clear line for every mistake, data on stdout and talk on stderr."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gradbench
from gradbench import cli
from gradbench.engine import packs
from gradbench.tables.store import Run

ROOT = Path(__file__).parent.parent
HOLDS = '\n[[check]]\nname = "bptt is itself"\nwhere = { estimator = "bptt" }\nmetric = "cosine"\nmin = 0.999\n'
FAILS = '\n[[check]]\nname = "ep is bptt"\nwhere = { estimator = "ep" }\nmetric = "cosine"\nmin = 1.5\n'
SHELL = [sys.executable, "-m", "gradbench"]


def shell(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | more.pop("env", {})
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, env=env, timeout=120, **more)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli._code([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two suites, made once."""
    folder = tmp_path_factory.mktemp("cli")
    base = 'about = ""\n[[grid]]\nsystem = "toy_cons"\nestimator = ["bptt", "ep"]\nT1 = 5\nT2 = 2\nbatch = 2\n'
    for name, checks in (("good", HOLDS), ("bad", HOLDS + FAILS)):
        (folder / f"{name}.toml").write_text(base + checks)
        gradbench.run(str(folder / f"{name}.toml"), out=folder / "results", device="cpu")
    return folder / "results"


def only(results: Path, suite: str) -> Run:
    (path,) = (results / "runs" / suite).glob("*/plan.json")
    return Run(path.parent)


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_asking_takes_half_a_second(arguments: list[str]) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert shell(*arguments).returncode == 0
        times.append(time.perf_counter() - start)
    print(f"{' '.join(arguments)}: {statistics.median(times):.2f} s")
    assert statistics.median(times) < 1.0  # 0.5 s on a machine with nothing else to do


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "smok"], "suite 'smok' does not exist. Did you mean 'smoke'?"),
        (["run", "smok"], "Did you mean 'smoke'?"),
        (["run", "nowhere/x.toml"], "suite 'nowhere/x.toml' does not exist"),
        (["show", "aepp"], "Did you mean 'aep'?"),
        (["plan", "smoke", "--set", "betta=1"], "betta: unknown key. Did you mean 'beta'?"),
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
        (["plan", "smoke", "--set", "name=x"], "unknown key"),
        (["run", "smoke", "--dtype", "float23"], "Did you mean 'float32'?"),
        (["run", "smoke", "--dtype", "float64", "--set", "dtype=float32"], "set twice"),
        (["run", "smoke", "--device", "gpu"], "device = 'gpu' is not known"),
        (["check", "x" * 4000], "there is no run"),
        (["check"], "there is no run in results/runs yet; make one with: gradbench run SUITE"),
        (["plot", "aep"], "there is no run"),
        (["rnu"], "Did you mean 'run'?"),
        (["run"], "Missing argument 'SUITE'"),
        (["run", "smoke", "--bogus"], "No such option: --bogus"),
        (["list", "extra"], "unexpected extra argument"),
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


def test_a_mistake_in_a_process_of_its_own_leaves_no_traceback() -> None:
    for arguments in (["plan", "smok"], ["rnu"]):
        done = shell(*arguments, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "Traceback" not in done.stderr


def test_no_argument_is_the_help() -> None:
    assert "Usage" in shell().stdout
    assert shell().returncode == 0


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
    assert "broken         unreadable" in out


@pytest.mark.parametrize("name", [*gradbench.systems(), *gradbench.estimators()])
def test_show_tells_definition_options_and_source(command: Any, name: str) -> None:
    data = json.loads(command("show", name, "--json")[1])
    assert data["name"] == name
    assert data["definition"]
    assert data["source"]
    assert data["source"] in command("show", name)[1]


def test_plan_prints_what_sharing_saves_and_writes_nothing(command: Any, write_suite: Any, tmp_path: Path) -> None:
    suite = write_suite()
    code, out, err = command("plan", suite)
    assert code == 0
    for words in ("grid points", "cells                60", "problems             6", "families             2"):
        assert words in out
    assert err.startswith("next: gradbench run")
    assert len(json.loads(command("plan", suite, "--json")[1])["cells"]) == 60
    assert os.listdir(tmp_path) == ["tiny.toml"]


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
    assert command(*arguments)[0] == 0
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


def test_an_unwritable_folder_is_exit_5(command: Any, write_suite: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, out, err = command("run", write_suite(), "--out", tmp_path / "file")
    assert (code, out) == (5, "")
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_is_exit_5_and_the_next_run_goes_on(write_suite: Any, tmp_path: Path, command: Any) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (15000, 15000)); "
    code = limited + "import sys; from gradbench.cli import main; sys.argv[0] = 'gradbench'; main()"
    arguments = ["run", str(write_suite()), "--out", str(tmp_path / "r"), "--device", "cpu", "--set", "seed=0,1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 5
    assert "File too large; what was stored before is unchanged" in done.stderr
    assert "Traceback" not in done.stderr
    assert command(*arguments)[0] == 0


def test_an_interrupt_is_exit_130_and_the_next_run_goes_on(write_suite: Any, tmp_path: Path, command: Any) -> None:
    slow = "from gradbench.engine import packs; solve = packs.measure_pack; import time\n"
    slow += "packs.measure_pack = lambda *a: (time.sleep(0.5), solve(*a))[1]\nfrom gradbench.cli import main; main()"
    arguments = ["run", str(write_suite()), "--out", str(tmp_path / "r"), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/runs/tiny/*/records/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    code, out, _ = command("check", "tiny", "--out", tmp_path / "r")
    assert code == 3
    assert "VERDICT incomplete (3)" in out
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("r/runs/tiny/*/records/*.parquet")}
    assert command(*arguments)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(only(tmp_path / "r", "tiny").cells) == 60


@pytest.mark.parametrize(("suite", "code", "word"), [("good", 0, "pass"), ("bad", 1, "fail")])
def test_check_ends_with_the_verdict_and_exits_with_its_code(
    command: Any, results: Path, suite: str, code: int, word: str
) -> None:
    found, out, _ = command("check", suite, "--out", results)
    assert found == code
    assert out.splitlines()[-1].startswith(f"VERDICT {word} ({code})")
    kept = json.loads((only(results, suite).folder / "verdict.json").read_text())
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
    code, out, err = command("check", "--out", tmp_path / "r")
    assert (code, out) == (5, "")
    assert "cells.parquet: damaged" in err


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


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], ["plan", "smoke"], ["rnu"]])
@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_tiny_terminal_is_no_reason_to_fail(arguments: list[str], columns: str) -> None:
    done = shell(*arguments, env={"COLUMNS": columns, "TERMINAL_WIDTH": columns}, cwd=ROOT)
    assert done.returncode == (2 if arguments == ["rnu"] else 0)
    assert "Traceback" not in done.stderr


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
def test_a_full_disk_behind_stdout_is_one_line_and_exit_5(arguments: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SHELL, *arguments.split()], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "gradbench: No space left on device"
    assert "Traceback" not in done.stderr
