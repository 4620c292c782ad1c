"""What a relaxing system must say of itself: shapes, force, cost, and where its state starts.

Tensors carry any number of leading axes before the example axis: a state is `(*, b, n)`, data are
`(b, ...)` and broadcast against it from the right. Rows of a nudged batch, steps of a trajectory and
nudge strengths are all such leading axes. `force`, `cost` and `energy` are pure and treat examples
independently; the registry-wide tests hold every system to that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.streams import Streams

Params = dict[str, "Tensor"]  # theta: one tensor a name
Data = dict[str, "Tensor"]  # x: what is clamped
Saved = dict[str, "Tensor"]  # activations at a state


class Knobs(NamedTuple):
    """Real coordinates of a cell that enter the dynamics, as 0-d tensors; (c,) in a stack of cells."""

    sigma: Tensor  # the grid's `s`: scale of attention (of tanh in toy_cons)
    damp: Tensor  # c: adds -c z to the force of what relaxes as tokens
    eps: Tensor  # step size


class AbstractSystem(ABC):
    """A relaxation s <- Pi(s + eps F(s)) with a cost read at its end.

    Final ones are frozen dataclasses whose fields are the system's options: integer and string
    fields shape the program, float fields may differ between cells that run as one batch.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset({"s", "damp", "T1"})
    defaults: ClassVar[Mapping[str, Any]]  # coordinates where none is asked for
    source: ClassVar[str]
    conservative: ClassVar[bool] = False
    per_example: ClassVar[frozenset[str]]  # data entries with a leading example axis

    @property
    @abstractmethod
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Blocks of the flat state, in order."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name."""

    @abstractmethod
    def data_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Data by name, entries that only some options draw included."""

    @classmethod
    @abstractmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        """Options that given parameters and data determine."""

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, Any]:
        """Options that follow from the named ones, where they are not named themselves."""
        return {}

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        """Raise UserError where the data that are not given cannot be drawn. Called before anything runs."""

    @abstractmethod
    def init_params(self, rng: Generator) -> Params:
        """Draw theta: float64, CPU."""

    @abstractmethod
    def sample(self, streams: Streams, batch: int) -> Data:
        """Draw the data of one batch: float64, CPU."""

    @abstractmethod
    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        """s_0. Detached from theta: the engine takes no gradient through it."""

    def context(self, theta: Params, x: Data) -> Params:
        """What stays constant along a relaxation; part of F, so gradients flow through it."""
        return {}

    @abstractmethod
    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """F(s)."""

    @abstractmethod
    def cost(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b"]:
        """C of each example; the cost of a batch is their sum, in the reference and in every estimate."""

    def project(self, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi."""
        return s

    def project_vjp(self, u: Float[Tensor, "*r b n"], a: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u)^T a."""
        import torch

        return torch.func.vjp(self.project, u)[1](a)[0]

    def project_jvp(self, u: Float[Tensor, "*r b n"], v: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """Pi'(u) v."""
        import torch

        # forward mode would do, but not every function under vmap has one: v -> Pi' v is linear, transposed twice
        dual = torch.func.vjp(self.project, u)[1]
        return torch.func.vjp(lambda a: dual(a)[0], u)[1](v)[0]

    @property
    def projects(self) -> bool:
        """Whether Pi is anything but the identity."""
        return type(self).project is not AbstractSystem.project

    def split(self, s: Float[Tensor, "*r b n"]) -> dict[str, Tensor]:
        """Views of the blocks of a flat state."""
        sizes = [math.prod(shape) for shape in self.layout.values()]
        parts = s.split(sizes, dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.layout.items(), parts, strict=True)}


class AbstractEnergySystem(AbstractSystem):
    """F = -dE/ds. A closed-form `force` may override the default and is tested against it."""

    conservative: ClassVar[bool] = True

    @abstractmethod
    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        """E of each example."""

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return descent(self.energy, theta, x, context, s, knobs)


class AbstractDrivenSystem(AbstractSystem):
    """F = -dE/ds + swirl: a conservative part and a force that no energy has.

    Only the swirl can make the Jacobian asymmetric, so rules that correct the asymmetry look at it alone.
    """

    @abstractmethod
    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        """E of each example: the conservative part."""

    @abstractmethod
    def swirl(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """The non-conservative part of F."""

    def force(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        return descent(self.energy, theta, x, context, s, knobs) + self.swirl(theta, x, context, s, knobs)


class AbstractForwardSystem(AbstractEnergySystem):
    """E = 1/2 |e|^2 of prediction errors e that a forward pass makes zero: its layers are the free state.

    T1 plays no part, s_0 is that state, and the reference is the gradient of C through the pass: backpropagation.
    Layers are the clamped ones, then the blocks of the state; `m` counts the coordinates of all.
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def clamped(self) -> dict[str, tuple[int, ...]]:
        """Layers below the state, which theta and x fix."""

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """All layers, in order."""
        return self.clamped | self.layout

    @abstractmethod
    def forward(self, theta: Params, x: Data, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        """Every layer of the pass, moved by its offset before the next one reads it; differentiable in all."""

    @abstractmethod
    def errors(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """e(s): what each block of the state has beyond its prediction from below."""

    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        return 0.5 * self.errors(theta, x, context, s).square().sum(-1)

    def equilibrium(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        """The free state in closed form, differentiable in theta."""
        m, n = (sum(map(math.prod, blocks.values())) for blocks in (self.layers, self.layout))
        batch = next(v.shape[0] for name, v in x.items() if name in self.per_example)
        unmoved = next(iter(theta.values())).new_zeros((batch, m))
        return self.forward(theta, x, unmoved)[..., m - n :]

    def init_state(self, theta: Params, x: Data) -> Float[Tensor, "b n"]:
        return self.equilibrium(theta, x)


class ClosedForms(ABC):
    """Derivatives of F written out, from activations that a state needs once.

    A system without them is differentiated by autograd, and the registry-wide tests hold the two together.
    What it brings: a Jacobian product costs about one force, and a loop that holds one can be recorded.
    v and a may have row axes before those of the state that the activations belong to.
    """

    @abstractmethod
    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        """What the products at s need."""

    @abstractmethod
    def jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J v."""

    @abstractmethod
    def vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J^T a."""

    @abstractmethod
    def pull(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Params:
        """d<a, F(s)>/dtheta of every row, summed over its examples: shapes (*r, ...)."""

    def backward(
        self, theta: Params, x: Data, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Params]:
        """J^T a and the pull of a: what one step of a reverse sweep takes, where the two may share their work."""
        return self.vjp(theta, context, saved, a, knobs), self.pull(theta, x, context, saved, a, knobs)

    @abstractmethod
    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J v of the swirl; of the whole force where none is declared."""
        return self.jvp(theta, context, saved, v, knobs)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J^T a of the swirl."""
        return self.vjp(theta, context, saved, a, knobs)

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """1/2 (J v - J^T v) of the swirl, where the two may share their work."""
        turned = self.swirl_vjp(theta, context, saved, v, knobs)
        return 0.5 * (self.swirl_jvp(theta, context, saved, v, knobs) - turned)


def descent(energy: Any, theta: Params, x: Data, context: Params, s: Tensor, knobs: Knobs) -> Tensor:
    """-dE/ds by reverse mode, differentiable again in s and theta, and under vmap."""
    import torch

    return -torch.func.grad(lambda s: energy(theta, x, context, s, knobs).sum())(s)
