"""Kernels in CUDA: the sources of this folder, compiled at run time for the constants of a system, and launched.

A warp of a kernel computes one item: an example, or two of a toy. Kernels are compiled by NVRTC, which comes with
torch, once on a machine, and stored in ~/.cache/gradbench/kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from gradbench.systems.base import Program

WARPS, BLOCKS = 4, 2  # of a block, and of a multiprocessor: a thread may have 255 registers, and spills next to none
FOLDER = Path(__file__).parent
_compiling: dict[object, threading.Lock] = {}  # by program and device: two packs of one system compile it once
_loaded: dict[tuple[Program, torch.device], dict[str, Any]] = {}


def source(program: Program, kernel: str, warp: Path = FOLDER / "warp.cuh") -> str:
    """What a warp does, what tiles are, what the kernels of the family share, and a kernel."""
    names = "tiles.cuh", f"{program.family}.cuh", f"{program.family}_{kernel}.cu"
    return "\n".join(path.read_text("utf-8") for path in (warp, *(FOLDER / name for name in names)))


def fragments(W: Float[Tensor, "c n k"]) -> Float[Tensor, "c n k"]:
    """A matrix with a row for every result of a product, in the order in which lanes read it, see `tiles.cuh`.

    n is a multiple of 8, and k one of 16. A pair of tiles of 8 x 8 numbers lies in a run, four numbers of a lane.
    """
    cells, n, k = W.shape
    tiles = W.reshape(cells, n // 8, 8, k // 16, 2, 4, 2)
    return tiles.permute(0, 1, 3, 2, 5, 4, 6).contiguous().view(cells, n, k)


def launch(program: Program, kernel: str, items: int, *arguments: Tensor | float | None) -> None:
    """Launch a kernel for so many items, on the current stream of the device of its first argument.

    None is a pointer to nothing. Raises ValueError for a tensor that does not lie in a run, and RuntimeError for what
    CUDA refuses.
    """
    from cuda.bindings import driver

    first = arguments[0]
    assert isinstance(first, Tensor)
    if not all(argument.is_contiguous() for argument in arguments if isinstance(argument, Tensor)):
        raise ValueError(f"{kernel} takes tensors that lie in a run")
    function = loaded(program, first.device)[kernel]
    with torch.cuda.device_of(first):
        stream = torch.cuda.current_stream().cuda_stream
        blocks = min(-(-items // WARPS), BLOCKS * _multiprocessors(first.device))
        _done(driver.cuLaunchKernel(function, blocks, 1, 1, 32 * WARPS, 1, 1, 0, stream, passed(arguments), 0))


def passed(arguments: Sequence[Tensor | float | None]) -> tuple[tuple[float, ...], tuple[Any, ...]]:
    """Arguments as a kernel takes them, and their types in C."""

    def one(argument: Tensor | float | None) -> tuple[float, Any]:
        if argument is None or isinstance(argument, Tensor):
            return 0 if argument is None else argument.data_ptr(), ctypes.c_void_p
        return argument, ctypes.c_int if isinstance(argument, int) else ctypes.c_float

    values, types = zip(*map(one, arguments), strict=True)
    return values, types


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def loaded(program: Program, device: torch.device) -> dict[str, Any]:
    """The kernels of a program on a device, by name; compiled where they are not yet. Raises RuntimeError."""
    key = program, device
    if key not in _loaded:
        with _compiling.setdefault(key, threading.Lock()):
            if key not in _loaded:
                _loaded[key] = _load(program, device)
    return _loaded[key]


def _load(program: Program, device: torch.device) -> dict[str, Any]:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # torch makes the context of the device
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
        modules = [_done(driver.cuModuleLoadData(cubin)) for cubin in cubins(program, architecture)]
        pairs = zip(program.kernels, modules, strict=True)
        return {name: _done(driver.cuModuleGetFunction(module, name.encode())) for name, module in pairs}


def cubins(program: Program, architecture: str) -> list[bytes]:
    """The kernels for a kind of GPU, as stored by an earlier process or compiled now, side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(partial(_cubin, program, architecture), program.kernels))


def _cubin(program: Program, architecture: str, kernel: str) -> bytes:
    told = nvrtc_version(), _options(program, architecture), source(program, kernel)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradbench" / "kernels"
    path = folder / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.cubin"
    stored = _stored(path)
    if stored is None:
        stored = compiled(program, architecture, kernel)
        _store(path, stored)
    return stored


def _stored(path: Path) -> bytes | None:
    """What `_store` wrote, where it is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _store(path: Path, content: bytes) -> None:
    """Store a kernel behind its digest. Where the folder cannot be written, every process compiles its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
    except OSError:
        return


def compiled(program: Program, architecture: str, kernel: str) -> bytes:
    """A kernel for a kind of GPU as `sm_90`. Raises RuntimeError with what the compiler says."""
    from cuda.bindings import nvrtc

    file = f"{program.family}_{kernel}.cu"
    made = _done(nvrtc.nvrtcCreateProgram(source(program, kernel).encode(), file.encode(), 0, [], []))
    try:
        options = [option.encode() for option in _options(program, architecture)]
        (failed,) = nvrtc.nvrtcCompileProgram(made, len(options), options)
        if failed:
            said = b" " * _done(nvrtc.nvrtcGetProgramLogSize(made))
            _done(nvrtc.nvrtcGetProgramLog(made, said))
            raise RuntimeError(f"{file} does not compile: {said.decode().strip()}")
        content = b" " * _done(nvrtc.nvrtcGetCUBINSize(made))
        _done(nvrtc.nvrtcGetCUBIN(made, content))
        return content
    finally:
        nvrtc.nvrtcDestroyProgram(made)


def _options(program: Program, architecture: str) -> list[str]:
    constants = (*program.constants, ("WARPS", WARPS), ("BLOCKS", BLOCKS))
    return [f"--gpu-architecture={architecture}", *(f"-D{name}={value}" for name, value in constants)]


@cache
def nvrtc_version() -> str | None:
    """The version of the compiler of kernels; None where there is none, or no `cuda.bindings` to call it by."""
    try:
        from cuda.bindings import nvrtc

        return ".".join(map(str, _done(nvrtc.nvrtcVersion())))
    except (ImportError, RuntimeError):
        return None


def _done(answer: tuple[Any, ...]) -> Any:
    """What a function of CUDA gave. Raises RuntimeError for an error."""
    failed, *results = answer
    if failed:
        raise RuntimeError(f"CUDA: {failed.name}")
    return results[0] if len(results) == 1 else tuple(results)
