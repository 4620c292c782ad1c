"""The report of a run as a file: what is in it, what is not, and that it is the same when it is made again."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from answering import cell, source
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

import gradbench as gb
from gradbench.api.results import Results
from gradbench.cli import _code
from gradbench.commands import reporting
from gradbench.errors import StoreError, UserError
from gradbench.pages import composing as pages
from gradbench.pages.definitions import DEFINITIONS
from gradbench.pages.packing import INF, MINUS_INF, NULL, packed
from gradbench.pages.sources import Source
from gradbench.tables.schema import OUTCOME
from gradbench.tables.store import Run
from gradbench.tables.verifying import trusted
from gradbench.vocabulary.coordinates import COORDINATES

EVIL = "<script>window.hacked = 1</script>"


def unpacked(html: str) -> tuple[dict[str, Any], dict[str, dict[str, list[Any]]]]:
    """What a page carries: what else it knows, and its tables as lists, read by other code than the page's own."""
    (text,) = re.findall(r'<script id="data" type="application/octet-stream">([A-Za-z0-9+/=]*)</script>', html)
    content = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(content[:4], "little")
    header, at = json.loads(content[4 : 4 + size]), 4 + size
    tables: dict[str, dict[str, list[Any]]] = {}
    for name, table in header["tables"].items():
        rows, columns = table["rows"], {}
        for column, told in table["columns"].items():
            bytes_a_row = {"hex": 8, "words": told.get("width"), "digits": told.get("width", 0) + 1}[told["kind"]]
            planes = np.frombuffer(content, np.uint8, rows * bytes_a_row, at).reshape(bytes_a_row, rows)
            at += rows * bytes_a_row
            columns[column] = list(_values(told, planes))
        tables[name] = columns
    assert at == len(content)
    return header["meta"], tables


def _values(told: dict[str, Any], planes: np.ndarray) -> Any:
    for column in planes.T.tolist():
        if told["kind"] == "hex":
            yield bytes(column).hex()
        elif told["kind"] == "words":
            code = int.from_bytes(bytes(column), "little")
            yield told["words"][code - 1] if code else None
        else:
            power = int.from_bytes(bytes(column[:1]), "little", signed=True)
            special = {NULL: None, INF: math.inf, MINUS_INF: -math.inf}
            whole = int.from_bytes(bytes(column[1:]), "little", signed=True)
            yield special[power] if power in special else float(f"{whole}e{power}")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50), st.integers(2, 6))
def test_a_number_is_packed_as_its_digits_read(numbers: list[float], digits: int) -> None:
    numbers = [v for v in numbers if not 0 < abs(v) < 1e-100 and (abs(v) < 1e100 or not math.isfinite(v))] or [1.0]
    frame = pd.DataFrame({"x": numbers})
    text = packed({"t": frame}, {"t": {"x": digits}}, {})
    there = unpacked(f'<script id="data" type="application/octet-stream">{text}</script>')[1]["t"]["x"]
    for value, read in zip(numbers, there, strict=True):
        wanted = None if math.isnan(value) else float(f"{value:.{digits - 1}e}")
        read = {"Infinity": math.inf, "-Infinity": -math.inf}.get(read, read) if isinstance(read, str) else read
        assert read == wanted


@pytest.mark.parametrize("value", [0.999999499999, 9.9999995, 0.5, 1e-7, 123456.5, 1234565.0, 2.5e-5])
def test_a_number_between_two_roundings_is_rounded_as_it_is_printed(value: float) -> None:
    for digits in range(2, 7):
        text = packed({"t": pd.DataFrame({"x": [value] * 1})}, {"t": {"x": digits}}, {})
        there = unpacked(f'<script id="data" type="application/octet-stream">{text}</script>')[1]["t"]["x"]
        assert there == [float(f"{value:.{digits - 1}e}")]


@pytest.fixture(scope="module")
def html(finished: Path) -> str:
    return reporting.html(Run(finished))


@pytest.mark.fast
def test_the_numbers_of_the_page_are_those_of_the_tables(finished: Path, html: str) -> None:
    run = Run(finished)
    _, tables = unpacked(html)
    assert tables["cells"]["cell"] == run.cells["cell"].tolist()
    for name in ("status", "system_label", "estimator_label", "reason", "worst", "cause"):
        wanted = [None if pd.isna(v) else v for v in run.cells[name]]
        assert tables["cells"][name] == wanted, name
    for name in COORDINATES:
        assert tables["cells"][name] == [None if pd.isna(v) else v for v in run.cells[name]], name
    compared = 0
    for table, frame in (("cells", run.cells), ("params", run.params), ("budget", run.budget)):
        for name in tables[table]:
            if name in frame and frame[name].dtype.kind == "f" and name not in COORDINATES:
                digits = 6 if table == "cells" or name == "cosine" else 4 if table == "params" else 3
                wanted = [None if pd.isna(v) else float(f"{v:.{digits - 1}e}") for v in frame[name]]
                exact = [None if pd.isna(v) else v for v in frame[name]]
                assert tables[table][name] in (wanted, exact), (table, name)
                compared += 1
    assert compared > 40


