"""The noise of kernels on tensor cores, emulated on a CPU: what they cut off is put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted import Hosted, hosted
from kernel_checks import SYSTEMS, along, apart, credits, smooth, stack, swept

from gradbench.dynamics.stack import Fused
from gradbench.engine.precision import isolated
from gradbench.systems.base import Program
from gradbench.systems.kernels.programs import fragments, source

PRODUCT = Path(__file__).parents[1] / "kernels" / "product.cu"
LOST = 2.0**-23 / 6
EXAMPLES, FREE, BACK = 4, 40, 20
STATES = {"cet_projected": 2, "cet": 4}  # times the error of plain float32; 1.5 elsewhere


def of_product(program: Program, kernel: str, warp: Path) -> str:
    """The source of a product by itself."""
    shared = source(Program("toys", (), ()), "step", warp).split("// What the kernels of the toys share")[0]
    if program.family == "uncorrected":
        shared = shared.replace("fused(main[r], (groups + 1) * LOST, small[r])", "small[r]")
    return shared + PRODUCT.read_text()


def share_lost(length: int, *, positive: bool, family: str) -> float:
    """The share of a product that is lost, in units of `LOST`."""
    rng, items = torch.Generator().manual_seed(0), 64
    a, W = (torch.randn(items, 16, length, generator=rng) for _ in range(2))
    a, W = (a.abs(), W.abs()) if positive else (a, W)
    out = torch.zeros(items, 16, 16)
    program = Program(family, ("product",), (("D", length),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hosted.source", of_product)
        Hosted(program, "product", items, a, fragments(W), out, 1, items, cuts=True)()
    exact = a.double() @ W.double().mT
    return float(1 - (out * exact).sum() / exact.square().sum()) / LOST


@pytest.mark.parametrize("length", [16, 32, 64])
@pytest.mark.parametrize("positive", [False, True])
def test_what_a_product_loses_depends_on_its_length_alone_and_is_put_back(length: int, *, positive: bool) -> None:
    lost = share_lost(length, positive=positive, family="uncorrected")
    assert lost == pytest.approx(length / 8 + 1, rel=0.1)
    assert abs(share_lost(length, positive=positive, family="corrected")) < 0.1 * lost


@pytest.fixture(scope="module")
def emulated() -> dict[str, Any]:
    """Errors of a free relaxation, of credits and of a reverse sweep: each by kernels, and as plain float32."""
    with hosted(cuts=True), isolated(), torch.no_grad():
        return {system: errors(system) for system in SYSTEMS}


def errors(system: str) -> dict[str, Any]:
    field = stack(system, cells=1, batch=EXAMPLES)
    plainly = super(Fused, field)
    states, s = along(field, FREE), field.init_state()
    exact, without = s.double(), s
    for _ in range(FREE - 1):
        exact, without = field.wide.step(exact), plainly.step(without)
    swept_through, end = states[:BACK], states[BACK][None]
    a, like = field.cost_slope(end) * smooth(field, swept_through)[..., None], field.cost_grads(end)
    wanted = swept(field.wide, swept_through.double(), a.double(), field.wide.cost_grads(end.double()))
    back, back_plainly = (swept(of, swept_through, a, like) for of in (field, plainly))
    return {
        "free": (apart(states[-1], exact), apart(without, exact)),
        "credit": credits(field, states[-1][None], 1e-2),
        "back": {name: (apart(back[name], v), apart(back_plainly[name], v)) for name, v in wanted.items()},
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_states_and_credits_have_the_noise_of_float32(system: str, emulated: dict[str, Any]) -> None:
    free, credit = emulated[system]["free"], emulated[system]["credit"]
    assert free[0] < STATES.get(system, 1.5) * free[1]
    assert credit[0] < 1.5 * credit[1]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_reverse_sweep_has_nearly_the_noise_of_float32(system: str, emulated: dict[str, Any]) -> None:
    for name, (by_kernels, plainly) in emulated[system]["back"].items():
        assert by_kernels < 3 * plainly, name
