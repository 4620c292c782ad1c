"""The report of a run: one HTML file that holds its tables, opens from disk, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gradbench.errors import StoreError
from gradbench.pages import matrix, sentences, wording
from gradbench.pages.answers import answered
from gradbench.pages.definitions import DEFINITIONS
from gradbench.pages.packing import packed
from gradbench.pages.replay import Kind, argument
from gradbench.planning import registry
from gradbench.tables.schema import BUDGET, OUTCOME
from gradbench.vocabulary.cause import CAUSES, Cause, column
from gradbench.vocabulary.coordinates import COORDINATES
from gradbench.vocabulary.notation import METRICS
from gradbench.vocabulary.status import Status, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup
    from pandas import DataFrame

    from gradbench.pages.answers import Answer
    from gradbench.pages.sources import Source

PARTS, VENDOR = files("gradbench.pages") / "parts", files("gradbench.pages") / "vendor"
SCRIPTS = ("data.js", "state.js", "draw.js", "explorer.js", "cell.js", "main.js")
# uPlot 1.6.32 from npm, MIT; what is shipped is what was looked at
DIGESTS = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
# Significant digits that a page keeps. Coordinates and whole numbers are kept exactly.
DIGITS, DIGITS_OF_A_PARAMETER, DIGITS_OF_A_CAUSE = 6, 4, 3
LEFT_OUT = ("problem", "system_options", "estimator_options", "dataset")  # of a cell; labels stand for the options
# the columns of a cell in the groups in which a page shows them: a column belongs to the last group that began
GROUPS = {
    "cosine": "comparison with the reference",
    "residual": "free state",
    "nudge_residual": "second phase",
    "gamma": "credit",
    "n_force": "cost",
}
ENVIRONMENT = ("commit", "dirty", "device", "processor", "python", "torch", "cuda", "numpy", "platform")


def rendered(source: Source) -> str:
    """The report as HTML. It holds no time of its own, no user and no path, so that equal tables make equal pages.

    Raises StoreError where a file of the charting library is not the one that was shipped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gradbench.pages", "parts"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": wording.percent,
        "cosine": wording.cosine,
        "at": wording.at,
        "value": wording.value,
        "breakable": _breakable,
        "exact": _exact,
    }
    environment.globals |= {"span": wording.span, "letter": wording.letter, "ends": sentences.ends}
    by_system = answered(source)
    described = {f"{kind}s": _described(source, kind) for kind in ("estimator", "system")}
    script, library = _script(), shipped("uPlot.iife.min.js")
    return environment.get_template("report.html.jinja").render(
        source=source,
        statuses=_statuses(source),
        completeness=list(sentences.completeness(source)),
        by_system=by_system,
        paragraphs={system: sentences.of_system(source, told) for system, told in by_system.items()},
        took={system: sentences.took(source, system) for system in by_system},
        rules=_rules(by_system),
        matrix={(a.system, a.rule): a for told in by_system.values() for a in told},
        faithful=wording.percent(source.thresholds.faithful),
        glossary=wording.glossary() | described,
        described={name for names in described.values() for name in names},
        environment={name: source.env[name] for name in ENVIRONMENT if source.env.get(name) is not None},
        thresholds=_thresholds(source.thresholds),
        style=_part("style.css"),
        library_style=shipped("uPlot.min.css"),
        library=library,
        script=script,
        digests=[_csp(library), _csp(script)],
        data=_data(source, by_system),
    )


def _exact(values: Mapping[str, object]) -> str:
    """Values of coordinates as JSON, for the script of the page; those that are missing are left out."""
    return json.dumps({name: v for name, v in values.items() if v is not None and v == v})


def _breakable(label: str) -> Markup:
    """A label that a narrow column may break behind its signs."""
    from markupsafe import Markup, escape

    return Markup(re.sub("([=_])", r"\1<wbr>", str(escape(label))))


def shipped(name: str) -> str:
    """A file of the charting library. Raises StoreError where its digest is not the one that was looked at."""
    content = (VENDOR / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != DIGESTS[name]:
        raise StoreError(f"gradbench/pages/vendor/{name}: damaged: its digest is not the one that was shipped")
    return content.decode()


@cache
def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _script() -> str:
    inner = "\n".join(_part(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{inner}}})();'


