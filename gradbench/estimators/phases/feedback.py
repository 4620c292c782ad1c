"""Credit that goes from layer to layer through fixed random matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, final

from gradbench.data.streams import Streams, normal
from gradbench.dynamics.meter import launched
from gradbench.estimators.base import AbstractPhase, Count, Snapshot
from gradbench.estimators.phases.adjoint import AdjointPhase
from gradbench.systems.base import BACK, DIRECT, LayeredWeights
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field
    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import Params

Kind = Literal["layered", "direct", "signed"]


@final
@dataclass(frozen=True)
class FeedbackPhase(AbstractPhase):
    """The adjoint phase, or backpropagation through a forward pass, with matrices B in place of transposed weights W.

    layered  B ~ N(0, mean W^2) of the shape of W, for every W that carries credit
    direct   the same for the last W alone; every layer below gets its credit from the output, B of (outputs, width)
    signed   B = sign(W) |b|, b ~ N(0, mean W^2)
    """

    kind: Kind

    recordable = False  # the matrices are drawn on the CPU
    departure = Cause.JACOBIAN

    def run(self, free: Trajectory, depths: tuple[int, ...], betas: Float[Tensor, "j *c"]) -> Iterator[Snapshot]:
        field = replace(free.field, theta=free.field.theta | drawn(free.field, self.kind))
        fed = replace(free, field=field, _views={})
        if not field.predicts:
            yield from AdjointPhase().run(fed, depths, betas)
            return
        passed = field.equilibrium_grads(fed.cost_slope)
        launched(products=len(free.ends))
        gradient = {n: passed[n] + fed.cost_grads[n] for n in free.field.theta}
        credit = field.layer_slopes[..., -free.ends.shape[-1] :].expand_as(free.ends)
        for depth in depths:
            yield Snapshot(depth, gradient=gradient, credit=credit)

    def count(self, T1: int, depth: int | None) -> Count:
        assert depth is not None
        return Count(vjp=depth if T1 else 1)  # a forward pass is gone back through once


def drawn(field: Field, kind: Kind) -> Params:
    """The matrices of every cell, from its seed; their size is that of the weights that they stand in for."""
    import torch

    system = field.system
    assert isinstance(system, LayeredWeights)
    last = system.carriers[-1]
    shapes = {BACK + name: system.shapes[name] for name in system.carriers}
    if kind == "direct":
        outputs, _ = system.shapes[last]
        lower = {DIRECT + layer: (outputs, width) for layer, width in list(system.hidden.items())[:-1]}
        shapes = lower | {BACK + last: shapes[BACK + last]}
    matrices = {}
    for name, shape in shapes.items():
        W = field.theta[last if name.startswith(DIRECT) else name.removeprefix(BACK)]
        draws = torch.stack([normal(Streams(seed)[f"feedback {name}"], shape) for seed in field.cell_seeds]).to(W)
        B = (draws if W.ndim > len(shape) else draws[0]) * W.square().mean((-2, -1), keepdim=True).sqrt()
        matrices[name] = W.sign() * B.abs() if kind == "signed" else B
    return matrices
