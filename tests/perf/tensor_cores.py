"""What tensor cores cost in accuracy, emulated on a CPU: `PYTHONPATH=tests python tests/perf/tensor_cores.py [SYSTEM]`.

100 free steps of a system with ordinary attention (cet_projected), 16 examples, products as the kernels take them:
three passes of TF32, the small ones first. A tensor core adds up 8 products at a time and cuts the sum off to float32,
towards zero; what that takes away on average is put back. Products are added to each other in float32. Prints what a
product loses, then the error of the last state against float64, where the products that are named are cut in two, which
makes their sums shorter, and that of plain float32.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch
from interpreted import apart, stack
from torch import Tensor

from gradbench.dynamics.stack import Stack
from gradbench.engine.precision import isolated
from gradbench.systems.tokens import image, join, patches, token_norm

STEPS, WIDTH, TOGETHER = 100, 64, 8
PRODUCTS = ("from pixels", "to pixels", "from memories", "from heads", "to features")


def tf32(v: Tensor) -> Tensor:
    """Rounded to the 10 bits behind the point that TF32 has."""
    return ((v.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def cut_off(v: Tensor) -> Tensor:
    """float64 to float32, towards zero."""
    rounded = v.float()
    return torch.where(rounded.double().abs() > v.abs(), rounded.nextafter(torch.zeros_like(rounded)), rounded)


def lost(a: Tensor, b: Tensor) -> float:
    """The share of a product that is cut off, in units of 2^-23 / 6: n + 1 for a sum of 8 n products."""
    exact = a.double() @ b.double()
    return (6 * 2**23 * (1 - (cut_product(a, b).double() * exact).sum() / exact.square().sum())).item()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b as the kernels take it: with what is cut off on average."""
    cut = cut_product(a, b).double()
    return (cut + cut * (a.shape[1] / TOGETHER + 1) * 2.0**-23 / 6).float()


def cut_product(a: Tensor, b: Tensor) -> Tensor:
    """a b by one tensor core after the other."""
    (a_high, a_low), (b_high, b_low) = ((tf32(v), tf32(v - tf32(v))) for v in (a, b))
    total = a.new_zeros(len(a), b.shape[1])
    for left, right in ((a_low, b_high), (a_high, b_low), (a_high, b_high)):
        for k in range(0, a.shape[1], TOGETHER):
            total = cut_off(total.double() + left[:, k : k + TOGETHER].double() @ right[k : k + TOGETHER].double())
    return total


class Emulated:
    """One cell, by products as tensor cores take them, some of them cut in two."""

    def __init__(self, field: Stack, packed: dict[str, Tensor], halved: Collection[str]) -> None:
        self.system, self.halved = field.system, halved
        self.reading, self.writing = packed["ahead_in"][0].mT, packed["ahead_out"][0].mT
        self.input, self.bias = field.context["input"][0].flatten(0, 1), field.theta["bdec"][0]
        self.sigma, self.damp, self.eps = (knob[0] for knob in field.knobs)

    def times(self, name: str, a: Tensor, W: Tensor) -> Tensor:
        width = WIDTH // 2 if name in self.halved else WIDTH
        return sum(product(a[:, k : k + width], W[k : k + width]) for k in range(0, WIDTH, width))  # type: ignore[return-value]

    def step(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and pixels, both (example and token, number)."""
        system, first = self.system, WIDTH + self.system.mem
        back = self.times("from pixels", torch.nn.functional.pad(y, (0, WIDTH - y.shape[1])), self.writing[:WIDTH])
        for k in range(WIDTH, first, WIDTH):
            memory = self.times("to features", z, self.reading[:, k : k + WIDTH]).relu()
            back = back + self.times("from memories", memory, self.writing[k : k + WIDTH])
        features = (self.times("to features", z, self.reading[:, first + k : first + k + WIDTH]) for k in (0, 64, 128))
        q, k, v = (f.view(-1, 16, system.heads, system.dh).transpose(1, 2) for f in features)
        o = (q @ k.mT / system.dh**0.5).softmax(-1) @ v
        heads = o.transpose(1, 2).flatten(-2).flatten(0, 1)
        back = back + self.sigma * self.times("from heads", heads, self.writing[first:])
        decoded = self.times("to pixels", z, self.reading[:, :WIDTH])[:, : y.shape[1]]
        z = z + self.eps * (back + self.input - (2 * system.well + self.damp) * z)
        return token_norm(z) if system.projects else z, y + self.eps * (decoded + self.bias - y)


def main(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    for length in (16, 32, 64):
        a, b = torch.randn(512, length, generator=rng), torch.randn(length, WIDTH, generator=rng)
        shares = f"{lost(a, b):.1f}, all positive {lost(a.abs(), b.abs()):.1f}"
        print(f"a sum of {length} products loses {shares} of 2^-23 / 6")
    with isolated(), torch.no_grad():
        fused = stack(name, cells=1, batch=16)
        field, system = Stack(fused.system, fused.theta, fused.x, fused.knobs), fused.system
        start = field.init_state()
        exact, plain = start.double(), start
        for _ in range(STEPS):
            exact, plain = field.wide.step(exact), field.step(plain)
        print(f"{'plain float32':<40}{apart(plain, exact):.2e}")
        for halved in ((), *((one,) for one in PRODUCTS), PRODUCTS[:2], PRODUCTS):
            emulated, part = Emulated(field, fused.packed, halved), system.split(start)
            z, y = part["z"].flatten(0, 2), patches(part["y"], system.patch).flatten(0, 2)
            for _ in range(STEPS):
                z, y = emulated.step(z, y)
            pixels = image(y.unflatten(0, (1, 16, 16)), system.ch, system.side, system.patch)
            found = join(z.unflatten(0, (1, 16, 16)), pixels)
            print(f"{'in two: ' + (', '.join(halved) or 'none'):<80}{apart(found, exact):.2e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "cet_projected")
