"""The batched path: problems of one shape run as a stack, in packs that fit the memory of the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from gradbench.data.draw_memory import DrawMemory
from gradbench.dynamics.capture import unused
from gradbench.dynamics.recordings import forget, lent
from gradbench.dynamics.stack import Fused, Stack
from gradbench.engine.device import makes_kernels
from gradbench.engine.draws import build, draw, moved
from gradbench.engine.solving import solve
from gradbench.errors import UserError, near_miss
from gradbench.systems.kernels.programs import nvrtc_version

if TYPE_CHECKING:
    from gradbench.dynamics.meter import Meter
    from gradbench.engine.outcome import Outcome
    from gradbench.planning.problems import Problem
    from gradbench.systems.base import AbstractSystem, Data, Params
    from gradbench.vocabulary.status import Thresholds

CPU_BUDGET = 2**32  # bytes of a pack on a CPU, where no `memory` is named
SHARE = 0.8  # of the free memory of a GPU
ENGINES = ("auto", "eager", "batched", "compiled", "fused")
DRAWN = DrawMemory(2**28)  # parameters and data of stacks, which are the same in many packs
LANES = 2  # packs in flight on a GPU: one computes while another is waited for, judged or begun
TURNS = 4  # packs that a thread of a cluster gets at least, so that the threads end at about the same time
WORTH = 32  # problems of a stack; one of fewer takes hardly less time
TENSOR_CORES = (8, 0)  # compute capability from which on they multiply in TF32
COMPILED = 300_000  # evaluations: kernels save a second of them, and those of a system take seconds to compile, once
# memory that a recorded force with its transposed product takes, in states: measured 30 on cet_real, 20 on the toys
RECORDED = 32


def measure_pack(
    problems: Sequence[Problem],
    device: str,
    thresholds: Thresholds,
    engine: str = "batched",
    budget: int | None = None,
    deep: bool = False,
    meter: Meter | None = None,
) -> list[Outcome]:
    """Measure problems of one shape. Raises torch.OutOfMemoryError where they do not fit. `deep`, `meter`: see `solve`.

    The eager engine runs one problem in plain torch. A stack, which may hold a single problem, too, is captured on
    CUDA: with `engine = "compiled"` it is compiled before, with `"fused"` its steps are kernels of its system, where it
    has some. Where the states of a trajectory would take most of the budget, only some are stored and the others are
    computed twice.
    """
    dtype = getattr(torch, problems[0].point.dtype)

    @cache  # problems that differ in a knob alone start from the same numbers
    def drawn(system: AbstractSystem, seed: int, batch: int) -> tuple[Params, Data]:
        theta, x = draw(system, seed, batch)
        return moved(theta, device, dtype), moved(x, device, dtype)

    def drawn_before(system: AbstractSystem, seed: int, batch: int) -> tuple[Params, Data]:
        theta, x = DRAWN.of((system, seed, batch, device, dtype), partial(drawn, system, seed, batch))
        return dict(theta), dict(x)

    alone = engine == "eager" or (len(problems) == 1 and not device.startswith("cuda"))
    # a stack copies what it is made of, so that nothing can be written into numbers that a later pack gets
    fields = [build(problem, device, draw=drawn if alone else drawn_before) for problem in problems]
    stack = Fused if engine == "fused" else Stack
    field = fields[0] if alone else stack.of(fields, compiled=engine == "compiled")
    try:
        if isinstance(field, Fused) and device.startswith("cuda"):
            field.compile_kernels()
        with lent():
            return solve(problems, field, thresholds, states_at_once(problems, device, budget), deep=deep, meter=meter)
    except torch.OutOfMemoryError:
        forget()  # what is measured next, as the halves of this pack, has this memory, too
        DRAWN.forget()
        raise


def compile_kernels(problem: Problem, device: str, engine: str) -> None:
    """Compile the kernels of the system of a problem, where the engine has some: the first time it takes seconds."""
    if engine == "fused" and isinstance(stack := Fused.of([build(problem, device)]), Fused):
        stack.compile_kernels()


def resolved(engine: object, device: str, problems: Iterable[Problem], compiler: bool | None = None) -> str:
    """The engine that `auto` stands for: eager on a CPU, where a problem already fills a core, else fused or batched.

    It is fused where kernels serve so many evaluations of the `problems` that it pays to compile them, once on a
    machine, and where these are the kernels that were measured. `compiler` is whether kernels can be compiled where
    packs are measured; None: they are measured here. Raises UserError for an engine that is not known, or that the
    device does not have.
    """
    if engine not in ENGINES:
        raise UserError(f"engine = {engine!r} is not known{near_miss(engine, ENGINES)}")
    cuda = device.startswith("cuda")
    if engine in ("compiled", "fused") and not cuda:
        raise UserError(f"engine = {engine!r} needs a CUDA device; use auto, eager or batched")
    if engine == "fused" and not (nvrtc_version() is not None if compiler is None else compiler):
        needs = "the packages cuda-bindings and nvidia-cuda-nvrtc, which come with torch for CUDA"
        raise UserError(f"engine = 'fused' needs {needs}; use auto, eager or batched")
    if engine == "fused" and compiler is None and torch.cuda.get_device_capability(device) < TENSOR_CORES:
        raise UserError("engine = 'fused' needs a GPU of compute capability 8.0 or later; use auto, eager or batched")
    if engine != "auto":
        return str(engine)
    if not cuda:
        return "eager"
    if not _kernels_pay(problems):
        return "batched"
    made = makes_kernels(device) if compiler is None else compiler
    return "fused" if made else "batched"


def _kernels_pay(problems: Iterable[Problem]) -> bool:
    """Whether kernels serve at least `COMPILED` evaluations."""
    served = (p.cost.work for p in problems if p.point.dtype == "float32" and Fused.serves(p.system))
    return any(total >= COMPILED for total in accumulate(served))


def states_at_once(problems: Sequence[Problem], device: str, budget: int | None = None) -> int:
    """How many states of a pack half of `budget` bytes hold, by default half of a share of what is free."""
    return max(2, (budget or available(device)) // 2 // (len(problems) * _state(problems[0])))


def does_not_fit(error: BaseException) -> bool:
    """Whether an exception says that memory is short: on a CPU torch raises a RuntimeError for it."""
    words = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


@contextmanager
def refused_where_too_large(*problems: Problem) -> Iterator[None]:
    """Inside, a shortage of memory becomes a UserError that names the sizes of the largest problem."""
    try:
        yield
    except Exception as error:
        if not does_not_fit(error):
            raise
        largest = max(problems, key=footprint)
        T1 = f", T1 = {max(largest.T1s)}" if max(largest.T1s) else ""
        label = largest.cells[0].labels["system_label"]
        raise UserError(f"{label}, batch = {largest.point.batch}{T1}: it does not fit into memory") from None


def cut_into_packs(
    problems: Sequence[Problem], device: str, engine: str, budget: int | None = None, threads: int = 1
) -> Iterator[list[Problem]]:
    """Cut problems into packs of one shape that fit into `budget` bytes, by default a share of what is free.

    On a GPU the packs of all lanes share these bytes. The eager engine takes every problem alone. For several `threads`
    of a cluster no pack of more than `WORTH` problems takes more than a part in `TURNS` of what a thread has to do.
    """
    if engine == "eager":
        yield from ([problem] for problem in problems)
        return
    families: dict[object, list[Problem]] = {}
    for problem in problems:
        families.setdefault(problem.shape, []).append(problem)
    share = sum(problem.cost.work for problem in problems) / (threads * TURNS) if threads > 1 else math.inf
    for family in families.values():
        size = max(1, (budget or available(device)) // lanes(device, engine) // footprint(family[0]))
        if threads > 1:
            most = share * len(family) / sum(problem.cost.work for problem in family)
            size = min(size, max(WORTH, int(most)))
        number = -(-len(family) // size)  # packs of equal size waste nothing
        for i in range(number):
            yield family[i::number]


def lanes(device: str, engine: str) -> int:
    """Packs that are in flight on a device: several on a GPU, unless its programs are compiled first."""
    return LANES if device.startswith("cuda") and engine in ("batched", "fused") else 1


def how_many_at_once(cut: Sequence[Sequence[Problem]], device: str, engine: str, budget: int) -> int:
    """How many of these packs run side by side.

    On a GPU as many as it has lanes; on a CPU, where a pack is one problem, as many as cores and `budget` allow.
    """
    if not cut:
        return 1
    if device.startswith("cuda") or engine == "batched":
        return min(lanes(device, engine), len(cut))
    most = max(footprint(problem) for pack in cut for problem in pack)
    return max(1, min(torch.get_num_threads(), len(cut), budget // most))


def footprint(problem: Problem) -> int:
    """Bytes that one problem needs at its peak, as a model: trajectory and estimates, then its widest phase."""
    T1s, passes = len(problem.T1s), (problem.reverse, *problem.passes)
    rows = [T1s, *(len(p.T1s) * (max(1, len(p.betas)) * 2 + 1) for p in problem.passes)]
    read = sum(
        len(p.T1s) * max(1, len(p.betas)) * len({(c.estimator, c.estimator_options, c.T2) for c in p.cells})
        for p in passes
    )
    theta = sum(math.prod(shape) for shape in problem.system.shapes.values())
    return _state(problem) * (max(problem.T1s) + 1 + (T1s + max(rows)) * RECORDED) + read * theta * _width(problem)


def _state(problem: Problem) -> int:
    """Bytes of one state of all examples."""
    coordinates = sum(math.prod(shape) for shape in problem.system.layout.values())
    return problem.point.batch * coordinates * _width(problem)


def _width(problem: Problem) -> int:
    """Bytes of a number."""
    return 8 if problem.point.dtype == "float64" else 4


def available(device: str, memory: str | None = None) -> int:
    """Bytes to work in: `memory` as a share of what is free ("80%"; of 4 GiB on a CPU) or as a size ("24GiB").

    Raises UserError for anything else.
    """
    free = torch.cuda.mem_get_info(device)[0] + unused(device) if device.startswith("cuda") else CPU_BUDGET
    if memory is None:
        return int(SHARE * free) if device.startswith("cuda") else free
    memory = str.__str__(memory) if isinstance(memory, str) else str(memory)
    number, unit = memory.rstrip("%BGMKib"), memory.lstrip("0123456789.")
    units = {"%": free / 100, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    try:
        amount = float(number) * units[unit]
    except (ValueError, KeyError):
        raise UserError(f"memory = {memory!r}: expected a share as 80% or a size as 24GiB") from None
    if math.isinf(amount):
        raise UserError(f"memory: a number of {len(number)} digits: no machine has so much")
    if not amount > 0:
        raise UserError(f"memory = {memory!r}: there must be some")
    if unit == "%" and float(number) > 100:
        raise UserError(f"memory = {memory!r}: there is no more than 100% of what is free")
    return int(amount)
