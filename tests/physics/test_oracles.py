"""Gradients of an independent implementation, in float64: parameters, data, reference, estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradbench as gb

FOLDER = Path(__file__).parents[1] / "oracles"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())
OPTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "ep": ("ep", {}),
    "ep_energy_contrast": ("ep", {"readout": "energy_contrast"}),
    "aep": ("aep", {}),
    "aep_clip_batch": ("aep", {"clip": "batch"}),
    "tbptt": ("tbptt", {}),
    "adjoint": ("adjoint", {}),
}
PAIRS = [(case, rule) for case, content in CASES.items() for rule in content["results"]]


def group(case: str, prefix: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{case}.npz") as arrays:
        return {n.partition("/")[2]: torch.from_numpy(arrays[n]) for n in arrays.files if n.startswith(f"{prefix}/")}


def data(case: str) -> dict[str, torch.Tensor]:
    x = group(case, "data")
    if "mask" in x:  # one mask for all colours in some of the files
        x["mask"] = x["mask"].expand_as(x["x"])
    return x


def gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs)


@pytest.mark.parametrize(("case", "rule"), PAIRS)
def test_gradients_are_reproduced(case: str, rule: str) -> None:
    settings, expected = CASES[case]["settings"], CASES[case]["results"][rule]
    name, options = OPTIONS[rule]
    coordinates = {c: settings[c] for c in ("s", "damp", "T1", "T2", "beta", "eps") if c in settings}
    if rule == "adjoint":  # iterated as often as the relaxation, from the cost gradient as its first term
        coordinates["T2"] = settings["adjoint_terms"]
    m = gb.measure(
        settings["system"],
        name,
        params=group(case, "params"),
        data=data(case),
        estimator_options=options,
        dtype="float64",
        **coordinates,
    )
    assert m.reference is not None
    assert m.estimate is not None
    assert gap(m.reference, group(case, "reference")) < 1e-9
    assert gap(m.estimate, group(case, rule)) < 1e-9
    assert m.cosine == pytest.approx(expected["cosine"], abs=1e-11)
    assert m.norm_ratio == pytest.approx(expected["norm_ratio"], rel=1e-9)
    assert m.cosines == pytest.approx(expected["cosines"], abs=1e-9)


def test_float32_bptt_stays_within_1e_5_of_float64() -> None:
    case = "cet_real_damp0"
    settings = CASES[case]["settings"]
    coordinates = {c: settings[c] for c in ("s", "damp", "T1", "eps")}
    m = gb.measure("cet_real", "bptt", params=group(case, "params"), data=data(case), **coordinates)
    assert m.reference is not None
    assert gap({n: g.double() for n, g in m.reference.items()}, group(case, "reference")) < 1e-5