def _csp(script: str) -> str:
    """The digest by which a browser knows a script that it may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _statuses(source: Source) -> list[tuple[Status, int]]:
    """Statuses with their cells, evidence first."""
    there = source.verdict.statuses
    return [(s, there[s]) for s in reversed(Status) if there.get(s)]


def _rules(by_system: Mapping[str, Sequence[Answer]]) -> list[str]:
    """The labels of all rules, those that hold at most places first."""
    held: dict[str, int] = {}
    for told in by_system.values():
        for a in told:
            held[a.rule] = held.get(a.rule, 0) + (a.setting.holds if a.setting else 0)
    return sorted(held, key=lambda label: (-held[label], label))


def _thresholds(at: Thresholds) -> dict[str, str]:
    default, told = Thresholds(), {}
    for name in default.__dataclass_fields__:
        value = getattr(at, name)
        shown = ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:g}"
        told[name] = shown + (" (set by the suite)" if value != getattr(default, name) else "")
    return told


def _data(source: Source, by_system: Mapping[str, Sequence[Answer]]) -> str:
    cells = source.judged.drop(columns=list(LEFT_OUT))
    cells = cells.assign(role=cells["role"].astype(str))
    params, budget = _nested(source.params, cells), _nested(source.budget, cells)
    exact = {*COORDINATES, "seed"}
    numbers = [c for c in cells if cells[c].dtype.kind == "f" and c not in exact and not _whole(cells[c])]
    digits = {
        "cells": dict.fromkeys(numbers, DIGITS),
        "params": {
            c: DIGITS if c == "cosine" else DIGITS_OF_A_PARAMETER for c in params if c not in ("param", "further")
        },
        "budget": {c: DIGITS_OF_A_CAUSE for c in budget if c not in ("param", "further")},
    }
    first = next((system for system, told in by_system.items() if told[0].trusted), next(iter(by_system), None))
    meta = {
        "name": source.name,
        "suite": source.suite,
        "first": first,
        "faithful": source.thresholds.faithful,
        "coordinates": [
            {"name": n, "letter": wording.letter(n), "words": c.words, "unit": c.unit, "log": c.log}
            for n, c in COORDINATES.items()
        ],
        "brought": list(_brought(by_system)),
        "metrics": _metrics(cells),
        "groups": GROUPS,
        "statuses": {str(s): s.prose for s in Status},
        "advice": {str(s): told for s, told in wording.ADVICE.items()},
        "causes": {str(c): c.prose for c in Cause},
        "budget": {column(c): str(c) for c in CAUSES if column(c) in BUDGET},
        "glossary": wording.glossary(),
        "systems": _items(source, "system"),
        "estimators": _items(source, "estimator"),
        "matrix": json.loads(matrix.rows_of(by_system).to_json(orient="split", double_precision=15)),
    }
    return packed({"cells": cells, "params": params, "budget": budget}, digits, meta)


def _nested(rows: DataFrame, cells: DataFrame) -> DataFrame:
    """Rows of a table in the order of the cells; `further` is how many cells lie between the cell of a row and of the
    row before."""
    place = rows["cell"].map({cell: i for i, cell in enumerate(cells["cell"])}).astype("int64")
    ordered = rows.assign(place=place).sort_values("place", kind="stable")
    further = ordered["place"].diff().fillna(ordered["place"]).astype(int)
    return ordered.drop(columns=["cell", "place"]).assign(further=further)


def _whole(column: Any) -> bool:
    """Whether a column of floats holds whole numbers alone, as counts do where some rows have none."""
    there = column.dropna()
    return bool(len(there)) and bool(((there % 1) == 0).all()) and bool((there.abs() < 2**53).all())


def _brought(by_system: Mapping[str, Sequence[Answer]]) -> dict[str, None]:
    """The coordinates that the rules bring, in the order of the tables."""
    there = {name for told in by_system.values() for a in told if a.setting for name in a.setting.values}
    return {name: None for name in COORDINATES if name in there}


def _metrics(cells: DataFrame) -> dict[str, dict[str, Any]]:
    """How the columns of a cell are written, by name and in the order of the tables."""
    told = {}
    for name in cells.columns:
        declared, word = OUTCOME.get(name), METRICS.get(name)
        if declared is None and cells[name].dtype.kind != "f":
            continue
        if name in COORDINATES:
            continue
        told[name] = {
            "words": DEFINITIONS.get(name) or (word.words if word else wording.PAGE.get(name, "")),
            "log": bool(word and word.log) or name in ("error", "work"),
            "better": {"error": "down", "work": "down"}.get(name, declared.better if declared else None),
        }
    return told


def _described(source: Source, kind: Kind) -> dict[str, str]:
    """What the rules or the systems of a run are, by name: the first sentence on each, and its source."""
    told = {}
    for name in source.cells[kind].unique():
        cls = registry.meant(f"{kind}s", name, None)
        if cls is not None:  # one made from functions of a caller has no name of its own
            told[str(name)] = f"{registry.summary(cls)} Source: {cls.source}."
    return told


def _items(source: Source, kind: Kind) -> dict[str, dict[str, Any]]:
    """Labels, each with the name and the call that means it."""
    columns = [f"{kind}_label", kind, f"{kind}_options"]
    there = source.cells.drop_duplicates(columns[0])[columns]
    return {
        label: {"name": name, "call": argument(kind, name, options), "options": json.loads(options)}
        for label, name, options in there.itertuples(index=False)
    }
