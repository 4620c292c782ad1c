"""The device to run on, its model, and what makes kernels for it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from functools import cache
from pathlib import Path

import torch

from gradbench.errors import UserError, near_miss
from gradbench.systems.kernels.programs import nvrtc_version

MEASURED = 9  # compute capability of an H100 and an H200


def resolve(device: object) -> str:
    """The name that torch knows; `auto` is CUDA where there is a CUDA device. Raises UserError for an absent device."""
    name = str.__str__(device) if isinstance(device, str) else str(device)  # of a torch.device, too
    kind, colon, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        hint = ". Did you mean 'cuda'?" if kind.lower() == "gpu" else near_miss(name, ("auto", "cpu", "cuda"))
        raise UserError(f"device = {name!r} is not known{hint}")
    if colon and (not re.fullmatch("[0-9]+", index) or kind == "auto" or (kind == "cpu" and int(index))):
        raise UserError(f"device = {name!r} is not known; expected: auto, cpu, cuda or cuda:0")
    if kind == "cpu":
        return "cpu"
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device = {name!r}: torch {torch.__version__} sees no CUDA device here; use cpu or auto")
    if kind == "cuda" and name not in ("cuda", "cuda:0"):
        raise UserError(f"device = {name!r}: runs are made on the first CUDA device; set CUDA_VISIBLE_DEVICES={index}")
    return name


def describe(device: str) -> str:
    """The model of the processor that did the work; with a CPU, the number of threads of torch."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_cpu(Path('/proc/cpuinfo'))}, {torch.get_num_threads()} threads"


@cache
def _cpu(kernel: Path) -> str:
    """The model of the CPU as Linux tells it, else as Python does."""
    told = kernel.read_text("utf-8") if kernel.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def makes_kernels(device: str) -> bool:
    """Whether kernels can be compiled for this CUDA device, and are those that were measured: of capability 9."""
    return nvrtc_version() is not None and torch.cuda.get_device_capability(device)[0] == MEASURED


def triton_version() -> str | None:
    """The version of triton, by which torch compiles; None where there is none."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
