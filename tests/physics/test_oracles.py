"""Gradients of an independent implementation, in float64: parameters, data, reference, estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradbench as gb
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import relax
from gradbench.estimators.phases.nudged import NudgedPhase
from gradbench.planning import registry
from gradbench.vocabulary.coordinates import Knobs

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
PAIRS = [(case, rule) for case, content in CASES.items() for rule in content["results"] if case != "residual_mlp"]


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


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_residual_mlp_is_reproduced_from_its_own_assembly_of_gradients(reduction: str) -> None:
    """There, blocks are energy contrasts summed over the batch; the head's gradient is that of the mean cost at the
    nudged state; and the embedding is sent the prediction error of h_1 alone, without (1 + F_0')^T."""
    settings, theirs = CASES["residual_mlp"]["settings"], group("residual_mlp", f"ep_{reduction}")
    params, x, beta = group("residual_mlp", "params"), data("residual_mlp"), settings["beta"]
    options = {"nudge": "positive", "reduction": reduction, "readout": "energy_contrast"}
    coordinates = {"T2": settings["T2"], "beta": beta, "eps": settings["alpha"]}
    m = gb.measure(
        "residual_mlp", "ep", params=params, data=x, estimator_options=options, dtype="float64", **coordinates
    )
    assert m.reference is not None
    assert m.estimate is not None
    b = len(x["label"])
    assert gap({n: g / b for n, g in m.reference.items()}, group("residual_mlp", "reference")) < 1e-9

    system = registry.system("residual_mlp", type(registry.system("residual_mlp")).sizes(params, x))
    eps = torch.tensor(settings["alpha"], dtype=torch.float64)
    field = Field(system, params, x, Knobs(eps, eps, eps))
    free = relax(field, (0,))
    phase = NudgedPhase((1,), reduction=reduction)  # type: ignore[arg-type]
    (snapshot,) = phase.run(free, (settings["T2"],), free.ends.new_tensor([beta]))
    assert snapshot.nudged is not None
    nudged = snapshot.nudged[0, 0, 0]
    error = field.errors(nudged)[:, : settings["d"]]
    ours = {n: g / b for n, g in field.cost_grads(nudged).items() if n.startswith("out")}
    ours |= {n: g for n, g in m.estimate.items() if n.startswith("blocks")}
    ours |= {"embed.weight": -error.mT @ x["x"] / beta, "embed.bias": -error.sum(0) / beta}
    assert gap(ours, theirs) < 1e-9


def test_float32_bptt_stays_within_1e_5_of_float64() -> None:
    case = "cet_real_damp0"
    settings = CASES[case]["settings"]
    coordinates = {c: settings[c] for c in ("s", "damp", "T1", "eps")}
    m = gb.measure("cet_real", "bptt", params=group(case, "params"), data=data(case), **coordinates)
    assert m.reference is not None
    assert gap({n: g.double() for n, g in m.reference.items()}, group(case, "reference")) < 1e-5
