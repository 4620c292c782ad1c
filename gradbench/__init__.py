"""gradbench: how faithful is a gradient estimator to backpropagation through time?

`systems()` and `estimators()` list names, `measure` compares one cell, `run` executes a suite.
Importing this touches neither torch nor the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradbench import estimators, systems

__version__ = "0.1.0"
__all__ = ["estimators", "measure", "run", "systems"]

if TYPE_CHECKING:
    from gradbench.api import measure
    from gradbench.runner import run


def __getattr__(name: str) -> Any:
    if name == "measure":
        from gradbench.api import measure

        return measure
    if name == "run":
        from gradbench.runner import run

        return run
    raise AttributeError(f"module 'gradbench' has no attribute {name!r}")