def test_rows_of_parameters_belong_to_their_cells(finished: Path, html: str) -> None:
    run = Run(finished)
    _, tables = unpacked(html)
    for table, frame in (("params", run.params), ("budget", run.budget)):
        owners = [tables["cells"]["cell"][i] for i in np.cumsum(tables[table]["further"])]
        assert list(zip(owners, tables[table]["param"], strict=True)) == list(
            zip(frame["cell"], frame["param"], strict=True)
        )


@pytest.mark.fast
def test_a_report_lies_in_the_folder_of_the_run_and_check_still_passes(gated: Run) -> None:
    path = Results(gated.folder).report()
    assert path == gated.folder / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert gb.report(gated, gated.folder / "other.html").read_bytes() == path.read_bytes()
    verdict = Results(gated.folder).check()
    assert verdict, verdict
    assert _code(["check", str(gated.folder), "--deep"]) == 0


def test_a_report_is_the_same_to_the_byte_when_it_is_made_again(gated: Run, tmp_path: Path) -> None:
    made = []
    for seed, folder in (("1", tmp_path), ("2", Path.cwd())):
        code = "import sys; from gradbench.cli import main; main()"
        path = tmp_path / f"{seed}.html"
        command = [sys.executable, "-c", code, "report", str(gated.folder), "-o", str(path)]
        env = os.environ | {
            "PYTHONHASHSEED": seed,
            "TZ": f"UTC+{seed}",
            "USER": f"user{seed}",
            "PYTHONPATH": str(Path(gb.__file__).parents[1]),
        }
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        made.append(path.read_bytes())
    assert made[0] == made[1]


@pytest.mark.fast
def test_a_report_holds_no_path_no_user_and_no_time(finished: Path, html: str) -> None:
    env = Run(finished).env
    content = zlib.decompress(base64.b64decode(re.findall(r'octet-stream">([^<]*)<', html)[0])).decode("latin-1")
    for text in (html, content):
        assert str(finished.parent) not in text
        assert env["started"] not in text
        assert not [word for word in env["command"] if "/" in word and word in text]
    assert not re.findall(r'(?:src|href|action)="(?!#|data:,)[^"]*"', html)


