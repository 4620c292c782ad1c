"""The plain form of every measurement, which benchmarks time, is an oracle: other code, the same numbers."""

from __future__ import annotations

import pytest
from live import LIVE, SYSTEMS
from script import measure

from gradbench.engine.draws import build
from gradbench.engine.solving import solve
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse


@pytest.mark.parametrize("name", [n for n in SYSTEMS if "T1" in registry.known_systems()[n].uses])
def test_the_script_and_the_engine_agree(name: str) -> None:
    options = {option: value for option, value in LIVE[name].items() if option != "damp"}
    grid = {"system": {"name": name, **options}, "estimator": ["bptt", "tbptt", "adjoint", "ep", "aep"]}
    grid |= {"damp": LIVE[name].get("damp", 1.0), "T1": 20, "T2": [3, 7], "beta": 0.05, "batch": 2, "dtype": "float64"}
    planned = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t"))
    (problem,) = planned.problems
    field = build(problem, "cpu")
    for outcome in solve([problem], field, planned.thresholds):
        assert outcome.comparison is not None
        plain = measure(outcome.cell, field, 1e-12)
        for param, ours in outcome.comparison.params.items():
            assert plain.params[param].norm_ratio == pytest.approx(ours.norm_ratio, rel=1e-9)
            assert plain.params[param].cosine == pytest.approx(ours.cosine, abs=1e-9, nan_ok=True)
