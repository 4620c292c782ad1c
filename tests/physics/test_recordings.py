"""What a recording reads besides its arguments: told from the function, and replaced by other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gradbench.dynamics import recordings
from gradbench.dynamics.field import Field
from gradbench.dynamics.recordings import UnsharedError, parted, with_tensors
from gradbench.dynamics.stack import Stack
from gradbench.engine import packs
from gradbench.engine.precision import isolated
from gradbench.planning.plans import Plan, plan
from gradbench.planning.suites import parse

SMALL = {"D": 8, "heads": 2, "mem": 8}
SYSTEMS: list[dict[str, Any]] = [
    {"name": "cet_projected", **SMALL},
    {"name": "toy_noncons"},
    {"name": "residual_mlp", "d": 8, "L": 2},  # without closed forms
]
RULES = ["bptt", "ep", "aep", "adjoint", "dyadic_ep", "phantom", "rbp"]


def planned(system: dict[str, Any], *, seeds: tuple[int, ...]) -> Plan:
    grid = {"system": system, "estimator": RULES, "T1": 3, "T2": 2, "beta": 0.02, "batch": 2, "seed": list(seeds)}
    return plan(parse({"name": "again", "about": "", "grid": [grid]}, "again"))


def numbers(planned: Plan) -> list[str]:
    with isolated():
        outcomes = packs.measure_pack(planned.problems, "cpu", planned.thresholds, "batched")
    return [repr((o.cell, o.comparison, o.certificate)) for o in outcomes]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Structures of the loops of stacks, which here run as copies that read copies of their tensors."""
    structures: list[Any] = []

    def repeated(self: Field, function: Callable[..., Any], *examples: torch.Tensor) -> Callable[..., Any]:
        structure, tensors = parted(function)
        structures.append(structure)
        sources = [recordings._written_out(v).clone().expand(v.shape) for v in tensors]
        same = with_tensors(function, sources)

        def run(*state: torch.Tensor) -> Any:
            with recordings._Strangers([*sources, *state]) as strangers:
                result = same(*state)
            assert strangers.number == 0
            return result

        return run

    def frozen(self: Field, at: Callable[..., Any], s: torch.Tensor) -> Callable[..., Any]:
        if self.closed:
            return Field.frozen(self, at, s)
        linear = lambda: at(s)  # noqa: E731, as on CUDA
        linear.__module__ = Stack.__module__
        return linear

    monkeypatch.setattr(Stack, "repeated", repeated)
    monkeypatch.setattr(Stack, "frozen", frozen)
    return structures


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system["name"])
def test_a_copy_of_a_loop_reads_nothing_else_and_gives_the_same_numbers(
    system: dict[str, Any], copies: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = planned(system, seeds=(0, 1)), planned(system, seeds=(2, 3))
    copied = [numbers(one)]
    first = list(copies)
    copies.clear()
    copied.append(numbers(other))
    assert copies == first != []
    monkeypatch.undo()
    assert copied == [numbers(one), numbers(other)]


def test_loops_that_do_something_else_have_another_structure(copies: list[Any]) -> None:
    numbers(planned({"name": "cet_real", **SMALL}, seeds=(0, 1)))
    first = list(copies)
    for name, seeds in (("cet_energy", (0, 1)), ("cet_real", (0, 1, 2))):
        other = planned({"name": name, **SMALL}, seeds=seeds)
        copies.clear()
        numbers(other)
        assert not set(copies) & set(first)


def test_what_cannot_be_told_is_not_shared() -> None:
    class Unknown:
        pass

    unknown, v = Unknown(), torch.ones(2)

    def of_package() -> Any:
        return unknown

    of_package.__module__ = Stack.__module__
    for function in (of_package, lambda: v):  # code of a caller may read what its closure does not name
        with pytest.raises(UnsharedError):
            parted(function)
