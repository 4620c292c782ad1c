"""The reference in disguise: estimates whose comparison with the reference is known before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from gradbench.estimators.base import AbstractEstimator, AbstractPhase, Reading, Role, Snapshot
from gradbench.estimators.disguises import DISGUISES, Kind
from gradbench.estimators.phases.reverse import ReversePhase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory


@final
@dataclass(frozen=True)
class Control(AbstractEstimator):
    """Control of the comparison: the reference, changed so that every reading of it is known.

    scaled   2 g                                                    cosine 1, norm_ratio 2, rel_error 1
    flipped  -g                                                     cosine -1, norm_ratio 1, rel_error 2
    shuffled the entries of each parameter in a fixed random order  norm_ratio 1, cosine m +- d
    random   N(0, 1) in each parameter, at the norm of its g        norm_ratio 1, cosine 0 +- d
    Where n is the number of entries of a parameter and w its share of |g|^2, d^2 = sum w^2 / n over the parameters: one
    parameter that holds all of g leaves 1 / sqrt(n), whatever the others have. A shuffle keeps the mean of the
    entries, and so m = sum n mean(g)^2 / |g|^2. No rule to compare: it costs no evaluation beyond the reference.
    """

    name: ClassVar[str] = "control"
    role: ClassVar[Role] = Role.CONTROL
    uses: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "made from `bptt`; it tests the comparison"

    kind: Kind = "scaled"

    @property
    def phase(self) -> AbstractPhase:
        return ReversePhase()

    def read(self, free: Trajectory, snapshot: Snapshot, betas: Float[Tensor, "j *c"]) -> Reading:
        assert snapshot.gradient is not None
        change, gradient = DISGUISES[self.kind], {}
        for name, g in snapshot.gradient.items():
            lead = g.shape[: g.ndim - len(free.field.system.shapes[name])]
            gradient[name] = change(name, g.reshape(*lead, -1)).reshape(g.shape)[:, None]
        return Reading(snapshot.depth, gradient, None, snapshot.evidence)
