"""The fixtures of the pytest plugin, as a repository uses them that gates a rule."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import warm
from tiny import GATED, TINY

from gradbench import pytest_plugin

pytest_plugins = ["pytester"]
PLUGIN = ("-p", "gradbench.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:benchmark")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with a suite that settles."""
    pytester.path.joinpath("suites").mkdir()
    smaller = GATED.replace("seed = [0, 1, 2, 3]", "seed = 0").replace("T1 = [20, 200]", "T1 = 200")
    pytester.path.joinpath("suites", "gated.toml").write_text(smaller)
    return pytester


def tried(repository: pytest.Pytester, tests: str) -> tuple[dict[str, int], str]:
    """How the tests of a repository end, and what pytest says: in a process of its own that finds torch imported."""
    repository.makepyfile(tests)
    told = repository.path / "told"
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    process = warm.start(code, *PLUGIN, "--basetemp", repository.path / "session", streams={1: told})
    warm.ended(process)
    text = told.read_text()
    # of an installed plugin pytest says that the process had imported it before
    ended = {n: k for n, k in pytest.RunResult.parse_summary_nouns(text.splitlines()).items() if n != "warnings"}
    return ended, text


HOLDS = """
import pytest


def test_the_suite(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu")


@pytest.mark.parametrize("metric", [{"cosine_min": 0.9}, {"rel_error": 0.2}, {"norm_ratio": (0.8, 1.2)}])
def test_a_rule(gradbench_check, metric):
    gradbench_check("suites/gated.toml", device="cpu", estimator="aep", T2=60, **metric)


def test_what_is_returned_and_measured_once(gradbench_check):
    results = gradbench_check("suites/gated.toml", device="cpu", estimator=("aep", "bptt"), T2=[60, None], cosine=0.9)
    assert len(results.cells) == 14
    assert len(list(results.folder.parent.glob("*/plan.json"))) == 1


def test_where_it_is_written(gradbench_check, tmp_path):
    results = gradbench_check("suites/gated.toml", device="cpu", out=tmp_path, overrides={"T2": 4}, T2=4, cosine=-1)
    assert results.folder.is_relative_to(tmp_path)


def test_a_system_and_a_rule(gradbench_conform):
    assert gradbench_conform("toy_cons", batch=2).passed
"""

FAILS = """
import gradbench as gb


def test_too_low(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", estimator="ep", T2=60, cosine_min=0.99, cosine=-1)

def test_too_large(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", estimator="ep", rel_error=1e-9)

def test_no_cell_settles(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", status="unsettled", cosine=-1)

def test_the_check_of_a_suite(gradbench_check):
    gradbench_check("suites/wrong.toml", device="cpu")

def test_a_suite_that_checks_nothing(gradbench_check):
    gradbench_check("suites/nothing.toml", device="cpu")

def test_damage(gradbench_check, tmp_path):
    results = gradbench_check("suites/gated.toml", device="cpu", out=tmp_path)
    path = results.folder / "plan.json"
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    gradbench_check("suites/gated.toml", device="cpu", out=tmp_path, cosine=-1)

@gb.estimator(source="a test", exact="fixed point")
def halved(free):
    return free.back(free.cost_slope)

def test_a_rule_that_does_not_conform(gradbench_conform):
    gradbench_conform(halved, batch=2)
"""

BASELINE = """
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

import gradbench
from gradbench.tables.baselines import read_baseline, set_baseline
from gradbench.tables.disk import write_table

def test_a_baseline_of_before_is_made(tmp_path):
    run = gradbench.run("suites/gated.toml", out=tmp_path, device="cpu").run
    path = set_baseline([run], Path("results"), ["dirty"])
    shutil.copy(path, "lower.parquet")
    rows = read_baseline(path, "gated")
    cosine = np.where(rows["estimator"].to_numpy() == "ep", 1.0, rows["cosine"].to_numpy())
    write_table(path, rows.set_column(rows.column_names.index("cosine"), "cosine", pa.array(cosine)))

def test_that_of_the_suite(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu")

def test_another(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", baseline="lower.parquet")

def test_none(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", baseline="none")

def test_one_check(gradbench_check):
    gradbench_check("suites/gated.toml", device="cpu", estimator="aep", cosine=0.9)
"""

