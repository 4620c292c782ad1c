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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from gradbench.systems.base import Program

# warps of a block, and blocks that a multiprocessor holds at once: a thread may use 255 registers, and hardly any spill
WARPS, BLOCKS = 4, 2
ENDS = "\0\n "  # of a log
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
ALIGNED = 16  # bytes: a lane reads four numbers at a time
FOLDER = Path(__file__).parent
_compiling: dict[object, threading.Lock] = {}  # by program and device: two packs of one system compile it once
_loaded: dict[tuple[Program, torch.device], Loaded] = {}


class Loaded(NamedTuple):
    """The kernels of a program on a device, by name, and the context of the device."""

    kernels: dict[str, Any]
    context: Any


def source(program: Program, kernel: str, warp: Path = FOLDER / "warp.cuh") -> str:
    """What a warp does, what tiles are, what the kernels of the family share, and a kernel."""
    names = "tiles.cuh", f"{program.family}.cuh", f"{program.family}_{kernel}.cu"
    return "\n".join(path.read_text("utf-8") for path in (warp, *(FOLDER / name for name in names)))


def fragments(W: Float[Tensor, "c n k"]) -> Float[Tensor, "c n k"]:
    """A matrix with a row for every result of a product, in the order in which lanes read it, see `tiles.cuh`.

    n is a multiple of 8, and k one of 16. A pair of tiles of 8 x 8 numbers is contiguous, four numbers of a lane.
    """
    cells, n, k = W.shape
    tiles = W.reshape(cells, n // 8, 8, k // 16, 2, 4, 2)
    return tiles.permute(0, 1, 3, 2, 5, 4, 6).contiguous().view(cells, n, k)


class Launch:
    """A kernel with its arguments for so many items, ready for many launches.

    None is a null pointer. Raises ValueError for a tensor that a kernel cannot read, and RuntimeError for what CUDA
    refuses.
    """

    def __init__(self, program: Program, kernel: str, items: int, *arguments: Tensor | float | None) -> None:
        first = arguments[0]
        assert isinstance(first, Tensor)
        self._values = passed(kernel, arguments)
        self._places = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, self._values))
        self._arguments = arguments  # keeps the tensors alive
        self._kernel, self._device = kernel, first.device
        self._loaded = loaded(program, first.device)
        self._blocks = min(-(-items // WARPS), BLOCKS * _multiprocessors(first.device))

    def __call__(self, *others: Tensor) -> None:
        """Launch the kernel on the current stream of the device. `others` take the places of its first arguments.

        They have the shapes of the arguments whose places they take, and stay in these places. The caller keeps them
        alive.
        """
        from cuda.bindings import driver

        replace(self._kernel, self._values, self._arguments, others)
        with torch.cuda.device(self._device):
            _done(driver.cuCtxSetCurrent(self._loaded.context))  # a new thread has none
            stream = torch.cuda.current_stream().cuda_stream
            kernel, places = self._loaded.kernels[self._kernel], ctypes.addressof(self._places)
            _done(driver.cuLaunchKernel(kernel, self._blocks, 1, 1, 32 * WARPS, 1, 1, 0, stream, places, 0))


def passed(kernel: str, arguments: Sequence[Tensor | float | None]) -> list[Any]:
    """Arguments in C, as a kernel takes them. Raises ValueError for a tensor that it cannot read."""
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))

    def one(argument: Tensor | float | None) -> Any:
        if argument is None:
            return ctypes.c_void_p()
        if isinstance(argument, Tensor):
            return ctypes.c_void_p(_address(kernel, argument, device))
        return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)

    return list(map(one, arguments))


def replace(
    kernel: str, values: Sequence[Any], arguments: Sequence[Tensor | float | None], others: Sequence[Tensor]
) -> None:
    """Put other tensors in the places of the first arguments. Raises ValueError for one that a kernel cannot read."""
    for value, argument, other in zip(values, arguments, others, strict=False):
        if not isinstance(argument, Tensor) or other.shape != argument.shape:
            raise ValueError(f"{kernel} takes another tensor only of the shape of the one before")
        value.value = _address(kernel, other, argument.device)


def _address(kernel: str, v: Tensor, device: torch.device) -> int:
    """Where v lies."""
    place = v.data_ptr()
    if place % ALIGNED or v.dtype is not torch.float32 or v.device != device or not v.is_contiguous():
        raise ValueError(f"{kernel} takes contiguous tensors of float32 that are aligned and on one device")
    return place


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def loaded(program: Program, device: torch.device) -> Loaded:
    """The kernels of a program on a device; compiled where they are not yet. Raises RuntimeError."""
    key = program, device
    if key not in _loaded:
        with _compiling.setdefault(key, threading.Lock()):
            if key not in _loaded:
                _loaded[key] = _load(program, device)
    return _loaded[key]


def _load(program: Program, device: torch.device) -> Loaded:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # torch makes the context of the device
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
        modules = [_done(driver.cuModuleLoadData(cubin)) for cubin in cubins(program, architecture)]
        pairs = zip(program.kernels, modules, strict=True)
        kernels = {name: _done(driver.cuModuleGetFunction(module, name.encode())) for name, module in pairs}
        return Loaded(kernels, _done(driver.cuCtxGetCurrent()))


def cubins(program: Program, architecture: str) -> list[bytes]:
    """The kernels for a kind of GPU, as stored by an earlier process or compiled now, side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(partial(_cubin, program, architecture), program.kernels))


def _cubin(program: Program, architecture: str, kernel: str) -> bytes:
    key = nvrtc_version(), _options(program, architecture), source(program, kernel)
    name = f"{hashlib.sha256(repr(key).encode()).hexdigest()}.cubin"
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradbench" / "kernels" / name
    except RuntimeError:  # there is no home
        return compiled(program, architecture, kernel)
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
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_bytes(hashlib.sha256(content).digest() + content)
            whole.replace(path)
    except OSError:
        return


def compiled(program: Program, architecture: str, kernel: str) -> bytes:
    """A kernel for a kind of GPU as `sm_90`. Raises RuntimeError with what the compiler says."""
    from cuda.bindings import nvrtc

    file = f"{program.family}_{kernel}.cu"
    handle = _done(nvrtc.nvrtcCreateProgram(source(program, kernel).encode(), file.encode(), 0, [], []))
    try:
        options = [option.encode() for option in _options(program, architecture)]
        (failed,) = nvrtc.nvrtcCompileProgram(handle, len(options), options)
        if failed:
            log = bytes(_done(nvrtc.nvrtcGetProgramLogSize(handle)))
            _done(nvrtc.nvrtcGetProgramLog(handle, log))
            raise RuntimeError(f"{file} does not compile: {log.decode().rstrip(ENDS)}")
        content = bytes(_done(nvrtc.nvrtcGetCUBINSize(handle)))
        _done(nvrtc.nvrtcGetCUBIN(handle, content))
        return content
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


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
    """What a function of CUDA gave. Raises torch.OutOfMemoryError where there is none, else RuntimeError."""
    failed, *results = answer
    if failed:
        name = getattr(failed, "name", str(failed))
        raise (torch.OutOfMemoryError if name == OUT_OF_MEMORY else RuntimeError)(f"CUDA: {name}")
    return results[0] if len(results) == 1 else tuple(results)
