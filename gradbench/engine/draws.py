"""From coordinates to tensors: parameters, data and knobs of one problem, the same on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from gradbench.data import given
from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.engine.checkpoint import planned_params
from gradbench.errors import SystemFaultError, UserError, near_miss
from gradbench.vocabulary.coordinates import COORDINATES, Knobs
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.planning.problems import Problem
    from gradbench.systems.base import AbstractSystem, Data, Params


def draw(system: AbstractSystem, seed: int, batch: int) -> tuple[Params, Data]:
    """theta and x, on the CPU in float64."""
    streams = Streams(seed)
    return system.init_params(streams["params"]), system.sample(streams, batch)


def build(
    problem: Problem,
    device: str,
    params: Mapping[str, Tensor] | None = None,
    data: Mapping[str, Tensor] | None = None,
    draw: Callable[[AbstractSystem, int, int], tuple[Params, Data]] = draw,
) -> Field:
    """The field of a problem: theta and x are drawn or replaced by trained or given tensors, then cast and moved."""
    point, system, dtype = problem.point, problem.system, getattr(torch, problem.point.dtype)
    theta, x = map(dict, draw(system, point.seed, point.batch))
    if problem.params_from is not None:
        trained = planned_params(problem.params_from, point.seed, system.shapes)
        theta |= fitting(trained, system.shapes, dtype, "params_from", f"{system.name} has no such parameter")
    theta |= fitting(params or {}, system.shapes, dtype, "params", f"{system.name} has no such parameter")
    categories = {name: None for name, value in x.items() if not value.is_floating_point()} | system.categories
    shapes = system.data_shapes(point.batch)
    x |= fitting(data or {}, shapes, dtype, "data", f"{system.name} has no such data", categories)
    values = [getattr(point, name) for name in Knobs._fields]
    scalars = [torch.tensor(0.0 if v is None else v, dtype=dtype, device="cpu") for v in values]
    knobs = Knobs(*(v.to(device) for v in scalars))
    theta, x = moved(theta, device, dtype), moved(x, device, dtype)
    return Field(system, theta, x, knobs, seeds=(point.seed,), solver=Solver(point.solver))


def moved(tensors: Mapping[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """These tensors on a device, floating-point ones in a dtype; a tensor that is so already is not copied."""
    return {
        name: value.detach().to(device, dtype) if value.is_floating_point() else value.detach().to(device)
        for name, value in tensors.items()
    }


def fitting(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    where: str,
    unknown: str,
    categories: Mapping[str, int | None] | None = None,
) -> dict[str, Tensor]:
    """Given tensors in the dtype of the cell, or as the whole numbers that a system wants.

    Raises UserError for an entry that is not known, of another shape, or of other numbers. `categories` is the number
    of values that an entry of whole numbers may have; None: any.
    """
    whole, fitted = categories or {}, {}
    for name, value in tensors.items():
        place = f"{where}[{name!r}]"
        if name not in shapes:
            raise UserError(f"{place}: {unknown}{near_miss(name, shapes)}")
        given.shaped(value, shapes[name], place)
        fitted[name] = given.whole(value, whole[name], place) if name in whole else given.real(value, dtype, place)
    return fitted


def try_force(field: Field) -> Callable[[], None]:
    """Evaluate F(s_0) once, before anything else is computed, and hold it to what a force is.

    Raises SystemFaultError for a wrong shape or dtype. What is returned raises it for NaN and inf, and waits for a GPU.
    """
    system, like = field.system, next(iter(field.theta.values()))
    with torch.no_grad():
        s = field.init_state()
        force = field.force(s)
    cells = tuple(field.knobs.eps.shape)
    batch = next(v.shape[len(cells)] for name, v in field.x.items() if name in system.per_example)
    shape = (*cells, batch, sum(map(math.prod, system.layout.values())))
    for what, value in {"s_0": s, "F(s_0)": force}.items():
        if not isinstance(value, torch.Tensor):
            raise SystemFaultError(f"{system.name}: {what} is a {type(value).__name__}, expected a tensor")
        if tuple(value.shape) != shape:
            seen, expected = tuple(value.shape)[len(cells) :], shape[len(cells) :]
            raise SystemFaultError(f"{system.name}: {what} has shape {seen}, expected {expected}")
        if value.dtype != like.dtype:
            raise SystemFaultError(f"{system.name}: {what} is {_word(value.dtype)}, expected {_word(like.dtype)}")
    finite = torch.stack([value.isfinite().all() for value in (s, force)])

    def confirm() -> None:
        for what, value, holds in zip(("s_0", "F(s_0)"), (s, force), finite.tolist(), strict=True):
            if not holds:
                wrong = "NaN" if value.isnan().any() else "inf"
                raise SystemFaultError(f"{system.name}: {what} holds {wrong}, expected finite numbers{_largest(field)}")

    if not like.is_cuda:
        confirm()
    return confirm


def _largest(field: Field) -> str:
    """What a message adds where a number that goes into the force is so large that its square overflows, else ""."""
    names = {c.attribute: name for name, c in COORDINATES.items()}
    given = {**field.theta, **field.x, **{names[n]: knob for n, knob in field.knobs._asdict().items()}}
    sizes = {name: float(v.abs().max()) for name, v in given.items() if v.is_floating_point()}
    dtype, largest = next(iter(field.theta.values())).dtype, max(sizes, key=lambda name: sizes[name])
    if not sizes[largest] > math.sqrt(torch.finfo(dtype).max):
        return ""
    return f"; {largest} has numbers of up to {sizes[largest]:.1e}, whose squares {_word(dtype)} cannot hold"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
