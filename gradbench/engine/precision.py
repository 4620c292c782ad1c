"""Floating-point settings of the measured path: set by the engine, never inherited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch

PARTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
FLAGS: dict[str, object] = {"fp32_precision": dict.fromkeys(PARTS, "ieee"), "flush_denormal": True}


@contextmanager
def ieee_float32() -> Iterator[dict[str, object]]:
    """IEEE float32 products on every device; denormals flushed, which slow the CPU 5-10 times in long sweeps.

    TF32 noise alone moves a centred estimate by 1e-2 at beta = 1e-3. The precision from before is set
    again at the end; the flushing of denormals is not, since torch cannot tell how it was set.
    """
    parts = {name: attrgetter(name)(torch.backends) for name in PARTS}
    precisions = {name: part.fp32_precision for name, part in parts.items()}
    _legacy("highest", matmul=False, conv=False)
    for part in parts.values():
        part.fp32_precision = "ieee"
    torch.set_flush_denormal(True)
    try:
        yield FLAGS
    finally:
        matmul = precisions["cuda.matmul"] == "tf32"
        whole = "medium" if precisions["mkldnn.matmul"] == "bf16" else "high" if matmul else "highest"
        _legacy(whole, matmul=matmul, conv=precisions["cudnn.conv"] == "tf32")
        for name, part in parts.items():
            part.fp32_precision = precisions[name]


def _legacy(whole: str, *, matmul: bool, conv: bool) -> None:
    """Set torch's older switches, which raise when read while the newer ones are set to something else."""
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = conv
    torch.set_float32_matmul_precision(whole)
