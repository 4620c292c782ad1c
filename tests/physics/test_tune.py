"""The cheapest setting that reaches a wanted cosine."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gradbench import measure
from gradbench.commands.tuning import Point, tune
from gradbench.errors import UserError

TOY = "toy_noncons drive_std=1.0 N=3 D=8 heads=2"
SMALL: dict[str, Any] = {
    "damp": 3.0,
    "dtype": "float64",
    "batch": 2,
    "seed": [0, 1],
    "T1": [2, 25, 100],
    "T2": [1, 4, 16, 40],
    "beta": [1e-4, 0.01, 1.0],
}


def test_the_chosen_setting_is_the_cheapest_of_those_that_reach_it() -> None:
    found = tune(TOY, "aep", 0.999, SMALL)
    assert found.unsettled == (2,)
    chosen = found.chosen
    assert chosen is not None
    assert chosen.cosine_min >= 0.999
    assert chosen in found.front
    assert all(p.cosine_min < 0.999 for p in found.front if p.evaluations < chosen.evaluations)
    assert chosen.evaluations == chosen.T1 + 3 * 2 * chosen.T2  # type: ignore[operator]
    options = {"drive_std": 1.0, "N": 3, "D": 8, "heads": 2}
    again = [
        measure(
            "toy_noncons",
            "aep",
            T1=chosen.T1,
            T2=chosen.T2,
            beta=chosen.beta,
            seed=seed,
            damp=3.0,
            dtype="float64",
            batch=2,
            system_options=options,
        )
        for seed in (0, 1)
    ]
    assert min(m.row["cosine_min"] for m in again) == pytest.approx(chosen.cosine_min, abs=1e-9)


def test_the_front_rises_with_cost() -> None:
    front = tune(TOY, "adjoint", 0.9, SMALL).front
    assert len(front) >= 3
    for cheaper, dearer in itertools.pairwise(front):
        assert cheaper.evaluations < dearer.evaluations
        assert cheaper.cosine_min < dearer.cosine_min


def test_a_biased_rule_reaches_no_high_cosine_and_says_what_it_does() -> None:
    found = tune(TOY, "ep", 0.99999, SMALL)
    assert found.chosen is None
    assert 0 < found.front[-1].cosine_min < 0.99999


def test_the_way_is_told_of_both_passes() -> None:
    told: list[tuple[int, int]] = []
    tune(TOY, "aep", 0.9, SMALL, watch=lambda progress: told.append((progress.done, progress.cells)))
    ends = [i for i, (done, cells) in enumerate(told) if done == cells]
    assert [done for done, _ in (told[0], told[ends[0] + 1])] == [0, 0]
    assert len(ends) == 2
    assert told[ends[0]][1] < told[ends[1]][1]


def test_a_system_that_never_settles_has_no_setting() -> None:
    found = tune(TOY, "aep", 0.9, SMALL | {"T1": [1, 2]})
    assert (found.chosen, found.front, found.unsettled) == (None, (), (1, 2))


def test_what_is_wanted_is_099_where_nothing_is_said_and_one_value_may_stand_in_a_list() -> None:
    plain, listed = tune(TOY, "aep", overrides=SMALL), tune(TOY, "aep", 0.99, SMALL | {"damp": [3.0]})
    assert plain == listed
    assert plain.chosen is not None
    assert plain.chosen.cosine_min >= 0.99


def test_a_rule_without_nudge_has_none() -> None:
    point = tune(TOY, "adjoint", 0.9, SMALL).chosen
    assert isinstance(point, Point)
    assert point.beta is None


@pytest.mark.parametrize(
    ("system", "rule", "want", "said"),
    [
        ("toy_nonconz", "aep", 0.9, "toy_noncons"),
        ("toy_cons drive_std", "aep", 0.9, "'toy_cons drive_std': option 'drive_std': expected KEY=VALUE"),
        ("toy_cons", "aep clip=none clip=batch", 0.9, "option 'clip=batch': clip is set twice"),
        ("toy_cons", "aep clip=sometimes", 0.9, "clip"),
        ("toy_cons", "aep", 1.5, "is not between 0 and 1"),
        ("toy_noncons", "ep readout=energy_contrast", 0.9, "needs an energy"),
    ],
)
def test_mistakes_name_what_is_wrong(system: str, rule: str, want: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tune(system, rule, want, {"T1": [2], "T2": [1], "beta": [0.1], "seed": [0]} if "energy" not in rule else SMALL)
