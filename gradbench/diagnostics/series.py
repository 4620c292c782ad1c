"""A cell as series: the spectrum at s*, estimates against depth, updates step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gradbench.data.streams import Streams, normal
from gradbench.diagnostics.arnoldi import ritz
from gradbench.diagnostics.deep import SPACE
from gradbench.diagnostics.ladder import LIVE
from gradbench.diagnostics.metrics import compare
from gradbench.diagnostics.neumann import adjoints
from gradbench.dynamics.krylov import krylov_space
from gradbench.dynamics.linear import dense
from gradbench.estimators.base import Snapshot, along
from gradbench.estimators.reference import REFERENCE
from gradbench.planning import registry
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Complex, Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import Params

WIDEST = 1024  # coordinates of a state up to which all eigenvalues are taken
RITZ = 100  # dimensions of the Krylov space of a wider one
DEPTHS = 24  # points of a depth curve
DEEPER = 2  # times the T2 of the cell: where depth curves end
STEPS = 60  # of the second phase whose updates are shown, at most
PARAMS = 3  # whose updates are shown, at most


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Eigenvalues of J_G at s*, of the sample that has the one with the largest modulus."""

    values: Complex[Tensor, "m"]
    whole: bool  # all n of them; else Ritz values of a Krylov space, which approach the outermost first
    sample: int


def eigenvalues(free: Trajectory, seed: int) -> Eigenvalues:
    """The spectrum of the worst sample of a trajectory of one T1; `seed` draws the start that finds the sample."""
    s = free.ends[0]
    step = free.field.step_at(s[None])
    v = normal(Streams(seed)["krylov"], tuple(s.shape)).to(s)
    space = krylov_space(lambda v: step.jvp(v[None])[0], v, min(SPACE, s.shape[-1]))
    worst = int(ritz(space, torch.abs).values.abs().argmax())
    x = {n: t[worst : worst + 1] if n in free.field.system.per_example else t for n, t in free.field.x.items()}
    s, v, alone = s[worst : worst + 1], v[worst : worst + 1], replace(free.field, x=x)
    step = alone.step_at(s[None])
    if s.shape[-1] <= WIDEST:
        return Eigenvalues(torch.linalg.eigvals(dense(step, s[None])[0, 0]), True, worst)
    space = krylov_space(lambda v: step.jvp(v[None])[0], v, RITZ)
    return Eigenvalues(torch.linalg.eigvals(space.H[0, : space.dims[0], : space.dims[0]]), False, worst)


def depths(free: Trajectory, T2: int, reference: Params) -> dict[str, dict[int, float]]:
    """Cosine to the reference against depth, by the name of the rule, whatever the rule of the cell.

    The rules are those of the registry whose depth means something without a nudge: truncated backpropagation up to T1,
    adjoint series, and rules with a nudge for beta -> 0, linearised at s*. A single pass of each gives all depths. Of
    rules that are linearised alike the first stands for all.
    """
    most = max(DEEPER * T2, DEPTHS)
    at = sorted({round(most ** (k / (DEPTHS - 1))) for k in range(DEPTHS)} | {T2})
    swept = [depth for depth in at if depth <= free.T1s[0]] if free.field.has_way_back else []
    partial = list(REFERENCE.phase.run(free, tuple(swept), free.ends.new_empty(0))) if swept else []
    gradients: dict[str, dict[int, Params]] = {}
    credits: dict[str, list[Tensor]] = {}
    linearised: set[object] = set()
    for name, rule in ((name, cls()) for name, cls in registry.known_estimators().items()):
        if rule.truncates and swept:
            gradients[name] = {s.depth: _first(s.gradient) for s in partial if s.depth is not None}
        elif rule.phase.linearises:
            key = rule.phase.linear_key(free.field.system), rule.phase.step_size_key
            if key in linearised:
                continue
            linearised.add(key)
            credits[name] = [a for _, a in rule.phase.linearised(free, at, drifting=False)]
        elif rule.phase.terms(most) == most and rule.phase.departure is Cause.READOUT:
            credits[name] = [a.clone() for terms, a in enumerate(adjoints(free, most)) if terms in at]
    for name, by_depth in credits.items():
        pulled = along(free, Snapshot(None), torch.stack(by_depth, 1)).gradient
        gradients[name] = {depth: {n: g[0, j] for n, g in pulled.items()} for j, depth in enumerate(at)}
    return {
        name: {depth: compare(gradient, reference, LIVE).whole.cosine for depth, gradient in curve.items()}
        for name, curve in gradients.items()
    }


@dataclass(frozen=True, eq=False)
class Updates:
    """Updates of one entry of a parameter, step by step, in units of the largest entry of the parameter's reference.

    Those of an estimate as its second phase goes on, and those of backpropagation as it goes back in time.
    """

    entry: tuple[int, ...]  # where the estimate is farthest from the reference
    estimate: Float[Tensor, "t"]
    reference: Float[Tensor, "t"]


def updates(free: Trajectory, rule: AbstractEstimator, T2: int, beta: float | None) -> dict[str, Updates]:
    """Updates of up to three parameters: the worst first, then the largest.

    There are none where the rule or T1 has no steps, or where the free state was not reached by steps of the
    relaxation.

    The gradient-descending updates of Ernoult et al. 2019: where the dynamics are conservative and at rest, the t-th
    step of EP, the change of its readout, is the gradient that backpropagation finds t steps before the end.
    """
    steps = min(T2, free.T1s[0], STEPS) if free.field.has_way_back else 0
    if not steps or "T2" not in rule.uses:
        return {}
    at, betas = tuple(range(1, steps + 1)), free.ends.new_tensor([] if beta is None else [beta])
    *swept, whole = REFERENCE.phase.run(free, at, free.ends.new_empty(0))
    reference = _first(whole.gradient)
    truncated = [_first(s.gradient) for s in swept]
    grown = truncated
    if not rule.truncates:
        grown = [
            {n: g[0, 0].clone() for n, g in rule.read(free, snapshot, betas).gradient.items()}
            for snapshot in rule.phase.run(free, at, betas)
        ]
    direct = {n: g[0] for n, g in free.cost_grads.items()}
    final = compare(grown[-1], reference, LIVE)
    alive = sorted(final.defined, key=lambda n: -final.params[n].reference_norm)
    shown = {}
    for n in list(dict.fromkeys([*([final.worst] if final.worst else []), *alive]))[:PARAMS]:
        gap = (grown[-1][n] - reference[n]).abs()
        entry = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        pair = (_moves(direct[n], [g[n] for g in gradients], entry) for gradients in (grown, truncated))
        shown[n] = Updates(entry, *(moved / reference[n].abs().max() for moved in pair))
    return shown


def _moves(direct: Tensor, grown: list[Tensor], entry: tuple[int, ...]) -> Tensor:
    return torch.stack([g[entry] for g in (direct, *grown)]).diff()


def _first(gradient: Params | None) -> Params:
    assert gradient is not None
    return {n: g[0] for n, g in gradient.items()}
