"""Statements of the literature: fits of an order and a rate, the outcome of a statement, and where it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_checks import cell, frame

from gradbench.cli import _code
from gradbench.errors import UserError
from gradbench.planning.suites import Check, Statement
from gradbench.tables.checks import evaluate
from gradbench.tables.findings import Finding
from gradbench.tables.statements import tried

pytestmark = pytest.mark.fast

BETAS = (0.01, 0.02, 0.04, 0.08)


def errors(order: float, **other: Any) -> list[dict[str, Any]]:
    """Cells whose error is 3 beta^order."""
    return [cell(beta=beta, rel_error=3 * beta**order, **other) for beta in BETAS]


def fitted(cells: pd.DataFrame, **check: Any) -> Finding:
    return evaluate(Check(**{"name": "c", "metric": "rel_error", **check}), cells)


@pytest.mark.parametrize("order", [1.0, 2.0, 4.0])
def test_a_slope_is_the_order_of_an_error(order: float) -> None:
    cells = frame(*errors(order), *errors(order, seed=1))
    assert fitted(cells, reduce={"beta": "slope"}, min=order - 1e-9, max=order + 1e-9).passed
    assert not fitted(cells, reduce={"beta": "slope"}, min=order + 0.1).passed
    assert f"slope over beta of rel_error {order:g}" in fitted(cells, reduce={"beta": "slope"}, min=order - 1).detail


def test_every_group_has_a_slope_of_its_own() -> None:
    cells = frame(*errors(2), *errors(1, seed=1))
    finding = fitted(cells, reduce={"beta": "slope"}, min=1.5)
    assert finding.result == "fail"
    assert "seed=1" in finding.detail


def test_a_rate_is_the_factor_of_one_step_and_may_be_compared_with_another_metric() -> None:
    cells = frame(*(cell(T2=T2, rel_error=0.5 * 0.8**T2, rho=0.8) for T2 in (10, 20, 30, 40)))
    assert fitted(cells, reduce={"T2": "rate"}, min=0.8 - 1e-9, max=0.8 + 1e-9).passed
    assert fitted(cells, reduce={"T2": "rate"}, minus="rho", min=-1e-9, max=1e-9).passed
    assert not fitted(cells, reduce={"T2": "rate"}, minus="rho", min=0.01).passed
    unknown = cells.assign(rho=float("nan"))
    assert fitted(unknown, reduce={"T2": "rate"}, minus="rho", min=-1.0).result == "none"


@pytest.mark.parametrize("spoilt", [0.0, -1.0])
def test_a_fit_of_too_few_values_or_of_one_that_is_not_positive_is_no_verdict(spoilt: float) -> None:
    assert fitted(frame(*errors(2)[:2]), reduce={"beta": "slope"}, min=0.0).result == "none"
    assert fitted(frame(*errors(2), cell(beta=0.5, rel_error=spoilt)), reduce={"beta": "slope"}, min=0).result == "none"


def test_a_fit_over_words_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"reduce.dtype: a slope needs a coordinate with numbers"):
        Check(name="c", metric="rel_error", reduce={"dtype": "slope"}, min=0.0)


ORDER = {"metric": "rel_error", "reduce": {"beta": "slope"}}
PUBLISHED = ORDER | {"where": {"estimator": "ep"}, "min": 1.9, "max": 2.1}
CONDITIONED = PUBLISHED | {"where": {"estimator": "ep", "seed": 0}}
BREAKS = ORDER | {"where": {"estimator": "aep"}, "max": 1.1}


def stated(**more: Any) -> Statement:
    told = {"name": "centred EP errs as beta^2", "source": "S 2021", "expected": "holds"}
    return Statement(**{**told, "published": [PUBLISHED], "breaks": [BREAKS], **more})


@pytest.mark.parametrize(
    ("orders", "outcome"),
    [((2.0, 2.0), "holds"), ((2.0, 1.0), "holds under"), ((1.0, 1.0), "does not hold")],
)
@pytest.mark.parametrize("expected", ["holds", "holds under", "does not hold"])
def test_a_statement_passes_where_its_outcome_is_the_expected_one(
    orders: tuple[float, float], outcome: str, expected: str
) -> None:
    cells = frame(*errors(orders[0]), *errors(orders[1], seed=1), *errors(1, estimator="aep"))
    finding = tried(stated(expected=expected, under="seed 0", conditioned=[CONDITIONED]), cells)
    assert finding.result == ("pass" if outcome == expected else "fail")
    assert finding.detail.startswith(outcome)
    assert finding.kind == "statement"


def test_a_statement_that_does_not_break_elsewhere_fails() -> None:
    cells = frame(*errors(2), *errors(2, estimator="aep"))
    assert tried(stated(), cells).result == "fail"


def test_a_control_is_told_apart_from_a_break_and_has_to_pass() -> None:
    cells = frame(*errors(2), *errors(1, estimator="aep"))
    finding = tried(stated(breaks=[], controls=[BREAKS]), cells)
    assert finding.result == "pass"
    assert "; as a control: slope" in finding.detail
    assert "elsewhere" not in finding.detail
    assert tried(stated(breaks=[], controls=[BREAKS]), frame(*errors(2), *errors(2, estimator="aep"))).result == "fail"


def test_a_statement_that_was_not_tried_has_no_verdict() -> None:
    assert tried(stated(), frame(*errors(2))).result == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": []}, "needs a check below"),
        ({"breaks": []}, "where does it fail"),
        ({"under": "seed 0"}, "one needs the other"),
        ({"expected": "holds under"}, "needs a condition"),
        ({"expected": "maybe"}, "expected"),
    ],
)
def test_a_statement_that_cannot_be_tried_is_a_mistake(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stated(**change)


SUITE = """
[[statement]]
name = "the reference is itself"
source = "the definition"
expected = "holds"
[[statement.published]]
where = { estimator = "bptt", status = "any" }
metric = "cosine"
min = 0.999
[[statement.breaks]]
where = { estimator = "ep", status = "any" }
metric = "rel_error"
min = 1e-6
"""


def test_a_run_tells_its_statements_in_its_verdict_and_in_its_report(
    tmp_path: Path, write_suite: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(SUITE)
    out = ["--out", str(tmp_path / "results")]
    assert _code(["run", str(suite), "--device", "cpu", *out]) == 0
    assert _code(["check", "tiny", *out]) == 0
    told = capsys.readouterr().out
    assert "PASS  the reference is itself" in told
    assert "1 of 1 statements" in told
    assert _code(["report", "tiny", *out, "-o", str(tmp_path / "r.html")]) == 0
    assert "Statements of the literature, tried" in (tmp_path / "r.html").read_text()
    suite.write_text(suite.read_text().replace('expected = "holds"', 'expected = "does not hold"'))
    assert _code(["run", str(suite), "--device", "cpu", *out]) == 0
    assert _code(["check", "tiny", *out]) == 1
    assert "expected: does not hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min = 0.999", "min = 2.0", "statement[0].published[0] 'published': min = 2 is above 1"),
        ('estimator = "ep"', 'estimator = "epp"', "statement[0].breaks[0] 'breaks': where matches none"),
        ("expected", "expectd", "statement[0].expectd: unknown key. Did you mean 'expected'?"),
    ],
)
def test_a_mistake_in_a_statement_is_told_with_its_key(
    write_suite: Callable[..., Path], old: str, new: str, message: str
) -> None:
    from gradbench.commands.running import prepare

    with pytest.raises(UserError) as caught:
        prepare(write_suite(SUITE.replace(old, new, 1)))
    assert message in str(caught.value)
