"""What rules claim of themselves, tried: every rule of the registry, with every choice of every option."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, get_args, get_origin

import pytest
from live import SYSTEMS, live_field, whole_gap

from gradbench.dynamics.trajectory import Trajectory, relax
from gradbench.estimators.base import AbstractEstimator, Claim, Exact
from gradbench.estimators.ep import Ep
from gradbench.planning import registry
from gradbench.systems.base import Params

SETTLED, TRANSIENT = 600, 12  # free steps: to a fixed point, and far from one
DEEP, DEEPER = 300, 800  # steps of a second phase, and of one on a forward system, whose steps are short
SMALL = 1e-6  # nudge of rules that are exact as beta -> 0: a one-sided rule is then off by about as much


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
    (label, system)
    for label, rule in RULES.items()
    if rule.claim.exact is not None
    for system in (SYSTEMS if label == rule.name else QUICK)
]


@cache
def free(name: str, T1: int) -> Trajectory:
    field = live_field(name)
    return relax(field, (T1,) if "T1" in field.system.uses else (0,))


def estimate(rule: AbstractEstimator, free: Trajectory, beta: float, T2: int = DEEP) -> Params:
    betas = free.ends.new_tensor([beta] if "beta" in rule.uses else [])
    wanted = T2 if "T2" in rule.uses else None
    snapshots = rule.phase.run(free, () if wanted is None else (wanted,), betas)
    snapshot = next(s for s in snapshots if s.depth == wanted)
    return {name: g[0, 0] for name, g in rule.read(free, snapshot, betas).gradient.items()}


@cache
def reference(name: str, T1: int) -> Params:
    return estimate(registry.estimator("bptt"), free(name, T1), 0.0)


def depth(rule: AbstractEstimator, at: Trajectory) -> int:
    """Steps of a second phase that reach its end; a rule that descends a mean goes a b-th of the way a step."""
    return (DEEP if at.T1s[0] else DEEPER) * (at.ends.shape[-2] if getattr(rule, "reduction", "sum") == "mean" else 1)


def error(rule: AbstractEstimator, system: str, T1: int) -> float:
    at = free(system, T1)
    return whole_gap(estimate(rule, at, SMALL, depth(rule, at)), reference(system, T1))


def breach(rule: AbstractEstimator, system: str) -> str | None:
    """How a rule breaks its claim on a system, or None."""
    claim, cls = rule.claim, registry.known_systems()[system]
    if claim.exact is Exact.ALWAYS and not error(rule, system, TRANSIENT) < 1e-12:
        return "not exact at a state that is still on its way"
    holds = claim.exact in (Exact.ALWAYS, Exact.FIXED_POINT) or (claim.exact is Exact.SYMMETRIC and cls.conservative)
    if holds and not (gap := error(rule, system, SETTLED)) < 1e-4:
        return f"off by {gap:.1e} at a fixed point"
    if claim.exact is Exact.SYMMETRIC and not cls.conservative and not (gap := error(rule, system, SETTLED)) > 1e-3:
        return f"off by {gap:.1e} only where the Jacobian is not symmetric: it could claim more"
    return None


@pytest.mark.parametrize(("label", "system"), CLAIMING)
def test_a_rule_is_exact_where_it_claims_to_be(label: str, system: str) -> None:
    rule = RULES[label]
    if reason := rule.skip(registry.known_systems()[system]):
        pytest.skip(reason)
    assert breach(rule, system) is None


@pytest.mark.parametrize("label", [label for label, rule in RULES.items() if rule.claim.order is not None])
def test_the_error_falls_with_beta_at_the_order_that_a_rule_claims(label: str) -> None:
    """On the toy at which the rule is exact, so that a finite nudge is all that is wrong."""
    rule = RULES[label]
    toy = "toy_cons" if rule.claim.exact is Exact.SYMMETRIC else "toy_noncons"
    at, exact, betas = free(toy, SETTLED), reference(toy, SETTLED), (0.1, 0.03, 0.01)
    errors = [whole_gap(estimate(rule, at, beta, depth(rule, at)), exact) for beta in betas]
    slope = math.log(errors[0] / errors[-1]) / math.log(betas[0] / betas[-1])
    assert slope == pytest.approx(rule.claim.order, abs=0.15), errors


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
    assert breach(Liar(claimed=claim), system) is not None


def test_a_claim_too_few_is_caught() -> None:
    class Modest(type(registry.estimator("adjoint"))):  # type: ignore[misc]
        claim = Claim(Exact.SYMMETRIC)

    assert "could claim more" in str(breach(Modest(), "toy_noncons"))


def test_every_choice_of_every_option_is_tried() -> None:
    options = sum(len(fields(cls)) for cls in registry.known_estimators().values())
    assert len(RULES) >= len(registry.known_estimators()) + options
