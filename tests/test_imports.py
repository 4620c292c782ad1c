"""What is imported when: asking and planning need no torch, and reading tables needs no engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

HEAVY = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "matplotlib", "seaborn")


def imported(code: str) -> set[str]:
    """Modules that a fresh interpreter holds after it has run a piece of code."""
    told = f"import sys\n{code}\nprint('|'.join(sys.modules), file=sys.stderr)"
    return set(
        subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stderr.split("|")
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["show", "aep"],
        ["show", "cet_real"],
        ["run", "--help"],
        ["train", "--help"],
        ["explain", "--help"],
    ],
)
def test_asking_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from gradbench.cli import app\napp({arguments}, standalone_mode=False)"
    assert not imported(code) & set(HEAVY)


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    words = ["plan", "suites/aep.toml", "--out", str(tmp_path)]  # where a run is, it is compared with what torch says
    code = f"from gradbench.cli import app\napp({words}, standalone_mode=False)"
    assert not imported(code) & {"torch", "torchvision", "matplotlib", "seaborn"}


def test_importing_gradbench_touches_neither_torch_nor_the_disk() -> None:
    assert not imported("import gradbench; gradbench.systems(); gradbench.estimators()") & set(HEAVY)


def test_reading_tables_and_judging_them_imports_no_torch(tmp_path: Path) -> None:
    assert "torch" not in imported("import gradbench.tables.verdict, gradbench.tables.runs, gradbench.tables.store")


def test_choosing_the_cells_of_a_figure_imports_no_torch() -> None:
    code = "import pandas as pd; from gradbench.plots import hold\n"
    code += "cells = pd.DataFrame({'estimator': ['ep', 'bptt', 'control', 'theirs'], 'status': 'settled'})\n"
    code += "assert hold.estimates(cells)['estimator'].tolist() == ['ep', 'theirs']"
    held = imported(code)
    assert "gradbench.plots.hold" in held
    assert "torch" not in held


def test_measuring_imports_none_of_the_modules_that_torch_compiles_by() -> None:
    code = "import gradbench as gb\nsmall = {'D': 8, 'dh': 2, 'mem': 4}\n"
    code += "gb.measure('cet_real', 'aep', system_options=small, T1=3, T2=2, batch=2)"
    assert not imported(code) & {"sympy", "torch._dynamo", "torch._inductor"} - imported("import torch")


def test_gradbench_has_no_other_name() -> None:
    import gradbench

    with pytest.raises(AttributeError, match="'mesure'"):
        gradbench.mesure  # noqa: B018
