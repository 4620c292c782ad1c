"""What a relaxing system declares: shapes, force, cost, and the start of its state.

Tensors carry any number of leading axes before the example axis: a state is `(*, b, n)`, data are
`(b, ...)` and broadcast against it from the right. Rows of a nudged batch, steps of a trajectory and
nudge strengths are all such leading axes. `force`, `cost` and `energy` are pure and treat examples
independently; the registry-wide tests hold every system to that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gradbench.vocabulary.coordinates import Knobs
from gradbench.vocabulary.ranges import refuse_outside

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor

    from gradbench.data.streams import Streams

Params = dict[str, "Tensor"]  # theta: one tensor a name
Data = dict[str, "Tensor"]  # x: what is clamped
Saved = dict[str, "Tensor"]  # activations at a state
# what the field of an option says of its range: `least` and `most` are the smallest and the largest value, and a value
# is larger than `above`
SPREAD = {"least": 0}  # of a standard deviation
POSITIVE = {"above": 0}


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
    swirl_block: ClassVar[str | None] = None  # the block of the state on which its swirl acts alone; None: on all
    knobs: ClassVar[frozenset[str]] = frozenset()  # options that a grid may name beside its coordinates
    unseen: ClassVar[str | None] = None  # a part of its code or data that no digest sees; None: there is none
    mean_cost: ClassVar[bool] = False  # whether C of an example is divided by the number of examples of its batch
    lifted: ClassVar[bool] = True  # whether its functions may be lifted over rows and cells by torch.func.vmap
    state_given: ClassVar[bool] = False  # whether its author gives the free state, so that there is no free phase
    state_fixed: ClassVar[bool] = False  # whether that is a value, which follows neither parameters nor data
    # why F and dC/ds take no complex states; None: they do, and are holomorphic there
    real_only: ClassVar[str | None] = "its functions are written for real states"

    def __post_init__(self) -> None:
        refuse_outside(self)

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

    @property
    def categories(self) -> dict[str, int]:
        """Data that are whole numbers from 0, such as labels: how many different ones there may be, by name."""
        return {}

    @property
    def held(self) -> int | None:
        """The number of examples that come with the system; None where `sample` draws them."""
        return None

    @classmethod
    @abstractmethod
    def sizes(cls, params: Params, given: Data) -> dict[str, Any]:
        """Options that given parameters and data determine."""

    @classmethod
    def implied(cls, named: Mapping[str, Any]) -> dict[str, Any]:
        """Options that follow from the named ones. Named options win over them."""
        return {}

    def check(self, batch: int, given: Collection[str] = ()) -> None:
        """Raise UserError where missing data cannot be drawn. Called before anything runs."""

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
        """What stays constant along a relaxation. It is a part of F, so gradients flow through it."""
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

        # some functions have no forward mode under vmap, so the linear map v -> Pi' v is transposed twice
        dual = torch.func.vjp(self.project, u)[1]
        return torch.func.vjp(lambda a: dual(a)[0], u)[1](v)[0]

    @property
    def projects(self) -> bool:
        """Whether Pi is anything but the identity."""
        return type(self).project is not AbstractSystem.project

    def by_row(self, scalar: Callable[..., Tensor], theta: Params, *states: Float[Tensor, "*r b n"]) -> Params:
        """Gradient over theta of the sum of scalar(theta, *states), for every row of the states by itself."""
        import torch

        rows = torch.func.grad(lambda theta, *row: scalar(theta, *row).sum())
        for _ in states[0].shape[:-2]:
            rows = torch.func.vmap(rows, in_dims=(None, *[0] * len(states)))
        grads: Params = rows(theta, *states)
        return grads

    def shown(self, s: Float[Tensor, "*r b n"]) -> Any:
        """A state as the author of the system wrote it: here the flat tensor."""
        return s

    def flat(self, z: Any) -> Float[Tensor, "*r b n"]:
        """The flat state of a state as the author of the system wrote it. Raises SystemFaultError for another form."""
        flat: Tensor = z
        return flat

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
    """F = -dE/ds + swirl: a conservative part, and a force that has no energy.

    Only the swirl can make the Jacobian asymmetric, so rules that correct the asymmetry read the swirl alone.
    """

    @abstractmethod
    def energy(
        self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b"]:
        """E of each example, whose gradient is the conservative part of F."""

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
    """E = 1/2 |e|^2 of prediction errors e. A forward pass makes them zero, and its layers are the free state.

    s_0 is that state, so T1 plays no part. The reference is the gradient of C through the pass: backpropagation.
    The layers are the clamped ones, then the blocks of the state; `m` counts the coordinates of all layers.
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def clamped(self) -> dict[str, tuple[int, ...]]:
        """Layers below the state. theta and x fix them."""

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """All layers, in order."""
        return self.clamped | self.layout

    @abstractmethod
    def forward(self, theta: Params, x: Data, offset: Float[Tensor, "*r b m"]) -> Float[Tensor, "*r b m"]:
        """Every layer of the pass, moved by its offset before the next layer reads it. Differentiable in each."""

    @abstractmethod
    def errors(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """e(s): each block of the state minus its prediction from the layer below."""

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
    """Derivatives of F written out. The activations of a state are computed once and serve all products.

    A Jacobian product in closed form costs about one force, and a loop that holds one can be recorded. Autograd
    differentiates a system without closed forms, and the registry-wide tests compare closed forms with autograd.
    v and a may have more row axes, in front, than the state of the activations.
    """

    @abstractmethod
    def activate(self, theta: Params, x: Data, context: Params, s: Float[Tensor, "*r b n"], knobs: Knobs) -> Saved:
        """Activations at s: what the products at s need."""

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
        """J^T a and the pull of a, as one step of a reverse sweep takes them. The two may share work."""
        return self.vjp(theta, context, saved, a, knobs), self.pull(theta, x, context, saved, a, knobs)

    @abstractmethod
    def cost_slope(self, theta: Params, x: Data, s: Float[Tensor, "*r b n"]) -> Float[Tensor, "*r b n"]:
        """dC/ds."""

    def swirl_jvp(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J v of the swirl, or of the whole force where the system declares no swirl."""
        return self.jvp(theta, context, saved, v, knobs)

    def swirl_vjp(
        self, theta: Params, context: Params, saved: Saved, a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """J^T a of the swirl, or of the whole force."""
        return self.vjp(theta, context, saved, a, knobs)

    def swirl_antisym(
        self, theta: Params, context: Params, saved: Saved, v: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> Float[Tensor, "*r b n"]:
        """1/2 (J v - J^T v) of the swirl. The two products may share work."""
        transposed = self.swirl_vjp(theta, context, saved, v, knobs)
        return 0.5 * (self.swirl_jvp(theta, context, saved, v, knobs) - transposed)


# a step from a state to where the next state is written, which may be the tensor of the state itself: (s, out) -> None
Advance = Callable[..., None]


class KernelInputs(NamedTuple):
    """What kernels read of a stack besides states: tensors with a leading cell axis c."""

    packed: Params
    theta: Params
    x: Data
    context: Params
    knobs: Knobs


class Program(NamedTuple):
    """Kernels of a family, `tokens` or `toys`, and the constants that they are compiled for."""

    family: str
    kernels: tuple[str, ...]
    constants: tuple[tuple[str, int], ...]


class FusedSteps(ABC):
    """A system with kernels for its steps on a GPU, for float32 stacks.

    The plain path stays, and tests compare the kernels with the plain path in float64.
    """

    @property
    @abstractmethod
    def fused(self) -> bool:
        """Whether the kernels take a system of these sizes."""

    @property
    @abstractmethod
    def program(self) -> Program:
        """The program of its kernels."""

    @abstractmethod
    def packed(self, theta: Params) -> Params:
        """theta of all cells as the kernels read it."""

    @abstractmethod
    def correction_inputs(self, saved: Saved) -> Tensor | None:
        """What the correction of a nudged phase reads of the activations at s*; None where A = 0 in exact numbers."""

    @abstractmethod
    def fused_step(
        self,
        read: KernelInputs,
        s: Float[Tensor, "*r c b n"],
        out: Float[Tensor, "*r c b n"],
        eps: Float[Tensor, "c"],
        nudge: Float[Tensor, "m c"] | None = None,
        bent: Tensor | None = None,
    ) -> Advance:
        """Pi(s + eps (F(s) - nudge dC/ds - bent)) into `out`, which may be s: both are contiguous.

        With a nudge the rows of s are (T1, nudge). What is returned takes the step whenever it is called, also with
        another s and another `out` of the same shape.
        """

    def fused_energy(self, read: KernelInputs, s: Float[Tensor, "*r c b n"]) -> Float[Tensor, "*r c b"] | None:
        """E of every example; None where there is no kernel for it."""
        return None

    @abstractmethod
    def fused_bent(
        self, read: KernelInputs, s: Float[Tensor, "i m c b n"], start: Float[Tensor, "i c b n"], inputs: Tensor
    ) -> Tensor:
        """2 A (s - s*) with A at s* = `start`, as the argument `bent` of `fused_step`."""

    @abstractmethod
    def product_inputs(self, saved: Saved, u: Float[Tensor, "i c b n"]) -> dict[str, Tensor]:
        """What a product with J_G reads of the activations at a state, and of u = s + eps F(s) there."""

    @abstractmethod
    def fused_product(
        self, read: KernelInputs, inputs: dict[str, Tensor], v: Float[Tensor, "i c b n"]
    ) -> Float[Tensor, "i c b n"]:
        """J_G v = Pi'(u) (v + eps J v) at the state of `inputs`."""

    @abstractmethod
    def pull_sums(self, rows: int, cells: int, like: Tensor) -> Params:
        """Zeros (rows, cells, ...) for what `fused_back` adds up of the pulls, of the dtype and device of `like`."""

    @abstractmethod
    def fused_back(
        self,
        read: KernelInputs,
        s: Float[Tensor, "c b n"],
        a: Float[Tensor, "i c b n"],
        summed: Float[Tensor, "i c b n"],
        sums: Params,
    ) -> None:
        """One step of a reverse sweep, in place: a <- p + eps J^T p with p = Pi'(u)^T a, summed += p, and the pulls."""

    @abstractmethod
    def pulled(self, read: KernelInputs, summed: Float[Tensor, "i c b n"], sums: Params) -> Params:
        """The sum of the pulls d<p, F>/dtheta, from the sum of p and from `sums`."""


BACK, DIRECT = "back.", "direct."  # prefixes of what stands in theta beside the parameters, see LayeredWeights


class LayeredWeights(ABC):
    """Layers that hand credit to the layer below through the transposes of weights, where others may stand in.

    Where theta has an entry `back.NAME` beside the weight NAME, credit goes back through that entry in place of NAME.
    Where it has `direct.LAYER`, of shape (outputs, width of the layer), the credit of the layer comes through this
    entry from the output, and from no layer above. Neither changes a value: only what goes back to layers changes,
    in J^T, in dC/ds and in the gradient through a forward pass.
    """

    @property
    @abstractmethod
    def carriers(self) -> tuple[str, ...]:
        """Weights (above, below) whose transposes carry credit from layer to layer, the one of the output last."""

    @property
    @abstractmethod
    def hidden(self) -> dict[str, int]:
        """Layers and their widths, from the lowest one to the last one below the output."""


class RecordedSteps(ABC):
    """A system that records several steps of its relaxation together, and goes back through them in one pass."""

    @abstractmethod
    def back(
        self, theta: Params, x: Data, states: Float[Tensor, "t b n"], a: Float[Tensor, "*r b n"], knobs: Knobs
    ) -> tuple[Tensor, Tensor, Params]:
        """Go back through t successive states, from a behind the step of the last one.

        a before the first state, the sum of p_t = Pi'(u_t)^T a_{t+1} with u_t = s_t + eps F(s_t), and the sum of the
        pulls d<p_t, F(s_t)>/dtheta: shapes (*r, b, n), (*r, b, n) and (*r, ...).
        """


def descent(
    energy: Callable[[Params, Data, Params, Tensor, Knobs], Tensor],
    theta: Params,
    x: Data,
    context: Params,
    s: Float[Tensor, "*r b n"],
    knobs: Knobs,
) -> Float[Tensor, "*r b n"]:
    """-dE/ds by reverse mode, differentiable again in s and theta, and under vmap."""
    import torch

    return -torch.func.grad(lambda s: energy(theta, x, context, s, knobs).sum())(s)
