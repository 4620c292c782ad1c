"""Systems from functions against the same models in plain torch, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from written import WRITTEN, hopfield, tanh_layer

import gradbench as gb
from gradbench.commands.running import prepare
from gradbench.engine.packs import measure_pack

T1, T2 = 400, 80


class Plain:
    """The oracle: the model unrolled in plain autograd, its parameters as leaves."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts, self.eps = parts, parts.get("eps", 1.0)
        params = parts["params"]
        if isinstance(params, dict):
            self.net: Any = {name: p.double().requires_grad_() for name, p in params.items()}
            self.leaves = self.net
        else:
            self.net = copy.deepcopy(params).double()
            self.leaves = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        self.x = {name: v.double() if v.is_floating_point() else v for name, v in parts["data"].items()}
        self.more = (SimpleNamespace(**parts["knobs"]),) if "knobs" in parts else ()

    def start(self) -> dict[str, Tensor]:
        z = self.parts["state"](self.net, self.x)
        return {name: v.double() for name, v in (z if isinstance(z, dict) else {"": z}).items()}

    def shown(self, z: dict[str, Tensor]) -> Any:
        return z.get("", z)

    def step(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        if "step" in self.parts:
            return {"": self.parts["step"](self.net, self.x, self.shown(z))}
        if "force" in self.parts:
            return {"": z[""] + self.eps * self.parts["force"](self.net, self.x, z[""])}
        leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in z.items()}
        energy = self.parts["energy"](self.net, self.x, leaves, *self.more).sum()
        slopes = torch.autograd.grad(energy, list(leaves.values()), create_graph=True)
        return {name: v - self.eps * g for (name, v), g in zip(leaves.items(), slopes, strict=True)}

    def cost(self, z: dict[str, Tensor]) -> Tensor:
        return self.parts["cost"](self.net, self.x, self.shown(z)).sum()

    def grads(self, value: Tensor) -> dict[str, Tensor]:
        leaves = list(self.leaves.values())
        grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        return {
            n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(self.leaves.items(), grads, strict=True)
        }

    def bptt(self) -> dict[str, Tensor]:
        z = self.start()
        for _ in range(T1):
            z = self.step(z)
        self.end = {name: v.detach() for name, v in z.items()}
        return self.grads(self.cost(z))

    def adjoint(self) -> dict[str, Tensor]:
        """sum_k <(J_G^T)^k dC/dz, dG/dtheta> + dC/dtheta at the end state."""
        z = {name: v.clone().requires_grad_() for name, v in self.end.items()}
        cost, moved = self.cost(z), self.step(z)
        slopes = torch.autograd.grad(cost, list(z.values()), retain_graph=True, allow_unused=True)
        a = total = tuple(torch.zeros_like(v) if g is None else g for v, g in zip(z.values(), slopes, strict=True))
        for _ in range(T2 - 1):
            a = torch.autograd.grad(list(moved.values()), list(z.values()), a, retain_graph=True)
            total = tuple(t + v for t, v in zip(total, a, strict=True))
        pulled = self.grads(sum((t * v).sum() for t, v in zip(total, moved.values(), strict=True)))
        return {name: g + pulled[name] for name, g in self.grads(cost).items()}


