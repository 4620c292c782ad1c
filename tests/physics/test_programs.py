"""Programs for a GPU, made without one: loops that are compiled can be traced, and kernels compile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from interpreted import SYSTEMS as FUSED
from interpreted import stack as fused
from live import LIVE, SYSTEMS
from torch import Tensor

from gradbench.dynamics.field import Step
from gradbench.dynamics.stack import Stack
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.engine.solving import solve
from gradbench.planning import registry
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import ClosedForms
from gradbench.vocabulary.status import Thresholds

HOPPER = ("cuda", 90, 32)
SIZES = {"AREA": 49, "CH": 1, "IMG": 28, "PATCH": 7, "M": 128}
INTEGERS = ("cells", "columns", "b", "length", "zero", "wide", "of_cell")
NUMBERS = {"well": "fp32", "scale": "fp32"} | dict.fromkeys(INTEGERS, "i32")
ENERGY, FORCE = {"ENERGY": True}, {"ENERGY": False}
STILL, PROJECTS = {"PROJECTS": False}, {"PROJECTS": True}
FREE, NUDGED = {"NUDGED": False, "BENDS": False}, {"NUDGED": True, "BENDS": False}
# as they are launched: the file of a kernel, its name, what it is compiled for, and its warps
PROGRAMS = {
    "free step": ("tokens", "_step_kernel", SIZES | FORCE | STILL | FREE, 4),
    "free step of an energy with a projection": ("tokens", "_step_kernel", SIZES | ENERGY | PROJECTS | FREE, 4),
    "nudged step of an energy": ("tokens", "_step_kernel", SIZES | ENERGY | STILL | NUDGED, 4),
    "nudged step": ("tokens", "_step_kernel", SIZES | FORCE | PROJECTS | NUDGED | {"BENDS": True}, 4),
    "energy": ("tokens", "_energy_kernel", SIZES | ENERGY, 4),
    "correction": ("tokens", "_bent_kernel", {}, 8),
    "product": ("tokens", "_product_kernel", SIZES | FORCE | STILL, 4),
    "product of an energy": ("tokens", "_product_kernel", SIZES | ENERGY | PROJECTS, 4),
    "projection back": ("tokens_back", "_project_back_kernel", SIZES | FORCE, 4),
    "projection of an energy back": ("tokens_back", "_project_back_kernel", SIZES | ENERGY, 4),
    "heads back": ("tokens_back", "_heads_back_kernel", {"M": 128} | FORCE | STILL, 4),
    "heads of an energy back": ("tokens_back", "_heads_back_kernel", {"M": 128} | ENERGY | PROJECTS, 8),
    "others back": ("tokens_back", "_others_back_kernel", SIZES | FORCE, 4),
    "others of an energy back": ("tokens_back", "_others_back_kernel", SIZES | ENERGY, 4),
    "free step of a toy": ("toys", "_step_kernel", FORCE | FREE, 4),
    "free step of a toy with an energy": ("toys", "_step_kernel", ENERGY | FREE, 4),
    "nudged step of a toy": ("toys", "_step_kernel", FORCE | NUDGED | {"BENDS": True}, 4),
    "nudged step of a toy with an energy": ("toys", "_step_kernel", ENERGY | NUDGED, 4),
    "correction of a toy": ("toys", "_bent_kernel", {}, 4),
    "product of a toy": ("toys", "_product_kernel", FORCE, 4),
    "product of a toy with an energy": ("toys", "_product_kernel", ENERGY, 4),
    "a toy back": ("toys", "_back_kernel", FORCE, 4),
    "a toy with an energy back": ("toys", "_back_kernel", ENERGY, 4),
}
ALIGNED = [["tt.divisibility", 16]]  # what a launch says of a pointer, and of a number that 16 divides


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_kernel_compiles_for_an_h100(name: str) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from gradbench.systems.kernels import tokens, tokens_back, toys
    from gradbench.systems.kernels.parts import OPTIONS

    file, kernel, constants, warps = PROGRAMS[name]
    function = getattr({"tokens": tokens, "tokens_back": tokens_back, "toys": toys}[file], kernel)
    kinds = {n: "constexpr" if n in constants else NUMBERS.get(n, "*fp32") for n in function.arg_names}
    places = {(function.arg_names.index(key),): value for key, value in constants.items()}
    aligned = [n for n, kind in kinds.items() if kind == "*fp32" or n == "length"]
    attributes = {(function.arg_names.index(n),): ALIGNED for n in aligned}
    source = triton.compiler.ASTSource(function, kinds, constexprs=places, attrs=attributes)
    made = triton.compile(source, target=GPUTarget(*HOPPER), options={"num_warps": warps, **OPTIONS})
    assert made.metadata.shared <= 227 * 1024  # bytes that a block of an H100 may have
    assert "wgmma" in made.asm["ptx"]  # float32 products in three passes of TF32, by its tensor cores
    assert "f32.tf32.tf32" in made.asm["ptx"]
    assert "atom." not in made.asm["ptx"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The names of the kernels that are compiled ahead, with what they are compiled for, and nothing is compiled."""
    pytest.importorskip("triton")
    from gradbench.systems.kernels import parts, tokens, tokens_back, toys

    seen: list[tuple[str, dict[str, Any]]] = []
    for file in (tokens, tokens_back, toys):
        monkeypatch.setattr(file, "launch", lambda kernel, *_, **options: seen.append((kernel.__name__, options)))
    monkeypatch.setattr(parts, "compile_side_by_side", lambda launches: launches())
    monkeypatch.setattr("gradbench.dynamics.stack._compiled", set())
    return seen


