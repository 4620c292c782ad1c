"""The verdict as JUnit XML and as Markdown: the same findings, read by others."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_baselines import HERE, at, reading, remeasured, unsettled

import gradbench as gb
from gradbench.cli import _code
from gradbench.tables.findings import Finding
from gradbench.tables.junit import verdict_junit
from gradbench.tables.markdown import as_code, comparison_markdown, verdict_markdown
from gradbench.tables.store import Run
from gradbench.tables.verdict import Verdict, judge
from gradbench.vocabulary.exit import Exit

HOSTILE = "a|b `c` <d> & \"e\" 'f' @g #1 https://h.example [i](j) \x07 \ud800 \\| \n k ]]> -->"


def cut_off(run: Run) -> Run:
    (run.folder / "manifest.json").unlink()
    sorted((run.folder / "records").iterdir())[0].unlink()
    return run


def without_checks(run: Run) -> Run:
    run.claim(run.claims | {"check": []})
    return run


def torn(run: Run) -> Run:
    (run.folder / "params.parquet").write_bytes(b"")
    return run


def renamed(run: Run) -> Run:
    path = run.folder / "plan.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 30', 1))
    return run


RUNS = {
    "passes": (lambda run: run, Exit.OK),
    "fails": (lambda run: remeasured(run, at(HERE, lambda row: reading(row, 0.1))), Exit.CHECK_FAILED),
    "without a verdict": (
        lambda run: remeasured(run, at({"T1": 200}, unsettled)),
        Exit.CHECK_FAILED,
    ),
    "lacks cells": (cut_off, Exit.INCOMPLETE),
    "checks nothing": (without_checks, Exit.NOTHING),
    "torn": (torn, Exit.STORE),
    "damaged": (renamed, Exit.STORE),
}


@pytest.mark.parametrize("name", RUNS)
def test_junit_is_red_where_the_exit_code_is_not_0_and_says_what_the_findings_say(gated: Run, name: str) -> None:
    change, code = RUNS[name]
    verdict = judge(change(gated))
    assert verdict.code is code
    text = verdict_junit(verdict)
    assert verdict_junit(judge(gated)) == text
    root = ElementTree.fromstring(text)
    (suite,) = root
    cases = suite.findall("testcase")
    bad = Counter(part.tag for case in cases for part in case if part.tag in ("failure", "error"))
    for element in (root, suite):
        assert [int(element.get(n, "")) for n in ("tests", "failures", "errors", "skipped")] == [
            len(cases),
            bad["failure"],
            bad["error"],
            0,
        ]
    assert bool(bad) == (code is not Exit.OK)
    assert bool(bad["error"]) == (code is Exit.STORE)
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    for finding, case in zip(verdict.findings, cases[1:], strict=True):
        (told,) = case
        assert str(case.get("name")).startswith(finding.name)
        assert finding.detail in (told.text or "")
        assert (told.tag == "system-out") == finding.passed
        assert finding.cell in (told.text or "") or finding.passed
    properties = {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")}
    assert (properties["run"], properties["exit code"]) == (gated.id, str(int(code)))
    assert properties["cells present"] == str(verdict.present)
    assert verdict.snapshot is None or properties.get("commit") == verdict.snapshot.env["commit"]


@pytest.mark.parametrize("name", RUNS)
def test_markdown_has_the_line_and_every_finding_failed_ones_first(gated: Run, name: str) -> None:
    change, _ = RUNS[name]
    verdict = judge(change(gated))
    text = verdict_markdown(verdict)
    assert verdict_markdown(judge(gated)) == text
    assert text.startswith(f"**{verdict.line}**\n")
    results = re.findall(r"^\| (PASS|FAIL|NONE) ", text, re.MULTILINE)
    assert Counter(results) == Counter(f.result.upper() for f in verdict.findings)
    assert results == sorted(results, key=["FAIL", "NONE", "PASS"].index)
    assert all(f"{n} `{status}`" in text for status, n in verdict.statuses.items())


def made(*findings: Finding) -> Verdict:
    return Verdict("20200101-000000-abcd", Exit.CHECK_FAILED, 1, 1, {"settled": 1}, findings, None)


def test_what_others_would_read_as_markup_is_text() -> None:
    finding = Finding(HOSTILE, "fail", 1, HOSTILE, "0" * 16)
    (case,) = ElementTree.fromstring(verdict_junit(made(finding, finding))).findall(".//testcase[2]")
    read = HOSTILE.replace("\x07", "\\x07").replace("\ud800", "\\ud800")
    assert case.get("name") == read
    assert case[0].get("message") == read
    tables = verdict_markdown(made(finding, Finding("b", "pass", 1, "c")))
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [6] * 4
    assert not re.search(r"\]\(|https?:", re.sub(r"(`+).*?(?<!`)\1(?!`)", "", tables))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
@example("a|b")
@example("``")
@example("`a")
@example("a\\|b\\")
@example("*a* _b_ <b>c</b> [d](http://e) &amp;")
def test_any_text_is_one_cell_of_a_table_and_reads_as_it_is(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(f"| a | b |\n| --- | --- |\n| {as_code(text)} | x |\n")
    cells = [token for before, token in pairwise(tokens) if before.type == "td_open"]
    assert [len(cell.children or ()) for cell in cells] == [bool(text.split()), 1]
    if text.split():
        (inline,) = cells[0].children
        expected = " ".join(text.split()).replace("\\|", "\\ |")
        assert inline.type == "code_inline"
        assert inline.content.strip(" ") == expected.replace("\0", "\ufffd")


def test_the_command_writes_what_the_functions_say(gated: Run, tmp_path: Path, capsys: Any) -> None:
    remeasured(gated, at(HERE, lambda row: reading(row, 0.1)))
    xml, markdown = tmp_path / "new" / "gate.xml", tmp_path / "gate.md"
    run = str(gated.folder)
    assert _code(["check", run, "--junit", str(xml), "--markdown", str(markdown)]) == Exit.CHECK_FAILED
    assert capsys.readouterr().out.splitlines()[-1].startswith("VERDICT fail (1)")
    verdict = judge(gated)
    assert (xml.read_text(), markdown.read_text()) == (verdict_junit(verdict), verdict_markdown(verdict))
    assert _code(["check", run, "--markdown", "-"]) == Exit.CHECK_FAILED
    assert capsys.readouterr().out == verdict_markdown(verdict)
    assert _code(["check", run, "--markdown", "-", "--json"]) == Exit.USAGE
    assert "--markdown - and --json: both are printed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "code", "message"),
    [
        ("file/gate.xml", Exit.USAGE, "{}: cannot be written: {above} is no folder. Nothing was run."),
        ("/proc/gate.xml", Exit.USAGE, "{}: cannot be written: No such file or directory. Nothing was run."),
        (".", Exit.USAGE, "{}: expected a file to write to, and this is a folder. Nothing was run."),
        ("/dev/full", Exit.OUTPUT, "{}: No space left on device"),
    ],
)
@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_named_file_that_cannot_be_written_is_no_damage(
    gated: Run, tmp_path: Path, capsys: Any, option: str, place: str, code: Exit, message: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / place
    assert _code(["check", str(gated.folder), option, str(path)]) == code
    assert capsys.readouterr().err == f"gradbench: {message.format(path, above=path.parent)}\n"


def test_a_figure_that_cannot_be_written_is_no_damage(gated: Run, finished: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    figure = tmp_path / "file" / "a.png"
    remeasured(gated, at(HERE, lambda row: reading(row, 0.1)))
    assert _code(["compare", str(finished), str(gated.folder), "--figure", str(figure)]) == Exit.USAGE
    assert f"{figure}: cannot be written: {figure.parent} is no folder" in capsys.readouterr().err


def test_a_comparison_is_markdown_too(gated: Run, finished: Path, capsys: Any) -> None:
    remeasured(gated, at(HERE, lambda row: reading(row, 0.1)))
    assert _code(["compare", str(finished), str(gated.folder), "--markdown", "-"]) == Exit.CHECK_FAILED
    comparison = gb.compare(finished, gated.folder)
    text = capsys.readouterr().out
    assert text == comparison_markdown(comparison)
    assert text.startswith(f"**{comparison.line}**\n")
    assert Counter(re.findall(r"^\| (PASS|FAIL) ", text, re.MULTILINE)) == Counter(
        f.result.upper() for f in comparison.findings
    )
    assert all(f"| `{metric}` |" in text for metric in comparison.table["metric"])
