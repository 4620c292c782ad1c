"""Kernels against their derivatives in float64, interpreted on a CPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, final

import pytest
import torch
from interpreted import ENERGIES, SYSTEMS, printed_by, stack
from torch import Tensor

from gradbench.dynamics.stack import Fused
from gradbench.engine import packs
from gradbench.engine.device import makes_kernels
from gradbench.errors import UserError
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import Data, Params
from gradbench.systems.cet_driven import AbstractDrivenCet
from gradbench.vocabulary.coordinates import Knobs

pytest.importorskip("triton")
BACK = ("back inside of NaN", "guards of back", "back beside NaN")
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    """What was seen of every system, in a process that interprets kernels."""
    return printed_by("interpreted.py")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_by_a_kernel_is_as_exact_as_one_without(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    assert seen["free"] < 1.5 * seen["free plainly"]
    assert seen["nudged"] < 1.5 * seen["nudged plainly"]
    assert seen["one example"] < 2e-7
    assert seen.get("undriven", 0.0) < 2e-7


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_product_by_a_kernel_is_as_exact_as_one_without(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    assert seen["product"] < max(1e-7, 1.5 * seen["product plainly"])
    assert seen["product of more rows"] < 2e-7
    assert seen["product inside of NaN"]
    assert seen["product beside NaN"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_way_back_by_kernels_is_as_exact_as_one_without(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    assert set(seen["back"]) == {"a", "summed", *stack(system).theta}
    for name, error in seen["back"].items():
        assert error < max(2e-7, 1.5 * seen["back plainly"][name]), name
    assert {name: seen[name] for name in BACK} == dict.fromkeys(BACK, True)
    assert seen["phase"] < 1e-6


@pytest.mark.parametrize("system", ENERGIES)
def test_an_energy_by_a_kernel_is_as_exact_as_one_without(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    assert seen["energy"] < max(1e-7, 1.5 * seen["energy plainly"])
    assert seen["energy inside of NaN"]
    assert seen["energy beside NaN"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_kernels_touch_nothing_beyond_their_cells(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    assert {name: seen[name] for name in ("equal inside of NaN", "guards")} == dict.fromkeys(
        ("equal inside of NaN", "guards"), True
    )
    assert all(seen[f"beside {wild}"] for wild in (1e18, float("inf"), float("nan")))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_recording_of_a_kernel_serves_the_next_pack(system: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[system]["same structure"]
    for name in ("serves again", "product reads less", "product serves again", "back serves again", "stacks differ"):
        assert told[system][name], name


@pytest.mark.fast
def test_other_sizes_and_numbers_take_the_path_without_kernels() -> None:
    assert stack("cet_real").kernels is not None
    for field in (stack("cet_real", D=32, dh=8), stack("cet_real", mem=100), stack("cet_real").wide):
        assert isinstance(field, Fused)
        assert field.kernels is None
        assert field.packed == {}
        s = field.init_state()
        assert field.nudged_step(s[None], s.new_zeros(1, 2), field.step_size, asymmetric=True) is None
        assert field.step(s).isfinite().all()


@pytest.mark.fast
def test_the_engine_of_kernels_needs_a_gpu_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="engine = 'fused' needs a CUDA device"):
        packs.resolved("fused", "cpu", ())
    assert packs.resolved("fused", "cuda", ()) == "fused"
    for found in ("gcc", "clang"):
        monkeypatch.setattr("shutil.which", lambda name, found=found: name if name == found else None)
        assert packs.resolved("fused", "cuda", ()) == "fused"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert packs.resolved("fused", "cuda", (), triton=True) == "fused"  # the workers of a cluster have it
    for there in (None, False):
        with pytest.raises(UserError, match="needs triton"):
            packs.resolved("fused", "cuda", (), triton=there)
    assert packs.resolved("auto", "cuda", (), triton=True) == "batched"  # there is nothing that kernels serve


@pytest.mark.fast
def test_auto_takes_kernels_where_they_were_measured_and_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("gradbench.engine.device.triton_version", lambda: "3.6.0")
    driver = importlib.import_module("triton.runtime.driver").driver
    working = SimpleNamespace(get_current_target=lambda: "cuda")
    monkeypatch.setattr(type(driver), "active", property(lambda self: working))
    assert makes_kernels("cuda")

    def without_headers() -> None:
        raise RuntimeError("Python.h: no such file")

    working.get_current_target = without_headers
    assert not makes_kernels("cuda")
    working.get_current_target = lambda: "cuda"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert not makes_kernels("cuda")


def engine_of(seeds: int, *, triton: bool = True, **more: Any) -> str:
    """What `auto` stands for with so many problems of cet_real, which have 715 evaluations each."""
    grid = {"system": {"name": "cet_real"} | more.pop("options", {}), "estimator": ["bptt", "aep"], "T1": 100, "T2": 15}
    grid |= {"beta": 0.02, "seed": list(range(seeds)), **more}
    planned = plan(parse({"name": "x", "about": "", "grid": [grid]}, "x"))
    assert sum(problem.cost.work for problem in planned.problems) == 715 * seeds
    return packs.resolved("auto", "cuda", planned.problems, triton)


@pytest.mark.fast
def test_kernels_are_chosen_where_they_serve_enough_evaluations() -> None:
    enough = -(-packs.COMPILED // 715)
    assert engine_of(enough) == "fused"
    assert engine_of(enough - 1) == "batched"
    assert engine_of(enough, triton=False) == "batched"
    assert engine_of(enough, dtype="float64") == "batched"
    assert engine_of(enough, options={"D": 32, "dh": 8}) == "batched"


@pytest.mark.fast
def test_a_way_back_by_kernels_wants_tensors_that_lie_in_a_run() -> None:
    field = stack("cet_real")
    s = field.init_state()[None]
    sums, turned = field.pull_sums(field.cost_grads(s)), torch.zeros(s.shape[::-1]).permute(3, 2, 1, 0)
    with pytest.raises(ValueError, match="contiguous"):
        field.add_back(s, turned, torch.zeros_like(s), sums)


@final
@dataclass(frozen=True)
class Leaning(AbstractDrivenCet):
    """A transformer of somebody else, whose force has one more term than the kernels know."""

    name: ClassVar[str] = "leaning"
    source: ClassVar[str] = "a test"

    def force(self, theta: Params, x: Data, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
        return super().force(theta, x, context, s, knobs) - 0.1 * s


@pytest.mark.fast
def test_a_system_from_elsewhere_takes_no_kernels_of_the_package() -> None:
    like = stack("cet_real")
    field = Fused(Leaning(), like.theta, like.x, like.knobs)
    assert Leaning().fused  # by its sizes
    assert field.kernels is None
    s = like.init_state()
    torch.testing.assert_close(field.step(s), s + 0.1 * (like.force(s) - 0.1 * s))
