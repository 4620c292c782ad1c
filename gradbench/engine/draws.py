"""From coordinates to tensors: parameters, data and knobs of one problem, the same on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.engine.checkpoint import planned_params
from gradbench.errors import UserError, near_miss
from gradbench.vocabulary.coordinates import Knobs

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
    point, system = problem.point, problem.system
    theta, x = map(dict, draw(system, point.seed, point.batch))
    if problem.params_from is not None:
        theta |= _fitting(
            planned_params(problem.params_from, point.seed, system.shapes),
            system.shapes,
            f"params_from of {point.system}",
        )
    theta |= _fitting(params or {}, system.shapes, f"params of {point.system}")
    x |= _fitting(data or {}, system.data_shapes(point.batch), f"data of {point.system}")
    dtype = getattr(torch, point.dtype)

    values = [getattr(point, name) for name in Knobs._fields]
    scalars = [torch.tensor(0.0 if v is None else v, dtype=dtype) for v in values]
    knobs = Knobs(*(v.to(device) for v in scalars))
    return Field(system, moved(theta, device, dtype), moved(x, device, dtype), knobs)


def moved(tensors: Mapping[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """These tensors on a device, floating-point ones in a dtype; a tensor that is so already is not copied."""
    return {
        name: value.detach().to(device, dtype) if value.is_floating_point() else value.detach().to(device)
        for name, value in tensors.items()
    }


def _fitting(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, Tensor]:
    for name, value in given.items():
        if name not in shapes:
            raise UserError(f"{what}: {name!r} is not known{near_miss(name, shapes)}")
        if tuple(value.shape) != shapes[name]:
            raise UserError(f"{what}: {name} has shape {tuple(value.shape)}, expected {shapes[name]}")
    return dict(given)