def test_programs_are_those_that_are_launched(launched: list[tuple[str, dict[str, Any]]]) -> None:
    from gradbench.systems.kernels.parts import OPTIONS

    for system in FUSED:
        fused(system).compile_kernels()
    for _, kernel, constants, warps in PROGRAMS.values():
        assert (kernel, {**constants, **OPTIONS, "num_warps": warps}) in launched


def test_two_packs_of_a_system_compile_its_kernels_once(launched: list[tuple[str, dict[str, Any]]]) -> None:
    field = fused("cet_real")
    field.compile_kernels()
    once = len(launched)
    launched.clear()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr("gradbench.dynamics.stack._compiled", set())
        list(threads.map(lambda _: field.compile_kernels(), range(4)))
    assert len(launched) == once


class Noted:
    """A kernel that notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def warmup(self, *arguments: object, grid: tuple[int, int], warps: int) -> None:
        self.done.append(f"compiled for {grid}, {warps}")

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        return lambda *arguments, warps: self.done.append(f"launched on {grid}, {warps}")


def test_a_kernel_is_compiled_ahead_and_not_launched() -> None:
    pytest.importorskip("triton")
    from gradbench.systems.kernels.parts import compile_side_by_side, launch

    kernel, where = Noted(), torch.zeros(1)

    def launches() -> None:
        launch(kernel, (3, 2), where, warps=4)

    compile_side_by_side(launches)
    launches()
    assert kernel.done == ["compiled for (3, 2), 4", "launched on (3, 2), 4"]


class Stuck:
    """The mode of Triton 3.6 after a kernel that did not compile: it stays active in its context."""

    active: ContextVar[bool] = ContextVar("active", default=False)

    def __init__(self, workers: object) -> None:
        pass

    def __enter__(self) -> None:
        assert not self.active.get(), "Another AsyncCompileMode is already active"
        self.active.set(True)

    def __exit__(self, *raised: object) -> None:
        pass


def test_kernels_that_do_not_compile_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("triton"), "AsyncCompileMode", Stuck)
    from gradbench.systems.kernels.parts import compile_side_by_side

    def wrong() -> None:
        raise ValueError("does not compile")

    for _ in range(2):
        with pytest.raises(ValueError, match="does not compile"):
            compile_side_by_side(wrong)


TRACED = [name for name in SYSTEMS if issubclass(kind := registry.known_systems()[name], ClosedForms) and kind.lifted]


@pytest.mark.parametrize("system", TRACED)
def test_every_loop_of_closed_forms_can_be_traced(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a run with the usual rules, as the engine `compiled` traces them."""
    traced: set[str] = set()

    def repeated(self: Stack, function: Step, *examples: Tensor, few: bool = False) -> Step:
        if not few:
            function(*(v.clone() for v in examples))  # constants are cached outside of a program, as `Captured` does it
            torch._dynamo.reset()  # a source line is compiled for a few systems only, unless `Captured` allows more
            torch.compile(function, fullgraph=True, dynamic=False, backend="eager")(*(v.clone() for v in examples))
            traced.add(function.__qualname__)
        return function

    monkeypatch.setattr(Stack, "repeated", repeated)
    grid = {"system": {"name": system, **LIVE.get(system, {})}, "estimator": ["bptt", "aep", "adjoint"], "seed": [0, 1]}
    grid |= {"damp": grid["system"].pop("damp", 1.0), "T1": 3, "T2": 2, "beta": 0.02, "batch": 2}
    problems = plan(parse({"name": "t", "about": "", "grid": [grid]}, "t")).problems
    with isolated():
        solve(problems, Stack.of([build(problem, "cpu") for problem in problems]), Thresholds())
    places = {name.split(".")[0] for name in traced}
    assert places == {"relax", "step_back", "_linear", "AdjointPhase", "NudgedPhase"}
