"""Floating-point settings of the measured path: set by the engine, never inherited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch

PARTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
FLAGS = {"fp32_precision": dict.fromkeys(PARTS, "ieee"), "flush_denormal": True}


@contextmanager
def ieee_float32() -> Iterator[dict[str, Any]]:
    """IEEE float32 products on every device; denormals flushed, which slow the CPU 5-10 times in long sweeps.

    TF32 noise alone moves a centred estimate by 1e-2 at beta = 1e-3. The precision found is put back;
    the flushing of denormals is not, since torch cannot tell what it was.
    """
    parts = {name: attrgetter(name)(torch.backends) for name in PARTS}
    found = {name: part.fp32_precision for name, part in parts.items()}
    _legacy("highest", matmul=False, conv=False)
    for part in parts.values():
        part.fp32_precision = "ieee"
    torch.set_flush_denormal(True)
    try:
        yield FLAGS
    finally:
        matmul = found["cuda.matmul"] == "tf32"
        whole = "medium" if found["mkldnn.matmul"] == "bf16" else "high" if matmul else "highest"
        _legacy(whole, matmul=matmul, conv=found["cudnn.conv"] == "tf32")
        for name, part in parts.items():
            part.fp32_precision = found[name]


def _legacy(whole: str, *, matmul: bool, conv: bool) -> None:
    """torch's older switches, which raise when read after the newer ones were set to something else."""
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = conv
    torch.set_float32_matmul_precision(whole)
