"""What a recording reads besides its arguments: told from the function, and replaced by other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
RULES = ["bptt", "aep", "adjoint", "dyadic_ep", "rbp"]


class Strangers(TorchDispatchMode):
    """Counts reads of tensors that are neither given nor made inside."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive = list(known)  # a tensor that was freed would leave its place to another one
        self._known = {v.untyped_storage()._cdata for v in self._alive}
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for v in tree_leaves((args, kwargs)):
            if isinstance(v, Tensor) and v.numel() and v.untyped_storage()._cdata not in self._known:
                self.number += 1
        out = func(*args, **(kwargs or {}))
        new = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        self._alive += new
        self._known.update(v.untyped_storage()._cdata for v in new)
        return out


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

    def repeated(
        self: Field, function: Callable[..., Any], *examples: torch.Tensor, few: bool = False
    ) -> Callable[..., Any]:
        structure, tensors = parted(function)
        structures.append(structure)
        sources = [recordings._written_out(v).clone().expand(v.shape) for v in tensors]
        same = with_tensors(function, sources)

        def run(*state: torch.Tensor) -> Any:
            with Strangers([*sources, *state]) as strangers:
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
