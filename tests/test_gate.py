"""The gate: what was not measured so cannot pass. Every mutation of a run is caught by the rule that it breaks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import gradbench
from gradbench.cli import _code
from gradbench.errors import StoreError, UserError
from gradbench.planning.cells import digest
from gradbench.tables import journal
from gradbench.tables.disk import BLANK, SEAL, read_table, write_json, write_table
from gradbench.tables.manifest import NAME as MANIFEST
from gradbench.tables.runs import find
from gradbench.tables.schema import COLUMNS, RECORD, TABLES
from gradbench.tables.store import Run
from gradbench.tables.verdict import judge
from gradbench.tables.verifying import POINT, trusted, verify
from gradbench.vocabulary.exit import Exit


def test_a_finished_run_passes(gated: Run) -> None:
    before = {p: p.read_bytes() for p in gated.folder.rglob("*") if p.is_file()}
    verdict = judge(gated, deep=True)
    assert (verdict.code, verdict.present) == (Exit.OK, 112)
    assert set(verdict.statuses) == {"settled", "unsettled", "skipped"}
    (gated.folder / "verdict.json").unlink()
    assert {p: p.read_bytes() for p in gated.folder.rglob("*") if p.is_file()} == before


# A mutation of a table takes the table and gives another one, one of a file takes the run.

Column = Callable[[list[Any]], list[Any]]


def column(name: str, change: Column, table: str = "cells", **where: Any) -> dict[str, Callable[[pa.Table], pa.Table]]:
    """Change the values of a column, in the rows where other columns have given values."""

    def mutate(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        meant = [i for i in range(len(rows)) if all(rows[k][i].as_py() == v for k, v in where.items())]
        assert meant
        for i, value in zip(meant, change([values[i] for i in meant]), strict=True):
            values[i] = value
        return rows.set_column(rows.column_names.index(name), name, pa.array(values, rows[name].type))

    return {table: mutate}


def first(value: Any) -> Column:
    return lambda values: [value(values[0]) if callable(value) else value, *values[1:]]


def every(value: Any) -> Column:
    return lambda values: [value(v) if callable(value) else value for v in values]


def rows(order: Callable[[int], Any], table: str = "cells") -> dict[str, Callable[[pa.Table], pa.Table]]:
    """Take rows by number."""
    return {table: lambda there: there.take(pa.array(list(order(len(there))), pa.int64()))}


def rekeyed(table: pa.Table) -> pa.Table:
    """Seeds 10 to 13 in place of 0 to 3, under the keys that such cells have."""
    records = table.to_pylist()
    for row in records:
        row["seed"] += 10
        row["cell"] = digest({name: row[name] for name in POINT})
    return pa.Table.from_pylist(records, schema=table.schema)


SETTLED = {"status": "settled", "estimator": "ep"}
KEY = "a key is the digest of its coordinates"
STATUS = "a status agrees with its numbers"
TABLE: dict[str, tuple[dict[str, Callable[[pa.Table], pa.Table]], str, str]] = {
    "a row removed": (rows(lambda n: range(1, n)), "every planned cell", r"1 cell of the plan have no row: \w{16}$"),
    "a row removed and another doubled": (
        rows(lambda n: [1, *range(1, n)]),
        "every cell once",
        "1 cell stand there more",
    ),
    "the same, and what is missing": (rows(lambda n: [1, *range(1, n)]), "every planned cell", "1 cell of the plan"),
    "half removed and half doubled": (
        rows(lambda n: [*range(n // 2)] * 2),
        "every planned cell",
        "56 cells of the plan",
    ),
    "the same, and what is doubled": (rows(lambda n: [*range(n // 2)] * 2), "every cell once", "56 cells stand"),
    "122 rows of 112": (
        rows(lambda n: [*range(n), *range(10)]),
        "every cell once",
        "10 cells stand there more than once",
    ),
    "no rows": (rows(lambda n: []), "every planned cell", "112 cells"),
    "rows in another order": (rows(lambda n: range(n - 1, -1, -1)), "rows in the order of the plan", "another order"),
    "seeds 10 to 13 for 0 to 3": (column("seed", every(lambda s: s + 10)), KEY, "seed = 10, in the plan 0"),
    "such seeds with their keys": ({"cells": rekeyed}, "no cell that is not planned", "112 cells are not in the plan"),
    "all keys equal": (column("cell", lambda k: k[:1] * len(k)), "every cell once", "1 cell stand"),
    "a renamed key": (
        column("cell", first("0" * 16)),
        "no cell that is not planned",
        "1 cell are not in the plan: 0000",
    ),
    "a renamed estimator": (
        column("estimator", every("aep"), estimator="ep"),
        KEY,
        "estimator = 'aep', in the plan 'ep'",
    ),
    "another beta": (column("beta", first(0.2), estimator="ep"), KEY, "beta = 0.2, in the plan 0.1"),
    "another dtype": (column("dtype", first("float32")), KEY, "dtype = 'float32'"),
    "another option": (column("system_options", first('{"D": 5}')), KEY, "system_options = "),
    "a swapped label": (
        column("estimator_label", first("aep"), estimator="ep"),
        "a label for every rule and system",
        "one label has two",
    ),
    "a row in another problem": (
        column("problem", lambda p: [p[-1], *p[1:]], status="settled"),
        "a problem has all its cells",
        "2 problems hold other cells",
    ),
    "a bad row marked skipped": (
        column("status", first("skipped"), **SETTLED),
        "what the plan skips is skipped",
        "1 cell are skipped, and the plan measures them",
    ),
    "a bad row emptied and marked skipped": (
        {"cells": lambda t: emptied(t, "skipped")},
        "what the plan skips is skipped",
        "1 cell are skipped, and the plan measures them",
    ),
    "a skipped row marked settled": (
        column("status", first("settled"), status="skipped"),
        STATUS,
        "were measured, and have no evidence of it",
    ),
    "a reason of a skip": (
        column("reason", first("no"), status="skipped"),
        "what the plan skips is skipped",
        "another reason",
    ),
    "a settled row marked as an error": (
        column("status", first("error"), **SETTLED),
        STATUS,
        "were not measured, and have",
    ),
    "a settled row marked unsettled": (
        column("status", first("unsettled"), **SETTLED),
        STATUS,
        "every sample is settled",
    ),
    "a settled row marked collapsed": (
        column("status", first("collapsed"), **SETTLED),
        STATUS,
        "not settled, without a reason",
    ),
    "a settled row marked diverged": (
        column("status", first("diverged"), **SETTLED),
        STATUS,
        "diverged, and were compared",
    ),
    "a settled row marked unstable": (
        column("status", first("unstable"), **SETTLED),
        STATUS,
        "perturbations do not grow",
    ),
    "a settled row marked undefined": (column("status", first("undefined"), **SETTLED), STATUS, "and have a reference"),
    "an unsettled row marked settled": (
        column("status", first("settled"), status="unsettled"),
        STATUS,
        "are at rest by their status, and not by their samples",
    ),
    "a misspelt status": (column("status", first("setled"), **SETTLED), "a status is a word of the list", "is none"),
    "a misspelt cause": (
        column("cause", first("asymetry")),
        "a cause is a word of the list",
        "have a cause that is none",
    ),
    "a residual that does not settle": (
        column("residual", first(0.01), **SETTLED),
        STATUS,
        "with a residual above 0.0001",
    ),
    "a rho that grows": (
        column("rho", first(1.1), **SETTLED),
        STATUS,
        "stable by their status, and perturbations grow",
    ),
    "a share of samples": (column("settled_share", first(0.5), **SETTLED), STATUS, "not by their samples"),
    "a cosine_min of 7": (
        column("cosine_min", first(7.0)),
        "numbers are in their range",
        r"cosine_min outside -1 to 1 \(7\)",
    ),
    "an infinite cosine_min": (column("cosine_min", first(np.inf)), "numbers are in their range", r"-1 to 1 \(inf\)"),
    "a negative norm ratio": (
        column("norm_ratio", first(-0.5)),
        "numbers are in their range",
        "norm_ratio outside 0 to inf",
    ),
    "a share above one": (
        column("sign_agreement", first(1.5)),
        "numbers are in their range",
        "sign_agreement outside 0 to 1",
    ),
    "a negative count": (column("n_force", first(-1)), "numbers are in their range", "n_force outside 0 to inf"),
    "a cosine of a block of 2": (
        column("cosine", first(2.0), "blocks"),
        "numbers are in their range",
        r"outside -1 to 1 \(2\)",
    ),
    "a NaN": (column("cosine", first(np.nan), **SETTLED), STATUS, "are settled, and have no cosine, without a reason"),
    "a null": (column("cosine", first(None), **SETTLED), STATUS, "did not diverge, and were not compared"),
    "a cosine of 0.1": (
        column("cosine", first(0.10), estimator="aep"),
        "cosine, norm ratio and error agree",
        "1 cell have a cosine, a norm ratio and an error that no two gradients have",
    ),
    "half an error": (
        column("rel_error", every(lambda e: e / 2), **SETTLED),
        "cosine, norm ratio and error agree",
        "cells have",
    ),
    "a cosine of a parameter": (
        column("cosine", first(0.10), "params"),
        "cosine, norm ratio and error agree",
        "params.parquet: 1 cell have",
    ),
    "a better cosine_min": (
        column("cosine_min", first(0.999), estimator="ep"),
        "cosine_min is that of params",
        "have a cosine_min of 0.999, and by params.parquet",
    ),
    "a better cosine_mean": (
        column("cosine_mean", first(0.999), estimator="ep"),
        "cosine_mean is that of params",
        "of 0.999",
    ),
    "another worst parameter": (
        column("worst", first({"S": "b", "b": "S"}.get), estimator="ep"),  # those of BPTT can be equal to the last bit
        "worst is that of params",
        "name as worst",
    ),
    "a zero estimate that is none": (
        column("params_zero", first(1), estimator="ep"),
        "params_zero is that of params",
        "of 1,",
    ),
    "a larger reference": (
        column("reference_norm", first(lambda norm: 2 * norm)),
        "the reference is that of params",
        "have another norm of the reference",
    ),
    "a parameter removed": (
        rows(lambda n: range(1, n), "params"),
        "params_live is that of params",
        "1 cell have a params_live",
    ),
    "a parameter doubled": (rows(lambda n: [0, *range(n)], "params"), "every row once", "have a param twice"),
    "parameters of nobody": (
        column("cell", first("0" * 16), "params"),
        "no cell that is not in cells",
        "not in cells.parquet",
    ),
    "blocks in another order": (
        rows(lambda n: range(n - 1, -1, -1), "blocks"),
        "rows in the order of the plan",
        "blocks",
    ),
    "an error a millionth smaller": (
        column("rel_error", every(lambda e: e * (1 - 1e-6)), estimator="ep", status="settled"),
        "cosine, norm ratio and error agree",
        "cells have",
    ),
    "another rho_T2": (
        column("rho_T2", first(lambda r: r / 2), estimator="ep", status="settled"),
        "rho_T2 is rho to the power of T2",
        "have another rho_T2",
    ),
    "another rho": (
        column("rho", first(lambda r: r / 2), estimator="ep", status="settled"),
        "rho_T2 is rho to the power of T2",
        "have another rho_T2",
    ),
    "a cause that was dropped": (
        column("cause", every(None), estimator="ep", status="settled"),
        "a budget is that of the error",
        "have a budget and no cause",
    ),
    "a smaller budget": (
        column("rel_error", first(lambda e: e / 2), "budget", param=""),
        "a budget is that of the error",
        "have another rel_error than",
    ),
    "budgets of nobody": (column("cell", first("0" * 16), "budget"), "no cell that is not in cells", "budget.parquet"),
}


TABLE |= {
    "a residual of one cell of a state": (
        column("residual", first(lambda r: r / 2), estimator="ep", status="settled"),
        "cells at one state share its evidence",
        "have another residual than a cell at the same state",
    ),
    "a rho of one cell of a state": (
        column("rho", first(0.5), estimator="tbptt", status="settled"),
        "cells at one state share its evidence",
        "have another rho than",
    ),
    "a state of another size": (
        column("state_norm", first(lambda r: r * (1 + 1e-9)), status="settled"),
        "cells at one state share its evidence",
        "have another state_norm than",
    ),
    "a share of samples a little above one, which hides a residual": (
        {
            "cells": lambda t: column("residual", every(0.01), **SETTLED)["cells"](
                column("settled_share", every(1 + 1e-6), **SETTLED)["cells"](t)
            )
        },
        STATUS,
        "with a residual above 0.0001",
    ),
    "a perfect gradient of a parameter": (
        {"params": lambda t: perfect(t)},
        "the cosine is that of params",
        "have another cosine than their parameters together",
    ),
    "a perfect whole gradient": (
        {"cells": lambda t: perfect(t)},
        "the cosine is that of params",
        "have another cosine than their parameters together",
    ),
    "a longer whole gradient": (
        {"cells": lambda t: perfect(t, 1.5)},
        "the estimate is that of params",
        "have another norm than their parameters together",
    ),
}


TABLE |= {
    "a norm of a parameter that is NaN": (
        column("reference_norm", first(np.nan), "params"),
        "what is undefined has a reason",
        "params.parquet: 1 cell have a number that is undefined, and no reason",
    ),
    "an error of a parameter that is NaN": (
        column("rel_error", first(np.nan), "params"),
        "what is undefined has a reason",
        "params.parquet: 1 cell have",
    ),
    "a norm of a cell that is NaN": (
        column("reference_norm", every(np.nan), **SETTLED),
        "what is undefined has a reason",
        "cells.parquet: 30 cells have",
    ),
    "a row without a key": (
        column("cell", first(None)),
        "every row is of a cell",
        "cells.parquet: 1 rows name no cell",
    ),
    "parameters without a key": (
        column("cell", every(None), "params"),
        "every row is of a cell",
        "params.parquet: .* rows name no cell",
    ),
    "a parameter without a name": (column("param", first(None), "params"), "worst is that of params", "name as worst"),
    "a parameter that is said to have no reference": (
        column("reason", first("the reference of S is zero"), "params"),
        "params_live is that of params",
        "1 cell have a params_live",
    ),
    "no parameters": (
        {"params": lambda t: t.slice(0, 0)},
        "params_live is that of params",
        "104 cells have a params_live",
    ),
    "no status": (
        column("status", every(None), **SETTLED),
        "a status is a word of the list",
        "have a status that is none",
    ),
    "residuals that are NaN": (column("residual", every(np.nan), **SETTLED), STATUS, "with a residual above 0.0001"),
    "no growth of perturbations": (column("rho", every(None), **SETTLED), STATUS, "and perturbations grow"),
    "no share of samples": (column("settled_share", every(None), **SETTLED), STATUS, "have no evidence of it"),
}


TABLE |= {
    "labels of two rules swapped everywhere": (
        column("estimator_label", lambda v: [{"ep": "aep", "aep": "ep"}.get(label, label) for label in v]),
        "a label for every rule and system",
        "64 cells have another name in estimator_label",
    ),
    "a label with a letter that looks like another one": (
        column("estimator_label", every("\N{CYRILLIC SMALL LETTER A}ep"), estimator="aep"),
        "a label for every rule and system",
        "32 cells have another name in estimator_label",
    ),
    "the data of another system": (
        column("dataset", first("digits")),
        "a data set is that of its system",
        "1 cell have another data set than their system",
    ),
    "a column twice": (
        {"cells": lambda t: t.append_column("cosine_min", pa.array(np.ones(len(t))))},
        "every file can be read",
        "cells.parquet: its columns are not those of schema version 5",
    ),
}


def perfect(table: pa.Table, ratio: float = 1.0) -> pa.Table:
    """The worst reading of a table, with cosine 1 and an error that agrees."""
    records = table.to_pylist()
    row = min((r for r in records if r["cosine"] is not None), key=lambda r: r["cosine"])
    row |= {"cosine": 1.0, "norm_ratio": ratio, "rel_error": abs(ratio - 1)}
    return pa.Table.from_pylist(records, schema=table.schema)


def emptied(table: pa.Table, status: str) -> pa.Table:
    """The first settled row of ep, as a row without a measurement."""
    records = table.to_pylist()
    row = next(r for r in records if r["status"] == "settled" and r["estimator"] == "ep")
    row |= {name: None for name in COLUMNS["cells"] if name not in (*POINT, "cell", "dataset") and "label" not in name}
    row |= {"status": status, "reason": "no"}
    return pa.Table.from_pylist(records, schema=table.schema)


def rewrite(run: Run, changes: dict[str, Callable[[pa.Table], pa.Table]], *, digests: bool) -> None:
    """Write mutated tables, sealed as tables are; with `digests`, those of the tables are made to match."""
    for name, change in changes.items():
        path = run.folder / f"{name}.parquet"
        seal = write_table(path, change(read_table(path, TABLES[name])))
        if digests:
            content = json.loads((run.folder / MANIFEST).read_text())
            content["tables"][name] = seal
            write_json(run.folder / MANIFEST, content)


@pytest.mark.parametrize("name", TABLE)
def test_a_mutated_table_is_caught_by_its_digest_and_by_the_rule_that_it_breaks(gated: Run, name: str) -> None:
    changes, rule, message = TABLE[name]
    rewrite(gated, changes, digests=True)
    faults = verify(gated)[1]
    assert [f.detail for f in faults if f.name == rule and pc.match_substring_regex(f.detail, message).as_py()], faults
    assert not [f for f in faults if f.name.startswith("tables are")]
    with pytest.raises(StoreError, match=rule):
        trusted(gated)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_written_again_is_not_that_of_the_records(gated: Run, name: str) -> None:
    rewrite(gated, {name: lambda table: table.slice(1)}, digests=False)
    verdict = judge(gated)
    assert verdict.code is Exit.STORE
    details = [f.detail for f in verdict.findings if f.name == "tables are as they were made"]
    assert details == [f"{gated.folder / name}.parquet: is another table than the one that the records made"]
    assert verdict.line.startswith("VERDICT damaged (5)  ")


def test_what_keeps_every_rule_and_every_digest_is_found_by_making_the_tables_again(gated: Run) -> None:
    rewrite(gated, column("seconds", first(99.0), status="settled"), digests=True)
    assert judge(gated).code is Exit.OK
    verdict = judge(gated, deep=True)
    assert verdict.code is Exit.STORE
    assert [f.detail for f in verdict.findings] == [f"{gated.folder / 'cells.parquet'}: other values in seconds"]


def edit(run: Run, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((run.folder / name).read_text())
    change(content)
    write_json(run.folder / name, content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def record(run: Run, number: int = 0) -> Path:
    return sorted((run.folder / "records").glob("*.parquet"))[number]


def remeasured(run: Run) -> None:
    path = record(run)
    table = read_table(path, RECORD)
    write_table(path, table.slice(0, 1).replace_schema_metadata({**table.schema.metadata, SEAL: b""}))


def linked(run: Run) -> None:
    """The first problem, whose record is gone, has that of the next one."""
    (gone,) = set(run.plan["problems"]) - run.done()
    (run.folder / "records" / f"{gone}.parquet").symlink_to(record(run))


def short(run: Run) -> None:
    path = record(run)
    write_table(path, read_table(path, RECORD).slice(1))
    (run.folder / MANIFEST).unlink()
    (run.folder / journal.NAME).unlink()  # what holds the seals of records until there is a manifest


def doubled(run: Run) -> None:
    """Both rows of a cell in a record: a bad one, and behind it the one that the tables take."""
    path = record(run)
    table = read_table(path, RECORD)
    write_table(path, pa.concat_tables([table, table.slice(0, 1)]))
    (run.folder / MANIFEST).unlink()


def skipping(plan: dict[str, Any]) -> None:
    """A plan that skips the first cell that it measured."""
    plan["skipped"].append(plan["cells"].pop(0) | {"reason": "no"})


def no_parquet(run: Run) -> None:
    """A file with a seal that is right, of a table that is none."""
    content = b"PAR1 nothing " + SEAL + b"\x18\x47" + BLANK
    sealed = content.replace(BLANK, BLANK[:7] + hashlib.sha256(content).hexdigest().encode())
    (run.folder / "params.parquet").write_bytes(sealed)


MADE = "tables are made of the records"
CLAIMED = "the checks are those of this run"
FROZEN = "the plan is as it was frozen"
READ = "every file can be read"
FILES: dict[str, tuple[Callable[[Run], object], str, str]] = {
    "a cell removed from the plan": (
        lambda r: edit(r, "plan.json", lambda p: p["cells"].pop()),
        FROZEN,
        "its key is not",
    ),
    "the same, and its row": (
        lambda r: edit(r, "plan.json", lambda p: p["cells"].pop()),
        "no cell that is not planned",
        "1 cell are not in the plan",
    ),
    "a cell planned twice": (
        lambda r: edit(r, "plan.json", lambda p: p["cells"].append(p["cells"][0])),
        "the plan has every cell once",
        "1 cell stand there more than once",
    ),
    "a coordinate of the plan": (
        lambda r: edit(r, "plan.json", lambda p: p["cells"][0].update(T1=21)),
        KEY,
        "of other coordinates",
    ),
    "a looser threshold": (
        lambda r: edit(r, "plan.json", lambda p: p["thresholds"].update(residual=1.0)),
        FROZEN,
        "thresholds",
    ),
    "a problem removed from the plan": (
        lambda r: edit(r, "plan.json", lambda p: p["problems"].pop()),
        FROZEN,
        "its problems",
    ),
    "a plan without thresholds": (
        lambda r: edit(r, "plan.json", lambda p: p.pop("thresholds")),
        "the plan can be read",
        "thresholds",
    ),
    "a plan that is a list": (
        lambda r: (r.folder / "plan.json").write_text("[]"),
        READ,
        "plan.json: damaged: it holds no object",
    ),
    "a plan of cells without coordinates, of a run that goes on": (
        lambda r: ((r.folder / MANIFEST).unlink(), edit(r, "plan.json", lambda p: p["skipped"][0].pop("system"))),
        READ,
        "plan.json: damaged: KeyError: 'system'",
    ),
    "a cell moved to those that are skipped": (lambda r: edit(r, "plan.json", skipping), FROZEN, "those that it skips"),
    "another suite": (lambda r: edit(r, "plan.json", lambda p: p.update(suite="toy")), FROZEN, "that of its suite"),
    "no suite": (lambda r: edit(r, "plan.json", lambda p: p.pop("suite")), "the plan can be read", "KeyError: 'suite'"),
    "cells that are a number": (
        lambda r: edit(r, "plan.json", lambda p: p.update(cells=3)),
        "the plan can be read",
        "",
    ),
    "problems that are no words": (
        lambda r: edit(r, "plan.json", lambda p: p.update(problems=[{}])),
        READ,
        "damaged: .*TypeError: unhashable",
    ),
    "a threshold that is a word": (
        lambda r: edit(r, "plan.json", lambda p: p["thresholds"].update(residual="low")),
        READ,
        "damaged: ",
    ),
    "a sealed file that is no parquet": (no_parquet, READ, "params.parquet: damaged: "),
    "two rows for a cell in a record": (doubled, READ, "damaged: a cell has two rows"),
    "checks that are a word": (
        lambda r: edit(r, "checks.json", lambda c: c.update(check="all")),
        "the checks can be read",
        "checks.json: damaged",
    ),
    "allowed by a word": (
        lambda r: edit(r, "checks.json", lambda c: c.update(allow_incomplete="no")),
        "the checks can be read",
        "allow_incomplete is neither true nor false",
    ),
    "a printed table without columns": (
        lambda r: edit(r, "checks.json", lambda c: c.update(table=[{"name": "t"}])),
        "the checks can be read",
        "columns",
    ),
    "a torn plan": (lambda r: cut(r.folder / "plan.json"), READ, "plan.json: damaged"),
    "the environment of another run": (
        lambda r: edit(r, "env.json", lambda e: e.update(commit="0" * 40)),
        "tables are of this run",
        "cells.parquet: the environment that made it is not that of env.json",
    ),
    "torn checks": (lambda r: cut(r.folder / "checks.json"), READ, "checks.json: damaged"),
    "a check without a bound": (
        lambda r: edit(r, "checks.json", lambda c: c["check"][0].update(min=None)),
        "the checks can be read",
        "a check needs a metric with min or max, or a status",
    ),
    "torn digests": (lambda r: cut(r.folder / MANIFEST), READ, "manifest.json: damaged"),
    **{
        f"digests that are {content[:40]}": (
            lambda r, content=content: (r.folder / MANIFEST).write_text(content),
            READ,
            "manifest.json: damaged: it (holds no object|has no seal)",
        )
        for content in ("null", "{}", "[]", "0", '""', "false", '{"tables": {}}')
    },
    "a problem planned twice": (
        lambda r: edit(r, "plan.json", lambda p: p["problems"].append(p["problems"][0])),
        FROZEN,
        "its problems are not those of its cells",
    ),
    "a threshold that is NaN": (
        lambda r: edit(r, "plan.json", lambda p: p["thresholds"].update(residual=np.nan)),
        FROZEN,
        "thresholds",
    ),
    "a plan in another order": (
        lambda r: edit(r, "plan.json", lambda p: p["cells"].reverse()),
        "rows in the order of the plan",
        "another order",
    ),
    "no record, and digests of none": (
        lambda r: ([record(r).unlink() for _ in r.done()], edit(r, MANIFEST, lambda d: d["records"].clear())),
        MADE,
        "8 records of rows are not named; first ",
    ),
    "a record that is a link to that of another problem": (
        lambda r: ((r.folder / MANIFEST).unlink(), record(r).unlink(), linked(r)),
        READ,
        "damaged: it is not the record of problem",
    ),
    "a record without a row": (short, "a problem has all its cells", "1 problems hold other cells than theirs"),
    "checks that are gone": (lambda r: (r.folder / "checks.json").unlink(), READ, "checks.json: No such file"),
    "digests that are words": (
        lambda r: edit(r, MANIFEST, lambda d: d["tables"].update(cells="sha256:0")),
        READ,
        "manifest.json: damaged: tables holds what is no digest",
    ),
    "digests of records that are numbers": (
        lambda r: edit(r, MANIFEST, lambda d: d["records"].update(dict.fromkeys(d["records"], 1))),
        READ,
        "manifest.json: damaged: records holds what is no digest",
    ),
    "digests of records that are a list": (
        lambda r: edit(r, MANIFEST, lambda d: d.update(records=[])),
        READ,
        "manifest.json: damaged: records holds what is no digest",
    ),
    "digests without a table": (
        lambda r: edit(r, MANIFEST, lambda d: d["tables"].pop("budget")),
        READ,
        "manifest.json: damaged: it has digests of .'blocks', 'cells', 'params'., expected ",
    ),
    "a number of missing cells that is none": (
        lambda r: edit(r, MANIFEST, lambda d: d.update(missing=True)),
        READ,
        "manifest.json: damaged: missing = True is no number of cells",
    ),
    "digests that are a folder": (
        lambda r: ((r.folder / MANIFEST).unlink(), (r.folder / MANIFEST).mkdir()),
        READ,
        "manifest.json: Is a directory",
    ),
    "digests that are a broken link": (
        lambda r: ((r.folder / MANIFEST).unlink(), (r.folder / MANIFEST).symlink_to("nowhere")),
        READ,
        "manifest.json: No such file",
    ),
    "a looser bound of a check": (
        lambda r: edit(r, "checks.json", lambda c: c["check"][0].update(min=-1.0)),
        CLAIMED,
        "checks.json: was edited, or is of another run; gradbench run gated writes",
    ),
    "no check": (lambda r: edit(r, "checks.json", lambda c: c.update(check=[])), CLAIMED, "checks.json: was edited"),
    "checks that do not say of which run they are": (
        lambda r: edit(r, "checks.json", lambda c: c.pop("bound_to")),
        CLAIMED,
        "checks.json: was edited",
    ),
    "cells that may be missing": (
        lambda r: edit(r, "checks.json", lambda c: c.update(allow_incomplete=True)),
        CLAIMED,
        "checks.json: was edited",
    ),
    "the environment of another run, before there are tables": (
        lambda r: ((r.folder / MANIFEST).unlink(), edit(r, "env.json", lambda e: e.update(processor="NVIDIA H100"))),
        READ,
        "is no record of this run: the environment .*: processor '.*' in place of 'NVIDIA H100'; gradbench run SUITE ",
    ),
    "an environment without the name of its run, before there are tables": (
        lambda r: ((r.folder / MANIFEST).unlink(), edit(r, "env.json", lambda e: e.pop("run"))),
        READ,
        "is no record of this run: the environment .*: run '.*' in place of None; ",
    ),
    "an environment that is a list": (
        lambda r: (r.folder / "env.json").write_text("[]"),
        READ,
        "env.json: damaged: it holds no object",
    ),
    "a record that is gone": (lambda r: record(r).unlink(), MADE, "1 records of which tables were made are gone"),
    "a record measured anew": (remeasured, MADE, "1 records changed after the tables"),
    "a record of no table": (
        lambda r: edit(r, MANIFEST, lambda d: d["records"].pop(record(r).stem)),
        MADE,
        "1 records are in no table",
    ),
    "a flipped bit of a record": (lambda r: flip(record(r)), READ, "records/.*: damaged"),
    "a flipped bit of a table": (lambda r: flip(r.folder / "cells.parquet"), READ, "cells.parquet: damaged"),
    "a torn table": (lambda r: cut(r.folder / "params.parquet"), READ, "params.parquet: damaged"),
    "a table that is gone": (
        lambda r: (r.folder / "budget.parquet").unlink(),
        READ,
        r"budget.parquet: No such file or directory; gradbench run SUITE makes it again$",
    ),
    "a table of another schema": (
        lambda r: rewrite(
            r, {"cells": lambda t: t.replace_schema_metadata({b"gradbench.schema": b"3"})}, digests=False
        ),
        READ,
        "cells.parquet: schema version 3, this gradbench reads 4 and 5",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_caught_and_named(gated: Run, name: str) -> None:
    mutate, rule, message = FILES[name]
    write_json(gated.folder / "verdict.json", {"verdict": "pass"})
    mutate(gated)
    verdict = judge(gated)
    assert verdict.code is Exit.STORE
    faults = verdict.findings
    assert [f for f in faults if f.name == rule and pc.match_substring_regex(f.detail, message).as_py()], faults
    assert json.loads((gated.folder / "verdict.json").read_text())["verdict"] == "damaged"


@pytest.fixture(scope="session")
def another(finished: Path) -> Path:
    """The folder of a run of the same suite at another beta."""
    suite = finished.parents[2] / "gated.toml"
    done = gradbench.run(str(suite), out=finished.parents[2] / "other", device="cpu", overrides={"beta": 0.9})
    return done.folder


def test_a_run_in_which_nothing_settles_passes_no_check_of_a_metric(finished: Path, tmp_path: Path) -> None:
    suite = tmp_path / "short.toml"
    text = (finished.parents[2] / "gated.toml").read_text()
    for part, other in (("T1 = [20, 200]", "T1 = 1"), ("T1 = 200, T2 = 60, ", ""), (', status = "settled"', "")):
        assert part in text
        text = text.replace(part, other)
    suite.write_text(text.replace("min = 0.9", "min = -1"))
    verdict = judge(gradbench.run(str(suite), out=tmp_path, device="cpu", overrides={"seed": 0}))
    assert verdict.code is Exit.CHECK_FAILED
    assert [(f.result, f.cells, f.detail) for f in verdict.findings] == [("none", 0, "no cell is settled: 4 unsettled")]


@pytest.mark.parametrize("digests", [False, True])
def test_the_tables_of_another_run_do_not_pass_for_its_own(gated: Run, another: Path, digests: bool) -> None:
    target = Run(Path(shutil.copytree(another, gated.folder.parent / "another")))
    for name in (*(f"{name}.parquet" for name in TABLES), *([MANIFEST] if digests else [])):
        shutil.copy(gated.folder / name, target.folder / name)
    verdict = judge(target)
    assert verdict.code is Exit.STORE
    names = {f.name for f in verdict.findings}
    assert {"tables are of this run", "no cell that is not planned", "every planned cell"} <= names
    assert ("tables are made of the records" if digests else "tables are as they were made") in names


def test_the_checks_of_another_run_do_not_pass_for_its_own(gated: Run, another: Path) -> None:
    target = Run(Path(shutil.copytree(another, gated.folder.parent / "another")))
    strict = target.claims | {"check": [target.claims["check"][0] | {"min": 1.0}]}
    target.claim(strict)
    assert judge(target).code is Exit.CHECK_FAILED
    shutil.copy(gated.folder / "checks.json", target.folder)
    (finding,) = judge(target).findings
    assert (finding.name, finding.kind) == (CLAIMED, "store")
    target.claim(strict)  # as a start of that run does
    assert judge(target).code is Exit.CHECK_FAILED


def test_a_run_that_goes_on_is_judged_by_its_records_and_nothing_of_it_is_written(gated: Run) -> None:
    for name in (MANIFEST, "cells.parquet", "params.parquet"):
        (gated.folder / name).unlink()
    gone = record(gated)
    rows_gone = len(read_table(gone, RECORD))
    gone.unlink()
    before = sorted(p.name for p in gated.folder.iterdir())
    verdict = judge(gated)
    assert verdict.snapshot is not None
    assert not verdict.snapshot.finished
    assert (verdict.code, verdict.present) == (Exit.INCOMPLETE, 112 - rows_gone)
    assert sorted(p.name for p in gated.folder.iterdir()) == sorted([*before, "verdict.json"])


def test_a_run_without_digests_is_judged_by_its_records_whatever_its_tables_say(gated: Run) -> None:
    rewrite(gated, column("cosine_min", every(1.0)), digests=False)
    (gated.folder / MANIFEST).unlink()
    whole = judge(gated)
    assert whole.code is Exit.OK
    assert whole.snapshot is not None
    assert (whole.snapshot.cells["cosine_min"] < 0.99).any()


def test_a_record_that_is_stored_outdates_the_tables(gated: Run) -> None:
    path = record(gated)
    kept = read_table(path, RECORD).to_pylist()
    gated.keep(path.stem, kept)
    assert gated.manifest is None
    assert judge(gated).code is Exit.OK


def test_what_changes_while_it_is_read_is_read_again(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process ends a gated between the digests and the tables: no fault, and no half of each."""
    good, calls = (gated.folder / "cells.parquet").read_bytes(), iter(range(9))
    table = Run.table

    def changing(self: Run, name: str) -> pa.Table:
        if name == "cells" and next(calls) == 0:
            rewrite(gated, rows(lambda n: range(1, n)), digests=False)
            seen = table(self, name)
            (gated.folder / "cells.parquet").write_bytes(good)
            edit(gated, MANIFEST, lambda d: None)  # as `compact` ends
            return seen
        return table(self, name)

    monkeypatch.setattr(Run, "table", changing)
    snapshot, faults = verify(gated)
    assert not faults
    assert snapshot is not None
    assert len(snapshot.cells) == 112


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"betta": 0.1}, "^explain: betta: is neither a column nor an option. Did you mean 'beta'"),
        ({"seed": 7}, "^explain: no measured cell has seed = 7"),
        ({"estimator": "ep"}, r"name one, or ask for worst=N$"),
        ({"cell": "first"}, "first digits of its key, or by a coordinate or worst=$"),
    ],
)
def test_a_mistake_of_results_speaks_of_arguments(gated: Run, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        gradbench.api.results.Results(gated.folder).explain(**asked)


def test_a_check_of_results_is_verified_as_a_check_of_a_suite_is(gated: Run) -> None:
    results = gradbench.api.results.Results(gated.folder)
    assert results.check(metric="cosine_min", min=0.9, estimator="aep", T1=200, T2=60)
    assert not results.check(metric="cosine_min", max=-1.0, estimator="aep", T1=200, T2=60)
    with pytest.raises(UserError, match=r"check: check\[0\] 'check': min = 1.1 is above 1, the largest cosine_min"):
        results.check(metric="cosine_min", min=1.1)
    with pytest.raises(UserError, match=r"where.status: a cell that is skipped has no cosine"):
        results.check(metric="cosine", min=0, where={"status": "skipped"})
    for where, message in (
        ({"estimater": "aep"}, "where.estimater is neither a coordinate nor an option. Did you mean 'estimator'"),
        ({"estimator": "app"}, 'no planned cell has estimator = "app"'),
        ({"seed": [3, 4]}, "where.seed has a value that no cell has: no planned cell has seed = 4"),
        ({"cosine": 1.0}, "where.cosine is neither a coordinate nor an option"),  # a result would choose what it wants
        ({"where": {"estimator": "ep"}, "estimator": "bptt"}, "estimator is given twice, in where and as a keyword"),
    ):
        with pytest.raises(UserError, match=message):
            results.check(metric="cosine_min", min=0.9, **where)
    rewrite(gated, column("cosine_min", every(1.0)), digests=False)
    with pytest.raises(StoreError, match="is another table than the one"):
        results.check(metric="cosine_min", min=0.9)


def test_a_verdict_of_before_does_not_outlive_a_crash(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(gated)

    def crash(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("gradbench.tables.verdict.verify", crash)
    with pytest.raises(MemoryError):
        judge(gated)
    assert not (gated.folder / "verdict.json").exists()


@pytest.mark.parametrize("code", [Exit.OK, Exit.CHECK_FAILED])
def test_a_verdict_that_cannot_be_stored_is_told_all_the_same(gated: Run, capsys: Any, code: Exit) -> None:
    if code is not Exit.OK:
        gated.claim(gated.claims | {"check": [gated.claims["check"][0] | {"min": 1.1}]})
    (gated.folder / "verdict.json").mkdir()  # which no file replaces, as none is made in a folder that is read only
    assert _code(["check", str(gated.folder)]) == code
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith(f"VERDICT {'pass' if code is Exit.OK else 'fail'} ({code.value})  ")
    assert "verdict.json" not in told.out
    assert "gradbench: the verdict is not stored: " in told.err
    assert "verdict.json: Is a directory; what was stored before is unchanged" in told.err


def test_a_run_among_those_of_another_suite_is_told(gated: Run, tmp_path: Path, capsys: Any) -> None:
    there = Run(Path(shutil.copytree(gated.folder, tmp_path / "out" / "runs" / "smoke" / "one")))
    pointer = there.folder.parent / "latest"
    pointer.write_text("one")
    assert _code(["check", "smoke", "--out", str(tmp_path / "out")]) == Exit.STORE
    told = " ".join(capsys.readouterr().out.split())
    assert f"plan.json: it is of the suite 'gated', and lies in {there.folder.parent}" in told
    there.folder.parent.rename(tmp_path / "out" / "runs" / "gated")
    assert judge(Run(tmp_path / "out" / "runs" / "gated" / "one")).code is Exit.OK
    (tmp_path / "out" / "runs" / "smoke").mkdir()
    for name in ("../gated/one", "..", str(gated.folder), b"\xff/"):
        pointer.write_bytes(name if isinstance(name, bytes) else name.encode())
        with pytest.raises(StoreError, match=r"latest: names .*, which is no run beside it"):
            find("smoke", tmp_path / "out")
    pointer.unlink()
    pointer.mkdir()
    with pytest.raises(StoreError, match=r"latest: Is a directory$"):
        find("smoke", tmp_path / "out")


@pytest.mark.parametrize("name", ["gated", "latest"])
def test_a_folder_with_the_name_of_a_suite_is_not_taken_for_its_run(
    gated: Run, another: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    there = shutil.copytree(gated.folder, tmp_path / "results" / "runs" / "gated" / "one")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(another, name)
    assert find(name).folder == Path(name)  # no run of the results has this name
    (there.parent / "latest").write_text("one")
    with pytest.raises(UserError, match=f"run '{name}' is ambiguous: .*; write ./{name} for the folder, or the path"):
        find(name)
    assert find(f"./{name}").folder == Path(name)


def test_an_empty_name_is_no_run(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gated.folder)
    with pytest.raises(UserError, match="the name of the run is empty"):
        find("")
