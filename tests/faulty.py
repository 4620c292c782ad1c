"""A plugin: a system that crashes in eleven ways, by the knob `fault`; 0 is healthy. The last one is of CUDA alone."""

import ctypes
import os
import time
from typing import Any

import torch

import gradbench as gb


def _leave() -> None:
    os._exit(7)


def _exit() -> None:
    raise SystemExit("bye")


def _sleep() -> None:
    while True:
        time.sleep(0.05)


def _spin() -> None:
    while True:
        pass


def _fill() -> None:
    held = []
    while True:
        held.append(bytearray(2**28))


def _raise() -> None:
    raise ValueError("planted")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _close() -> None:
    os.closerange(3, 256)
    raise OSError("every file is closed")


FAULTS: dict[int, Any] = {
    0: lambda: None,
    1: lambda: ctypes.string_at(0),
    2: _leave,
    3: _exit,
    4: _sleep,
    5: _spin,
    6: _fill,
    7: os.abort,
    8: _raise,
    9: _interrupt,
    10: _close,
}
POISON = 11
_rng = torch.Generator().manual_seed(0)
_theta = {"W": 0.2 * torch.randn(6, 6, generator=_rng)}
_data = {"x": torch.randn(4, 6, generator=_rng)}


def _step(theta: Any, x: Any, z: Any, k: Any) -> Any:
    if k.fault == POISON:
        z = z + z.new_zeros(1)[torch.full((1,), 5, device=z.device)]  # past the end: spoils the context of a process
    else:
        FAULTS[int(k.fault)]()
    return torch.tanh(k.gain * z @ theta["W"] + x["x"])


faulty = gb.system(
    step=_step,
    cost=lambda theta, x, z: (z**2).sum(-1),
    state=lambda theta, x: torch.zeros(len(x["x"]), 6),
    params=_theta,
    data=_data,
    knobs={"gain": 1.0, "fault": 0.0},
    defaults={"T1": 60, "T2": 20, "beta": 0.02},
    name="faulty",
)
