"""The series of a figure against calculations of their own."""

from __future__ import annotations

import pytest
import torch
from live import jacobian, live_field

from gradbench.diagnostics import series
from gradbench.diagnostics.ladder import estimate
from gradbench.diagnostics.metrics import compare
from gradbench.diagnostics.series import depths, eigenvalues, updates
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.adjoint import Adjoint
from gradbench.estimators.aep import Aep
from gradbench.estimators.bptt import Bptt
from gradbench.estimators.control import Control
from gradbench.estimators.ep import Ep
from gradbench.estimators.tbptt import Tbptt


def spectra(field: Field, s: torch.Tensor) -> list[torch.Tensor]:
    """Eigenvalues of J_G of every sample, by autograd, one example at a time."""
    found = []
    for i in range(len(s)):
        x = {n: v[i : i + 1] if n in field.system.per_example else v for n, v in field.x.items()}
        step = Field(field.system, field.theta, x, field.knobs).step
        J = jacobian(lambda s, step=step: step(s[None])[0], s[i])
        found.append(torch.linalg.eigvals(J))
    return found


def test_eigenvalues_are_all_of_the_worst_sample_or_its_ritz_values(monkeypatch: pytest.MonkeyPatch) -> None:
    field = live_field("toy_noncons", batch=3)
    free = relax(field, (200,))
    dense = spectra(field, free.ends[0])
    worst = max(range(3), key=lambda i: float(dense[i].abs().max()))
    found = eigenvalues(free, 0)
    assert (found.whole, found.sample) == (True, worst)
    order = torch.sort(found.values.abs()).values
    torch.testing.assert_close(order, torch.sort(dense[worst].abs()).values, rtol=1e-8, atol=1e-12)
    monkeypatch.setattr(series, "WIDEST", 0)
    wide = live_field("cet_real")
    free = relax(wide, (200,))
    seen = eigenvalues(free, 0)
    assert not seen.whole
    modulus = float(spectra(wide, free.ends[0])[seen.sample].abs().max())
    assert float(seen.values.abs().max()) == pytest.approx(modulus, rel=1e-6)


def test_depths_are_the_cosines_of_the_rules_at_each_depth() -> None:
    free = relax(live_field("toy_noncons", eps=0.05), (150,))
    found, reference = depths(free, 12, estimate(Bptt(), free, None, None)), estimate(Bptt(), free, None, None)
    rules = {"tbptt": (Tbptt(), None), "adjoint": (Adjoint(), None), "ep": (Ep(), 1e-4), "aep": (Aep(), 1e-4)}
    assert set(found) == set(rules)
    for name, (rule, beta) in rules.items():
        assert 12 in found[name]
        for T2 in (1, 12, max(found[name])):
            cosine = compare(estimate(rule, free, T2, beta), reference, 0.0).whole.cosine
            assert found[name][T2] == pytest.approx(cosine, abs=1e-6), (name, T2)
    assert found["ep"][12] < found["aep"][12] - 1e-3


def test_updates_are_steps_of_the_estimate_and_agree_where_the_dynamics_are_conservative() -> None:
    free = relax(live_field("toy_cons", eps=0.05), (400,))
    reference = estimate(Bptt(), free, None, None)
    found = updates(free, Ep(), 30, 1e-3)
    assert 0 < len(found) <= 3
    for name, update in found.items():
        unit = reference[name].abs().max()
        assert update.estimate.shape == (30,)
        direct = free.cost_grads[name][0][update.entry]
        for depth in (1, 30):
            for moves, rule, beta in ((update.estimate, Ep(), 1e-3), (update.reference, Tbptt(), None)):
                whole = estimate(rule, free, depth, beta)[name][update.entry]
                assert float(moves[:depth].sum() * unit) == pytest.approx(float(whole - direct), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(update.estimate, update.reference, rtol=1e-4, atol=1e-5)  # Ernoult et al. 2019


def test_updates_of_naive_ep_leave_those_of_bptt_where_the_dynamics_are_not() -> None:
    free = relax(live_field("toy_noncons", eps=0.05), (400,))
    gaps = [
        max(float((u.estimate - u.reference).abs().max()) for u in updates(free, rule, 30, 1e-3).values())
        for rule in (Ep(), Aep())
    ]
    assert gaps[0] > 1e-2
    assert gaps[1] < 1e-4


def test_without_steps_there_are_no_updates() -> None:
    assert updates(relax(live_field("residual_mlp"), (0,)), Ep(), 5, 0.1) == {}
    for rule in (Bptt(), Control("shuffled")):
        assert updates(relax(live_field("toy_cons"), (20,)), rule, 5, None) == {}
