"""Recordings on a CPU: they give what plain calls give, to the bit, and step aside where they cannot."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import gradbench as gb
from gradbench.dynamics import replay
from gradbench.dynamics.replay import Replayed

Function = Callable[..., tuple[Tensor, ...]]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SPENT", 0.0)


def recording(function: Function, *values: Tensor) -> Replayed:
    """The function after its plain call, and the call that records it."""
    replayed = Replayed(function)
    for _ in range(2):
        replayed(*(v.clone() for v in values))
    return replayed


def is_made(replayed: Replayed) -> bool:
    return replayed._program is not None


def equal(a: Tensor, b: Tensor) -> bool:
    """To the bit: the sign of a zero is one."""
    same = (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    return same and torch.equal(*(v.flatten().contiguous().view(torch.uint8) for v in (a, b)))


W, b = drawn(6, 6, seed=1), drawn(6, seed=2)


def layered(x: Tensor) -> tuple[Tensor, ...]:
    """Views, copies, products, softmax, parts of an empty tensor, zeros."""
    row = x.new_empty((*x.shape[:-1], 9))
    row[..., :6] = (x @ W + b).relu()
    row[..., 6:].zero_()
    heads = row.unflatten(-1, (3, 3)).transpose(-2, -3).contiguous()
    P = (heads @ heads.mT).softmax(-1)
    return torch.cat((P.flatten(-2), x.new_zeros((*P.shape[:-2], 2))), -1), P.sum(-1), row[..., 2:4]


def in_place(x: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    total += x.tanh()
    count[:1].add_(1)
    torch.maximum(count, x.abs().amax(0), out=count)
    return x * 2, total, count


def several(x: Tensor) -> tuple[Tensor, ...]:
    values, places = x.sort(-1)
    low, high = values.split([2, 4], -1)
    return low * 2, high, places, *x.max(-1)


def converted(x: Tensor) -> tuple[Tensor, ...]:
    return x.double().pow(2).float(), (x > 0).to(x), torch.where(x > 0, x, 0.5), x.clamp(-1, 1).mean((0, 1))


@pytest.mark.parametrize("function", [layered, several, converted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_are_repeated_to_the_bit(function: Function, dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "W", W.to(dtype))
    monkeypatch.setitem(globals(), "b", b.to(dtype))
    replayed = recording(function, drawn(4, 5, 6, dtype=dtype))
    assert is_made(replayed)
    for seed in range(3):
        x = drawn(4, 5, 6, seed=seed, dtype=dtype)
        x[0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-42])
        assert all(map(equal, replayed(x), function(x)))
    # the states of a trajectory begin anywhere in the memory of the trajectory
    x = drawn(3, 4, 5, 6, dtype=dtype)
    assert all(map(equal, replayed(x[2]), function(x[2])))


def test_results_outlive_the_next_call_and_may_be_its_arguments() -> None:
    replayed = recording(lambda x: (x @ W, x.relu()), drawn(5, 6))
    x = y = drawn(5, 6)
    results = []
    for _ in range(4):
        results.append(replayed(x))
        x = results[-1][0]
    for first, second in results:
        assert torch.equal(second, y.relu())
        y = y @ W
        assert torch.equal(first, y)


def test_arguments_are_written_into() -> None:
    replayed = recording(in_place, drawn(5, 6), drawn(5, 6), drawn(6))
    assert is_made(replayed)
    x, *mine = drawn(5, 6), drawn(5, 6, seed=1), drawn(6, seed=2)
    theirs = [v.clone() for v in mine]
    for _ in range(3):
        out, expected = replayed(x, *mine), in_place(x, *theirs)
        assert out[1] is mine[0]
        assert out[2] is mine[1]
        assert all(map(equal, (*out, *mine), (*expected, *theirs)))


def test_an_argument_may_be_given_twice_and_arguments_may_share_memory() -> None:
    def blended(x: Tensor, y: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        total += x
        return (x * 2 + y,)

    replayed = recording(blended, drawn(4), drawn(4), drawn(4))
    x, (total, other) = drawn(4), drawn(2, 4)
    expected = total + x
    assert torch.equal(*replayed(x, x, total), x * 3)
    assert torch.equal(total, expected)
    assert torch.equal(other, drawn(2, 4)[1])


def test_what_a_function_reads_besides_is_read_in_every_call() -> None:
    scale = torch.ones(3)
    replayed = recording(lambda x: (x * (2 * scale),), drawn(3))
    scale.fill_(5)
    assert torch.equal(*replayed(drawn(3)), drawn(3) * 10)


def test_two_recordings_share_scratch_which_goes_with_them() -> None:
    told: list[bool] = []

    def both() -> None:  # in a thread without other recordings
        first = recording(layered, drawn(4, 5, 6))
        second = recording(lambda x: layered(x.tanh() + 1), drawn(4, 5, 6))
        assert first._program is not None
        assert second._program is not None
        scratch = weakref.ref(first._program._scratch)
        told.append(second._program._scratch is scratch())
        for seed in range(3):
            x = drawn(4, 5, 6, seed=seed)
            told.extend(map(equal, first(x), layered(x)))
            told.extend(map(equal, second(x), layered(x.tanh() + 1)))
        del first, second
        told.append(scratch() is None)

    gc.disable()  # no cycle holds a recording
    try:
        thread = threading.Thread(target=both)
        thread.start()
        thread.join()
    finally:
        gc.enable()
    assert len(told) == 20
    assert all(told)


def drawing(x: Tensor) -> tuple[Tensor, ...]:
    return (x + torch.randn(x.shape),)


def branching(x: Tensor) -> tuple[Tensor, ...]:
    return (x * 2 if x.sum().item() > 0 else x,)


def differentiating(x: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        s = x.detach().requires_grad_()
        return torch.autograd.grad(s.pow(3).sum(), s)


def turning(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    return (y.t_() + 1,)


def choosing(x: Tensor) -> tuple[Tensor, ...]:
    chosen = x[x > 0]
    return (chosen.sum() / len(chosen) + x,)


def handing_out(x: Tensor) -> tuple[Tensor, ...]:
    return x + 1, W


def listing(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x.tolist()[0][0],)


def parting(x: Tensor) -> tuple[Tensor, ...]:
    return (torch.split_copy(x, 4)[0] + 1,)


def broadcasting(x: Tensor) -> tuple[Tensor, ...]:
    """Torch takes another way to a product of these forms where a dispatch mode is active, with other last bits."""
    return (x.reshape(2, 2, 4) @ V,)


V = drawn(1, 4, 5, seed=3)


@pytest.mark.parametrize(
    "function", [drawing, branching, differentiating, turning, choosing, handing_out, listing, parting, broadcasting]
)
def test_a_function_that_does_not_fit_is_called_plainly(function: Function) -> None:
    replayed = recording(function, drawn(4, 4))
    assert not is_made(replayed)
    for x in (drawn(4, 4), -drawn(4, 4)):
        torch.manual_seed(0)
        out = replayed(x)
        torch.manual_seed(0)
        assert all(map(equal, out, function(x)))


def test_a_function_that_writes_besides_is_called_plainly() -> None:
    count = torch.zeros(1)

    def counting(x: Tensor) -> tuple[Tensor, ...]:
        count.add_(1)
        return (x + count,)

    replayed = recording(counting, drawn(3))
    assert not is_made(replayed)
    replayed(drawn(3))
    assert count.item() == 3  # none by a call that was only watched


def test_other_forms_other_threads_and_other_recordings_call_plainly() -> None:
    calls = []

    def noted(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x.shape)
        return (x @ W,)

    replayed = recording(noted, drawn(5, 6))
    calls.clear()
    replayed(drawn(5, 6))
    assert not calls
    assert torch.equal(*replayed(drawn(3, 6)), drawn(3, 6) @ W)
    assert torch.equal(*replayed(drawn(6, 5).mT), drawn(6, 5).mT @ W)
    thread = threading.Thread(target=replayed, args=(drawn(5, 6),))
    thread.start()
    thread.join()
    assert len(calls) == 3
    outer = recording(lambda x: replayed(x + 1), drawn(5, 6))
    assert len(calls) == 4  # the call that was watched
    assert is_made(outer)
    assert torch.equal(*outer(drawn(5, 6)), (drawn(5, 6) + 1) @ W)


def test_functions_with_one_text_are_tried_one_by_one() -> None:
    kinds = [recording(f, drawn(4, 4))._program for f in (lambda x: (x.sinh() + 2,), lambda x: (x.cosh() * 2,))]
    assert None not in kinds
    assert len({program.kind for program in kinds if program}) == 2


def test_an_output_may_be_a_view_with_gaps() -> None:
    def spread(x: Tensor) -> tuple[Tensor, ...]:
        return (x * 2)[:, 0], (x * 2).sum().expand(3, 4), x[1:, ::2]

    replayed = recording(spread, drawn(4, 4))
    assert is_made(replayed)
    assert all(map(equal, replayed(drawn(4, 4, seed=5)), spread(drawn(4, 4, seed=5))))


def test_a_call_that_differentiates_lifts_or_converts_is_plain() -> None:
    replayed = recording(lambda x: ((x @ x).tanh(),), drawn(4, 4))
    x = drawn(4, 4, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(replayed(x)[0].sum(), x)
    (expected,) = torch.autograd.grad((x @ x).tanh().sum(), x)
    assert torch.equal(slope, expected)
    lifted = torch.func.vmap(replayed)(drawn(3, 4, 4))[0]
    assert torch.equal(lifted, (drawn(3, 4, 4) @ drawn(3, 4, 4)).tanh())
    with torch.inference_mode():
        assert torch.equal(*replayed(drawn(4, 4)), (drawn(4, 4) @ drawn(4, 4)).tanh())


def test_a_short_loop_is_not_recorded(monkeypatch: Any) -> None:
    monkeypatch.setattr(replay, "SPENT", 10.0)
    replayed = recording(layered, drawn(4, 5, 6))
    assert not is_made(replayed)
    monkeypatch.setattr(replay, "SPENT", 0.0)
    replayed(drawn(4, 5, 6))
    assert is_made(replayed)


def test_a_recording_that_differs_is_refused(monkeypatch: Any) -> None:
    right = replay._function
    monkeypatch.setattr(replay, "_function", lambda o: torch.sub if "add.out" in str(o) else right(o))
    replay._into.cache_clear()
    try:
        replayed = recording(lambda x: ((x + 3 * b).sinh(),), drawn(7, 6))
        assert not is_made(replayed)
        assert torch.equal(*replayed(drawn(7, 6)), (drawn(7, 6) + 3 * b).sinh())
    finally:
        replay._into.cache_clear()


RULES = "adjoint", "bptt", "dyadic_ep", "ep", "aep", "holomorphic_ep", "ift", "phantom", "rbp", "richardson_ep", "tbptt"
GRID = {
    "system": ["toy_cons", "toy_noncons", "cet_energy", "cet_real", "cet_projected", "cet"],
    "estimator": [*RULES, {"name": "aep", "clip": ["batch", "sample"]}, {"name": "aep_refreshed", "every": 3}],
    "T1": [20, 40],
    "T2": 20,
    "beta": 0.02,
    "batch": 3,
}


def test_a_run_has_the_numbers_of_plain_calls(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[str] = []
    recorded = Replayed._recorded

    def noted(self: Replayed, values: Any) -> Any:
        program = recorded(self, values)
        made.append(self._function.__qualname__)
        return program

    monkeypatch.setattr(Replayed, "_recorded", noted)
    tables = []
    for spent in (0.0, math.inf):
        monkeypatch.setattr(replay, "SPENT", spent)
        run = gb.run(gb.suite(GRID), out=tmp_path / str(spent), device="cpu")
        tables.append([pd.read_parquet(run.folder / f"{name}.parquet") for name in ("cells", "params", "budget")])
        if not spent:
            assert {name.partition(".")[0] for name in made} >= {"Field", "NudgedPhase", "step_back"}
            made.clear()
    assert not made
    for mine, theirs in zip(*tables, strict=True):
        drop = [c for c in ("seconds", "peak_memory") if c in mine]
        pd.testing.assert_frame_equal(mine.drop(columns=drop), theirs.drop(columns=drop), check_exact=True)
