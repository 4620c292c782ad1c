"""Tables of a run for other programs: CSV with all digits, LaTeX that compiles whatever stands in a name."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from answering import cell, source

from gradbench.cli import _code
from gradbench.commands.reporting import exported
from gradbench.errors import UserError
from gradbench.pages import writing
from gradbench.pages.answers import answered
from gradbench.tables.store import Run

UNSAFE = "&%$#_{}~^\\ [x] *y -- <a> \"q\" 'r' `s` | \N{GREEK SMALL LETTER BETA} \N{GRINNING FACE} \u00e9"


@pytest.mark.fast
def test_csv_of_the_cells_is_the_table(finished: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(Run(finished), "csv"))))
    cells = Run(finished).cells
    assert [*rows[0]] == list(cells.columns)
    for name in cells:
        if cells[name].dtype.kind == "f":
            read = pd.Series([float(row[name] or "nan") for row in rows], name=name)
            pd.testing.assert_series_equal(read, cells[name], check_exact=True)
    assert [row["cell"] for row in rows] == cells["cell"].tolist()


def test_cells_and_columns_are_chosen(finished: Path) -> None:
    text = exported(Run(finished), "csv", where={"estimator": "aep", "T2": 60}, columns=("T1", "cosine_min"))
    read = pd.read_csv(io.StringIO(text))
    cells = Run(finished).cells
    assert list(read.columns) == ["T1", "cosine_min"]
    assert len(read) == ((cells["estimator"] == "aep") & (cells["T2"] == 60)).sum() > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"where": {"estimatr": "ep"}}, "neither a column nor an option. Did you mean 'estimator'"),
        ({"where": {"estimator": "epp"}}, "no stored cell has estimator"),
        ({"columns": ["cosin"]}, "'cosin' is no column of the cells. Did you mean 'cosine'"),
        ({"what": "matrix", "columns": ["cosine"]}, "the matrix holds every rule and system"),
    ],
)
def test_what_no_cell_has_is_a_mistake(finished: Path, given: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        exported(Run(finished), "csv", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [["--to", "xml"], ["--of", "params"], ["--where", "T2"]])
def test_an_option_that_is_no_choice_is_a_mistake(finished: Path, arguments: list[str]) -> None:
    assert _code(["export", str(finished), *arguments]) == 2


@pytest.mark.fast
def test_export_prints_or_writes_the_same(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(finished), "--of", "matrix", "--to", "csv"]
    assert _code(arguments) == 0
    printed = capsys.readouterr().out
    assert _code([*arguments, "-o", str(tmp_path / "matrix.csv")]) == 0
    assert (tmp_path / "matrix.csv").read_text() == printed
    assert printed.startswith("system,estimator,grade,T2,beta,places,holds,cosine_min,error")
    assert capsys.readouterr().out == ""


def test_a_cosine_in_latex_does_not_read_one_where_it_is_not(finished: Path) -> None:
    table = pd.DataFrame({"estimator_label": ["ep"], "cosine_min": [0.99996], "rel_error": [0.123456], "T2": [60.0]})
    assert writing.latex(table).splitlines()[4] == r"ep & 0.999960 & 0.1235 & 60 \\"


def test_latex_leaves_out_the_coordinates_in_which_the_cells_agree() -> None:
    cells = source(cell(T2=5), cell(T2=10)).cells
    assert writing.differing(cells) == ["system_label", "estimator_label", "T2", *writing.READ_FIRST]


@pytest.mark.parametrize("letter", [*"&%$#_{}~^\\[*-<>|\"'`"])
def test_a_letter_that_latex_reads_as_a_command_is_escaped(letter: str) -> None:
    assert writing.tex(letter) != letter
    assert writing.tex(f"a\n\n{letter}").startswith("a ")


def unsafe_tables() -> list[str]:
    row = cell(params={UNSAFE: (0.5, 0.9)}, cause=UNSAFE, worst=UNSAFE)
    rows = [row | {"system_label": UNSAFE, "estimator_label": UNSAFE}, cell("[aep]"), cell("*", status="collapsed")]
    made = source(*rows)
    return [writing.latex(made.cells[writing.differing(made.cells)]), writing.latex_matrix(answered(made))]


def test_a_row_is_a_line_and_has_as_many_fields_as_the_head() -> None:
    for table in unsafe_tables():
        lines = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert len(lines) == table.count("\n") - 5
        assert len({line.replace(r"\&", "").count("&") for line in lines}) == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_tables_with_unsafe_letters_compile(tmp_path: Path, finished: Path) -> None:
    tables = [*unsafe_tables(), exported(Run(finished), "latex"), exported(Run(finished), "latex", "matrix")]
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{textcomp,booktabs}\n\\begin{document}\n"
    inner = "\n\n".join(rf"\mbox{{{table}}}" for table in tables)
    text = f"{head}{inner}\n\\end{{document}}\n"
    (tmp_path / "tables.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "tables.log").read_text(errors="replace")
