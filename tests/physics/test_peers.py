"""The rules of deep equilibrium models against torchdeq, where it is installed, and against plain autograd."""

from __future__ import annotations

import pytest

pytest.importorskip("torchdeq")

import peers


def test_rules_of_deep_equilibrium_models_are_those_of_torchdeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "DEEP", 120)  # steps, of which each shrinks a perturbation to 0.7 at most
    gaps = peers.agreement(peers.Case.of("a small tanh layer", peers.TanhLayer, (4, 8), 12, 6))
    assert gaps["implicit"] <= 1e-8
    assert max(gaps[rule] for rule in ("jfb", "phantom", "bptt", "on the way")) <= 1e-12, gaps
