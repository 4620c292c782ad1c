"""The noise of kernels on tensor cores, emulated on a CPU: what they cut off is put back."""

from __future__ import annotations

from typing import Any

import pytest
from interpreted import SYSTEMS, printed_by

pytest.importorskip("triton")
FREE = {"cet_projected": 2, "cet": 4}  # times the error of plain float32; 1.5 elsewhere


@pytest.fixture(scope="module")
def emulated() -> dict[str, Any]:
    return printed_by("emulated.py")


def test_what_a_product_loses_depends_on_its_length_alone(emulated: dict[str, Any]) -> None:
    for parts, shares in zip((2, 4, 8), emulated["lost"], strict=True):
        assert shares == pytest.approx([parts + 1, parts + 1], rel=0.1)


@pytest.mark.parametrize("system", SYSTEMS)
def test_states_and_credits_have_the_noise_of_float32(system: str, emulated: dict[str, Any]) -> None:
    free, credit = emulated[system]["free"], emulated[system]["credit"]
    assert free[0] < FREE.get(system, 1.5) * free[1]
    assert credit[0] < 1.5 * credit[1]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_reverse_sweep_has_nearly_the_noise_of_float32(system: str, emulated: dict[str, Any]) -> None:
    for name, (by_kernels, plainly) in emulated[system]["back"].items():
        assert by_kernels < 3 * plainly, name
