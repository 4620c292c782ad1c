"""Checkpoints: all that a training is, at one step, in one file that is wholly there or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.plan import trained
from gradbench.tables.store import guarded, write

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.systems.base import Params

VERSION = 1
THETA = "theta."  # before the names of parameters among the buffers


def save(
    path: Path, seeds: Sequence[int], step: int, state: Mapping[str, Tensor], rows: Sequence[dict[str, Any]]
) -> None:
    """Write the buffers after a number of steps and the log so far, atomically. Batches follow from seed and step."""
    content = {
        "gradbench.checkpoint": VERSION,
        "seeds": list(seeds),
        "step": step,
        "rows": list(rows),
        "state": {name: value.cpu() for name, value in state.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, lambda file: file.write(buffer.getvalue()))


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU. Raises StoreError where it is missing or damaged."""
    with guarded(path):
        content = path.read_bytes()
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a torn archive makes torch raise
        raise StoreError(f"{path}: damaged: {str(error).partition(chr(10))[0]}; begin anew with --fresh") from None
    if not isinstance(found, dict) or found.get("gradbench.checkpoint") != VERSION:
        raise StoreError(f"{path}: is no checkpoint of this gradbench")
    return found


def load_params(path: str | Path, seed: int) -> Params:
    """Trained theta of one seed, CPU. Raises UserError for a seed that was not trained, StoreError as `read`."""
    found = read(Path(path))
    if seed not in found["seeds"]:
        raise UserError(f"{path}: seed = {seed} was not trained{near_miss(str(seed), found['seeds'])}")
    c = found["seeds"].index(seed)
    return {n.removeprefix(THETA): v[c].clone() for n, v in found["state"].items() if n.startswith(THETA)}


def planned_params(params_from: str, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Trained theta as a plan names it. Raises UserError where the file changed, or is of another system."""
    path = Path(params_from.rpartition("@")[0])
    if trained(path) != params_from:
        raise UserError(f"{path}: is not the checkpoint that was planned: it has changed since")
    theta = load_params(path, seed)
    if missing := [name for name in shapes if name not in theta]:
        raise UserError(f"{path}: has no {', '.join(missing)}: it was trained on another system")
    return theta
