"""Floating-point settings of the measured path: set by the engine, never inherited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FLAGS = {
    "matmul_allow_tf32": False,
    "cudnn_allow_tf32": False,
    "float32_matmul_precision": "highest",
    "flush_denormal": True,
}


@contextmanager
def ieee_float32() -> Iterator[dict[str, Any]]:
    """IEEE float32 products on every device; denormals flushed, which slow the CPU 5-10 times in long sweeps.

    TF32 noise alone moves a centred estimate by 1e-2 at beta = 1e-3. The settings found are put back,
    save for the flushing of denormals, which torch cannot tell.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_flush_denormal(True)
    try:
        yield FLAGS
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision(precision)
