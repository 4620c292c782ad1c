"""The README says what the registry says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from gradbench.planning import files
from gradbench.plots import gallery, look
from gradbench.plots.sources import Tables
from gradbench.vocabulary.status import Thresholds

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = runpy.run_path(str(ROOT / "docs" / "tables.py"))
SHELF = runpy.run_path(str(ROOT / "docs" / "shelf.py"))


@pytest.mark.parametrize(("file", "marker"), DOCS["TABLES"])
def test_a_table_of_the_docs_is_what_the_code_says(file: str, marker: str) -> None:
    content = (ROOT / file).read_text()
    rows = DOCS["TABLES"][file, marker]()
    assert DOCS["written"](content, marker, rows) == content, f"{file}: <!-- {marker} --> is old; run: make docs"


def test_every_rule_and_every_system_has_a_page_that_is_what_the_code_says() -> None:
    pages = {ROOT / "docs" / path: content for path, content in SHELF["pages"]().items()}
    there = {path for folder in ("rules", "systems") for path in (ROOT / "docs" / folder).glob("*.md")}
    assert there == set(pages)
    old = [path.name for path, content in pages.items() if path.read_text() != content]
    assert not old, "run: make docs"


def test_every_shipped_suite_and_training_is_named_where_these_are_listed() -> None:
    named = re.split(r"\sEach\s", README.partition("Suites that ship:")[2])[0]
    assert set(re.findall(r"`(\w+)`", named)) == {path.stem for path in files.SUITES.glob("*.toml")}
    table = (Path(__file__).parents[1] / "docs" / "training.md").read_text().partition("| file | trains |")[2]
    rows = re.findall(r"^\| (`\w+`.*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {path.stem for path in files.CONFIGS.glob("*.toml")}


def test_every_command_of_the_readme_exists() -> None:
    from gradbench.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    used = set(re.findall(r"^gradbench (\w+)", blocks, re.MULTILINE))
    assert used
    assert used <= known


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    sources = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(sources) == 2
    for source in sources:
        exec(compile(source, "README.md", "exec"), names)


GALLERY = ROOT / "results" / "gallery"


def test_every_figure_has_a_caption_in_the_gallery_which_is_small_and_knows_no_machine() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text()
    captions = set(re.findall(r"^\*\*`(\w+)`\.\*\* \S", page, re.MULTILINE))
    shown = {Path(path).stem for path in re.findall(r"^!\[.+\]\((.+\.png)\)$", page, re.MULTILINE)}
    assert captions == shown == set(gallery.collect())
    assert shown == {path.stem for path in GALLERY.glob("*/*.png")}
    assert sum(path.stat().st_size for path in GALLERY.rglob("*") if path.is_file()) < 3_000_000
    assert not [path for path in GALLERY.glob("*/*.json") if re.search(r'"[^"]*(?<![\w)])/\w+/', path.read_text())]


def test_a_title_of_the_gallery_is_what_the_code_says_of_its_tables() -> None:
    folder = GALLERY / "aep"
    cells, params, budget = (pd.read_parquet(folder / f"{name}.parquet") for name in ("cells", "params", "budget"))
    tables = Tables(cells, params, pd.DataFrame(), budget, Thresholds().residual, Thresholds().faithful, "", cells)
    for name in ("params", "antisymmetry_vs_error"):
        figure = gallery.collect()[name](tables)
        assert figure is not None
        with Image.open(folder / f"{name}.png") as image:
            assert image.text["Title"] == look.said(figure, "title")  # type: ignore[attr-defined]
