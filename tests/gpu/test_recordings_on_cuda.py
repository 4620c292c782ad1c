"""Recordings that serve again: a pack measured with recordings of an earlier one has the numbers of a first pack."""

from __future__ import annotations

from typing import Any

import pytest

from gradbench.dynamics import recordings
from gradbench.dynamics.capture import Captured
from gradbench.engine.packs import measure_pack
from gradbench.engine.precision import isolated
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse

pytestmark = pytest.mark.gpu
RULES = ["bptt", "tbptt", "ep", "aep", "adjoint", "dyadic_ep", "phantom", "rbp"]
SYSTEMS = ["toy_cons", "toy_noncons", "cet", "cet_energy", "cet_real", "cet_projected", "hopfield", "tanh_deq"]


def planned(system: str, seeds: list[int], damp: list[float]) -> Plan:
    grid = {"system": system, "estimator": RULES, "T1": [8, 12], "T2": [3, 5], "beta": [0.02, 0.1], "batch": 2}
    return plan(parse({"name": "again", "about": "", "grid": [grid | {"seed": seeds, "damp": damp}]}, "again"))


def rows(planned: Plan) -> list[dict[str, Any]]:
    with isolated():
        outcomes = measure_pack(planned.problems, "cuda", planned.thresholds)
    times = ("seconds", "peak_memory")
    return [{name: repr(value) for name, value in o.row().items() if name not in times} for o in outcomes]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_later_pack_has_the_numbers_of_a_first_one(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = planned(system, [0, 1], [0.5, 1.0]), planned(system, [2, 3], [0.7, 1.5])
    made = []
    init = Captured.__init__

    def counted(self: Captured, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Captured, "__init__", counted)
    expected = []
    for pack in (first, other):
        recordings.forget()
        expected.append(rows(pack))
    fresh = len(made) // 2
    recordings.forget()
    made.clear()
    assert [rows(first), rows(other), rows(first)] == [*expected, expected[0]]
    assert len(made) == fresh  # by the first pack alone
    recordings.forget()
