"""What a credit may be made of: hypotheses about one state, of which the simplest that holds is told.

  credit     Out p(M) v, a polynomial of one map
  map        M = Pi'^T (1 + eps J^T), v = eps Pi'^T dC/ds: the adjoint; or J in place of J^T, or a projection left out
  polynomial sum_{j<k} M^j                             the series, of k terms or without an end
             sum_{j<k} gamma^j M^j                     damped; or gamma^{j+1}, decayed
             lambda sum_{j<k} (1 - lambda + lambda M)^j    other weights: a phantom gradient (Geng et al. 2021)
             sum_{j<q} w_j M^j                         other weights, fitted; q is small against the number of equations

each also with a common factor. All samples share a polynomial, so that its few numbers are held to b n equations. The
Krylov space of M from v, the whole batch being one vector, makes a polynomial of M a small vector p(H) e_1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from gradbench.dynamics.krylov import gmres, krylov_space
from gradbench.estimators.base import Snapshot, along
from gradbench.vocabulary.cause import Cause

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.systems.base import Params

    Map = Callable[[Tensor], Tensor]
    Array = np.ndarray[Any, np.dtype[Any]]

TIERS = (1e-6, 1e-4, 1e-2)  # of the credit: what a hypothesis may leave, the strictest first
DIMENSIONS = 64  # of a Krylov space
ENTRIES = 2**27  # of a basis, or of the gradients of its vectors, at most
LONG = 128  # terms up to which every length is tried; those that the caller names are tried beyond it
EQUATIONS = 4  # a fitted weight wants so many of them
LEAST = 1e-3  # size of a part below which a share of it is not told; in the reference every part has the size 1
COARSE = 0.2  # share beyond which no value near one of the grid is a hypothesis that holds
STEPS, DIFFERENCE = 12, 1e-6  # of Gauss-Newton for gamma and lambda, and of its derivative
CLOSEST = 4  # lengths that are nearest on the grid, for which gamma or lambda is refined
ENOUGH = 8  # entries of a part of the target that may say by itself what holds
DEAD = 1e-12  # share of the whole below which a part of the target says nothing
SAME = 10  # times the tier: what a part may leave for which a hypothesis of another part holds
Kind = Literal["series", "damped", "decayed", "relaxed", "weights"]
BENT: tuple[Kind, ...] = ("damped", "decayed", "relaxed")  # kinds with a number of their own
FACTORED: tuple[Kind, ...] = ("damped", "relaxed")  # those to which a common factor is something new
View = Literal["blocks", "samples", "credit", "parameters", "gradient"]
# damping and phantom weights at which the search begins; gamma and lambda are refined from there
OF_KIND = {  # the cause of the step from a series to another kind
    "damped": Cause.DAMPING,
    "decayed": Cause.DAMPING,
    "relaxed": Cause.WEIGHTS,
    "weights": Cause.WEIGHTS,
}
DAMPED = np.concatenate((np.linspace(-1.2, 0.94, 108), np.linspace(0.95, 1.2, 51)))
GRID: dict[Kind, Array] = {
    "series": np.ones(1),
    "damped": DAMPED,
    "decayed": DAMPED,
    "relaxed": np.concatenate((np.geomspace(0.002, 0.1, 24), np.linspace(0.12, 1.6, 75))),
}


class Recursion(NamedTuple):
    """A term is mu + nu M times the one before; all are times `scale`."""

    mu: float
    nu: float
    scale: float


def recursion(kind: Kind, value: float) -> Recursion:
    """That of a series, damped or with phantom weights."""
    if kind == "relaxed":
        return Recursion(1 - value, value, value)
    damped = kind in ("damped", "decayed")
    return Recursion(0.0, value if damped else 1.0, value if kind == "decayed" else 1.0)


@dataclass(frozen=True)
class Hypothesis:
    """A credit is Out p(M) v of a space; or a gradient is that of this credit."""

    space: str
    kind: Kind
    terms: int | None  # None: without an end
    value: float = 1.0  # gamma or lambda
    factor: float = 1.0
    whole: bool = False  # whether the factor is that of the gradient, dC/dtheta included
    left: float = math.inf  # share that it leaves of the target, of the parts that it holds for
    parts: tuple[int, ...] = ()  # of the target, for which it holds; empty: all


SPACES = {  # by name: the cause of the step from the adjoint to it
    "": Cause.NONE,
    "J for J^T": Cause.ASYMMETRY,
    "J_G for J_G^T": Cause.ASYMMETRY,
    "no projection": Cause.READOUT,
    "projection inside": Cause.READOUT,
    "projection at end": Cause.READOUT,
    "J, no projection": Cause.ASYMMETRY,
}


class Space:
    """One map with its start, and what a vector is as a credit; the Krylov space of the batch as one vector."""

    def __init__(self, product: Map, start: Float[Tensor, "b n"], out: Map | None) -> None:
        self.product, self.start, self.out = product, start, out
        m = max(2, min(DIMENSIONS, ENTRIES // start.numel(), start.numel()))

        def flat(v: Tensor) -> Tensor:
            return product(v.reshape(start.shape)).reshape(1, -1)

        space = krylov_space(flat, start.reshape(1, -1), m)
        d = int(space.dims[0])
        self.H: Array = space.H[0, :d, :d].double().cpu().numpy()
        self.vectors: Float[Tensor, "d b n"] = space.basis[:d, 0].reshape(d, *start.shape)
        self.closed = d < m or d == start.numel()  # then p(H) is exact for every p
        self.size = float(start.norm())
        self._grids: dict[tuple[Kind, tuple[int | None, ...]], Array] = {}

    def grid(self, kind: Kind, lengths: Sequence[int | None]) -> Array:
        """`sums` of the grid of a kind, the same for all that is held to it."""
        key = (kind, tuple(lengths))
        if key not in self._grids:
            self._grids[key] = self.sums([recursion(kind, float(v)) for v in GRID[kind]], lengths)
        return self._grids[key]

    def shown(self, v: Float[Tensor, "*r b n"]) -> Tensor:
        """Vectors as credits."""
        return v if self.out is None else self.out(v)

    def sums(self, recursions: Sequence[Recursion], lengths: Sequence[int | None]) -> Array:
        """The small vectors (lengths, d, recursions) of so many terms; None: of the series without an end."""
        mu, nu, scale = (np.array(column) for column in zip(*recursions, strict=True))
        term = np.zeros((len(self.H), len(recursions)))
        term[0] = self.size * scale
        start, total = term, np.zeros_like(term)
        places: dict[int, list[int]] = {}
        for place, k in enumerate(lengths):
            places.setdefault(-1 if k is None else k, []).append(place)
        summed = np.empty((len(lengths), *term.shape))
        with np.errstate(all="ignore"):
            for k in range(max(places) + 1):
                for place in places.get(k, ()):
                    summed[place] = total
                total = total + term
                term = mu * term + nu * (self.H @ term)
        if -1 in places:
            summed[places[-1]] = self._limits(mu, nu, start)
        return summed

    def _limits(self, mu: Array, nu: Array, start: Array) -> Array:
        """(1 - mu - nu H)^-1 of the first term, of every recursion; NaN where there is none."""
        matrices = (1 - mu)[:, None, None] * np.eye(len(self.H)) - nu[:, None, None] * self.H
        try:
            solved: Array = np.linalg.solve(matrices, start.T[..., None])[..., 0].T
        except np.linalg.LinAlgError:
            solved = np.full_like(start, math.nan)
        return solved

    def credit(self, kind: Kind, value: float, terms: int | None) -> Float[Tensor, "b n"]:
        """Out p(M) v by products of M, without a factor."""
        r = recursion(kind, value)
        if terms is None:
            return self.shown(gmres(lambda v: (1 - r.mu) * v - r.nu * self.product(v), r.scale * self.start))
        a = torch.zeros_like(self.start)
        for _ in range(terms):
            a = r.mu * a + r.nu * self.product(a) + r.scale * self.start
        return self.shown(a)


class Spaces:
    """The spaces at one state, each made where it is first asked for, and the ways in which credits are seen."""

    def __init__(self, free: Trajectory, reference: Float[Tensor, "b n"]) -> None:
        """`free` is of one T1 and one cell, in float64; `reference` is a credit that is right, for its sizes."""
        self.free, self.reference = free, reference
        self._made: dict[str, Space] = {}
        self._lenses: dict[View, Lens] = {}

    def lens(self, view: View) -> Lens:
        """One way in which credits are seen."""
        if view not in self._lenses:
            of_gradient = view in ("parameters", "gradient")
            self._lenses[view] = _of_gradient(self, view) if of_gradient else _of_credit(self, view)
        return self._lenses[view]

    def names(self) -> list[str]:
        """Those that may differ here."""
        return list(SPACES) if self.free.field.system.projects else ["", "J for J^T"]

    def __getitem__(self, name: str) -> Space:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Space:
        field, s = self.free.field, self.free.ends[0]
        eps, linear = field.step_size, field.at(self.free.ends)
        with torch.no_grad():
            u = field.ahead(s)

        def J(v: Tensor) -> Tensor:
            return v + eps * linear.jvp(v[None])[0]

        def Jt(a: Tensor) -> Tensor:
            return a + eps * linear.vjp(a[None])[0]

        def P(v: Tensor) -> Tensor:
            return field.project_jvp(u, v)

        def Pt(a: Tensor) -> Tensor:
            return field.project_vjp(u, a)

        g = self.free.cost_slope[0]
        if name == "J for J^T":
            return Space(lambda v: P(J(v)), eps * P(g), None)
        if name == "J_G for J_G^T":
            return Space(lambda v: P(J(v)), g, lambda v: eps * Pt(v))
        if name == "no projection":
            return Space(Jt, eps * g, None)
        if name == "projection inside":
            return Space(lambda a: Jt(Pt(a)), eps * g, None)
        if name == "projection at end":
            return Space(Jt, g, lambda v: eps * Pt(v))
        if name == "J, no projection":
            return Space(J, eps * g, None)
        return Space(lambda a: Pt(Jt(a)), eps * Pt(g), None)


class Lens:
    """A way in which credits are seen: in parts, which are blocks of the state, samples, or parameters of a gradient.

    Every part is divided by the size that it has in the reference, so that a small part counts as a large one does. A
    credit or a gradient as a whole is one part: noise drowns a part that is small.
    """

    def __init__(
        self,
        spaces: Spaces,
        seen: Callable[[Tensor], Float[Tensor, "k F"]],
        direct: Float[Tensor, "F"],
        widths: Sequence[int],
        alive: Sequence[int],
        of_gradient: Callable[[Params], Float[Tensor, "F"]] | None = None,
    ) -> None:
        self.spaces, self.seen, self.direct, self.of_gradient = spaces, seen, direct, of_gradient
        ends = np.cumsum(widths).tolist()
        self.spans = list(zip((0, *ends[:-1]), ends, strict=True))
        self.alive = alive  # parts of which the reference is not zero
        self._images: dict[str, Tensor] = {}

    def value(self, credit: Float[Tensor, "b n"] | None, gradient: Params) -> Float[Tensor, "F"]:
        """What a rule returned as it is seen."""
        if self.of_gradient is not None:
            return self.of_gradient(gradient)
        assert credit is not None
        value: Tensor = self.seen(credit.double()[None])[0]
        return value

    def image(self, name: str) -> Float[Tensor, "F d+1"]:
        """Columns: the vectors of a space as they are seen, and what is seen without a credit, dC/dtheta."""
        if name not in self._images:
            space = self.spaces[name]
            self._images[name] = torch.cat([self.seen(space.shown(space.vectors)), self.direct[None]]).mT
        return self._images[name]

    def rows(self, parts: tuple[int, ...]) -> slice | Tensor:
        """The entries of some parts; of no part all."""
        if not parts:
            return slice(None)
        return torch.cat([torch.arange(*self.spans[i]) for i in parts]).to(self.direct.device)

    def moved(self, credit: Float[Tensor, "b n"], h: Hypothesis) -> Float[Tensor, "F"]:
        """What a hypothesis with this credit looks like."""
        (seen,) = self.seen(credit[None])
        return h.factor * (seen + self.direct) if h.whole else h.factor * seen + self.direct

    def shares(self, value: Float[Tensor, "F"], credit: Float[Tensor, "b n"], h: Hypothesis) -> dict[int, float]:
        """What a hypothesis with this credit leaves of every living part of a target."""
        left, due = self.moved(credit, h) - value, value - self.direct
        return {
            i: float(left[a:b].norm()) / max(float(due[a:b].norm()), LEAST)
            for i, (a, b) in enumerate(self.spans)
            if i in self.alive
        }


def _of_credit(spaces: Spaces, view: View) -> Lens:
    layout = [math.prod(shape) for shape in spaces.free.field.system.layout.values()]
    ends = np.cumsum(layout).tolist()

    def pieces(v: Tensor) -> list[Tensor]:
        if view == "samples":
            return list(v.unbind(-2))
        if view == "credit":
            return [v.flatten(-2)]
        return [v[..., low:high].flatten(-2) for low, high in zip((0, *ends[:-1]), ends, strict=True)]

    reference = pieces(spaces.reference)
    sizes = [float(piece.norm()) for piece in reference]
    alive = [i for i, size in enumerate(sizes) if size > DEAD * math.hypot(*sizes)]

    def seen(credits: Tensor) -> Tensor:
        scaled = [piece / sizes[i] if i in alive else 0 * piece for i, piece in enumerate(pieces(credits))]
        return torch.cat(scaled, -1)

    widths = [piece.numel() for piece in reference]
    return Lens(spaces, seen, spaces.reference.new_zeros(sum(widths)), widths, alive)


def _of_gradient(spaces: Spaces, view: View) -> Lens:
    free = spaces.free
    direct = {n: g[0] for n, g in free.cost_grads.items()}

    def of(credits: Float[Tensor, "k b n"]) -> Params:
        return along(free, Snapshot(None), credits[None]).gradient

    reference = {n: g[0, 0] for n, g in of(spaces.reference[None]).items()}
    by_credit = [float((reference[n] - direct[n]).norm()) for n in direct]
    least = DEAD * math.hypot(*(float(g.norm()) for g in reference.values()))
    # a parameter of the cost alone has no other size
    sizes = [size if size > least else float(direct[n].norm()) for n, size in zip(direct, by_credit, strict=True)]
    alive = [i for i, size in enumerate(sizes) if size > least]
    if view == "gradient":  # all parameters are one part
        sizes = [math.hypot(*sizes)] * len(sizes)

    def scaled(gradient: Params) -> Float[Tensor, "k F"]:
        columns = enumerate(gradient[n].reshape(len(gradient[n]), -1) for n in direct)
        return torch.cat([g / sizes[i] if i in alive else 0 * g for i, g in columns], -1)

    offset = scaled({n: g[None] for n, g in direct.items()})

    def seen(credits: Tensor) -> Tensor:
        return scaled({n: g[0] for n, g in of(credits).items()}) - offset

    widths = [g.numel() for g in direct.values()]
    return Lens(spaces, seen, offset[0], widths, alive, lambda g: scaled({n: g[n].double()[None] for n in direct})[0])


class _Small:
    """The equations of one space against a target, as small matrices: |R y - t|^2 + beyond^2 is what y leaves."""

    def __init__(self, image: Float[Tensor, "F d+1"], value: Float[Tensor, "F"]) -> None:
        Q, R = torch.linalg.qr(image)
        t = Q.mT @ value
        self.R, self.t = R.cpu().numpy(), t.cpu().numpy()
        self.beyond = float((value - Q @ t).norm())
        self.size = max(float((value - image[:, -1]).norm()), LEAST)
        self.equations = len(value)
        self.direct = self.R[:, -1]

    @property
    def beyond_all(self) -> float:
        """The share that no vector of the space takes away."""
        return self.beyond / self.size

    def left(self, y: Float[np.ndarray, "*k d v"]) -> tuple[Array, Array]:
        """For columns y: the share that is left without a factor, and with each of the two factors; the factors."""
        with np.errstate(all="ignore"):
            a = self.R[:, :-1] @ y
            of_credit, of_all = self.factors(a)
            shares = [
                np.sqrt((self.residual(a, c, mode) ** 2).sum(-2) + self.beyond**2) / self.size
                for mode, c in ((0, np.ones_like(of_credit)), (1, of_credit), (2, of_all))
            ]
        return np.nan_to_num(np.stack(shares), nan=np.inf, posinf=np.inf), np.stack(
            (np.ones_like(of_credit), of_credit, of_all)
        )

    def factors(self, a: Array) -> tuple[Array, Array]:
        """The best factor of the credit alone, and that of the whole gradient."""
        t, b = self.t[:, None], self.direct[:, None]
        of_credit: Array = (a * (t - b)).sum(-2) / (a * a).sum(-2)
        of_all: Array = ((a + b) * t).sum(-2) / ((a + b) ** 2).sum(-2)
        return of_credit, of_all

    def residual(self, a: Array, c: Array, mode: int) -> Array:
        """What is left within the space, with a factor of the credit, or of the whole in mode 2."""
        t, b = self.t[:, None], self.direct[:, None]
        left: Array = c[..., None, :] * (a + b) - t if mode == 2 else c[..., None, :] * a + b - t
        return left

    def fitted(self, q: int) -> tuple[Array, float]:
        """The weights of the first q vectors that leave the least, and what they leave."""
        right = self.t - self.direct
        y: Array = np.linalg.lstsq(self.R[:, :q], right, rcond=None)[0]
        return y, math.hypot(float(np.linalg.norm(self.R[:, :q] @ y - right)), self.beyond) / self.size


class Search:
    """The hypotheses about one target, tried in the order of their simplicity."""

    def __init__(
        self, lens: Lens, value: Float[Tensor, "F"], lengths: Sequence[int | None], *, known: bool = False
    ) -> None:
        """`lengths`: numbers of terms that are likely, the likeliest first; None is a series without an end.

        `known`: whether they are what a rule says of itself. What is told by a loose fit has one of these then.
        """
        self.known = known
        self.lens, self.spaces, self.value = lens, lens.spaces, value
        self.lengths = list(dict.fromkeys([*lengths, None]))
        self.every = [*range(LONG + 1), *(k for k in self.lengths if k is not None and k > LONG), None]
        self._small: dict[tuple[str, tuple[int, ...]], _Small] = {}
        self._tables: dict[tuple[object, ...], tuple[Array, Array]] = {}
        self._refined: dict[tuple[object, ...], Hypothesis] = {}

    def simplest(self, tier: float, parts: tuple[int, ...] = ()) -> Hypothesis | None:
        """The first hypothesis that leaves no more than `tier` of the target, or of some of its parts."""
        loose: list[Hypothesis] = []
        for attempt in self._attempts(tier, parts):
            if attempt is not None and attempt.left <= tier:
                if tier <= TIERS[0] or not self.known or attempt.terms in self.lengths:
                    return attempt
                loose.append(attempt)
        return next(iter(loose), None)

    def _attempts(self, tier: float, parts: tuple[int, ...]) -> Iterator[Hypothesis | None]:
        others = [name for name in self.spaces.names() if name]
        yield self._series("", tier, parts, factor=False)
        yield self._series("", tier, parts, factor=True)
        for name in others:
            yield self._series(name, tier, parts, factor=False)
        for kind in BENT:
            yield self._bent("", kind, tier, parts, factor=False)
        for name in others:
            yield self._series(name, tier, parts, factor=True)
        if parts:  # less is told by a part, and less is asked of it
            return
        for name in others:
            for kind in BENT:
                yield self._bent(name, kind, tier, parts, factor=False)
        for kind in FACTORED:
            yield self._bent("", kind, tier, parts, factor=True)
        if tier == TIERS[0]:
            for name in ("", *others):
                yield self._weighted(name, parts)

    def in_part(self, tier: float) -> Hypothesis | None:
        """The hypothesis that holds for the most parts of the target, and not for all."""
        best: Hypothesis | None = None
        tried: list[Hypothesis] = []
        wide = sorted(self.lens.alive, key=lambda i: self.lens.spans[i][0] - self.lens.spans[i][1])
        for part in wide if len(wide) > 1 else []:
            low, high = self.lens.spans[part]
            told = high - low >= ENOUGH and float((self.value - self.lens.direct)[low:high].norm()) > LEAST
            if not told or any(part in h.parts for h in tried):
                continue
            alone = self.simplest(tier, (part,))
            if alone is None:
                continue
            shares = self.lens.shares(self.value, self.credit(alone), alone)
            alone = replace(alone, parts=tuple(i for i, share in shares.items() if share <= SAME * tier))
            tried.append(alone)
            enough = 2 * len(alone.parts) >= len(self.lens.alive) + (alone.factor != 1)
            if enough and (best is None or len(alone.parts) > len(best.parts)):
                best = alone
        return best

    def credit(self, h: Hypothesis) -> Float[Tensor, "b n"]:
        """That of a hypothesis, without its factor, by products of its map."""
        space = self.spaces[h.space]
        if h.kind != "weights":
            return space.credit(h.kind, h.value, h.terms)
        assert h.terms is not None
        y, _ = self._of(h.space, h.parts).fitted(h.terms)
        weights = torch.from_numpy(y).to(space.vectors)
        return space.shown(torch.einsum("k...,k->...", space.vectors[: h.terms], weights))

    def _of(self, name: str, parts: tuple[int, ...]) -> _Small:
        if (name, parts) not in self._small:
            rows = self.lens.rows(parts)
            self._small[name, parts] = _Small(self.lens.image(name)[rows], self.value[rows])
        return self._small[name, parts]

    def _series(self, name: str, tier: float, parts: tuple[int, ...], *, factor: bool) -> Hypothesis | None:
        if self._of(name, parts).beyond_all > tier:
            return None
        left, factors = self._table(name, "series", parts)
        best: Hypothesis | None = None
        for mode in (1, 2) if factor else (0,):
            likely = (self.every.index(k) for k in self.lengths)
            place = next((i for i in likely if left[mode, i, 0] <= tier), int(left[mode, :, 0].argmin()))
            c = float(factors[mode, place, 0])
            h = Hypothesis(name, "series", self.every[place], 1.0, c, mode == 2, float(left[mode, place, 0]), parts)
            if (best is None or h.left < best.left) and DEAD < abs(c) < math.inf:
                best = h
        return best

    def _table(self, name: str, kind: Kind, parts: tuple[int, ...]) -> tuple[Array, Array]:
        """Shares and factors (3, lengths, values) of the grid of a kind."""
        key = (name, kind, parts)
        if key not in self._tables:
            self._tables[key] = self._of(name, parts).left(self.spaces[name].grid(kind, self.every))
        return self._tables[key]

    def _bent(self, name: str, kind: Kind, tier: float, parts: tuple[int, ...], *, factor: bool) -> Hypothesis | None:
        """Damped or with phantom weights: gamma or lambda from a grid, refined for the likely lengths and the best."""
        if self._of(name, parts).beyond_all > tier:
            return None
        left, _ = self._table(name, kind, parts)
        best: Hypothesis | None = None
        for mode in (1, 2) if factor else (0,):
            by_length = left[mode].min(-1)
            likely = [self.every.index(k) for k in self.lengths]
            closest = by_length.argsort()[: 1 if parts else CLOSEST].tolist()
            for place in dict.fromkeys([*likely, *closest]):
                if by_length[place] > COARSE:
                    continue
                key = (name, kind, parts, mode, place)
                if key not in self._refined:
                    self._refined[key] = self._refine(name, kind, parts, mode, place)
                h = self._refined[key]
                if h.left <= tier and place in likely:
                    return h
                if best is None or h.left < best.left:
                    best = h
        return best

    def _refine(self, name: str, kind: Kind, parts: tuple[int, ...], mode: int, place: int) -> Hypothesis:
        """gamma or lambda of a number of terms, to the last digit: Gauss-Newton from the best of the grid."""
        small, space, grid, terms = self._of(name, parts), self.spaces[name], GRID[kind], self.every[place]
        i = int(self._table(name, kind, parts)[0][mode, place].argmin())
        value, low, high = float(grid[i]), float(grid[max(i - 1, 0)]), float(grid[min(i + 1, len(grid) - 1)])
        best = Hypothesis(name, kind, terms, parts=parts)
        for _ in range(STEPS):
            values = [value, value - DIFFERENCE, value + DIFFERENCE]
            (y,) = space.sums([recursion(kind, v) for v in values], [terms])
            with np.errstate(all="ignore"):
                a = small.R[:, :-1] @ y
                c = (np.ones(3), *small.factors(a))[mode]
                r = small.residual(a, c, mode)
            left = math.hypot(float(np.linalg.norm(r[:, 0])), small.beyond) / small.size
            if left < best.left and DEAD < abs(c[0]) < math.inf:
                best = Hypothesis(name, kind, terms, value, float(c[0]), mode == 2, left, parts)
            slope = (r[:, 2] - r[:, 1]) / (2 * DIFFERENCE)
            moved = float(slope @ r[:, 0]) / float(slope @ slope) if slope.any() else math.nan
            if not math.isfinite(moved) or abs(moved) < 1e-15:
                break
            value = min(max(value - moved, low), high)
        return best

    def _weighted(self, name: str, parts: tuple[int, ...]) -> Hypothesis | None:
        """The fewest weights that leave no more than the strictest tier."""
        small = self._of(name, parts)
        if small.beyond_all > TIERS[0]:
            return None
        most = min(len(self.spaces[name].H) - 1, small.equations // EQUATIONS)
        if most < 1 or small.fitted(most)[1] > TIERS[0]:
            return None
        fewest = next(q for q in range(1, most + 1) if small.fitted(q)[1] <= TIERS[0])
        return Hypothesis(name, "weights", fewest, left=small.fitted(fewest)[1], parts=parts)
