"""Time of every phase by engine, side by side with its plain form. Ratios are what counts; `make perf` prints them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from ledger import DEVICE, Entry, Ledger
from pytest_benchmark.fixture import BenchmarkFixture
from script import Script
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gradbench.dynamics.capture import Captured
from gradbench.dynamics.field import Field
from gradbench.dynamics.stack import Fused, Stack
from gradbench.engine.draws import build
from gradbench.engine.precision import isolated
from gradbench.planning.plans import plan
from gradbench.planning.suites import parse

# the usual sizes of cet_real; on a CPU fewer, which says as much about it
CELLS, BATCH = (32, 64) if DEVICE == "cuda" else (4, 16)
ENGINES = ["eager", "batched", *(["compiled", "fused"] if DEVICE == "cuda" else [])]
# steps of one timing, as many as such a phase usually takes
STEPS = {"free": 100, "reverse": 100, "reverse + pull": 100, "nudged ep": 15, "correction": 15, "nudged aep": 15}

Phase = Callable[[Field, torch.Tensor, torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]


def fields() -> list[Field]:
    s = [0.1 + 0.9 * i / (CELLS // 2) for i in range(CELLS // 2)]
    grid = {"system": "cet_real", "estimator": "bptt", "damp": [0.5, 1.0], "s": s, "batch": BATCH}
    return [build(p, DEVICE) for p in plan(parse({"name": "perf", "about": "", "grid": [grid]}, "perf")).problems]


def free(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    return lambda s, a: (field.step(s), a)


def reverse(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    return lambda s, a: (s, a.copy_(a + field.step_size * field.at(s).vjp(a)))


def reverse_and_pull(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    totals = {name: torch.zeros_like(p) for name, p in field.theta.items()}

    def back(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        Ja, pulled = field.backward(s, a)
        for name, total in totals.items():
            total += pulled[name]
        return s, a.copy_(a + field.step_size * Ja)

    return back


def correction(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    swirl = field.swirl_at(s)
    return lambda s, a: (s, 2 * swirl.antisym(a))


def nudged(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    return lambda s, a: (field.project(s + field.step_size * (field.force(s) - 0.02 * field.cost_slope(s))), a)


def nudged_asymmetric(field: Field, s: torch.Tensor, a: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    swirl, start = field.swirl_at(s), s.clone()

    def step(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        push = field.force(s) - 0.02 * field.cost_slope(s) - 2 * swirl.antisym(s - start)
        return field.project(s + field.step_size * push), a

    return step


def by_kernels(
    phase: str, stack: Fused, s: torch.Tensor, a: torch.Tensor
) -> Callable[..., tuple[torch.Tensor, ...]] | None:
    """The same step by the kernels of the system, of one row, made ready as a run makes it ready.

    None where no kernel takes this step by itself.
    """
    kernels, start = stack.kernels, s[None]
    assert kernels is not None
    if phase == "free":  # every state goes to where the trajectory stores it
        advance, places = stack.prepared_step(s), itertools.cycle(s.new_empty((STEPS[phase], *s.shape)))

        def along(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = next(places)
            advance(s, out)
            return out, a

        return along
    if phase.startswith("nudged"):
        nudge = torch.full_like(stack.knobs.eps, 0.02)[None]
        step = stack.nudged_step(start, nudge, stack.step_size, asymmetric=phase == "nudged aep")
        assert step is not None

        def in_place(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            step(s[None, None], s[None, None])
            return s, a

        return Captured(in_place, s, a)
    if phase == "correction":
        inputs = kernels.correction_inputs(stack.activate(start))
        assert inputs is not None

        def bend(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            kernels.fused_bent(stack._read, s[None, None], start, inputs)
            return s, a

        return Captured(bend, s, a)
    if phase == "reverse + pull":
        summed, sums = torch.zeros_like(a), stack.pull_sums({n: p[None] for n, p in stack.theta.items()})

        def back(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            stack.add_back(s[None], a[None], summed[None], sums)
            return (a,)

        recorded = Captured(back, s, a)
        return lambda s, a: (s, *recorded(s, a))  # every step reads another state of the trajectory
    return None


def plain(phase: str, script: Script, s: torch.Tensor) -> Callable[[], object]:
    """The same steps of one cell as the script takes them."""
    steps = STEPS[phase]
    if phase == "free":
        return lambda: script.relax(steps)
    if phase in ("reverse", "reverse + pull"):
        return lambda: script.bptt(steps)
    if phase == "correction":
        from torch.autograd.functional import jvp, vjp

        return lambda: [(jvp(script.swirl, s, s)[1], vjp(script.swirl, s, s)[1]) for _ in range(steps)]
    return lambda: script.nudged(s, steps, 0.02, asymmetric=phase == "nudged aep")


PHASES: dict[str, Phase] = {
    "free": free,
    "reverse": reverse,
    "reverse + pull": reverse_and_pull,
    "nudged ep": nudged,
    "correction": correction,
    "nudged aep": nudged_asymmetric,
}


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, and how many there are; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in (torch.ops.aten._unsafe_view.default, torch.ops.aten.empty.memory_format):
            moved = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.untyped_storage().nbytes() and t.numel() * t.element_size() for t in moved)
            self.operations += 1
        return out


def seconds(function: Callable[[], object], rounds: int = 7) -> float:
    """Median, the device waited for."""
    times = []
    for i in range(rounds + 2):
        start = perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(perf_counter() - start)
    return statistics.median(times)


@pytest.mark.benchmark(group="phases")
@pytest.mark.parametrize("phase", PHASES)
def test_phase(phase: str, ledger: Ledger, benchmark: BenchmarkFixture) -> None:
    steps = STEPS[phase]
    with isolated(), torch.no_grad():
        singles = fields()
        stack, one = Stack.of(singles), singles[0]
        s = stack.init_state()
        for _ in range(60):
            s = stack.step(s)
        a = 1e-2 * torch.randn(s.shape, generator=torch.Generator().manual_seed(0)).to(s)
        step = PHASES[phase](stack, s, a)  # a reverse step writes into a, as the sweep does
        with FlopCounterMode(display=False) as flops:
            step(s, a)
        with Traffic() as traffic:
            step(s, a)
        work = {
            "mflop": flops.get_total_flops() / CELLS / 1e6,
            "mbyte": traffic.bytes / CELLS / 1e6,
            "kernels": traffic.operations,
        }
        with torch.enable_grad():
            script = seconds(plain(phase, Script(one), s[0]), rounds=3) / steps * 1e6
        ledger.add(Entry(phase, "script", script, **work, ratio=1.0))

        def loop(step: Callable[..., tuple[torch.Tensor, ...]], s: torch.Tensor, a: torch.Tensor) -> None:
            for _ in range(steps):
                s, a = step(s, a)

        for engine in ENGINES:
            if engine == "eager":
                alone = PHASES[phase](one, s[0], a[0])
                us = seconds(lambda: loop(alone, s[0], a[0])) / steps * 1e6  # noqa: B023
            else:
                run: Callable[..., tuple[torch.Tensor, ...]] | None = step
                if engine == "fused":
                    run = by_kernels(phase, Fused.of(singles), s, a)
                elif DEVICE == "cuda":
                    run = Captured(step, s, a, compiled=engine == "compiled")
                if run is None:
                    continue
                us = seconds(lambda: loop(run, s, a)) / steps / CELLS * 1e6  # noqa: B023
            ledger.add(Entry(phase, engine, us, **work, ratio=script / us))
        benchmark.extra_info["ratios"] = ledger.ratios
        benchmark.pedantic(loop, (step, s, a), rounds=1)


@pytest.mark.benchmark(group="ceilings")
def test_ceilings(ledger: Ledger, benchmark: BenchmarkFixture) -> None:
    """What this processor reaches where nothing but products, or nothing but copies, is asked of it."""
    n = 8192 if DEVICE == "cuda" else 2048
    with isolated():
        a, b = torch.randn(2, n, n, device=DEVICE)
        ledger.ceilings["tflops"] = 2 * n**3 / seconds(lambda: a @ b) / 1e12
        out = torch.empty_like(a)
        ledger.ceilings["tbytes"] = 2 * a.nbytes / seconds(lambda: out.copy_(a)) / 1e12
        benchmark.pedantic(out.copy_, (a,), rounds=3)
