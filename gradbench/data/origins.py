"""Where code comes from: a file of its author, or a distribution for which a name and a version can stand.

Code of the author is all that is not installed: scripts, notebooks, checkouts and what `eval` makes. gradbench itself
counts as installed, since its source has a digest of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePath
from types import FunctionType, ModuleType

PACKAGE = "gradbench"
_FOLDERS = tuple(
    {
        os.path.join(folder, "")
        for folder in (
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib"),
            os.path.dirname(os.__file__),
            str(Path(__file__).parents[1]),
        )
    }
)


@cache
def is_installed_file(file: str) -> bool:
    """Whether a file belongs to Python, to an installed distribution or to gradbench."""
    parts = PurePath(file).parts
    return (
        file.startswith("<frozen ") or "site-packages" in parts or "dist-packages" in parts or file.startswith(_FOLDERS)
    )


def is_of_package(item: type | FunctionType) -> bool:
    """Whether a class or a function is code of gradbench itself."""
    return item.__module__.partition(".")[0] == PACKAGE


def file_of(module: ModuleType) -> str | None:
    """The file of a module, or the folder of a package without one."""
    file = vars(module).get("__file__")
    return file or next(iter(vars(module).get("__path__") or ()), None)


def is_installed(module: ModuleType) -> bool:
    """Whether a module belongs to Python, to an installed distribution or to gradbench."""
    file = file_of(module)
    return is_installed_file(file) if file else module.__name__.partition(".")[0] in sys.stdlib_module_names


def is_installed_name(name: str) -> bool:
    """Whether a module that is not loaded belongs to Python, to an installed distribution or to gradbench."""
    top = name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    return top in sys.stdlib_module_names or any(map(is_installed_file, places))


def module_of(name: object) -> ModuleType | None:
    """The loaded module of that name, or the nearest loaded package above it; None where there is neither."""
    while isinstance(name, str) and name:
        if isinstance(module := sys.modules.get(name), ModuleType):
            return module
        name = name.rpartition(".")[0]
    return None


def is_importable(item: object) -> bool:
    """Whether the module and the qualified name of a function or class lead to it."""
    reached: object = sys.modules.get(str(getattr(item, "__module__", None)))
    for name in str(getattr(item, "__qualname__", "")).split("."):
        reached = getattr(reached, name, None)
    return reached is item


def named(module: object, name: str) -> str:
    """The name of something installed, with the version of its distribution."""
    return f"{module}:{name} {_version(str(module).partition('.')[0])}".rstrip()


@cache
def _version(top: str) -> str:
    """The version of the distribution with this top-level package. Empty for gradbench and for Python itself.

    Python is told by the byte code, and the source of gradbench by a digest of its own.
    """
    if top == PACKAGE or top in sys.stdlib_module_names:
        return ""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(top)
    distributions = sorted(set(importlib.metadata.packages_distributions().get(top, ())))
    if distributions:
        return " ".join(importlib.metadata.version(name) for name in distributions)
    return str(getattr(sys.modules.get(top), "__version__", ""))
