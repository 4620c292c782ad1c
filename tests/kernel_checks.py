"""What is seen of the kernels of a system, on a GPU or on a CPU (`hosted.py`): errors, guards, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from gradbench.dynamics.field import Step
from gradbench.dynamics.recordings import parted, with_tensors
from gradbench.dynamics.stack import Fused, Stack
from gradbench.dynamics.trajectory import relax
from gradbench.engine.draws import build
from gradbench.estimators.phases.reverse import ReversePhase, step_back
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse
from gradbench.systems.base import AbstractEnergySystem, Advance, Params

SIZES = {"cet": {"img": 28, "ch": 1, "patch": 7, "D": 64, "dh": 16, "mem": 128}}
TRANSFORMERS = ("cet_real", "cet_energy", "cet_projected", "cet")
TOYS = ("toy_cons", "toy_noncons")
SYSTEMS = (*TRANSFORMERS, *TOYS)
ENERGIES = ("cet_energy", "cet")  # systems with a kernel for their energy
# spreads of biases and inputs, which would be 0
SPREADS = {
    **{name: {"bpos_std": 0.3, "bdec_std": 0.2, "benc_std": 0.1} for name in TRANSFORMERS},
    **{name: {"bias_std": 0.3, "drive_std": 1.0} for name in TOYS},
}
GUARD, MARK = 4096, 123.0
BETA = 0.02
ROUND_OFF = 1e-6  # of a product with weights, relative to the sum of its sizes


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
    options = {"name": system, **SPREADS[system], **SIZES.get(system, {}), **more}
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


def swept(field: Any, states: Tensor, a: Tensor, like: Params) -> dict[str, Tensor]:
    """What a reverse sweep through these states carries: the credit, the sum of p, and the pulls by parameter."""
    a = a.clone(memory_format=torch.contiguous_format)
    summed, sums = torch.zeros_like(a), field.pull_sums(like)
    for s in reversed(states):
        field.add_back(s[None], a, summed, sums)
    return {"a": a, "summed": summed} | field.pulled(summed, sums)


def ahead(advance: Advance, s: Tensor) -> Tensor:
    """The state after a step by kernels."""
    out = torch.empty_like(s)
    advance(s, out)
    return out


def apart(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def credits(field: Fused, start: Tensor, beta: float) -> tuple[float, float]:
    """Errors of (s_- - s_+) / 2 beta after 15 nudged steps against float64: by kernels, and without them."""
    nudge = torch.tensor([beta, -beta]).to(start)[:, None].repeat(1, start.shape[-3])
    step = field.nudged_step(start, nudge, field.step_size, asymmetric=True)
    assert step is not None
    by_kernels = plainly = start[:, None].repeat_interleave(2, 1)
    exact = by_kernels.double()
    for _ in range(15):
        by_kernels, plainly = ahead(step, by_kernels), plain(field, start, plainly, nudge)
        exact = plain(field.wide, start.double(), exact, nudge.double())
    credit, without, expected = ((v[:, 1] - v[:, 0]).double() / (2 * beta) for v in (by_kernels, plainly, exact))
    return apart(credit, expected), apart(without, expected)


def along(field: Fused, steps: int) -> Tensor:
    """So many states of a free relaxation, with a leading axis of time."""
    states = [field.init_state()]
    for _ in range(steps - 1):
        states.append(field.step(states[-1]))
    return torch.stack(states)


def smooth(field: Fused, states: Tensor) -> Tensor:
    """In which examples (c, b) round-off opens or closes no memory: a credit jumps where one does."""
    if "Wmem" not in field.theta:
        return torch.ones(states.shape[1:-1], dtype=torch.bool, device=states.device)
    z, W = field.system.split(states)["z"].double(), field.theta["Wmem"].double()[:, None]
    open_or_closed = (z @ W).abs() >= ROUND_OFF * (z.abs() @ W.abs())
    return open_or_closed.flatten(-2).all(-1).all(0)


def inside_guards(s: Tensor, guard: float) -> tuple[Tensor, Tensor]:
    """A copy of s in the middle of a buffer of one number, and the buffer."""
    buffer = s.new_full((s.numel() + 2 * GUARD,), guard)
    inner = buffer[GUARD:-GUARD].view(s.shape)
    inner.copy_(s)
    return inner, buffer


@contextmanager
def outputs_inside_guards() -> Iterator[list[Tensor]]:
    """Tensors that kernels write into are NaN in the middle of marks meanwhile; the buffers of all of them."""
    buffers: list[Tensor] = []

    def empty(like: Tensor, shape: Sequence[int] | torch.Size) -> Tensor:
        inner, buffer = inside_guards(torch.full(tuple(shape), float("nan")).to(like), MARK)
        buffers.append(buffer)
        return inner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda v, **_: empty(v, v.shape))
        patch.setattr(Tensor, "new_empty", empty)
        yield buffers


def untouched(buffers: Sequence[Tensor], *, least: int) -> bool:
    """Whether there are enough buffers, their marks are whole, and nothing in them was left out."""
    return len(buffers) >= least and all(
        bool((b[:GUARD] == MARK).all() and (b[-GUARD:] == MARK).all() and not b.isnan().any()) for b in buffers
    )


def seen(system: str) -> dict[str, Any]:
    field = stack(system)
    wide = field.wide
    start, states, nudge = moved(field)
    step = field.nudged_step(start, nudge, field.step_size, asymmetric=True)
    assert step is not None
    exact, moved_on = plain(wide, start.double(), states.double(), nudge.double()), ahead(step, states)
    told: dict[str, Any] = {
        "nudged": apart(moved_on, exact),
        "nudged plainly": apart(plain(field, start, states, nudge), exact),
        "free": apart(field.step(states), wide.step(states.double())),
        "free plainly": apart(super(Fused, field).step(states), wide.step(states.double())),
    }
    # numbers beyond the tensors of all examples are neither read nor written
    guarded, _ = inside_guards(states, float("nan"))
    with outputs_inside_guards() as buffers:
        told["equal inside of NaN"] = torch.equal(ahead(step, guarded), moved_on)
    told["guards"] = untouched(buffers, least=1 if field.system.name in ("cet", "cet_energy", "toy_cons") else 2)
    in_place, buffer = inside_guards(states, MARK)
    step(in_place, in_place)
    told["in place"] = torch.equal(in_place, moved_on)
    told["guards in place"] = untouched([buffer], least=1)
    told["free in place"] = takes_any_place(field, states[:, 0])
    told["stored in part"] = stored_in_part(field)
    # an example without a bound leaves the others alone
    worse, from_worse, others = states.clone(), start.clone(), [0, 2, 3, 4]
    worse[..., 1, :] = from_worse[..., 1, :] = float("nan")
    harmed = field.nudged_step(from_worse, nudge, field.step_size, asymmetric=True)
    assert harmed is not None
    told["beside an example"] = torch.equal(ahead(harmed, worse)[..., others, :], moved_on[..., others, :])
    # a cell without a bound leaves its neighbour alone
    for wild in (1e18, float("inf"), float("nan")):
        worse = states.clone()
        worse[:, :, 1] = wild
        told[f"beside {wild}"] = torch.equal(ahead(step, worse)[:, :, 0], moved_on[:, :, 0])
    # the function of one stack with the tensors of another one is that of the other one, as recordings need it
    other = stack(system, seed=1)
    others = moved(other)
    theirs = other.nudged_step(others[0], others[2], other.step_size, asymmetric=True)
    assert theirs is not None
    structure, tensors = parted(theirs)
    told["same structure"] = parted(step)[0] == structure
    told["serves again"] = torch.equal(ahead(with_tensors(step, tensors), others[1]), ahead(theirs, others[1]))
    told |= serving_again(field, other, start)
    told |= seen_product(field, start) | seen_back(field, start) | {"phase": reverse_phase(field)}
    told |= seen_energy(field, states) if isinstance(field.system, AbstractEnergySystem) else {}
    if system in TOYS:  # the same input for all examples
        undriven = stack(system, batch=9, drive_std=0.0)
        s = undriven.init_state()
        told["undriven"] = apart(undriven.step(s), undriven.wide.step(s.double()))
    alone = stack(system, cells=1, batch=1)
    start, states, nudge = moved(alone)
    step = alone.nudged_step(start, nudge, alone.step_size, asymmetric=True)
    assert step is not None
    told["one example"] = apart(ahead(step, states), plain(alone.wide, start.double(), states.double(), nudge.double()))
    return told


def takes_any_place(field: Fused, states: Tensor) -> bool:
    """Whether a free step that is prepared once takes any state into any tensor, the same one among them."""
    expected = [field.step(s) for s in states]
    advance, out = field.prepared_step(states[0]), torch.full_like(states, MARK)
    for s, into in zip(states, out, strict=True):
        advance(s, into)
    return all(map(torch.equal, out, expected)) and torch.equal(_in_place(advance, states[1]), expected[1])


def _in_place(advance: Advance, s: Tensor) -> Tensor:
    s = s.clone()
    advance(s, s)
    return s


def stored_in_part(field: Fused) -> bool:
    """Whether a trajectory of which every second state is stored has the states of one that is stored whole."""
    whole, part = relax(field, (2, 4)), relax(field, (2, 4), hold=3)
    again = torch.cat([states for _, states in part.backwards()][::-1])
    return part.every == 2 and torch.equal(again, whole.states[:-1]) and torch.equal(part.ends, whole.ends)


def reverse_phase(field: Fused) -> float:
    """The largest error of a gradient of `ReversePhase`, over two T1 and a depth, against float64."""
    free = relax(field, (2, 4))
    by_kernels, expected = (ReversePhase().run(of, (3,), free.ends.new_zeros(0)) for of in (free, free.wide))
    errors = []
    for found, wanted in zip(by_kernels, expected, strict=True):
        assert found.gradient is not None
        assert wanted.gradient is not None
        errors += [apart(found.gradient[name], g) for name, g in wanted.gradient.items()]
    return max(errors)


def serving_again(field: Fused, other: Fused, s: Tensor) -> dict[str, bool]:
    """Whether products and steps back of one stack, with the tensors of another one, are those of the other one."""
    like, v = field.cost_grads(s), s.contiguous()
    names = tuple(field.pull_sums(like))

    def back(step: Step) -> tuple[Tensor, ...]:
        return step(v[:1], v.clone(), torch.zeros_like(v), *field.pull_sums(like).values())

    (product, sweep), (their_product, their_sweep) = (
        (f.step_at(s).product, step_back(f, names)) for f in (field, other)
    )
    made, swept_so = with_tensors(product, parted(their_product)[1]), with_tensors(sweep, parted(their_sweep)[1])
    whole = parted(field.step_at(s).jvp)[1]
    return {
        "product reads less": sum(t.nbytes for t in parted(product)[1]) < sum(t.nbytes for t in whole),
        "product serves again": torch.equal(made(v), their_product(v)),
        "back serves again": all(map(torch.equal, back(swept_so), back(their_sweep))),
        "stacks differ": not torch.equal(product(v), their_product(v)),
    }


def seen_energy(field: Fused, s: Tensor) -> dict[str, Any]:
    exact, by_kernel = field.wide.energy(s.double()), field.energy(s)
    worse = s.clone()
    worse[..., 1, :, :] = float("nan")
    with outputs_inside_guards() as buffers:
        field.energy(s)
    return {
        "guards of energy": untouched(buffers, least=0 if field.system.name == "toy_cons" else 1),
        "energy": apart(by_kernel, exact),
        "energy plainly": apart(super(Fused, field).energy(s), exact),
        "energy inside of NaN": torch.equal(field.energy(inside_guards(s, float("nan"))[0]), by_kernel),
        "energy beside NaN": torch.equal(field.energy(worse)[..., 0, :], by_kernel[..., 0, :]),
    }


def seen_product(field: Fused, s: Tensor) -> dict[str, Any]:
    v = torch.randn(s.shape, generator=torch.Generator().manual_seed(2)).to(s)
    by_kernel, plainly = (f.step_at(s).jvp for f in (field, Stack(field.system, field.theta, field.x, field.knobs)))
    exact, found = field.wide.step_at(s.double()).jvp(v.double()), by_kernel(v)
    worse, spoiled, others = s.clone(), s.clone(), [0, 2, 3, 4]
    worse[:, 1] = float("nan")
    spoiled[..., 1, :] = float("nan")
    with outputs_inside_guards() as buffers:
        by_kernel(v)
    of_others = field.step_at(spoiled).jvp(v)[..., others, :]
    return {
        "guards of product": untouched(buffers, least=1),
        "product beside an example": torch.equal(of_others, found[..., others, :]),
        "product": apart(found, exact),
        "product plainly": apart(plainly(v), exact),
        "product inside of NaN": torch.equal(by_kernel(inside_guards(v, float("nan"))[0]), found),
        "product beside NaN": torch.equal(field.step_at(worse).jvp(v)[:, 0], found[:, 0]),
        "product of more rows": apart(by_kernel(torch.stack([v, 2 * v])), torch.stack([exact, 2 * exact])),
    }


def seen_back(field: Fused, start: Tensor) -> dict[str, Any]:
    states, like = start.clone(), field.cost_grads(start)
    a = torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).to(start)
    exact = swept(field.wide, states.double(), a.double(), field.wide.cost_grads(start.double()))
    back, plainly = swept(field, states, a, like), swept(super(Fused, field), states, a, like)
    told: dict[str, Any] = {
        "back": {name: apart(back[name], exact[name]) for name in exact},
        "back plainly": {name: apart(plainly[name], exact[name]) for name in exact},
    }
    # numbers beyond the tensors of a step are neither read nor written
    (inner, of_inner), (summed, of_summed) = (inside_guards(v, MARK) for v in (a, torch.zeros_like(a)))
    sums = {name: inside_guards(v, MARK) for name, v in field.pull_sums(like).items()}
    with outputs_inside_guards() as buffers:
        for s in reversed(states):
            from_s = inside_guards(s[None], float("nan"))[0]
            field.add_back(from_s, inner, summed, {name: v for name, (v, _) in sums.items()})
    told["back inside of NaN"] = torch.equal(inner, back["a"]) and torch.equal(summed, back["summed"])
    buffers += [of_inner, of_summed, *(buffer for _, buffer in sums.values())]
    told["guards of back"] = untouched(buffers, least=5)
    # an example without a bound leaves the others alone
    worse, wild, others = states.clone(), a.clone(), [0, 2, 3, 4]
    worse[..., 1, :] = wild[..., 1, :] = float("nan")
    told["back beside an example"] = torch.equal(
        swept(field, worse, wild, like)["a"][..., others, :], back["a"][..., others, :]
    )
    # neither does a cell without a bound harm its neighbour, nor a row of T1 the other one
    worse, wild = states.clone(), a.clone()
    worse[:, 1], wild[1] = float("nan"), float("inf")
    harmed = swept(field, worse, wild, like)
    told["back beside NaN"] = all(torch.equal(harmed[name][0, 0], back[name][0, 0]) for name in back)
    return told