MISTAKES = [
    ("cosine_min=1.0", None),  # a bound that no cell reaches is a failure and no mistake
    ("cosine_min=7", r"min = 7 is above 1, the largest cosine_min: no number can pass"),
    ("cosine=-2", r"min = -2 is below -1, the smallest cosine: no number can fail"),
    ("cosine_mn=0.9", r"cosine_mn choose cells, and no metric says what these must reach"),
    ("cosine=0.9, cosine_mn=0.9", r"where\.cosine_mn is neither a coordinate nor an option"),
    ("cosine=0.9, estimator='app'", r"no planned cell has estimator = \"app\""),
    ("where={'estimator': 'ep'}, estimator='bptt', cosine=0.9", r"estimator is given twice, in where and as a keyword"),
    ("norm_ratio=0.9", r"norm_ratio = 0\.9: has no better direction; give a pair"),
    ("rho=0.9", r"rho = 0\.9: has no better direction"),
    ("cosine=(0.9,)", r"cosine = \(0\.9,\): expected a number or \(least, largest\)"),
    ("cosine=(None, None)", r"a check needs a metric with min or max"),
    ("cosine=(0.9, 0.1)", r"min = 0\.9 is above max = 0\.1"),
    ("cosine=float('nan')", r"min: nan is not finite|min: .*nan"),
    ("cosine='high'", r"min: 'high'"),
    ("cosine=0.9, baseline='none'", r"baseline is of the verdict; cosine asks for one check alone"),
    ("cosine=0.9, status='setled'", r"'setled' is not a status. Did you mean 'settled'"),
]


def test_what_holds_passes_and_a_suite_is_measured_once(repository: pytest.Pytester) -> None:
    counts, text = tried(repository, HOLDS)
    assert counts == {"passed": 7}, text


def test_what_does_not_hold_fails_and_names_the_worst_cell(repository: pytest.Pytester) -> None:
    text = (repository.path / "suites" / "gated.toml").read_text()
    (repository.path / "suites" / "wrong.toml").write_text(text.replace("min = 0.9", "max = -0.9"))
    (repository.path / "suites" / "nothing.toml").write_text(TINY.replace("seed = [0, 1, 2]", "seed = 0"))
    counts, text = tried(repository, FAILS)
    assert counts == {"failed": 6, "passed": 1}, text  # a damaged run is passed over, and measured anew
    told = "\n".join(re.findall(r"^E +(.*)$", text, re.MULTILINE))
    for line in (
        r"AssertionError: suite gated: 1 of 2 do not hold",
        r"FAIL  cosine_min >= 0\.99  \[2 cells\]  cosine_min 0\.\d+ < 0\.99 at toy_noncons .* / ep .* seed=0",
        r"why: gradbench explain \S+/runs/gated/\S+ [0-9a-f]{16}$",
        r"FAIL  rel_error <= 1e-09  \[4 cells\]  rel_error \d\.\d+ > 1e-09 at toy_noncons",
        r"NONE  cosine >= -1  \[0 cells\]  no cell is unsettled: 14 settled",
        r"suite wrong: VERDICT fail \(1\)  0 of 1 checks, 14 of 14 cells",
        r"suite nothing: VERDICT nothing checked \(4\)",
        r"estimator halved: failed; \d+ checks pass",
    ):
        assert re.search(line, told, re.MULTILINE), (line, told)


def test_without_keywords_a_suite_is_held_to_its_baseline(repository: pytest.Pytester) -> None:
    counts, text = tried(repository, BASELINE)
    assert counts == {"passed": 4, "failed": 1}, text
    worse = r"^E +FAIL  cosine is no worse  2 are worse, most 1 -> 0\.\d+ at \w{16}, toy"
    assert re.search(worse, text, re.MULTILINE), text


def test_a_mistake_is_told_before_anything_runs(repository: pytest.Pytester) -> None:
    lines = [f"    gradbench_check('suites/gated.toml', {named})" for named, _ in MISTAKES]
    tests = [f"def test_{i}(gradbench_check):\n{line}\n" for i, line in enumerate(lines)]
    counts, said = tried(repository, "\n".join(tests))
    assert counts == {"failed": len(MISTAKES)}, said
    told = re.findall(r"^E +(\S+: .*(?:\nE .*)*)$", said, re.MULTILINE)
    for (named, message), text in zip(MISTAKES, told, strict=True):
        assert text.startswith("AssertionError" if message is None else "gradbench.errors.UserError"), (named, text)
        assert message is None or re.search(message, text), (named, text)
    assert len(list((repository.path / "session").rglob("plan.json"))) == 1  # of the first call


@pytest.mark.fast
def test_it_is_named_for_pytest_and_loads_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {pytest_plugin.__name__: pytest_plugin.__name__}
    code = "import sys, gradbench.pytest_plugin; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
