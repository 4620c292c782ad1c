"""Tensors that many packs draw alike: the latest ones are remembered, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Draw = tuple[Mapping[str, Tensor], ...]  # such as parameters and data


class DrawMemory:
    """Draws by what they were drawn for. They are shared: who gets one must not write into its tensors."""

    def __init__(self, most: int) -> None:
        self.most = most  # bytes
        self._drawn: OrderedDict[Hashable, tuple[Draw, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: Hashable, draw: Callable[[], Draw]) -> Draw:
        """What was drawn for a key, or what `draw` gives."""
        with self._lock:
            if key in self._drawn:
                self._drawn.move_to_end(key)
                return self._drawn[key][0]
        drawn = draw()
        with self._lock:
            self._drawn[key] = drawn, sum(v.nbytes for tensors in drawn for v in tensors.values())
            while sum(size for _, size in self._drawn.values()) > self.most:
                self._drawn.popitem(last=False)
        return drawn

    def forget(self) -> None:
        """Give all memory back."""
        with self._lock:
            self._drawn.clear()
