"""A remedy is held to its word: what it proposes is done, and the ladder climbed again."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from linear import line
from live import live_field
from test_ladder import climbed, narrow

from gradbench.diagnostics.ladder import NEGLIGIBLE, Cause, Relaxed
from gradbench.diagnostics.remedy import Case, remedy_for
from gradbench.dynamics.field import Field
from gradbench.estimators.base import Exact
from gradbench.planning import registry
from gradbench.vocabulary.status import Thresholds


def told(field: Field, rule: str, options: dict[str, str], T1: int, T2: int, beta: float | None) -> tuple[Case, str]:
    found = climbed(field, rule, options, T1, T2, beta)
    case = Case(Relaxed(field, T1), registry.estimator(rule, options), T2, beta, 0, Thresholds(), found)
    text = remedy_for(case)
    assert text is not None, found.sizes
    return case, text


def number(text: str, name: str) -> float:
    return float(re.search(rf"{name} (?:=|>=) (\S+)", text)[1].rstrip(";"))  # type: ignore[index]


def test_a_longer_free_phase_ends_the_transient() -> None:
    _, text = told(line(), "aep", {}, 3, 200, 1e-3)
    assert climbed(line(), "aep", {}, int(number(text, "T1")), 200, 1e-3).cause is Cause.NONE


@pytest.mark.parametrize(("rule", "options"), [("aep", {}), ("ep", {"reduction": "mean"}), ("adjoint", {})])
def test_the_least_T2_is_named_and_one_less_is_not_enough(rule: str, options: dict[str, str]) -> None:
    place, beta = {"skew": 0.0}, None if rule == "adjoint" else 1e-4
    _, text = told(line(**place), rule, options, 400, 3, beta)
    T2 = int(number(text, "T2"))
    left = [climbed(line(**place), rule, options, 400, depth, beta) for depth in (T2, T2 - 1)]
    credits = [found["adjoint, T2 terms"].credit - found["implicit"].credit for found in left]
    shares = [float(c.norm() / found["implicit"].credit.norm()) for c, found in zip(credits, left, strict=True)]
    assert shares[0] <= 1e-3 < shares[1]


def test_tbptt_goes_as_deep_as_it_must() -> None:
    _, text = told(line(), "tbptt", {}, 400, 3, None)
    assert climbed(line(), "tbptt", {}, 400, int(number(text, "T2")), None).cause is Cause.NONE


def test_a_rule_that_is_exact_at_any_fixed_point_takes_the_place_of_ep() -> None:
    _, text = told(line(skew=1.0), "ep", {}, 400, 200, 1e-3)
    name, _, more = text.partition(" ")
    assert more.startswith("in place of ep")
    assert registry.estimator(name).claim.exact is Exact.FIXED_POINT


@pytest.mark.parametrize("field", [line(curved=1.0), narrow(line(curved=1.0))], ids=["float64", "float32"])
def test_both_ends_of_the_range_of_beta_keep_the_error_small_and_beyond_it_does_not(field: Field) -> None:
    _, text = told(field, "aep", {}, 400, 200, 0.7)
    low, high = map(float, re.search(r"between (\S+) and (\S+) ", text).groups())  # type: ignore[union-attr]
    for beta in (low, high):
        assert climbed(field, "aep", {}, 400, 200, beta).whole.whole.rel_error <= 1.05 * NEGLIGIBLE
    assert climbed(field, "aep", {}, 400, 200, 4 * high).cause is Cause.NONLINEARITY
    if field.step_size.dtype == torch.float32:
        assert climbed(field, "aep", {}, 400, 200, low / 10).cause is Cause.PRECISION


def test_no_clip_and_the_projection_are_proposed_with_what_they_leave() -> None:
    _, text = told(line(skew=3.0), "aep", {"clip": "sample"}, 400, 200, 1e-3)
    assert text.startswith("clip = none")
    P = 0.1 * torch.ones(5, 5, dtype=torch.float64).tril()
    _, text = told(line(P=P), "adjoint", {"projection": "dropped"}, 400, 40, None)
    assert text.startswith("projection = kept")


def test_a_step_that_is_too_long_is_shortened_and_a_flow_that_is_unstable_is_damped() -> None:
    _, text = told(line(skew=12.0, at=1.0), "aep", {}, 20, 9, 1e-3)  # Re lambda < 0: the flow is stable
    eps = number(text, "eps")
    fixed = climbed(line(skew=12.0, at=1.0, eps=eps), "aep", {}, 400, 400, 1e-3)
    assert Cause.NO_FIXED_POINT not in fixed.sizes
    field = live_field("toy_noncons", damp=0.0)
    field = replace(field, theta=field.theta | {"WO": 3 * field.theta["WO"]})  # attention outruns the pull
    _, text = told(field, "aep", {}, 60, 60, 1e-3)
    damped = replace(field, knobs=field.knobs._replace(damp=field.knobs.damp + number(text, "damp")))
    assert climbed(damped, "aep", {}, 60, 60, 1e-3).cause is Cause.NONE
