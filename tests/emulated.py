"""Kernels with products as tensor cores take them: `TRITON_INTERPRET=1 python tests/emulated.py`.

The interpreter of Triton runs the kernels on a CPU, with one change. A product takes three passes of TF32, the small
ones first, as Triton's `tf32x3`, and is added up as an H100 does it: 8 products at a time, with the sum cut off to
float32, towards zero. Prints as JSON what a product loses, and for the systems that are named the errors against
float64.
`tests/physics/test_tensor_cores.py` runs this file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from interpreted import SYSTEMS, along, apart, credits, smooth, stack, swept
from triton.runtime import interpreter

from gradbench.dynamics.stack import Fused
from gradbench.engine.precision import isolated
from gradbench.systems.kernels import parts

TOGETHER, EXAMPLES, FREE, BACK = 8, 4, 40, 20
LENGTHS = (16, 32, 64)  # of the sums in the kernels


def tf32(v: np.ndarray) -> np.ndarray:
    """Rounded to the 10 bits behind the point that TF32 has."""
    rounded: np.ndarray = ((v.view(np.int32) + 0x1000) & ~np.int32(0x1FFF)).view(np.float32)
    return rounded


def cut_off(v: np.ndarray) -> np.ndarray:
    """float64 to float32, towards zero."""
    rounded = v.astype(np.float32)
    return np.where(np.abs(rounded.astype(float)) > np.abs(v), np.nextafter(rounded, np.float32(0)), rounded)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b by one tensor core after the other."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    (a_high, a_low), (b_high, b_low) = ((tf32(v), tf32(v - tf32(v))) for v in (a, b))
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for left, right in ((a_low, b_high), (a_high, b_low), (a_high, b_high)):
        for k in range(0, a.shape[-1], TOGETHER):
            part = left[..., k : k + TOGETHER].astype(float) @ right[..., k : k + TOGETHER, :].astype(float)
            total = cut_off(total + part)
    return total


def lost(length: int, *, positive: bool) -> float:
    """The share of a product that is cut off, in units of `parts.LOST`."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((512, length), (length, 64)))
    a, b = (np.abs(a), np.abs(b)) if positive else (a, b)
    exact = a.astype(float) @ b.astype(float)
    share: float = 1 - (product(a, b) * exact).sum() / np.square(exact).sum()
    return share / parts.LOST


def create_dot(builder: Any, a: Any, b: Any, added: Any, *_: object) -> interpreter.TensorHandle:
    """A product of the interpreter, by tensor cores."""
    return interpreter.TensorHandle(product(a.data, b.data) + added.data, added.dtype.scalar)


def errors(system: str) -> dict[str, Any]:
    """Of a free relaxation, of credits and of a reverse sweep: each by kernels, and as plain float32."""
    field = stack(system, cells=1, batch=EXAMPLES)
    plainly = super(Fused, field)
    states, s = along(field, FREE), field.init_state()
    exact, without = s.double(), s
    for _ in range(FREE - 1):
        exact, without = field.wide.step(exact), plainly.step(without)
    swept_through, end = states[:BACK], states[BACK][None]
    a, like = field.cost_slope(end) * smooth(field, swept_through)[..., None], field.cost_grads(end)
    wanted = swept(field.wide, swept_through.double(), a.double(), field.wide.cost_grads(end.double()))
    back, back_plainly = (swept(of, swept_through, a, like) for of in (field, plainly))
    return {
        "free": (apart(states[-1], exact), apart(without, exact)),
        "credit": credits(field, states[-1][None], 1e-2),
        "back": {name: (apart(back[name], v), apart(back_plainly[name], v)) for name, v in wanted.items()},
    }


def main(systems: list[str]) -> None:
    interpreter.InterpreterBuilder.create_dot = create_dot
    parts.CUT_OFF = tl.constexpr(parts.LOST)
    told: dict[str, Any] = {"lost": [[lost(n, positive=positive) for positive in (False, True)] for n in LENGTHS]}
    with isolated(), torch.no_grad():
        told |= {system: errors(system) for system in systems}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:] or list(SYSTEMS))
