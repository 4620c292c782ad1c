"""Kernels on a CPU, against their derivatives in float64."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pytest
import torch
from hosted import hosted
from kernel_checks import ENERGIES, SYSTEMS, TRANSFORMERS, ahead, apart, plain, seen, stack, swept
from torch import Tensor

from gradbench.dynamics.stack import Fused
from gradbench.engine import packs
from gradbench.engine.device import makes_kernels
from gradbench.engine.precision import isolated
from gradbench.errors import UserError
from gradbench.planning.plans import plan
from gradbench.planning.registry import known_systems
from gradbench.planning.suites import parse
from gradbench.systems.base import Data, FusedSteps, Params
from gradbench.systems.cet_driven import AbstractDrivenCet
from gradbench.systems.kernels.programs import nvrtc_version
from gradbench.vocabulary.coordinates import Knobs

BACK = ("back inside of NaN", "guards of back", "back beside NaN", "back beside an example")
OTHER_SIZES = (
    {"D": 32, "heads": 2, "mem": 16, "img": 28, "patch": 7, "ch": 1},
    {"D": 128, "heads": 8, "mem": 32, "img": 32, "patch": 8, "ch": 1},
    {"D": 16, "heads": 1, "mem": 48, "img": 16, "patch": 4, "ch": 3},
)


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    """What is seen of every system."""
    with hosted(), isolated(), torch.no_grad():
        return {system: seen(system) for system in SYSTEMS}


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
    assert seen["product beside an example"]
    assert seen["guards of product"]


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
    assert seen["guards of energy"]
    assert seen["energy beside NaN"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_kernels_touch_nothing_beyond_their_cells(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    whole = "equal inside of NaN", "guards", "beside an example"
    assert {name: seen[name] for name in whole} == dict.fromkeys(whole, True)
    assert all(seen[f"beside {wild}"] for wild in (1e18, float("inf"), float("nan")))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_writes_into_any_tensor_and_into_its_state(system: str, told: dict[str, dict[str, Any]]) -> None:
    seen = told[system]
    places = "in place", "guards in place", "free in place", "stored in part"
    assert {name: seen[name] for name in places} == dict.fromkeys(places, True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_recording_of_a_kernel_serves_the_next_pack(system: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[system]["same structure"]
    for name in ("serves again", "product reads less", "product serves again", "back serves again", "stacks differ"):
        assert told[system][name], name


@pytest.mark.parametrize("sizes", OTHER_SIZES, ids=str)
@pytest.mark.parametrize("system", TRANSFORMERS)
def test_other_sizes_of_the_transformers_have_kernels_too(system: str, sizes: dict[str, int]) -> None:
    with hosted(), isolated(), torch.no_grad():
        spreads = {"bpos_std": 0.3, "bdec_std": 0.2, "benc_std": 0.1}
        of = known_systems()[system](**spreads, **{"dh": 16, **sizes}, **({"gamma": 1} if system in ENERGIES else {}))
        assert isinstance(of, FusedSteps)
        rng = torch.Generator().manual_seed(0)
        theta = {name: v[None].float() for name, v in of.init_params(rng).items()}
        x = {name: torch.rand(1, *shape, generator=rng) for name, shape in of.data_shapes(3).items()}
        field = Fused(of, theta, x, Knobs(*(torch.full((1,), v) for v in (0.8, 0.7, 0.1))))
        assert field.kernels is not None
        wide, plainly = field.wide, super(Fused, field)
        s = field.init_state()[None]
        assert apart(field.step(s), wide.step(s.double())) < 2 * apart(plainly.step(s), wide.step(s.double()))
        nudge = torch.full((1, 1), 0.02)
        step = field.nudged_step(s, nudge, field.step_size, asymmetric=True)
        assert step is not None
        moved = s[:, None] + 0.01 * torch.randn(s[:, None].shape, generator=rng)
        assert apart(ahead(step, moved), plain(wide, s.double(), moved.double(), nudge.double())) < 2e-7
        v = torch.randn(s.shape, generator=rng)
        assert apart(field.step_at(s).jvp(v), wide.step_at(s.double()).jvp(v.double())) < 2e-7
        exact = swept(wide, s.double(), v.double(), wide.cost_grads(s.double()))
        found = swept(field, s, v, field.cost_grads(s))
        assert max(apart(found[name], expected) for name, expected in exact.items()) < 1e-6


@pytest.mark.fast
def test_other_sizes_and_numbers_take_the_path_without_kernels() -> None:
    assert stack("cet_real").kernels is not None
    for field in (
        stack("cet_real", D=32, dh=8),
        stack("cet_real", mem=100),
        stack("cet_real", D=144, dh=16),
        stack("cet_real").wide,
    ):
        assert isinstance(field, Fused)
        assert field.kernels is None
        assert field.packed == {}
        s = field.init_state()
        assert field.nudged_step(s[None], s.new_zeros(1, 2), field.step_size, asymmetric=True) is None
        assert field.step(s).isfinite().all()


@pytest.mark.fast
def test_the_engine_of_kernels_needs_a_gpu_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="engine = 'fused' needs a CUDA device"):
        packs.resolved("fused", "cpu", ())
    monkeypatch.setattr(packs, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match="needs a GPU of compute capability 8"):
        packs.resolved("fused", "cuda", ())
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert packs.resolved("fused", "cuda", ()) == "fused"
    monkeypatch.setattr(packs, "nvrtc_version", lambda: None)
    assert packs.resolved("fused", "cuda", (), compiler=True) == "fused"  # the workers of a cluster have it
    for there in (None, False):
        with pytest.raises(UserError, match="needs the packages cuda-bindings and nvidia-cuda-nvrtc"):
            packs.resolved("fused", "cuda", (), compiler=there)
    assert packs.resolved("auto", "cuda", (), compiler=True) == "batched"  # there is nothing that kernels serve


@pytest.mark.fast
def test_auto_takes_kernels_where_they_were_measured_and_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("gradbench.engine.device.nvrtc_version", lambda: "13.0")
    assert makes_kernels("cuda")
    monkeypatch.setattr("gradbench.engine.device.nvrtc_version", lambda: None)
    assert not makes_kernels("cuda")
    monkeypatch.setattr("gradbench.engine.device.nvrtc_version", lambda: "13.0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert not makes_kernels("cuda")


@pytest.mark.fast
def test_without_the_package_that_calls_the_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert nvrtc_version.__wrapped__() is None


def engine_of(seeds: int, *, compiler: bool = True, **more: Any) -> str:
    """What `auto` stands for with so many problems of cet_real, which have 715 evaluations each."""
    grid = {"system": {"name": "cet_real"} | more.pop("options", {}), "estimator": ["bptt", "aep"], "T1": 100, "T2": 15}
    grid |= {"beta": 0.02, "seed": list(range(seeds)), **more}
    planned = plan(parse({"name": "x", "about": "", "grid": [grid]}, "x"))
    assert sum(problem.cost.work for problem in planned.problems) == 715 * seeds
    return packs.resolved("auto", "cuda", planned.problems, compiler)


@pytest.mark.fast
def test_kernels_are_chosen_where_they_serve_enough_evaluations() -> None:
    enough = -(-packs.COMPILED // 715)
    assert engine_of(enough) == "fused"
    assert engine_of(enough - 1) == "batched"
    assert engine_of(enough, compiler=False) == "batched"
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
