"""The script that gradbench is timed against stays as it is, and measures what gradbench measures."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch

from gradbench.dynamics.stack import Stack
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.engine.solving import solve
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

PERF = Path(__file__).parent / "perf"
sys.path.insert(0, str(PERF))
from expert import Expert  # noqa: E402

DIGEST = "602f9698ba2c5bee580f99dadd6a3d8331b13cb625ef4f82f80d9233d0308f0e"


def test_the_script_is_frozen() -> None:
    assert hashlib.sha256((PERF / "expert.py").read_bytes()).hexdigest() == DIGEST


@pytest.mark.fast
def test_the_script_measures_what_gradbench_measures() -> None:
    system = {"name": "cet_real", "D": 8, "dh": 4, "heads": 2, "mem": 6, "benc_std": 0.2, "bpos_std": 0.2}
    grid = {"system": system, "estimator": ["bptt", "aep"], "s": [0.3, 0.9], "damp": [0.5, 1.0], "T1": 40, "T2": 5}
    suite = {"name": "x", "about": "", "grid": [grid | {"batch": 3, "dtype": "float64", "beta": 0.02}]}
    planned = plan(parse(suite, "x"))
    with isolated():
        fields = [build(problem, "cpu") for problem in planned.problems]
        stack = Stack.of(fields)
        knobs = stack.knobs.sigma, stack.knobs.damp, stack.knobs.eps
        bptt, aep = Expert(stack.theta, stack.x, knobs, 7).gradients(40, 5, 0.02)
        for c, (problem, field) in enumerate(zip(planned.problems, fields, strict=True)):
            for outcome in solve([problem], field, planned.thresholds):
                script = bptt if outcome.cell.estimator == "bptt" else aep
                assert outcome.estimate is not None
                for name, g in outcome.estimate.items():
                    torch.testing.assert_close(script[name][c].reshape(g.shape), g, rtol=1e-10, atol=1e-12)
