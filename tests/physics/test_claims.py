"""What rules claim of themselves, tried: every rule of the registry, with every choice of every option."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Literal, get_args, get_origin

import pytest
from live import SYSTEMS, live_field

from gradbench.conformance.findings import Finding, all_tried
from gradbench.conformance.rule_checks import Place, claim_checks, order
from gradbench.estimators.base import AbstractEstimator, Claim, Exact
from gradbench.estimators.ep import Ep
from gradbench.planning import registry

SETTLED = 600  # free steps to a fixed point
DEEP, DEEPER = 300, 800  # steps of a second phase, and of one on a forward system, whose steps are short


def variants() -> Iterator[AbstractEstimator]:
    """Every rule with its defaults, and with every other choice of each of its options."""
    for cls in registry.known_estimators().values():
        yield cls()
        hints = typing.get_type_hints(cls)
        for option in fields(cls):
            if get_origin(hints[option.name]) is Literal:
                others = [choice for choice in get_args(hints[option.name]) if choice != option.default]
                yield from (cls(**{option.name: choice}) for choice in others)


RULES = {registry.label(rule.name, registry.options(rule), "estimator"): rule for rule in variants()}
# rules as they come on every system, their variants where a second phase takes a fraction of a second
QUICK = ("toy_cons", "toy_noncons", "residual_mlp")
CLAIMING = [
    # a second phase of a forward system has many short steps: variants take a second or more each
    pytest.param(label, system, marks=[pytest.mark.long] * (system == "residual_mlp" and label != rule.name))
    for label, rule in RULES.items()
    if rule.claim.exact is not None
    for system in (SYSTEMS if label == rule.name else QUICK)
]


@cache
def place(name: str) -> Place:
    field = live_field(name)
    return Place(name, field, SETTLED, DEEP if "T1" in field.system.uses else DEEPER)


def breaches(rule: AbstractEstimator, system: str) -> list[Finding]:
    """How a rule breaks its claim on a system: it claims too much, or less than it can."""
    findings = all_tried(claim_checks(rule, place(system)))
    return [finding for finding in findings if finding.failed or "could claim more" in finding.advice]


@pytest.mark.parametrize(("label", "system"), CLAIMING)
def test_a_rule_is_exact_where_it_claims_to_be(label: str, system: str) -> None:
    rule = RULES[label]
    if reason := rule.skip(registry.known_systems()[system]):
        pytest.skip(reason)
    assert breaches(rule, system) == []


@pytest.mark.parametrize("label", [label for label, rule in RULES.items() if rule.claim.order is not None])
def test_the_error_falls_with_beta_at_the_order_that_a_rule_claims(label: str) -> None:
    (finding,) = all_tried([("order", partial(order, RULES[label], [place("toy_cons"), place("toy_noncons")]))])
    assert finding.result == "pass", finding


@pytest.mark.parametrize("label", RULES)
def test_a_rule_is_skipped_for_want_of_an_energy_exactly_where_it_says_so(label: str) -> None:
    rule = RULES[label]
    for name, system in registry.known_systems().items():
        needs = f"{rule.claim.energy_for} needs an energy, which {name} has not"
        expected = bool(rule.claim.energy_for) and not system.conservative
        assert (rule.skip(system) == needs) is expected


def test_a_rule_that_declares_nothing_claims_nothing() -> None:
    class Silent(Ep):  # type: ignore[misc]
        claim = AbstractEstimator.claim

    assert Silent().claim == Claim()
    assert Silent().claim.prose(Silent.uses) == "never"
    assert Silent().skip(registry.known_systems()["cet_real"]) is None


@dataclass(frozen=True)
class Liar(Ep):  # type: ignore[misc]
    """Naive EP that claims what it is not."""

    claimed: Claim | None = None

    @property
    def claim(self) -> Claim:
        return self.claimed or Claim()


@pytest.mark.parametrize(
    ("claim", "system"),
    [
        (Claim(Exact.ALWAYS), "toy_cons"),
        (Claim(Exact.FIXED_POINT), "toy_noncons"),
        (Claim(Exact.FIXED_POINT), "cet_real"),
    ],
)
def test_a_claim_too_many_is_caught(claim: Claim, system: str) -> None:
    assert breaches(Liar(claimed=claim), system)


def test_a_claim_too_few_is_caught() -> None:
    class Modest(type(registry.estimator("adjoint"))):  # type: ignore[misc]
        claim = Claim(Exact.SYMMETRIC)

    assert breaches(Modest(), "toy_noncons")


def test_every_choice_of_every_option_is_tried() -> None:
    options = sum(len(fields(cls)) for cls in registry.known_estimators().values())
    assert len(RULES) >= len(registry.known_estimators()) + options
