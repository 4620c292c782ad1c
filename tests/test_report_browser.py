"""The report in a real browser: headless Chromium, offline. Skipped where there is none, unless
GRADBENCH_BROWSER=required, as in CI."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from answering import cell, source

import gradbench as gb
from gradbench.commands import reporting
from gradbench.pages import composing as pages
from gradbench.pages.wording import MINUS
from gradbench.tables.store import Run

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 380, "height": 800}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        told = f"there is no Chromium here: none of {', '.join(NAMES)} is on the path"
        (pytest.fail if os.environ.get("GRADBENCH_BROWSER") == "required" else pytest.skip)(told)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run."""
    path = tmp_path_factory.mktemp("report") / "page with a space.html"
    path.write_text(reporting.html(Run(finished)))
    return path


@contextmanager
def opened(chromium: Any, path: Path, address: str = "", **more: Any) -> Iterator[Any]:
    """A page from disk, without a network; at the end its console was silent and it asked nobody for anything."""
    context = chromium.new_context(offline=True, **{"viewport": DESK, "accept_downloads": True} | more)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, noise = context.new_page(), list[str]()
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda r: noise.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(path.as_uri() + address)
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert not noise


def counted(page: Any) -> tuple[int, int]:
    """How many cells the filters leave, of how many."""
    left, every = re.findall(r"([\d,]+) of ([\d,]+) cells", page.inner_text("#count"))[0]
    return int(left.replace(",", "")), int(every.replace(",", ""))


def column(page: Any, number: int) -> list[str]:
    return list(page.locator(f".cells tbody tr td:nth-child({number})").all_inner_texts())


def choose(page: Any, name: str, word: str) -> None:
    """Tick a word in the menu of a filter."""
    menu = page.locator(".filter", has=page.locator(f"summary:text-matches('^{name}:')"))
    menu.locator("summary").click()
    menu.get_by_label(re.compile(f"^{re.escape(word)}")).check()
    page.keyboard.press("Escape")


@pytest.fixture(scope="module")
def cells(finished: Path) -> pd.DataFrame:
    return Run(finished).cells


