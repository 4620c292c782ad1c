"""Programs for a GPU, made without one: loops that are compiled can be traced, and kernels compile."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest
import torch
from kernel_checks import SYSTEMS as FUSED
from kernel_checks import stack as fused
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
from gradbench.systems.base import ClosedForms, Program
from gradbench.systems.kernels import programs
from gradbench.vocabulary.status import Thresholds


@pytest.mark.parametrize("system", FUSED)
def test_every_kernel_compiles_for_an_h100_and_adds_nothing_up_by_atomic_operations(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = fused(system).kernels
    assert kernels is not None
    made = programs.cubins(kernels.program, "sm_90")
    assert all(content.startswith(b"\x7fELF") for content in made)
    for kernel in kernels.program.kernels:
        assert "atomic" not in programs.source(kernels.program, kernel)


SMALL = Program("toys", ("jacobian",), (("D", 32), ("ENERGY", 1)))


def test_a_compiled_kernel_is_stored_and_read_where_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (first,) = programs.cubins(SMALL, "sm_90")
    (path,) = (tmp_path / "gradbench" / "kernels").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(programs, "compiled", lambda *_: pytest.fail("compiled again"))
        assert programs.cubins(SMALL, "sm_90") == [first]
    for harmed in (path.read_bytes()[:-1], b"", b"x" + path.read_bytes()[1:]):
        path.write_bytes(harmed)
        assert programs.cubins(SMALL, "sm_90") == [first]
        assert path.read_bytes()[32:] == first
    (other,) = programs.cubins(SMALL._replace(constants=(("D", 32), ("ENERGY", 0))), "sm_90")
    assert other != first
    assert not [entry for entry in path.parent.iterdir() if entry.suffix != ".cubin"]


@pytest.mark.parametrize("changed", ["source", "nvrtc_version"])
def test_another_source_and_another_compiler_make_another_kernel(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled: list[str] = []
    monkeypatch.setattr(programs, "compiled", lambda program, architecture, kernel: compiled.append(kernel) or b"made")
    two = SMALL._replace(kernels=("jacobian", "step"))
    for _ in range(2):
        programs.cubins(two, "sm_90")
    assert sorted(compiled) == ["jacobian", "step"]
    monkeypatch.setattr(programs, changed, lambda *_: "another")
    programs.cubins(two._replace(kernels=("jacobian",)), "sm_90")
    assert len(compiled) == 3


def test_kernels_compile_where_nothing_can_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs.cubins(SMALL, "sm_90")[0].startswith(b"\x7fELF")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert programs.cubins(SMALL, "sm_90")[0].startswith(b"\x7fELF")


def test_what_does_not_compile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"toys_jacobian.cu does not compile: (.|\n)*ENERGY(.|\n)*[^\0\n]$"):
        programs.cubins(SMALL._replace(constants=(("D", 32),)), "sm_90")


COUNTED = """
#define ROLLED
#define WARPS 4
static int min(int a, int b) { return a < b ? a : b; }
struct { unsigned x; } gridDim, blockIdx, threadIdx;
%s
extern "C" void count(int* visits, int rows, int b, int blocks) {
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < 32 * WARPS; threadIdx.x += 32) {
            FOR_EVERY_EXAMPLE(rows, b) visits[row * b + e]++;
        }
}
"""


def test_every_example_is_taken_once(tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    loop = re.search(r"#define FOR_EVERY_EXAMPLE(.*\\\n)+.*", (programs.FOLDER / "warp.cuh").read_text())
    assert loop is not None
    path = str(tmp_path / "count.so")
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path]
    subprocess.run(command, input=COUNTED % loop[0], text=True, check=True)
    count = ctypes.CDLL(path).count
    for rows, b, blocks in ((1, 1, 1), (3, 5, 2), (2, 64, 32), (36, 64, 264), (7, 9, 1), (5, 3, 264)):
        visits = (ctypes.c_int * (rows * b))()
        count(visits, rows, b, blocks)
        assert list(visits) == [1] * (rows * b)


def test_two_packs_of_a_system_compile_its_kernels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Program] = []

    def load(program: Program, device: torch.device) -> programs.Loaded:
        loads.append(program)
        sleep(0.05)
        return programs.Loaded({}, None)

    monkeypatch.setattr(programs, "_load", load)
    monkeypatch.setattr(programs, "_loaded", {})
    field = fused("cet_real")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: field.compile_kernels(), range(8)))
    assert len(loads) == 1


def test_a_kernel_takes_no_tensor_that_it_cannot_read() -> None:
    pytest.importorskip("cuda.bindings")
    s = torch.zeros(2, 4)
    for wrong in (s.mT, s.double(), s.flatten()[1:], s.to("meta")):
        with pytest.raises(ValueError, match="jacobian takes contiguous tensors of float32 that are aligned"):
            programs.Launch(SMALL, "jacobian", 1, s, wrong)


def test_a_prepared_kernel_takes_no_other_tensor_that_it_cannot_read() -> None:
    s = torch.zeros(4, 4)
    values = programs.passed("step", (s, s, 1))
    out = torch.ones(4, 4)
    programs.replace("step", values, (s, s, 1), (s, out))
    assert [value.value for value in values] == [s.data_ptr(), out.data_ptr(), 1]
    for wrong in (s.double(), out.mT, s[:2]):
        with pytest.raises(ValueError, match="step takes"):
            programs.replace("step", values, (s, s, 1), (s, wrong))
    with pytest.raises(ValueError, match="step takes another tensor only of the shape"):
        programs.replace("step", values, (s, s, 1), (s, out, out))


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
    assert places == {"Field", "step_back", "_linear", "AdjointPhase", "NudgedPhase"}