@pytest.mark.fast
def test_a_browser_may_run_the_two_scripts_of_the_page_and_nothing_else(html: str) -> None:
    (allowed,) = re.findall(r"script-src([^;]*);", html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed.replace("&#39;", "'").split() == [f"'sha256-{d}'" for d in digests]
    assert len(scripts) == 2
    assert "default-src 'none'" in html


@pytest.mark.fast
def test_markup_in_words_of_a_run_is_text_in_the_page() -> None:
    row = cell(params={EVIL: (0.5, 0.9)}, reason=EVIL, rel_error=0.02)
    row |= {"system_label": EVIL, "estimator_label": f"ep option={EVIL}", "worst": EVIL, "cause": EVIL}
    made = replace(source(row, suite=EVIL), env={"commit": EVIL, "device": EVIL})
    html = pages.rendered(made)
    assert EVIL not in html
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in html
    _, tables = unpacked(html)
    assert tables["cells"]["reason"] == [EVIL]
    assert tables["params"]["param"] == [EVIL]


def test_a_file_of_the_charting_library_that_was_changed_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {hashlib.sha256((pages.VENDOR / n).read_bytes()).hexdigest() for n in pages.DIGESTS} == set(
        pages.DIGESTS.values()
    )
    monkeypatch.setitem(pages.DIGESTS, "uPlot.min.css", "0" * 64)
    with pytest.raises(StoreError, match=r"uPlot.min.css: damaged"):
        pages.shipped("uPlot.min.css")


def test_the_charting_library_takes_less_than_a_tenth_of_what_it_may(html: str) -> None:
    assert sum(len((pages.VENDOR / n).read_bytes()) for n in pages.DIGESTS) < 120_000
    assert len(pages.shipped("uPlot.iife.min.js")) < len(html)


@pytest.mark.fast
def test_a_damaged_run_has_no_report(gated: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = gated.folder / "cells.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert _code(["report", str(gated.folder)]) == 5
    assert "damaged" in capsys.readouterr().err
    assert not (gated.folder / "report.html").exists()


def test_a_run_that_was_cut_off_is_reported_by_its_records(gated: Run) -> None:
    (gated.folder / "manifest.json").unlink()
    first = sorted((gated.folder / "records").iterdir())[0]
    first.unlink()
    html = reporting.html(gated)
    there, planned = len(unpacked(html)[1]["cells"]["cell"]), len(gated.plan["cells"]) + len(gated.plan["skipped"])
    assert 0 < there < planned
    assert re.search(rf"[\d,]+ of {len(gated.plan['cells']):,} cells are measured", html)


def test_the_verdict_of_a_page_is_that_of_the_checks_alone(gated: Run) -> None:
    claims = {k: v for k, v in gated.claims.items() if k != "bound_to"}
    claims["check"][0]["min"] = 0.9999999999
    gated.claim(claims)
    html = reporting.html(gated)
    assert "1 of 1 checks of the suite do not pass." in html
    assert "<strong>aep follows BPTT</strong>" in html


@pytest.mark.fast
def test_report_prints_the_path_and_writes_where_it_is_told(
    gated: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert _code(["report", str(gated.folder)]) == 0
    assert capsys.readouterr().out == f"{gated.folder / 'report.html'}\n"
    assert not shown
    path = tmp_path / "a folder" / "page.html"
    assert _code(["report", str(gated.folder), "-o", str(path), "--open"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert shown == [path.resolve().as_uri()]
    assert path.read_bytes() == (gated.folder / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("path", "told"), [(3, "got an int, expected the path of a file"), ("a\0b", "expected the path of a file")]
)
def test_a_path_that_is_none_is_a_mistake(gated: Run, path: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        gb.report(gated, path)


def test_a_folder_and_a_file_in_the_way_are_mistakes(gated: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder, expected a file"):
        gb.report(gated, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        gb.report(gated, tmp_path / "file" / "page.html")
    assert _code(["report", str(gated.folder), "-o", str(tmp_path)]) == 2


def test_an_argument_that_report_does_not_have_is_a_mistake(gated: Run) -> None:
    with pytest.raises(UserError, match="Did you mean 'path'"):
        gb.report(gated, pth="x")  # type: ignore[call-arg]


def test_a_run_without_a_rule_and_one_without_a_cell_have_a_page() -> None:
    assert "The run has no cell of a rule." in pages.rendered(source(cell("bptt")))
    assert "The run has no cell of a rule." in pages.rendered(source(cell(status="skipped")))


def test_reading_a_run_into_a_page_imports_no_torch(finished: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gradbench.commands.reporting import html; "
        f"from gradbench.tables.store import Run; html(Run(Path({str(finished)!r}))); "
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_bench_writes_the_report_before_the_verdict_and_tells_its_path_last() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    recipe = makefile.partition("\nbench:")[2].partition("\n\n")[0]
    words = re.findall(r"\$\(BENCH\) (\w+)", recipe)
    assert words == ["run", "plot", "report", "check"]
    assert recipe.rstrip().endswith('echo "report: $$report" >&2; exit $$code; }')
    shell = recipe.splitlines()[-1].strip().removeprefix("@").replace("$$", "$").replace("$(RUN)", "aep")
    for code in (0, 1, 5):
        program = f"bench() {{ [ $1 = report ] && echo a/report.html || {{ echo VERDICT; return {code}; }}; }}; "
        done = subprocess.run(
            ["sh", "-c", program + shell.replace("$(BENCH)", "bench")], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, "VERDICT\n", "report: a/report.html\n")


def test_a_source_reads_what_the_run_says(finished: Path) -> None:
    made = Source.of(trusted(Run(finished)))
    assert (made.suite, made.name) == ("gated", f"gated/{finished.name}")
    assert made.planned == len(made.cells)


def test_a_page_of_a_run_is_made_without_a_lock_or_a_change(gated: Run) -> None:
    before = {p: p.read_bytes() for p in gated.folder.rglob("*") if p.is_file()}
    reporting.html(gated)
    assert {p: p.read_bytes() for p in gated.folder.rglob("*") if p.is_file()} == before


def test_every_number_of_a_cell_is_defined_by_more_than_its_name_and_has_a_unit(html: str) -> None:
    numbers = {n for n, c in OUTCOME.items() if not pa.types.is_string(c.type)}
    assert set(DEFINITIONS) == numbers
    units = ("ratio", "count", "share", "to 1", "per ", "degrees", "seconds", "bytes", "in units", "yes or no")
    for name, text in DEFINITIONS.items():
        assert text.lower() != name.replace("_", " ")
        assert any(unit in text for unit in units), name
        assert f"<dt>{name}</dt><dd>{escape(text)}</dd>" in html
    assert "largest singular value over its smallest" in DEFINITIONS["condition"]


MakeSuite = Callable[..., Path]


def test_columns_of_rules_and_systems_of_a_caller_are_in_the_page(write_suite: MakeSuite, tmp_path: Path) -> None:
    import torch

    mine = gb.system(
        step=lambda net, x, z, k: torch.tanh(k.gain * (z @ net["W"]) + x["x"]),
        cost=lambda net, x, z: (z - x["y"]).square().sum(-1),
        state=lambda net, x: torch.zeros_like(x["x"]),
        params={"W": torch.eye(3) / 4},
        data={"x": torch.ones(2, 3), "y": torch.zeros(2, 3)},
        knobs={"gain": 1.0},
        name="mine",
    )
    grid = {"system": mine, "estimator": ["ep"], "T1": 60, "T2": 20, "beta": 0.01, "gain": [0.5, 1.0]}
    html = reporting.html(gb.run(gb.suite(grid), out=tmp_path, device="cpu"))
    meta, tables = unpacked(html)
    assert tables["cells"]["gain"] == [0.5, 1.0]
    assert [item["call"] for item in meta["systems"].values()] == [None, None]
