"""Loops over functions of a caller on CUDA: recorded where a trial agrees, plain elsewhere, and the row says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from written import WRITTEN, rate_network

import gradbench as gb
from gradbench.dynamics.capture import agreeing


@pytest.mark.parametrize("rule", ["bptt", "adjoint", "aep"])
@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.__name__)
def test_a_recorded_system_reads_what_it_reads_on_a_cpu(written: Callable[[], dict[str, Any]], rule: str) -> None:
    system = gb.system(name="mine", **written())
    point = {"T1": 30, "T2": 8, "beta": 0.01, "dtype": "float64"}
    here, there = (gb.measure(system, rule, device=device, **point) for device in ("cuda", "cpu"))
    assert here.row["recorded"] == 1.0
    assert "recorded" not in there.row
    assert here.status == there.status
    for name, g in there.estimate.items():
        torch.testing.assert_close(here.estimate[name].cpu(), g, rtol=1e-7, atol=1e-10 * float(g.abs().max()))
        torch.testing.assert_close(
            here.reference[name].cpu(), there.reference[name], rtol=1e-8, atol=1e-10 * float(g.abs().max())
        )


def test_a_system_that_waits_for_the_device_runs_plainly_and_reads_the_same() -> None:
    parts = rate_network()
    plain = parts["force"]

    def waiting(net: Any, x: Any, z: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = plain(net, x, z)
        return moved if float(moved.detach().abs().amax()) < 1e6 else 0 * moved

    systems = [gb.system(name=name, **parts | {"force": f}) for name, f in (("plain", plain), ("waiting", waiting))]
    rows = [gb.measure(s, "aep", T1=40, T2=8, beta=0.01, dtype="float64", device="cuda").row for s in systems]
    assert [row["recorded"] for row in rows] == [1.0, 0.0]
    assert rows[1]["cosine"] == pytest.approx(rows[0]["cosine"], rel=1e-9)
    assert rows[1]["rel_error"] == pytest.approx(rows[0]["rel_error"], rel=1e-6)


def test_a_stack_of_a_suite_is_recorded_too(tmp_path: Any) -> None:
    system = gb.system(name="mine", **rate_network())
    asked = gb.suite({"system": system, "estimator": ["bptt", "adjoint"], "T1": 30, "T2": 8, "eps": [0.1, 0.2]})
    cells = gb.run(asked, out=tmp_path, device="cuda").cells
    assert set(cells["status"]) <= {"settled", "unsettled"}
    assert set(cells["recorded"]) == {1.0}


def test_a_recording_that_keeps_a_number_is_noticed() -> None:
    kept: list[float] = []

    def keeping(v: torch.Tensor) -> tuple[torch.Tensor]:
        if not kept:
            kept.append(float(v.sum()))
        return (v * kept[0] if len(kept) < 2 else v,)

    def changing(v: torch.Tensor) -> tuple[torch.Tensor]:
        kept.append(1.0)
        return (v * len(kept),)

    v = torch.ones(3, device="cuda")
    assert agreeing(lambda v: (2 * v,), v) is not None
    assert agreeing(changing, v) is None
    assert agreeing(lambda v: (v * float(v.sum()),), v) is None
    torch.testing.assert_close((v + 1).cpu(), torch.full((3,), 2.0))
