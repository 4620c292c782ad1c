"""Checkpoints: the whole state of a training at one step, in one file that is complete or absent."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from gradbench.errors import StoreError, UserError, near_miss
from gradbench.planning.cells import trained
from gradbench.planning.regular_files import CHECKPOINT, regular
from gradbench.tables.disk import guarded, read_footer, read_seal, write
from gradbench.tables.schema import CHECKPOINT_OF

if TYPE_CHECKING:
    from torch import Tensor

    from gradbench.systems.base import Params

VERSION = 2
WITHOUT_DIGEST = 1  # the version before, which is read, too
THETA = "theta."  # begins the names of parameters among the buffers

# what the file holds
Checkpoint = TypedDict(
    "Checkpoint",
    {
        "gradbench.checkpoint": int,  # the version of the format
        "digest": str,  # of all that follows
        "seeds": list[int],
        "step": int,
        "rows": list[dict[str, Any]],  # of the log
        "state": dict[str, "Tensor"],  # the buffers, with an axis over the seeds
    },
)
_CONTENT: dict[str, type] = {"seeds": list, "step": int, "rows": list, "state": dict}


def save(
    path: Path,
    seeds: Sequence[int],
    step: int,
    state: Mapping[str, Tensor],
    rows: Sequence[dict[str, Any]],
    *,
    inside: Path | None = None,
) -> str:
    """Write the buffers after `step` steps and the log so far, atomically; the digest of what the file holds.

    Batches are not saved: they follow from seed and step. Below the folder `inside` no link is followed.
    """
    content: Checkpoint = {
        "gradbench.checkpoint": VERSION,
        "digest": "",
        "seeds": list(seeds),
        "step": step,
        "rows": list(rows),
        "state": {name: value.cpu() for name, value in state.items()},
    }
    content["digest"] = digest_of(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, lambda file: file.write(buffer.getvalue()), inside=inside)
    return content["digest"]


def digest_of(content: Checkpoint) -> str:
    """The SHA-256 of seeds, step, rows, and of the name, the dtype, the shape and the bytes of every buffer."""
    told = json.dumps([content["seeds"], content["step"], content["rows"]], sort_keys=True)
    digest = hashlib.sha256(told.encode())
    for name, value in sorted(content["state"].items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path) -> Checkpoint:
    """The content of a checkpoint, tensors on the CPU. Raises StoreError where it is missing, damaged or newer."""
    with guarded(path):
        archive = regular(path, CHECKPOINT)
    return _content(archive, path)


def _content(archive: bytes, path: Path) -> Checkpoint:
    """What `read` returns, of the bytes that were read from `path`."""
    try:
        _refuse_packed(archive)
        content: Checkpoint = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a torn archive makes torch raise
        told = str(error).partition("\n")[0] or type(error).__name__
        raise StoreError(f"{path}: damaged: {told}; begin anew with --fresh") from None
    version = content.get("gradbench.checkpoint") if isinstance(content, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise StoreError(f"{path}: version {version}, this gradbench reads {WITHOUT_DIGEST} and {VERSION}")
    if version not in (WITHOUT_DIGEST, VERSION):
        raise StoreError(f"{path}: is no checkpoint of this gradbench")
    if not _whole(content, len(archive), version):
        told = "its digest is not the one that it was written with"
        raise StoreError(f"{path}: damaged: {told}; begin anew with --fresh")
    if _logged(path.parent / "log.parquet", len(content["rows"])) not in (None, content.get("digest", "").encode()):
        raise StoreError(f"{path}: is not the checkpoint that the log was written from; begin anew with --fresh")
    return content


def _logged(log: Path, rows: int) -> bytes | None:
    """The digest of the checkpoint that a log names; None where there is no undamaged log with so many rows.

    A checkpoint is written before its log, which may lack the last rows.
    """
    try:
        read_seal(log)
    except (StoreError, OSError):
        return None
    footer = read_footer(log)
    return footer.metadata.get(CHECKPOINT_OF) if footer is not None and footer.rows == rows else None


def _refuse_packed(archive: bytes) -> None:
    """Raise ValueError for an archive that unpacks to more than it holds: torch packs nothing."""
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        listed = entries.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in listed) or sum(e.file_size for e in listed) > len(archive):
        raise ValueError("its entries are packed, or larger than the file")


def _whole(content: Checkpoint, size: int, version: int) -> bool:
    """Whether all is there, in its type, no buffer is larger than the file, and the digest is that of the content."""
    if not all(isinstance(content.get(name), kind) for name, kind in _CONTENT.items()):
        return False
    for value in content["state"].values():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.nbytes > size:
            return False
        if value.requires_grad or value.is_conj() or value.is_neg():  # marks of a tensor that its bytes do not show
            return False
    if version == WITHOUT_DIGEST and "digest" not in content:
        return True
    try:
        return content.get("digest") == digest_of(content)
    except (TypeError, ValueError, RuntimeError, RecursionError):  # names or rows that are none
        return False


def load_params(path: str | Path, seed: int, archive: bytes | None = None) -> Params:
    """Trained theta of one seed, CPU. `archive` is the content of the file where that was read before.

    Raises UserError for a seed that was not trained, StoreError as `read`.
    """
    content = read(Path(path)) if archive is None else _content(archive, Path(path))
    if seed not in content["seeds"]:
        raise UserError(f"{path}: seed = {seed} was not trained{near_miss(str(seed), map(str, content['seeds']))}")
    c = content["seeds"].index(seed)
    return {n.removeprefix(THETA): v[c].clone() for n, v in content["state"].items() if n.startswith(THETA)}


_brought: dict[str, bytes] = {}  # checkpoints of another machine, by the name that a plan has for them


def bring(files: Mapping[str, bytes]) -> None:
    """Know these checkpoints, by the name that a plan has for them, and no other one that was brought before."""
    _brought.clear()
    _brought.update(files)


def planned_bytes(params_from: str) -> bytes:
    """The file of the checkpoint that a plan names. Raises UserError where it is gone or changed since."""
    path = Path(params_from.rpartition("@")[0])
    try:
        archive = regular(path, CHECKPOINT)
    except OSError:
        trained(path)  # it raises, and says how one is made
        raise
    if hashlib.sha256(archive).hexdigest()[:16] != params_from.rpartition("@")[2]:
        raise UserError(f"{path}: is not the checkpoint that was planned: it has changed since")
    return archive


def planned_params(params_from: str, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Trained theta of the checkpoint that a plan names. Raises UserError where it changed, or is of another system."""
    path = Path(params_from.rpartition("@")[0])
    archive = _brought[params_from] if params_from in _brought else planned_bytes(params_from)
    theta = load_params(path, seed, archive)
    if missing := [name for name in shapes if name not in theta]:
        raise UserError(f"{path}: has no {', '.join(missing)}: it was trained on another system")
    return theta
