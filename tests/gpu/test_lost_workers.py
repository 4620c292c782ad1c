"""Worker processes on CUDA: a fault, also one that spoils the context of its process, costs its own rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gradbench as gb
from gradbench.commands import measuring

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("faulty_plugin")]
BAD = {
    1: "the worker process was ended by SIGSEGV, twice",
    3: "SystemExit: bye",
    8: "faulty: step raised ValueError: planted",
    11: "device-side assert triggered",
}


def test_a_spoiled_context_costs_the_cells_of_its_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.linspace(0.3, 0.69, 12).round(6).tolist()
    grids = [{"gain": 0.7, "fault": [0.0, *map(float, BAD)]}, {"gain": gains, "fault": 0.0}]
    asked = gb.suite([{"system": "faulty", "estimator": "aep", **grid} for grid in grids], name="faults")
    cells = gb.run(asked, out=tmp_path, device="cuda").cells
    told = dict(zip(cells["fault"], cells["reason"], strict=True))
    assert all(said in told[fault] for fault, said in BAD.items()), told
    assert (cells["status"] == np.where(cells["fault"] > 0, "error", "settled")).all()
    monkeypatch.setattr(measuring, "with_crew", lambda setup, planned: setup)
    healthy = gb.suite([{"system": "faulty", "estimator": "aep", "gain": [0.7, *gains]}], name="faults")
    here = gb.run(healthy, out=tmp_path / "here", device="cuda").cells
    there = cells[cells["fault"] == 0].reset_index(drop=True)
    assert there["gain"].tolist() == here["gain"].tolist()
    for column in ("cosine", "cosine_min", "rel_error", "residual", "rho"):
        np.testing.assert_allclose(there[column], here[column], rtol=1e-5, err_msg=column)
