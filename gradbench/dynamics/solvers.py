"""Solvers of s = G(s) for the free phase, G(s) = Pi(s + eps F(s)): every sample by itself, one iteration at a time.

A solver makes an iteration, a function from a state to the next one that remembers what it needs of the states before:
every free phase has an iteration of its own. Its work is fixed, so that a plan knows it. Steps are never shortened: a
solver that leaves every bound is told as a free phase that diverged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from gradbench.dynamics.krylov import least
from gradbench.dynamics.linear import by_lu
from gradbench.dynamics.meter import launched
from gradbench.vocabulary.solver import Solver

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.field import Field, Step
    from gradbench.systems.base import Advance

    Iteration = Callable[[Tensor], Tensor]
    Columns = Float[Tensor, "*c b n m"]
    Weights = Float[Tensor, "*c b m 1"]

WINDOW = 6  # pairs of differences that Anderson acceleration mixes
MEMORY = 20  # pairs of differences that the Jacobian of Broyden's method is held to
STILL = 16  # units of round-off of |s| up to which f is noise, and the step is f itself
RIDGE = 10  # units of round-off: the ridge of a least-squares problem whose columns have length 1


def stepper(field: Field, s: Tensor, advance: Advance) -> Advance:
    """One iteration of the solver of a field, from a state of the shape of s into another tensor.

    An iteration of Euler is G, which `advance` takes. The other solvers prepare G for themselves.
    """
    if field.solver is Solver.EULER:

        def iterate(s: Tensor, out: Tensor) -> None:
            advance(s, out)
            launched(force=1)

    else:
        following = SOLVERS[field.solver](field, field.repeated(lambda s: (field.step(s),), s))

        def iterate(s: Tensor, out: Tensor) -> None:
            out.copy_(following(s))

    return iterate


def newton(field: Field, step: Step) -> Iteration:
    """s <- s + d, (1 - J_G) d = G(s) - s, with the least residual over one Krylov space.

    The order is quadratic where the space holds the solution, as it does for states of at most `SPACE` numbers.
    Brown & Saad 1990.
    """

    def advance(s: Tensor) -> Tensor:
        f, linear = step(s)[0] - s, field.step_at(s)

        def gap(v: Tensor) -> Tensor:
            return v - linear.jvp(v)

        products = Solver.NEWTON.products(s.shape[-1])
        s = s + least(gap, f, products)
        launched(force=1, products=products)
        return s

    return advance


def secant(field: Field, step: Step, *, most: int, weights: Callable[[Columns, Columns, Tensor], Weights]) -> Iteration:
    """The iteration of `accelerated`, by one force each."""
    iterate = accelerated(step, most=most, weights=weights)

    def advance(s: Tensor) -> Tensor:
        launched(force=1)
        return iterate(s)

    return advance


def accelerated(step: Step, *, most: int, weights: Callable[[Columns, Columns, Tensor], Weights]) -> Iteration:
    """s <- s + f - (dS + dF) w, f = G(s) - s, with the last `most` differences of s and f as columns of dS and dF.

    G is what `step` returns. w = weights(dS, dF, f). The first iterate is G(s_0). Where f is round-off w is 0: its
    differences tell nothing of J, and in float32 a step by them left a state at rest by 1e-5 of it.
    """
    moved: deque[Tensor] = deque(maxlen=most)
    changed: deque[Tensor] = deque(maxlen=most)
    before: Tensor | None = None  # f of the last call

    def advance(s: Tensor) -> Tensor:
        nonlocal before
        f = step(s)[0] - s
        d = f
        if before is not None:
            changed.append(f - before)
            dS, dF = torch.stack(tuple(moved), -1), torch.stack(tuple(changed), -1)
            noise = STILL * torch.finfo(f.dtype).eps * s.norm(dim=-1, keepdim=True)
            mixed_in = ((dS + dF) @ weights(dS, dF, f[..., None]))[..., 0]
            d = torch.where(f.norm(dim=-1, keepdim=True) > noise, f - mixed_in, f)
        before = f
        moved.append(d)
        return s + d

    return advance


def mixed(dS: Columns, dF: Columns, f: Float[Tensor, "*c b n 1"]) -> Weights:
    """w of the least |f - dF w|. Anderson 1965; Walker & Ni 2011."""
    tiny, eps = torch.finfo(f.dtype).tiny, torch.finfo(f.dtype).eps
    size = dF.norm(dim=-2, keepdim=True).clamp_min(tiny)
    unit = dF / size
    gram = unit.mT @ unit + RIDGE * eps * torch.eye(unit.shape[-1], dtype=f.dtype, device=f.device)
    root, failed = torch.linalg.cholesky_ex(gram)
    w = torch.cholesky_solve(unit.mT @ f, root) / size.mT
    return torch.where((failed == 0)[..., None, None], w, torch.zeros_like(w))


def updated(dS: Columns, dF: Columns, f: Float[Tensor, "*c b n 1"]) -> Weights:
    """w of Broyden's good method, whose inverse Jacobian is -1 before the pairs that are held.

    (dS^T dF + L) w = dS^T f, where L is dS^T dS below its diagonal.   Broyden 1965; Byrd, Nocedal & Schnabel 1994.
    """
    tiny = torch.finfo(f.dtype).tiny
    size = dS.norm(dim=-2, keepdim=True).clamp_min(tiny)
    dS, dF = dS / size, dF / size
    w = by_lu(dS.mT @ dF + (dS.mT @ dS).tril(-1), (dS.mT @ f)[..., 0])[..., None]
    w = w / size.mT
    return torch.where(w.isfinite().all(-2, keepdim=True), w, torch.zeros_like(w))


SOLVERS: Mapping[Solver, Callable[[Field, Step], Iteration]] = {  # by a field and its G, made ready for many calls
    Solver.ANDERSON: partial(secant, most=WINDOW, weights=mixed),
    Solver.BROYDEN: partial(secant, most=MEMORY, weights=updated),
    Solver.NEWTON: newton,
}
