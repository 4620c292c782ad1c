"""How the free phase finds its end state."""

from __future__ import annotations

from enum import StrEnum

SPACE = 40  # dimensions of the Krylov space of a Newton step, at most


class Solver(StrEnum):
    """What an iteration of the free phase is. T1 counts iterations; G is the step of the relaxation."""

    EULER = "euler"  # s <- G(s): the relaxation itself
    ANDERSON = "anderson"
    BROYDEN = "broyden"
    NEWTON = "newton"

    def products(self, coordinates: int) -> int:
        """Products with the Jacobian that an iteration takes beside its one force."""
        return min(coordinates, SPACE) if self is Solver.NEWTON else 0