def apart(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The difference of two gradients, relative to the whole of the second."""
    assert set(got) == set(expected)
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    return float(torch.stack([(got[n] - g).norm() for n, g in expected.items()]).norm() / size)


def written(function: Callable[[], dict[str, Any]]) -> Any:
    return gb.system(**function(), name=f"my {function.__name__}")


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_reference_and_adjoint_are_those_of_plain_autograd(function: Callable[[], dict[str, Any]]) -> None:
    plain, mine = Plain(function()), written(function)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        bptt, adjoint = plain.bptt(), plain.adjoint()
    torch.backends.mha.set_fastpath_enabled(fastpath)
    measured = gb.measure(mine, "adjoint", T1=T1, T2=T2, dtype="float64")
    assert measured.status == "settled", measured
    assert apart(measured.reference, bptt) <= 1e-12
    assert apart(measured.estimate, adjoint) <= 1e-12


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_batched_and_eager_agree(function: Callable[[], dict[str, Any]]) -> None:
    rules = ["bptt", "tbptt", "ep", "aep", "adjoint", {"name": "ep", "nudge": "positive"}]
    grid = {
        "system": written(function),
        "estimator": rules,
        "T1": 60,
        "T2": [3, 12],
        "beta": [0.01, 0.1],
        "seed": [0, 1],
    }
    suite = gb.suite(grid | {"dtype": "float64", "batch": 3}, thresholds={"residual": 1})
    _, planned = prepare(suite)
    one_by_one = [measure_pack([p], "cpu", planned.thresholds, "eager") for p in planned.problems]
    eager = {o.cell: o.row() for outcomes in one_by_one for o in outcomes}
    # not by a run, which takes a pack that fails one by one
    batched = {o.cell: o.row() for o in measure_pack(planned.problems, "cpu", planned.thresholds, "batched")}
    assert len(batched) == len(eager) == len(planned.cells)
    columns = ["cosine", "cosine_min", "norm_ratio", "rel_error", "residual", "rho", "antisymmetry", "energy_monotone"]
    for cell, row in eager.items():
        for name in columns:
            a, b = (math.nan if r[name] is None else float(r[name]) for r in (row, batched[cell]))
            assert b == pytest.approx(a, rel=1e-9, abs=1e-9, nan_ok=True), name
        assert [row[n] for n in ("status", "cause")] == [batched[cell][n] for n in ("status", "cause")]


@pytest.mark.parametrize("function", WRITTEN, ids=lambda f: f.__name__)
def test_a_cell_of_a_run_over_T1_T2_and_beta_is_that_cell_measured_alone(
    function: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    mine = gb.system(**function(), name=f"my {function.__name__}")
    grid = {"estimator": ["ep", "aep", "adjoint"], "T1": [6, 40], "T2": [3, 9], "beta": [0.01, 0.2]}
    cells = gb.run(gb.suite(grid | {"system": mine, "dtype": "float64"}), out=tmp_path, device="cpu").cells
    for row in cells.to_dict("records"):
        at = {k: row[k] for k in ("T1", "T2", "beta") if row[k] == row[k]}
        alone = gb.measure(mine, row["estimator"], **at, dtype="float64")
        assert alone.row["rel_error"] == pytest.approx(row["rel_error"], rel=1e-8, abs=1e-12)
        assert alone.cosine == pytest.approx(row["cosine"], abs=1e-10)
        assert alone.row["reference_norm"] == pytest.approx(row["reference_norm"], rel=1e-9)


def test_a_knob_is_a_key_of_a_grid_an_argument_and_a_column(tmp_path: Path) -> None:
    mine = written(hopfield)
    suite = gb.suite({"system": [mine, "toy_cons"], "estimator": "adjoint", "T1": 60, "T2": 60, "gain": [0.4, 0.8]})
    results = gb.run(suite, out=tmp_path)
    cells = results.cells
    assert cells["gain"].tolist()[:2] == [0.4, 0.8]
    assert cells["gain"].isna().tolist() == [False, False, True]  # the toy has no gain, and one cell
    assert cells["system_label"].tolist()[:2] == ["my hopfield gain=0.4", "my hopfield"]
    for gain, cosine in zip((0.4, 0.8), cells["cosine"], strict=False):
        assert gb.measure(mine, "adjoint", T1=60, T2=60, gain=gain).cosine == pytest.approx(cosine, abs=1e-6)
    assert results.check(metric="cosine", min=-1, gain=0.4).cells == 1


def test_only_the_examples_of_a_batch_are_measured() -> None:
    parts = tanh_layer()
    whole, first = gb.system(**parts, name="a"), {name: v[:2] for name, v in parts["data"].items()}
    few = gb.system(**parts | {"data": first}, name="b")
    there, here = (
        gb.measure(whole, "ep", T1=50, T2=20, beta=0.1, batch=2),
        gb.measure(few, "ep", T1=50, T2=20, beta=0.1),
    )
    assert apart(there.estimate, here.estimate) < 1e-6
    with pytest.raises(gb.UserError, match="batch = 7: the data of 'a' have 6 examples"):
        gb.measure(whole, "ep", T1=50, T2=20, beta=0.1, batch=7)


def test_what_nobody_names_is_told_in_one_line() -> None:
    with pytest.raises(gb.UserError, match="my tanh_layer: T1, T2 and beta are missing: name them, or give defaults="):
        gb.measure(written(tanh_layer), "ep")
