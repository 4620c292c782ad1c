"""Checkpoints: all that a training is, at one step, in one file that is wholly there or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.tables.store import guarded, write

if TYPE_CHECKING:
    from gradbench.systems.base import Params
    from gradbench.training.trainer import Trainer

VERSION = 1


def save(path: Path, trainer: Trainer, step: int, rows: list[dict[str, Any]]) -> None:
    """Write buffers, number of steps and log so far, atomically. Batches follow from seed and step."""
    content = {
        "gradbench.checkpoint": VERSION,
        "system": trainer.config.system[0],
        "seeds": list(trainer.config.seeds),
        "step": step,
        "rows": rows,
        "state": {name: value.cpu() for name, value in trainer.state.tensors().items()},
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
    """Trained theta of one seed, CPU: for `measure(params=...)`. Raises UserError for a seed that was not trained."""
    found = read(Path(path))
    if seed not in found["seeds"]:
        raise UserError(f"{path}: seed = {seed} was not trained{near_miss(str(seed), found['seeds'])}")
    c = found["seeds"].index(seed)
    theta = {n.removeprefix("theta."): v for n, v in found["state"].items() if n.startswith("theta.")}
    return {name: value[c].clone() for name, value in theta.items()}
