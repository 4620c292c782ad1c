"""Fixtures for pytest: `gradbench_check` runs a suite and asserts, `gradbench_conform` tries a system or a rule.

pytest finds them where gradbench is installed. Nothing is collected, reported or measured where no test names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradbench.api.results import Results
    from gradbench.conformance.findings import Conformance
    from gradbench.planning.suites import Check, Suite
    from gradbench.tables.findings import Finding

RESULTS = "results"  # the folder of results of the command, below the one in which pytest runs


@pytest.fixture(scope="session")
def gradbench_check(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """Run a suite and assert what its cells read: gradbench_check("suites/mine.toml", estimator="mine", cosine=0.99).

    A keyword that is a metric is what every cell must reach: the least value of a cosine, the largest one of rel_error
    and residual, and of any metric a pair (least, largest), where None is no bound. Any other keyword is one of
    `where`: it chooses cells by coordinate, option, name or status, a list for several values. As in a check of a
    suite, settled cells are looked at unless status= names others, and no cell is a failure. Returns the results.

    Without keywords the verdict must be a pass, which is that of `gradbench check`: the checks of the suite, and its
    baseline where results/baselines or gradbench has one. `baseline` is the file of another one, or "none".

    `out` is the folder of results, by default one of this session, where a suite is measured once however often it is
    asserted; `device` and `overrides` are those of gradbench.run, and `where` holds keys that have the name of an
    argument. Raises gradbench.UserError before anything runs, AssertionError with the worst cell.
    """
    return partial(assert_readings, out=tmp_path_factory.mktemp("gradbench"))


@pytest.fixture(scope="session")
def gradbench_conform() -> Callable[..., Conformance]:
    """Assert that a system or a rule conforms: gradbench_conform(mine), with the arguments of gradbench.conform.

    AssertionError names what fails and what to do. Returns the findings.
    """
    return assert_conforms


def assert_readings(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
    baseline: str | Path | None = None,
    **named: Any,
) -> Results:
    """What the fixture `gradbench_check` is."""
    __tracebackhide__ = True
    from gradbench.api.results import run
    from gradbench.commands.claiming import refuse_hopeless
    from gradbench.commands.running import prepare
    from gradbench.errors import UserError
    from gradbench.tables.baselines import demanded
    from gradbench.tables.checks import evaluate
    from gradbench.tables.verdict import judge
    from gradbench.vocabulary.exit import Exit

    checks = _checks(named, where or {})
    if checks and baseline is not None:
        raise UserError(f"gradbench_check: baseline is of the verdict; {checks[0].metric} asks for one check alone")
    loaded, planned = prepare(suite, overrides)
    planned.verify([("check", checks)], "gradbench_check")
    refuse_hopeless(checks, "gradbench_check")
    results = run(suite, out=out, device=device, overrides=overrides)
    demand, unheld = (None, "") if checks else demanded(results, baseline, out=Path(RESULTS))
    verdict = judge(results, demand=demand, unheld=unheld)
    findings, headline = verdict.findings, verdict.line
    if checks and verdict.code is not Exit.STORE:
        findings = tuple(evaluate(check, results.cells) for check in checks)
        failed = sum(not finding.passed for finding in findings)
        headline = f"{failed} of {len(findings)} do not hold"
    if not all(finding.passed for finding in findings) or (verdict.code is not Exit.OK and not checks):
        told = [line for finding in findings if not finding.passed for line in _told(finding, results)]
        raise AssertionError("\n".join([f"suite {loaded.name}: {headline}", *told]))
    return results


def assert_conforms(item: object, *, on: object = None, batch: int = 4, seed: int = 0) -> Conformance:
    """What the fixture `gradbench_conform` is."""
    __tracebackhide__ = True
    from gradbench.api.conforming import conform

    tried = conform(item, on=on, batch=batch, seed=seed)
    if not tried.passed:
        raise AssertionError(repr(tried))
    return tried


def _told(finding: Finding, results: Results) -> list[str]:
    """What a message says of a finding that does not hold, with the way to the reason of its worst cell."""
    told = [f"{finding.result.upper()}  {finding.heading}  {finding.detail}"]
    return told + ([f"      why: gradbench explain {results.folder} {finding.cell}"] if finding.cell else [])


def _checks(named: Mapping[str, Any], where: Mapping[str, Any]) -> list[Check]:
    """The checks that keywords mean, one for every metric. Raises UserError for bounds that mean none."""
    from gradbench.errors import UserError
    from gradbench.planning import suites
    from gradbench.vocabulary.notation import METRICS

    chosen = {k: v for k, v in named.items() if k not in METRICS}
    if twice := chosen.keys() & where.keys():
        raise UserError(f"gradbench_check: {min(twice)} is given twice, in where and as a keyword")
    chosen = {**where, **chosen}
    chosen = {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}
    metrics = {k: v for k, v in named.items() if k in METRICS}
    if chosen and not metrics:
        raise UserError(
            f"gradbench_check: {', '.join(chosen)} choose cells, and no metric says what these must reach; "
            "name one, as in cosine_min=0.99"
        )
    return [
        suites.parse_check(
            {"name": _name(metric, *ends), "where": chosen, "metric": metric} | _bounds(*ends), "gradbench_check"
        )
        for metric, value in metrics.items()
        for ends in [_ends(metric, value)]
    ]


def _ends(metric: str, value: Any) -> tuple[Any, Any]:
    """The least and the largest value that a keyword asks for."""
    from gradbench.errors import UserError
    from gradbench.tables.schema import BETTER

    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise UserError(f"gradbench_check: {metric} = {value!r}: expected a number or (least, largest)")
        return value[0], value[1]
    better = BETTER.get(metric)
    if better not in ("up", "down"):
        raise UserError(f"gradbench_check: {metric} = {value!r}: has no better direction; give a pair (least, largest)")
    return (value, None) if better == "up" else (None, value)


def _bounds(least: Any, largest: Any) -> dict[str, Any]:
    return {name: end for name, end in (("min", least), ("max", largest)) if end is not None}


def _name(metric: str, least: Any, largest: Any) -> str:
    parts = [f"{sign} {end}" for sign, end in ((">=", least), ("<=", largest)) if end is not None]
    return f"{metric} {' and '.join(parts)}"