def test_the_page_opens_from_disk_without_a_network_and_says_what_was_found(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as page:
        assert page.inner_text("h1") == "Suite gated"
        assert "its error is at most" in page.inner_text("#findings")
        assert page.locator("#map .tile").count() > 0
        assert page.locator(".curve canvas").count() == 2
        assert page.locator("#loading").is_hidden()


def test_without_javascript_all_but_the_explorer_is_there(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert "its error is at most" in page.inner_text("#findings")
    assert page.locator(".matrix .field").count() > 0
    assert page.locator("noscript").count() == 1
    context.close()


def test_filters_leave_the_cells_that_the_tables_have(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    with opened(chromium, report) as page:
        page.click("#every")
        assert counted(page) == (len(cells), len(cells))
        choose(page, "estimator", "aep")
        assert counted(page)[0] == (cells["estimator_label"] == "aep").sum()
        choose(page, "T1", "200")
        chosen = cells[(cells["estimator_label"] == "aep") & (cells["T1"] == 200)]
        assert counted(page)[0] == len(chosen)
        choose(page, "status", "settled")
        assert counted(page)[0] == (chosen["status"] == "settled").sum()
        assert f"{counted(page)[0]} settled" in page.inner_text("#count")
        page.click("#reset")
        assert counted(page)[0] < len(cells)


def test_every_coordinate_that_varies_has_a_filter(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    with opened(chromium, report) as page:
        names = [text.partition(":")[0] for text in page.locator(".filter summary").all_inner_texts()]
    for name, letter in (("T1", "T1"), ("T2", "T2"), ("seed", "seed"), ("beta", "β"), ("damp", "damp")):
        assert (letter in names) == (cells[name].nunique() > 1), name
    assert {"system", "estimator", "status", "cause"} - set(names) <= (
        {"cause"} if cells["cause"].nunique() < 2 else set()
    )


def test_a_click_on_a_head_sorts_and_a_second_one_turns_it(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    with opened(chromium, report, "#all=1&rows=all") as page:
        head = page.locator(".cells th button", has_text="cosine_min")
        assert head.locator("xpath=..").get_attribute("aria-sort") == "ascending"
        low = column(page, 1)
        head.click()
        assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"
        high = column(page, 1)
    known = cells.dropna(subset="cosine_min").set_index("cell")["cosine_min"].map(lambda v: float(f"{v:.5e}"))
    short = known.rename(lambda key: key[:8])
    assert short[low].tolist() == sorted(known)[: len(low)]
    assert short[high].tolist() == sorted(known, reverse=True)[: len(high)]


def test_pages_of_the_table_turn(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    with opened(chromium, report, "#all=1&rows=all") as page:
        first = column(page, 1)
        assert page.locator(".pager button", has_text="Previous").is_disabled()
        page.locator(".pager button", has_text="Next").click()
        assert not set(first) & set(column(page, 1))
        assert "51 to 100" in page.inner_text(".pager")


def test_a_click_on_a_row_opens_the_cell_with_its_numbers(chromium: Any, report: Path, finished: Path) -> None:
    run = Run(finished)
    with_cause = run.cells[run.cells["cause"].notna() & (run.cells["status"] == "settled")].iloc[0]
    with opened(chromium, report, f"#estimator_label={with_cause['estimator_label']}&status=settled") as page:
        key = with_cause["cell"]
        page.locator(f"[data-cell='{key}']").locator("xpath=../..").click()
        panel = page.locator("#cell")
        assert panel.is_visible()
        text = panel.inner_text()
        assert f"Cause: {with_cause['cause']}" in text
        facts = dict(zip(panel.locator("dt").all_inner_texts(), panel.locator("dd").all_inner_texts(), strict=True))
        for name in ("residual", "rho", "rel_error", "norm_ratio", "n_force"):
            read = float(facts[name].splitlines()[0].replace(MINUS, "-").replace(",", ""))
            assert read == float(f"{with_cause[name]:.4g}"), name
        of_cell = run.params[run.params["cell"] == key].set_index("param")
        params, squares = of_cell["cosine"], of_cell["reference_norm"] ** 2
        rows = panel.locator("table.params").first.locator("tbody tr")
        assert rows.count() == len(params)
        for row in rows.all():
            name, shown = row.locator("th").inner_text(), row.locator("td").nth(1).inner_text()
            assert abs(float(shown.replace(MINUS, "-")) - params[name]) < 6e-5
            share = row.locator("td").nth(3).inner_text().removesuffix(" %").replace(",", "")
            assert float(share) == pytest.approx(100 * squares[name] / squares.sum(), rel=6e-3)
        assert "What the error is made of" in text
        assert page.evaluate("document.activeElement.id") == "cell-title"
        page.keyboard.press("Escape")
        assert panel.is_hidden()


def test_the_commands_of_a_cell_are_copied_and_run(
    chromium: Any, report: Path, finished: Path, cells: pd.DataFrame, tmp_path: Path
) -> None:
    row = cells[(cells["status"] == "settled") & (cells["estimator"] == "ep")].iloc[0]
    with opened(chromium, report, f"#cell={row['cell']}") as page:
        said = []
        for button in page.locator("#cell .copy").all():
            button.click()
            said.append(page.evaluate("navigator.clipboard.readText()"))
            assert button.inner_text() == "Copied"
    shell, python = said
    assert shell == f"gradbench explain gated/{finished.name} {row['cell']}"
    program = [sys.executable, "-m", *shlex.split(shell)]
    out = finished.parents[2]
    (tmp_path / "results").symlink_to(out)
    env = os.environ | {"PYTHONPATH": str(Path(gb.__file__).parents[1])}
    replayed = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert replayed.returncode == 0, replayed.stderr
    assert replayed.stdout.startswith(row["cell"])
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pattern = r"cosine ([\d.e+-]+), cosine_min ([\d.e+-]+), rel_error ([\d.e+-]+)"
    (recorded, here), (_, again) = re.findall(pattern, replayed.stdout), re.findall(pattern, done.stdout)
    assert done.stdout.partition(" ")[0] == row["cell"]
    for numbers in (recorded, here, again):
        assert float(numbers[1]) == pytest.approx(row["cosine_min"], abs=1e-6)


def test_the_address_holds_the_view_and_restores_it(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as page:
        page.click("#every")
        choose(page, "estimator", "ep")
        page.locator(".cells th button", has_text="T2").click()
        page.locator("#map select").nth(0).select_option("rel_error")
        page.locator(".cells tbody a").first.click()
        address = page.evaluate("location.hash")
        seen = page.inner_text("#count"), column(page, 1), page.inner_text("#map-title"), page.inner_text("#cell-title")
    for word in ("estimator_label=ep", "sort=T2", "metric=rel_error", "cell="):
        assert word in address
    with opened(chromium, report, address) as page:
        assert seen == (
            page.inner_text("#count"), column(page, 1), page.inner_text("#map-title"), page.inner_text("#cell-title")
        )  # fmt: skip
        page.evaluate("location.hash = 'all=1'")
        page.wait_for_function("document.querySelector('#cell').hidden")
        assert counted(page)[0] == counted(page)[1]


def test_the_table_leaves_out_what_is_no_evidence_until_it_is_asked_for(
    chromium: Any, report: Path, cells: pd.DataFrame
) -> None:
    told = r"(\d+) that are not settled or of a control are left out"
    left_out = (cells["status"] != "settled") | (cells["estimator"] == "control")
    assert left_out.any()
    with opened(chromium, report, "#all=1") as page:
        heads = page.locator(".cells th").all_inner_texts()
        assert "status" not in heads
        assert heads.index("lowest in") == heads.index("cosine_min ↑") + 1
        assert heads[-1] == "global cosine"
        assert int(re.findall(told, page.inner_text(".pager"))[0]) == left_out.sum()
        page.check("#rows")
        assert "status" in page.locator(".cells th").all_inner_texts()
        assert "left out" not in page.inner_text(".pager")
        assert f"of {len(cells):,}" in page.inner_text(".pager")
        assert page.locator(".cells tr.open").count() > 0
        page.uncheck("#rows")
        assert int(re.findall(told, page.inner_text(".pager"))[0]) == left_out.sum()
    status = cells.loc[cells["status"] != "settled", "status"].iloc[0]
    with opened(chromium, report, f"#status={status}") as page:
        assert "left out" not in page.inner_text(".pager")  # a filter has asked for them
        shown = page.locator(".cells tbody tr").count()
        assert shown == page.locator(".cells tr.open").count() == min(50, (cells["status"] == status).sum())


def test_a_chart_says_what_a_point_of_it_pools(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    def differ(rows: pd.DataFrame, *told: str) -> str:
        letters = {"T1": "T1", "T2": "T2", "beta": "β", "seed": "seed", "system_label": "system"}
        names = ["system_label", "T1", "T2", "beta", "seed"]
        there = [letters[n] for n in names if n not in told and rows[n].dropna().nunique() > 1]
        return ", ".join(there[:-1]) + " and " * (len(there) > 1) + there[-1]

    settled = cells[(cells["status"] == "settled") & (cells["estimator"] == "aep")]
    with opened(chromium, report, "#estimator_label=aep&x=T2&y=T1&c0=T2") as page:
        caption = page.locator("#curve-0 .keys .dim").inner_text()
        counts = settled.groupby("T2").size()
        few = f"{counts.min()} to " if counts.min() < counts.max() else ""
        assert f"of {few}{counts.max()} cells a point, which differ in {differ(settled, 'T2')}: filter" in caption
        told = f"which differ in {differ(settled, 'T2', 'T1', 'system_label')}; the small number counts them"
        assert told in page.inner_text("#map .pooled")
    with opened(chromium, report, "#estimator_label=aep&T1=200&c0=T2") as page:
        assert "T1" not in page.locator("#curve-0 .keys .dim").inner_text()


def test_where_nothing_is_settled_a_sentence_stands_in_place_of_a_chart(chromium: Any, tmp_path: Path) -> None:
    rows = [
        cell(status=s, T2=t, seed=i) for i, s in enumerate(("collapsed", "collapsed", "unsettled")) for t in (5, 10)
    ]
    path = tmp_path / "silent.html"
    path.write_text(pages.rendered(source(*rows)))
    with opened(chromium, path, "#all=1") as page:
        assert page.locator("#map .tile").count() == page.locator("canvas").count() == 0
        for part in ("#map .panels", "#curve-0 .plot", "#curve-1 .plot"):
            text = page.inner_text(part)
            assert "No cell here is settled: 4 collapsed, 2 unsettled." in text
            assert "a longer T1 does not help" in text
        assert "large" not in page.inner_text("#curve-0 .keys")


def test_the_worst_cosine_has_the_strongest_colour_after_the_best(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "shades.html"
    values = [0.1, 0.7, 0.95, 0.995, 0.9999]
    rows = [cell(T2=t, cosine_min=c, residual=10.0**-t) for t, c in enumerate(values, 1)]
    path.write_text(pages.rendered(source(*rows)))
    contrast = """e => { const of = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(
        (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const [a, b] = [e, document.body].map((x) => of(getComputedStyle(x).backgroundColor) + 0.05);
        return Math.max(a, b) / Math.min(a, b); }"""
    for scheme in ("light", "dark"):
        with opened(chromium, path, "#all=1&x=T2&y=", color_scheme=scheme) as page:
            against = [tile.evaluate(contrast) for tile in page.locator("#map .tile").all()]
            assert len(against) == 5
            assert against[0] > 5  # a middle one is quiet
            assert min(against) == against[2]
            assert against[4] > against[2]


def test_back_undoes_a_filter_and_a_link_to_a_view_shows_it(chromium: Any, report: Path) -> None:
    with opened(chromium, report, "#all=1") as page:
        assert abs(page.evaluate("document.querySelector('#explorer').getBoundingClientRect().top")) < 120
        every = counted(page)
        choose(page, "estimator", "aep")
        fewer = counted(page)
        choose(page, "T1", "200")
        assert counted(page)[0] < fewer[0] < every[0]
        page.go_back()
        page.wait_for_function("!location.hash.includes('T1=')")
        assert counted(page) == fewer
        page.go_back()
        page.wait_for_function("!location.hash.includes('aep')")
        assert counted(page) == every
    with opened(chromium, report) as page:
        assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("width", [320, 380])
def test_on_a_phone_navigation_and_menus_are_whole_and_labels_break_between_words(
    chromium: Any, report: Path, width: int
) -> None:
    with opened(chromium, report, "#all=1&rows=all", viewport={"width": width, "height": 800}) as page:
        inside = "e => { const b = e.getBoundingClientRect(); return b.left >= 0 && b.right <= innerWidth + 0.5; }"
        for link in page.locator("nav a").all():
            assert link.evaluate(inside), link.inner_text()
        for filter_ in page.locator(".filter").all():
            filter_.locator("summary").click()
            assert filter_.locator(".menu").evaluate(inside), filter_.inner_text()
            page.keyboard.press("Escape")
        assert not [t for t in page.locator(".cells td.what").all_inner_texts() if not t.strip()]
        for label in page.locator(".matrix tbody th").all():
            height, line = label.evaluate(
                "e => [e.firstChild, e.lastChild].map((n) => {"
                "const r = document.createRange(); r.selectNode(n); return r.getBoundingClientRect(); })"
                ".reduce((a, b) => [b.bottom - a.top, parseFloat(getComputedStyle(e).lineHeight)])"
            )
            assert height <= line * len(re.split(r"[ =_-]", label.inner_text())), label.inner_text()
            assert label.evaluate("e => e.scrollWidth <= e.clientWidth"), label.inner_text()


@pytest.mark.parametrize(
    "address",
    [
        "#constructor=1",
        "#cell=zzz",
        "#estimator_label=none",
        "#x=nope&metric=__proto__&page=-3",
        "#=",
        "#words",
        "#cell=ffffffffffffffff&sort=constructor",
    ],
)
def test_an_address_that_means_nothing_shows_a_page(chromium: Any, report: Path, address: str) -> None:
    with opened(chromium, report, address) as page:
        assert page.locator(".cells tbody tr").count() > 0
        assert page.locator("#cell").is_hidden()


def test_a_tile_of_the_map_and_a_field_of_the_matrix_choose_their_cells(
    chromium: Any, report: Path, cells: pd.DataFrame
) -> None:
    with opened(chromium, report) as page:
        tile = page.locator("#map .tile").first
        rule, system = page.locator("#map .panel h4").first.inner_text().split(" on ")
        told = tile.get_attribute("aria-label")
        tile.click()
        number = int(re.findall(r"(\d+) cells?:", told)[0])
        assert counted(page)[0] == number
        assert set(column(page, 2)) == {rule}
        page.locator(".matrix .field").first.click()
        field = page.locator(".matrix .field").first
        system, rule = field.get_attribute("data-system"), field.get_attribute("data-rule")
        chosen = (cells["system_label"] == system) & (cells["estimator_label"] == rule)
        for name, value in json.loads(field.get_attribute("data-at")).items():
            chosen &= cells[name] == value
        assert 0 < counted(page)[0] == chosen.sum()
        page.locator(".answers .opens").first.click()  # a grade in the table of a system does the same
        assert len(set(column(page, 2))) == 1


def test_seeds_together_are_a_row_with_the_worst_number_of_each(
    chromium: Any, report: Path, cells: pd.DataFrame
) -> None:
    settled = cells[(cells["status"] == "settled") & cells["cosine_min"].notna()]
    point = ["system_label", "estimator_label", "T1", "T2", "beta", "s", "damp", "eps", "dtype", "batch"]
    groups = settled.groupby(point, dropna=False)
    with opened(chromium, report, "#all=1&seeds=together&sort=-error") as page:
        assert page.locator("#together").is_checked()
        entries = page.locator(".pager").inner_text()
        assert int(re.findall(r"to [\d,]+ of ([\d,]+)", entries)[0].replace(",", "")) == groups.ngroups
        heads = [text.split(" ")[0] for text in page.locator(".cells th").all_inner_texts()]
        shown = {name: column(page, 1 + heads.index(name)) for name in ("seeds", "cosine_min", "worst")}
        assert "seed" not in heads
        at = settled.assign(least=groups["cosine_min"].transform("min"), number=groups["cell"].transform("size"))
        for seeds, least, key in zip(shown["seeds"], shown["cosine_min"], shown["worst"], strict=True):
            row = at[at["cell"].str.startswith(key)].iloc[0]
            text = f"{row['least']:.4f}"
            assert least == (f"{row['least']:.6f}" if text == "1.0000" else text).replace("-", "\N{MINUS SIGN}")
            assert int(seeds.split(" of ")[0]) == row["number"]
        page.locator("#together").uncheck()
        assert "together" not in page.url


def test_a_tile_shows_the_worst_settled_cell(chromium: Any, report: Path, cells: pd.DataFrame) -> None:
    with opened(chromium, report, "#all=1&x=T2&y=T1") as page:
        seen = 0
        for panel in page.locator("#map .panel").all():
            rule, system = panel.locator("h4").inner_text().split(" on ")
            for row in panel.locator("tbody tr").all():
                T1 = int(row.locator("th").inner_text())
                for tile in row.locator(".tile").all():
                    label = tile.get_attribute("aria-label")
                    T2 = float(re.findall(r"T2 = (\d+)", label)[0])
                    here = cells[(cells["system_label"] == system) & (cells["estimator_label"] == rule)]
                    here = here[(here["T1"] == T1) & (here["T2"] == T2) & (here["status"] == "settled")]
                    shown = re.findall(rf"worst ([{MINUS}\d.]+)", label)
                    assert bool(shown) == here["cosine_min"].notna().any()
                    if shown:
                        assert int(re.findall(r"(\d+) cells?", tile.inner_text())[0]) == here["cosine_min"].count()
                    if shown:
                        assert abs(float(shown[0].replace(MINUS, "-")) - here["cosine_min"].min()) < 6e-5
                        seen += 1
        assert seen > 4


def test_hovering_and_focus_tell_of_a_tile(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as page:
        tile = page.locator("#map .tile").first
        tile.hover()
        told = page.inner_text("#tip").replace("\n", "; ")
        assert tile.get_attribute("aria-label") == f"{tile.inner_text().replace(chr(10), ' ')}; {told}"
        page.mouse.move(0, 0)
        assert page.locator("#tip").is_hidden()
        tile.focus()
        assert page.locator("#tip").is_visible()


def test_every_chart_gives_its_numbers_as_csv(chromium: Any, report: Path, cells: pd.DataFrame, tmp_path: Path) -> None:
    files = {}
    with opened(chromium, report, "#all=1&rows=all") as page:
        for button in page.locator("[data-csv]").all():
            with page.expect_download() as download:
                button.click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            files[button.get_attribute("data-csv")] = list(csv.DictReader(path.open(newline="")))
    assert set(files) == {"matrix", "map", "curve-0", "curve-1", "cells"}
    assert len(files["cells"]) == len(cells)
    known = cells.set_index("cell")["cosine_min"]
    for row in files["cells"]:
        wanted = known[row["cell"]]
        assert float(row["cosine_min"] or "nan") == pytest.approx(float(f"{wanted:.5e}"), nan_ok=True, rel=1e-12)
    assert {row["estimator"] for row in files["matrix"]} == {"ep", "aep", "tbptt"}
    for row in files["curve-0"]:
        here = cells[(cells["estimator_label"] == row["estimator"]) & (cells["T2"] == float(row["T2"]))]
        here = here[(here["status"] == "settled")]["cosine_min"].dropna()
        assert int(row["cells"]) == len(here)
        assert float(row["cosine_min_median"]) == pytest.approx(here.median(), rel=2e-5)


def test_a_definition_is_a_click_away_and_escape_gives_back_the_focus(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as page:
        word = page.locator("#findings .term", has_text="error").first
        word.focus()
        page.keyboard.press("Enter")
        assert "largest relative error" in page.inner_text("#definition")
        page.keyboard.press("Escape")
        assert page.locator("#definition").is_hidden()
        assert page.evaluate("document.activeElement.textContent") == "error"
        for term in page.locator(".term").all():
            page.evaluate("e => e.click()", term.element_handle())
            assert page.inner_text("#definition p"), term.inner_text()


def test_the_keyboard_reaches_a_filter_a_tile_and_a_cell(chromium: Any, report: Path) -> None:
    with opened(chromium, report) as page:
        page.locator(".filter summary").first.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.evaluate("location.hash") == "#all=1"  # the one system that was chosen is not any more
        page.keyboard.press("Escape")
        page.locator("#map .tile").first.focus()
        page.keyboard.press("Enter")
        assert "T2=" in page.evaluate("location.hash")
        page.locator(".cells tbody a").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#cell").is_visible()
        page.keyboard.press("Escape")
        assert page.locator("#cell").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_says_nothing_serious(chromium: Any, report: Path, scheme: str, viewport: dict[str, int]) -> None:
    with opened(chromium, report, color_scheme=scheme, viewport=viewport, bypass_csp=True) as page:
        page.evaluate(AXE)
        for state in ("page", "cell"):
            if state == "cell":
                page.locator("#findings .to-cell").first.evaluate("e => e.click()")
            told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            wrong = [
                (v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]][:3])
                for v in told["violations"]
                if v["impact"] in ("serious", "critical")
            ]
            assert not wrong, state


def test_the_theme_follows_the_system_and_a_click_turns_it(chromium: Any, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    for scheme, other in (("light", "Dark"), ("dark", "Light")):
        with opened(chromium, report, color_scheme=scheme) as page:
            before = page.evaluate(ground)
            assert page.inner_text("#theme") == other
            page.click("#theme")
            assert page.evaluate(ground) != before


@pytest.mark.parametrize("width", [320, 380, 768, 1280])
def test_no_page_is_wider_than_its_window(chromium: Any, report: Path, width: int) -> None:
    with opened(chromium, report, "#all=1", viewport={"width": width, "height": 800}) as page:
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.locator("#findings .to-cell").first.evaluate("e => e.click()")
            assert page.evaluate("document.querySelector('#cell').scrollWidth") <= width


def test_in_print_nothing_of_the_controls_is_left(chromium: Any, report: Path) -> None:
    with opened(chromium, report, color_scheme="dark") as page:
        page.emulate_media(media="print")
        for selector in (".top", ".filters", "#reset", ".csv", ".pager"):
            assert not page.locator(selector).first.is_visible(), selector
        assert page.locator("#findings").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_markup_in_a_name_is_shown_and_not_run(chromium: Any, tmp_path: Path) -> None:
    label = f"ep option={EVIL}"
    rows = []
    for seed in range(2):
        row = cell(seed=seed, params={EVIL: (0.5, 0.9), "W": (0.99, 0.01)}, reason=EVIL, cause=EVIL, cause_of=EVIL)
        rows.append(row | {"system_label": EVIL, "estimator_label": label, "worst": EVIL})
    made = replace(source(*rows, suite=EVIL), env={"commit": EVIL, "device": EVIL, "processor": EVIL})
    path = tmp_path / "evil.html"
    path.write_text(pages.rendered(made))
    with opened(chromium, path) as page:
        assert page.inner_text("h1") == f"Suite {EVIL}"
        for part in ("#findings", ".matrix", "#map", ".keys", "#cells", "#origin"):
            assert EVIL in page.locator(part).first.text_content(), part
        page.locator("#map .tile").first.hover()
        assert EVIL in page.inner_text("#tip")
        page.locator(".cells tbody a").first.click()
        assert f"Cause: {EVIL}" in page.locator("#cell").text_content()
        assert page.locator("#cell").text_content().count(EVIL) >= 4
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 3


def test_a_page_whose_data_were_torn_says_so(chromium: Any, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.html"
    path.write_text(re.sub(r'(octet-stream">[^<]{200})[^<]*', r"\1", report.read_text()))
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('#loading').textContent.includes('cannot be read')")
    assert "its error is at most" in page.inner_text("#findings")
    context.close()
