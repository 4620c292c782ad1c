"""How much of the planned work has been launched: evaluations, counted by the loops over steps as they go.

A loop counts what it hands to the device and never waits for it. Without a meter a count is one look-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

PRODUCT = 3  # a product with the Jacobian takes about the time of so many forces


@dataclass
class Meter:
    """Planned evaluations of a pack that have been launched, in units of one force.

    The thread that measures the pack writes; any other thread may read `launched` at any time.
    """

    problems: int = 1  # which every step advances
    launched: int = 0
    _planned: int = 0  # up to the end of the stage under way

    @contextmanager
    def stage(self, evaluations: int) -> Iterator[None]:
        """A planned part of the work, of so many evaluations for every problem; at its end all of them are counted."""
        self._planned += self.problems * evaluations
        yield
        self.launched = self._planned

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, the loops of this thread count for this meter."""
        before = _meter.set(self)
        try:
            yield
        finally:
            _meter.reset(before)

    def count(self, evaluations: int) -> None:
        """Count evaluations of every problem, at most up to the end of the stage."""
        self.launched = min(self.launched + self.problems * evaluations, self._planned)


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


def launched(force: int = 0, products: int = 0) -> None:
    """Count evaluations of a single problem that a loop has launched: of the force, and of products with a Jacobian."""
    meter = _meter.get()
    if meter is not None:
        meter.count(force + PRODUCT * products)
