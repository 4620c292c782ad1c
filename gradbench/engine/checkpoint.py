"""Checkpoints: the whole state of a training at one step, in one file that is complete or absent."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.planning.cells import trained
from gradbench.tables.disk import guarded, write

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.systems.base import Params

VERSION = 1
THETA = "theta."  # begins the names of parameters among the buffers

# what the file holds
Checkpoint = TypedDict(
    "Checkpoint",
    {
        "gradbench.checkpoint": int,  # the version of the format
        "seeds": list[int],
        "step": int,
        "rows": list[dict[str, Any]],  # of the log
        "state": dict[str, "Tensor"],  # the buffers, with an axis over the seeds
    },
)


def save(
    path: Path, seeds: Sequence[int], step: int, state: Mapping[str, Tensor], rows: Sequence[dict[str, Any]]
) -> None:
    """Write the buffers after `step` steps and the log so far, atomically.

    Batches are not saved: they follow from seed and step.
    """
    content: Checkpoint = {
        "gradbench.checkpoint": VERSION,
        "seeds": list(seeds),
        "step": step,
        "rows": list(rows),
        "state": {name: value.cpu() for name, value in state.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, lambda file: file.write(buffer.getvalue()))


def read(path: Path) -> Checkpoint:
    """The content of a checkpoint, tensors on the CPU. Raises StoreError where it is missing or damaged."""
    with guarded(path):
        archive = path.read_bytes()
    try:
        content: Checkpoint = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a torn archive makes torch raise
        raise StoreError(f"{path}: damaged: {str(error).partition(chr(10))[0]}; begin anew with --fresh") from None
    if not isinstance(content, dict) or content.get("gradbench.checkpoint") != VERSION:
        raise StoreError(f"{path}: is no checkpoint of this gradbench")
    return content


def load_params(path: str | Path, seed: int) -> Params:
    """Trained theta of one seed, CPU. Raises UserError for a seed that was not trained, StoreError as `read`."""
    content = read(Path(path))
    if seed not in content["seeds"]:
        raise UserError(f"{path}: seed = {seed} was not trained{near_miss(str(seed), map(str, content['seeds']))}")
    c = content["seeds"].index(seed)
    return {n.removeprefix(THETA): v[c].clone() for n, v in content["state"].items() if n.startswith(THETA)}


def planned_params(params_from: str, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Trained theta of the checkpoint that a plan names. Raises UserError where it changed, or is of another system."""
    path = Path(params_from.rpartition("@")[0])
    if trained(path) != params_from:
        raise UserError(f"{path}: is not the checkpoint that was planned: it has changed since")
    theta = load_params(path, seed)
    if missing := [name for name in shapes if name not in theta]:
        raise UserError(f"{path}: has no {', '.join(missing)}: it was trained on another system")
    return theta
