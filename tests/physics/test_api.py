"""`gradbench.measure` as a user calls it."""

from __future__ import annotations

import inspect
import math
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import warm

import gradbench as gb
from gradbench.engine.precision import PARTS
from gradbench.errors import UserError
from gradbench.vocabulary.status import Status


def test_the_documented_example() -> None:
    m = gb.measure("cet_real", "aep", s=1.0, damp=1.0, T1=150, T2=60, beta=0.02, eps=0.2, seed=0, batch=8)
    assert m.status is Status.SETTLED
    assert m.cosine > 0.999
    assert m.cosines["WQ"] > 0.99
    assert m.estimate is not None
    assert m.estimate["WQ"].shape == (4, 16, 64)
    assert m.row["cosine_min"] == min(m.cosines.values())


def test_the_global_cosine_hides_the_failure_of_naive_ep() -> None:
    m = gb.measure("cet_real", "ep", T1=150, T2=60, batch=8)
    assert m.cosine > 0.99
    assert m.row["cosine_min"] < 0.9


def test_a_diverged_cell_is_a_status_and_not_an_exception() -> None:
    m = gb.measure("cet_energy", "ep", s=1.0, damp=0.0, T1=400, batch=2)
    assert m.status is Status.DIVERGED
    assert m.estimate is None
    assert math.isnan(m.cosine)
    assert "reached" in m.reason


def test_a_zero_gradient_is_undefined() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand((2, 1, 28, 28), generator=rng, dtype=torch.float64)
    m = gb.measure("cet_real", "ep", data={"x": x, "mask": torch.zeros_like(x)}, damp=1.0, T1=200)
    assert m.status is Status.UNDEFINED
    assert math.isnan(m.cosine)


def test_sizes_and_batch_come_from_the_data() -> None:
    x = torch.rand((3, 2, 12, 12), generator=torch.Generator().manual_seed(0))
    m = gb.measure("cet_real", "bptt", data={"x": x}, system_options={"patch": 4, "D": 8}, T1=5)
    assert m.reference is not None
    assert m.reference["Wenc"].shape == (8, 2, 4, 4)
    assert m.reference["bpos"].shape == (9, 8)
    assert (m.row["batch"], m.row["dataset"]) == (3, "given")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "cet_rael"}, "Did you mean 'cet_real'"),
        ({"estimator": "eap"}, "Did you mean"),
        ({"beta": 0.0}, "not positive"),
        ({"T1": 0}, "below 1"),
        ({"dtype": "float16"}, "not a choice"),
        ({"device": "cdua"}, "Did you mean 'cuda'"),
        ({"estimator_options": {"nudge": "centered"}}, "Did you mean 'centred'"),
        ({"estimator_options": {"readout": "energy_contrast"}}, "needs an energy"),
        ({"system_options": {"heads": 4.5}}, "expected: int"),
        ({"system_options": {"patch": 5}}, "multiple of patch"),
        ({"system_options": {"dataset": "fashion"}}, "dataset = 'fashion' is not known"),
        ({"batch": 2000}, "fewer than batch"),
        ({"params": {"Wq": torch.zeros(4, 16, 64)}}, "Did you mean 'WQ'"),
        ({"params": {"WV": torch.zeros(4, 16, 63)}}, "expected (4, 16, 64)"),
        ({"data": {"x": torch.zeros(2, 1, 28, 28), "mask": torch.zeros(3, 1, 28, 28)}}, "disagree"),
        ({"system_options": {"dataset": "given"}}, "draws no images"),
    ],
)
def test_mistakes_are_raised_at_once_with_a_way_out(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=r".") as error:
        gb.measure(**{"system": "cet_real", "estimator": "ep", "T1": 2, "T2": 1} | arguments)  # type: ignore[arg-type]
    assert message in str(error.value)


def switches() -> list[object]:
    older = [
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    ]
    return older + [attrgetter(name)(torch.backends).fp32_precision for name in PARTS]


@pytest.mark.parametrize("set_by_caller", ["nothing", "allow_tf32", "medium", "fp32_precision"])
def test_precision_is_set_by_the_engine_and_put_back(set_by_caller: str, tmp_path: Path) -> None:
    """In a process of its own: torch refuses to read switches after some orders of setting them."""
    lines = {
        "nothing": "",
        "allow_tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
        "medium": "torch.set_float32_matmul_precision('medium')",
        "fp32_precision": "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    }
    source = f"""
import torch
from operator import attrgetter
from gradbench.engine.precision import PARTS, isolated
{inspect.getsource(switches)}
{lines[set_by_caller]}
before = switches()
with isolated():
    assert switches() == [False, False, "highest"] + ["ieee"] * len(PARTS), switches()
assert switches() == before, (before, switches())
"""
    assert warm.ended(warm.start(source, streams={2: tmp_path / "told"})) == 0, (tmp_path / "told").read_text()


@pytest.mark.fast
def test_the_same_call_gives_the_same_numbers() -> None:
    a, b = (gb.measure("toy_noncons", "aep", damp=3.0, T1=30, T2=10).row for _ in range(2))
    for row in (a, b):
        row.pop("seconds")
        row.pop("peak_memory")
    assert a == pytest.approx(b, nan_ok=True)
