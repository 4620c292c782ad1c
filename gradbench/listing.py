"""Packages that list what they hold when called: `gradbench.systems()` beside `gradbench.systems.toy`."""

from __future__ import annotations

import sys
from types import ModuleType


class Listing(ModuleType):
    """A package whose call returns the registered names of its kind."""

    def __call__(self) -> list[str]:
        """Registered names, sorted."""
        from gradbench import registry

        return list(getattr(registry, self.__name__.rpartition(".")[2])())


def listing(package: str) -> None:
    """Make an imported package callable."""
    sys.modules[package].__class__ = Listing
