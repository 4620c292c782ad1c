"""Write the tables of the docs that say what the code says. `make docs` runs this; a test holds the docs to it.

A table stands between the lines `<!-- NAME -->` and `<!-- end -->` of its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from gradbench.planning import files, registry
from gradbench.planning.overrides import Overrides
from gradbench.planning.plans import plan
from gradbench.planning.suites import load
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.status import Status

ROOT = Path(__file__).parents[1]


def _systems() -> Iterator[tuple[str, ...]]:
    yield "system", "what it is", "energy", "source"
    for name, system in registry.known_systems().items():
        yield f"`{name}`", _summary(system), "yes" if system.conservative else "no", system.source


def _estimators() -> Iterator[tuple[str, ...]]:
    yield "estimator", "what it is", "exact", "error in β", "source"
    for name, rule in registry.known_estimators().items():
        claim = rule().claim
        order = str(claim.order) if claim.order else "-"
        yield f"`{name}`", _summary(rule), claim.prose(rule.uses), order, rule.source


def _statuses() -> Iterator[tuple[str, ...]]:
    yield "status", "meaning"
    for status in Status:
        yield f"`{status}`", status.prose


def _suites() -> Iterator[tuple[str, ...]]:
    yield "suite", "what it asks", "cells", "checks"
    for path in sorted((ROOT / files.SUITES).glob("*.toml")):
        suite = load(path)
        cells = "at trained weights" if any(grid.params_from for grid in suite.grid) else f"{_cells(path):,}"
        yield f"`{path.stem}`", suite.about, cells, str(len(suite.check))


def _claims() -> Iterator[tuple[str, ...]]:
    """The statements of suite `claims` with what its last run in the gallery said of them."""
    yield "statement", "outcome", "evidence", "source"
    sources = {s.name: s.source for s in load(ROOT / files.SUITES / "claims.toml").statement}
    verdict = json.loads((ROOT / "results" / "gallery" / "claims" / "verdict.json").read_text())
    for finding in verdict["findings"]:
        if finding["kind"] == "statement":
            outcome, *evidence = finding["detail"].split("; ")
            yield finding["name"], outcome, "<br>".join(map(_shortened, evidence)), sources[finding["name"]]


def _shortened(text: str) -> str:
    """A number with its place, without the options of the system that every cell of it has."""
    return re.sub(r" (?:D|N|out|heads|d|d_in|L|dh|mem|patch|bpos_std|bias_std|drive_std)=\S+", "", text).replace(
        "|", "\\|"
    )


def _coordinates() -> Iterator[tuple[str, ...]]:
    yield "coordinate", "in code", "symbol", "meaning", "unit", "default", "used by"
    for name, c in COORDINATES.items():
        default = "of the system" if c.default is None else f"`{c.default}`"
        users = "systems and rules that name it" if c.optional else "every cell"
        yield f"`{name}`", f"`{c.attribute}`", c.symbol or "-", c.words, c.unit or "-", default, users


def _gallery() -> Iterator[tuple[str, ...]]:
    yield "figure", "its title"
    for path in sorted((ROOT / "results" / "gallery").glob("*/*.png")):
        with Image.open(path) as image:
            title = image.text["Title"]  # type: ignore[attr-defined]
        yield f"[{path.parent.name}/{path.stem}](../{path.relative_to(ROOT).as_posix()})", title.replace("|", "\\|")


TABLES: dict[tuple[str, str], Callable[[], Iterator[tuple[str, ...]]]] = {
    ("README.md", "systems"): _systems,
    ("README.md", "estimators"): _estimators,
    ("README.md", "statuses"): _statuses,
    ("docs/suites.md", "suites"): _suites,
    ("docs/notation.md", "coordinates"): _coordinates,
    ("docs/gallery.md", "gallery"): _gallery,
    ("docs/claims.md", "claims"): _claims,
}


def written(content: str, marker: str, rows: Iterator[tuple[str, ...]]) -> str:
    """The content of a file with one of its tables written anew."""
    before, there, after = content.partition(f"<!-- {marker} -->\n")
    _, closed, after = after.partition("<!-- end -->")
    if not (there and closed):
        raise ValueError(f"there is no table <!-- {marker} --> ... <!-- end -->")
    return before + there + _markdown(rows) + closed + after


def _markdown(rows: Iterator[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- |", "|---|").replace(" --- |", "---|")


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0].rstrip(".")


def _cells(path: Path) -> int:
    if path.stem != "million":
        return len(plan(load(path), str(path)).cells)
    # all of it takes a minute to plan: its grids have the same seeds, and every seed has as many cells
    (seeds,) = {len(grid.seed) for grid in load(path).grid}
    return seeds * len(plan(load(path, Overrides.of({"seed": 0})), str(path)).cells)


def main() -> None:
    """Write all tables."""
    for (file, marker), rows in TABLES.items():
        path = ROOT / file
        path.write_text(written(path.read_text(), marker, rows()))


if __name__ == "__main__":
    main()
