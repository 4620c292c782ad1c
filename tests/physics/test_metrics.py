"""Readings of a comparison: against textbook formulas, and where they are undefined."""

from __future__ import annotations

import math

import pytest
import torch

from gradbench.diagnostics.metrics import Comparison, Comparisons, Reference, compare, comparisons

pytestmark = pytest.mark.fast

REFERENCE = {"WQ": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 2.0, -1.0])}


def one(estimate: dict[str, torch.Tensor], live: float = 1e-8):
    return compare(estimate, REFERENCE, live)


def summary(c: Comparison, *names: str) -> list[float]:
    """Summaries over the parameters of one comparison, from the columns that it is read in."""
    return [getattr(c.among, name)[c.place] for name in names]


def test_an_estimate_equal_to_the_reference_is_perfect() -> None:
    c = one(REFERENCE)
    assert c.whole.cosine == pytest.approx(1, abs=1e-15)
    assert (c.whole.norm_ratio, c.whole.rel_error, c.whole.sign_agreement) == (1, 0, 1)


def test_scale_changes_the_norm_ratio_and_sign_the_cosine() -> None:
    c = one({n: -3 * g for n, g in REFERENCE.items()})
    assert c.whole.cosine == pytest.approx(-1, abs=1e-15)
    assert c.whole.norm_ratio == pytest.approx(3)
    assert c.whole.rel_error == pytest.approx(4)
    assert c.whole.sign_agreement == 0


def test_whole_and_parameters_agree_with_torch() -> None:
    e = {"WQ": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5, 1.0, 1.0])}
    c = one(e)
    flat = [torch.cat(list(g.values())).double() for g in (e, REFERENCE)]
    assert c.whole.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), rel=1e-14)
    assert c.whole.rel_error == pytest.approx(float((flat[0] - flat[1]).norm() / flat[1].norm()), rel=1e-14)
    for n, p in c.params.items():
        assert p.cosine == pytest.approx(float(torch.cosine_similarity(e[n].double(), REFERENCE[n].double(), dim=0)))
    assert c.cosine_min == min(p.cosine for p in c.params.values())
    assert c.worst == "WQ"
    assert summary(c, "cosine_attn") == [c.params["WQ"].cosine]
    assert summary(c, "cosine_mean") == [pytest.approx(sum(p.cosine for p in c.params.values()) / 2)]


def test_a_dead_parameter_has_no_cosine_and_a_reason() -> None:
    reference = REFERENCE | {"WK": torch.tensor([1e-12, 0.0])}
    c = compare(reference, reference, 1e-8)
    assert math.isnan(c.params["WK"].cosine)
    assert "floor" in c.params["WK"].reason
    assert c.cosine_min == pytest.approx(1)


def test_zero_and_broken_gradients_are_undefined_not_perfect() -> None:
    zero = {n: 0 * g for n, g in REFERENCE.items()}
    assert one(zero).whole.reason == "the estimate is zero"
    assert one(zero).whole.cosine == 0
    c = compare(REFERENCE, zero, 1e-8)
    assert "zero" in c.whole.reason
    assert math.isnan(c.whole.cosine)
    broken = REFERENCE | {"b": torch.tensor([math.nan, 0, 0])}
    assert "not finite" in one(broken).whole.reason
    assert not one(broken).params["WQ"].reason


def test_a_live_parameter_that_is_left_where_it_is_has_cosine_0_and_counts() -> None:
    c = one({"WQ": torch.zeros(2), "b": REFERENCE["b"]})
    assert (c.params["WQ"].cosine, c.params["WQ"].reason) == (0, "the estimate is zero")
    assert (c.cosine_min, c.worst) == (0, "WQ")
    assert summary(c, "cosine_mean", "cosine_attn") == [pytest.approx(0.5), 0]
    assert summary(c, "params_live", "params_zero", "params_undefined") == [2, 1, 0]


def test_a_zero_estimate_of_a_dead_parameter_is_undefined_and_one_that_is_not_finite_too() -> None:
    reference = REFERENCE | {"dead": torch.zeros(2), "WK": torch.ones(2)}
    c = compare({n: 0 * g for n, g in reference.items()} | {"WK": torch.tensor([math.inf, 0])}, reference, 1e-8)
    assert math.isnan(c.params["dead"].cosine)
    assert math.isnan(c.params["WK"].cosine)
    assert summary(c, "params_live", "params_zero", "params_undefined") == [3, 2, 2]


def test_tiny_gradients_keep_their_cosine() -> None:
    """Where a clamped cosine reads 0: a direction is a direction at any norm."""
    tiny = {n: 1e-30 * g.double() for n, g in REFERENCE.items()}
    c = compare(tiny, tiny, 1e-12)
    assert c.whole.cosine == pytest.approx(1)


def test_signs_below_the_noise_floor_do_not_count() -> None:
    reference = {"a": torch.tensor([1.0, 1e-9])}
    c = compare({"a": torch.tensor([1.0, -1e-9])}, reference, 1e-8)
    assert c.whole.sign_agreement == 1


def test_stacked_cells_are_compared_as_each_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    stacks = [{n: torch.randn((4, *g.shape), generator=rng) for n, g in REFERENCE.items()} for _ in range(2)]
    estimates, references = stacks
    sums = Reference(references, lead=1).tally(estimates)
    for c, together in enumerate(comparisons(sums.numpy(), list(REFERENCE), 1e-8)):
        alone = compare(*({n: g[c] for n, g in stack.items()} for stack in stacks), 1e-8)
        assert together.whole.cosine == pytest.approx(alone.whole.cosine, rel=1e-14)
        assert together.params["b"].rel_error == pytest.approx(alone.params["b"].rel_error, rel=1e-14)


def test_columns_say_of_many_comparisons_what_each_one_says_of_itself() -> None:
    estimates = [
        {"WQ": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5, 1.0, 1.0])},
        {"WQ": torch.zeros(2), "b": REFERENCE["b"]},
        {"WQ": REFERENCE["WQ"], "b": torch.tensor([math.nan, 0, 0])},
        {n: 1.01 * g for n, g in REFERENCE.items()},
        {"WQ": REFERENCE["WQ"], "b": 1.2 * REFERENCE["b"]},
    ]
    alone = [one(e) for e in estimates]
    among = Comparisons.of(alone)
    assert list(map(repr, among)) == list(map(repr, alone))
    for name in ("cosine_mean", "cosine_min", "worst", "params_zero"):
        assert list(map(repr, getattr(among, name))) == [repr(v) for c in alone for v in summary(c, name)]
    assert [c.wanting(0.1) for c in alone] == among.wanting(0.1) == ["", "", "", None, "b"]
