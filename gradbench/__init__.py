"""gradbench: how faithful is a gradient estimator to backpropagation through time?

`systems()` and `estimators()` list names, `measure` compares one cell, `run` executes a suite, `merge` joins the shards
of a run, `compare` reads two runs cell by cell, and `report` writes one as a page. `system` makes a system from
functions, `estimator` a rule from a function, `suite` a suite from a grid, `register` gives an item a name, and
`conform` tries an item. Mistakes in a call raise `UserError`.
Importing this touches neither torch nor the disk.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from gradbench import estimators, systems

__version__ = "0.1.0"
__all__ = [
    "Estimate",
    "UserError",
    "compare",
    "conform",
    "estimator",
    "estimators",
    "explain",
    "measure",
    "merge",
    "register",
    "report",
    "run",
    "suite",
    "system",
    "systems",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from gradbench.api.conforming import conform
    from gradbench.api.defining import system
    from gradbench.api.measuring import explain, measure
    from gradbench.api.results import run, suite
    from gradbench.commands.comparing import compare
    from gradbench.commands.merging import merge
    from gradbench.commands.reporting import report
    from gradbench.commands.trainings import train
    from gradbench.commands.tuning import tune
    from gradbench.errors import UserError
    from gradbench.estimators.functions import Estimate, estimator
    from gradbench.planning.plugins import register

_LOADED = {  # when first used
    "Estimate": "gradbench.estimators.functions",
    "UserError": "gradbench.errors",
    "compare": "gradbench.commands.comparing",
    "estimator": "gradbench.estimators.functions",
    "conform": "gradbench.api.conforming",
    "explain": "gradbench.api.measuring",
    "measure": "gradbench.api.measuring",
    "merge": "gradbench.commands.merging",
    "register": "gradbench.planning.plugins",
    "report": "gradbench.commands.reporting",
    "run": "gradbench.api.results",
    "suite": "gradbench.api.results",
    "system": "gradbench.api.defining",
    "train": "gradbench.commands.trainings",
    "tune": "gradbench.commands.tuning",
}


def __getattr__(name: str) -> object:
    if name in _LOADED:
        return getattr(importlib.import_module(_LOADED[name]), name)
    from gradbench.errors import near_miss

    raise AttributeError(f"module 'gradbench' has no attribute {name!r}{near_miss(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Listing(ModuleType):
    """A package that lists what it holds when called: `gradbench.systems()` beside `gradbench.systems.toy`."""

    def __call__(self, *given: object, **named: object) -> list[str]:
        """Registered names, sorted. Raises UserError for an argument: there is none."""
        from gradbench.errors import UserError
        from gradbench.planning import registry

        kind = self.__name__.rpartition(".")[2]
        if given or named:
            told = ", ".join([*map(repr, given), *named])
            raise UserError(f"{kind}: got {told}, and takes no argument: it lists the names of all {kind}")
        return list(getattr(registry, f"known_{kind}")())


for _package in (estimators, systems):
    _package.__class__ = _Listing
