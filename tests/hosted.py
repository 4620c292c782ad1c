"""Kernels on a CPU: their sources, compiled by g++ with another `warp.cuh`, which takes one lane after the other."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
from torch import Tensor

from gradbench.systems.base import Program
from gradbench.systems.kernels.programs import passed, replace, source

WARP = Path(__file__).parent / "kernels" / "warp.cuh"
COMPILER = ["g++", "-O2", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w", "-x", "c++", "-"]


@contextmanager
def hosted(*, cuts: bool = False) -> Iterator[None]:
    """Launches run on the CPU meanwhile. `cuts`: products lose what tensor cores of an H100 cut off."""

    with pytest.MonkeyPatch.context() as patch:
        for module in ("tokens", "toys"):
            patch.setattr(f"gradbench.systems.kernels.{module}.Launch", partial(Hosted, cuts=cuts))
        yield


class Hosted:
    """A kernel with its arguments, as `Launch`, for all of its items on the CPU."""

    def __init__(
        self, program: Program, kernel: str, items: int, *arguments: Tensor | float | None, cuts: bool
    ) -> None:
        assert kernel in program.kernels
        assert items > 0
        self._library, self._kernel, self._cuts = built(program, kernel), kernel, cuts
        self._values, self._arguments = passed(kernel, arguments), arguments

    def __call__(self, *others: Tensor) -> None:
        replace(self._kernel, self._values, self._arguments, others)
        ctypes.c_int.in_dll(self._library, "cuts").value = self._cuts
        getattr(self._library, self._kernel)(*self._values)


@cache
def built(program: Program, kernel: str) -> ctypes.CDLL:
    """A kernel for this CPU, compiled once on a machine. Skips the test where there is no g++."""
    if not shutil.which("g++"):
        pytest.skip("kernels run on a CPU where there is g++")
    constants = [f"-D{name}={value}" for name, value in program.constants]
    text = source(program, kernel, WARP)
    key = hashlib.sha256(repr((COMPILER, constants, text)).encode()).hexdigest()[:16]
    folder = Path.home() / ".cache" / "gradbench" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.so"
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*COMPILER, *constants, "-o", str(made)], input=text, text=True, check=True)
        made.replace(path)
    return ctypes.CDLL(str(path))
