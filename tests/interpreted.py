"""Kernels of the transformers in the interpreter of Triton, on a CPU: `TRITON_INTERPRET=1 python tests/interpreted.py`.

Prints what was seen as JSON, by system. `tests/physics/test_fused.py` runs this file, since a process that interprets
kernels cannot compile any.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from gradbench.dynamics.recordings import parted, with_tensors
from gradbench.dynamics.stack import Fused
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

SIZES = {"cet": {"img": 28, "ch": 1, "patch": 7, "D": 64, "dh": 16, "mem": 128}}
SYSTEMS = ("cet_real", "cet_energy", "cet_projected", "cet")
GUARD, MARK = 4096, 123.0
BETA = 0.02


def stack(
    system: str,
    cells: int = 2,
    batch: int = 5,
    device: str = "cpu",
    *,
    eps: float = 0.1,
    seed: int = 0,
    **more: Any,
) -> Fused:
    """Cells that differ in the scale of attention and in their numbers, with biases that are not 0."""
    options = {"name": system, "bpos_std": 0.3, "bdec_std": 0.2, "benc_std": 0.1, **SIZES.get(system, {}), **more}
    s = [0.2 + 0.9 * c / cells for c in range(cells)]
    grid = {"system": options, "estimator": "aep", "s": s, "damp": 0.7, "eps": eps, "batch": batch, "T1": 20, "T2": 5}
    planned = plan(parse({"name": "x", "about": "", "grid": [grid | {"seed": seed}]}, "x"))
    field = Fused.of([build(problem, device) for problem in planned.problems])
    assert isinstance(field, Fused)
    return field


def moved(field: Fused, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """End states of two T1, three nudged states of each, and the nudges."""
    s = field.init_state()
    for _ in range(5):
        s = super(Fused, field).step(s)
    start = torch.stack([s * (1 + 0.1 * i) for i in range(rows)])
    rng = torch.Generator().manual_seed(0)
    states = start[:, None].repeat_interleave(3, 1)
    states = states + 0.01 * torch.randn(states.shape, generator=rng).to(states)
    nudge = torch.tensor([BETA, -BETA, 0.0], device=s.device)[:, None].repeat(1, len(field.knobs.eps))
    return start, states, nudge


def plain(field: Any, start: Tensor, states: Tensor, nudge: Tensor) -> Tensor:
    """A nudged step as `NudgedPhase` takes it without kernels."""
    skew = field.swirl_at(start[:, None].expand_as(states))
    push = field.force(states) - nudge[..., None, None] * field.cost_slope(states)
    push = push - 2 * skew.antisym(states - start[:, None])
    return field.project(states + field.step_size * push)


def apart(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def inside_guards(s: Tensor, guard: float) -> tuple[Tensor, Tensor]:
    """A copy of s in the middle of a buffer of one number, and the buffer."""
    buffer = s.new_full((s.numel() + 2 * GUARD,), guard)
    inner = buffer[GUARD:-GUARD].view(s.shape)
    inner.copy_(s)
    return inner, buffer


def seen(system: str) -> dict[str, Any]:
    field = stack(system)
    wide = field.wide
    start, states, nudge = moved(field)
    step = field.nudged_step(start, nudge, field.step_size, asymmetric=True)
    assert step is not None
    exact, ahead = plain(wide, start.double(), states.double(), nudge.double()), step(states)
    told: dict[str, Any] = {
        "nudged": apart(ahead, exact),
        "nudged plainly": apart(plain(field, start, states, nudge), exact),
        "free": apart(field.step(states), wide.step(states.double())),
        "free plainly": apart(super(Fused, field).step(states), wide.step(states.double())),
    }
    # numbers beyond the state of all examples are neither read nor written
    guarded, _ = inside_guards(states, float("nan"))
    buffers: list[Tensor] = []

    def empty_like(v: Tensor, **more: Any) -> Tensor:
        inner, buffer = inside_guards(torch.zeros_like(v), MARK)
        buffers.append(buffer)
        return inner

    usual, torch.empty_like = torch.empty_like, empty_like
    told["equal inside of NaN"] = torch.equal(step(guarded), ahead)
    torch.empty_like = usual
    told["guards"] = bool(buffers) and all(
        bool((b[:GUARD] == MARK).all() and (b[-GUARD:] == MARK).all()) for b in buffers
    )
    # a cell without a bound leaves its neighbour alone
    for wild in (1e18, float("inf"), float("nan")):
        worse = states.clone()
        worse[:, :, 1] = wild
        told[f"beside {wild}"] = torch.equal(step(worse)[:, :, 0], ahead[:, :, 0])
    # the function of one stack with the tensors of another one is that of the other one, as recordings need it
    other = stack(system, seed=1)
    others = moved(other)
    theirs = other.nudged_step(others[0], others[2], other.step_size, asymmetric=True)
    assert theirs is not None
    structure, tensors = parted(theirs)
    told["same structure"] = parted(step)[0] == structure
    told["serves again"] = torch.equal(with_tensors(step, tensors)(others[1]), theirs(others[1]))
    alone = stack(system, cells=1, batch=1)
    start, states, nudge = moved(alone)
    step = alone.nudged_step(start, nudge, alone.step_size, asymmetric=True)
    assert step is not None
    told["one example"] = apart(step(states), plain(alone.wide, start.double(), states.double(), nudge.double()))
    return told


if __name__ == "__main__":
    with isolated(), torch.no_grad():
        print(json.dumps({system: seen(system) for system in SYSTEMS}))
