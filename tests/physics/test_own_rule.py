"""A rule that no test knows: planned, run, given the cause that it has, and held to what it claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch
from linear import B, Line, N, line
from test_budget import measured

import gradbench as gb
from gradbench.dynamics.field import Field
from gradbench.dynamics.trajectory import Trajectory
from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Count, Reading, Snapshot, along
from gradbench.estimators.phases.reverse import ReversePhase
from gradbench.planning import registry
from gradbench.vocabulary.status import Status

TOY = {"damp": 3.0, "T1": 200, "system_options": {"drive_std": 1.0}}


@final
@dataclass(frozen=True)
class OneTerm(AbstractPhase):
    """eps Pi'^T dC/ds, in a phase of its own."""

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: torch.Tensor) -> Iterator[Snapshot]:
        field = free.field
        with torch.no_grad():
            u = free.ends + field.step_size * field.force(free.ends)
        yield Snapshot(None, credit=field.step_size * field.project_vjp(u, free.cost_slope))

    def count(self, T1: int, depth: int | None) -> Count:
        return Count(force=1)


@final
@dataclass(frozen=True)
class Jfb(AbstractEstimator):
    """Jacobian-free: the adjoint with one term, which it does not say."""

    name: ClassVar[str] = "one_term"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Fung et al. 2022"
    silent: bool = False  # whether it hides its credit

    @property
    def phase(self) -> AbstractPhase:
        return OneTerm()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        assert snapshot.credit is not None
        reading = along(free, snapshot, snapshot.credit[:, None])
        return Reading(reading.depth, reading.gradient, None, {}) if self.silent else reading


@final
@dataclass(frozen=True)
class Nothing(AbstractEstimator):
    """An estimate of zero."""

    name: ClassVar[str] = "nothing"
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "a test"

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: torch.Tensor) -> Reading:
        assert snapshot.gradient is not None
        return Reading(snapshot.depth, {n: 0 * g[:, None] for n, g in snapshot.gradient.items()}, None, {})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with registry.scope():
        registry.register(Jfb)
        registry.register(Nothing)
        yield


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rule_of_one_term_is_truncation_as_the_adjoint_of_one_term_is(dtype: str, silent: bool) -> None:
    one_term = gb.measure("toy_noncons", "one_term", dtype=dtype, estimator_options={"silent": silent}, **TOY)
    adjoint = gb.measure("toy_noncons", "adjoint", T2=1, dtype=dtype, **TOY)
    assert one_term.cosine == pytest.approx(adjoint.cosine, rel=1e-6)
    assert (one_term.row["cause"], adjoint.row["cause"]) == ("truncation", "truncation")
    sizes = one_term.budget[""]
    assert sizes["truncation"] == pytest.approx(one_term.rel_error, rel=1e-4)
    assert sizes["projection_or_readout"] < 1e-4


def test_a_rule_that_is_no_adjoint_of_any_length_is_told_by_its_readout() -> None:
    nothing = gb.measure("toy_noncons", "nothing", **TOY)
    assert (nothing.cosine, nothing.row["cosine_min"]) == (0, 0)
    assert nothing.row["params_zero"] == nothing.row["params_live"] == 5
    assert nothing.row["cause"] in ("truncation", "projection or readout")


def test_it_is_planned_run_explained_and_drawn_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'about = "x"\n[[grid]]\nsystem = { name = "toy_noncons", drive_std = 1.0, N = 2, D = 4, heads = 2, out = 2 }\n'
        'estimator = ["bptt", "ep", "one_term"]\ndamp = 3.0\n'
        "T1 = [100, 200]\nT2 = [5, 30]\nbeta = 0.02\nseed = [0, 1]\n"
    )
    run = gb.run(str(tmp_path / "mine.toml"), out=tmp_path, device="cpu")
    mine = run.cells[run.cells["estimator"] == "one_term"]
    assert len(mine) == 4
    assert set(mine["status"]) == {"settled"}
    assert set(mine["cause"]) == {"truncation"}
    assert mine["T2"].isna().all()


def test_a_fixed_point_whose_reference_overflows_is_to_blame() -> None:
    """W = 1/2: s = 1 is exactly at rest, and what backpropagation carries grows by 1.1 a step, beyond every float."""
    eye, ones = torch.eye(N, dtype=torch.float64), torch.ones(B, N, dtype=torch.float64)
    x = {"x": 0 * ones, "y": 0 * ones, "c": ones, "s0": ones}
    field = Field(Line(), {"W": 0.5 * eye, "h": -0.5 * ones[0]}, x, line().knobs)
    outcome = measured(field, "adjoint", 8000, 5, 0.1)
    assert outcome.status is Status.UNSTABLE
    assert not math.isfinite(outcome.row()["reference_norm"])
    assert outcome.row()["cause"] == "no fixed point"


def test_a_nudge_that_leaves_every_bound_is_nonlinear_and_not_imprecise() -> None:
    m = gb.measure("toy_noncons", "aep", T2=30, beta=1e6, **TOY)
    assert m.row["cause"] != "precision"
